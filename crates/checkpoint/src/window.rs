//! What happens to one process between stopping and letting go: deciding which of its pages to copy. The
//! rounds of copying before that are in `precopy`, the copying itself is in `capture`.

use crate::advice::Advice;
use crate::capture::{ASK_FROM, CaptureError, Copied, SIZE, Source};
use crate::compared::ComparedBecause;
use crate::file_pages::{FileHashes, file_page};
use crate::files::{self, FileReport, Files, Stamps};
use crate::layout::{self, Layout, Tracked, Watch};
use crate::marking;
use crate::member::Member;
use crate::memo::Memo;
use crate::objects::{in_file, shown_in};
use crate::page_tables::Private;
use crate::precopy::Precopied;
use crate::probes::{Code, Process};
use crate::report::NotTracked;
use crate::rings::{self, AsynchronousIo};
use crate::sparse;
use crate::take::TakeError;
use pagetide_kernel::maps::{self, Mapping};
use pagetide_kernel::pagemap_scan::{Categories, ScanError};
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};
use pagetide_process::{RingsOfThreads, StoppedProcess, ThreadState};
use pagetide_snapshot::{Backing, PageState, Region, Sharing, View};
use pagetide_tracker::{Backend, Harvest, TrackError};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// What the stop window is entered with.
pub(crate) struct Window<'a> {
    /// The parent; a process of which nothing is remembered from it is copied in full.
    pub parent: Option<&'a View>,
    pub precopied: &'a Precopied,
    /// Pages that an earlier attempt copied, and that must be copied again.
    pub again: &'a PageSet,
    pub report: &'a FileReport,
    pub files: &'a Files,
    pub hashes: &'a FileHashes,
    pub io: &'a AsynchronousIo,
    /// What the threads, as they stand now, say of their rings.
    pub rings: &'a RingsOfThreads,
    pub code: &'a Code,
    /// Why memory of the process must not be marked, if so.
    pub watchers: &'a [ComparedBecause],
}

/// The stopped process before anything is copied.
pub(crate) struct Looked {
    pub threads: Vec<ThreadState>,
    pub layout: Layout,
    written: PageSet,
    pub refused: Vec<NotTracked>,
    /// Pages that are not tracked yet.
    left: PageSet,
    /// Why all memory is compared, if it is.
    whole: Vec<ComparedBecause>,
    /// Something may write to pages from now on that nothing lists.
    unlisted: bool,
    pub scan: Duration,
}

/// What came out of the stop window.
pub(crate) struct Stopped {
    pub layout: Layout,
    /// The advice of its mappings.
    pub advice: Advice,
    pub threads: Vec<ThreadState>,
    /// States of pages without bytes, in the order in which they hold.
    pub states: Vec<(PageRange, PageState)>,
    /// Pages that are those of their file.
    pub in_file: PageSet,
    /// Pages that were never allocated, as far as it is known, and were not read.
    empty: PageSet,
    pub memo: Memo,
    /// Pages on their way into which something may be that was sent before the harvest.
    pub may_land: PageSet,
    pub not_tracked: Vec<NotTracked>,
    /// Addresses of breakpoints that are stored as they are.
    pub breakpoints: Vec<u64>,
    /// Pages that were copied, or that were harvested and have a state in `states`.
    pub read: PageSet,
    pub unreadable: PageSet,
    /// Pages copied, in the window and before.
    pub copied: PageSet,
    /// Pages copied in the window.
    pub window: PageSet,
    pub scan: Duration,
}

impl Stopped {
    /// True if none of `pages` was recorded without having been looked at.
    pub fn is_read_in_full(&self, pages: PageRange) -> bool {
        self.empty.within(pages).is_empty()
    }
}

