//! What happens to one process between stopping and letting go: deciding which of its pages to copy. The
//! rounds of copying before that are in `precopy`, the copying itself is in `capture`.

use crate::capture::{CaptureError, Copied, SIZE, Source};
use crate::file_pages::{FileHashes, file_page};
use crate::files::{self, FileReport, Files};
use crate::layout::{Layout, Watch};
use crate::member::Member;
use crate::memo::Memo;
use crate::objects::{in_file, shown_in};
use crate::precopy::Precopied;
use crate::report::NotTracked;
use crate::rings::{self, AsynchronousIo};
use crate::take::TakeError;
use pagetide_kernel::maps::{self, Mapping};
use pagetide_kernel::pagemap_scan::{Categories, ScanError, ScanRequest, ScannedRange};
use pagetide_pages::{PageRange, PageSet};
use pagetide_process::{StoppedProcess, ThreadState};
use pagetide_snapshot::{PageHash, PageState, View};
use pagetide_tracker::{Harvest, Tracker};
use std::time::{Duration, Instant};

/// Swap types from here on are not swap areas but markers and the like (include/linux/swap.h).
const FIRST_PSEUDO_SWAP_TYPE: u8 = 23;

/// Which private file pages the process has its own copies of.
#[derive(Default)]
pub(crate) struct Copies {
    pub in_memory: PageSet,
    pub in_swap: PageSet,
}

/// What the stop window is entered with.
pub(crate) struct Window<'a> {
    /// The parent; a process of which nothing is remembered from it is copied in full.
    pub parent: Option<&'a View>,
    pub precopied: &'a Precopied,
    /// Pages that an earlier attempt copied, and that must be copied again.
    pub again: &'a PageSet,
    pub report: &'a FileReport,
    pub hashes: &'a FileHashes,
    pub io: &'a AsynchronousIo,
}

/// The stopped process before anything is copied.
pub(crate) struct Looked {
    pub threads: Vec<ThreadState>,
    pub layout: Layout,
    written: PageSet,
    pub refused: Vec<NotTracked>,
    pub scan: Duration,
}

/// What came out of the stop window.
pub(crate) struct Stopped {
    pub layout: Layout,
    pub threads: Vec<ThreadState>,
    /// States of pages without bytes, in the order in which they hold.
    pub states: Vec<(PageRange, PageState)>,
    /// Pages that are those of their file.
    pub in_file: PageSet,
    /// Pages of which that turned out when they were read.
    pub found_in_file: Vec<(pagetide_pages::PageIndex, PageHash)>,
    pub memo: Memo,
    pub refused: Vec<NotTracked>,
    /// Pages that were copied, or that have a state in `states`.
    pub read: PageSet,
    pub unreadable: PageSet,
    /// Pages copied, in the window and before.
    pub copied: PageSet,
    /// Pages copied in the window.
    pub window: PageSet,
    pub scan: Duration,
}

impl Member {
    /// Scans `range` for pages with one of `any_of`, handing each range and its `returned` on.
    fn scan(
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
        self.space.pagemap.scan(&request, vector, |found| {
            each(
                SIZE.covering(found.start(), found.end()),
                found.categories(),
            );
        })
    }

    /// The mappings as they are now. Without a tracker, or if its word is not enough, all are compared.
    pub fn layout(
        &self,
        trusts_tracker: bool,
        is_object: impl Fn(&Mapping) -> bool,
    ) -> Result<Layout, TakeError> {
        let pid = self.pid();
        let mappings = maps::mappings(pid)?;
        if mappings.is_empty() {
            return Err(TakeError::Ended { pid });
        }
        let holds = |pages| {
            let mut holds = false;
            let any_of = Categories::PRESENT | Categories::SWAPPED;
            let scanned = self.scan(pages, any_of, Categories::empty(), |_, _| holds = true);
            holds || scanned.is_err()
        };
        let trackable = self.tracking.is_some() && trusts_tracker;
        Ok(Layout::new(mappings, trackable, holds, is_object))
    }

    /// What is remembered from the parent.
    pub fn memo_of(&self, parent: Option<&View>) -> Option<&Memo> {
        self.memo.as_ref().filter(|_| parent.is_some())
    }

    /// The stopped process: its threads, its mappings, and what was written.
    pub fn look(
        &mut self,
        process: &mut StoppedProcess,
        window: &Window<'_>,
        files: &Files,
        harvests: &mut Vec<(i32, Harvest)>,
    ) -> Result<Looked, TakeError> {
        let pid = self.pid();
        let threads = process.thread_states()?;
        let distrusted = self
            .memo_of(window.parent)
            .is_some_and(|memo| memo.unlisted_ring);
        let is_object = |mapping: &Mapping| files.is_object(mapping, window.report);
        let layout = self.layout(!window.io.unlisted_ring && !distrusted, is_object)?;
        let started = Instant::now();
        let mut refused = Vec::new();
        let mut written = PageSet::new();
        if let Some(tracking) = self.tracking.as_mut() {
            let harvest = tracking.tracker.harvest(&layout.tracked)?;
            written = harvest.written().clone();
            let not_tracked = |found| not_tracked(pid, found);
            refused.extend(harvest.layout().refused.iter().map(not_tracked));
            harvests.push((pid, harvest));
        }
        Ok(Looked {
            threads,
            layout,
            written,
            refused,
            scan: started.elapsed(),
        })
    }

