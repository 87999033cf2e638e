//! What the tests of several crates share: memory that is mapped, stored to, advised, moved and replaced, children that live
//! in their own address space, machine settings that are put back, text as a hostile process could make it, and tests that
//! this machine cannot run. All `unsafe` of such tests stands here.
//!
//! What this crate is not: a part of what is shipped. Only tests depend on it.

#![allow(unsafe_code)]

pub mod aio;
pub mod child;
pub mod hostile;
pub mod kvm;
pub mod machine;
pub mod poison;
mod remap;
pub mod ring;
mod skipped;
pub mod watched;

use nix::libc;
use pagetide_kernel::pagemap_scan::{Categories, Pagemap, ScanFlags, ScanRequest, ScannedRange};
use pagetide_pages::{PageIndex, PageRange, PageSet, PageSize};
pub use skipped::skipped;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a base page.
pub const PAGE: usize = 4096;

/// Bytes of a huge page.
pub const HUGE: usize = 2 << 20;

/// madvise(2): installs a guard region (since 6.13).
pub const MADV_GUARD_INSTALL: i32 = 102;

/// madvise(2): removes a guard region (since 6.13).
pub const MADV_GUARD_REMOVE: i32 = 103;

/// Loads and stores.
pub const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Ends a test here, saying so, if this kernel lacks what it is about: `needs!(scan)` or `needs!(wp_async)`.
#[macro_export]
macro_rules! needs {
    ($what:ident) => {
        if let Some(lack) = $crate::lacks::$what() {
            fn here() {}
            return $crate::skip_by_path(std::any::type_name_of_val(&here), lack);
        }
    };
}
/// What this kernel lacks, found out by asking it for it. Nothing here clears soft-dirty bits.
pub mod lacks {
    use pagetide_kernel::{probe::known_categories, userfaultfd::WriteProtector};
    use std::sync::OnceLock;

    /// PAGEMAP_SCAN.
    pub fn scan() -> Option<&'static str> {
        static LACK: OnceLock<bool> = OnceLock::new();
        let lack = *LACK.get_or_init(|| known_categories().is_empty());
        lack.then_some("no PAGEMAP_SCAN")
    }

    /// Asynchronous write-protection, and PAGEMAP_SCAN.
    pub fn wp_async() -> Option<&'static str> {
        static LACK: OnceLock<Option<String>> = OnceLock::new();
        let lack = LACK.get_or_init(|| {
            let refused = WriteProtector::of_self().err();
            refused.map(|error| format!("no asynchronous write-protection: {error}"))
        });
        scan().or(lack.as_deref())
    }
}

/// As [`skipped`], for the test whose inner function has this path: `program::test::inner`.
#[track_caller]
pub fn skip_by_path(path: &str, reason: &str) {
    let inner = path.rsplit_once("::").map_or(path, |(outer, _)| outer);
    skipped(
        inner.split_once("::").map_or(inner, |(_, test)| test),
        reason,
    );
}

const SLOT: u64 = 1 << 30;

/// Bytes of address space for a region of `length` bytes: whole slots, and room to grow.
fn slots_of(length: usize) -> usize {
    (length.div_ceil(SLOT as usize) + 1) * SLOT as usize
}

/// Every region gets an address of its own, far from where the kernel places mappings and far from
/// every other: what a region grows into is free, what it gives up is not taken by another thread.
fn free_address(length: usize) -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0x1000_0000_0000);
    NEXT.fetch_add(slots_of(length) as u64, Ordering::Relaxed)
}

