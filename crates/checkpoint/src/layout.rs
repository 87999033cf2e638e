//! What each mapping of a process needs: to be tracked, to be compared, or to be named as not
//! captured. And a mapping as a region of a snapshot. Not the copying itself.

use crate::not_captured::NotCapturedBecause;
use pagetide_kernel::maps::{Mapping, MappingName};
use pagetide_pages::{PageCount, PageRange, PageSet};
use pagetide_snapshot::{Backing, Capture, Protection, Region, Sharing, Shown};
use std::os::unix::ffi::OsStrExt;

/// How changes of a mapping's pages are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangeDetection {
    /// Private anonymous memory: the tracker knows all that is written.
    Track,
    /// A private mapping of a file. The process's own copies are found in its page tables and compared; the
    /// rest is what the file has. It is never registered: dropping a copy would read as not written, and there are
    /// kernels in which a program's own call on such memory hangs while it is registered.
    OverFile,
    /// Others can change it unseen (shared memory, or a mapping no tracker may watch): every page is
    /// read and compared with what is stored.
    Compare,
    /// Memory that a shared object holds, which is captured once for all that map it.
    Object,
    /// Private huge pages without a file. Dropping one reads as not written, so they are compared; but
    /// only those that are there, because reading one that is not would take it from the pool.
    CompareHeld,
    /// Address space that is reserved and can hold nothing yet, as long as nothing is found in it.
    Reserved,
    /// Not the process's memory.
    Leave(NotCapturedBecause),
}

/// How to watch `mapping`, if a tracker may.
pub(crate) fn watch(mapping: &Mapping) -> ChangeDetection {
    let accessible = mapping.read || mapping.write || mapping.execute;
    match &mapping.name {
        MappingName::KernelData(_) => ChangeDetection::Leave(NotCapturedBecause::KernelData),
        MappingName::Vdso => ChangeDetection::Compare,
        _ if mapping.shared => ChangeDetection::Compare,
        _ if is_anonymous_huge(mapping) => ChangeDetection::CompareHeld,
        _ if mapping.has_file() => ChangeDetection::OverFile,
        _ if !accessible => ChangeDetection::Reserved,
        _ => ChangeDetection::Track,
    }
}

/// True for private huge pages without a file (MAP_HUGETLB), which the kernel shows as a deleted one.
fn is_anonymous_huge(mapping: &Mapping) -> bool {
    let name = MappingName::Path("/anon_hugepage (deleted)".into());
    mapping.name == name
}

/// True if a mapping none of whose pages can be read is memory of a device or of the kernel, rather
/// than a mapping past the end of its file.
pub(crate) fn is_device_like(mapping: &Mapping) -> bool {
    match &mapping.name {
        MappingName::Path(path) => {
            let path = path.as_os_str().as_bytes();
            let prefixes = [
                &b"/dev/"[..],
                b"/sys/",
                b"/proc/",
                b"anon_inode:",
                b"/secretmem",
            ];
            prefixes.iter().any(|prefix| path.starts_with(prefix))
                && !path.starts_with(b"/dev/shm/")
                && !path.starts_with(b"/dev/zero")
        }
        MappingName::Other(_) | MappingName::Vdso | MappingName::KernelData(_) => true,
        MappingName::None | MappingName::Heap | MappingName::Stack | MappingName::SystemV(_) => {
            false
        }
    }
}

/// True if what is behind a shared mapping is memory, as far as its name tells. A file that could not be
/// looked at is not: whoever takes it for memory might write to it.
fn is_memory_by_name(mapping: &Mapping) -> bool {
    match &mapping.name {
        MappingName::SystemV(_) => true,
        MappingName::Path(path) => {
            let path = path.as_os_str().as_bytes();
            let prefixes = [
                &b"/memfd:"[..],
                b"/dev/shm/",
                b"/dev/zero",
                b"/anon_hugepage",
            ];
            prefixes.iter().any(|prefix| path.starts_with(prefix))
        }
        MappingName::Other(name) => name.starts_with("anon_shmem:"),
        _ => false,
    }
}

/// The name as `/proc/PID/maps` shows it.
pub(crate) fn display_name(mapping: &Mapping) -> String {
    match &mapping.name {
        MappingName::None => String::new(),
        MappingName::Heap => "[heap]".to_owned(),
        MappingName::Stack => "[stack]".to_owned(),
        MappingName::Vdso => "[vdso]".to_owned(),
        MappingName::KernelData(name) => format!("[{name}]"),
        MappingName::SystemV(key) => format!("/SYSV{key:08x}"),
        MappingName::Path(path) => path.to_string_lossy().into_owned(),
        MappingName::Other(name) => format!("[{name}]"),
    }
}

/// The device number as the file system calls give it.
pub(crate) fn device_number(mapping: &Mapping) -> u64 {
    rustix::fs::makedev(mapping.device.0, mapping.device.1)
}

/// What is known of the file behind a mapping.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FileFacts {
    pub size_bytes: u64,
    pub modified_ns: i64,
    /// It lies in a file system that is memory (tmpfs, hugetlbfs, memfd).
    pub in_memory: bool,
}