    /// Copies what has to be copied of the stopped process.
    pub fn copy(
        &self,
        looked: Looked,
        window: &Window<'_>,
        mut copied: Copied<'_>,
    ) -> Result<Stopped, TakeError> {
        let plan = self.plan(&looked, window)?;
        let layout = looked.layout;
        let parent = window
            .parent
            .filter(|_| self.memo.is_some())
            .and_then(|view| Some((view, view.space_index(&self.names.space)?)));
        let source = Source {
            memory: &self.space.memory,
            pagemap: &self.space.pagemap,
            parent,
            knows_guards: self.space.knows_guards,
        };
        source.read(&plan.read, &layout.anonymous, &mut copied)?;
        let file_hash = |page| {
            let mapping = layout.mapping_at(page)?;
            let key = files::key(mapping);
            window.report.standing(key)?;
            window.hashes.of(key, file_page(mapping, page))
        };
        source.compare(&plan.compare, &layout.anonymous, &file_hash, &mut copied)?;
        let mut states = copied.states;
        let (unreadable, pages) = (copied.unreadable, copied.pages);
        let zeros = plan.zero.ranges().iter();
        states.extend(zeros.map(|&range| (range, PageState::Zero)));
        let shown = plan.shown.ranges().iter();
        states.extend(shown.map(|&range| (range, PageState::Shown)));
        self.name_guards(&plan.shown, &mut states)?;
        let unbacked = unreadable.ranges().iter();
        states.extend(unbacked.map(|&range| (range, PageState::Unbacked)));
        self.name_guards(&unreadable, &mut states)?;
        let precopied = &window.precopied.copied;
        Ok(Stopped {
            read: pages.union(&plan.read),
            copied: precopied.union(&pages.subtract(&unreadable)),
            window: pages,
            layout,
            threads: looked.threads,
            states,
            in_file: plan.in_file,
            found_in_file: copied.in_file,
            memo: plan.memo,
            refused: looked.refused,
            unreadable,
            scan: looked.scan,
        })
    }

    /// Records the guard regions among `pages`.
    fn name_guards(
        &self,
        pages: &PageSet,
        states: &mut Vec<(PageRange, PageState)>,
    ) -> Result<(), CaptureError> {
        if self.space.knows_guards {
            for &range in pages.ranges() {
                self.scan(range, Categories::GUARD, Categories::GUARD, |pages, _| {
                    states.push((pages, PageState::Guard));
                })?;
            }
        }
        Ok(())
    }

