//! Regular files that no path leads to: deleted ones, ones that never had a name (O_TMPFILE), and files of memory (memfd).
//!
//! What is in them is stored with the snapshot, up to a limit for all of them together, unless it is memory that processes
//! map shared: that is memory of the snapshot anyhow, and whoever restores hands over a descriptor of what was made of it.

use super::again::{open_again, seek, set_flags};
use super::choices::ReopenChoices;
use super::content::{self, ContentError, Run};
use super::error::ReopenError;
use super::file_path::FilePath;
use super::foreign::Foreign;
use super::memfd;
use super::memfd::ObjectOrigin;
use super::refused::file_system;
use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use crate::opener::{OpenError, Opener};
use bincode::{Decode, Encode};
use rustix::fs::{
    Gid, MemfdFlags, Mode, OFlags, SealFlags, Uid, fchmod, fchown, fcntl_add_seals, fstat,
    memfd_create, open,
};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

/// Most bytes that are stored of all such files of a snapshot.
pub(crate) const STORED_BYTES_MAX: usize = 64 << 20;

/// A regular file that no path leads to.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct StoredObject {
    /// Its device.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// What it was made as.
    pub origin: ObjectOrigin,
    /// Permissions: the lower twelve bits of `st_mode`.
    pub mode: u32,
    /// User it belongs to.
    pub uid: u32,
    /// Group it belongs to.
    pub gid: u32,
    /// Length in bytes.
    pub size_bytes: u64,
    /// What is in it; none if processes map it as shared memory, which is stored as memory.
    pub content: Option<Vec<Run>>,
}

/// A description of such a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct ObjectUse {
    /// Which one of [`super::OpenFiles::objects`].
    pub object: u32,
    /// Position, in bytes.
    pub position: u64,
}

/// All such files of the processes, as they are found.
pub(crate) struct Objects {
    pub(crate) list: Vec<StoredObject>,
    /// Where each of them is in the list, by device and inode.
    known: HashMap<(u64, u64), usize>,
    /// What processes map shared: device, as two numbers, and inode.
    mapped: HashSet<(u32, u32, u64)>,
    budget_bytes: usize,
}

impl Objects {
    pub(crate) fn new(mapped: HashSet<(u32, u32, u64)>) -> Self {
        Self {
            list: Vec::new(),
            known: HashMap::new(),
            mapped,
            budget_bytes: STORED_BYTES_MAX,
        }
    }

    /// The use of the file behind a description.
    pub(crate) fn read(&mut self, foreign: &Foreign) -> Result<ObjectUse, Blocker> {
        let key = foreign.key();
        let object = match self.known.get(&key) {
            Some(object) => *object,
            None => {
                let object = self.read_object(foreign)?;
                let place = self.list.len();
                self.known.insert((object.device, object.inode), place);
                self.list.push(object);
                place
            }
        };
        Ok(ObjectUse {
            object: u32::try_from(object).unwrap_or(u32::MAX),
            position: foreign.info.position,
        })
    }

    fn read_object(&mut self, foreign: &Foreign) -> Result<StoredObject, Blocker> {
        let stat = &foreign.stat;
        let origin = match memfd::read(foreign)? {
            Some(origin) => origin,
            None => ObjectOrigin::Deleted {
                directory: foreign
                    .link
                    .parent()
                    .and_then(FilePath::new)
                    .ok_or_else(|| foreign.unreadable(&"it has no directory"))?,
            },
        };
        let device = (
            rustix::fs::major(stat.st_dev),
            rustix::fs::minor(stat.st_dev),
        );
        let memory = matches!(
            foreign.file_system,
            file_system::TMPFS | file_system::HUGETLBFS
        );
        let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        let content = if memory && self.mapped.contains(&(device.0, device.1, stat.st_ino)) {
            None
        } else if stat.st_blocks == 0 && memory {
            Some(Vec::new())
        } else if foreign.file_system == file_system::HUGETLBFS {
            let what = "is a file of huge pages that nothing maps shared, and has content";
            let advice = "map it, or close it before the checkpoint";
            return Err(foreign.blocker(BlockerKind::HugeFile, what, advice));
        } else {
            Some(self.read_content(foreign, size_bytes)?)
        };
        Ok(StoredObject {
            device: stat.st_dev,
            inode: stat.st_ino,
            origin,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size_bytes,
            content,
        })
    }

