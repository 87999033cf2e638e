//! Which pages of a mapping show nothing that was ever allocated: reading them through the mapping would allocate them,
//! in the object and in the page tables, so they are never read. Their content is zero.
//!
//! The object is asked itself. tmpfs, memfd and shared anonymous memory tell their holes (SEEK_DATA). The memory of a
//! guest of KVM (guest_memfd) tells how many pages of a part it has (cachestat(2)). hugetlbfs only tells how much it
//! has in all, so it is read by its descriptor, which allocates nothing, until all that is found. Memory of BPF tells
//! nothing: there the page tables of the process are believed, and what they do not have is named in the report.

use crate::capture::SIZE;
use crate::mapped_file::{self, file_page, read_exactly};
use pagetide_kernel::cachestat;
use pagetide_kernel::maps::{Mapping, MappingName};
use pagetide_kernel::pidfd::PidFd;
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

/// `statfs.f_type` of hugetlbfs.
const HUGETLBFS: i64 = 0x9584_58F6;
/// Pages of hugetlbfs are read so many bytes at a time.
const READ_AT_ONCE: usize = 1 << 18;

/// How the kernel shows the memory of a guest of KVM, and that of BPF.
const GUEST_MEMORY: &str = "anon_inode:[kvm-gmem]";
const BPF_MEMORY: &str = "anon_inode:bpf-map";

fn is_named(mapping: &Mapping, name: &str) -> bool {
    matches!(&mapping.name, MappingName::Path(path) if path.as_os_str() == name)
}

/// True for the memory of a guest of KVM.
pub(crate) fn is_guest_memory(mapping: &Mapping) -> bool {
    is_named(mapping, GUEST_MEMORY)
}

/// True for memory that BPF programs share with the process (an arena, say). A page of it that the process has not
/// touched has content only if such a program has put it there, and nothing tells: reading would allocate it.
pub(crate) fn is_bpf_memory(mapping: &Mapping) -> bool {
    is_named(mapping, BPF_MEMORY)
}

/// A descriptor of the guest memory behind a mapping, fetched from the process.
pub(crate) fn guest_memory(pid: i32, mapping: &Mapping) -> Option<OwnedFd> {
    let process = PidFd::open(pid).ok()?;
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    entries.flatten().find_map(|entry| {
        let is_it = fs::read_link(entry.path()).ok()?.as_path() == Path::new(GUEST_MEMORY);
        let number = entry.file_name().to_str()?.parse().ok()?;
        let file = process.get_fd(number).ok().filter(|_| is_it)?;
        is_behind(&file, mapping).then_some(file)
    })
}

/// True if an open file is the one behind a mapping.
pub(crate) fn is_behind(file: &OwnedFd, mapping: &Mapping) -> bool {
    let stat = rustix::fs::fstat(file);
    stat.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == mapped_file::key(mapping))
}

