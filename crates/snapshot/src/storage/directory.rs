//! A store in a directory of the local file system. Not a cache and not a database: one file a
//! snapshot, written beside its final name, synced, renamed, and the directory synced.

use super::{LockFailure, PartialFile, Storage, StorageLock, StoredFile};
use rustix::fs::{FlockOperation, RenameFlags, flock, renameat_with};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The one directory inside the store's directory.
const SNAPSHOTS: &str = "snapshots";
/// The file whose lock is the right to write. It is never removed: removing it would let two
/// writers lock two files of the same name.
const LOCK: &str = "lock";

/// Files in a directory of the local file system.
#[derive(Clone, Debug)]
pub struct DirectoryStorage {
    root: PathBuf,
}

impl DirectoryStorage {
    /// The directory `root`; nothing is read or made yet.
    pub fn new(root: impl Into<PathBuf>) -> DirectoryStorage {
        DirectoryStorage { root: root.into() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

impl Storage for DirectoryStorage {
    fn location(&self) -> String {
        self.root.display().to_string()
    }

    fn prepare(&self) -> io::Result<()> {
        for directory in [self.root.clone(), self.root.join(SNAPSHOTS)] {
            match DirBuilder::new().mode(0o700).create(&directory) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        sync_directory(&self.root)?;
        // Also the name of the root in its parent, if the parent may be opened.
        match self.root.parent() {
            Some(parent) if parent.as_os_str().is_empty() => sync_directory(Path::new(".")),
            Some(parent) => sync_directory(parent).or(Ok(())),
            None => Ok(()),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !entry.file_type()?.is_dir() {
                names.push(name);
            } else if name == SNAPSHOTS {
                for inner in fs::read_dir(entry.path())? {
                    let inner = inner?.file_name();
                    names.push(format!("{SNAPSHOTS}/{}", inner.to_string_lossy()));
                }
            } else {
                names.push(name + "/");
            }
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn StoredFile>> {
        let file = File::open(self.root.join(name))?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "not a file"));
        }
        Ok(Box::new(LocalFile { file }))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn PartialFile>> {
        let path = self.root.join(name);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?;
        Ok(Box::new(LocalPartial {
            root: self.root.clone(),
            path,
            file,
            published: false,
        }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.root.join(name))
    }

    fn lock(&self) -> Result<Box<dyn StorageLock>, LockFailure> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.root.join(LOCK))
            .map_err(LockFailure::Io)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(error) if error == rustix::io::Errno::WOULDBLOCK => {
                return Err(LockFailure::Held(holder(&mut file)));
            }
            Err(error) => return Err(LockFailure::Io(error.into())),
        }
        // Only for the message another writer gets; the lock itself is the kernel's.
        let note = format!("process {}\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.write_all_at(note.as_bytes(), 0))
            .map_err(LockFailure::Io)?;
        Ok(Box::new(LocalLock { _file: file }))
    }
}

/// Who wrote into the lock file last, if it reads like one of our notes.
fn holder(file: &mut File) -> Option<String> {
    let mut note = String::new();
    file.take(64).read_to_string(&mut note).ok()?;
    let note = note.trim();
    note.starts_with("process ").then(|| note.to_owned())
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[derive(Debug)]
struct LocalLock {
    _file: File,
}

impl StorageLock for LocalLock {}

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
}

struct LocalPartial {
    root: PathBuf,
    path: PathBuf,
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

    fn publish(mut self: Box<Self>, name: &str) -> io::Result<()> {
        self.file.sync_all()?;
        let target = self.root.join(name);
        rename_without_replacing(&self.path, &target)?;
        self.published = true;
        let directory = target.parent().unwrap_or(&self.root);
        sync_directory(directory).inspect_err(|_| {
            // Whoever asked is told that it failed, so the name must not stay.
            let _ = fs::remove_file(&target);
        })
    }
}

impl Drop for LocalPartial {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed now is removed by the next writer.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn rename_without_replacing(from: &Path, to: &Path) -> io::Result<()> {
    let here = rustix::fs::CWD;
    match renameat_with(here, from, here, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // Some file systems cannot. There is one writer at a time, so to look first is enough.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            if to.symlink_metadata().is_ok() {
                return Err(ErrorKind::AlreadyExists.into());
            }
            fs::rename(from, to)
        }
        Err(error) => Err(error.into()),
    }
}
