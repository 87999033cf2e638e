//! What the mappings of the new processes show, opened and checked before any of them exists: they are forked from this
//! process and have it.

use super::error::RestoreError;
use super::nature::Nature;
use super::plan::RestorePlan;
use crate::capture::SIZE;
use pagetide_process::{FileIdentity, OpenError, Opener};
use pagetide_snapshot::{Backing, Region, Sharing};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Descriptors of ours have numbers from here on, so that they are not in the way of those of the new processes.
pub(super) const OUT_OF_THE_WAY: i32 = 4096;

/// Whose content a region shows, and whether it may be written to.
type Key = (u64, u64, bool);

/// A System V segment that is there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentNumber {
    /// Its number.
    pub id: i32,
    /// Its length in bytes.
    pub length_bytes: u64,
}

impl SegmentNumber {
    /// The length of a mapping of all of it.
    pub fn mapped_bytes(self) -> u64 {
        self.length_bytes.next_multiple_of(SIZE.bytes())
    }
}

/// What a mapping shows.
pub(super) enum MappingSource {
    /// An open file.
    File(OwnedFd),
    /// A System V segment.
    Segment(SegmentNumber),
}

/// The same, as a system call takes it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SourceNumber {
    File(RawFd),
    Segment(SegmentNumber),
}

/// See the head of this file.
pub(super) struct Sources {
    open: HashMap<Key, MappingSource>,
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
pub(super) fn writes_through(region: &Region) -> bool {
    let may = region.protection.write || region.advice.iter().any(|advice| advice == "maywrite");
    region.sharing == Sharing::Shared && may
}

/// Raises the soft limit of open files of this program to the hard one, and that one, if it leaves no room for descriptors from
/// `at_least` on, as far as root may. New processes have limits of their own.
fn raise_limit(at_least: RawFd) {
    let limit = getrlimit(Resource::Nofile).maximum;
    let room = u64::from(at_least.unsigned_abs()) * 2;
    let enough = limit.map(|limit| limit.max(room));
    let raised = |limit| Rlimit {
        current: limit,
        maximum: limit,
    };
    // If it is too low, the first descriptor will tell.
    setrlimit(Resource::Nofile, raised(enough))
        .or_else(|_| setrlimit(Resource::Nofile, raised(limit)))
        .ok();
}

/// Makes the table of descriptors of this program as large as a restore needs it. A program that is to restore soon had better call
/// this before it has other threads: to replace the table of a process of several takes the kernel some ten milliseconds (it waits
/// for an RCU grace period), and of a process of one thread nothing.
/// If it fails, the restore will tell.
pub fn make_room_for_descriptors() {
    raise_limit(OUT_OF_THE_WAY);
    rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), OUT_OF_THE_WAY).ok();
}

impl Sources {
    /// None are open yet. The limit of open files of this program is raised, see `raise_limit`.
    pub fn new(at_least: RawFd) -> Self {
        raise_limit(at_least);
        Self {
            open: HashMap::new(),
            made: HashSet::new(),
            at_least,
        }
    }

    /// What a region maps; `None` for anonymous memory.
    pub fn of(&self, region: &Region) -> Option<SourceNumber> {
        Some(match self.open.get(&key(region)?)? {
            MappingSource::File(file) => SourceNumber::File(file.as_raw_fd()),
            MappingSource::Segment(segment) => SourceNumber::Segment(*segment),
        })
    }

    /// True if what a region maps is there already.
    pub fn has(&self, region: &Region) -> bool {
        self.of(region).is_some()
    }

    /// This is what a region maps, and every other that shows the same object.
    pub fn put(&mut self, region: &Region, source: MappingSource) -> Result<(), RestoreError> {
        let Some((device, inode, _)) = key(region) else {
            return Ok(());
        };
        self.made.insert((device, inode));
        for writes in [false, true] {
            let source = match &source {
                MappingSource::File(file) => MappingSource::File(self.put_away(file)?),
                MappingSource::Segment(segment) => MappingSource::Segment(*segment),
            };
            self.open.entry((device, inode, writes)).or_insert(source);
        }
        Ok(())
    }

