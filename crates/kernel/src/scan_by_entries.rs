//! What a reading scan reports, worked out from the entries of `/proc/PID/pagemap`: for kernels before
//! Linux 6.7, which have no PAGEMAP_SCAN. Ten times slower, and with less to tell: an entry does not say
//! whether a page is the shared zero page, mapped as a huge one, or registered with a userfaultfd.
//!
//! The scan passes over holes between mappings; their entries read as empty pages. A request must
//! therefore span mapped memory only, or ask for something that empty pages do not have.

use crate::pagemap::PagemapEntry;
use crate::pagemap_scan::{Categories, Pagemap, ScanError, ScanRequest, ScannedRange};
use pagetide_pages::{PageRange, PageSize};

const SIZE: PageSize = PageSize::KIB_4;

/// What an entry tells.
pub const TOLD_BY_ENTRIES: Categories = Categories::WRITTEN
    .union(Categories::FILE)
    .union(Categories::PRESENT)
    .union(Categories::SWAPPED)
    .union(Categories::SOFT_DIRTY)
    .union(Categories::GUARD);

fn categories_of(entry: PagemapEntry) -> Categories {
    let mut categories = Categories::empty();
    categories.set(Categories::WRITTEN, !entry.is_write_protected());
    categories.set(Categories::FILE, entry.is_file_or_shared());
    categories.set(Categories::PRESENT, entry.is_present());
    categories.set(Categories::SWAPPED, entry.is_swapped());
    categories.set(Categories::SOFT_DIRTY, entry.is_soft_dirty());
    categories.set(Categories::GUARD, entry.is_guard());
    categories
}

/// The names of categories, for people.
pub(crate) fn names(categories: Categories) -> String {
    let names: Vec<&str> = categories.iter_names().map(|(name, _)| name).collect();
    if names.is_empty() {
        "the pages cannot be write-protected".to_owned()
    } else {
        names.join(", ")
    }
}

fn matches(request: &ScanRequest, categories: Categories) -> bool {
    let flipped = categories.symmetric_difference(request.inverted);
    let any = request.any_of.is_empty() || flipped.intersects(request.any_of);
    flipped.contains(request.all_of) && any
}

impl Pagemap {
    /// As [`Pagemap::scan`] for a request without flags, by reading entries. Only categories of
    /// [`TOLD_BY_ENTRIES`] may be asked for. See the head of the file for what the range may span.
    pub fn scan_by_entries(
        &self,
        request: &ScanRequest,
        mut each: impl FnMut(&ScannedRange),
    ) -> Result<(), ScanError> {
        let (start, end) = (request.start, request.end);
        let asked = request.inverted | request.all_of | request.any_of | request.returned;
        let untold = asked.difference(TOLD_BY_ENTRIES);
        if !request.flags.is_empty() || !untold.is_empty() {
            return Err(ScanError::NotTold { start, end, untold });
        }
        let mut left = match request.max_pages {
            0 => u64::MAX,
            pages => pages,
        };
        // The range that grows as long as its pages are alike.
        let mut run: Option<(PageRange, Categories)> = None;
        let hand_over = |(pages, categories): (PageRange, Categories),
                         each: &mut dyn FnMut(&ScannedRange)| {
            let (start, end) = SIZE.span_of(pages);
            each(&ScannedRange::new(start, end, categories));
        };
        let read = self.each_entry(SIZE.covering(start, end), |page, entry| {
            let categories = categories_of(entry);
            if left == 0 || !matches(request, categories) {
                return;
            }
            left -= 1;
            let reported = categories & request.returned;
            let page = PageRange::single(page);
            run = match run.take() {
                Some((pages, alike)) if alike == reported && pages.end() == page.start() => {
                    Some((PageRange::new(pages.start(), page.end()), alike))
                }
                other => {
                    if let Some(done) = other {
                        hand_over(done, &mut each);
                    }
                    Some((page, reported))
                }
            };
        });
        if let Some(last) = run {
            hand_over(last, &mut each);
        }
        match read {
            Ok(()) => Ok(()),
            Err(_) if !self.is_alive() => Err(ScanError::SpaceGone { start, end }),
            Err(error) => Err(ScanError::Kernel {
                start,
                end,
                source: std::io::Error::other(error),
            }),
        }
    }
}
