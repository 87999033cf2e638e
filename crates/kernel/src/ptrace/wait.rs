//! What traced threads report: `wait4(2)` and `waitid(2)`, without waiting unless that is asked for. Who is to be let go after
//! a report, and with which signal, is not decided here.

use super::thread::{ThreadId, check};
use nix::libc;
use std::io;

/// What a traced thread reported to `wait4(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitReport {
    /// It ended by itself, with this exit code. The id is free again.
    Exited {
        /// Exit code, 0 to 255.
        code: i32,
    },
    /// A signal ended it. The id is free again.
    Killed {
        /// The signal.
        signal: i32,
    },
    /// A signal is about to be delivered. It is lost unless handed to [`super::resume`] or [`super::resume_to_syscall`].
    Signal {
        /// The signal, real-time ones included.
        signal: i32,
    },
    /// It enters or leaves a system call (after [`super::resume_to_syscall`], with `mark_syscall_stops`).
    Syscall,
    /// A ptrace event; see `ptrace(2)`.
    Event(Event),
}

/// A ptrace event stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// PTRACE_EVENT_STOP: [`super::interrupt`] took effect, or a seized new thread starts, or the process
    /// is in a group-stop (then `group_stop` names the stop signal).
    Stop {
        /// SIGSTOP, SIGTSTP, SIGTTIN or SIGTTOU if the process is in a group-stop.
        group_stop: Option<i32>,
    },
    /// PTRACE_EVENT_CLONE: it made a thread, whose id is [`super::event_message`].
    Clone,
    /// PTRACE_EVENT_FORK or PTRACE_EVENT_VFORK: it made a process, whose id is [`super::event_message`].
    Fork,
    /// PTRACE_EVENT_EXEC: the process runs another program now.
    Exec,
    /// Any other, by number.
    Other(i32),
}

/// What any thread the caller traces has reported, if any, without waiting: `waitid(2)` and
/// `wait4(2)` with `__WALL | __WNOTHREAD | WNOHANG`. A caller that has children of its own takes
/// their reports, too: use a thread that has none.
///
/// The end of `kept` is reported but not reaped, and so reported again each time: it stays to be
/// reaped by its parent, which may be another thread of this program.
///
/// # Errors
/// ECHILD if the caller traces nothing.
pub fn wait_any(kept: ThreadId) -> io::Result<Option<(ThreadId, WaitReport)>> {
    wait(libc::P_ALL, 0, kept, libc::WNOHANG)
}

/// As [`wait_any`], but waits until there is something. A signal to the caller ends that, too, with `None`.
///
/// # Errors
/// ECHILD if the caller traces nothing and has no child.
pub fn wait_any_long(kept: ThreadId) -> io::Result<Option<(ThreadId, WaitReport)>> {
    match wait(libc::P_ALL, 0, kept, 0) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
        result => result,
    }
}

/// As [`wait_any`], of one thread only.
///
/// # Errors
/// ECHILD if the caller does not trace it, or it has been reaped.
pub fn wait_thread(thread: ThreadId, kept: ThreadId) -> io::Result<Option<WaitReport>> {
    let id = libc::id_t::try_from(thread.0).unwrap_or(0);
    Ok(wait(libc::P_PID, id, kept, libc::WNOHANG)?.map(|(_, report)| report))
}

fn wait(
    kind: libc::idtype_t,
    id: libc::id_t,
    kept: ThreadId,
    patience: libc::c_int,
) -> io::Result<Option<(ThreadId, WaitReport)>> {
    crate::progress::step();
    let whose = libc::__WALL | libc::__WNOTHREAD;
    let how = whose | libc::WNOHANG;
    let look_only = whose | patience | libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT;
    // SAFETY: all bytes zero are a valid `siginfo_t`.
    let mut seen: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `seen` is a valid place for one `siginfo_t`, and `waitid` writes nothing else.
    let result = unsafe { libc::waitid(kind, id, &raw mut seen, look_only) };
    check(libc::c_long::from(result))?;
    // SAFETY: for `waitid` the kernel fills the SIGCHLD part of the union; if it had nothing to
    // say, the zeros from above are there.
    let thread = ThreadId(unsafe { seen.si_pid() });
    if thread.0 == 0 {
        return Ok(None);
    }
    if thread == kept {
        // SAFETY: as for `si_pid`.
        let value = unsafe { seen.si_status() };
        match seen.si_code {
            libc::CLD_EXITED => return Ok(Some((thread, WaitReport::Exited { code: value }))),
            libc::CLD_KILLED | libc::CLD_DUMPED => {
                return Ok(Some((thread, WaitReport::Killed { signal: value })));
            }
            _ => {}
        }
    }
    let mut status: libc::c_int = 0;
    // SAFETY: `status` is a valid place for one int, and `waitpid` writes nothing else.
    let result = unsafe { libc::waitpid(thread.0, &raw mut status, how) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        // Another thread of ours took it in between.
        0 => Ok(None),
        _ => Ok(Some((thread, decode(status)))),
    }
}

