//! What each mapping of a process needs: to be tracked, to be compared, or to be named as not
//! captured. And a mapping as a region of a snapshot. Not the copying itself.

use pagetide_kernel::maps::{self, Mapping, MappingName};
use pagetide_pages::PageRange;
use pagetide_snapshot::{Backing, Capture, Protection, Region, Sharing};
use std::os::unix::ffi::OsStrExt;

/// How changes of a mapping's pages are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watch {
    /// Private anonymous memory: the tracker knows all that is written.
    Track,
    /// A private mapping of a file: the tracker knows what the process writes, but not when a private
    /// copy is dropped and not when the file itself changes.
    TrackOverFile,
    /// Others can change it unseen (shared memory, or a mapping no tracker may watch): every page is
    /// read and compared with what is stored.
    Compare,
    /// Private huge pages without a file. Dropping one reads as not written, so they are compared; but
    /// only those that are there, because reading one that is not would take it from the pool.
    CompareHeld,
    /// Address space that is reserved and can hold nothing yet, as long as nothing is found in it.
    Reserved,
    /// Not the process's memory; the reason is for people.
    Leave(&'static str),
}

/// How to watch `mapping`, if a tracker may.
pub(crate) fn watch(mapping: &Mapping) -> Watch {
    let accessible = mapping.read || mapping.write || mapping.execute;
    match &mapping.name {
        MappingName::KernelData(_) => Watch::Leave("data of the kernel, not of the process"),
        MappingName::Vdso => Watch::Compare,
        _ if mapping.shared => Watch::Compare,
        _ if is_anonymous_huge(mapping) => Watch::CompareHeld,
        _ if mapping.has_file() => Watch::TrackOverFile,
        _ if !accessible => Watch::Reserved,
        _ => Watch::Track,
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

/// The mapping as a region of the space "mem".
pub(crate) fn region(
    mapping: &Mapping,
    facts: Option<FileFacts>,
    advice: Vec<String>,
    capture: Capture,
) -> Region {
    let path = || match &mapping.name {
        MappingName::Path(path) => path.as_os_str().as_bytes().to_vec(),
        _ => display_name(mapping).into_bytes(),
    };
    let backing = match &mapping.name {
        MappingName::Vdso | MappingName::KernelData(_) => Backing::Kernel,
        _ if !mapping.has_file() => Backing::Anonymous,
        _ if mapping.shared
            && facts.map_or_else(|| is_memory_by_name(mapping), |facts| facts.in_memory) =>
        {
            Backing::SharedMemory {
                path: path(),
                offset_bytes: mapping.offset_bytes,
                device: device_number(mapping),
                inode: mapping.inode,
            }
        }
        _ => {
            let facts = facts.unwrap_or_default();
            Backing::File {
                path: path(),
                offset_bytes: mapping.offset_bytes,
                device: device_number(mapping),
                inode: mapping.inode,
                size_bytes: facts.size_bytes,
                modified_ns: facts.modified_ns,
                build_id: Vec::new(),
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
        sharing: match mapping.shared {
            true => Sharing::Shared,
            false => Sharing::Private,
        },
        backing,
        name: display_name(mapping),
        advice,
        capture,
        shows: None,
    }
}

/// The advice of madvise(2) that the kernel keeps as an attribute of a mapping, from its VmFlags.
pub(crate) fn advice_of(flags: &[String]) -> Vec<String> {
    let names = [
        ("sr", "sequential"),
        ("rr", "random"),
        ("dc", "dontfork"),
        ("dd", "dontdump"),
        ("wf", "wipeonfork"),
        ("hg", "hugepage"),
        ("nh", "nohugepage"),
        ("mg", "mergeable"),
        ("lo", "locked"),
        ("gd", "growsdown"),
        ("ht", "hugetlb"),
    ];
    names
        .iter()
        .filter(|(flag, _)| flags.iter().any(|found| found == flag))
        .map(|(_, name)| (*name).to_owned())
        .collect()
}

/// The advice of each mapping, read again only when the layout has changed, because it is slow.
#[derive(Default)]
pub(crate) struct AdviceCache {
    layout: Vec<Mapping>,
    advice: Vec<(PageRange, Vec<String>)>,
}

impl AdviceCache {
    /// Makes this the advice of `layout`.
    pub fn refresh(&mut self, pid: i32, layout: &[Mapping]) {
        if self.layout == layout {
            return;
        }
        // Advice describes; without it nothing is lost but the description.
        let flags = maps::mappings_with_flags(pid).unwrap_or_default();
        self.advice = flags
            .iter()
            .map(|(mapping, flags)| (mapping.pages(), advice_of(flags)))
            .collect();
        self.layout = layout.to_vec();
    }

    /// The advice given for `mapping`.
    pub fn of(&self, mapping: &Mapping) -> Vec<String> {
        let found = self
            .advice
            .binary_search_by_key(&mapping.pages().start(), |(pages, _)| pages.start());
        found.map_or_else(|_| Vec::new(), |at| self.advice[at].1.clone())
    }
}
