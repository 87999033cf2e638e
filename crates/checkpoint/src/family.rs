//! Who is whose child, who has ended and how: asked of /proc and of pidfds, of processes that nothing else is known of.

use pagetide_kernel::pidfd::PidFd;
use std::time::Duration;

/// The children of a process, ended ones that were not reaped among them. Complete only while nothing of
/// it runs.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    let mut listed = true;
    let mut found = Vec::new();
    for task in tasks.into_iter().flatten().flatten() {
        match std::fs::read_to_string(task.path().join("children")) {
            Ok(text) => found.extend(
                text.split_whitespace()
                    .filter_map(|n| n.parse::<i32>().ok()),
            ),
            Err(_) => listed = false,
        }
    }
    if listed {
        found
    } else {
        everybody()
            .filter(|&child| parent_of(child).is_some_and(|(parent, _)| parent == pid))
            .collect()
    }
}

fn everybody() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The parent of a process, and whether it has ended.
pub(crate) fn parent_of(pid: i32) -> Option<(i32, bool)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    Some((fields.next()?.parse().ok()?, ended))
}

/// How a process ended that waits to be reaped: the last field of proc_pid_stat(5).
pub(crate) fn exit_status_of(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let last = stat.split_whitespace().next_back();
    last.and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// True if there is no such process, or it waits to be reaped.
pub(crate) fn has_ended(pid: i32) -> bool {
    match PidFd::open(pid) {
        Ok(pidfd) => pidfd.wait_for_end(Duration::ZERO).unwrap_or(false),
        Err(_) => parent_of(pid).is_none_or(|(_, ended)| ended),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_found_until_it_is_reaped() {
        let mut child = std::process::Command::new("true")
            .spawn()
            .expect("run true");
        let own = i32::try_from(std::process::id()).expect("a pid");
        let pid = i32::try_from(child.id()).expect("a pid");
        assert!(children(own).contains(&pid));
        assert_eq!(parent_of(pid).map(|(parent, _)| parent), Some(own));
        child.wait().expect("it ends");
        assert!(!children(own).contains(&pid));
    }
}
