//! Copying and storing most pages while the process runs, so that few are left for the stop window. Not
//! for a process in whose pages reads may be under way.

use crate::arena::Arena;
use crate::capture::{ASK_FROM, CaptureError, Copied, PageSource, SIZE};
use crate::compared::ComparedBecause;
use crate::error::TakeError;
use crate::harvests::{Sink, check_cancelled};
use crate::layout::{ChangeDetection, Layout};
use crate::member::Member;
use crate::options::{Mode, Options};
use crate::rings;
use crate::writers;
use pagetide_kernel::maps::Mapping;
use pagetide_kernel::pagemap_scan::{Categories, ScanRequest, ScannedRange};
use pagetide_pages::{PageCount, PageRange, PageSet};
use pagetide_snapshot::{PageState, View};
use pagetide_tracker::Harvest;
use std::collections::HashMap;

/// From this much to copy on, pages are copied while the process runs.
const PRECOPY_FROM: PageCount = PageCount(2048);
/// Pre-copy ends when a round had no more than this to copy.
const PRECOPY_ENOUGH: PageCount = PageCount(512);
const PRECOPY_ROUNDS: usize = 5;
/// Room made for what may be written between the last look and the stop.
const SLACK: PageCount = PageCount(1024);

/// What was copied of one process while it ran.
#[derive(Default)]
pub(crate) struct Precopied {
    /// Pages whose state or bytes the writer has.
    pub covered: PageSet,
    /// Of these, pages that were copied.
    pub copied: PageSet,
    /// Pages that could not be read then, or that were not to be: they were harvested, and have no bytes and no state yet.
    pub postponed: PageSet,
    /// Something may have been on its way into pages when they were harvested.
    pub is_doubtful: bool,
    /// About how many pages are left to copy.
    pub expected: PageCount,
}

/// Copies and stores pages while the process runs, until little is left. What is written after its page
/// was copied is found by the next harvest.
pub(crate) fn precopy(
    member: &mut Member,
    parent: Option<&View>,
    options: &Options,
    watchers: &[ComparedBecause],
    sink: &mut Sink<'_>,
    harvests: &mut Vec<(i32, Harvest)>,
) -> Result<Precopied, TakeError> {
    let mut precopied = Precopied::default();
    let parent = parent.filter(|_| member.memo.is_some());
    let mut layout = member.layout(true, |_| false)?;
    member.space.memory.expect(&layout.mappings);
    let io = member.asynchronous_io(&layout.mappings);
    // It is compared in full, with what was copied before.
    let is_compared = member.memo.as_ref().is_some_and(|memo| memo.unlisted_ring);
    let mut expected = pages_expected(member, &layout, parent)?;
    let rounds = match options.mode {
        _ if member.tracking.is_none() || member.needs_stop() || is_compared => 0,
        // Its memory is not to be marked.
        _ if !watchers.is_empty() => 0,
        // What is read into a page after it was copied would not be found by the next harvest.
        _ if io.any || rings::reads_directly(member.pid()) => 0,
        Mode::Stop => 0,
        Mode::Auto if expected < PRECOPY_FROM => 0,
        Mode::Auto | Mode::Precopy => PRECOPY_ROUNDS,
    };
    for round in 0..rounds {
        check_cancelled(options)?;
        let everything = round == 0 && parent.is_none();
        sink.spaces.stored.expect(SIZE.bytes_of(expected), false);
        let written = copy_round(member, &layout, everything, sink, harvests, &mut precopied)?;
        expected = written;
        precopied.is_doubtful |= rings::has_ring(member.pid()) || writers::is_call_under_way();
        if written <= PRECOPY_ENOUGH {
            break;
        }
        layout = member.layout(true, |_| false)?;
    }
    if rounds > 0 && parent.is_none() {
        // Not copied in the rounds: the process's own copies of file pages.
        let files = layout.set(|_, watch| watch == ChangeDetection::OverFile);
        expected += member.private_pages(&files)?.copies.count();
    }
    precopied.expected = expected;
    Ok(precopied)
}

