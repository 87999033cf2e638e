//! Copying and storing most pages while the process runs, so that few are left for the stop window. Not
//! for a process in whose pages reads may be under way.

use crate::arena::Arena;
use crate::capture::{CaptureError, Copied, SIZE, Source};
use crate::checkpointer::Checkpointer;
use crate::layout::Watch;
use crate::memo::Memo;
use crate::options::Mode;
use crate::rings;
use crate::take::{Harvests, Layout, Precopied, TakeError};
use pagetide_kernel::pagemap_scan::{Categories, ScanRequest, ScannedRange};
use pagetide_pages::{PageCount, PageRange, PageSet};
use pagetide_snapshot::{SnapshotWriter, View};
use pagetide_tracker::Tracker;

/// From this much to copy on, pages are copied while the process runs.
const PRECOPY_FROM: PageCount = PageCount(2048);
/// Pre-copy ends when a round had no more than this to copy.
const PRECOPY_ENOUGH: PageCount = PageCount(512);
const PRECOPY_ROUNDS: usize = 5;
/// Room made for what may be written between the last look and the stop.
const SLACK: PageCount = PageCount(1024);

impl Checkpointer {
    /// Copies and stores pages while the process runs, until little is left, and makes room for the
    /// rest. What is written after its page was copied is found by the next harvest.
    pub(crate) fn precopy(
        &mut self,
        parent: Option<&(View, Memo)>,
        writer: &mut SnapshotWriter,
        harvests: &mut Harvests,
    ) -> Result<Precopied, TakeError> {
        let mut precopied = Precopied::default();
        let mut layout = self.layout(true)?;
        let io = rings::asynchronous_io(self.identity().pid, &layout.mappings);
        let mut expected = self.expected(&layout, parent)?;
        let rounds = match self.options.mode {
            _ if self.tracking.is_none() => 0,
            // What is read into a page after it was copied would not be found by the next harvest.
            _ if io.any || rings::reads_directly(self.identity().pid) => 0,
            Mode::Stop => 0,
            Mode::Auto if expected < PRECOPY_FROM => 0,
            Mode::Auto | Mode::Precopy => PRECOPY_ROUNDS,
        };
        for round in 0..rounds {
            self.check_cancelled()?;
            let everything = round == 0 && parent.is_none();
            let written =
                self.precopy_round(&layout, everything, writer, harvests, &mut precopied)?;
            expected = written;
            if written <= PRECOPY_ENOUGH {
                break;
            }
            layout = self.layout(true)?;
        }
        if rounds > 0 {
            // Not copied in the rounds: what others may change, and files.
            let files: PageSet = layout.set(|_, watch| watch == Watch::TrackOverFile);
            let files = if parent.is_none() {
                files.count()
            } else {
                PageCount(0)
            };
            expected += files;
        }
        let room = expected + expected + SLACK;
        self.arena.prepare(SIZE.bytes_of(room));
        Ok(precopied)
    }

    /// About how many pages there will be to copy.
    fn expected(
        &self,
        layout: &Layout,
        parent: Option<&(View, Memo)>,
    ) -> Result<PageCount, TakeError> {
        if parent.is_some() {
            return self.written_now(layout);
        }
        let held = ScanRequest {
            any_of: Categories::PRESENT | Categories::SWAPPED,
            ..ScanRequest::over(0, 0)
        };
        let mapped = layout
            .each()
            .filter(|(_, watch)| !matches!(watch, Watch::Leave(_)))
            .map(|(mapping, _)| mapping.pages());
        self.count(held, mapped)
    }

    /// Done just before the stop: makes room for what is written by now. A harvest that follows at once
    /// also finds the page tables in the processor's caches, and takes about half the time.
    pub(crate) fn make_ready(&mut self) -> Result<(), TakeError> {
        let written = self.written_now(&self.layout(true)?)?;
        self.arena.prepare(SIZE.bytes_of(written + SLACK));
        Ok(())
    }

    /// How many pages of tracked mappings read as written.
    fn written_now(&self, layout: &Layout) -> Result<PageCount, TakeError> {
        // The kernel's fast path.
        let written = ScanRequest {
            all_of: Categories::WRITTEN,
            returned: Categories::WRITTEN,
            ..ScanRequest::over(0, 0)
        };
        self.count(written, layout.tracked.iter().copied())
    }

    /// How many pages of `ranges` answer to `request`, which is made over each of them.
    fn count(
        &self,
        request: ScanRequest,
        ranges: impl Iterator<Item = PageRange>,
    ) -> Result<PageCount, TakeError> {
        let mut count = PageCount(0);
        let mut vector = vec![ScannedRange::EMPTY; 1024];
        for range in ranges {
            let (start, end) = SIZE.span_of(range);
            let request = ScanRequest {
                start,
                end,
                ..request
            };
            self.space
                .pagemap
                .scan(&request, &mut vector, |found| {
                    count += SIZE.covering(found.start(), found.end()).count();
                })
                .map_err(CaptureError::from)?;
        }
        Ok(count)
    }

    /// One round: harvest, copy, store. Returns how many pages were copied.
    fn precopy_round(
        &mut self,
        layout: &Layout,
        everything: bool,
        writer: &mut SnapshotWriter,
        harvests: &mut Harvests,
        precopied: &mut Precopied,
    ) -> Result<PageCount, TakeError> {
        let Some(tracking) = self.tracking.as_mut() else {
            return Ok(PageCount(0));
        };
        // Only private anonymous memory: its pages change by being written and by nothing else.
        let mappings: Vec<PageRange> = layout
            .each()
            .filter(|(_, watch)| *watch == Watch::Track)
            .map(|(mapping, _)| mapping.pages())
            .collect();
        let harvest = tracking.tracker.harvest(&mappings)?;
        let refused: PageSet = harvest.layout().refused.iter().map(|r| r.pages).collect();
        let read = match everything {
            true => layout.anonymous.subtract(&refused),
            false => harvest.written().clone(),
        };
        harvests.taken.push(harvest);
        let source = Source {
            memory: &self.space.memory,
            pagemap: &self.space.pagemap,
            parent: None,
            knows_guards: self.space.knows_guards,
        };
        let mut spill = |arena: &Arena| Ok(writer.put_pages(0, &arena.pieces())?);
        let mut copied = Copied::new(&mut self.arena, &mut spill);
        source.read(&read, &layout.anonymous, &mut copied)?;
        let pages = copied.pages.subtract(&copied.unreadable);
        let states = std::mem::take(&mut copied.states);
        // A page that could not be read is looked at again when nothing moves.
        let covered = read.subtract(&copied.unreadable);
        let postponed = std::mem::take(&mut copied.unreadable);
        writer.put_pages(0, &self.arena.pieces())?;
        self.arena.clear();
        for (range, state) in states {
            writer.put_state(0, range, state)?;
        }
        precopied.covered = precopied.covered.union(&covered);
        precopied.copied = precopied.copied.union(&pages);
        precopied.postponed = precopied.postponed.union(&postponed);
        Ok(pages.count())
    }
}