    fn read_content(&mut self, foreign: &Foreign, size_bytes: u64) -> Result<Vec<Run>, Blocker> {
        // Opening the file would break the lease, and tell its holder so.
        if foreign
            .info
            .values("lock")
            .any(|line| line.contains("LEASE"))
        {
            return Err(foreign.unreadable(&"there is a lease on it"));
        }
        let mut budget_bytes = self.budget_bytes;
        match content::read(foreign, size_bytes, &mut budget_bytes) {
            Ok(runs) => {
                self.budget_bytes = budget_bytes;
                Ok(runs)
            }
            Err(ContentError::Kernel(error)) => Err(foreign.unreadable(&error)),
            Err(ContentError::TooMuch) => {
                let what = format!(
                    "is a file without a name ({}), and no more than {} MiB of such files are stored",
                    foreign.link.display(),
                    STORED_BYTES_MAX >> 20
                );
                let advice = "close it before the checkpoint, or let the file have its name";
                Err(foreign.blocker(BlockerKind::DeletedFile, &what, advice))
            }
        }
    }
}

impl StoredObject {
    /// For messages.
    fn name(&self) -> String {
        match &self.origin {
            ObjectOrigin::Deleted { directory } => format!("a deleted file of {directory}"),
            ObjectOrigin::Memfd { name, .. } => format!("memfd:{}", String::from_utf8_lossy(name)),
        }
    }

