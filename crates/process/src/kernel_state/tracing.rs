//! Whether a process traces others. Only the traced ones tell by whom, so all of them are asked.

use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use crate::proc_files::{self, Status};
use pagetide_kernel::ptrace::ThreadId;
use std::fs;

/// One blocker a process that is traced by one of the threads. Processes that end while they are asked are none.
pub(super) fn blockers(pid: i32, threads: &[ThreadId]) -> Vec<Blocker> {
    let mut blockers = Vec::new();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for entry in entries {
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let Some(other) = number.filter(|other| *other != pid)
            && is_traced(other, threads)
        {
            blockers.push(blocker(pid, other));
        }
    }
    blockers
}

fn is_traced(process: i32, by: &[ThreadId]) -> bool {
    let Ok(status) = Status::of_process(process) else {
        return false;
    };
    let by_them = |status: &Status| {
        let tracer = status.tracer();
        by.iter().any(|thread| tracer == Some(thread.get()))
    };
    if by_them(&status) {
        return true;
    }
    // Mostly all threads are traced, or none; but not always.
    status.number("Threads") > 1
        && proc_files::threads(process).is_ok_and(|threads| {
            threads
                .into_iter()
                .filter_map(|thread| Status::of_thread(process, thread).ok())
                .any(|status| by_them(&status))
        })
}

fn blocker(pid: i32, traced: i32) -> Blocker {
    let comm = proc_files::comm_of(traced);
    Blocker {
        pid,
        kind: BlockerKind::Traces,
        place: format!("process:{traced}"),
        what: format!("it traces process {traced} ({comm})"),
        advice: String::from("let it detach from that process before the checkpoint"),
        instead: Some(format!("process {traced} is not traced")),
    }
}
