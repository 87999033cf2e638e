//! Prevents: a ptrace request that writes or reads something else than the kernel means, a report
//! that is taken for another one, and a change in the kernel behaviour that remote calls rest on.

use nix::libc;
use pagetide_kernel::ptrace::{self, Event, Options, ThreadId, WaitReport};
use std::io;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// `sleep SECONDS`, killed at the end.
struct Sleeper(Child);

impl Sleeper {
    fn start(seconds: &str) -> Self {
        let child = Command::new("sleep").arg(seconds).spawn().unwrap();
        let sleeper = Self(child);
        // Until it sleeps in a system call; it has to load its libraries first.
        let path = format!("/proc/{}/syscall", sleeper.0.id());
        let deadline = Instant::now() + Duration::from_secs(30);
        while !std::fs::read_to_string(&path).is_ok_and(|text| text.starts_with("230 ")) {
            assert!(Instant::now() < deadline, "it does not sleep");
            std::thread::yield_now();
        }
        sleeper
    }

    fn thread(&self) -> ThreadId {
        ThreadId::new(i32::try_from(self.0.id()).unwrap())
    }

    fn stopped(seconds: &str) -> Self {
        let sleeper = Self::start(seconds);
        let options = Options {
            mark_syscall_stops: true,
            ..Options::default()
        };
        ptrace::seize(sleeper.thread(), options).unwrap();
        ptrace::interrupt(sleeper.thread()).unwrap();
        let report = sleeper.report();
        let stop = WaitReport::Event(Event::Stop { group_stop: None });
        assert_eq!(report, stop);
        sleeper
    }

    fn report(&self) -> WaitReport {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(report) = ptrace::wait_thread(self.thread(), self.thread()).unwrap() {
                return report;
            }
            assert!(Instant::now() < deadline, "no report");
            std::thread::yield_now();
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn registers_and_their_words_are_read_and_written() {
    let sleeper = Sleeper::stopped("100");
    let thread = sleeper.thread();
    let registers = ptrace::registers(thread).unwrap().unwrap();
    assert_eq!(registers.orig_rax, 230);
    assert_eq!(registers.rax.cast_signed(), -516);
    assert_ne!(registers.fs_base, 0);
    let words = registers.to_words();
    assert_eq!(words[15], 230);
    assert_eq!(ptrace::Registers::from_words(words), registers);
    let mut changed = registers;
    changed.r15 = 0x1234_5678_9abc_def0;
    ptrace::set_registers(thread, &changed).unwrap();
    assert_eq!(ptrace::registers(thread).unwrap(), Some(changed));
    let mut refused = registers;
    refused.fs_base = u64::MAX;
    ptrace::set_registers(thread, &refused).unwrap_err();
    ptrace::set_registers(thread, &registers).unwrap();
    assert_eq!(ptrace::registers(thread).unwrap(), Some(registers));
}

#[test]
fn extended_state_is_read_whole_and_written_back() {
    let sleeper = Sleeper::stopped("100");
    let mut buffer = vec![0; ptrace::XSTATE_ROOM];
    let length = ptrace::xstate(sleeper.thread(), &mut buffer).unwrap();
    assert!(length >= 576);
    let mut short = vec![0; length - 64];
    let error = ptrace::xstate(sleeper.thread(), &mut short).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS));
    let mut changed = buffer[..length].to_vec();
    changed[160] ^= 0xff;
    // SSE in use, or the kernel takes the registers for zero.
    changed[512] |= 2;
    ptrace::set_xstate(sleeper.thread(), &changed).unwrap();
    let again = ptrace::xstate(sleeper.thread(), &mut buffer).unwrap();
    assert_eq!(buffer[..again], changed);
    // The kernel's own layout ends where the processor says it does.
    let features = u64::from_le_bytes(changed[464..472].try_into().unwrap());
    let tiles = features & (0b11 << 17);
    assert!(tiles != 0 || ptrace::xstate_size_without_tiles(features) == length);
}

#[test]
fn the_signal_mask_is_read_and_written_without_sigkill_and_sigstop() {
    let sleeper = Sleeper::stopped("100");
    let before = ptrace::signal_mask(sleeper.thread()).unwrap();
    ptrace::set_signal_mask(sleeper.thread(), u64::MAX).unwrap();
    let unblockable = (1 << (libc::SIGKILL - 1)) | (1 << (libc::SIGSTOP - 1));
    assert_eq!(ptrace::signal_mask(sleeper.thread()).unwrap(), !unblockable);
    ptrace::set_signal_mask(sleeper.thread(), before).unwrap();
    assert_eq!(ptrace::signal_mask(sleeper.thread()).unwrap(), before);
}

