//! A store in a directory of the local file system. Not a cache and not a database: one file a
//! snapshot, written beside its final name, synced, renamed, and the directory synced. All of it goes
//! by descriptors that are held (`held`); no path is followed twice.

use super::held::{self, Reliance, Untrusted};
use super::interface::{Access, LockFailure, PartialFile, Right, Storage, StorageLock, StoredFile};
use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, flock, fstat, fsync, mkdirat,
    openat, renameat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// The one directory inside the store's directory.
const SNAPSHOTS: &str = "snapshots";
/// The files whose locks are the rights to write and to prune. They are never removed: removing one would let two
/// lock two files of the same name.
const LOCK: &str = "lock";
const PRUNE_LOCK: &str = "lock-prune";
/// A note in it is not longer.
const NOTE_BYTES_MAX: u64 = 64;
const NOTE_BEGINS: &str = "process ";

/// Files in a directory of the local file system.
///
/// The directory is opened when it is first needed and held from then on, so that what was looked at is what is used. No
/// link in it is followed. Clones share it.
#[derive(Clone, Debug)]
pub struct DirectoryStorage {
    place: Arc<DirectoryPlace>,
}

#[derive(Debug)]
struct DirectoryPlace {
    root: PathBuf,
    reliance: Reliance,
    held: OnceLock<OwnedFd>,
    snapshots: OnceLock<OwnedFd>,
}

impl DirectoryStorage {
    /// The directory `root`, if only root and the caller can have written to it: it, what is in it, and each directory on
    /// the way to it must belong to one of them, and group and others must not be able to write to it (but to a directory
    /// on the way that has the sticky bit). Otherwise operations fail with an [`Untrusted`]. Nothing is read or made yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self::with(root.into(), Reliance::Checked)
    }

    /// The directory `root`, whoever may have written to it.
    pub fn trusting(root: impl Into<PathBuf>) -> Self {
        Self::with(root.into(), Reliance::Trusting)
    }

    fn with(root: PathBuf, reliance: Reliance) -> Self {
        let place = DirectoryPlace {
            root,
            reliance,
            held: OnceLock::new(),
            snapshots: OnceLock::new(),
        };
        Self {
            place: Arc::new(place),
        }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.place.root
    }

    /// Takes the directory away, and the one in it, if nothing is left in them: for who has made a store that is not wanted
    /// after all.
    ///
    /// # Errors
    /// ENOTEMPTY: something is in it. ENOENT: its place is another one's by now.
    pub fn remove_directories(&self) -> io::Result<()> {
        self.place.remove_directories()
    }
}

impl DirectoryPlace {
    fn root(&self) -> io::Result<&OwnedFd> {
        once(&self.held, || {
            let held = held::hold(&self.root, self.reliance)?;
            held::check_entries(&held, &self.root, self.reliance)?;
            Ok(held)
        })
    }

    fn snapshots(&self) -> io::Result<&OwnedFd> {
        once(&self.snapshots, || {
            let shown = self.root.join(SNAPSHOTS);
            let held = held::hold_inside(self.root()?, SNAPSHOTS, &shown, self.reliance)?;
            held::check_entries(&held, &shown, self.reliance)?;
            Ok(held)
        })
    }

