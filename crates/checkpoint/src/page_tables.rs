//! What the page tables of one address space say of ranges of it. Nothing is read or changed.

use crate::capture::SIZE;
use pagetide_kernel::pagemap_scan::{Categories, Pagemap, ScanError, ScanRequest, ScannedRange};
use pagetide_pages::{PageRange, PageSet};

/// The page tables of one address space.
#[derive(Clone, Copy)]
pub(crate) struct PageTables<'a> {
    pub pagemap: &'a Pagemap,
    /// The kernel's scan knows guard regions.
    pub knows_guards: bool,
}

/// What the page tables say of private mappings of files.
#[derive(Default)]
pub(crate) struct Private {
    /// Pages that are, or may be, the process's own copies.
    pub copies: PageSet,
    /// Guard regions.
    pub guards: PageSet,
}

impl PageTables<'_> {
    /// Scans `range` for pages with one of `any_of`, handing each range and its `returned` on.
    pub fn scan(
        &self,
        range: PageRange,
        any_of: Categories,
        returned: Categories,
        mut each: impl FnMut(PageRange, Categories),
    ) -> Result<(), ScanError> {
        let (start, end) = SIZE.span_of(range);
        let request = ScanRequest {
            any_of,
            returned,
            ..ScanRequest::over(start, end)
        };
        let vector = &mut [ScannedRange::EMPTY; 256];
        self.pagemap.scan(&request, vector, |found| {
            each(
                SIZE.covering(found.start(), found.end()),
                found.categories(),
            );
        })
    }

    /// Those of `pages` that have one of `any_of`.
    pub fn having(&self, pages: &PageSet, any_of: Categories) -> Result<PageSet, ScanError> {
        let mut having = Vec::new();
        for &range in pages.ranges() {
            self.scan(range, any_of, Categories::empty(), |pages, _| {
                having.push(pages);
            })?;
        }
        Ok(having.into_iter().collect())
    }

    /// The guard regions among `pages`, as far as they can be told.
    pub fn guards(&self, pages: &PageSet) -> Result<PageSet, ScanError> {
        if self.knows_guards {
            self.having(pages, Categories::GUARD)
        } else {
            Ok(PageSet::new())
        }
    }

    /// Copies and guards in `over_file` (private mappings of files). A slot that is neither in memory
    /// nor a guard is taken for a copy: it may be one in swap.
    pub fn private_pages(&self, over_file: &PageSet) -> Result<Private, ScanError> {
        let (mut copies, mut guards) = (Vec::new(), Vec::new());
        let guard = if self.knows_guards {
            Categories::GUARD
        } else {
            Categories::empty()
        };
        let any_of = Categories::PRESENT | Categories::SWAPPED;
        let returned = any_of | Categories::FILE | guard;
        for &range in over_file.ranges() {
            self.scan(range, any_of, returned, |pages, found| {
                if found.contains(Categories::GUARD) {
                    guards.push(pages);
                } else if !found.contains(Categories::PRESENT | Categories::FILE) {
                    copies.push(pages);
                }
            })?;
        }
        Ok(Private {
            copies: copies.into_iter().collect(),
            guards: guards.into_iter().collect(),
        })
    }
}
