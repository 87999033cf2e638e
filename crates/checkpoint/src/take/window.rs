//! What happens to one process between stopping and letting go: what is known of its pages is gathered, and what `plan` makes
//! of that is copied. The rounds of copying before that are in `precopy`, the copying itself is in `capture`.

use super::precopy::Precopied;
use crate::advice::Advice;
use crate::capture::{ASK_FROM, CaptureError, Copied, PageSource, SIZE};
use crate::compared::ComparedBecause;
use crate::error::TakeError;
use crate::file_pages::FileHashes;
use crate::files::{self, FileReport, Files};
use crate::growth;
use crate::layout::{ChangeDetection, Layout};
use crate::mapped_file::file_page;
use crate::member::Member;
use crate::memo::Memo;
use crate::page_tables::Private;
use crate::parent;
use crate::plan::{Evidence, ParentEvidence, Plan, plan};
use crate::probes::{Code, Probes};
use crate::report::NotTracked;
use crate::rings::{self, AsynchronousIo};
use crate::sparse;
use pagetide_kernel::maps::Mapping;
use pagetide_kernel::pagemap_scan::Categories;
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};
use pagetide_process::{RingsOfThreads, StoppedProcess, ThreadState};
use pagetide_snapshot::{PageState, View};
use pagetide_tracker::Harvest;
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
pub(crate) struct Survey {
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
pub(crate) struct WindowResult {
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

impl WindowResult {
    /// True if none of `pages` was recorded without having been looked at.
    pub fn is_read_in_full(&self, pages: PageRange) -> bool {
        self.empty.within(pages).is_empty()
    }
}

impl Window<'_> {
    /// The stopped process: its threads, its mappings, and what was written.
    pub fn look(
        &self,
        member: &mut Member,
        process: &mut StoppedProcess,
        harvests: &mut Vec<(i32, Harvest)>,
    ) -> Result<Survey, TakeError> {
        let pid = member.pid();
        let threads = process.thread_states()?;
        let is_object = |mapping: &Mapping| self.files.is_object(mapping, self.report);
        member.uses_rings = self.rings.used;
        let (whole, unlisted) = self.why_all_is_compared(member);
        let layout = member.layout(whole.is_empty(), is_object)?;
        let started = Instant::now();
        if !self.watchers.is_empty() {
            member.take_marks_back(&layout.mappings)?;
        }
        let mut refused = Vec::new();
        let (mut written, mut left) = (PageSet::new(), PageSet::new());
        let harvest = match self.watchers {
            [] => member.harvest(&layout)?,
            _ => None,
        };
        if let Some(harvest) = harvest {
            written = harvest.written().clone();
            left = harvest.layout().left.clone();
            let not_tracked = |found| not_tracked(pid, found);
            refused.extend(harvest.layout().refused.iter().map(not_tracked));
            refused.extend(left_for_many((pid, member.most_mappings), &layout, &left));
            harvests.push((pid, harvest));
        }
        Ok(Survey {
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

    /// Why all memory of the process is compared; nothing if the tracker's word is enough. And whether that is so
    /// because of what is there now.
    fn why_all_is_compared(&self, member: &Member) -> (Vec<ComparedBecause>, bool) {
        if member.tracking.is_none() {
            return (Vec::new(), false);
        }
        let mut reasons = self.io.unlisted.clone();
        if !are_present(member, &self.io.buffers) {
            reasons.push(ComparedBecause::MovedBuffers);
        }
        if !self.rings.registered.is_empty() {
            reasons.push(ComparedBecause::RegisteredRing);
        }
        if let Some(why) = self.rings.not_asked.clone() {
            reasons.push(ComparedBecause::NotAsked { why });
        }
        let unlisted = !reasons.is_empty();
        reasons.extend_from_slice(self.watchers);
        if !unlisted
            && member
                .memo_of(self.parent)
                .is_some_and(|memo| memo.unlisted_ring)
        {
            reasons.push(ComparedBecause::UnlistedRingBefore);
        }
        // The kernel's own reads go on while the threads are stopped.
        if self.io.any && member.needs_stop() {
            reasons.push(ComparedBecause::ReadsUnderWay);
        }
        (reasons, unlisted)
    }

    /// Copies what has to be copied of the stopped process.
    pub fn copy(
        &self,
        member: &Member,
        looked: Survey,
        mut copied: Copied<'_>,
    ) -> Result<WindowResult, TakeError> {
        let over_file = looked
            .layout
            .set(|_, watch| watch == ChangeDetection::OverFile);
        let Private { copies, guards } = member.private_pages(&over_file)?;
        // Buffers that the kernel may write to unseen, since the last snapshot or from now on.
        let buffers = if !self.io.any {
            PageSet::new()
        } else {
            rings::listed_buffers(member.pid()).union(&self.io.buffers)
        };
        let evidence = self.evidence(member, &looked, (&copies, guards), &buffers)?;
        let empty = evidence.empty.clone();
        let plan = plan(evidence);
        let probes = member
            .as_probed(&looked.layout.mappings, self.files)
            .probes(self.code, &copies);
        self.copy_pages(member, &looked, &plan, &probes, &mut copied)?;
        let mut states = copied.states;
        let (unreadable, pages) = (copied.unreadable, copied.pages);
        name_states(member, &plan, &unreadable, &mut states)?;
        let may_land = match member.memo_of(self.parent) {
            Some(memo) => looked.written.union(&memo.in_flight),
            None => looked.written.clone(),
        };
        let whole = looked.whole.into_iter();
        let whole = whole.map(|reason| NotTracked::whole(member.pid(), reason));
        // If this attempt is not the last one, these read clean in the next, whatever they are then.
        let harvested_reserved = looked.written.intersect(&looked.layout.reserved);
        Ok(WindowResult {
            read: pages.union(&plan.read).union(&harvested_reserved),
            copied: self.precopied.copied.union(&pages.subtract(&unreadable)),
            window: pages,
            layout: looked.layout,
            advice: Advice::default(),
            threads: looked.threads,
            states,
            in_file: plan.in_file,
            empty,
            memo: Memo {
                private_copies: copies,
                settled: Vec::new(),
                buffers,
                in_flight: if self.io.any {
                    looked.written
                } else {
                    PageSet::new()
                },
                unlisted_ring: looked.unlisted,
            },
            may_land,
            not_tracked: looked.refused.into_iter().chain(whole).collect(),
            breakpoints: probes.kept,
            unreadable,
            scan: looked.scan,
        })
    }

    /// Copies the bytes of pages.
    fn copy_pages(
        &self,
        member: &Member,
        looked: &Survey,
        plan: &Plan,
        probes: &Probes,
        copied: &mut Copied<'_>,
    ) -> Result<(), CaptureError> {
        let parent = self
            .parent
            .filter(|_| member.memo.is_some())
            .and_then(|view| Some((view, view.space_index(&member.names.space)?)));
        let known = parent.map(|(view, space)| move |page| view.page_hash(space, page));
        let source = PageSource {
            memory: &member.space.memory,
            pagemap: &member.space.pagemap,
            known: known.as_ref().map(|known| known as &dyn Fn(_) -> _),
            knows_guards: member.space.knows_guards,
            // Soft-dirty bits also tell of memory that has a userfaultfd of the process's own. To read
            // there what holds nothing would wait for a handler that stands still.
            ask_from: if member.needs_stop() {
                PageCount(1)
            } else {
                ASK_FROM
            },
            instead: &probes.instead,
        };
        let anonymous = &looked.layout.anonymous;
        source.read(&plan.read, anonymous, copied)?;
        source.compare(&plan.compare, anonymous, copied)
    }

    /// What is known of the pages, with what the page tables say now.
    fn evidence<'a>(
        &'a self,
        member: &'a Member,
        looked: &'a Survey,
        (copies, guards): (&'a PageSet, PageSet),
        buffers: &'a PageSet,
    ) -> Result<Evidence<'a>, TakeError> {
        let layout = &looked.layout;
        let refused = looked.refused.iter();
        let refused: PageSet = refused
            .map(|refused| SIZE.covering(refused.start, refused.end))
            .collect();
        let refused = refused.union(&looked.left);
        let tracked: PageSet = layout.tracked.iter().copied().collect();
        let over_file = layout.set(|_, watch| watch == ChangeDetection::OverFile);
        let huge = layout.set(|_, watch| watch == ChangeDetection::CompareHeld);
        let standing = |mapping: &Mapping, watch| {
            watch == ChangeDetection::OverFile
                && self.report.standing(files::key(mapping)).is_some()
        };
        Ok(Evidence {
            tracked: tracked.subtract(&refused),
            compared: layout
                .set(|_, watch| watch == ChangeDetection::Compare)
                .union(&refused),
            standing: layout.set(standing),
            hashed: self.hashed(layout),
            held: held_in(member, &huge)?,
            empty: self.empty_pages(member, layout)?,
            objects: layout.set(|_, watch| watch == ChangeDetection::Object),
            reserved: layout.reserved.clone(),
            written: &looked.written,
            covered: &self.precopied.covered,
            postponed: &self.precopied.postponed,
            again: self.again,
            then: self.then(member, layout, &over_file),
            over_file,
            huge,
            copies,
            guards,
            buffers,
        })
    }

    /// What the parent says, if anything is remembered of the process from it.
    fn then<'a>(
        &'a self,
        member: &'a Member,
        layout: &Layout,
        over_file: &PageSet,
    ) -> Option<ParentEvidence<'a>> {
        let (memo, view) = member.memo_of(self.parent).zip(self.parent)?;
        let space = view.space_index(&member.names.space);
        let of_space = |told: &dyn Fn(usize) -> PageSet| space.map(told).unwrap_or_default();
        let (mappings, report) = (&layout.mappings, self.report);
        Some(ParentEvidence {
            buffers: &memo.buffers,
            in_flight: &memo.in_flight,
            copies: &memo.private_copies,
            unchanged: of_space(&|space| {
                parent::unchanged_files((view, space), mappings, report, memo)
            }),
            in_file: of_space(&|space| parent::in_file(view, space, over_file)),
            shown: of_space(&|space| parent::shown_in(view, space)),
        })
    }