    /// The file again, as a descriptor through which others are opened.
    pub(crate) fn make(
        &self,
        choices: &ReopenChoices,
        opener: &Opener,
    ) -> Result<OwnedFd, ReopenError> {
        let failed = |source: Errno| ReopenError::Make {
            what: self.name(),
            source,
        };
        if let Some(given) = choices.objects.get(&(self.device, self.inode)) {
            return given
                .as_fd()
                .try_clone_to_owned()
                .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::MFILE)));
        }
        let content = self
            .content
            .as_ref()
            .ok_or_else(|| ReopenError::ObjectMissing {
                what: self.name(),
                device: self.device,
                inode: self.inode,
            })?;
        let file = self.create(opener)?;
        content::write(&file, self.size_bytes, content).map_err(failed)?;
        self.dress(&file, opener).map_err(failed)?;
        Ok(file)
    }

    /// By the process's own rights. What is to belong to somebody else afterwards can never get a name.
    fn create(&self, opener: &Opener) -> Result<OwnedFd, ReopenError> {
        match &self.origin {
            ObjectOrigin::Memfd {
                name,
                huge_page_bytes,
                ..
            } => {
                let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
                let flags = flags | memfd::huge_pages(*huge_page_bytes);
                let made = memfd_create(name.as_slice(), flags);
                made.map_err(|source| ReopenError::Make {
                    what: self.name(),
                    source,
                })
            }
            ObjectOrigin::Deleted { directory } => {
                let make = |at: &Path| opener.create_nameless(at, self.is_own(opener));
                // The directory may be gone or closed, or its file system not know files without names.
                let made = make(directory.as_path()).or_else(|error| match error {
                    OpenError::Kernel(_) => make(Path::new("/tmp")),
                    error => Err(error),
                });
                made.map_err(|error| ReopenError::opening(directory, error))
            }
        }
    }

    /// True if the process could have made it as it was.
    fn is_own(&self, opener: &Opener) -> bool {
        opener.user() == 0 || (self.uid, self.gid) == (opener.user(), opener.group())
    }

    /// Puts owner, permissions and seals on memory that the caller has made, by any descriptor of it.
    pub(crate) fn seal(&self, file: &OwnedFd, opener: &Opener) -> Result<(), ReopenError> {
        let failed = |source: Errno| ReopenError::Make {
            what: self.name(),
            source,
        };
        // A descriptor that only reads may not seal.
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        let writable = open(link, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let writable = writable.map_err(failed)?;
        self.dress(&writable, opener).map_err(failed)
    }

    /// Owner, permissions and seals. A program with the rights of its owner is made of what a process has written only if
    /// that is its own user's.
    fn dress(&self, file: &OwnedFd, opener: &Opener) -> Result<(), Errno> {
        const RIGHTS_OF_OWNER: u32 = 0o6000;
        let mode = if self.is_own(opener) {
            self.mode
        } else {
            self.mode & !RIGHTS_OF_OWNER
        };
        let now = fstat(file)?;
        if (now.st_uid, now.st_gid) != (self.uid, self.gid) {
            let (user, group) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            fchown(file, Some(user), Some(group))?;
        }
        if now.st_mode & 0o7777 != mode {
            fchmod(file, Mode::from_raw_mode(mode))?;
        }
        match &self.origin {
            ObjectOrigin::Memfd { seals, .. } if *seals != 0 => {
                fcntl_add_seals(file, SealFlags::from_bits_retain(*seals))
            }
            _ => Ok(()),
        }
    }

    /// True if a description with these flags may be the one that memfd_create(2) gave. It does not count as one that writes, and
    /// any other that may write does: a program is not executed from a file that somebody may write to (ETXTBSY).
    pub(crate) fn is_original(&self, status_flags: u32) -> bool {
        let is_memfd = matches!(self.origin, ObjectOrigin::Memfd { .. });
        let others = OFlags::PATH | OFlags::DSYNC | OFlags::SYNC | OFlags::NOFOLLOW;
        let flags = OFlags::from_bits_retain(status_flags);
        is_memfd && flags.intersection(OFlags::ACCMODE) == OFlags::RDWR && !flags.intersects(others)
    }

    /// The very description that it was made with, with these flags.
    pub(crate) fn open_original(
        &self,
        file: &OwnedFd,
        status_flags: u32,
        position: u64,
    ) -> Result<OwnedFd, ReopenError> {
        let failed = |source: Errno| ReopenError::Make {
            what: self.name(),
            source,
        };
        let same = file.try_clone();
        let same =
            same.map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::MFILE)))?;
        set_flags(&same, status_flags).map_err(failed)?;
        seek(&same, position).map_err(failed)?;
        Ok(same)
    }

    /// One more description of it.
    pub(crate) fn open(
        &self,
        file: &OwnedFd,
        status_flags: u32,
        position: u64,
    ) -> Result<OwnedFd, ReopenError> {
        let failed = |source: Errno| ReopenError::Make {
            what: self.name(),
            source,
        };
        // That the file was made without a name is in the flags as a directory.
        let status_flags = status_flags & !OFlags::TMPFILE.bits();
        let fresh = open_again(file, status_flags).map_err(failed)?;
        seek(&fresh, position).map_err(failed)?;
        Ok(fresh)
    }

    pub(crate) fn is_possible(&self) -> bool {
        let origin = match &self.origin {
            ObjectOrigin::Deleted { directory } => directory.is_possible(),
            ObjectOrigin::Memfd {
                name,
                huge_page_bytes,
                ..
            } => {
                name.len() <= memfd::NAME_BYTES_MAX
                    && !name.contains(&0)
                    && (*huge_page_bytes == 0 || huge_page_bytes.is_power_of_two())
            }
        };
        let content = self.content.as_ref();
        origin
            && self.mode <= 0o7777
            && i64::try_from(self.size_bytes).is_ok()
            && content.is_none_or(|runs| content::is_possible(self.size_bytes, runs))
    }
}
