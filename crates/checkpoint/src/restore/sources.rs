//! What the mappings of the new processes show, opened and checked before any of them exists: they are forked from this
//! process and have it.

use super::RestoreError;
use crate::capture::SIZE;
use pagetide_snapshot::{Backing, Region, Sharing};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Whose content a region shows, and whether it may be written to.
type Key = (u64, u64, bool);

/// What a mapping shows.
pub(super) enum Source {
    /// An open file.
    File(OwnedFd),
    /// A System V segment, by its number.
    Segment(i32),
}

/// The same, as a system call takes it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SourceNumber {
    File(RawFd),
    Segment(i32),
}

/// See the head of this file.
pub(super) struct Sources {
    open: HashMap<Key, Source>,
    /// What was made and not only opened.
    made: HashSet<(u64, u64)>,
    /// Descriptors have numbers from here on, so that they are not in the way of those that a process is to have.
    at_least: RawFd,
}

fn key(region: &Region) -> Option<Key> {
    match region.backing {
        Backing::File { device, inode, .. } | Backing::SharedMemory { device, inode, .. } => {
            Some((device, inode, writes_through(region)))
        }
        Backing::Anonymous | Backing::Kernel => None,
    }
}

/// True if the file behind a region has to be open for writing.
fn writes_through(region: &Region) -> bool {
    let may = region.protection.write || region.advice.iter().any(|advice| advice == "maywrite");
    region.sharing == Sharing::Shared && may
}

impl Sources {
    /// None are open yet. The soft limit of open files of this program is raised to the hard one.
    pub fn new(at_least: RawFd) -> Sources {
        let limit = getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        // If it is too low, the first descriptor will tell.
        setrlimit(Resource::Nofile, raised).ok();
        Sources {
            open: HashMap::new(),
            made: HashSet::new(),
            at_least,
        }
    }

    /// What a region maps; `None` for anonymous memory.
    pub fn of(&self, region: &Region) -> Option<SourceNumber> {
        Some(match self.open.get(&key(region)?)? {
            Source::File(file) => SourceNumber::File(file.as_raw_fd()),
            Source::Segment(id) => SourceNumber::Segment(*id),
        })
    }

    /// True if what a region maps is there already.
    pub fn has(&self, region: &Region) -> bool {
        self.of(region).is_some()
    }

    /// This is what a region maps, and every other that shows the same object.
    pub fn put(&mut self, region: &Region, source: Source) -> Result<(), RestoreError> {
        let Some((device, inode, _)) = key(region) else {
            return Ok(());
        };
        self.made.insert((device, inode));
        for writes in [false, true] {
            let source = match &source {
                Source::File(file) => Source::File(self.put_away(file)?),
                Source::Segment(id) => Source::Segment(*id),
            };
            self.open.entry((device, inode, writes)).or_insert(source);
        }
        Ok(())
    }

    /// Copies of the objects that were made, by device and inode of the time of the snapshot, for those who have them open.
    pub fn objects(&self) -> Result<HashMap<(u64, u64), OwnedFd>, RestoreError> {
        let mut objects = HashMap::new();
        for ((device, inode, _), source) in &self.open {
            if let Source::File(file) = source
                && self.made.contains(&(*device, *inode))
            {
                objects.insert((*device, *inode), self.put_away(file)?);
            }
        }
        Ok(objects)
    }

    /// A copy of a descriptor at a number that is out of the way.
    pub fn put_away(&self, file: impl AsFd) -> Result<OwnedFd, RestoreError> {
        rustix::io::fcntl_dupfd_cloexec(file, self.at_least)
            .map_err(|source| RestoreError::Descriptors(source.into()))
    }

