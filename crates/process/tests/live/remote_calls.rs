//! Prevents: a remote call that answers something else than the kernel, or that leaves a trace in
//! the target.

use crate::harness::Target;
use nix::libc;
use pagetide_process::{RemoteCallError, StoppedProcess};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;

const MEMFD_CREATE: i64 = 319;

fn map_private(stopped: &mut StoppedProcess) -> u64 {
    let minus_one = u64::MAX;
    let mut calls = stopped.remote_calls().unwrap();
    calls
        .call(libc::SYS_mmap, [0, 8192, 3, 0x22, minus_one, 0])
        .unwrap()
}

fn maps(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap()
}

#[test]
fn results_are_those_of_the_kernel() {
    let target = Target::start("count", &["2"]);
    let mut stopped = target.stop();
    let mut calls = stopped.remote_calls().unwrap();
    for _ in 0..100 {
        assert_eq!(
            calls.call(libc::SYS_getpid, [0; 6]).unwrap(),
            u64::from(target.pid().cast_unsigned())
        );
    }
    let error = calls
        .call(libc::SYS_close, [987_654, 0, 0, 0, 0, 0])
        .unwrap_err();
    assert_eq!(error.to_string(), "close failed inside the process");
    assert!(matches!(
        error,
        RemoteCallError::Failed {
            errno: Errno::BADF,
            ..
        }
    ));
    let error = calls.call(9999, [0; 6]).unwrap_err();
    assert!(
        matches!(
            error,
            RemoteCallError::Failed {
                errno: Errno::NOSYS,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn all_six_arguments_arrive() {
    let target = Target::start("count", &["1"]);
    let mut stopped = target.stop();
    let before = maps(target.pid());
    let address = map_private(&mut stopped);
    assert!(maps(target.pid()).contains(&format!("{address:08x}-")));
    let mut calls = stopped.remote_calls().unwrap();
    calls
        .call(libc::SYS_munmap, [address, 8192, 0, 0, 0, 0])
        .unwrap();
    calls.finish().unwrap();
    assert_eq!(maps(target.pid()), before);
}

#[test]
fn bytes_are_there_for_the_call_and_gone_after_it() {
    let target = Target::start("count", &["1"]);
    let mut stopped = target.stop();
    let memory = File::open(format!("/proc/{}/mem", target.pid())).unwrap();
    let mut calls = stopped.remote_calls().unwrap();
    let mut place = 0;
    let descriptor = calls
        .with_bytes(b"a-name\0", |calls, address| {
            place = address;
            calls.call(MEMFD_CREATE, [address, 1, 0, 0, 0, 0])
        })
        .unwrap();
    calls.finish().unwrap();
    let mut found = [0; 7];
    memory.read_exact_at(&mut found, place).unwrap();
    assert_ne!(&found, b"a-name\0");
    let number = i32::try_from(descriptor).unwrap();
    let listed = stopped.fds().unwrap();
    let entry = listed.iter().find(|entry| entry.number == number).unwrap();
    assert!(
        entry.target.to_string_lossy().starts_with("/memfd:a-name"),
        "{entry:?}"
    );
    let copy = stopped.take_fd(number).unwrap();
    rustix::io::write(&copy, b"hello").unwrap();
    assert!(stopped.take_fd(number + 1).is_err());
}

#[test]
fn memory_and_registers_are_as_before_after_a_session() {
    let target = Target::start("alone", &[]);
    for _ in 0..50 {
        let mut stopped = target.stop();
        let snapshot = |stopped: &StoppedProcess| {
            let states = stopped.thread_states().unwrap();
            let memory = File::open(format!("/proc/{}/mem", target.pid())).unwrap();
            let stack_pointer = states[0].registers.rsp;
            let mut below = vec![0; 12 * 1024];
            memory
                .read_exact_at(&mut below, stack_pointer - 12 * 1024)
                .unwrap();
            (states, below)
        };
        let before = snapshot(&stopped);
        let mut calls = stopped.remote_calls().unwrap();
        assert!(calls.survives_our_death());
        calls
            .with_bytes(b"/dev/null\0", |calls, _| {
                calls.call(libc::SYS_getpid, [0; 6])
            })
            .unwrap();
        calls.finish().unwrap();
        let after = snapshot(&stopped);
        assert!(before == after);
        stopped.resume().unwrap();
    }
}

#[test]
fn a_userfaultfd_can_be_made_and_taken_out() {
    let target = Target::start("count", &["2"]);
    let mut stopped = target.stop();
    let mut calls = stopped.remote_calls().unwrap();
    // O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY
    let number = calls
        .call(libc::SYS_userfaultfd, [0o2_004_001, 0, 0, 0, 0, 0])
        .unwrap();
    calls.finish().unwrap();
    let taken = stopped.take_fd(i32::try_from(number).unwrap());
    let mut calls = stopped.remote_calls().unwrap();
    calls
        .call(libc::SYS_close, [number, 0, 0, 0, 0, 0])
        .unwrap();
    calls.finish().unwrap();
    taken.unwrap();
}

#[test]
fn a_call_that_does_not_return_is_interrupted_and_the_target_goes_on() {
    let mut target = Target::start("count", &["1"]);
    let before = target.ask_number();
    let mut stopped = target.stop();
    let mut calls = stopped.remote_calls().unwrap();
    // pause(2)
    let error = calls.call(libc::SYS_pause, [0; 6]).unwrap_err();
    assert!(matches!(error, RemoteCallError::TimedOut { .. }), "{error}");
    calls.call(libc::SYS_getpid, [0; 6]).unwrap();
    calls.finish().unwrap();
    stopped.resume().unwrap();
    assert!(target.ask_number() >= before);
}

#[test]
fn most_targets_survive_our_death() {
    for (name, arguments) in [("count", ["4"]), ("alone", [""]), ("signals", ["0"])] {
        let target = Target::start(name, &arguments);
        let mut stopped = target.stop();
        assert!(
            stopped.remote_calls().unwrap().survives_our_death(),
            "{name}"
        );
    }
}