/// What a snapshot says of the file behind a mapping.
#[derive(Clone, Debug, Default)]
pub(crate) struct FileDescription {
    pub facts: Option<FileFacts>,
    pub build_id: Vec<u8>,
    /// Its path, if that is another one than the mapping tells.
    pub path: Option<Vec<u8>>,
}

/// The mapping as a region of the process's space.
pub(crate) fn region(
    mapping: &Mapping,
    about: FileDescription,
    advice: Vec<String>,
    capture: Capture,
    shows: Option<Shown>,
) -> Region {
    let path = || match &mapping.name {
        _ if about.path.is_some() => about.path.clone().unwrap_or_default(),
        MappingName::Path(path) => path.as_os_str().as_bytes().to_vec(),
        _ => display_name(mapping).into_bytes(),
    };
    let backing = match &mapping.name {
        MappingName::Vdso | MappingName::KernelData(_) => Backing::Kernel,
        _ if !mapping.has_file() => Backing::Anonymous,
        _ if mapping.shared
            && about
                .facts
                .map_or_else(|| is_memory_by_name(mapping), |facts| facts.in_memory) =>
        {
            Backing::SharedMemory {
                path: path(),
                offset_bytes: mapping.offset_bytes,
                device: device_number(mapping),
                inode: mapping.inode,
            }
        }
        _ => {
            let facts = about.facts.unwrap_or_default();
            Backing::File {
                path: path(),
                offset_bytes: mapping.offset_bytes,
                device: device_number(mapping),
                inode: mapping.inode,
                size_bytes: facts.size_bytes,
                modified_ns: facts.modified_ns,
                build_id: about.build_id.clone(),
            }
        }
    };
    Region {
        pages: mapping.pages(),
        protection: Protection {
            read: mapping.read,
            write: mapping.write,
            execute: mapping.execute,
        },
        sharing: if mapping.shared {
            Sharing::Shared
        } else {
            Sharing::Private
        },
        backing,
        name: display_name(mapping),
        advice,
        capture,
        shows,
    }
}

/// Smaller reservations are not tracked: they are guards and the like, which nothing grows into.
const RESERVATION: PageCount = PageCount(256);

/// What a tracker is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tracked {
    /// There is none, or its word is not enough: everything is compared.
    Nothing,
    /// What holds something or can be written to.
    Content,
    /// Also large reservations: they cost it nothing.
    Reservations,
}

/// The mappings of a process, sorted by how they are watched.
pub(crate) struct Layout {
    pub mappings: Vec<Mapping>,
    pub watch: Vec<ChangeDetection>,
    /// Private mappings of which the tracker knows what is written, as the kernel lists them. Large reservations are
    /// among them: what is made accessible of them later then joins what is accessible already.
    pub tracked: Vec<PageRange>,
    /// Of these, private anonymous memory.
    pub anonymous: PageSet,
    pub reserved: PageSet,
}

impl Layout {
    /// `holds` tells whether reserved pages hold something, `is_object` whether a shared mapping's object can be read by itself.
    pub fn new(
        mappings: Vec<Mapping>,
        tracked: Tracked,
        holds: impl Fn(PageRange) -> bool,
        is_object: impl Fn(&Mapping) -> bool,
    ) -> Self {
        let mut layout = Self {
            watch: Vec::with_capacity(mappings.len()),
            mappings,
            tracked: Vec::new(),
            anonymous: PageSet::new(),
            reserved: PageSet::new(),
        };
        for mapping in &layout.mappings {
            let mut watch = watch(mapping);
            let pages = mapping.pages();
            if watch == ChangeDetection::Reserved && holds(pages) {
                watch = ChangeDetection::Track;
            }
            if watch == ChangeDetection::Compare && mapping.shared && is_object(mapping) {
                watch = ChangeDetection::Object;
            }
            if matches!(watch, ChangeDetection::Track) {
                layout.anonymous.insert(pages);
            }
            match watch {
                ChangeDetection::Reserved => {
                    layout.reserved.insert(pages);
                    if tracked == Tracked::Reservations && pages.count() >= RESERVATION {
                        layout.tracked.push(pages);
                    }
                }
                ChangeDetection::Track if tracked == Tracked::Nothing => {
                    watch = ChangeDetection::Compare
                }
                ChangeDetection::Track => layout.tracked.push(pages),
                _ => {}
            }
            layout.watch.push(watch);
        }
        layout
    }

    pub fn each(&self) -> impl Iterator<Item = (&Mapping, ChangeDetection)> {
        self.mappings.iter().zip(self.watch.iter().copied())
    }

    /// The mappings whose content is that of a shared object.
    pub fn each_object(&self) -> impl Iterator<Item = &Mapping> {
        let objects = self
            .each()
            .filter(|(_, watch)| *watch == ChangeDetection::Object);
        objects.map(|(mapping, _)| mapping)
    }

    pub fn set(&self, wanted: impl Fn(&Mapping, ChangeDetection) -> bool) -> PageSet {
        self.each()
            .filter(|(mapping, watch)| wanted(mapping, *watch))
            .map(|(mapping, _)| mapping.pages())
            .collect()
    }
}