/// About how many pages there will be to copy.
fn pages_expected(
    member: &mut Member,
    layout: &Layout,
    parent: Option<&View>,
) -> Result<PageCount, TakeError> {
    if parent.is_some() {
        return written_in(member, layout);
    }
    let held = ScanRequest {
        any_of: Categories::PRESENT | Categories::SWAPPED,
        ..ScanRequest::over(0, 0)
    };
    let mapped = layout.set(|_, watch| !matches!(watch, ChangeDetection::Leave(_)));
    count(member, held, &mapped)
}

/// How many pages read as written now. A harvest that follows at once also finds the page tables in
/// the processor's caches, and takes about half the time.
pub(crate) fn written_now(
    member: &mut Member,
    mappings: &[Mapping],
) -> Result<PageCount, TakeError> {
    let layout = member.layout_of(mappings.to_vec(), true, |_| false);
    Ok(written_in(member, &layout)? + SLACK)
}

fn written_in(member: &mut Member, layout: &Layout) -> Result<PageCount, TakeError> {
    if let Some(tracking) = member.tracking.as_mut()
        && let Some(count) = tracking.tracker.survey(&layout.tracked)?
    {
        return Ok(count);
    }
    let present = ScanRequest {
        all_of: Categories::PRESENT,
        ..ScanRequest::over(0, 0)
    };
    count(member, present, &layout.tracked.iter().copied().collect())
}

/// How many pages of `pages` answer to `request`, which is made over each range of them.
fn count(member: &Member, request: ScanRequest, pages: &PageSet) -> Result<PageCount, TakeError> {
    let mut count = PageCount(0);
    let mut vector = vec![ScannedRange::EMPTY; 1024];
    for &range in pages.ranges() {
        let (start, end) = SIZE.span_of(range);
        let request = ScanRequest {
            start,
            end,
            ..request
        };
        member
            .space
            .pagemap
            .scan(&request, &mut vector, |found| {
                count += SIZE.covering(found.start(), found.end()).count();
            })
            .map_err(CaptureError::from)?;
    }
    Ok(count)
}

/// One round: harvest, copy, store. Returns how many pages were copied.
fn copy_round(
    member: &mut Member,
    layout: &Layout,
    everything: bool,
    sink: &mut Sink<'_>,
    harvests: &mut Vec<(i32, Harvest)>,
    precopied: &mut Precopied,
) -> Result<PageCount, TakeError> {
    let pid = member.pid();
    let Some(harvest) = member.harvest(layout)? else {
        return Ok(PageCount(0));
    };
    let refused: PageSet = harvest.layout().refused.iter().map(|r| r.pages).collect();
    let refused = refused.union(&harvest.layout().left);
    // Only private anonymous memory: its pages change by being written and by nothing else.
    let read = if everything {
        layout.anonymous.subtract(&refused)
    } else {
        harvest.written().intersect(&layout.anonymous)
    };
    // A reservation is not copied, but what was harvested of it reads clean from now on, also if it is made
    // accessible before the stop.
    let tracked: PageSet = layout.tracked.iter().copied().collect();
    let reserved = harvest
        .written()
        .intersect(&tracked.subtract(&layout.anonymous));
    harvests.push((pid, harvest));
    let source = PageSource {
        memory: &member.space.memory,
        pagemap: &member.space.pagemap,
        known: None,
        knows_guards: member.space.knows_guards,
        ask_from: ASK_FROM,
        instead: &HashMap::new(),
    };
    sink.arena.open_space(sink.number);
    let (spaces, writer) = (sink.spaces, &mut *sink.writer);
    let mut spill = |arena: &Arena| Ok(spaces.store(arena, writer)?);
    let mut copied = Copied::new(sink.arena, &mut spill);
    source.read(&read, &layout.anonymous, &mut copied)?;
    let pages = copied.pages.subtract(&copied.unreadable);
    let states: Vec<(PageRange, PageState)> = std::mem::take(&mut copied.states);
    // A page that could not be read is looked at again when nothing moves.
    let covered = read.subtract(&copied.unreadable);
    let postponed = std::mem::take(&mut copied.unreadable);
    sink.spaces.store(sink.arena, sink.writer)?;
    sink.arena.clear();
    for (range, state) in states {
        sink.writer.put_state(sink.number, range, state)?;
    }
    precopied.covered = precopied.covered.union(&covered);
    precopied.copied = precopied.copied.union(&pages);
    precopied.postponed = precopied.postponed.union(&postponed).union(&reserved);
    Ok(pages.count())
}
