//! Processes that look by themselves for what they wrote, and would be misled by the marks of a tracker.
//!
//! The kernel's report of written pages does not say whose marks it tells: a program that scans its own pagemap, or
//! clears its own soft-dirty bits, sees ours and takes them away, and a scan of its own that protects pages is
//! told of what it never registered. So is everybody else who has such a file of the process open; those can be found in
//! the processes of a checkpoint only. A process with a userfaultfd of its own does the same by that, and is
//! refused what it registers after us. All of these are known by their descriptors.

use crate::compared::ComparedBecause;
use crate::left_behind;
use std::collections::{HashMap, HashSet};
use std::fs;

const USERFAULTFD: &str = "anon_inode:[userfaultfd]";

/// By process, why its memory must not be marked.
pub(crate) type Watched = HashMap<i32, Vec<ComparedBecause>>;

/// True if `after` tells a reason that `before` does not.
pub(crate) fn has_new(before: &Watched, after: &Watched) -> bool {
    let known = |pid| before.get(pid).map_or(&[][..], Vec::as_slice);
    after.iter().any(|(pid, reasons)| {
        let known = known(pid);
        !reasons.iter().all(|reason| known.contains(reason))
    })
}

/// Looks at the processes. Each comes with the descriptor that our userfaultfd has in it, if that
/// is known. What cannot be looked at has no such descriptor.
pub(crate) fn watched_among(processes: &[(i32, Option<i32>)]) -> Watched {
    let mut watched = Watched::new();
    let mut names: Option<HashMap<String, i32>> = None;
    for &(holder, known) in processes {
        let mut ours: Option<HashSet<i32>> = None;
        for (descriptor, target) in descriptors(holder) {
            if target == USERFAULTFD {
                if known == Some(descriptor) {
                    continue;
                }
                let ours = ours.get_or_insert_with(|| {
                    let numbers = left_behind::own_descriptors(holder);
                    numbers.into_iter().collect()
                });
                if !ours.contains(&descriptor) {
                    let reason = ComparedBecause::OwnUserfaultfd { descriptor };
                    watched.entry(holder).or_default().push(reason);
                }
                continue;
            }
            let Some(owner) = owner_in(&target) else {
                continue;
            };
            let names = names.get_or_insert_with(|| names_of(processes));
            if let Some(&pid) = names.get(owner) {
                let reason = ComparedBecause::OwnScanner {
                    holder,
                    descriptor,
                    path: target,
                };
                watched.entry(pid).or_default().push(reason);
            }
        }
    }
    watched
}

/// Why the memory of process `pid` must not be marked, as far as its own descriptors tell. `ours`: as above.
pub(crate) fn watched(pid: i32, ours: Option<i32>) -> Vec<ComparedBecause> {
    watched_among(&[(pid, ours)])
        .remove(&pid)
        .unwrap_or_default()
}

/// The numbers of the descriptors of a process, and what they lead to.
fn descriptors(pid: i32) -> Vec<(i32, String)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"));
    let described = entries.into_iter().flatten().flatten().filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        let target = fs::read_link(entry.path()).ok()?;
        Some((number, target.to_str()?.to_owned()))
    });
    let mut all: Vec<(i32, String)> = described.collect();
    all.sort_unstable();
    all
}

/// Whose page tables the file of a path shows or changes: the number of a process or thread in it. The file system may
/// be mounted anywhere.
fn owner_in(path: &str) -> Option<&str> {
    let (directory, name) = path.rsplit_once('/')?;
    let owner = directory.rsplit('/').next()?;
    let is_number = !owner.is_empty() && owner.bytes().all(|byte| byte.is_ascii_digit());
    (["pagemap", "clear_refs"].contains(&name) && is_number).then_some(owner)
}

/// The processes by the numbers that they and their threads have, in each PID namespace.
fn names_of(processes: &[(i32, Option<i32>)]) -> HashMap<String, i32> {
    let mut names = HashMap::new();
    for &(pid, _) in processes {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let all = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            let all = all.into_iter().flat_map(str::split_ascii_whitespace);
            names.extend(all.map(|number| (number.to_owned(), pid)));
        }
        names.insert(pid.to_string(), pid);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_page_tables_a_path_leads_to() {
        assert_eq!(owner_in("/proc/71/pagemap"), Some("71"));
        assert_eq!(owner_in("/host/proc/71/task/72/pagemap"), Some("72"));
        assert_eq!(owner_in("/proc/71/clear_refs"), Some("71"));
        for other in [
            "/proc/71/maps",
            "/srv/pagemap",
            "pagemap",
            "/a7/pagemap",
            "/pagemap",
        ] {
            assert_eq!(owner_in(other), None, "{other}");
        }
    }

    #[test]
    fn only_what_came_while_it_was_not_looked_for_is_new() {
        let reason = |descriptor| ComparedBecause::OwnUserfaultfd { descriptor };
        let told = |all: &[(i32, &[i32])]| -> Watched {
            let reasons = |of: &[i32]| of.iter().map(|&number| reason(number)).collect();
            all.iter().map(|&(pid, of)| (pid, reasons(of))).collect()
        };
        let before = told(&[(7, &[3, 4])]);
        assert!(!has_new(&before, &before));
        assert!(!has_new(&before, &told(&[])), "it ended");
        assert!(!has_new(&before, &told(&[(7, &[4])])), "it closed one");
        assert!(has_new(&before, &told(&[(7, &[3, 4, 5])])));
        assert!(has_new(&before, &told(&[(7, &[3, 4]), (8, &[3])])));
        assert!(has_new(&told(&[]), &before));
    }

    #[test]
    fn a_process_with_its_own_pagemap_open_is_watched() {
        let pid = std::process::id().cast_signed();
        let file = fs::File::open("/proc/thread-self/pagemap").expect("it is there");
        let found = watched(pid, None);
        let is_it = |reason: &&ComparedBecause| {
            matches!(reason, ComparedBecause::OwnScanner { holder, path, .. }
                if *holder == pid && path.ends_with("/pagemap"))
        };
        assert!(found.iter().find(is_it).is_some(), "{found:?}");
        drop(file);
    }
}