    /// Opens the file of a program.
    pub fn program(&self, path: &Path) -> Result<OwnedFd, RestoreError> {
        if let Some(path) = path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
            // Its code is in the snapshot as far as it was mapped; this is only what the kernel shows as the program.
            let path_of_program = Path::new(OsStr::from_bytes(path));
            let file = nameless(path_of_program, 0)?;
            let mode = Mode::from_raw_mode(0o700);
            // A program may be open for writing to nobody.
            let link = format!("/proc/self/fd/{}", file.as_raw_fd());
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let read_only = rustix::fs::fchmod(&file, mode)
                .and_then(|()| rustix::fs::open(link, flags, Mode::empty()));
            let read_only = read_only.map_err(|errno| RestoreError::Object {
                name: path_of_program.to_string_lossy().into_owned(),
                source: errno.into(),
            })?;
            return self.put_away(&read_only);
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty());
        let file = file.map_err(|errno| RestoreError::File {
            path: path.to_string_lossy().into_owned(),
            reason: format!("cannot be opened: {errno}"),
        })?;
        self.put_away(&file)
    }

    /// Opens the files that these regions map, and refuses one that is not what it was. Objects are made by `objects`.
    pub fn open_all(&mut self, regions: &[Region]) -> Result<(), RestoreError> {
        for region in regions.iter().filter(|region| region.shows.is_none()) {
            let Backing::File {
                path,
                modified_ns,
                size_bytes,
                ..
            } = &region.backing
            else {
                continue;
            };
            let Some(key) = key(region).filter(|key| !self.open.contains_key(key)) else {
                continue;
            };
            if path.starts_with(b"/anon_hugepage") {
                continue;
            }
            if let Some(path) = path.strip_suffix(b" (deleted)")
                && region.sharing == Sharing::Private
            {
                // What it held is in the snapshot, page by page; something has to stand behind them.
                let file = nameless(Path::new(OsStr::from_bytes(path)), *size_bytes)?;
                let file = self.put_away(&file)?;
                self.open.insert(key, Source::File(file));
                continue;
            }
            let (file, stat) = open_file(region, Path::new(OsStr::from_bytes(path)))?;
            let modified = stat
                .st_mtime
                .saturating_mul(1_000_000_000)
                .saturating_add_unsigned(stat.st_mtime_nsec);
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            if size != *size_bytes {
                let reason = format!("is {size} bytes long now and was {size_bytes}");
                return Err(refused(path, reason));
            }
            if region.sharing == Sharing::Private && modified != *modified_ns {
                return Err(refused(path, "was modified since".to_owned()));
            }
            let file = self.put_away(&file)?;
            self.open.insert(key, Source::File(file));
        }
        Ok(())
    }
}

/// A new file that nobody else can open. It has the name for a moment, by which the kernel shows it, unless somebody else
/// has it now; where none can be made, it is memory.
pub(super) fn nameless(path: &Path, size_bytes: u64) -> Result<OwnedFd, RestoreError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o600);
    let named = rustix::fs::open(path, flags | OFlags::CREATE | OFlags::EXCL, mode)
        .and_then(|file| rustix::fs::unlink(path).map(|()| file));
    let without = || {
        let directory = path.parent().unwrap_or(Path::new("/"));
        rustix::fs::open(directory, flags | OFlags::TMPFILE, mode)
    };
    let name = path.file_name().unwrap_or_default();
    let memory = || rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC);
    let made = named.or_else(|_| without()).or_else(|_| memory());
    let made = made.and_then(|file| rustix::fs::ftruncate(&file, size_bytes).map(|()| file));
    made.map_err(|errno| RestoreError::Object {
        name: path.to_string_lossy().into_owned(),
        source: errno.into(),
    })
}

fn refused(path: &[u8], reason: String) -> RestoreError {
    RestoreError::File {
        path: String::from_utf8_lossy(path).into_owned(),
        reason,
    }
}

/// Opens the file behind a region as the region needs it.
pub(super) fn open_file(
    region: &Region,
    path: &Path,
) -> Result<(OwnedFd, rustix::fs::Stat), RestoreError> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.ends_with(b" (deleted)") {
        return Err(refused(bytes, "was deleted while it was mapped".to_owned()));
    }
    let access = match writes_through(region) {
        true => OFlags::RDWR,
        false => OFlags::RDONLY,
    };
    let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = rustix::fs::open(path, flags, Mode::empty())
        .and_then(|file| rustix::fs::fstat(&file).map(|stat| (file, stat)));
    opened.map_err(|errno| refused(bytes, format!("cannot be opened: {errno}")))
}

/// First address of a region, and the address past its last byte.
pub(super) fn span(region: &Region) -> (u64, u64) {
    SIZE.span_of(region.pages)
}