/// Reaps a thread that any thread of this program traces, if it has ended; its stops are left
/// alone. For the case that the tracing thread itself is held up in the kernel.
///
/// # Errors
/// ECHILD if nobody here traces it.
pub fn reap_for_tracer(thread: ThreadId) -> io::Result<Option<WaitReport>> {
    let id = libc::id_t::try_from(thread.0).unwrap_or(0);
    let look_only = libc::__WALL | libc::WNOHANG | libc::WEXITED | libc::WNOWAIT;
    // SAFETY: all bytes zero are a valid `siginfo_t`.
    let mut seen: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `seen` is a valid place for one `siginfo_t`, and `waitid` writes nothing else.
    let result = unsafe { libc::waitid(libc::P_PID, id, &raw mut seen, look_only) };
    check(libc::c_long::from(result))?;
    if !matches!(
        seen.si_code,
        libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED
    ) {
        return Ok(None);
    }
    let mut status: libc::c_int = 0;
    // SAFETY: `status` is a valid place for one int, and `waitpid` writes nothing else.
    let result = unsafe { libc::waitpid(thread.0, &raw mut status, libc::__WALL | libc::WNOHANG) };
    check(libc::c_long::from(result))?;
    Ok((result != 0).then(|| decode(status)))
}

/// The ptrace-stop a thread is in, though nothing was (or is any more) reported of it:
/// PTRACE_GETSIGINFO. Another thread of this program that waits for its own child, which happens to
/// be traced, takes the report away; this tells what it was.
///
/// # Errors
/// ESRCH if the thread is not in a ptrace-stop.
pub fn current_stop(thread: ThreadId) -> io::Result<WaitReport> {
    // SAFETY: all bytes zero are a valid `siginfo_t`.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the request writes one `siginfo_t` to `data`, which points to one that lives until
    // after the call.
    let result = unsafe { libc::ptrace(libc::PTRACE_GETSIGINFO, thread.0, 0usize, &raw mut info) };
    check(result)?;
    // For events and system call stops the code is the wait status without its lowest byte; the
    // codes of real signals have nothing in the second byte, or are negative.
    let event = info.si_code >> 8;
    if info.si_code == libc::SIGTRAP | 0x80 {
        return Ok(WaitReport::Syscall);
    }
    if info.si_code > 0 && info.si_code < 0x10000 && (1..=0xff).contains(&event) {
        return Ok(decode(0x7f | (info.si_code << 8)));
    }
    Ok(WaitReport::Signal {
        signal: info.si_signo,
    })
}

fn decode(status: libc::c_int) -> WaitReport {
    if libc::WIFEXITED(status) {
        return WaitReport::Exited {
            code: libc::WEXITSTATUS(status),
        };
    }
    if libc::WIFSIGNALED(status) {
        return WaitReport::Killed {
            signal: libc::WTERMSIG(status),
        };
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        0 if signal == libc::SIGTRAP | 0x80 => WaitReport::Syscall,
        0 => WaitReport::Signal { signal },
        libc::PTRACE_EVENT_STOP => WaitReport::Event(Event::Stop {
            group_stop: (signal != libc::SIGTRAP).then_some(signal),
        }),
        libc::PTRACE_EVENT_CLONE => WaitReport::Event(Event::Clone),
        libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK => WaitReport::Event(Event::Fork),
        libc::PTRACE_EVENT_EXEC => WaitReport::Event(Event::Exec),
        other => WaitReport::Event(Event::Other(other)),
    }
}
