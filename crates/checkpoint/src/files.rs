//! Whether the files behind private mappings are still what they were.
//!
//! A private mapping shows a file's pages until the process writes to them, so it changes when the
//! file does, and no page table of the process says so. A file is *settled* if its bytes cannot have
//! changed without a trace: it lies on a local file system that stamps every change, its last change
//! is old enough that another in the same clock tick can be excluded, and nobody has it open for
//! writing (a read lease is granted only then, fcntl(2) F_SETLEASE). If it was settled at one
//! snapshot and is settled with the same stamps at the next, the pages it shows are the same.
//!
//! Whatever cannot be shown to be settled is compared page by page instead. Leases need the file's
//! owner or CAP_LEASE; without, every file counts as unsettled: a cost, not a danger.

use crate::layout::FileFacts;
pub(crate) use crate::mapped_file::{FileKey, key};
use crate::sparse;
use pagetide_kernel::lease;
use pagetide_kernel::maps::{Mapping, MappingName};
use pagetide_pages::PageSet;
use rustix::fs::{Mode, OFlags};
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A change younger than this may share its time stamp with one that follows.
const SETTLING: Duration = Duration::from_secs(2);

/// File systems whose mmap stores and writes always move the time stamps.
const LOCAL_FILE_SYSTEMS: [i64; 7] = [
    0xEF53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683E, // btrfs
    0xF2F5_2010, // f2fs
    0x7371_7368, // squashfs
    0xE0F5_E1E2, // erofs
    0x9660,      // isofs
];

const IN_MEMORY_FILE_SYSTEMS: [i64; 2] = [
    0x0102_1994, // tmpfs, memfd, shared anonymous memory, System V
    0x9584_58F6, // hugetlbfs
];

/// The stamps by which a change is noticed. Equal stamps of a settled file mean equal bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub(crate) struct Stamps {
    pub device: u64,
    pub inode: u64,
    pub size_bytes: u64,
    pub modified_ns: i64,
    pub changed_ns: i64,
}

/// The files behind the mappings of some processes, kept open from one snapshot to the next.
#[derive(Default)]
pub(crate) struct Files {
    /// Files may stand for the pages that mappings show of them.
    files_stand: bool,
    open: HashMap<FileKey, OwnedFd>,
    /// Memory of guests of KVM.
    guests: HashMap<FileKey, OwnedFd>,
    build_ids: HashMap<FileKey, (Stamps, Vec<u8>)>,
}

/// What was found of the files at one moment.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct FileReport {
    settled: HashMap<FileKey, Stamps>,
    /// Settled files that are found by their path.
    standing: HashMap<FileKey, Stamps>,
    facts: HashMap<FileKey, (Stamps, FileSystem)>,
}

/// What kind of file system a file lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSystem {
    /// Memory: tmpfs, hugetlbfs, memfd, shared anonymous memory, System V shared memory.
    Memory,
    /// A disk of this machine.
    Local,
    /// Somebody else serves it, perhaps the very process that is stopped.
    Other,
}

impl FileReport {
    /// True if `earlier` proves that the file's pages are what they were then.
    pub fn unchanged_since(&self, mapping: &Mapping, earlier: &HashSet<&Stamps>) -> bool {
        let now = self.settled.get(&key(mapping));
        now.is_some_and(|now| earlier.contains(now))
    }

    /// The same, with no file taken for settled.
    pub fn without_settled(mut self) -> Self {
        self.settled.clear();
        self.standing.clear();
        self
    }

    /// True if every file that was settled in `before` is so still, with the same stamps.
    pub fn agrees_with(&self, before: &Self) -> bool {
        before.settled.iter().all(|(key, stamps)| {
            self.settled.get(key) == Some(stamps) || !self.facts.contains_key(key)
        })
    }

    /// The stamps of all settled files.
    pub fn settled(&self) -> Vec<Stamps> {
        self.settled.values().copied().collect()
    }

    /// What is known of the file behind a mapping.
    pub fn facts(&self, mapping: &Mapping) -> Option<FileFacts> {
        let (stamps, system) = self.facts.get(&key(mapping))?;
        Some(FileFacts {
            size_bytes: stamps.size_bytes,
            modified_ns: stamps.modified_ns,
            in_memory: *system == FileSystem::Memory,
        })
    }