    /// Which pages to read, to compare, and to record without reading.
    fn plan(&self, looked: &Looked, window: &Window<'_>) -> Result<Plan, TakeError> {
        let Looked {
            layout, written, ..
        } = looked;
        let refused: PageSet = looked
            .refused
            .iter()
            .map(|refused| SIZE.covering(refused.start, refused.end))
            .collect();
        let tracked: PageSet = layout.tracked.iter().copied().collect();
        let tracked = tracked.subtract(&refused);
        let compared = layout.set(|_, watch| watch == Watch::Compare);
        let mut compare = compared.union(&refused);
        let over_file = layout.set(|_, watch| watch == Watch::TrackOverFile);
        let over_file = over_file.subtract(&refused);
        let copies = self.private_copies(&over_file)?;

        // Buffers that the kernel may write to unseen, since the last snapshot or from now on.
        let buffers = match window.io.any {
            false => PageSet::new(),
            true => rings::asynchronous_io(self.pid(), &layout.mappings)
                .buffers
                .union(&window.io.buffers),
        };
        let mut read = written
            .union(&window.precopied.postponed)
            .union(&buffers)
            .intersect(&tracked);

        // Private mappings of files that stand for their pages show the file wherever there is no copy.
        let stands = |mapping: &Mapping, watch| {
            let over_file = watch == Watch::TrackOverFile || watch == Watch::Compare;
            over_file && !mapping.shared && window.report.standing(files::key(mapping)).is_some()
        };
        let standing = layout.set(stands);
        let shows_file = standing
            .intersect(&over_file)
            .subtract(&copies.in_memory)
            .subtract(&copies.in_swap);
        let mut in_file_now = shows_file.clone();

        let mut was_copied = PageSet::new();
        let mut shown_then = PageSet::new();
        match self.memo_of(window.parent).zip(window.parent) {
            None => {
                read = read.union(&tracked.subtract(&window.precopied.covered));
            }
            Some((memo, view)) => {
                // A private copy that is gone shows the file again, and that counts as no write.
                was_copied = memo.private_copies.intersect(&over_file);
                read = read.union(&was_copied.subtract(&copies.in_memory));
                read = read.union(&memo.buffers.union(&memo.in_flight).intersect(&tracked));
                let unchanged = layout.set(|mapping, watch| {
                    watch == Watch::TrackOverFile
                        && window.report.unchanged_since(mapping, &memo.settled)
                });
                let doubtful = over_file.subtract(&standing).subtract(&unchanged);
                compare = compare.union(&doubtful.subtract(&copies.in_memory));
                if let Some(space) = view.space_index(&self.names.space) {
                    // The parent says of these what holds still.
                    let told = in_file(view, space, &unchanged.intersect(&shows_file));
                    in_file_now = shows_file
                        .subtract(&told)
                        .union(&shows_file.intersect(&read))
                        .union(&shows_file.intersect(window.again));
                    // A file that may change can no longer stand for its pages.
                    let all_private = over_file.union(&compare).subtract(&standing);
                    read = read.union(&in_file(view, space, &all_private));
                    shown_then = shown_in(view, space);
                }
            }
        }
        let known = self.known_in_file(layout, &in_file_now, window);
        read = read.subtract(&known).union(&in_file_now.subtract(&known));

        // What was copied before and may be stale now is not compared with the parent: it must be put
        // again whatever it is.
        let stale = window
            .again
            .union(&window.precopied.covered.intersect(&compare));
        let stale = stale.intersect(&tracked.union(&compare));
        read = read.union(&stale.subtract(&shows_file));

        let mut zero = layout.reserved.clone();
        for &range in layout.set(|_, watch| watch == Watch::CompareHeld).ranges() {
            zero.insert(range);
            let any_of = Categories::PRESENT | Categories::SWAPPED;
            self.scan(range, any_of, Categories::empty(), |pages, _| {
                zero.remove(pages);
                compare.insert(pages);
            })
            .map_err(CaptureError::from)?;
        }
        // What was shown of an object then is not what the process itself had there.
        read = read.union(&compare.intersect(&shown_then)).subtract(&zero);
        let may_be_in_swap = was_copied.union(written);
        Ok(Plan {
            compare: compare.subtract(&read).subtract(&zero),
            read,
            zero,
            in_file: known,
            shown: layout.set(|_, watch| watch == Watch::Object),
            memo: Memo {
                private_copies: copies
                    .in_memory
                    .union(&copies.in_swap.intersect(&may_be_in_swap)),
                settled: Vec::new(),
                buffers,
                in_flight: match window.io.any {
                    true => written.clone(),
                    false => PageSet::new(),
                },
                unlisted_ring: window.io.unlisted_ring,
            },
        })
    }

    /// Those of `pages` for which the hash of what their file has is known.
    fn known_in_file(&self, layout: &Layout, pages: &PageSet, window: &Window<'_>) -> PageSet {
        let mut known = PageSet::new();
        for (mapping, _) in layout.each().filter(|(mapping, _)| mapping.has_file()) {
            let all = mapping.pages();
            let first = file_page(mapping, all.start());
            let shown = PageRange::with_count(first, all.count());
            for (part, _) in window.hashes.known(files::key(mapping), shown) {
                let start = all.start().0 + (part.start().0 - first.0);
                let part = PageRange::with_count(pagetide_pages::PageIndex(start), part.count());
                known.extend(pages.within(part).ranges().iter().copied());
            }
        }
        known
    }

    /// The pages of `over_file` (private mappings of files) that the process has its own copies of.
    pub fn private_copies(&self, over_file: &PageSet) -> Result<Copies, TakeError> {
        let mut copies = Copies::default();
        let mut slots = PageSet::new();
        let any_of = Categories::PRESENT | Categories::SWAPPED;
        let returned = any_of | Categories::FILE;
        for &range in over_file.ranges() {
            self.scan(range, any_of, returned, |pages, found| {
                if found.contains(Categories::PRESENT) {
                    if !found.contains(Categories::FILE) {
                        copies.in_memory.insert(pages);
                    }
                } else {
                    slots.insert(pages);
                }
            })
            .map_err(CaptureError::from)?;
        }
        // A slot that is not in memory is a swapped copy or a mere marker. Where nothing can be
        // swapped out it is a marker.
        if rustix::system::sysinfo().totalswap > 0 {
            for &range in slots.ranges() {
                for page in range.pages() {
                    let entries = self.space.pagemap.entries(PageRange::single(page));
                    let slot = entries
                        .ok()
                        .and_then(|entries| entries.first()?.swap_slot());
                    if slot.is_none_or(|(kind, _)| kind < FIRST_PSEUDO_SWAP_TYPE) {
                        copies.in_swap.insert(PageRange::single(page));
                    }
                }
            }
        }
        Ok(copies)
    }
}

/// What to do with which pages.
struct Plan {
    read: PageSet,
    compare: PageSet,
    zero: PageSet,
    in_file: PageSet,
    shown: PageSet,
    memo: Memo,
}

fn not_tracked(pid: i32, refused: &pagetide_tracker::Refused) -> NotTracked {
    let (start, end) = SIZE.span_of(refused.pages);
    NotTracked {
        pid,
        start,
        end,
        reason: refused.reason.to_string(),
    }
}
