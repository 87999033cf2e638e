//! Going back in time in memory: a copy of all regions, and back to it by writing only what was written since. No store,
//! no hash and no compression: a fuzzer does it a thousand times a second.
//!
//! Harvesting takes the marks of written pages away for whoever comes next. So each baseline has a list of its own of pages
//! that may differ from it, to which every harvest is added; and what a reset finds is told to captures, if there are any.

use super::differing::{Differing, locked};
use super::error::OwnMemoryError;
use super::ground::{Ground, Kind};
use super::placement::Places;
use super::plan::Signs;
use super::shared::{Lengths, lengths};
use super::watched::{Watched, refuse};
use crate::capture::SIZE;
use pagetide_kernel::pagemap_scan::Categories;
use pagetide_pages::{PageCount, PageRange, PageSet};
use pagetide_tracker::Tracker;
use std::fmt;
use std::sync::{Arc, Mutex};

/// Of ranges as long as this it is asked which pages hold anything.
const ASK_FROM: PageCount = PageCount(16);

/// Pages that are compared at once, and as many of zeros.
const AT_ONCE: PageCount = PageCount(64);
static ZEROS: [u8; 64 * 4096] = [0; 64 * 4096];

/// A copy in memory of all regions of an [`OwnMemory`](crate::OwnMemory) or an [`OwnTracker`](crate::OwnTracker). It takes as
/// much memory as the regions hold; what was never touched takes none.
pub struct Baseline {
    places: Arc<Places>,
    /// The pages that hold anything, by address, and their bytes, one range after the other.
    held: PageSet,
    bytes: Vec<u8>,
    /// Where the bytes of each range begin.
    offsets: Vec<usize>,
    differing: Arc<Mutex<Differing>>,
}

/// What may have been written, and is of interest to baselines.
struct WrittenSince {
    ground: Ground,
    harvest: pagetide_tracker::Harvest,
    signs: Signs,
    /// What was harvested and told.
    written: PageSet,
    /// What is not tracked: it may differ, and is compared.
    doubtful: PageSet,
    lengths: Lengths,
}

impl Baseline {
    fn of(places: &Arc<Places>, held: PageSet) -> Self {
        let (mut offsets, mut end) = (Vec::new(), 0);
        for range in held.ranges() {
            offsets.push(end);
            end += SIZE.bytes_of(range.count()) as usize;
        }
        Self {
            places: Arc::clone(places),
            held,
            bytes: vec![0; end],
            offsets,
            differing: Arc::default(),
        }
    }

    /// `pages`, in parts, with what they held.
    fn parts(&self, pages: &PageSet) -> Vec<(PageRange, &[u8])> {
        let mut parts = Vec::new();
        for &range in pages.intersect(&self.held).ranges() {
            let ranges = self.held.ranges();
            let number = ranges.partition_point(|held| held.start() <= range.start()) - 1;
            let from = PageCount(range.start().0 - ranges[number].start().0);
            let from = self.offsets[number] + SIZE.bytes_of(from) as usize;
            let length = SIZE.bytes_of(range.count()) as usize;
            parts.push((range, &self.bytes[from..from + length]));
        }
        for range in pages.subtract(&self.held).ranges() {
            let zeros = range.pieces(AT_ONCE);
            parts.extend(zeros.map(|part| {
                let length = SIZE.bytes_of(part.count()) as usize;
                (part, &ZEROS[..length])
            }));
        }
        parts
    }
}

impl fmt::Debug for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Baseline")
            .field("held", &self.held.count())
            .finish_non_exhaustive()
    }
}

impl Watched {
    /// Harvests for baselines.
    fn find(
        &mut self,
        before: &Lengths,
        has_buffer_rings: bool,
    ) -> Result<WrittenSince, OwnMemoryError> {
        let (ground, _) = self.look()?;
        let pid = self.pid.cast_signed();
        let signs = Signs::look(pid, &ground.mappings, has_buffer_rings);
        let harvest = self.tracker.harvest(&ground.tracked())?;
        refuse(&harvest.layout().refused)?;
        let untracked = harvest.layout().refused.iter().map(|found| found.pages);
        let untracked: PageSet = untracked.collect();
        let (lengths, changed) = lengths(&ground, &self.files, Some(before));
        let is_tracked = |kind| matches!(kind, Kind::Private | Kind::SharedAlone);
        let doubtful = ground.pages(|kind| !is_tracked(kind)).union(&untracked);
        let doubtful = doubtful.union(&changed);
        let written = harvest.written().union(&self.told.take());
        Ok(WrittenSince {
            ground,
            harvest,
            signs,
            written,
            doubtful,
            lengths,
        })
    }

    /// Tells all for whom it is of interest that `pages` were written, but `but`.
    fn tell_written(&mut self, pages: &PageSet, but: Option<&Arc<Mutex<Differing>>>) {
        if self.is_followed {
            self.told.mark_pages(pages);
        }
        self.add_to_baselines(pages, but);
    }

    /// Adds `pages` to what may differ from baselines.
    pub fn add_to_baselines(&mut self, pages: &PageSet, but: Option<&Arc<Mutex<Differing>>>) {
        self.baselines.retain(|baseline| match baseline.upgrade() {
            None => false,
            Some(other) => {
                if but.is_none_or(|but| !Arc::ptr_eq(but, &other)) {
                    locked(&other).add(pages);
                }
                true
            }
        });
    }

