//! Sets of files that are waited for: epoll(7).
//!
//! A file is in the set together with the number it was registered by, so a restore registers it in a process, under that number,
//! before the descriptors get their final places. A registration that is switched off (EPOLLONESHOT, after an event) is
//! registered with errors and hang-ups switched on: the kernel knows no other way.

use super::error::ReopenError;
use super::foreign::Foreign;
use super::tables::{ByNumber, Listed};
use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use bincode::{Decode, Encode};
use pagetide_kernel::kcmp::is_watched_file;
use rustix::event::epoll;
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::OwnedFd;

/// What is registered.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct EpollState {
    /// In the order of the kernel.
    pub entries: Vec<EpollEntry>,
}

/// One registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct EpollEntry {
    /// The number it was registered by.
    pub number: i32,
    /// What is waited for: the `EPOLL*` of epoll_ctl(2).
    pub events: u32,
    /// What the program gets with an event.
    pub data: u64,
    /// The description, by its place in [`super::OpenFiles::descriptions`].
    pub description: u32,
}

/// The set, and what of it is not brought back.
pub(crate) fn read(
    foreign: &Foreign,
    listed: &ByNumber<'_>,
) -> Result<(EpollState, Option<Blocker>), Blocker> {
    let mut entries: Vec<EpollEntry> = Vec::new();
    let mut lost = Vec::new();
    // How many registrations there have been under each number.
    let mut seen: HashMap<i32, u32> = HashMap::new();
    for line in foreign.info.lines("tfd:") {
        let line = Line::parse(line);
        let line = line.ok_or_else(|| foreign.unreadable(&"its registrations read otherwise"))?;
        let before = seen.entry(line.number).or_default();
        let offset = *before;
        *before += 1;
        match line.find(foreign, listed, offset) {
            Some(description) => entries.push(EpollEntry {
                number: line.number,
                events: line.events,
                data: line.data,
                description,
            }),
            None => lost.push(line.number.to_string()),
        }
    }
    let blocker = (!lost.is_empty()).then(|| {
        let list = lost.join(", ");
        foreign.blocker_instead(
            BlockerKind::EpollEntry,
            &format!("waits for files that no process has open any more (registered as {list})"),
            "let the program remove them from the set before the checkpoint",
            &format!("the set is restored without {list}"),
        )
    });
    Ok((EpollState { entries }, blocker))
}

/// One line of fdinfo, behind `tfd:`.
struct Line {
    number: i32,
    events: u32,
    data: u64,
    inode: Option<u64>,
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        let number = line.split_whitespace().next()?.parse().ok()?;
        let value = |key: &str| {
            let behind = &line[line.find(key)? + key.len()..];
            u64::from_str_radix(behind.split_whitespace().next()?, 16).ok()
        };
        Some(Self {
            number,
            events: u32::try_from(value(" events:")?).ok()?,
            data: value(" data:")?,
            inode: value(" ino:"),
        })
    }

    /// The description that is registered: most likely still under its number in a process that has the epoll.
    fn find(&self, epoll: &Foreign, listed: &ByNumber<'_>, offset: u32) -> Option<u32> {
        let at = (epoll.pid, epoll.number);
        let is = |one: &&Listed| {
            is_watched_file((one.pid, one.number), at, self.number, offset).unwrap_or(false)
        };
        let found = listed.with(self.number).find(is).or_else(|| {
            let same = |one: &&Listed| {
                let inode = one.info.number("ino", 10).ok();
                inode.is_none() || self.inode.is_none() || inode == self.inode
            };
            listed.listed.iter().filter(same).find(is)
        });
        found.map(|one| one.description)
    }
}

/// An empty one; what it waits for is registered by a process.
pub(crate) fn reopen() -> Result<OwnedFd, ReopenError> {
    epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|source: Errno| ReopenError::Make {
        what: String::from("a set of files to wait for"),
        source,
    })
}

impl EpollEntry {
    /// `struct epoll_event`, as epoll_ctl(2) takes it: packed on x86-64.
    pub(crate) fn to_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&self.events.to_ne_bytes());
        bytes[4..].copy_from_slice(&self.data.to_ne_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read() {
        let text = "        5 events: 40000019 data: ffff000000000005  pos:0 ino:40e sdev:10";
        let line = Line::parse(text).expect("it reads");
        assert_eq!((line.number, line.events), (5, 0x4000_0019));
        assert_eq!(
            (line.data, line.inode),
            (0xffff_0000_0000_0005, Some(0x40e))
        );
        assert!(Line::parse("        5 events: x").is_none());
        assert!(Line::parse("").is_none());
    }
}

#[cfg(test)]
mod hostile_tests {
    use super::*;

    #[test]
    fn hostile_text_of_epoll() {
        let sound = b"        5 events:       19 data:                5  pos:0 ino:61 sdev:8";
        pagetide_testing::hostile::survives(sound, |text| {
            Line::parse(&String::from_utf8_lossy(text)).is_some()
        });
    }
}
