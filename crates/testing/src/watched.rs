//! Memory under tracking, and what the kernel says of a mapping: what the tests of advice and of moved
//! mappings have in common.

use super::{Region, skipped};
use pagetide_kernel::maps::mappings_with_flags;
use pagetide_kernel::pagemap_scan::Pagemap;
use pagetide_kernel::userfaultfd::WriteProtector;
use std::io;
use std::ops::Range;

/// Tracking of memory of this process.
pub struct Watcher {
    /// The userfaultfd.
    pub protector: WriteProtector,
    /// The pagemap.
    pub pagemap: Pagemap,
}

impl Watcher {
    /// A new one. The test has asked before, by `needs!(wp_async)`, whether there is such a thing.
    pub fn of_self() -> Self {
        Self {
            protector: WriteProtector::of_self().expect("userfaultfd"),
            pagemap: Pagemap::of_self().expect("pagemap"),
        }
    }

    /// Registers the whole region and harvests it: only what is written from here on is reported.
    pub fn settle(&self, region: &Region) {
        let length = region.end() - region.start();
        let registered = self.protector.register(region.start(), length);
        registered.expect("register");
        region.take_written(&self.pagemap);
        assert!(region.take_written(&self.pagemap).is_empty());
    }

    /// The pages written since the last harvest, counted from the start of the region.
    pub fn written(&self, region: &Region) -> Vec<usize> {
        region.take_written(&self.pagemap)
    }
}

/// Gives advice; false, and the test is skipped, if the kernel does not know it.
pub fn advise_or_skip(test: &str, region: &Region, pages: Range<usize>, advice: i32) -> bool {
    match region.advise(pages, advice) {
        Ok(()) => true,
        Err(error) => {
            skipped(test, &format!("madvise with advice {advice}: {error}"));
            false
        }
    }
}

/// The VmFlags of the mapping that holds page `page`, as smaps names them.
pub fn flags_of(region: &Region, page: usize) -> Vec<String> {
    let own = std::process::id().cast_signed();
    let all = mappings_with_flags(own).expect("smaps");
    let address = region.address(page);
    let found = all
        .into_iter()
        .find(|(mapping, _)| (mapping.start..mapping.end).contains(&address));
    found.expect("a mapping").1
}

/// True if VmFlags of the mapping that holds page `page` name `flag`.
pub fn has_flag(region: &Region, page: usize, flag: &str) -> bool {
    flags_of(region, page).iter().any(|name| name == flag)
}

/// How many mappings this process has within the region.
pub fn mapping_count(region: &Region) -> usize {
    let own = std::process::id().cast_signed();
    let all = pagetide_kernel::maps::mappings(own).expect("maps");
    let inside = |start: u64| (region.start()..region.end()).contains(&start);
    all.iter().filter(|mapping| inside(mapping.start)).count()
}

/// The first byte of every page.
pub fn loads(region: &Region) -> Vec<u8> {
    (0..region.page_count())
        .map(|page| region.load(page))
        .collect()
}

/// True if the kernel knows what was asked for and refuses it with `errno`.
pub fn refused_with(result: io::Result<()>, errno: i32) -> bool {
    matches!(result, Err(error) if error.raw_os_error() == Some(errno))
}
