//! System calls that only these scenarios make. All of their `unsafe` stands here.

#![allow(unsafe_code)]

use nix::libc;
use pagetide_kernel::maps::{mappings, mappings_with_flags};
use pagetide_pages::{PageIndex, PageRange, PageSize};
use pagetide_testing::{HUGE, PAGE, READ_WRITE, Region};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

/// True if the mapping of this page has a file behind it.
pub fn has_file(page: PageIndex) -> bool {
    let all = mappings(own_pid()).unwrap();
    let mapping = all.iter().find(|mapping| mapping.pages().contains(page));
    mapping.is_some_and(|mapping| mapping.has_file())
}

/// Private memory in transparent huge pages, filled; `None` if the machine gives none.
pub fn huge(huge_pages: usize, value: u8) -> Option<Region> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let region = Region::map(huge_pages * HUGE, READ_WRITE, flags, None).unwrap();
    let pages = region.page_count();
    region.advise(0..pages, libc::MADV_HUGEPAGE).ok()?;
    region.fill(0..pages, value);
    if huge_bytes(&region) < huge_pages * HUGE {
        region.advise(0..pages, libc::MADV_COLLAPSE).ok()?;
    }
    (huge_bytes(&region) == huge_pages * HUGE).then_some(region)
}

/// How much of the region is mapped as huge pages.
pub fn huge_bytes(region: &Region) -> usize {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    let mut kib = 0;
    for line in text.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((start, _)) = first.split_once('-') {
            let start = u64::from_str_radix(start, 16).unwrap();
            inside = (region.start()..region.end()).contains(&start);
        } else if inside && let Some(rest) = line.strip_prefix("AnonHugePages:") {
            kib += rest
                .trim()
                .trim_end_matches(" kB")
                .parse::<usize>()
                .unwrap();
        }
    }
    kib << 10
}

/// VmFlags of the mapping of the region's first page.
pub fn flags(region: &Region) -> Vec<String> {
    let all = mappings_with_flags(own_pid()).unwrap();
    let first = region.pages().start();
    let found = all
        .into_iter()
        .find(|(mapping, _)| mapping.pages().contains(first));
    found.unwrap().1
}

/// sbrk(2): moves the program break by so many pages, and gives where it was.
pub fn move_break(pages: isize) -> u64 {
    // SAFETY: the break is only moved up, or back to where it was; what lies above it is used by address
    // alone. The allocator copes with a break that others move.
    unsafe { libc::sbrk(pages * PAGE.cast_signed()) as u64 }
}

/// Stores into a byte that sbrk(2) gave.
pub fn store(address: u64, value: u8) {
    // SAFETY: the callers own the address by sbrk(2), and no reference to it exists.
    unsafe { (address as *mut u8).write_volatile(value) };
}

/// remap_file_pages(2): shows page `offset` of the file at `pages`.
pub fn remap_file_pages(region: &Region, pages: Range<usize>, offset: usize) -> io::Result<()> {
    let (at, length) = (region.address(pages.start), pages.len() * PAGE);
    // SAFETY: only memory of the region is touched, to which no reference exists.
    let result = unsafe {
        libc::syscall(
            libc::SYS_remap_file_pages,
            at,
            length,
            0usize,
            offset,
            0usize,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// vmsplice(2) out of a pipe into page `page`.
pub fn splice_into(region: &Region, page: usize, pipe: &impl AsRawFd, length: usize) -> isize {
    let part = libc::iovec {
        iov_base: region.address(page) as *mut libc::c_void,
        iov_len: length,
    };
    // SAFETY: the part lies in the region, to which no reference exists, and lives through the call.
    unsafe { libc::vmsplice(pipe.as_raw_fd(), &part, 1, 0) }
}

/// mremap(2) of `pages` to `new_pages` pages, at a place of the kernel's choice, which is given. It is the
/// caller's to unmap.
pub fn grow_elsewhere(region: &Region, pages: Range<usize>, new_pages: usize) -> PageRange {
    let (at, length) = (
        region.address(pages.start) as *mut libc::c_void,
        pages.len() * PAGE,
    );
    let new_length = new_pages * PAGE;
    // SAFETY: the memory belongs to the region, to which no reference exists.
    let moved = unsafe { libc::mremap(at, length, new_length, libc::MREMAP_MAYMOVE) };
    assert_ne!(moved, libc::MAP_FAILED, "{}", io::Error::last_os_error());
    PageSize::KIB_4.covering(moved as u64, moved as u64 + new_length as u64)
}

/// munmap(2) of what [`grow_elsewhere`] gave.
pub fn unmap(pages: PageRange) {
    let (start, end) = PageSize::KIB_4.span_of(pages);
    // SAFETY: the memory was made by `grow_elsewhere`, and no reference to it exists.
    let unmapped = unsafe { libc::munmap(start as *mut libc::c_void, (end - start) as usize) };
    assert_eq!(unmapped, 0);
}

/// Waits until the kernel has merged most of the region's pages. False if it does not.
pub fn wait_until_merged(region: &Region) -> bool {
    let pagemap = pagetide_kernel::pagemap_scan::Pagemap::of_self().unwrap();
    let merged = || {
        let entries = pagemap.entries(region.pages()).unwrap();
        let shared = entries.iter().filter(|entry| !entry.is_exclusive()).count();
        shared + 4 >= region.page_count()
    };
    let scans = || {
        let text = std::fs::read_to_string("/sys/kernel/mm/ksm/full_scans").unwrap();
        text.trim().parse::<u64>().unwrap()
    };
    let enough = scans() + 20;
    while !merged() && scans() < enough {
        std::thread::yield_now();
    }
    merged()
}
