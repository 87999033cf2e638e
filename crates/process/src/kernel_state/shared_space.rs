//! Whether a process has the memory of another one: clone(2) with CLONE_VM and without CLONE_THREAD, or a child of vfork(2) that has not
//! executed a program yet. Each would come back with memory of its own.

use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use crate::proc_files;
use pagetide_kernel::kcmp::share_address_space;
use std::fs;

/// One blocker for each process outside of `members` that has the memory of `pid`. None where the kernel does not tell.
pub(super) fn blockers(pid: i32, members: &[i32]) -> Vec<Blocker> {
    let shares = |other: &i32| share_address_space(pid, *other).unwrap_or(false);
    let others = other_processes(members).filter(shares);
    others.map(|other| shared_space(pid, other)).collect()
}

/// All processes that are seen, but for `members`.
pub(super) fn other_processes(members: &[i32]) -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|number| !members.contains(number))
}

/// That a process has the memory of another one.
pub fn shared_space(pid: i32, other: i32) -> Blocker {
    let comm = proc_files::comm_of(other);
    Blocker {
        pid,
        kind: BlockerKind::SharedSpace,
        place: format!("process:{other}"),
        what: format!(
            "it has the memory of process {other} ({comm}), as clone(2) with CLONE_VM or vfork(2) leaves it"
        ),
        advice: String::from(
            "take the checkpoint at another moment, or let the program use threads, or processes with memory of their own",
        ),
        instead: Some(String::from("each of them has memory of its own")),
    }
}
