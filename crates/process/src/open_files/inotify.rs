//! Watches of files: inotify(7). Each watch gets its number back.
//!
//! The kernel tells the file of a watch by a handle of its file system and not by a path; a path is found through the
//! handle. Events that wait to be read are lost in a restore.

use super::again::set_flags;
use super::choices::ReopenChoices;
use super::choices::accept;
use super::error::ReopenError;
use super::foreign::Foreign;
use super::path::{self, PathIdentity};
use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use crate::opener::Opener;
use bincode::{Decode, Encode};
use pagetide_kernel::file_handle::{HANDLE_BYTES_MAX, open_path};
use rustix::fs::{FileType, Mode, OFlags, fstat, inotify, makedev, open};
use rustix::io::{Errno, ioctl_fionread};
use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// All watches of an inotify.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct InotifyState {
    /// By number.
    pub watches: Vec<Watch>,
}

/// One watch.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Watch {
    /// Its number.
    pub number: i32,
    /// The file.
    pub at: PathIdentity,
    /// Type of the file: the bits `S_IFMT` of `st_mode`, inode(7).
    pub file_type: u32,
    /// What is watched for: the `IN_*` of inotify(7).
    pub mask: u32,
}

/// The watches, and those of them that are not brought back.
pub(crate) fn read(foreign: &Foreign) -> Result<(InotifyState, Vec<Blocker>), Blocker> {
    let mut watches = Vec::new();
    let mut blockers = Vec::new();
    let mut lost = Vec::new();
    let mut mounts = Mounts::default();
    for line in foreign.info.lines("inotify ") {
        let found = Line::parse(line);
        let line = found.ok_or_else(|| foreign.unreadable(&"its watches read otherwise"))?;
        match line.find(&mut mounts) {
            Some((at, file_type)) => watches.push(Watch {
                number: line.number,
                at,
                file_type,
                mask: line.mask,
            }),
            None => lost.push(line.number.to_string()),
        }
    }
    if !lost.is_empty() {
        let list = lost.join(", ");
        blockers.push(foreign.blocker_instead(
            BlockerKind::InotifyWatch,
            &format!("watches files that no path is found of (watches {list})"),
            "let the program watch files that exist, on a file system that knows them by handles",
            &format!("the watches {list} never tell anything"),
        ));
    }
    if ioctl_fionread(foreign).map_err(|error| foreign.unreadable(&error))? > 0 {
        blockers.push(foreign.blocker_instead(
            BlockerKind::InotifyEvents,
            "holds events of watched files that the program has not read yet",
            "take the checkpoint at another moment",
            "the events are lost",
        ));
    }
    watches.sort_by_key(|watch| watch.number);
    Ok((InotifyState { watches }, blockers))
}

/// One line of fdinfo.
struct Line {
    number: i32,
    inode: u64,
    device: u64,
    mask: u32,
    handle_kind: i32,
    handle: Vec<u8>,
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        let value = |key: &str| {
            let mut words = line.split_whitespace();
            words.find_map(|word| word.strip_prefix(key)?.strip_prefix(':'))
        };
        let number = |key| u64::from_str_radix(value(key)?, 16).ok();
        // MAJOR and MINOR of the kernel's own form of device numbers.
        let device = u32::try_from(number("sdev")?).ok()?;
        let text = value("f_handle").unwrap_or("");
        let digits = (0..text.len()).step_by(2);
        let bytes: Option<Vec<u8>> = digits
            .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
            .collect();
        Some(Self {
            number: i32::try_from(number("wd")?).ok()?,
            inode: number("ino")?,
            device: makedev(device >> 20, device & 0x000f_ffff),
            mask: u32::try_from(number("mask")?).ok()?,
            handle_kind: i32::try_from(number("fhandle-type").unwrap_or(0)).ok()?,
            handle: bytes.filter(|bytes| bytes.len() <= HANDLE_BYTES_MAX)?,
        })
    }

    /// The path that leads to the watched file, and its type.
    fn find(&self, mounts: &mut Mounts) -> Option<(PathIdentity, u32)> {
        if self.handle.is_empty() {
            return None;
        }
        mounts.of(self.device).iter().find_map(|mount| {
            let file = open_path(mount, self.handle_kind, &self.handle).ok()?;
            let found = fstat(&file)
                .ok()
                .filter(|found| found.st_ino == self.inode)?;
            let link = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
            let file_type = FileType::from_raw_mode(found.st_mode).as_raw_mode();
            Some((path::leads_to(&link, &found)?, file_type))
        })
    }
}

