//! Epochs without a store: which pages of own memory were written, for whoever copies, sends or clears them by himself.

use super::baseline::Baseline;
use super::error::OwnMemoryError;
use super::layer::{CarryOver, ReportedWrites};
use super::line::check_pid;
use super::marks::WrittenPages;
use super::placement::{Placement, Places};
use super::watched::{Reference, Watched};
use crate::capture::SIZE;
use crate::rings;
use pagetide_pages::{PageCount, PageRange, PageSet};
use pagetide_tracker::Harvest;
use std::fmt;
use std::sync::Arc;

/// How written pages are looked for.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct OwnTrackerOptions {
    /// As [`OwnMemoryOptions::page_table_limit_bytes`](crate::OwnMemoryOptions::page_table_limit_bytes).
    pub page_table_limit_bytes: Option<u64>,
    /// As [`OwnMemoryOptions::no_buffer_rings`](crate::OwnMemoryOptions::no_buffer_rings). Without this promise each harvest takes
    /// 30 ms more for each io_uring of the process.
    pub no_buffer_rings: bool,
}

/// Tells which pages of memory of this process were written. It stores nothing. All else is as with
/// [`OwnMemory`](crate::OwnMemory): what can change without a page fault counts as written in each epoch, since there is
/// nothing that it could be compared with.
pub struct OwnTracker {
    watched: Watched,
    options: OwnTrackerOptions,
    next: Option<Arc<CarryOver>>,
}

/// The pages that were written in one epoch. Dropped, they count as written again; so call [`OwnHarvest::commit`] when they
/// are dealt with. It may be sent to another thread, and several may be under way.
#[must_use = "a harvest that is dropped is given back"]
pub struct OwnHarvest {
    pid: u32,
    /// By address.
    pages: PageSet,
    places: Arc<Places>,
    teller: WrittenPages,
    /// What was harvested and told, until it is dealt with.
    open: Option<(Harvest, ReportedWrites)>,
}

impl OwnTracker {
    /// Begins to track `placements`. In the first epoch all of it counts as written. No other user of this process, and no
    /// other userfaultfd, may have a part of them.
    pub fn new(
        placements: &[Placement],
        options: OwnTrackerOptions,
    ) -> Result<Self, OwnMemoryError> {
        Ok(Self {
            watched: Watched::new(placements, options.page_table_limit_bytes)?,
            options,
            next: None,
        })
    }

    /// As [`OwnMemory::written_pages`](crate::OwnMemory::written_pages).
    pub fn written_pages(&self) -> WrittenPages {
        self.watched.told.clone()
    }

    /// As [`OwnMemory::set_regions`](crate::OwnMemory::set_regions).
    pub fn set_regions(&mut self, placements: &[Placement]) -> Result<(), OwnMemoryError> {
        self.watched.check_pid()?;
        self.watched.set_places(placements)
    }

    /// Ends an epoch, and tells which pages were written in it. What is written from now on, also while this runs, is in the
    /// next epoch if it is not in this one: whoever copies pages while they are written has to copy them once more then.
    pub fn harvest(&mut self) -> Result<OwnHarvest, OwnMemoryError> {
        self.watched.check_pid()?;
        let has_buffer_rings = self.has_buffer_rings();
        let observed = self.watched.observe(&Reference {
            next: self.next.as_deref(),
            has_buffer_rings: has_buffer_rings && self.next.is_some(),
            is_doubtful: false,
        })?;
        let pages = observed.touched();
        self.next = Some(Arc::new(CarryOver {
            memo: observed.plan.memo,
            lengths: observed.lengths,
            touched: PageSet::new(),
        }));
        Ok(OwnHarvest {
            pid: self.watched.pid,
            pages,
            places: Arc::clone(&self.watched.places),
            teller: self.watched.told.clone(),
            open: Some((observed.harvest, observed.told)),
        })
    }

    /// Copies all memory. As [`OwnMemory::baseline`](crate::OwnMemory::baseline).
    pub fn baseline(&mut self) -> Result<Baseline, OwnMemoryError> {
        let has_buffer_rings = self.has_buffer_rings();
        self.watched.baseline(has_buffer_rings)
    }

    /// Puts memory back. As [`OwnMemory::reset_to`](crate::OwnMemory::reset_to).
    pub fn reset_to(&mut self, baseline: &Baseline) -> Result<PageCount, OwnMemoryError> {
        let has_buffer_rings = self.has_buffer_rings();
        self.watched.reset_to(baseline, has_buffer_rings)
    }

    fn has_buffer_rings(&self) -> bool {
        let pid = self.watched.pid.cast_signed();
        !self.options.no_buffer_rings && rings::may_have_own_buffer_rings(pid)
    }
}

impl OwnHarvest {
    /// The pages that were written, by their place in the space.
    pub fn written(&self) -> PageSet {
        let of_one = |&range: &PageRange| self.places.in_space(range).map(|(_, pages)| pages);
        self.pages.ranges().iter().flat_map(of_one).collect()
    }

    /// The same by address: address of the first byte, and length in bytes; ascending.
    pub fn addresses(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.pages.ranges().iter().map(|&range| {
            let (start, end) = SIZE.span_of(range);
            (start, end - start)
        })
    }

    /// How many pages were written.
    pub fn count(&self) -> PageCount {
        self.pages.count()
    }

    /// They are dealt with.
    pub fn commit(mut self) {
        if let Some((harvest, told)) = self.open.take() {
            harvest.commit();
            told.commit();
        }
    }

    /// They count as written again: the next epoch has them.
    pub fn give_back(self) {}
}

impl Drop for OwnHarvest {
    fn drop(&mut self) {
        let Some(open) = self.open.take() else {
            return;
        };
        if check_pid(self.pid).is_err() {
            // A forked child leaves it to its parent.
            std::mem::forget(open);
            return;
        }
        // More may count as written than was harvested.
        self.teller.mark_pages(&self.pages);
    }
}

impl fmt::Debug for OwnHarvest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnHarvest")
            .field("pages", &self.pages.count())
            .finish_non_exhaustive()
    }
}