    /// Copies all memory.
    pub fn baseline(&mut self, has_buffer_rings: bool) -> Result<Baseline, OwnMemoryError> {
        self.check_pid()?;
        self.bring_all()?;
        let found = self.find(&Lengths::new(), has_buffer_rings)?;
        let (ground, report) = self.look()?;
        let all = self.places.mapped();
        let empty = self.empty(&ground, &report)?;
        let private = ground.pages(|kind| kind == Kind::Private);
        let held = self
            .tables()
            .having(&private, Categories::PRESENT | Categories::SWAPPED)?;
        let held = held.union(&all.subtract(&private).subtract(&empty));
        let mut baseline = Baseline::of(&self.places, held);
        let ranges = baseline.held.ranges();
        self.memory.read_pages(SIZE, ranges, &mut baseline.bytes)?;
        *locked(&baseline.differing) = Differing {
            pages: PageSet::new(),
            unseen: found.unseen(),
            is_all: found.signs.unlisted.is_some(),
            lengths: found.lengths,
        };
        self.tell_written(&found.written, None);
        self.baselines.push(Arc::downgrade(&baseline.differing));
        found.harvest.commit();
        Ok(baseline)
    }

    /// Puts the memory back to `baseline`, and returns how many pages were written.
    pub fn reset_to(
        &mut self,
        baseline: &Baseline,
        has_buffer_rings: bool,
    ) -> Result<PageCount, OwnMemoryError> {
        self.check_pid()?;
        let is_of_us = self
            .baselines
            .iter()
            .any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(&baseline.differing)));
        if !is_of_us || !Arc::ptr_eq(&baseline.places, &self.places) {
            return Err(OwnMemoryError::OtherBaseline);
        }
        self.bring_all()?;
        let differing = std::mem::take(&mut *locked(&baseline.differing));
        let found = self.find(&differing.lengths, has_buffer_rings);
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                *locked(&baseline.differing) = differing;
                return Err(error);
            }
        };
        let unlisted = found.signs.unlisted.is_some();
        let sure = found.written.union(&differing.pages);
        let unseen = found.unseen();
        let mut compared = found.doubtful.union(&unseen).union(&differing.unseen);
        if unlisted || differing.is_all {
            compared = self.places.mapped();
        }
        let compared = compared.subtract(&sure);
        let put = self.put_baseline(baseline, &found.ground, &sure, &compared);
        let all = sure.union(&compared);
        let put = match put {
            Ok(put) => put,
            Err(error) => {
                // The harvest is given back; what was known before is known again.
                let mut known = locked(&baseline.differing);
                *known = differing;
                known.add(&all);
                drop(known);
                self.tell_written(&all, Some(&baseline.differing));
                return Err(error);
            }
        };
        *locked(&baseline.differing) = Differing {
            pages: PageSet::new(),
            unseen,
            is_all: unlisted,
            lengths: found.lengths,
        };
        self.tell_written(&sure.union(&put), Some(&baseline.differing));
        // What was put there reads written: it is what the baseline has.
        self.tracker.settle(&put)?;
        found.harvest.commit();
        Ok(put.count())
    }

    /// Puts back the `sure` pages, and those of the `compared` ones that differ; returns what was written.
    fn put_baseline(
        &self,
        baseline: &Baseline,
        ground: &Ground,
        sure: &PageSet,
        compared: &PageSet,
    ) -> Result<PageSet, OwnMemoryError> {
        let sure = sure.intersect(&self.places.mapped());
        let sure = self.holding(baseline, ground, sure)?;
        let mut wanted = sure.ranges().to_vec();
        let compared = self.holding(baseline, ground, compared.clone())?;
        for (range, then) in baseline.parts(&compared) {
            let thens = then.chunks(SIZE.bytes_of(AT_ONCE) as usize);
            for (part, then) in range.pieces(AT_ONCE).zip(thens) {
                let mut now = vec![0; then.len()];
                self.memory.read_pages(SIZE, &[part], &mut now)?;
                let then = then.chunks_exact(SIZE.len());
                let pages = part.pages().zip(now.chunks_exact(SIZE.len()).zip(then));
                let differ = pages.filter(|(_, (now, then))| now != then);
                wanted.extend(differ.map(|(page, _)| PageRange::single(page)));
            }
        }
        let wanted: PageSet = wanted.into_iter().collect();
        let parts = baseline.parts(&wanted);
        let address = |range: &PageRange| SIZE.address_of(range.start());
        let pieces: Vec<(u64, &[u8])> = parts
            .iter()
            .map(|(range, bytes)| (address(range), *bytes))
            .collect();
        match self.memory.fill_all(&pieces) {
            Ok(()) => Ok(wanted),
            Err((done, error)) => Err(OwnMemoryError::PutBackInPart {
                not_put_back: parts[done..].iter().map(|(range, _)| *range).collect(),
                source: Box::new(error.into()),
            }),
        }
    }

    /// `pages` without those that hold nothing now and held nothing then.
    fn holding(
        &self,
        baseline: &Baseline,
        ground: &Ground,
        pages: PageSet,
    ) -> Result<PageSet, OwnMemoryError> {
        let is_long = |range: &&PageRange| range.count() >= ASK_FROM;
        let long: PageSet = pages.ranges().iter().filter(is_long).copied().collect();
        if long.is_empty() {
            return Ok(pages);
        }
        let long = long.intersect(&ground.pages(|kind| kind == Kind::Private));
        let held = Categories::PRESENT | Categories::SWAPPED;
        let held = self.tables().having(&long, held)?;
        let held = held.union(&baseline.held.intersect(&long));
        Ok(pages.subtract(&long).union(&held))
    }
}

impl WrittenSince {
    /// What the kernel may write to from now on without a trace.
    fn unseen(&self) -> PageSet {
        if self.signs.under_way {
            self.signs.buffers.union(&self.written)
        } else {
            self.signs.buffers.clone()
        }
    }
}