    /// The directory that the file `name` of the store stands in, and its name there.
    fn at<'a>(&self, name: &'a str) -> io::Result<(&OwnedFd, &'a str)> {
        match name.split_once('/') {
            None => Ok((self.root()?, name)),
            Some((SNAPSHOTS, inner)) if !inner.contains('/') => Ok((self.snapshots()?, inner)),
            Some(_) => Err(ErrorKind::InvalidInput.into()),
        }
    }

    /// Removes a file, which must be one of the store.
    fn remove(&self, name: &str) -> io::Result<()> {
        let (directory, inner) = self.at(name)?;
        let shown = self.root.join(name);
        let stat = statat(directory, inner, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Untrusted::error(&shown, "is not a regular file"));
        }
        self.reliance.check(&shown, &stat)?;
        Ok(unlinkat(directory, inner, AtFlags::empty())?)
    }

    fn remove_directories(&self) -> io::Result<()> {
        let held = self.root()?;
        unlinkat(held, SNAPSHOTS, AtFlags::REMOVEDIR)?;
        let path = std::path::absolute(&self.root)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(ErrorKind::InvalidInput.into());
        };
        let parent = held::walk(parent, self.reliance)?;
        let (own, there) = (
            fstat(held)?,
            statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?,
        );
        if (own.st_dev, own.st_ino) != (there.st_dev, there.st_ino) {
            return Err(ErrorKind::NotFound.into());
        }
        Ok(unlinkat(&parent, name, AtFlags::REMOVEDIR)?)
    }

    /// A file that was not there before.
    fn create(&self, name: &str) -> io::Result<OwnedFd> {
        let (directory, inner) = self.at(name)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        Ok(openat(directory, inner, flags, Mode::RUSR | Mode::WUSR)?)
    }

    fn lock_file(&self, name: &str) -> io::Result<OwnedFd> {
        match self.create(name) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let shown = self.root.join(name);
                held::open_file(self.root()?, name, &shown, self.reliance, OFlags::RDWR)
            }
            other => other,
        }
    }
}

/// What is in `cell`, made if it is not there yet.
fn once<T>(cell: &OnceLock<T>, make: impl FnOnce() -> io::Result<T>) -> io::Result<&T> {
    if let Some(known) = cell.get() {
        return Ok(known);
    }
    let made = make()?;
    // Of two that come at the same time one is dropped.
    Ok(cell.get_or_init(|| made))
}

impl Storage for DirectoryStorage {
    fn location(&self) -> String {
        self.place.root.display().to_string()
    }

