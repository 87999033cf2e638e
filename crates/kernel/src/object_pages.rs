//! What a shared memory object has of a range, wherever it is mapped: pages in memory, pages in swap, holes.
//!
//! The page tables of a process do not tell: an entry of shared memory is empty alike when the page was never touched,
//! when only others touched it, when this process dropped it, and when it is in swap. The object itself answers:
//! lseek(2) with SEEK_DATA tells holes from pages, and mincore(2) tells pages in memory from those in swap.
//!
//! Sources: Documentation/admin-guide/mm/pagemap.rst ("Exceptions for Shared Memory"), lseek(2) (SEEK_DATA since Linux 3.1
//! for tmpfs), mincore(2), proc_pid_map_files(5). Opening an object by `/proc/PID/map_files` needs CAP_CHECKPOINT_RESTORE
//! or CAP_SYS_ADMIN, and mincore(2) the right to write to it, or to own it.

#![allow(unsafe_code)]

use crate::maps::Mapping;
use nix::libc;
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet, PageSize};
use rustix::fs::SeekFrom;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

const SIZE: PageSize = PageSize::KIB_4;

/// Pages asked for at once: 1 GiB of address space, which holds no memory, and 256 KiB for the answers.
const AT_ONCE: PageCount = PageCount(1 << 18);

/// What an object has of a range. The pages are those of the object: its first page is page 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectPages {
    /// Pages in memory, in the swap cache among them.
    pub resident: PageSet,
    /// Pages that are not in memory and have content.
    pub swapped: PageSet,
}

/// True if the mapping shows memory of tmpfs: shared anonymous memory, a memfd, a System V segment, a file of a tmpfs. Such an
/// object answers at once, whoever made it; of any other the file system would be asked.
pub fn is_shared_memory(mapping: &Mapping) -> bool {
    mapping.shared && mapping.has_file() && shared_memory_devices().contains(&mapping.device)
}

/// The devices of all tmpfs: that of the kernel's own, which no mount shows, and those that are mounted.
fn shared_memory_devices() -> Vec<(u32, u32)> {
    let mut devices = Vec::new();
    let own = rustix::fs::memfd_create("pagetide", rustix::fs::MemfdFlags::CLOEXEC);
    if let Some(own) = own.ok().and_then(|own| File::from(own).metadata().ok()) {
        devices.push((rustix::fs::major(own.dev()), rustix::fs::minor(own.dev())));
    }
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    for line in String::from_utf8_lossy(&mounts).lines() {
        let kind = line
            .split_once(" - ")
            .map(|(_, rest)| rest.split(' ').next());
        let device = line
            .split(' ')
            .nth(2)
            .and_then(|field| field.split_once(':'));
        if kind == Some(Some("tmpfs"))
            && let Some((major, minor)) = device
            && let (Ok(major), Ok(minor)) = (major.parse(), minor.parse())
        {
            devices.push((major, minor));
        }
    }
    devices
}

/// Opens the object that `mapping` of process `pid` shows, for reading. EPERM: without the privilege. ENOENT: it is not mapped
/// so any more.
pub fn open_object(pid: i32, mapping: &Mapping) -> io::Result<File> {
    let Mapping { start, end, .. } = mapping;
    File::open(format!("/proc/{pid}/map_files/{start:x}-{end:x}"))
}

/// What the object has of `pages`, pages of the object. What lies past its end is a hole.
pub fn object_pages(object: &File, pages: PageRange) -> io::Result<ObjectPages> {
    let mut found = ObjectPages::default();
    let mut at = SIZE.span_of(pages).0;
    let end = SIZE.span_of(pages).1;
    while at < end {
        let data = match rustix::fs::seek(object, SeekFrom::Data(at)) {
            Ok(data) if data < end => data,
            // ENXIO: nothing but a hole up to the end.
            Ok(_) | Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(object, SeekFrom::Hole(data))?.min(end);
        let mut rest = SIZE.covering(data, hole);
        while !rest.is_empty() {
            let count = PageCount(rest.count().0.min(AT_ONCE.0));
            let piece = PageRange::with_count(rest.start(), count);
            sort(object, piece, &mut found)?;
            rest = PageRange::new(piece.end(), rest.end());
        }
        at = hole.max(at + SIZE.bytes());
    }
    Ok(found)
}

/// Sorts `pages`, of which the object has each, by whether they are in memory.
fn sort(object: &File, pages: PageRange, found: &mut ObjectPages) -> io::Result<()> {
    let in_memory = in_memory(object, pages)?;
    for (page, in_memory) in pages.pages().zip(in_memory) {
        if in_memory {
            found.resident.insert(PageRange::single(page))
        } else {
            found.swapped.insert(PageRange::single(page))
        }
    }
    Ok(())
}

/// Whether each of `pages` is in memory: mincore(2) of a mapping of our own, which nobody reads from.
fn in_memory(object: &File, pages: PageRange) -> io::Result<Vec<bool>> {
    let length = SIZE.bytes_of(pages.count()) as usize;
    let offset = SIZE.address_of(pages.start()).cast_signed();
    // SAFETY: a new mapping at a place that the kernel chooses touches nothing that is there.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
            object.as_raw_fd(),
            offset,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let mut answers = vec![0u8; pages.count().0 as usize];
    // SAFETY: the range is the mapping made above, and there is a byte for each of its pages.
    let asked = unsafe { libc::mincore(address, length, answers.as_mut_ptr()) };
    let error = io::Error::last_os_error();
    // SAFETY: exactly the mapping made above, of which nobody has a reference.
    unsafe { libc::munmap(address, length) };
    match asked {
        0 => Ok(answers.iter().map(|answer| answer & 1 != 0).collect()),
        _ => Err(error),
    }
}

/// The pages of the object that `mapping` shows at `pages` of the process.
pub fn shown_at(mapping: &Mapping, pages: PageRange) -> PageRange {
    let first =
        SIZE.index_of(mapping.offset_bytes).0 + (pages.start().0 - mapping.pages().start().0);
    PageRange::with_count(PageIndex(first), pages.count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn pages_in_memory_and_holes_are_told_apart() {
        let object = File::from(
            rustix::fs::memfd_create("object_pages", rustix::fs::MemfdFlags::CLOEXEC)
                .expect("a memfd"),
        );
        object.set_len(1 << 40).expect("room for holes");
        for page in [3, 4, 100] {
            object.write_all_at(b"there", page * 4096).expect("a page");
        }
        let range = |first, count| PageRange::with_count(PageIndex(first), PageCount(count));
        let found = object_pages(&object, range(0, 1 << 28)).expect("it answers");
        let expected: PageSet = [range(3, 2), range(100, 1)].into_iter().collect();
        assert_eq!(found.resident, expected);
        assert_eq!(found.swapped, PageSet::new());
        let part = object_pages(&object, range(4, 10)).expect("it answers");
        assert_eq!(part.resident, PageSet::from(range(4, 1)));
        let past = object_pages(&object, range(1 << 28, 8)).expect("it answers");
        assert_eq!(past, ObjectPages::default());
        let allocated = object.metadata().expect("a file").blocks() * 512;
        assert_eq!(allocated, 3 * 4096, "asking allocates nothing");
    }
}
