//! Opening a file another time, through a descriptor of it, and setting status flags.

use crate::opener::{OpenError, PathTarget};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::io::{Errno, Result};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// What open(2) may be given again. The flags that create or empty files are not among them, and O_ASYNC comes last of all.
const FLAGS_OF_OPEN: u32 = OFlags::ACCMODE.bits()
    | OFlags::APPEND.bits()
    | OFlags::NONBLOCK.bits()
    | OFlags::DSYNC.bits()
    | OFlags::SYNC.bits()
    | OFlags::DIRECT.bits()
    | OFlags::NOATIME.bits()
    | OFlags::DIRECTORY.bits()
    | OFlags::PATH.bits();

/// What F_SETFL changes.
const FLAGS_OF_FCNTL: OFlags = OFlags::APPEND
    .union(OFlags::NONBLOCK)
    .union(OFlags::DIRECT)
    .union(OFlags::NOATIME);

/// The flags by which a description with these status flags is opened: close-on-exec, and no terminal becomes ours.
pub(crate) fn flags_of_open(status_flags: u32) -> OFlags {
    let flags = OFlags::from_bits_retain(status_flags & FLAGS_OF_OPEN);
    flags | OFlags::CLOEXEC | OFlags::NOCTTY
}

/// Opens the file behind `file` (which may be open with O_PATH only) anew, with the given status flags. Does not wait for the other
/// end of a FIFO.
pub(crate) fn open_again(file: impl AsFd, status_flags: u32) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let flags = flags_of_open(status_flags).difference(OFlags::PATH);
    let fresh = open(path, flags | OFlags::NONBLOCK, Mode::empty())?;
    set_flags(&fresh, status_flags)?;
    Ok(fresh)
}

/// The same for a file that was found by its path, as the process would. O_NOFOLLOW stays among the status flags; a
/// description that has it is opened by its path, which has to lead to the same file still (ESTALE).
pub(crate) fn open_found(
    found: &PathTarget,
    status_flags: u32,
) -> std::result::Result<OwnedFd, OpenError> {
    let flags = flags_of_open(status_flags).difference(OFlags::PATH);
    let fresh = match status_flags & OFlags::NOFOLLOW.bits() {
        0 => found.open(flags)?,
        _ => found.open_not_following(flags)?,
    };
    set_flags(&fresh, status_flags)?;
    Ok(fresh)
}

/// Makes those status flags that can be changed what they were.
pub(crate) fn set_flags(file: impl AsFd, status_flags: u32) -> Result<()> {
    let now = fcntl_getfl(&file)?;
    let wanted = now.difference(FLAGS_OF_FCNTL)
        | OFlags::from_bits_retain(status_flags).intersection(FLAGS_OF_FCNTL);
    if now == wanted {
        Ok(())
    } else {
        fcntl_setfl(&file, wanted)
    }
}

/// Reads and writes, or one of them.
pub(crate) fn can_read(status_flags: u32) -> bool {
    status_flags & OFlags::ACCMODE.bits() != OFlags::WRONLY.bits()
}

pub(crate) fn can_write(status_flags: u32) -> bool {
    status_flags & OFlags::ACCMODE.bits() != OFlags::RDONLY.bits()
}

/// Sets the position; files that have none keep none.
pub(crate) fn seek(file: impl AsFd, position: u64) -> Result<()> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Start(position)) {
        Ok(_) => Ok(()),
        Err(Errno::SPIPE) if position == 0 => Ok(()),
        Err(error) => Err(error),
    }
}
