//! What a thread has done to System V semaphores with SEM_UNDO (semop(2)): the kernel takes it back when the process ends, and tells
//! nobody what it is.
//!
//! What can be told is whether there may be something. A thread that has never used it has no list of such things, and neither has
//! any process that never had a second thread: by kcmp(2) both have the same one. Whoever has several threads has a list, with or
//! without something in it (clone(2), CLONE_SYSVSEM). Then there is nothing in it if no set of semaphores was used as long as the
//! process lives, which proc_sysvipc(5) tells.

use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use crate::kernel_state::shared_space::other_processes;
use pagetide_kernel::kcmp::share_semaphore_undo;
use pagetide_kernel::proc_file;
use pagetide_kernel::ptrace::ThreadId;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The column of the time of the last semop(2), in seconds since 1970.
const LAST_USED: usize = 8;
/// Start times are told to a hundredth of a second, and the clock may have been set meanwhile.
const SLACK: Duration = Duration::from_secs(2);

/// One blocker for the first of the threads that may have such a list. None where the kernel does not tell.
pub(super) fn undo_blockers(pid: i32, threads: &[ThreadId], members: &[i32]) -> Option<Blocker> {
    let sets = used_since(started(pid)?);
    if sets == 0 {
        return None;
    }
    let has_none = |thread: &ThreadId| {
        other_processes(members)
            .any(|other| share_semaphore_undo(thread.get(), other).unwrap_or(false))
    };
    let thread = threads.iter().find(|thread| !has_none(thread))?;
    Some(Blocker {
        pid,
        kind: BlockerKind::SemaphoreUndo,
        place: format!("thread:{thread}"),
        what: format!(
            "thread {thread} may have used System V semaphores with SEM_UNDO: {sets} sets were used since it began"
        ),
        advice: String::from(
            "let the program use semaphores without it, or of another kind (sem_open(3)), or remove sets that nobody needs (ipcrm -s)",
        ),
        instead: Some(String::from(
            "the semaphores are as they are then, and are not put back when the process ends",
        )),
    })
}

/// When the process began, in seconds since 1970.
fn started(pid: i32) -> Option<u64> {
    let uptime = proc_file::read_text(Path::new("/proc/uptime")).ok()?;
    let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    let stat = proc_file::read_text(Path::new(&format!("/proc/{pid}/stat"))).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    let ticks: f64 = rest.split(' ').nth(19)?.parse().ok()?;
    let age = Duration::try_from_secs_f64(uptime - ticks / 100.0).unwrap_or_default();
    let began = SystemTime::now().checked_sub(age + SLACK)?;
    Some(began.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

/// How many sets of semaphores were used since then.
fn used_since(began: u64) -> usize {
    let path = Path::new("/proc/sysvipc/sem");
    proc_file::read_text(path).map_or(0, |text| count(&text, began))
}

fn count(text: &str, began: u64) -> usize {
    let used = |line: &&str| {
        let column = line.split_whitespace().nth(LAST_USED);
        let used: u64 = column.and_then(|text| text.parse().ok()).unwrap_or(0);
        used != 0 && used >= began
    };
    text.lines().skip(1).filter(used).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sets_that_were_used_meanwhile_count() {
        let text = "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n\
                    \x20        0          3   600          1     0     0     0     0 1700000100 1700000000\n\
                    \x20        0          4   600          1     0     0     0     0          0 1700000000\n\
                    \x20        0          5   600          1     0     0     0     0 1700000000 1700000000\n";
        assert_eq!(count(text, 1_700_000_050), 1);
        assert_eq!(count(text, 1_700_000_000), 2);
        assert_eq!(count("", 0), 0);
    }
}
