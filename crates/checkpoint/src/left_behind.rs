//! The descriptors that belong to pagetide in a process: the marks, and the userfaultfds beside them. Also those of a
//! call that was given up on and ended later, when nobody was there any more to hear of it. Not their closing.
//!
//! A call that creates something in the process can be given up on: its thread sleeps uninterruptibly, or a control
//! group has frozen it. It finds back by itself afterwards, and what it created stays. So it must be known again by
//! whoever comes next: a memfd by its name, and a userfaultfd by the mark, which is there first and says which others
//! there were.

use crate::error::TrackingError;
use crate::mark::{MEMFD_LINK, Mark};
use pagetide_kernel::pidfd::PidFd;
use pagetide_process::ProcessIdentity;
use std::os::unix::fs::MetadataExt;

const UFFD_LINK: &str = "anon_inode:[userfaultfd]";

/// One mark in a process.
pub(crate) struct MarkInProcess {
    /// `None`: a memfd of its name with nothing in it, because the call that created it was given up on.
    pub mark: Option<Mark>,
    pub number: i32,
    /// The userfaultfd that belongs to it, if it is still open.
    pub uffd: Option<i32>,
}

impl MarkInProcess {
    /// True if it is of this very process, and not inherited from its parent.
    pub fn is_of(&self, identity: &ProcessIdentity) -> bool {
        let is_of = |mark: &Mark| mark.content().process == *identity;
        self.mark.as_ref().is_none_or(is_of)
    }

    pub fn numbers(&self) -> impl Iterator<Item = i32> {
        [Some(self.number), self.uffd].into_iter().flatten()
    }
}

/// All marks in a process, its own and those inherited from a parent.
pub(crate) fn marks(pid: i32, pidfd: &PidFd) -> Result<Vec<MarkInProcess>, TrackingError> {
    let links: Vec<(i32, String)> = links(pid).collect();
    let mut found = Vec::new();
    for &(number, _) in links.iter().filter(|(_, link)| link == MEMFD_LINK) {
        // Between the listing and the fetch the process may have closed it.
        let Ok(memfd) = pidfd.get_fd(number) else {
            continue;
        };
        let is_empty = rustix::fs::fstat(&memfd).is_ok_and(|stat| stat.st_size == 0);
        let mark = Mark::read(memfd).map_err(|source| TrackingError::Mark { pid, source })?;
        if mark.is_some() || is_empty {
            let uffd = mark.as_ref().and_then(|mark| uffd_of(pid, mark, &links));
            found.push(MarkInProcess { mark, number, uffd });
        }
    }
    Ok(found)
}

/// The userfaultfd that a mark speaks of, if it is open.
fn uffd_of(pid: i32, mark: &Mark, links: &[(i32, String)]) -> Option<i32> {
    let all = links.iter().filter(|(_, link)| link == UFFD_LINK);
    let mut numbers = all.map(|(number, _)| *number);
    let Some(others) = mark.others() else {
        let number = mark.content().uffd_number;
        return numbers.find(|found| *found == number);
    };
    let late = numbers.filter(|&number| {
        let inode = std::fs::metadata(format!("/proc/{pid}/fd/{number}")).map(|file| file.ino());
        inode.is_ok_and(|inode| !others.contains(&inode)) && is_untouched(pid, number)
    });
    let late: Vec<i32> = late.collect();
    // If the program has just made one as well, it cannot be told which is whose.
    (late.len() == 1).then(|| late[0])
}

/// True for a userfaultfd with which nothing was done yet, not even UFFDIO_API: `fdinfo` says `API: aa:FEATURES:...`.
fn is_untouched(pid: i32, number: i32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"));
    let text = text.unwrap_or_default();
    let api = text.lines().find_map(|line| line.strip_prefix("API:"));
    let features = api.and_then(|api| api.trim().split(':').nth(1));
    features == Some("0")
}

/// The userfaultfds of a process, by inode.
pub(crate) fn userfaultfds(pid: i32) -> Vec<u64> {
    let all = links(pid).filter(|(_, link)| link == UFFD_LINK);
    let inode = |(number, _): (i32, String)| std::fs::metadata(format!("/proc/{pid}/fd/{number}"));
    all.filter_map(|one| Some(inode(one).ok()?.ino())).collect()
}

/// The file descriptors of a process and what they refer to.
fn links(pid: i32) -> impl Iterator<Item = (i32, String)> {
    let directory = std::fs::read_dir(format!("/proc/{pid}/fd"));
    directory
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let link = std::fs::read_link(entry.path()).ok()?;
            Some((number, link.to_str()?.to_owned()))
        })
}

/// The descriptors of a process that belong to pagetide's tracking, of itself or inherited. What cannot be looked at has none.
pub(crate) fn own_descriptors(pid: i32) -> Vec<i32> {
    let found = PidFd::open(pid).map(|pidfd| marks(pid, &pidfd).unwrap_or_default());
    let found = found.unwrap_or_default();
    found.iter().flat_map(MarkInProcess::numbers).collect()
}