/// Where file systems are mounted, as seen from here; opened when they are first needed.
#[derive(Default)]
struct Mounts {
    opened: HashMap<u64, Vec<OwnedFd>>,
}

impl Mounts {
    fn of(&mut self, device: u64) -> &[OwnedFd] {
        self.opened.entry(device).or_insert_with(|| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let points = mount_points(device).into_iter();
            let opened = points.filter_map(|point| open(&point, flags, Mode::empty()).ok());
            opened.collect()
        })
    }
}

fn mount_points(device: u64) -> Vec<PathBuf> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let wanted = format!("{major}:{minor}");
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(2);
        let device = words.next()?;
        let point = words.nth(1)?;
        // Blanks and the like are octal in there; a mount point with any is passed over.
        (device == wanted && !point.contains('\\')).then(|| Path::new(point).to_owned())
    });
    lines.collect()
}

pub(crate) fn reopen(
    state: &InotifyState,
    status_flags: u32,
    choices: &ReopenChoices,
    opener: &Opener,
) -> Result<OwnedFd, ReopenError> {
    let failed = |source: Errno| ReopenError::Make {
        what: String::from("a set of watches of files"),
        source,
    };
    let group = inotify::init(inotify::CreateFlags::CLOEXEC).map_err(failed)?;
    for watch in &state.watches {
        let wanted = FileType::from_raw_mode(watch.file_type);
        let found = match watch.at.find(wanted, opener) {
            Ok(found) => found,
            Err(ReopenError::Open {
                source: Errno::NOENT | Errno::NOTDIR,
                ..
            }) => {
                accept(ReopenError::changed(&watch.at.path, "it is gone"), choices)?;
                continue;
            }
            Err(error) => {
                accept(error, choices)?;
                continue;
            }
        };
        pagetide_kernel::inotify::set_next_watch(&group, watch.number)
            .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        let mask = inotify::WatchFlags::from_bits_retain(watch.mask);
        let copy = rustix::io::fcntl_dupfd_cloexec(&group, 0).map_err(failed)?;
        let copy = Arc::new(copy);
        let number = found.by_link(move |link| inotify::add_watch(&*copy, link, mask));
        let number = number.map_err(|error| ReopenError::opening(&watch.at.path, error))?;
        if number != watch.number {
            // Two watches of what was two files are now of one.
            accept(
                ReopenError::changed(&watch.at.path, "another watch is of the same file"),
                choices,
            )?;
        }
    }
    set_flags(&group, status_flags).map_err(failed)?;
    Ok(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read() {
        let text = "wd:4 ino:3c4a7 sdev:fe00001 mask:fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:a7c4030000000000";
        let line = Line::parse(text).expect("it reads");
        assert_eq!((line.number, line.inode, line.mask), (4, 0x3c4a7, 0xfff));
        assert_eq!(line.device, makedev(254, 1));
        assert_eq!((line.handle_kind, line.handle.len()), (1, 8));
        assert!(Line::parse("wd:4 ino:x sdev:1 mask:1 f_handle:a7").is_none());
        assert!(Line::parse("wd:4 ino:1 sdev:1 mask:1 f_handle:a").is_none());
    }
}

#[cfg(test)]
mod hostile_tests {
    use super::*;

    #[test]
    fn hostile_text_of_inotify() {
        let sound = b"wd:1 ino:2d4c9 sdev:fe00000 mask:fce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:c9d40200a1b2c3d4";
        pagetide_testing::hostile::survives(sound, |text| {
            Line::parse(&String::from_utf8_lossy(text)).is_some()
        });
    }
}