impl Member {
    /// Scans `range` for pages with one of `any_of`, handing each range and its `returned` on.
    fn scan(
        &self,
        range: PageRange,
        any_of: Categories,
        returned: Categories,
        each: impl FnMut(PageRange, Categories),
    ) -> Result<(), ScanError> {
        let tables = self.space.page_tables();
        tables.scan(range, any_of, returned, each)
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
            // Ended, or just executing another program.
            return Err(TrackError::SpaceGone.into());
        }
        Ok(self.layout_of(mappings, trusts_tracker, is_object))
    }

    /// The same for mappings that were read already.
    pub fn layout_of(
        &self,
        mappings: Vec<Mapping>,
        trusts_tracker: bool,
        is_object: impl Fn(&Mapping) -> bool,
    ) -> Layout {
        let holds = |pages| {
            let mut holds = false;
            let any_of = Categories::PRESENT | Categories::SWAPPED;
            let scanned = self.scan(pages, any_of, Categories::empty(), |_, _| holds = true);
            holds || scanned.is_err()
        };
        let backend = self.tracking.as_ref().filter(|_| trusts_tracker);
        let tracked = match backend.map(|tracking| tracking.tracker.backend()) {
            None => Tracked::Nothing,
            Some(Backend::WpAsync) => Tracked::Reservations,
            Some(_) => Tracked::Content,
        };
        Layout::new(mappings, tracked, holds, is_object)
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
        let is_object = |mapping: &Mapping| files.is_object(mapping, window.report);
        self.uses_rings = window.rings.used;
        let (whole, unlisted) = self.why_all_is_compared(window);
        let layout = self.layout(whole.is_empty(), is_object)?;
        let started = Instant::now();
        if !window.watchers.is_empty() {
            self.take_marks_back(&layout.mappings)?;
        }
        let mut refused = Vec::new();
        let (mut written, mut left) = (PageSet::new(), PageSet::new());
        let harvest = match window.watchers {
            [] => self.harvest(&layout)?,
            _ => None,
        };
        if let Some(harvest) = harvest {
            written = harvest.written().clone();
            left = harvest.layout().left.clone();
            let not_tracked = |found| not_tracked(pid, found);
            refused.extend(harvest.layout().refused.iter().map(not_tracked));
            refused.extend(marking::left_for_many(
                (pid, self.most_mappings),
                &layout,
                &left,
            ));
            harvests.push((pid, harvest));
        }
        Ok(Looked {
            threads,
            layout,
            written,
            refused,
            left,
            whole,
            unlisted,
            scan: started.elapsed(),
        })
    }

    /// True if all of these pages, which are pinned, are still where they were registered. mremap(2) takes them along, and
    /// then they are written to at a place that nothing tells.
    fn are_present(&self, buffers: &PageSet) -> bool {
        let tables = self.space.page_tables();
        let present = tables.having(buffers, Categories::PRESENT);
        // Pages that are pinned to be written to are never the zero page, which a read puts in their place.
        let zero = tables.having(buffers, Categories::ZERO_PAGE);
        let (Ok(present), Ok(zero)) = (present, zero) else {
            return false;
        };
        present.count() == buffers.count() && zero.is_empty()
    }

    /// Why all memory of the process is compared; nothing if the tracker's word is enough. And whether that is so
    /// because of what is there now.
    fn why_all_is_compared(&self, window: &Window<'_>) -> (Vec<ComparedBecause>, bool) {
        if self.tracking.is_none() {
            return (Vec::new(), false);
        }
        let mut reasons = window.io.unlisted.clone();
        if !self.are_present(&window.io.buffers) {
            reasons.push(ComparedBecause::MovedBuffers);
        }
        if !window.rings.registered.is_empty() {
            reasons.push(ComparedBecause::RegisteredRing);
        }
        if let Some(why) = window.rings.not_asked.clone() {
            reasons.push(ComparedBecause::NotAsked { why });
        }
        let unlisted = !reasons.is_empty();
        reasons.extend_from_slice(window.watchers);
        if !unlisted
            && self
                .memo_of(window.parent)
                .is_some_and(|memo| memo.unlisted_ring)
        {
            reasons.push(ComparedBecause::UnlistedRingBefore);
        }
        // The kernel's own reads go on while the threads are stopped.
        if window.io.any && self.needs_stop() {
            reasons.push(ComparedBecause::ReadsUnderWay);
        }
        (reasons, unlisted)
    }

    /// Copies what has to be copied of the stopped process.
    pub fn copy(
        &self,
        looked: Looked,
        window: &Window<'_>,
        mut copied: Copied<'_>,
    ) -> Result<Stopped, TakeError> {
        let plan = self.plan(&looked, window)?;
        let may_land = match self.memo_of(window.parent) {
            Some(memo) => looked.written.union(&memo.in_flight),
            None => looked.written.clone(),
        };
        let layout = looked.layout;
        // If this attempt is not the last one, these read clean in the next, whatever they are then.
        let harvested_reserved = looked.written.intersect(&layout.reserved);
        let pid = self.pid();
        let mut not_tracked = looked.refused;
        let whole = looked.whole.into_iter();
        not_tracked.extend(whole.map(|reason| NotTracked::whole(pid, reason)));
        let parent = window
            .parent
            .filter(|_| self.memo.is_some())
            .and_then(|view| Some((view, view.space_index(&self.names.space)?)));
        let known = parent.map(|(view, space)| move |page| view.page_hash(space, page));
        let probes = self
            .as_probed(&layout.mappings, window.files)
            .probes(window.code, &plan.memo.private_copies);
        let source = Source {
            memory: &self.space.memory,
            pagemap: &self.space.pagemap,
            known: known.as_ref().map(|known| known as &dyn Fn(_) -> _),
            knows_guards: self.space.knows_guards,
            // Soft-dirty bits also tell of memory that has a userfaultfd of the process's own. To read
            // there what holds nothing would wait for a handler that stands still.
            ask_from: match self.needs_stop() {
                true => PageCount(1),
                false => ASK_FROM,
            },
            instead: &probes.instead,
        };
        source.read(&plan.read, &layout.anonymous, &mut copied)?;
        source.compare(&plan.compare, &layout.anonymous, &mut copied)?;
        let mut states = copied.states;
        let (unreadable, pages) = (copied.unreadable, copied.pages);
        let zeros = plan.zero.ranges().iter();
        states.extend(zeros.map(|&range| (range, PageState::Zero)));
        let shown = plan.shown.ranges().iter();
        states.extend(shown.map(|&range| (range, PageState::Shown)));
        self.name_guards(&plan.shown, &mut states)?;
        self.name_poisoned(&plan.shown, &mut states)?;
        let guards = plan.guards.ranges().iter();
        states.extend(guards.map(|&range| (range, PageState::Guard)));
        let unbacked = unreadable.ranges().iter();
        states.extend(unbacked.map(|&range| (range, PageState::Unbacked)));
        self.name_guards(&unreadable, &mut states)?;
        let precopied = &window.precopied.copied;
        Ok(Stopped {
            read: pages.union(&plan.read).union(&harvested_reserved),
            copied: precopied.union(&pages.subtract(&unreadable)),
            window: pages,
            layout,
            advice: Advice::default(),
            threads: looked.threads,
            states,
            in_file: plan.in_file,
            empty: plan.empty,
            memo: plan.memo,
            may_land,
            not_tracked,
            breakpoints: probes.kept,
            unreadable,
            scan: looked.scan,
        })
    }

    /// As one that may have probes in it.
    pub fn as_probed<'a>(&'a self, mappings: &'a [Mapping], files: &'a Files) -> Process<'a> {
        Process {
            pid: self.pid(),
            memory: &self.space.memory,
            tables: self.space.page_tables(),
            mappings,
            files,
        }
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

    /// Records those of the `shown` pages that cannot be read here, whatever their object has: UFFDIO_POISON leaves a
    /// mark in the page tables of one process, which reads as swapped. So may others, which can be read.
    fn name_poisoned(
        &self,
        shown: &PageSet,
        states: &mut Vec<(PageRange, PageState)>,
    ) -> Result<(), CaptureError> {
        let mut marked = PageSet::new();
        for &range in shown.ranges() {
            self.scan(
                range,
                Categories::SWAPPED,
                Categories::SWAPPED,
                |pages, _| {
                    marked.insert(pages);
                },
            )?;
        }
        let guards = states
            .iter()
            .filter(|(_, state)| *state == PageState::Guard);
        let guards: PageSet = guards.map(|(pages, _)| *pages).collect();
        let mut bytes = vec![0; SIZE.len()];
        for page in marked
            .subtract(&guards)
            .ranges()
            .iter()
            .flat_map(|range| range.pages())
        {
            let page = PageRange::single(page);
            let unreadable = self.space.memory.read_pages(SIZE, &[page], &mut bytes)?;
            states.extend(unreadable.iter().map(|&page| (page, PageState::Unbacked)));
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
        let refused = refused.union(&looked.left);
        let tracked: PageSet = layout.tracked.iter().copied().collect();
        let tracked = tracked.subtract(&refused);
        let compared = layout.set(|_, watch| watch == Watch::Compare);
        let over_file = layout.set(|_, watch| watch == Watch::OverFile);
        let Private { copies, guards } = self.private_pages(&over_file)?;
        let mut compare = compared.union(&refused).union(&copies);

        // Buffers that the kernel may write to unseen, since the last snapshot or from now on.
        let buffers = match window.io.any {
            false => PageSet::new(),
            true => rings::listed_buffers(self.pid()).union(&window.io.buffers),
        };
        let mut read = written
            .union(&window.precopied.postponed)
            .union(&buffers)
            .intersect(&tracked);

        // Where there is no copy, a file shows, and may stand for its pages.
        let shows_file = over_file.subtract(&copies).subtract(&guards);
        let standing = layout.set(|mapping, watch| {
            watch == Watch::OverFile && window.report.standing(files::key(mapping)).is_some()
        });
        let mut in_file_now = shows_file.intersect(&standing);
        let mut shown_then = PageSet::new();
        match self.memo_of(window.parent).zip(window.parent) {
            None => {
                read = read
                    .union(&tracked.subtract(&window.precopied.covered))
                    .union(&shows_file.subtract(&standing));
            }
            Some((memo, view)) => {
                read = read.union(&memo.buffers.union(&memo.in_flight).intersect(&tracked));
                let unchanged = self.unchanged_files(view, &layout.mappings, window.report, memo);
                // A copy that is gone shows the file again.
                let dropped = memo.private_copies.intersect(&shows_file);
                read = read.union(&dropped.subtract(&standing));
                let doubtful = shows_file.subtract(&standing).subtract(&unchanged);
                compare = compare.union(&doubtful);
                if let Some(space) = view.space_index(&self.names.space) {
                    let told = in_file(view, space, &over_file);
                    // The parent says of these what holds still.
                    let holds = told.intersect(&unchanged).intersect(&standing);
                    in_file_now = in_file_now
                        .subtract(&holds)
                        .union(&in_file_now.intersect(window.again));
                    // A file that has changed or may change can no longer stand for its pages.
                    read = read.union(&told.subtract(&holds).subtract(&guards));
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
        read = read.union(&stale.intersect(&tracked.union(&compare)));

        let huge = layout.set(|_, watch| watch == Watch::CompareHeld);
        let held = self.held_in(&huge)?;
        compare = compare.union(&held);
        let empty = self.empty_pages(layout, window)?;
        let zero = layout.reserved.union(&huge.subtract(&held)).union(&empty);
        // What was shown of an object then is not what the process itself had there.
        read = read.union(&compare.intersect(&shown_then)).subtract(&zero);
        Ok(Plan {
            compare: compare.subtract(&read).subtract(&zero),
            read,
            zero,
            in_file: known,
            empty,
            shown: layout.set(|_, watch| watch == Watch::Object),
            guards,
            memo: Memo {
                private_copies: copies,
                settled: Vec::new(),
                buffers,
                in_flight: match window.io.any {
                    true => written.clone(),
                    false => PageSet::new(),
                },
                unlisted_ring: looked.unlisted,
            },
        })
    }

    /// The pages of private mappings of files that show the same of the same files as in the parent, and
    /// those files are what they were then.
    pub fn unchanged_files(
        &self,
        parent: &View,
        mappings: &[Mapping],
        report: &FileReport,
        memo: &Memo,
    ) -> PageSet {
        let Some(space) = parent.space_index(&self.names.space) else {
            return PageSet::new();
        };
        let earlier: HashSet<&Stamps> = memo.settled.iter().collect();
        let over_file = mappings
            .iter()
            .filter(|mapping| layout::watch(mapping) == Watch::OverFile);
        let unchanged: PageSet = over_file
            .clone()
            .filter(|mapping| report.unchanged_since(mapping, &earlier))
            .map(Mapping::pages)
            .collect();
        let regions = &parent.spaces()[space].regions;
        let mut same = Vec::new();
        for mapping in over_file {
            let pages = mapping.pages();
            let from = regions.partition_point(|region| region.pages.end() <= pages.start());
            for region in &regions[from..] {
                let Some(part) = region.pages.intersection(pages) else {
                    break;
                };
                if shows_the_same(mapping, region) {
                    same.push(part);
                }
            }
        }
        unchanged.intersect(&same.into_iter().collect())
    }

    /// Those of `pages` that the page tables of the process have.
    fn held_in(&self, pages: &PageSet) -> Result<PageSet, TakeError> {
        let any_of = Categories::PRESENT | Categories::SWAPPED;
        let held = self.space.page_tables().having(pages, any_of);
        Ok(held.map_err(CaptureError::from)?)
    }

    /// The pages of mappings that show nothing of what is behind them, and of which the process has no copies:
    /// reading them would allocate them.
    fn empty_pages(&self, layout: &Layout, window: &Window<'_>) -> Result<PageSet, TakeError> {
        let mut empty = PageSet::new();
        let read_here = |watch| matches!(watch, Watch::Compare | Watch::OverFile);
        let mappings = layout.each().filter(|(_, watch)| read_here(*watch));
        for (mapping, _) in mappings.filter(|(mapping, _)| mapping.has_file()) {
            let pages = PageSet::from(mapping.pages());
            let holes = match sparse::is_bpf_memory(mapping) {
                true => pages,
                false => window.files.holes_in(mapping, window.report),
            };
            empty = empty.union(&holes.subtract(&self.held_in(&holes)?));
        }
        Ok(empty)
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
                let part = PageRange::with_count(PageIndex(start), part.count());
                known.extend(pages.within(part).ranges().iter().copied());
            }
        }
        known
    }

    /// What the page tables say of `over_file` (private mappings of files). A slot that is neither in memory
    /// nor a guard is taken for a copy: it may be one in swap.
    pub fn private_pages(&self, over_file: &PageSet) -> Result<Private, TakeError> {
        let tables = self.space.page_tables();
        Ok(tables
            .private_pages(over_file)
            .map_err(CaptureError::from)?)
    }
}

/// True if a private mapping and a region of the parent show the same of one file where they overlap.
fn shows_the_same(mapping: &Mapping, region: &Region) -> bool {
    let Backing::File {
        offset_bytes,
        device,
        inode,
        ..
    } = region.backing
    else {
        return false;
    };
    let (start, _) = SIZE.span_of(region.pages);
    region.sharing == Sharing::Private
        && (device, inode) == files::key(mapping)
        && mapping.offset_bytes.wrapping_sub(mapping.start) == offset_bytes.wrapping_sub(start)
}

/// What to do with which pages.
struct Plan {
    read: PageSet,
    compare: PageSet,
    zero: PageSet,
    in_file: PageSet,
    empty: PageSet,
    shown: PageSet,
    /// Guard regions over files.
    guards: PageSet,
    memo: Memo,
}

fn not_tracked(pid: i32, refused: &pagetide_tracker::Refused) -> NotTracked {
    let (start, end) = SIZE.span_of(refused.pages);
    NotTracked {
        pid,
        start,
        end,
        reason: ComparedBecause::Refused(refused.reason.to_string()),
    }
}
