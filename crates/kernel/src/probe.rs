//! What this kernel allows this user, answered by doing it on a page of our own.
//!
//! Version numbers are not asked: distributions carry features back and switch them off. A backend
//! is usable if the whole round trip works here: protect, see clean, write, see written.

#![allow(unsafe_code)]

use crate::clear_refs::ClearRefs;
use crate::pagemap_scan::{Categories, Pagemap, ScanFlags, ScanRequest, ScannedRange};
use crate::userfaultfd::WriteProtector;
use pagetide_pages::{PageIndex, PageRange, PageSize};
use rustix::mm::{MapFlags, ProtFlags};

/// What one kernel and user allow.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Probe {
    /// Release of the running kernel, as uname(2) gives it.
    pub kernel: String,
    /// Asynchronous write-protection with PAGEMAP_SCAN; the reason if it does not work.
    pub wp_async: Result<(), String>,
    /// Soft-dirty bits; the reason if they do not work.
    pub soft_dirty: Result<(), String>,
    /// PAGEMAP_SCAN answers at all.
    pub pagemap_scan: bool,
    /// The categories that PAGEMAP_SCAN knows.
    pub categories: Categories,
}

impl Probe {
    /// Asks the running kernel. Leaves nothing behind.
    pub fn of_this_kernel() -> Self {
        let categories = known_categories();
        Self {
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            wp_async: try_wp_async(),
            soft_dirty: try_soft_dirty(),
            pagemap_scan: !categories.is_empty(),
            categories,
        }
    }
}

/// The categories out of all that are known here which this kernel's scan accepts; empty if there is
/// no PAGEMAP_SCAN.
pub fn known_categories() -> Categories {
    let Ok(pagemap) = Pagemap::of_self() else {
        return Categories::empty();
    };
    let accepted = |category: &Categories| {
        let request = ScanRequest {
            returned: *category,
            ..ScanRequest::over(0, 0x1000)
        };
        let vector = &mut [ScannedRange::EMPTY];
        pagemap.scan_once(&request, vector).is_ok()
    };
    Categories::all().iter().filter(accepted).collect()
}

/// A private anonymous page of our own, unmapped on drop.
struct OwnPage {
    address: *mut u8,
}

impl OwnPage {
    fn map() -> Result<Self, String> {
        // SAFETY: a new anonymous mapping at an address of the kernel's choice overlaps nothing.
        let address = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                PageSize::KIB_4.len(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        };
        match address {
            Ok(address) => Ok(Self {
                address: address.cast(),
            }),
            Err(errno) => Err(format!("cannot map a page: {errno}")),
        }
    }

    fn start(&self) -> u64 {
        self.address as u64
    }

    fn store(&self, value: u8) {
        // SAFETY: the mapping is writable, belongs to this struct alone and lives as long as it.
        unsafe { self.address.write_volatile(value) };
    }
}

impl Drop for OwnPage {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length, and no reference to it exists.
        let _ = unsafe { rustix::mm::munmap(self.address.cast(), PageSize::KIB_4.len()) };
    }
}

fn why(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn try_wp_async() -> Result<(), String> {
    let pagemap = Pagemap::of_self().map_err(|error| why(&error))?;
    let protector = WriteProtector::of_self().map_err(|error| why(&error))?;
    let page = OwnPage::map()?;
    page.store(1);
    let length = PageSize::KIB_4.bytes();
    protector
        .register(page.start(), length)
        .map_err(|error| why(&error))?;
    let harvest = || {
        let request = ScanRequest {
            flags: ScanFlags::WRITE_PROTECT_MATCHING,
            all_of: Categories::WRITTEN,
            returned: Categories::WRITTEN,
            ..ScanRequest::over(page.start(), page.start() + length)
        };
        let vector = &mut [ScannedRange::EMPTY];
        let progress = pagemap.scan_once(&request, vector);
        progress.map(|p| p.filled).map_err(|error| why(&error))
    };
    let first = harvest()?;
    let second = harvest()?;
    page.store(2);
    let third = harvest()?;
    match (first, second, third) {
        (1, 0, 1) => Ok(()),
        _ => Err("a page of our own was not reported as it was written".to_owned()),
    }
}

/// A mapping that another thread makes beside the page may become one with it, and mark it all as dirty.
const CLEARING_ATTEMPTS: usize = 100;

/// `clear_refs` accepts the request even where the kernel has no soft-dirty bits, so only a store
/// that is seen proves them. Clearing hits the whole of this process, which nobody tracks that way.
///
/// The bits alone are not enough: pages that change places as whole page tables keep theirs. So the frame
/// numbers are needed too, which the kernel hides from most users.
fn try_soft_dirty() -> Result<(), String> {
    let page = OwnPage::map()?;
    let entry = || {
        let pagemap = Pagemap::of_self().map_err(|error| why(&error))?;
        let index = PageSize::KIB_4.index_of(page.start());
        let entries = pagemap
            .entries(PageRange::new(index, PageIndex(index.0 + 1)))
            .map_err(|error| why(&error))?;
        entries
            .first()
            .copied()
            .ok_or("the pagemap has no entry for a page".to_owned())
    };
    page.store(1);
    let clear_refs = ClearRefs::of_self().map_err(|error| why(&error))?;
    let mut cleared = false;
    for _ in 0..CLEARING_ATTEMPTS {
        clear_refs.clear_soft_dirty().map_err(|error| why(&error))?;
        cleared = !entry()?.is_soft_dirty();
        if cleared {
            break;
        }
    }
    page.store(2);
    let after = entry()?;
    match (cleared, after.is_soft_dirty()) {
        (_, false) => Err("this kernel has no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)".to_owned()),
        (false, true) => Err("soft-dirty bits cannot be cleared".to_owned()),
        (true, true) if after.frame_number().is_none() => {
            Err("the frame numbers of pages are hidden (CAP_SYS_ADMIN is needed)".to_owned())
        }
        (true, true) => Ok(()),
    }
}