    /// The stamps of a file, if it can stand for the pages that mappings show of it: it is settled, and
    /// whoever reads the snapshot finds it by its path.
    pub fn standing(&self, key: FileKey) -> Option<&Stamps> {
        self.standing.get(&key)
    }
}

impl Files {
    /// No files yet.
    pub fn new(files_stand: bool) -> Self {
        Self {
            files_stand,
            ..Self::default()
        }
    }

    /// Looks at the files behind the mappings of processes, given by pid. Not for a stop window: it opens
    /// files.
    pub fn look<'a>(
        &mut self,
        processes: impl IntoIterator<Item = (i32, &'a [Mapping])>,
    ) -> FileReport {
        let mut report = FileReport::default();
        let mut refused = HashSet::new();
        let mut guests = HashMap::new();
        for (pid, mappings) in processes {
            for mapping in mappings.iter().filter(|mapping| mapping.has_file()) {
                let key = key(mapping);
                if sparse::is_guest_memory(mapping) {
                    if !guests.contains_key(&key) {
                        let known = self.guests.remove(&key);
                        let found = known.or_else(|| sparse::guest_memory(pid, mapping));
                        guests.extend(found.map(|file| (key, file)));
                    }
                    continue;
                }
                if report.facts.contains_key(&key) || refused.contains(&key) {
                    continue;
                }
                if !self.open.contains_key(&key)
                    && let Some(file) = open_behind(pid, mapping).or_else(|| own_file(pid, mapping))
                {
                    self.open.insert(key, file);
                }
                let found = self.open.get(&key).and_then(examine);
                let Some((stamps, system, settled)) = found else {
                    refused.insert(key);
                    continue;
                };
                report.facts.insert(key, (stamps, system));
                if settled {
                    report.settled.insert(key, stamps);
                    if self.files_stand && is_found_by_path(mapping) {
                        report.standing.insert(key, stamps);
                    }
                }
            }
        }
        self.guests = guests;
        self.open.retain(|key, _| report.facts.contains_key(key));
        self.build_ids
            .retain(|key, _| report.facts.contains_key(key));
        report
    }

    /// The open object behind a mapping, if it lies in memory: its holes can be told from its data.
    pub fn shared_memory(&self, mapping: &Mapping, report: &FileReport) -> Option<&OwnedFd> {
        report.facts(mapping).filter(|facts| facts.in_memory)?;
        self.open.get(&key(mapping))
    }

    /// The pages of a mapping that show nothing that was ever allocated, as far as the object behind it tells. The process
    /// may have copies of its own there.
    pub fn holes_in(&self, mapping: &Mapping, report: &FileReport) -> PageSet {
        let object = if sparse::is_guest_memory(mapping) {
            self.guests.get(&key(mapping))
        } else {
            self.shared_memory(mapping, report)
        };
        object.map_or_else(PageSet::new, |object| sparse::holes_in(object, mapping))
    }

    /// True if the object behind a shared mapping can be read by itself, without waiting for anybody.
    pub fn is_object(&self, mapping: &Mapping, report: &FileReport) -> bool {
        let key = key(mapping);
        let system = report.facts.get(&key).map(|(_, system)| *system);
        self.open.contains_key(&key) && system.is_some_and(|system| system != FileSystem::Other)
    }

    /// The open file.
    pub fn open(&self, key: FileKey) -> Option<&OwnedFd> {
        self.open.get(&key)
    }

    /// The GNU build-id of the file behind a mapping; empty if it has none. Reads the file the first time.
    pub fn build_id(&mut self, mapping: &Mapping, report: &FileReport) -> Vec<u8> {
        let key = key(mapping);
        let (Some((stamps, system)), Some(file)) = (report.facts.get(&key), self.open.get(&key))
        else {
            return Vec::new();
        };
        if *system != FileSystem::Local {
            return Vec::new();
        }
        match self.build_ids.get(&key) {
            Some((known, id)) if known == stamps => id.clone(),
            _ => {
                let id = build_id_of(file).unwrap_or_default();
                self.build_ids.insert(key, (*stamps, id.clone()));
                id
            }
        }
    }
}

