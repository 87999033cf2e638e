//! What is in a file that no path leads to: its runs of data, with the holes between them left out.

use bincode::{Decode, Encode};
use rustix::fs::{Mode, OFlags, SeekFrom, ftruncate, open, seek};
use rustix::io::{Errno, Result, pread, pwrite};
use std::os::fd::AsRawFd;
use std::os::fd::{AsFd, OwnedFd};

/// Bytes of a file that lie behind one another.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Run {
    /// Where the first one lies.
    pub offset_bytes: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Why content was not read.
pub(crate) enum ContentError {
    /// It is more than is stored.
    TooMuch,
    Kernel(Errno),
}

impl From<Errno> for ContentError {
    fn from(error: Errno) -> Self {
        Self::Kernel(error)
    }
}

/// Reads all data of a file, through a description of its own: the position of the given one stays, and the time of access, too,
/// if we may. `budget_bytes` is lowered by what was read.
pub(crate) fn read(
    file: impl AsFd,
    size_bytes: u64,
    budget_bytes: &mut usize,
) -> std::result::Result<Vec<Run>, ContentError> {
    let file = open_for_reading(file)?;
    let mut runs = Vec::new();
    let mut position = 0;
    while position < size_bytes {
        let begin = match seek(&file, SeekFrom::Data(position)) {
            Ok(begin) => begin,
            // Nothing but a hole follows.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(&file, SeekFrom::Hole(begin))?.min(size_bytes);
        if begin >= end {
            break;
        }
        let length = usize::try_from(end - begin).map_err(|_| ContentError::TooMuch)?;
        *budget_bytes = budget_bytes
            .checked_sub(length)
            .ok_or(ContentError::TooMuch)?;
        runs.push(Run {
            offset_bytes: begin,
            bytes: read_run(&file, begin, length)?,
        });
        position = end;
    }
    Ok(runs)
}

fn open_for_reading(file: impl AsFd) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match open(path.as_str(), flags | OFlags::NOATIME, Mode::empty()) {
        // Not ours, and no CAP_FOWNER.
        Err(Errno::PERM) => open(path, flags, Mode::empty()),
        opened => opened,
    }
}

fn read_run(file: &OwnedFd, begin: u64, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut done = 0;
    while done < length {
        match pread(file, &mut bytes[done..], begin + done as u64) {
            Ok(0) => {
                bytes.truncate(done);
                break;
            }
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// Makes `file`, which is empty, `size_bytes` long with these runs in it.
pub(crate) fn write(file: impl AsFd, size_bytes: u64, runs: &[Run]) -> Result<()> {
    ftruncate(&file, size_bytes)?;
    for run in runs {
        let mut done = 0;
        while done < run.bytes.len() {
            match pwrite(&file, &run.bytes[done..], run.offset_bytes + done as u64) {
                Ok(0) => return Err(Errno::IO),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Whether runs lie in order, apart from each other, and inside of the file.
pub(crate) fn is_possible(size_bytes: u64, runs: &[Run]) -> bool {
    let mut free_from = 0;
    runs.iter().all(|run| {
        let end = run.offset_bytes.checked_add(run.bytes.len() as u64);
        let begins_behind = run.offset_bytes >= free_from && !run.bytes.is_empty();
        end.is_some_and(|end| {
            free_from = end;
            begins_behind && end <= size_bytes
        })
    })
}
