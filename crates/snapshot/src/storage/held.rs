//! The directory of a store, held by descriptor: how it is come by, and who may have written to what is in it. It does
//! not know what the files are for.
//!
//! A path is only words: whoever can write to one of the directories on the way chooses where it leads. So the way is
//! gone one directory at a time, each opened beneath the one before, and owner and mode are looked at on the descriptor
//! from which the next is opened. What was looked at is what is used, whatever is renamed meanwhile. From then on all
//! goes by the descriptor of the store itself, and no link in it is followed.

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// As many as the kernel follows: `path_resolution(7)`.
const LINKS_MAX: u32 = 40;
/// The permission to write that group and others may have.
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Something that the caller cannot rely on: somebody else may have put it there, or may change it.
///
/// It is the inner error of an [`io::Error`] that a directory gives.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", path.display())]
pub struct Untrusted {
    /// What it is.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
}

impl Untrusted {
    pub(super) fn error(path: &Path, what: impl Into<String>) -> io::Error {
        io::Error::other(Self {
            path: path.to_owned(),
            what: what.into(),
        })
    }

    /// True if `error` is of this kind.
    pub fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }

    /// What whoever runs the command line can do about it.
    pub fn advice(&self) -> &'static str {
        "name a store that nobody but root and you can write to, in directories of which that is true, too; if you know better, \
         add `--trust-store`"
    }
}

/// Whose files are relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reliance {
    /// Those of root and of the caller that nobody else can write to.
    Checked,
    /// All. Links are not followed all the same.
    Trusting,
}

impl Reliance {
    /// What stands in a directory, or is the store's own directory.
    pub fn check(self, path: &Path, stat: &Stat) -> io::Result<()> {
        match self {
            Self::Trusting => Ok(()),
            Self::Checked => check(path, stat, OTHERS_WRITE),
        }
    }

    /// A directory on the way to the store. In one with the sticky bit only its owner, and the owner of what is in it, can
    /// rename or remove that: who else may write to it cannot lead us anywhere, since the next step is looked at, too.
    fn check_on_the_way(self, path: &Path, stat: &Stat) -> io::Result<()> {
        match self {
            Self::Trusting => Ok(()),
            Self::Checked if stat.st_mode & STICKY != 0 => check(path, stat, 0),
            Self::Checked => check(path, stat, OTHERS_WRITE),
        }
    }
}

/// An access list (`acl(5)`) shows in the bits of the group all that it grants to anybody but the owner and others.
fn check(path: &Path, stat: &Stat, forbidden: u32) -> io::Result<()> {
    let caller = rustix::process::geteuid().as_raw();
    let is_ours = stat.st_uid == 0 || stat.st_uid == caller;
    // The permissions of a link mean nothing.
    let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    if is_ours && (is_link || stat.st_mode & forbidden == 0) {
        return Ok(());
    }
    let what = format!(
        "others can write to it (owner {}, mode {:o}), and what is in the store is relied on",
        stat.st_uid,
        stat.st_mode & 0o7777
    );
    Err(Untrusted::error(path, what))
}

/// The directory at `path`, as it can be searched, and not more. Whatever is passed on the way is checked, and so is where
/// it ends, as one on the way.
pub(super) fn walk(path: &Path, reliance: Reliance) -> io::Result<OwnedFd> {
    Ok(walk_to(path, reliance)?.0)
}

/// The directory of the store at `path`, for reading its list and for syncing.
pub(super) fn hold(path: &Path, reliance: Reliance) -> io::Result<OwnedFd> {
    let (found, shown) = walk_to(path, reliance)?;
    let held = openat(&found, c".", READ_DIRECTORY, Mode::empty())?;
    reliance.check(&shown, &fstat(&held)?)?;
    Ok(held)
}

/// A directory in `directory`, which no link leads to.
pub(super) fn hold_inside(
    directory: &OwnedFd,
    name: &str,
    shown: &Path,
    reliance: Reliance,
) -> io::Result<OwnedFd> {
    let held = openat(
        directory,
        name,
        READ_DIRECTORY | OFlags::NOFOLLOW,
        Mode::empty(),
    );
    let held = held.map_err(|error| match error {
        Errno::LOOP | Errno::NOTDIR => Untrusted::error(shown, "is not a directory of the store"),
        error => error.into(),
    })?;
    reliance.check(shown, &fstat(&held)?)?;
    Ok(held)
}