/// What `.note.gnu.build-id` of an ELF file says.
pub(crate) fn build_id_of(file: &OwnedFd) -> Option<Vec<u8>> {
    use object::read::elf::ElfFile64;
    use object::{Object, ReadCache};
    let file = std::fs::File::from(file.try_clone().ok()?);
    let cache = ReadCache::new(file);
    let elf: ElfFile64<'_, object::Endianness, _> = ElfFile64::parse(&cache).ok()?;
    Some(elf.build_id().ok()??.to_vec())
}

/// What is behind a mapping of this very process, if it has it open itself. Needs no privilege.
fn own_file(pid: i32, mapping: &Mapping) -> Option<OwnedFd> {
    let is_ours = rustix::process::getpid().as_raw_nonzero().get() == pid;
    is_ours.then(|| sparse::own_file(mapping)).flatten()
}

/// Opens what is behind a mapping: by the mapping itself (needs CAP_CHECKPOINT_RESTORE, works for
/// deleted files and shared memory), else by path if that still is the same file.
fn open_behind(pid: i32, mapping: &Mapping) -> Option<OwnedFd> {
    let by_mapping = PathBuf::from(format!(
        "/proc/{pid}/map_files/{:x}-{:x}",
        mapping.start, mapping.end
    ));
    let (by_path, by_our_path) = match &mapping.name {
        MappingName::Path(path) if path.is_absolute() => {
            let root = PathBuf::from(format!("/proc/{pid}/root"));
            (
                Some(root.join(path.strip_prefix("/").ok()?)),
                // A process that has ended meanwhile leads nowhere.
                Some(path.clone()),
            )
        }
        _ => (None, None),
    };
    [Some(by_mapping), by_path, by_our_path]
        .into_iter()
        .flatten()
        .find_map(|path| {
            // Not blocking, and no terminal taken, whatever the path turns out to be.
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
            let is_regular = |stat: &rustix::fs::Stat| {
                rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file()
            };
            // Opening a device can have effects; a regular file's cannot.
            rustix::fs::stat(&path).ok().filter(is_regular)?;
            let file = rustix::fs::open(&path, flags, Mode::empty()).ok()?;
            let stat = rustix::fs::fstat(&file).ok().filter(is_regular)?;
            ((stat.st_dev, stat.st_ino) == key(mapping)).then_some(file)
        })
}

/// True if the path of a mapping leads to its file, as we see the file system.
fn is_found_by_path(mapping: &Mapping) -> bool {
    match &mapping.name {
        MappingName::Path(path) if path.is_absolute() => {
            rustix::fs::stat(path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == key(mapping))
        }
        _ => false,
    }
}

fn examine(file: &OwnedFd) -> Option<(Stamps, FileSystem, bool)> {
    let stat = rustix::fs::fstat(file).ok()?;
    let kind = rustix::fs::fstatfs(file).ok()?.f_type;
    let nanoseconds = |seconds: i64, nanoseconds: u64| {
        seconds
            .saturating_mul(1_000_000_000)
            .saturating_add_unsigned(nanoseconds)
    };
    let stamps = Stamps {
        device: stat.st_dev,
        inode: stat.st_ino,
        size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        modified_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
        changed_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
    };
    let system = if IN_MEMORY_FILE_SYSTEMS.contains(&kind) {
        FileSystem::Memory
    } else if LOCAL_FILE_SYSTEMS.contains(&kind) {
        FileSystem::Local
    } else {
        FileSystem::Other
    };
    let settled = system == FileSystem::Local
        && is_old(stamps.modified_ns)
        && is_old(stamps.changed_ns)
        && lease::nobody_writes(file);
    Some((stamps, system, settled))
}

fn is_old(stamp_ns: i64) -> bool {
    let stamp = Duration::from_nanos(u64::try_from(stamp_ns).unwrap_or(0));
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.is_ok_and(|now| stamp + SETTLING < now)
}