#[test]
fn real_time_signals_group_stops_and_ends_are_told_apart() {
    let sleeper = Sleeper::stopped("100");
    let thread = sleeper.thread();
    let send = |signal: i32| {
        let status = Command::new("kill")
            .args([format!("-{signal}"), thread.to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    };
    send(40);
    ptrace::resume(thread, 0).unwrap();
    assert_eq!(sleeper.report(), WaitReport::Signal { signal: 40 });
    assert_eq!(
        ptrace::current_stop(thread).unwrap(),
        WaitReport::Signal { signal: 40 }
    );
    // Not handed on: the default action of signal 40 would end it.
    ptrace::resume(thread, 0).unwrap();
    send(libc::SIGSTOP);
    assert_eq!(
        sleeper.report(),
        WaitReport::Signal {
            signal: libc::SIGSTOP
        }
    );
    ptrace::resume(thread, libc::SIGSTOP).unwrap();
    let group_stop = WaitReport::Event(Event::Stop {
        group_stop: Some(libc::SIGSTOP),
    });
    assert_eq!(sleeper.report(), group_stop);
    assert_eq!(ptrace::current_stop(thread).unwrap(), group_stop);
    send(libc::SIGKILL);
    let killed = WaitReport::Killed {
        signal: libc::SIGKILL,
    };
    assert_eq!(sleeper.report(), killed);
    // Kept, so it is there to be reported again, and to be reaped by its parent.
    assert_eq!(sleeper.report(), killed);
}

#[test]
fn any_stop_uses_up_a_request_to_stop() {
    let sleeper = Sleeper::stopped("100");
    let thread = sleeper.thread();
    let status = Command::new("kill")
        .args(["-40", &thread.to_string()])
        .status()
        .unwrap();
    assert!(status.success());
    ptrace::resume(thread, 0).unwrap();
    assert_eq!(sleeper.report(), WaitReport::Signal { signal: 40 });
    // Asked in the stop: it stops again right after it.
    ptrace::interrupt(thread).unwrap();
    ptrace::resume(thread, 0).unwrap();
    let stop = WaitReport::Event(Event::Stop { group_stop: None });
    assert_eq!(sleeper.report(), stop);
}

/// If a tracer dies while its thread stands behind a system call with the registers of an
/// interrupted one, the kernel must still do that one again: the wake-up takes the way through the
/// signal code.
#[test]
fn a_thread_let_go_from_a_syscall_stop_continues_an_interrupted_call() {
    let begin = Instant::now();
    let mut sleeper = Sleeper::stopped("1");
    let thread = sleeper.thread();
    let own = ptrace::registers(thread).unwrap().unwrap();
    let mut call = own;
    call.rip -= 2;
    call.rax = 39;
    call.orig_rax = u64::MAX;
    ptrace::set_registers(thread, &call).unwrap();
    for _ in 0..2 {
        ptrace::resume_to_syscall(thread, 0).unwrap();
        assert_eq!(sleeper.report(), WaitReport::Syscall);
        assert_eq!(ptrace::current_stop(thread).unwrap(), WaitReport::Syscall);
    }
    let result = ptrace::registers(thread).unwrap().unwrap().rax;
    assert_eq!(result, u64::from(sleeper.0.id()));
    ptrace::set_registers(thread, &own).unwrap();
    ptrace::detach(thread).unwrap();
    // sleep(1) complains and fails if it is woken by anything.
    assert!(sleeper.0.wait().unwrap().success());
    assert!(begin.elapsed() >= Duration::from_secs(1));
}

#[test]
fn requests_to_a_thread_that_is_not_stopped_fail() {
    let sleeper = Sleeper::start("100");
    let thread = sleeper.thread();
    ptrace::seize(thread, Options::default()).unwrap();
    let gone = |error: io::Error| assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
    gone(ptrace::registers(thread).unwrap_err());
    gone(ptrace::detach(thread).unwrap_err());
    gone(ptrace::current_stop(thread).unwrap_err());
    assert_eq!(ptrace::wait_thread(thread, thread).unwrap(), None);
    let again = ptrace::seize(thread, Options::default()).unwrap_err();
    assert_eq!(again.raw_os_error(), Some(libc::EPERM));
    assert_eq!(
        ptrace::seccomp_filter(thread, 0)
            .unwrap_err()
            .raw_os_error(),
        Some(libc::ESRCH)
    );
}