    /// The pages of mappings that show nothing of what is behind them, and of which the process has no copies:
    /// reading them would allocate them.
    fn empty_pages(&self, member: &Member, layout: &Layout) -> Result<PageSet, TakeError> {
        let mut empty = PageSet::new();
        let read_here =
            |watch| matches!(watch, ChangeDetection::Compare | ChangeDetection::OverFile);
        let mappings = layout.each().filter(|(_, watch)| read_here(*watch));
        for (mapping, _) in mappings.filter(|(mapping, _)| mapping.has_file()) {
            let pages = PageSet::from(mapping.pages());
            let holes = if sparse::is_bpf_memory(mapping) {
                pages
            } else {
                self.files.holes_in(mapping, self.report)
            };
            empty = empty.union(&holes.subtract(&held_in(member, &holes)?));
        }
        Ok(empty)
    }

    /// The pages of private mappings of files for which the hash of what the file has is known.
    fn hashed(&self, layout: &Layout) -> PageSet {
        let mut hashed = Vec::new();
        let over_file = layout
            .each()
            .filter(|(_, watch)| *watch == ChangeDetection::OverFile);
        for (mapping, _) in over_file {
            let all = mapping.pages();
            let first = file_page(mapping, all.start());
            let shown = PageRange::with_count(first, all.count());
            for (part, _) in self.hashes.known(files::key(mapping), shown) {
                let start = all.start().0 + (part.start().0 - first.0);
                hashed.push(PageRange::with_count(PageIndex(start), part.count()));
            }
        }
        hashed.into_iter().collect()
    }
}

/// True if all of these pages, which are pinned, are still where they were registered. mremap(2) takes them along, and
/// then they are written to at a place that nothing tells.
fn are_present(member: &Member, buffers: &PageSet) -> bool {
    let tables = member.space.page_tables();
    let present = tables.having(buffers, Categories::PRESENT);
    // Pages that are pinned to be written to are never the zero page, which a read puts in their place.
    let zero = tables.having(buffers, Categories::ZERO_PAGE);
    let (Ok(present), Ok(zero)) = (present, zero) else {
        return false;
    };
    present.count() == buffers.count() && zero.is_empty()
}

/// Records what pages are of which no bytes are stored. What comes later holds.
fn name_states(
    member: &Member,
    plan: &Plan,
    unreadable: &PageSet,
    states: &mut Vec<(PageRange, PageState)>,
) -> Result<(), CaptureError> {
    fn put(states: &mut Vec<(PageRange, PageState)>, pages: &PageSet, state: PageState) {
        states.extend(pages.ranges().iter().map(|&range| (range, state)));
    }
    put(states, &plan.zero, PageState::Zero);
    put(states, &plan.shown, PageState::Shown);
    name_guards(member, &plan.shown, states)?;
    name_poisoned(member, &plan.shown, states)?;
    put(states, &plan.guards, PageState::Guard);
    put(states, unreadable, PageState::Unbacked);
    name_guards(member, unreadable, states)
}

/// Records the guard regions among `pages`.
fn name_guards(
    member: &Member,
    pages: &PageSet,
    states: &mut Vec<(PageRange, PageState)>,
) -> Result<(), CaptureError> {
    if member.space.knows_guards {
        for &range in pages.ranges() {
            member.space.page_tables().scan(
                range,
                Categories::GUARD,
                Categories::GUARD,
                |pages, _| {
                    states.push((pages, PageState::Guard));
                },
            )?;
        }
    }
    Ok(())
}

/// Records those of the `shown` pages that cannot be read here, whatever their object has: UFFDIO_POISON leaves a
/// mark in the page tables of one process, which reads as swapped. So may others, which can be read.
fn name_poisoned(
    member: &Member,
    shown: &PageSet,
    states: &mut Vec<(PageRange, PageState)>,
) -> Result<(), CaptureError> {
    let mut marked = PageSet::new();
    for &range in shown.ranges() {
        member.space.page_tables().scan(
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
        let unreadable = member.space.memory.read_pages(SIZE, &[page], &mut bytes)?;
        states.extend(unreadable.iter().map(|&page| (page, PageState::Unbacked)));
    }
    Ok(())
}

/// Those of `pages` that the page tables of the process have.
fn held_in(member: &Member, pages: &PageSet) -> Result<PageSet, TakeError> {
    let any_of = Categories::PRESENT | Categories::SWAPPED;
    let held = member.space.page_tables().having(pages, any_of);
    Ok(held.map_err(CaptureError::from)?)
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

/// Names what is left to be compared, if that is because there are many mappings.
fn left_for_many((pid, most): (i32, u64), layout: &Layout, left: &PageSet) -> Vec<NotTracked> {
    let mappings = layout.mappings.len();
    if !growth::are_many(mappings, most) {
        return Vec::new();
    }
    let name = |range: &PageRange| {
        let (start, end) = SIZE.span_of(*range);
        NotTracked {
            pid,
            start,
            end,
            reason: ComparedBecause::ManyMappings { mappings, most },
        }
    };
    left.ranges().iter().map(name).collect()
}
