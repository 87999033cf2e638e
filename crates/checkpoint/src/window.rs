//! What happens between stopping a process and letting it go: deciding which pages to copy. The rounds
//! of copying before that are in `precopy`, the copying itself is in `capture`.

use crate::capture::{CaptureError, Copied, SIZE, Source};
use crate::checkpointer::{Checkpointer, MEMORY_SPACE};
use crate::files::FileReport;
use crate::layout::{self, Watch};
use crate::memo::Memo;
use crate::report::{NotCaptured, NotTracked};
use crate::rings;
use crate::take::{Harvests, Layout, Stopped, TakeError, Window};
use pagetide_kernel::maps::{self, Mapping};
use pagetide_kernel::pagemap_scan::{Categories, ScanError, ScanRequest, ScannedRange};
use pagetide_pages::{PageIndex, PageRange, PageSet};
use pagetide_process::StoppedProcess;
use pagetide_snapshot::{Capture, PageState, SnapshotWriter, Space};
use pagetide_tracker::Tracker;
use rustix::fs::SeekFrom;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Swap types from here on are not swap areas but markers and the like (include/linux/swap.h).
const FIRST_PSEUDO_SWAP_TYPE: u8 = 23;

/// Which private file pages the process has its own copies of.
#[derive(Default)]
struct Copies {
    in_memory: PageSet,
    in_swap: PageSet,
}

impl Checkpointer {
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
    pub(crate) fn layout(&self, trusts_tracker: bool) -> Result<Layout, TakeError> {
        let pid = self.identity().pid;
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
        Ok(Layout::new(mappings, trackable, holds))
    }

    /// A first description of the space, good enough to put pages into.
    pub(crate) fn space_before(&self) -> Result<Space, TakeError> {
        let mappings = maps::mappings(self.identity().pid)?;
        let region =
            |mapping: &Mapping| layout::region(mapping, None, Vec::new(), Capture::Captured);
        let regions = mappings.iter().map(region).collect();
        Ok(Space::new(MEMORY_SPACE, SIZE, regions))
    }

    /// All that is done while the process is stopped.
    pub(crate) fn in_window(
        &mut self,
        process: &mut StoppedProcess,
        window: &Window<'_>,
        writer: &mut SnapshotWriter,
        harvests: &mut Harvests,
    ) -> Result<Stopped, TakeError> {
        let threads = process.thread_states()?;
        let distrusted = window.parent.is_some_and(|(_, memo)| memo.unlisted_ring);
        let layout = self.layout(!window.io.unlisted_ring && !distrusted)?;
        let scan_started = Instant::now();
        let mut refused = Vec::new();
        let mut written = PageSet::new();
        if let Some(tracking) = self.tracking.as_mut() {
            let harvest = tracking.tracker.harvest(&layout.tracked)?;
            written = harvest.written().clone();
            refused.extend(harvest.layout().refused.iter().map(not_tracked));
            harvests.taken.push(harvest);
        }
        let scan = scan_started.elapsed();

        let copy_started = Instant::now();
        let plan = self.plan(&layout, &refused, written, window)?;
        let source = Source {
            memory: &self.space.memory,
            pagemap: &self.space.pagemap,
            parent: window
                .parent
                .and_then(|(view, _)| Some((view, view.space_index(MEMORY_SPACE)?))),
            knows_guards: self.space.knows_guards,
        };
        let mut spill = |arena: &crate::arena::Arena| Ok(writer.put_pages(0, &arena.pieces())?);
        let mut copied = Copied::new(&mut self.arena, &mut spill);
        source.read(&plan.read, &layout.anonymous, &mut copied)?;
        source.compare(&plan.compare, &layout.anonymous, &mut copied)?;
        let mut states = std::mem::take(&mut copied.states);
        let unreadable = std::mem::take(&mut copied.unreadable);
        let pages = std::mem::take(&mut copied.pages);
        states.extend(
            plan.zero
                .ranges()
                .iter()
                .map(|&range| (range, PageState::Zero)),
        );
        self.name_unreadable(&unreadable, &mut states)?;
        Ok(Stopped {
            read: pages.union(&plan.read),
            copied: window
                .precopied
                .copied
                .union(&pages.subtract(&unreadable))
                .count(),
            window: pages.count(),
            layout,
            threads,
            states,
            memo: plan.memo,
            refused,
            unreadable,
            stop: Duration::ZERO,
            scan,
            copy: copy_started.elapsed(),
        })
    }

    /// Guard regions and pages past the end of a file.
    fn name_unreadable(
        &self,
        unreadable: &PageSet,
        states: &mut Vec<(PageRange, PageState)>,
    ) -> Result<(), CaptureError> {
        for &range in unreadable.ranges() {
            states.push((range, PageState::Unbacked));
            if self.space.knows_guards {
                self.scan(range, Categories::GUARD, Categories::GUARD, |pages, _| {
                    states.push((pages, PageState::Guard));
                })?;
            }
        }
        Ok(())
    }

