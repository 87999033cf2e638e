//! Locks on files, as `/proc/PID/fdinfo` tells them: flock(2), record locks of descriptions and of processes (fcntl(2)).

use super::fdinfo::FdInfo;
use bincode::{Decode, Encode};
use pagetide_kernel::record_locks::{Lock, lock_description};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, Result};
use std::os::fd::AsFd;

/// A part of a file that is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct LockRange {
    /// Keeps all others out, not writers alone.
    pub exclusive: bool,
    /// The first byte.
    pub start_bytes: u64,
    /// How many; 0 for all to the end of the file.
    pub length_bytes: u64,
}

/// A lock that belongs to an open file description. The order is part of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum DescriptionLock {
    /// flock(2).
    Whole {
        /// Keeps all others out.
        exclusive: bool,
    },
    /// F_OFD_SETLK of fcntl(2).
    Range(LockRange),
}

/// A record lock that belongs to a process: F_SETLK of fcntl(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct PosixLock {
    /// The description it was set through, by its place in [`super::OpenFiles::descriptions`].
    pub description: u32,
    /// What is locked.
    pub range: LockRange,
}

/// What one line tells.
pub(crate) enum LockLine {
    Description(DescriptionLock),
    Process(LockRange),
    /// A lease, or something that is not known.
    Other(String),
}

/// All locks that are held through a descriptor.
pub(crate) fn read(info: &FdInfo) -> Vec<LockLine> {
    let lines = info.values("lock");
    lines
        .map(|line| parse(line).unwrap_or_else(|| LockLine::Other(line.to_owned())))
        .collect()
}

/// `1: POSIX  ADVISORY  WRITE 1583 fe:00:10011072 5 14`
fn parse(line: &str) -> Option<LockLine> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, kind, _, access, .., start, end] = words.as_slice() else {
        return None;
    };
    let exclusive = match *access {
        "WRITE" => true,
        "READ" => false,
        _ => return None,
    };
    let start_bytes: u64 = start.parse().ok()?;
    let length_bytes = match *end {
        "EOF" => 0,
        end => end
            .parse::<u64>()
            .ok()?
            .checked_sub(start_bytes)?
            .checked_add(1)?,
    };
    let range = LockRange {
        exclusive,
        start_bytes,
        length_bytes,
    };
    match *kind {
        "FLOCK" => Some(LockLine::Description(DescriptionLock::Whole { exclusive })),
        "OFDLCK" => Some(LockLine::Description(DescriptionLock::Range(range))),
        "POSIX" => Some(LockLine::Process(range)),
        _ => None,
    }
}

impl LockRange {
    pub(crate) fn to_kernel(self) -> Lock {
        Lock {
            exclusive: self.exclusive,
            start_bytes: self.start_bytes,
            length_bytes: self.length_bytes,
        }
    }
}

/// Sets a lock of a description, without waiting.
pub(crate) fn set(file: impl AsFd, lock: DescriptionLock) -> Result<()> {
    match lock {
        DescriptionLock::Whole { exclusive: true } => {
            flock(file, FlockOperation::NonBlockingLockExclusive)
        }
        DescriptionLock::Whole { exclusive: false } => {
            flock(file, FlockOperation::NonBlockingLockShared)
        }
        DescriptionLock::Range(range) => lock_description(file, range.to_kernel())
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(line: &str) -> Option<LockRange> {
        match parse(line)? {
            LockLine::Process(range) | LockLine::Description(DescriptionLock::Range(range)) => {
                Some(range)
            }
            _ => None,
        }
    }

    #[test]
    fn lines_are_read() {
        let told = range("2: POSIX  ADVISORY  WRITE 1583 fe:00:10011072 5 14").expect("it reads");
        assert_eq!(
            (told.exclusive, told.start_bytes, told.length_bytes),
            (true, 5, 10)
        );
        let told = range("3: OFDLCK ADVISORY  READ -1 fe:00:10011072 100 EOF").expect("it reads");
        assert_eq!(
            (told.exclusive, told.start_bytes, told.length_bytes),
            (false, 100, 0)
        );
        let told = parse("1: FLOCK  ADVISORY  READ 1583 fe:00:10011072 0 EOF");
        assert!(matches!(
            told,
            Some(LockLine::Description(DescriptionLock::Whole {
                exclusive: false
            }))
        ));
        assert!(parse("1: LEASE  ACTIVE    READ 1583 fe:00:10011072 0 EOF").is_none());
        assert!(parse("1: POSIX  ADVISORY  WRITE 1 fe:00:1 9 3").is_none());
        assert!(parse("").is_none());
    }
}

#[cfg(test)]
mod hostile_tests {
    use super::*;

    #[test]
    fn hostile_text_of_locks() {
        let sound = b"1: POSIX  ADVISORY  WRITE 1583 fe:00:10011072 5 14";
        pagetide_testing::hostile::survives(sound, |text| {
            parse(&String::from_utf8_lossy(text)).is_some()
        });
    }
}