const READ_DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);
const SEARCH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
const SEARCH_DIRECTORY: OFlags = SEARCH.union(OFlags::DIRECTORY);

fn walk_to(path: &Path, reliance: Reliance) -> io::Result<(OwnedFd, PathBuf)> {
    if reliance == Reliance::Trusting {
        let found = rustix::fs::open(path, SEARCH_DIRECTORY, Mode::empty())?;
        return Ok((found, path.to_owned()));
    }
    let absolute = std::path::absolute(path)?;
    let mut ahead: Vec<OsString> = steps(&absolute);
    let (mut here, mut shown) = top(reliance)?;
    let mut links = 0;
    while let Some(step) = ahead.pop() {
        let next = openat(
            &here,
            step.as_os_str(),
            SEARCH_DIRECTORY | OFlags::NOFOLLOW,
            Mode::empty(),
        );
        match next {
            Ok(next) => {
                if step == ".." {
                    shown.pop()
                } else {
                    shown.push(&step);
                    true
                };
                reliance.check_on_the_way(&shown, &fstat(&next)?)?;
                here = next;
            }
            Err(Errno::LOOP | Errno::NOTDIR) => {
                links += 1;
                let target = link(&here, &step, &shown.join(&step), reliance)?;
                if links > LINKS_MAX {
                    return Err(Errno::LOOP.into());
                }
                if target.is_absolute() {
                    (here, shown) = top(reliance)?;
                }
                ahead.extend(steps(&target));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok((here, shown))
}

fn top(reliance: Reliance) -> io::Result<(OwnedFd, PathBuf)> {
    let top = rustix::fs::open(c"/", SEARCH_DIRECTORY, Mode::empty())?;
    reliance.check_on_the_way(Path::new("/"), &fstat(&top)?)?;
    Ok((top, PathBuf::from("/")))
}

/// The steps of a path, the last one first.
fn steps(path: &Path) -> Vec<OsString> {
    let steps = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    });
    steps.collect()
}

/// Where a link leads. Whoever owns it chooses that.
fn link(here: &OwnedFd, step: &OsStr, shown: &Path, reliance: Reliance) -> io::Result<PathBuf> {
    let link = openat(here, step, SEARCH | OFlags::NOFOLLOW, Mode::empty())?;
    let stat = fstat(&link)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        return Err(Errno::NOTDIR.into());
    }
    reliance.check_on_the_way(shown, &stat)?;
    let target = readlinkat(&link, c"", Vec::new())?;
    Ok(PathBuf::from(OsString::from_vec(target.into_bytes())))
}

/// A file in `directory`, for reading. Nothing is waited for, and nothing is opened that is not a regular file.
pub(super) fn open_file(
    directory: &OwnedFd,
    name: &str,
    shown: &Path,
    reliance: Reliance,
    access: OFlags,
) -> io::Result<OwnedFd> {
    let regular = |stat: Stat| match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(stat),
        FileType::Symlink => Err(Untrusted::error(shown, "is a symbolic link")),
        _ => Err(Untrusted::error(shown, "is not a regular file")),
    };
    // Opening a device can have effects.
    regular(statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?)?;
    let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat(directory, name, flags, Mode::empty()).map_err(|error| match error {
        Errno::LOOP => Untrusted::error(shown, "is a symbolic link"),
        error => error.into(),
    })?;
    reliance.check(shown, &regular(fstat(&file)?)?)?;
    Ok(file)
}

/// The names in a directory, and which of them are directories.
pub(super) fn entries(directory: &OwnedFd) -> io::Result<Vec<(OsString, bool)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                // It was removed since.
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            },
            kind => kind,
        };
        let name = OsStr::from_bytes(name.to_bytes()).to_owned();
        found.push((name, kind == FileType::Directory));
    }
    Ok(found)
}

/// Checks all that stands in a directory.
pub(super) fn check_entries(
    directory: &OwnedFd,
    shown: &Path,
    reliance: Reliance,
) -> io::Result<()> {
    if reliance == Reliance::Trusting {
        return Ok(());
    }
    for (name, _) in entries(directory)? {
        match statat(directory, name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => reliance.check(&shown.join(&name), &stat)?,
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