    /// Which pages to read, to compare, and to record as zero.
    fn plan(
        &self,
        layout: &Layout,
        refused: &[NotTracked],
        written: PageSet,
        window: &Window<'_>,
    ) -> Result<Plan, TakeError> {
        let refused: PageSet = refused
            .iter()
            .map(|refused| SIZE.covering(refused.start, refused.end))
            .collect();
        let tracked: PageSet = layout.tracked.iter().copied().collect();
        let tracked = tracked.subtract(&refused);
        let mut compare = layout
            .set(|_, watch| watch == Watch::Compare)
            .union(&refused);
        let over_file = layout.set(|_, watch| watch == Watch::TrackOverFile);
        let over_file = over_file.subtract(&refused);
        let copies = self.private_copies(&over_file)?;

        // Buffers that the kernel may write to unseen, since the last snapshot or from now on.
        let buffers = match window.io.any {
            false => PageSet::new(),
            true => rings::asynchronous_io(self.identity().pid, &layout.mappings)
                .buffers
                .union(&window.io.buffers),
        };
        let mut read = written
            .union(&window.precopied.postponed)
            .union(&buffers)
            .intersect(&tracked);
        let mut was_copied = PageSet::new();
        match window.parent {
            None => {
                read = read.union(&tracked.subtract(&window.precopied.covered));
            }
            Some((_, memo)) => {
                // A private copy that is gone shows the file again, and that counts as no write.
                was_copied = memo.private_copies.intersect(&over_file);
                read = read.union(&was_copied.subtract(&copies.in_memory));
                read = read.union(&memo.buffers.union(&memo.in_flight).intersect(&tracked));
                let unchanged = |mapping: &Mapping, watch| {
                    watch == Watch::TrackOverFile
                        && window.files.unchanged_since(mapping, &memo.settled)
                };
                let unsettled = over_file.subtract(&layout.set(unchanged));
                compare = compare.union(&unsettled.subtract(&copies.in_memory));
            }
        }
        // What was copied before and may be stale now is not compared with the parent: it must be put
        // again whatever it is.
        let stale = window
            .again
            .union(&window.precopied.covered.intersect(&compare));
        read = read.union(&stale.intersect(&tracked.union(&compare)));

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
        for (mapping, _) in layout.each().filter(|(mapping, _)| mapping.shared) {
            if let Some(object) = self.files.shared_memory(mapping, window.files) {
                zero = zero.union(&holes(object, mapping));
            }
        }
        read = read.subtract(&zero);
        let may_be_in_swap = was_copied.union(&written);
        Ok(Plan {
            compare: compare.subtract(&read).subtract(&zero),
            read,
            zero,
            memo: Memo {
                private_copies: copies
                    .in_memory
                    .union(&copies.in_swap.intersect(&may_be_in_swap)),
                settled: Vec::new(),
                buffers,
                in_flight: match window.io.any {
                    true => written,
                    false => PageSet::new(),
                },
                unlisted_ring: window.io.unlisted_ring,
            },
        })
    }

    /// The pages of `over_file` (private mappings of files) that the process has its own copies of.
    fn private_copies(&self, over_file: &PageSet) -> Result<Copies, TakeError> {
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

    /// The space as the snapshot describes it, and what the snapshot does not hold.
    pub(crate) fn describe(
        &mut self,
        stopped: &Stopped,
        files: &FileReport,
    ) -> (Space, Vec<NotCaptured>) {
        self.advice
            .refresh(self.examined.identity.pid, &stopped.layout.mappings);
        let mut not_captured = Vec::new();
        let mut regions = Vec::new();
        for (mapping, watch) in stopped.layout.each() {
            let reason = match watch {
                Watch::Leave(reason) => Some(reason),
                _ if layout::is_device_like(mapping)
                    && stopped.unreadable.contains_range(mapping.pages()) =>
                {
                    Some("memory of a device or of the kernel, which cannot be read")
                }
                _ => None,
            };
            let capture = match reason {
                None => Capture::Captured,
                Some(reason) => {
                    not_captured.push(NotCaptured {
                        start: mapping.start,
                        end: mapping.end,
                        name: layout::display_name(mapping),
                        reason: reason.to_owned(),
                    });
                    Capture::NotCaptured {
                        reason: reason.to_owned(),
                    }
                }
            };
            let advice = self.advice.of(mapping);
            regions.push(layout::region(
                mapping,
                files.facts(mapping),
                advice,
                capture,
            ));
        }
        (Space::new(MEMORY_SPACE, SIZE, regions), not_captured)
    }
}

/// What to do with which pages.
struct Plan {
    read: PageSet,
    compare: PageSet,
    zero: PageSet,
    memo: Memo,
}

fn not_tracked(refused: &pagetide_tracker::Refused) -> NotTracked {
    let (start, end) = SIZE.span_of(refused.pages);
    NotTracked {
        start,
        end,
        reason: refused.reason.to_string(),
    }
}

/// The pages of a shared memory mapping that were never allocated: reading them through the process
/// would allocate them. An object that does not say where its holes are has none.
pub(crate) fn holes(object: &OwnedFd, mapping: &Mapping) -> PageSet {
    let first = mapping.offset_bytes;
    let Ok(size) = rustix::fs::fstat(object).map(|stat| u64::try_from(stat.st_size).unwrap_or(0))
    else {
        return PageSet::new();
    };
    let end = size.min(first + mapping.length_bytes());
    let start_page = mapping.pages().start();
    let mut holes = PageSet::new();
    let mut at = first;
    while at < end {
        let data = match rustix::fs::seek(object, SeekFrom::Data(at)) {
            Ok(data) => data.min(end),
            Err(rustix::io::Errno::NXIO) => end,
            Err(_) => return PageSet::new(),
        };
        // A hole is made of whole pages of the object.
        let pages = PageRange::new(
            PageIndex(start_page.0 + (at - first) / SIZE.bytes()),
            PageIndex(start_page.0 + (data - first) / SIZE.bytes()),
        );
        holes.insert(pages);
        if data >= end {
            break;
        }
        at = match rustix::fs::seek(object, SeekFrom::Hole(data)) {
            Ok(hole) => hole,
            Err(_) => end,
        };
    }
    holes
}
