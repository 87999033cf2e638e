//! Looking up a path without following links that others made.

use rustix::fs::{
    CWD, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat, openat2, readlinkat,
};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// So many links are followed, as by the kernel.
const LINKS_MAX: usize = 40;

const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What an absolute path leads to, opened with O_PATH; ELOOP if there is a link in it, but for its end.
pub(super) fn look_up_strictly(path: &Path) -> Result<OwnedFd, Errno> {
    if !path.is_absolute() {
        return Err(Errno::INVAL);
    }
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(CWD, path, LOOK, Mode::empty(), resolve)
}

/// The same; links that root or `user` made are followed, but for one at the end.
pub(super) fn look_up(path: &Path, user: u32) -> Result<OwnedFd, Errno> {
    match look_up_strictly(path) {
        Err(Errno::LOOP) => walk(path, user),
        other => other,
    }
}

/// Opens what an absolute path leads to, and no link at its end.
pub(super) fn open_last(path: &Path, flags: OFlags, user: u32) -> Result<OwnedFd, Errno> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let directory = look_up(path.parent().unwrap_or(Path::new("/")), user)?;
    openat(directory, name, flags, Mode::empty())
}

fn walk(path: &Path, user: u32) -> Result<OwnedFd, Errno> {
    let mut left: VecDeque<OsString> = VecDeque::new();
    put_in_front(&mut left, path);
    let mut links = 0;
    let mut at = root()?;
    while let Some(part) = left.pop_front() {
        let next = openat(&at, &part, LOOK, Mode::empty())?;
        let stat = fstat(&next)?;
        if left.is_empty() || FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            at = next;
            continue;
        }
        links += 1;
        if links > LINKS_MAX || (stat.st_uid != 0 && stat.st_uid != user) {
            return Err(Errno::LOOP);
        }
        // By its text: what leads elsewhere than it says, as in /proc, does not do so here.
        let target = readlinkat(&next, c"", Vec::new())?;
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        if target.is_absolute() {
            at = root()?;
        }
        put_in_front(&mut left, &target);
    }
    Ok(at)
}

fn root() -> Result<OwnedFd, Errno> {
    open(c"/", LOOK | OFlags::DIRECTORY, Mode::empty())
}

fn put_in_front(left: &mut VecDeque<OsString>, path: &Path) {
    let parts = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        Component::ParentDir => Some(OsStr::new("..")),
        _ => None,
    });
    parts.for_each(|part| left.push_front(part.to_owned()));
}