fn checked(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn map_at(
    address: u64,
    length: usize,
    protection: i32,
    flags: i32,
    fd: RawFd,
    offset: usize,
) -> io::Result<()> {
    let offset = libc::off_t::try_from(offset).expect("offset");
    // SAFETY: the address range belongs to a `Region` (or is about to), which hands out no references
    // into it, so replacing what is mapped there invalidates nothing that Rust knows of.
    let mapped = unsafe { libc::mmap(address as *mut _, length, protection, flags, fd, offset) };
    match mapped {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        at => {
            assert_eq!(
                at as u64, address,
                "the kernel placed the mapping elsewhere"
            );
            Ok(())
        }
    }
}

/// Some memory of this process at an address of its own. Pages are counted from its start. Dropping it
/// unmaps all that is mapped there.
#[derive(Debug)]
pub struct Region {
    start: u64,
    length: usize,
    /// What to unmap in the end: all slots, as the region may have grown within them.
    own: usize,
}

impl Region {
    /// A mapping of `length` bytes as mmap(2) makes it; `flags` without MAP_FIXED.
    pub fn map(
        length: usize,
        protection: i32,
        flags: i32,
        file: Option<(&File, usize)>,
    ) -> io::Result<Self> {
        let start = free_address(length);
        let (fd, offset) = file.map_or((-1, 0), |(file, offset)| (file.as_raw_fd(), offset));
        map_at(
            start,
            length,
            protection,
            flags | libc::MAP_FIXED_NOREPLACE,
            fd,
            offset,
        )?;
        Ok(Self {
            start,
            length,
            own: slots_of(length),
        })
    }

    /// A shared mapping of a file at a place of the kernel's choice: some refuse any other.
    pub fn map_anywhere(length: usize, file: &File, offset: usize) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).expect("offset");
        let (flags, fd) = (libc::MAP_SHARED, file.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let mapped =
            unsafe { libc::mmap(std::ptr::null_mut(), length, READ_WRITE, flags, fd, offset) };
        match mapped {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            at => Ok(Self {
                start: at as u64,
                length,
                own: length,
            }),
        }
    }

    /// Private anonymous memory in base pages, readable and writable, not touched yet.
    pub fn private(pages: usize) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let region = Self::map(pages * PAGE, READ_WRITE, flags, None).expect("map private memory");
        // Without transparent huge pages; not known (EINVAL) where the kernel has none.
        let _ = region.advise(0..pages, libc::MADV_NOHUGEPAGE);
        region
    }

    /// As [`Region::private`], every page filled with `value`.
    pub fn filled(pages: usize, value: u8) -> Self {
        let region = Self::private(pages);
        region.fill(0..pages, value);
        region
    }

    /// Private anonymous memory in transparent huge pages, filled; `None` if the machine gives none.
    pub fn transparent_huge(huge_pages: usize, value: u8) -> Option<Self> {
        let pages = huge_pages * HUGE / PAGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let region = Self::map(pages * PAGE, READ_WRITE, flags, None).expect("map private memory");
        region.advise(0..pages, libc::MADV_HUGEPAGE).ok()?;
        region.fill(0..pages, value);
        let huge = |at: usize| region.state(at * (HUGE / PAGE)).contains(Categories::HUGE);
        if !(0..huge_pages).all(huge) {
            // The fault found no huge page at hand; asked for directly, the kernel makes room.
            region.advise(0..pages, libc::MADV_COLLAPSE).ok()?;
        }
        (0..huge_pages).all(huge).then_some(region)
    }

    /// Shared anonymous memory.
    pub fn shared(pages: usize) -> Self {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        Self::map(pages * PAGE, READ_WRITE, flags, None).expect("map shared memory")
    }

    /// `pages` of a file from its start, MAP_SHARED or MAP_PRIVATE.
    pub fn of_file(file: &File, pages: usize, shared: bool) -> Self {
        let flags = if shared {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
        Self::map(pages * PAGE, READ_WRITE, flags, Some((file, 0))).expect("map a file")
    }

    /// Anonymous memory in hugetlb pages.
    pub fn hugetlb(huge_pages: usize, shared: bool) -> io::Result<Self> {
        let flags = if shared {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
        let flags = flags | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
        Self::map(huge_pages * HUGE, READ_WRITE, flags, None)
    }

    /// Address of the first byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Address past the last byte.
    pub fn end(&self) -> u64 {
        self.start + self.length as u64
    }

    /// How many base pages the region has.
    pub fn page_count(&self) -> usize {
        self.length / PAGE
    }

    /// Address of page `page`.
    pub fn address(&self, page: usize) -> u64 {
        self.start + (page * PAGE) as u64
    }

    /// All pages, by their index in the address space.
    pub fn pages(&self) -> PageRange {
        PageSize::KIB_4.covering(self.start, self.end())
    }

    /// Pages `pages` of the region, by their index in the address space.
    pub fn range(&self, pages: Range<usize>) -> PageRange {
        PageSize::KIB_4.covering(self.address(pages.start), self.address(pages.end))
    }

    /// The pages of `set` that lie in the region, counted from its start.
    pub fn positions(&self, set: &PageSet) -> Vec<usize> {
        let first = self.pages().start();
        let inside = set.within(self.pages());
        inside
            .pages()
            .map(|PageIndex(index)| (index - first.0) as usize)
            .collect()
    }

    /// Stores `value` into the byte at `offset` of the region. The process dies if it may not.
    pub fn store_at(&self, offset: usize, value: u8) {
        assert!(offset < self.length);
        let byte = (self.start + offset as u64) as *mut u8;
        // SAFETY: the byte lies in this region, to which no Rust reference exists. If nothing is mapped
        // there the process gets a signal; no other object can be hit, as the addresses are ours alone.
        unsafe { byte.write_volatile(value) };
    }

    /// Stores `value` into the first byte of page `page`.
    pub fn store(&self, page: usize, value: u8) {
        self.store_at(page * PAGE, value);
    }

    /// Stores `value` into every byte of `pages`.
    pub fn fill(&self, pages: Range<usize>, value: u8) {
        assert!(pages.end * PAGE <= self.length);
        let length = pages.len() * PAGE;
        // SAFETY: as for `store_at`, for every byte.
        unsafe { std::ptr::write_bytes(self.address(pages.start) as *mut u8, value, length) };
    }

    /// The byte at `offset` of the region.
    pub fn load_at(&self, offset: usize) -> u8 {
        assert!(offset < self.length);
        let byte = (self.start + offset as u64) as *const u8;
        // SAFETY: the byte lies in this region; reading it where nothing is mapped gives a signal.
        unsafe { byte.read_volatile() }
    }

    /// The first byte of page `page`.
    pub fn load(&self, page: usize) -> u8 {
        self.load_at(page * PAGE)
    }

    /// Stores a number into an aligned place, as an atomic release: what a ring's producer does.
    pub fn publish(&self, offset: usize, value: u32) {
        self.word(offset).store(value, Ordering::Release);
    }

    /// The number at an aligned place.
    pub fn observe(&self, offset: usize) -> u32 {
        self.word(offset).load(Ordering::Acquire)
    }

    fn word(&self, offset: usize) -> &std::sync::atomic::AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.length);
        let word = (self.start + offset as u64) as *mut u32;
        // SAFETY: aligned and inside the region, which lives as long as `self`; all access to it is
        // atomic, volatile or the kernel's.
        unsafe { std::sync::atomic::AtomicU32::from_ptr(word) }
    }

    /// Copies `bytes` to `offset` of the region.
    pub fn store_bytes(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.length);
        let to = (self.start + offset as u64) as *mut u8;
        // SAFETY: the bytes fit into this region and cannot overlap `bytes`, which is another object.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// madvise(2).
    pub fn advise(&self, pages: Range<usize>, advice: i32) -> io::Result<()> {
        let (at, length) = (self.address(pages.start), pages.len() * PAGE);
        // SAFETY: only memory of this region is touched, to which no Rust reference exists.
        checked(unsafe { libc::madvise(at as *mut _, length, advice) })
    }

    /// Pages out until nothing of `pages` is left in memory. The advice is a hint: a page that is in
    /// use for a moment is left alone. Needs swap, and no children, because shared pages stay.
    pub fn page_out(&self, pages: Range<usize>) {
        let pagemap = Pagemap::of_self().expect("pagemap");
        let present = || {
            let entries = pagemap.entries(self.range(pages.clone())).expect("entries");
            entries.iter().any(|entry| entry.is_present())
        };
        // A child that a test beside makes shares the pages as long as it lives.
        for _ in 0..10_000 {
            self.advise(pages.clone(), libc::MADV_PAGEOUT)
                .expect("page out");
            if !present() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        panic!("the kernel does not page out {:x?}", self.range(pages));
    }

    /// mprotect(2).
    pub fn protect(&self, pages: Range<usize>, protection: i32) {
        let (at, length) = (self.address(pages.start), pages.len() * PAGE);
        // SAFETY: as for `advise`.
        checked(unsafe { libc::mprotect(at as *mut _, length, protection) }).expect("mprotect");
    }

    /// mlock(2) of some pages.
    pub fn lock(&self, pages: Range<usize>) -> io::Result<()> {
        let (at, length) = (self.address(pages.start), pages.len() * PAGE);
        // SAFETY: as for `advise`.
        checked(unsafe { libc::mlock(at as *const _, length) })
    }

    /// munmap(2) of some pages.
    pub fn unmap(&self, pages: Range<usize>) {
        let (at, length) = (self.address(pages.start), pages.len() * PAGE);
        // SAFETY: as for `advise`.
        checked(unsafe { libc::munmap(at as *mut _, length) }).expect("munmap");
    }

    /// A new private anonymous mapping in place of `pages`, at once.
    pub fn replace(&self, pages: Range<usize>) {
        self.replace_with(pages, READ_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    }

    /// A new anonymous mapping in place of `pages`, or where nothing is mapped.
    pub fn replace_with(&self, pages: Range<usize>, protection: i32, flags: i32) {
        let (at, length) = (self.address(pages.start), pages.len() * PAGE);
        map_at(at, length, protection, flags | libc::MAP_FIXED, -1, 0).expect("map over");
    }

    /// mremap(2) of `pages` to page `to` of `target` (which may be this region), leaving a hole, or,
    /// with MREMAP_DONTUNMAP, an empty mapping.
    pub fn move_to(&self, pages: Range<usize>, target: &Self, to: usize, dont_unmap: bool) {
        let extra = if dont_unmap {
            libc::MREMAP_DONTUNMAP
        } else {
            0
        };
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | extra;
        self.remap(pages.clone(), pages.len(), flags, target.address(to))
            .expect("mremap");
    }

    /// mremap(2) of `pages` to `new_pages` pages where they are.
    pub fn resize_in_place(&self, pages: Range<usize>, new_pages: usize) -> io::Result<()> {
        self.remap(pages, new_pages, 0, 0)
    }

    fn remap(&self, pages: Range<usize>, new_pages: usize, flags: i32, to: u64) -> io::Result<()> {
        let (at, length) = (self.address(pages.start), pages.len() * PAGE);
        let new_length = new_pages * PAGE;
        // SAFETY: source and target belong to regions, to which no Rust reference exists.
        let moved = unsafe {
            libc::mremap(
                at as *mut _,
                length,
                new_length,
                flags,
                to as *mut libc::c_void,
            )
        };
        match moved {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// The same region, taken to be `pages` long from now on.
    pub fn assume_pages(mut self, pages: usize) -> Self {
        self.length = pages * PAGE;
        self
    }

    /// All categories of page `page`.
    pub fn state(&self, page: usize) -> Categories {
        let pagemap = Pagemap::of_self().expect("pagemap");
        state_of(&pagemap, self.address(page))
    }

    /// The written pages of the region, which are write-protected again; counted from its start.
    pub fn take_written(&self, pagemap: &Pagemap) -> Vec<usize> {
        let mut written = PageSet::new();
        let vector = &mut [ScannedRange::EMPTY; 64];
        let scanned = pagemap.scan(&harvesting(self.start, self.end()), vector, |range| {
            written.insert(PageSize::KIB_4.covering(range.start(), range.end()));
        });
        scanned.expect("scan");
        self.positions(&written)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the addresses belong to this region alone, and no Rust reference into them exists.
        let unmapped = unsafe { libc::munmap(self.start as *mut _, self.own) };
        assert_eq!(unmapped, 0, "unmap a region");
    }
}

/// The scan by which trackers harvest.
pub fn harvesting(start: u64, end: u64) -> ScanRequest {
    ScanRequest {
        flags: ScanFlags::WRITE_PROTECT_MATCHING,
        all_of: Categories::WRITTEN,
        returned: Categories::WRITTEN,
        ..ScanRequest::over(start, end)
    }
}

/// All categories of the page at `address`, but for soft-dirty, which some kernels have and which is set
/// in any new mapping; empty if nothing is mapped there.
pub fn state_of(pagemap: &Pagemap, address: u64) -> Categories {
    let known = pagetide_kernel::probe::known_categories();
    let request = ScanRequest {
        returned: known.difference(Categories::SOFT_DIRTY),
        ..ScanRequest::over(address, address + PAGE as u64)
    };
    let vector = &mut [ScannedRange::EMPTY; 2];
    let progress = pagemap.scan_once(&request, vector).expect("scan");
    assert!(progress.filled <= 1, "one page was reported twice");
    vector[0].categories()
}

/// A file without a name, of `pages` pages, each filled with `value`.
pub fn file_of(pages: usize, value: u8) -> File {
    let mut file = tempfile::tempfile().expect("temporary file");
    io::Write::write_all(&mut file, &vec![value; pages * PAGE]).expect("write");
    io::Seek::rewind(&mut file).expect("rewind");
    file
}

/// A memfd of `pages` pages.
pub fn memfd(name: &str, pages: usize) -> File {
    let fd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
    let file = File::from(fd);
    file.set_len((pages * PAGE) as u64).expect("size a memfd");
    file
}

/// Takes bytes out of a file, leaving a hole.
pub fn punch_hole(file: &File, pages: Range<usize>) {
    use rustix::fs::FallocateFlags;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let (offset, length) = ((pages.start * PAGE) as u64, (pages.len() * PAGE) as u64);
    rustix::fs::fallocate(file, flags, offset, length).expect("punch a hole");
}

/// A secret memory file, which even the kernel does not map; `None` where there is none.
pub fn secret_file() -> Option<File> {
    use std::os::fd::FromRawFd;
    // SAFETY: memfd_secret takes flags only and gives a new fd or an error.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the fd is new and owned by nobody else.
    Some(unsafe { File::from_raw_fd(fd) })
}

/// A System V segment of one page with `key`, attached read-write, and removed already.
pub fn attach_system_v(key: i32) -> io::Result<Region> {
    // SAFETY: plain numbers; makes a new segment or fails.
    let id = unsafe { libc::shmget(key, PAGE, libc::IPC_CREAT | libc::IPC_EXCL | 0o600) };
    if id < 0 {
        return Err(io::Error::last_os_error());
    }
    let start = free_address(PAGE);
    // SAFETY: the address is a region's own and nothing is mapped there.
    let at = unsafe { libc::shmat(id, start as *const _, 0) };
    // SAFETY: IPC_RMID takes no buffer; the segment goes once it is detached.
    unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
    assert_eq!(at as u64, start, "shmat");
    Ok(Region {
        start,
        length: PAGE,
        own: slots_of(PAGE),
    })
}

/// read(2) of up to a page into page `page`.
pub fn read_into(region: &Region, page: usize, from: &impl AsRawFd) -> io::Result<usize> {
    let to = region.address(page) as *mut libc::c_void;
    // SAFETY: the page belongs to the region, to which no Rust reference exists.
    let read = unsafe { libc::read(from.as_raw_fd(), to, PAGE) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Names anonymous memory by prctl(2).
pub fn name_memory(region: &Region, name: &std::ffi::CStr) -> io::Result<()> {
    let (start, length) = (region.start, region.length);
    let command = (libc::PR_SET_VMA, libc::PR_SET_VMA_ANON_NAME);
    // SAFETY: the range is a region's, and the name is terminated.
    checked(unsafe { libc::prctl(command.0, command.1, start, length, name.as_ptr()) })
}

/// vmsplice(2) of `length` bytes of page `page`: out of a pipe's reading end, or into its writing end.
pub fn splice(
    pipe: std::os::fd::BorrowedFd<'_>,
    region: &Region,
    page: usize,
    length: usize,
) -> io::Result<usize> {
    let part = libc::iovec {
        iov_base: region.address(page) as *mut libc::c_void,
        iov_len: length,
    };
    // SAFETY: one part, which lies in the region, to which no Rust reference exists.
    let spliced = unsafe { libc::vmsplice(pipe.as_raw_fd(), &part, 1, 0) };
    usize::try_from(spliced).map_err(|_| io::Error::last_os_error())
}
