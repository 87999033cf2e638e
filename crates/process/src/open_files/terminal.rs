//! Terminals, and the standard streams of a program that was started from one.
//!
//! Descriptors 0, 1 and 2 that lead out of the snapshot (to a terminal, or to a pipe or socket of which a process outside has the
//! other end) are in a restore pagetide's own descriptors of the same number: the program goes on where the restore was started. A
//! description that several of them share stays shared. Status flags of pagetide's own descriptors are not touched, since others
//! have them, too: if they differ, the terminal or pipe is opened anew, and a socket stays as it is. A restore that leaves the
//! program alone gives it `/dev/null` instead, and so does one whose terminal belongs to another user than the program's:
//! whoever has a terminal can type in it.

use super::again::{flags_of_open, open_again, open_found};
use super::error::ReopenError;
use super::file_path::FilePath;
use super::foreign::Foreign;
use super::path;
use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use crate::opener::Opener;
use bincode::{Decode, Encode};
use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, fstat, major, minor};
use rustix::io::Errno;
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::isatty;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// One of pagetide's own standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct StandardStream {
    /// 0, 1 or 2.
    pub number: u8,
}

/// A terminal that is not a standard stream.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TerminalState {
    /// Its path.
    pub path: FilePath,
    /// Its device number: major and minor.
    pub number: (u32, u32),
    /// A standard stream of the processes that is the same terminal.
    pub standard: Option<StandardStream>,
}

/// Number of `/dev/tty`: the terminal that controls whoever opens it.
const CONTROLLING_TERMINAL: (u32, u32) = (5, 0);
/// Number of `/dev/ptmx`: whoever opens it makes a new terminal.
const MASTER: (u32, u32) = (5, 2);
/// Majors of `/dev/pts/N`.
const SLAVES: std::ops::RangeInclusive<u32> = 136..=143;

impl StandardStream {
    pub(crate) fn new(number: i32) -> Self {
        let number = u8::try_from(number).unwrap_or(0);
        Self { number }
    }

    fn own(self) -> BorrowedFd<'static> {
        match self.number {
            0 => stdin(),
            1 => stdout(),
            _ => stderr(),
        }
    }
}

/// Whether it is the side of a terminal that a terminal program holds.
pub(crate) fn is_master(foreign: &Foreign) -> bool {
    let number = (major(foreign.stat.st_rdev), minor(foreign.stat.st_rdev));
    foreign.file_type() == FileType::CharacterDevice
        && (number == MASTER || foreign.info.value("tty-index").is_some())
}

/// Whether it is a terminal, seen from the side of programs.
pub(crate) fn is_terminal(foreign: &Foreign) -> bool {
    foreign.file_type() == FileType::CharacterDevice && isatty(foreign) && !is_master(foreign)
}

/// The blocker of the side that a terminal program holds.
pub(crate) fn master(foreign: &Foreign) -> Blocker {
    foreign.blocker(
        BlockerKind::TerminalMaster,
        "is the master side of a pseudoterminal, which cannot be made anew with the same number",
        "checkpoint what runs in the terminal, and not the program that shows it",
    )
}

/// A terminal that is not a standard stream. `standard` are those that are, with their device numbers; `masters` are the
/// numbers of the pseudoterminals whose other side the processes have.
pub(crate) fn read(
    foreign: &Foreign,
    standard: &[(u64, i32)],
    masters: &[u64],
) -> Result<TerminalState, Blocker> {
    let device = foreign.stat.st_rdev;
    if SLAVES.contains(&major(device)) && masters.contains(&u64::from(minor(device))) {
        return Err(foreign.blocker(
            BlockerKind::Terminal,
            "is a pseudoterminal that one of the processes itself serves",
            "checkpoint what runs in the terminal, and not the program that shows it",
        ));
    }
    let standard = standard.iter().find(|one| one.0 == device);
    let path = match path::of(foreign) {
        Ok(at) => Some(at.path),
        Err(_) if standard.is_some() => FilePath::new("/dev/tty".as_ref()),
        Err(blocker) => return Err(blocker),
    };
    Ok(TerminalState {
        path: path.ok_or_else(|| foreign.unreadable(&"it has no path"))?,
        number: (major(device), minor(device)),
        standard: standard.map(|one| StandardStream::new(one.1)),
    })
}

/// True if it is no terminal, or one that the process's user may have.
pub(crate) fn may_have(stream: StandardStream, opener: &Opener) -> bool {
    let own = stream.own();
    let is_theirs = |owner| opener.user() == 0 || opener.user() == owner;
    !isatty(own) || fstat(own).is_ok_and(|stat| is_theirs(stat.st_uid))
}

/// pagetide's own.
pub(crate) fn reopen_standard(
    stream: StandardStream,
    status_flags: u32,
) -> Result<OwnedFd, ReopenError> {
    let own = stream.own();
    let failed = |source: Errno| ReopenError::Make {
        what: format!("standard stream {}", stream.number),
        source,
    };
    let mask = OFlags::NONBLOCK | OFlags::APPEND;
    let wanted = OFlags::from_bits_retain(status_flags).intersection(mask);
    if fcntl_getfl(own).map_err(failed)?.intersection(mask) != wanted {
        let kind = FileType::from_raw_mode(fstat(own).map_err(failed)?.st_mode);
        // Not files: those have a position, which another description would not share.
        let stateless = matches!(kind, FileType::CharacterDevice | FileType::Fifo);
        if stateless && let Ok(file) = open_again(own, status_flags) {
            return Ok(file);
        }
    }
    rustix::io::fcntl_dupfd_cloexec(own, 0).map_err(failed)
}

/// `/dev/null`, for a program that nobody is there to talk with.
pub(crate) fn reopen_as_nothing(status_flags: u32) -> Result<OwnedFd, ReopenError> {
    let path = Path::new("/dev/null");
    rustix::fs::open(path, flags_of_open(status_flags), Mode::empty()).map_err(|source| {
        ReopenError::Open {
            path: path.to_owned(),
            source,
        }
    })
}

/// The terminal itself if it is still there, else pagetide's own. True if it is not the one it was.
pub(crate) fn reopen(
    state: &TerminalState,
    status_flags: u32,
    opener: &Opener,
) -> Result<(OwnedFd, bool), ReopenError> {
    if let Some(stream) = state.standard
        && isatty(stream.own())
        && may_have(stream, opener)
        && let Ok(file) = open_again(stream.own(), status_flags)
    {
        return Ok((file, false));
    }
    let found = path::find(&state.path, None, FileType::CharacterDevice, opener);
    if let Ok(found) = found
        && (major(found.stat.st_rdev), minor(found.stat.st_rdev)) == state.number
        && let Ok(file) = open_found(&found, status_flags)
    {
        return Ok((file, false));
    }
    let own = [0, 1, 2].map(StandardStream::new);
    let mut own = own.into_iter();
    let own = own.find(|stream| isatty(stream.own()) && may_have(*stream, opener));
    let missing = |source| ReopenError::Open {
        path: state.path.as_path().to_owned(),
        source,
    };
    let own = own.ok_or_else(|| missing(Errno::NOTTY))?;
    let file = open_again(own.own(), status_flags).map_err(missing)?;
    Ok((file, state.number != CONTROLLING_TERMINAL))
}