/// The file behind a mapping of this process, among those that it has open; a description of one's own, since asking for
/// holes moves its position.
pub(crate) fn own_file(mapping: &Mapping) -> Option<OwnedFd> {
    let entries = fs::read_dir("/proc/self/fd").ok()?;
    entries.flatten().find_map(|entry| {
        let stat = rustix::fs::stat(entry.path()).ok()?;
        let is_regular = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
        if !is_regular || (stat.st_dev, stat.st_ino) != mapped_file::key(mapping) {
            return None;
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(entry.path(), flags, Mode::empty()).ok()
    })
}

/// The pages of a mapping that show holes of its object.
pub(crate) fn holes_in(object: &OwnedFd, mapping: &Mapping) -> PageSet {
    let Ok(stat) = rustix::fs::fstat(object) else {
        return PageSet::new();
    };
    let all = mapping.pages();
    let first = file_page(mapping, all.start());
    let shown = PageRange::with_count(first, all.count());
    let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
    let holes = if is_guest_memory(mapping) {
        guest_holes(object, shown, size_bytes)
    } else {
        holes(object, size_bytes)
    };
    let shift = |range: &PageRange| {
        let start = all.start().0 + (range.start().0 - first.0);
        PageRange::with_count(PageIndex(start), range.count())
    };
    holes.within(shown).ranges().iter().map(shift).collect()
}

/// The pages of an object of `size_bytes` that were never allocated or were punched out. An object that
/// does not say where its holes are has none.
pub(crate) fn holes(object: &OwnedFd, size_bytes: u64) -> PageSet {
    let system = rustix::fs::fstatfs(object).map_or(0, |system| system.f_type);
    if system == HUGETLBFS {
        return huge_holes(object, size_bytes).unwrap_or_default();
    }
    let page = |offset: u64| PageIndex(offset / SIZE.bytes());
    let mut holes = PageSet::new();
    let mut at = 0;
    while at < size_bytes {
        let data = match rustix::fs::seek(object, SeekFrom::Data(at)) {
            Ok(data) => data.min(size_bytes),
            Err(Errno::NXIO) => size_bytes,
            Err(_) => return PageSet::new(),
        };
        // A hole is made of whole pages of the object; the page in which it ends is empty, too.
        let end = PageIndex(data.div_ceil(SIZE.bytes()));
        let end = if data < size_bytes { page(data) } else { end };
        holes.insert(PageRange::new(page(at), end));
        if data >= size_bytes {
            break;
        }
        at = rustix::fs::seek(object, SeekFrom::Hole(data)).unwrap_or(size_bytes);
    }
    holes
}

/// The huge pages of a file of hugetlbfs that hold nothing but zeros, or were never allocated.
fn huge_holes(object: &OwnedFd, size_bytes: u64) -> rustix::io::Result<PageSet> {
    let huge_bytes = u64::try_from(rustix::fs::fstatfs(object)?.f_bsize).unwrap_or(0);
    let blocks = u64::try_from(rustix::fs::fstat(object)?.st_blocks).unwrap_or(0);
    let mut holes = PageSet::new();
    if huge_bytes == 0 {
        return Ok(holes);
    }
    let mut left = (blocks * 512).div_ceil(huge_bytes);
    let count = size_bytes.div_ceil(huge_bytes);
    if left >= count {
        return Ok(holes);
    }
    let mut buffer = vec![0; READ_AT_ONCE.min(usize::try_from(huge_bytes).unwrap_or(usize::MAX))];
    for number in 0..count {
        let (start, end) = (number * huge_bytes, (number + 1) * huge_bytes);
        if left > 0 && holds_something(object, start, end, &mut buffer)? {
            left -= 1;
        } else {
            holes.insert(SIZE.covering(start, end));
        }
    }
    Ok(holes)
}

fn holds_something(
    object: &OwnedFd,
    start: u64,
    end: u64,
    buffer: &mut [u8],
) -> rustix::io::Result<bool> {
    for at in (start..end).step_by(buffer.len()) {
        read_exactly(object, buffer, at)?;
        if buffer.iter().any(|byte| *byte != 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The pages among `shown` that the memory of a guest does not have.
fn guest_holes(object: &OwnedFd, shown: PageRange, size_bytes: u64) -> PageSet {
    let end = PageIndex(size_bytes.div_ceil(SIZE.bytes()));
    let inside = shown.intersection(PageRange::new(PageIndex(0), end));
    let mut holes = PageSet::new();
    let mut parts: Vec<PageRange> = inside.into_iter().collect();
    while let Some(part) = parts.pop() {
        let (start, end) = SIZE.span_of(part);
        let Ok(present) = cachestat::pages_in_memory(object, start, end - start) else {
            return PageSet::new();
        };
        if present == 0 {
            holes.insert(part);
        } else if present < part.count().0 {
            parts.extend(part.pieces(PageCount(part.count().0.div_ceil(2))));
        }
    }
    holes
}