    /// Copies of the objects that were made, by device and inode of the time of the snapshot, for those who have them open.
    pub fn objects(&self) -> Result<HashMap<(u64, u64), OwnedFd>, RestoreError> {
        let mut objects = HashMap::new();
        for ((device, inode, _), source) in &self.open {
            if let MappingSource::File(file) = source
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
    pub fn program(
        &self,
        plan: &RestorePlan<'_>,
        opener: &Opener,
    ) -> Result<OwnedFd, RestoreError> {
        let (path, is_deleted) = plan.program();
        if is_deleted {
            // Its code is in the snapshot as far as it was mapped; this is only what the kernel shows as the program.
            let file = nameless(path, 0, opener)?;
            let mode = Mode::from_raw_mode(0o700);
            // A program may be open for writing to nobody.
            let link = format!("/proc/self/fd/{}", file.as_raw_fd());
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let read_only = rustix::fs::fchmod(&file, mode)
                .and_then(|()| rustix::fs::open(link, flags, Mode::empty()));
            let read_only = read_only.map_err(|errno| RestoreError::Object {
                name: path.to_string_lossy().into_owned(),
                source: errno.into(),
            })?;
            return self.put_away(&read_only);
        }
        let mapped = plan.regions.iter();
        let mut mapped = mapped.filter(|region| Nature::of(region) == Nature::Named(path));
        let was = mapped.next().and_then(identity);
        let (file, _) = open_regular(path, was, OFlags::RDONLY, opener)?;
        self.put_away(&file)
    }

    /// Opens the files that these regions map, and refuses one that is not what it was. Objects are made by `objects`.
    pub fn open_all(&mut self, regions: &[Region], opener: &Opener) -> Result<(), RestoreError> {
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
            let private = region.sharing == Sharing::Private;
            let file = match Nature::of(region) {
                Nature::HugePages => continue,
                // What it held is in the snapshot, page by page; something has to stand behind them.
                Nature::Memfd(name) if private => memory(name, *size_bytes),
                Nature::Deleted(path) if private => nameless(path, *size_bytes, opener),
                Nature::Named(path) => {
                    open_unchanged(region, path, (*size_bytes, *modified_ns), opener)
                }
                Nature::Unknown | Nature::Nothing => Err(refused(path, "is no path".to_owned())),
                _ => Err(refused(path, "was deleted while it was mapped".to_owned())),
            };
            let file = self.put_away(&file?)?;
            self.open.insert(key, MappingSource::File(file));
        }
        Ok(())
    }
}

/// Opens the file behind a region if it is as long as it was, and, if its pages are private copies, was not modified.
fn open_unchanged(
    region: &Region,
    path: &Path,
    (size_bytes, modified_ns): (u64, i64),
    opener: &Opener,
) -> Result<OwnedFd, RestoreError> {
    let (file, stat) = open_file(region, path, opener)?;
    let modified = stat
        .st_mtime
        .saturating_mul(1_000_000_000)
        .saturating_add_unsigned(stat.st_mtime_nsec);
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let bytes = path.as_os_str().as_bytes();
    if size != size_bytes {
        let reason = format!("is {size} bytes long now and was {size_bytes}");
        return Err(refused(bytes, reason));
    }
    if region.sharing == Sharing::Private && modified != modified_ns {
        return Err(refused(bytes, MODIFIED.to_owned()));
    }
    Ok(file)
}

/// A new file that nobody else can open. It has the name for a moment, by which the kernel shows it, unless somebody else
/// has it now; where none can be made, it is memory. The process's user makes it.
pub(super) fn nameless(
    path: &Path,
    size_bytes: u64,
    opener: &Opener,
) -> Result<OwnedFd, RestoreError> {
    let named = opener.create(path).map(|created| {
        created.name.remove();
        created.file
    });
    let file = match named {
        Ok(file) => file,
        Err(_) => return unlinkable(path, size_bytes, opener),
    };
    sized(file, size_bytes, path)
}

/// The same, but one that never has a name.
pub(super) fn unlinkable(
    path: &Path,
    size_bytes: u64,
    opener: &Opener,
) -> Result<OwnedFd, RestoreError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    match opener.create_nameless(directory, false) {
        Ok(file) => sized(file, size_bytes, path),
        Err(_) => memory(path.file_name().unwrap_or_default().as_bytes(), size_bytes),
    }
}

/// A file of memory.
fn memory(name: &[u8], size_bytes: u64) -> Result<OwnedFd, RestoreError> {
    let made = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC);
    let made = made.map_err(|errno| RestoreError::Object {
        name: String::from_utf8_lossy(name).into_owned(),
        source: errno.into(),
    })?;
    sized(made, size_bytes, Path::new(OsStr::from_bytes(name)))
}

fn sized(file: OwnedFd, size_bytes: u64, path: &Path) -> Result<OwnedFd, RestoreError> {
    let sized = rustix::fs::ftruncate(&file, size_bytes);
    sized.map_err(|errno| RestoreError::Object {
        name: path.to_string_lossy().into_owned(),
        source: errno.into(),
    })?;
    Ok(file)
}

/// Of its pages the snapshot has only hashes, and the file is not read as a whole to compare them.
const MODIFIED: &str = "was modified since: put the old file back, with its date (cp -p), or restore a snapshot that was \
                        taken with --store-files";

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
    opener: &Opener,
) -> Result<(OwnedFd, rustix::fs::Stat), RestoreError> {
    let access = if writes_through(region) {
        OFlags::RDWR
    } else {
        OFlags::RDONLY
    };
    open_regular(path, identity(region), access, opener)
}

/// Which file a region mapped.
pub(super) fn identity(region: &Region) -> Option<FileIdentity> {
    match region.backing {
        Backing::File { device, inode, .. } | Backing::SharedMemory { device, inode, .. } => {
            Some(FileIdentity { device, inode })
        }
        Backing::Anonymous | Backing::Kernel => None,
    }
}

/// Opens a regular file, as the process would.
pub(super) fn open_regular(
    path: &Path,
    was: Option<FileIdentity>,
    access: OFlags,
    opener: &Opener,
) -> Result<(OwnedFd, rustix::fs::Stat), RestoreError> {
    let bytes = path.as_os_str().as_bytes();
    let failed = |error: OpenError| {
        let reason = match error {
            OpenError::Kernel(Errno::MFILE) => {
                return RestoreError::Descriptors(Errno::MFILE.into());
            }
            OpenError::Kernel(errno) => format!("cannot be opened: {errno}"),
            error => error.to_string(),
        };
        refused(bytes, reason)
    };
    let found = opener.find_to_open(path, was, access).map_err(failed)?;
    if !found.kind().is_file() {
        return Err(refused(bytes, "is not a regular file now".to_owned()));
    }
    let file = found.open(access).map_err(failed)?;
    Ok((file, found.stat))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t75_there_is_room_for_descriptors_with_high_numbers_before_there_are_any() {
        make_room_for_descriptors();
        let status = std::fs::read_to_string("/proc/self/status").expect("read our status");
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
        let size: usize = size.expect("a size").trim().parse().expect("a number");
        assert!(size > 4096, "{size}");
    }
}