    fn prepare(&self) -> io::Result<()> {
        let DirectoryPlace { root, reliance, .. } = &*self.place;
        let private = Mode::RWXU;
        if let (Some(parent), Some(name)) = (root.parent(), root.file_name()) {
            let parent = if parent.as_os_str().is_empty() {
                Path::new(".")
            } else {
                parent
            };
            let parent = held::walk(parent, *reliance)?;
            match mkdirat(&parent, name, private) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            // Also the name of the root in its parent, if the parent may be opened.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            if let Ok(parent) = openat(&parent, c".", flags, Mode::empty()) {
                fsync(&parent)?;
            }
        }
        let held = self.place.root()?;
        match mkdirat(held, SNAPSHOTS, private) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        self.place.snapshots()?;
        Ok(fsync(held)?)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for (name, is_directory) in held::entries(self.place.root()?)? {
            let name = name.to_string_lossy().into_owned();
            if name == SNAPSHOTS {
                for (inner, _) in held::entries(self.place.snapshots()?)? {
                    names.push(format!("{SNAPSHOTS}/{}", inner.to_string_lossy()));
                }
            } else if is_directory {
                names.push(name + "/");
            } else {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn StoredFile>> {
        let (directory, inner) = self.place.at(name)?;
        let shown = self.place.root.join(name);
        let reliance = self.place.reliance;
        let file = held::open_file(directory, inner, &shown, reliance, OFlags::RDONLY)?;
        Ok(Box::new(LocalFile { file: file.into() }))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn PartialFile>> {
        match self.place.remove(name) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Box::new(LocalPartial {
            file: self.place.create(name)?.into(),
            place: Arc::clone(&self.place),
            name: name.to_owned(),
            published: false,
        }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.place.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        rename_without_replacing(self.place.at(from)?, self.place.at(to)?)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(fsync(self.place.snapshots()?)?)
    }

    fn lock(&self, right: Right) -> Result<Box<dyn StorageLock>, LockFailure> {
        let name = match right {
            Right::Write => LOCK,
            Right::Prune => PRUNE_LOCK,
        };
        let mut file = File::from(self.place.lock_file(name).map_err(LockFailure::Io)?);
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(LockFailure::Held(holder(&mut file)));
            }
            Err(error) => return Err(LockFailure::Io(error.into())),
        }
        // Only for the message another writer gets; the lock itself is the kernel's.
        let note = format!("{NOTE_BEGINS}{}\n", std::process::id());
        is_note(&mut file)
            .and_then(|is_note| {
                if is_note {
                    Ok(())
                } else {
                    let shown = self.place.root.join(name);
                    Err(Untrusted::error(&shown, "is not the lock of a store"))
                }
            })
            .and_then(|()| file.set_len(0))
            .and_then(|()| file.write_all_at(note.as_bytes(), 0))
            .map_err(LockFailure::Io)?;
        Ok(Box::new(LocalLock { file }))
    }

    fn gate(&self, access: Access) -> io::Result<Option<Box<dyn StorageLock>>> {
        // The directory, opened anew: the lock belongs to who opened it.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let file = File::from(openat(self.place.snapshots()?, c".", flags, Mode::empty())?);
        let operation = match access {
            Access::Shared => FlockOperation::NonBlockingLockShared,
            Access::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match flock(&file, operation) {
            Ok(()) => Ok(Some(Box::new(LocalLock { file }))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The text of a lock file, as long as one of our notes can be.
fn note(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(NOTE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// True if the lock file has nothing in it but what we wrote, whole or in part.
fn is_note(file: &mut File) -> io::Result<bool> {
    let is_short = file.metadata()?.len() < NOTE_BYTES_MAX;
    let note = note(file)?;
    let number = note.strip_prefix(NOTE_BEGINS);
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    Ok(is_short && (NOTE_BEGINS.starts_with(&note) || number.is_some_and(is_number)))
}

/// Who wrote into the lock file last, if it reads like one of our notes.
fn holder(file: &mut File) -> Option<String> {
    let note = note(file).ok()?;
    let number: u32 = note.strip_prefix(NOTE_BEGINS)?.parse().ok()?;
    Some(format!("{NOTE_BEGINS}{number}"))
}

#[derive(Debug)]
struct LocalLock {
    file: File,
}

impl StorageLock for LocalLock {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

struct LocalFile {
    file: File,
}

impl StoredFile for LocalFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn hold(&self) -> io::Result<()> {
        Ok(flock(&self.file, FlockOperation::LockShared)?)
    }

    fn is_held(&self) -> io::Result<bool> {
        match flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                flock(&self.file, FlockOperation::Unlock)?;
                Ok(false)
            }
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

struct LocalPartial {
    place: Arc<DirectoryPlace>,
    name: String,
    file: File,
    published: bool,
}

impl PartialFile for LocalPartial {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    fn rewrite(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn publish(mut self: Box<Self>, name: &str) -> io::Result<Box<dyn StoredFile>> {
        self.file.sync_all()?;
        let finished = LocalFile {
            file: self.file.try_clone()?,
        };
        finished.hold()?;
        let from = self.place.at(&self.name)?;
        let to = self.place.at(name)?;
        rename_without_replacing(from, to)?;
        self.published = true;
        let (directory, inner) = to;
        fsync(directory).map_err(|error| {
            // Whoever asked is told that it failed, so the name must not stay.
            let _ = unlinkat(directory, inner, AtFlags::empty());
            io::Error::from(error)
        })?;
        Ok(Box::new(finished))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn replace(mut self: Box<Self>, name: &str) -> io::Result<()> {
        let (from, to) = (self.place.at(&self.name)?, self.place.at(name)?);
        renameat(from.0, from.1, to.0, to.1)?;
        self.published = true;
        Ok(fsync(to.0)?)
    }
}

impl Drop for LocalPartial {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed now is removed by the next writer.
            let _ = self.place.remove(&self.name);
        }
    }
}

/// A name in a directory that is held.
type Entry<'a> = (&'a OwnedFd, &'a str);

fn rename_without_replacing(from: Entry<'_>, to: Entry<'_>) -> io::Result<()> {
    match renameat_with(from.0, from.1, to.0, to.1, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // Some file systems cannot. There is one writer at a time, so to look first is enough.
        Err(Errno::INVAL | Errno::NOSYS) => {
            if statat(to.0, to.1, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                return Err(ErrorKind::AlreadyExists.into());
            }
            Ok(renameat(from.0, from.1, to.0, to.1)?)
        }
        Err(error) => Err(error.into()),
    }
}
