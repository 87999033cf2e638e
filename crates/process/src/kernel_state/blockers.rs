//! What of the state that the kernel keeps cannot be brought back.

use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use crate::kernel_state::error::KernelStateError;
use crate::proc_files::Status;
use crate::remote_error::RemoteCallError;
use pagetide_kernel::ptrace::ThreadId;
use std::fs;
use std::path::PathBuf;

/// A thread whose state is known in part only, because it could not be asked.
pub(super) fn unknown(pid: i32, thread: ThreadId, error: &RemoteCallError) -> Blocker {
    let (kind, advice) = match error {
        RemoteCallError::DivertsSyscalls { .. } => (
            BlockerKind::SyscallDispatch,
            "let it switch off syscall user dispatch before the checkpoint",
        ),
        RemoteCallError::Frozen { .. } => {
            (BlockerKind::KernelState, "thaw it before the checkpoint")
        }
        _ => (
            BlockerKind::KernelState,
            "let the process do without what forbids system calls inside of it",
        ),
    };
    let place = format!("thread:{thread}");
    let what = format!("what the kernel keeps for thread {thread} cannot be known: {error}");
    new(pid, kind, place, what, advice, None)
}

/// The kernel lacks the means to tell.
pub(super) fn untold(pid: i32, thread: ThreadId, what: &str) -> Blocker {
    let place = format!("thread:{thread}");
    let what = format!("this kernel does not tell the {what} of thread {thread}");
    let advice = "use a kernel with CONFIG_CHECKPOINT_RESTORE";
    new(pid, BlockerKind::KernelState, place, what, advice, None)
}

/// Restartable sequences of a thread on a kernel before 5.13.
pub(super) fn untold_rseq(pid: i32, thread: ThreadId) -> Blocker {
    let what = format!(
        "this kernel does not tell whether thread {thread} registered restartable sequences"
    );
    let advice =
        "use Linux 5.13 or later, or start the program with GLIBC_TUNABLES=glibc.pthread.rseq=0";
    let mut blocker = new(
        pid,
        BlockerKind::Rseq,
        format!("thread:{thread}"),
        what,
        advice,
        None,
    );
    blocker.instead = Some(String::from("the thread has no restartable sequences"));
    blocker
}

/// What the status of a thread says.
pub(super) fn of_status(pid: i32, thread: ThreadId, status: &Status) -> Vec<Blocker> {
    let mut blockers = Vec::new();
    let place = || format!("thread:{thread}");
    let seccomp = status.number("Seccomp");
    if seccomp != 0 {
        let how = if seccomp == 1 {
            "is in the strict mode of seccomp"
        } else {
            "is under filters of seccomp"
        };
        let what = format!("thread {thread} {how}");
        let advice = "run the program without its sandbox";
        let instead = "the thread is under no filter, and may call what was forbidden";
        blockers.push(new(
            pid,
            BlockerKind::Seccomp,
            place(),
            what,
            advice,
            Some(instead),
        ));
    }
    let features = status.value("x86_Thread_features").unwrap_or("");
    if features.split_whitespace().any(|word| word == "shstk") {
        let what = format!("thread {thread} has a shadow stack");
        let advice = "start the program with GLIBC_TUNABLES=glibc.cpu.hwcaps=-SHSTK";
        blockers.push(new(
            pid,
            BlockerKind::ShadowStack,
            place(),
            what,
            advice,
            None,
        ));
    }
    blockers
}

/// A thread with the right to use I/O ports.
pub(super) fn io_ports(pid: i32, thread: ThreadId) -> Blocker {
    let place = format!("thread:{thread}");
    let what = format!("thread {thread} may use I/O ports (ioperm)");
    let advice = "let the program give them up before the checkpoint";
    new(pid, BlockerKind::IoPorts, place, what, advice, None)
}

/// A local descriptor table.
pub(super) fn local_descriptor_table(pid: i32) -> Blocker {
    let place = String::from("process");
    let what = String::from("the process has a local descriptor table (modify_ldt)");
    let advice = "no way is known: programs that need one run 16-bit or 32-bit code";
    new(pid, BlockerKind::Ldt, place, what, advice, None)
}

/// A timer that counts the time of what is not known or not of this process.
pub(super) fn timer(pid: i32, id: i32, counts: &str) -> Blocker {
    let place = format!("timer:{id}");
    let what = format!("timer {id} counts the processor time of {counts}");
    let advice = "let the program delete it before the checkpoint";
    let instead = format!("timer {id} is not there");
    new(
        pid,
        BlockerKind::CpuTimer,
        place,
        what,
        advice,
        Some(&instead),
    )
}

/// Requests of `io_submit(2)`, of which only the ring in memory tells.
pub(super) fn asynchronous_io(pid: i32) -> Result<Option<Blocker>, KernelStateError> {
    let path = PathBuf::from(format!("/proc/{pid}/maps"));
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(source) => return Err(KernelStateError::Proc { path, source }),
    };
    let has_ring = text
        .split(|byte| *byte == b'\n')
        .any(|line| line.ends_with(b"/[aio] (deleted)") || line.ends_with(b"/[aio]"));
    Ok(has_ring.then(|| {
        let place = String::from("process");
        let what = String::from("the process has a queue of asynchronous I/O (io_setup)");
        let advice = "let the program use another way of I/O";
        new(pid, BlockerKind::Aio, place, what, advice, None)
    }))
}

fn new(
    pid: i32,
    kind: BlockerKind,
    place: String,
    what: String,
    advice: &str,
    instead: Option<&str>,
) -> Blocker {
    Blocker {
        pid,
        kind,
        place,
        what,
        advice: advice.to_owned(),
        instead: instead.map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(blockers: &[Blocker]) -> Vec<String> {
        blockers.iter().map(Blocker::name).collect()
    }

    #[test]
    fn a_shadow_stack_is_named() {
        let status = |features: &str| {
            Status::from_text(format!("Seccomp:\t0\nx86_Thread_features:\t{features}\n"))
        };
        let of = |features| of_status(7, ThreadId::new(8), &status(features));
        assert_eq!(names(&of("shstk wrss")), ["shadow-stack:thread:8"]);
        assert!(of("").is_empty());
        assert_eq!(of("shstk")[0].instead, None);
    }

    #[test]
    fn what_the_kernel_cannot_tell_is_named() {
        let thread = ThreadId::new(8);
        assert_eq!(
            untold(7, thread, "tid address").name(),
            "kernel-state:thread:8"
        );
        assert_eq!(untold_rseq(7, thread).name(), "rseq:thread:8");
    }
}
