//! The memory part of a rollback: which pages differ, what they have to become, and writing them.

use super::error::RollbackError;
use super::shape::Shape;
use crate::capture::SIZE;
use crate::file_pages::{OutsideFiles, read_bytes};
use crate::layout::{self, ChangeDetection};
use pagetide_kernel::maps::Mapping;
use pagetide_kernel::memory::ProcessMemory;
use pagetide_kernel::pagemap_scan::{Categories, Pagemap, ScanRequest, ScannedRange};
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};
use pagetide_process::{RemoteCallError, StoppedProcess};
use pagetide_snapshot::{Backing, Capture, PageHash, PageState, Region, Sharing, View};
use std::collections::HashMap;

/// Pages compared at once.
const COMPARE_AT_ONCE: PageCount = PageCount(64);
/// Zero ranges of private anonymous memory from this length on are dropped rather than written.
const DROP_FROM: PageCount = PageCount(16);
/// As much as is read from the store before the first change; what is more is read twice, first to see
/// that it can be read.
const HELD_BYTES: usize = 512 << 20;

const MADV_GUARD_INSTALL: u64 = 102;
const MADV_GUARD_REMOVE: u64 = 103;

/// The stopped process as it is.
pub(super) struct LiveMemory<'a> {
    pub memory: &'a ProcessMemory,
    pub pagemap: &'a Pagemap,
    pub mappings: &'a [Mapping],
    /// Pages of shared memory, and of mappings of files in memory, that were never allocated.
    pub empty: &'a PageSet,
    /// What pages with probes of a tracing tool in them are without: these stay.
    pub instead: &'a HashMap<PageIndex, Vec<u8>>,
}

/// Which pages of the snapshot need care.
struct Kinds {
    /// Private memory without a file: what holds nothing is zero.
    anonymous: PageSet,
    /// Pages that are mapped anew.
    fresh: PageSet,
}

/// The pages that have to change.
#[derive(Default)]
pub(super) struct Contents {
    data: PageSet,
    zero: PageSet,
    /// Of the zero pages, those that can be dropped from memory.
    droppable: PageSet,
    guard: PageSet,
    /// Guard pages now that must become ordinary again.
    unguard: PageSet,
    held: Vec<(PageRange, Vec<u8>)>,
    /// Where pages are that the store left in files.
    files: OutsideFiles,
    compared: PageCount,
}

impl Contents {
    /// Finds the pages that differ, and reads from the store what they have to become. `changed` are the
    /// pages the chain says may differ, if the tracker's bits are to be relied on; else all are compared.
    pub fn plan(
        view: &View,
        space: usize,
        now: &LiveMemory<'_>,
        shape: &Shape,
        changed: Option<&PageSet>,
    ) -> Result<Self, RollbackError> {
        let mut contents = Self::default();
        let regions = &view.spaces()[space].regions;
        let held = |region: &&Region| region.capture == Capture::Captured;
        let captured: PageSet = regions.iter().filter(held).map(|r| r.pages).collect();
        let droppable: PageSet = regions
            .iter()
            .filter(|r| r.backing == Backing::Anonymous && r.sharing == Sharing::Private)
            .map(|r| r.pages)
            .collect();
        let huge: PageSet = now
            .mappings
            .iter()
            .filter(|mapping| layout::watch(mapping) == ChangeDetection::CompareHeld)
            .map(Mapping::pages)
            .collect();
        let kinds = Kinds {
            anonymous: droppable.union(&huge),
            fresh: shape.new_pages(),
        };
        let suspects = match changed {
            None => captured,
            Some(changed) => {
                let trusted: PageSet = now
                    .mappings
                    .iter()
                    .filter(|mapping| layout::watch(mapping) == ChangeDetection::Track)
                    .map(Mapping::pages)
                    .collect();
                let trusted = trusted.subtract(&kinds.fresh);
                let doubtful = doubtful(now.pagemap, &trusted)?;
                let suspects = doubtful.union(changed).union(&captured.subtract(&trusted));
                suspects.intersect(&captured)
            }
        };
        let mut scratch = vec![0; SIZE.bytes_of(COMPARE_AT_ONCE) as usize];
        for &range in suspects.ranges() {
            for (pages, state) in view.runs(space, range) {
                contents.sort(view, space, now, &kinds, (pages, state), &mut scratch)?;
            }
        }
        contents.droppable = contents.zero.intersect(&droppable);
        contents.refuse_shared_files(regions)?;
        contents.refuse_unwritable(regions)?;
        contents.read_ahead(view, space)?;
        Ok(contents)
    }

    /// Sorts the pages of one run by what has to be done with them.
    fn sort(
        &mut self,
        view: &View,
        space: usize,
        now: &LiveMemory<'_>,
        kinds: &Kinds,
        (pages, state): (PageRange, PageState),
        scratch: &mut [u8],
    ) -> Result<(), RollbackError> {
        let guards = guards(now.pagemap, pages)?;
        match state {
            PageState::Unbacked | PageState::Shown => return Ok(()),
            PageState::Guard => {
                let wanted = PageSet::from(pages).subtract(&guards);
                self.guard.extend(wanted.ranges().iter().copied());
                return Ok(());
            }
            PageState::Data | PageState::Zero | PageState::File => {}
        }
        self.unguard.extend(guards.ranges().iter().copied());
        // What is not mapped yet has to be written, and so has what was a guard.
        let mut differing = guards.clone();
        if state != PageState::File {
            // A new mapping of a file shows what the file has.
            differing = differing.union(&kinds.fresh.within(pages));
        }
        let mut readable = PageSet::from(pages).subtract(&differing);
        if state == PageState::Zero {
            // What holds nothing is zero already, and reading it would make it hold something. But a
            // mapping of a file or of shared memory shows what the page tables do not tell.
            let telling = readable.intersect(&kinds.anonymous);
            readable = readable.subtract(&telling).subtract(now.empty);
            readable = readable.union(&holding(now.pagemap, &telling)?);
            differing = differing.subtract(&kinds.anonymous);
        }
        for piece in readable
            .ranges()
            .iter()
            .flat_map(|r| r.pieces(COMPARE_AT_ONCE))
        {
            let bytes = &mut scratch[..SIZE.bytes_of(piece.count()) as usize];
            let unreadable = now.memory.read_pages(SIZE, &[piece], bytes)?;
            if let Some(&pages) = unreadable.first() {
                return Err(refusal(
                    regions_of(view, space),
                    pages,
                    "it cannot be read or written now (a file that is shorter than it was?)",
                ));
            }
            self.compared += piece.count();
            for (page, bytes) in piece.pages().zip(bytes.chunks_exact(SIZE.len())) {
                let bytes = now.instead.get(&page).map_or(bytes, |bytes| &bytes[..]);
                if view.page_hash(space, page) != Some(PageHash::of(bytes)) {
                    differing.insert(PageRange::single(page));
                }
            }
        }
        let set = match state {
            PageState::Zero => &mut self.zero,
            _ => &mut self.data,
        };
        set.extend(differing.ranges().iter().copied());
        Ok(())
    }

    /// A file that is mapped shared is not the process's memory alone: putting it back would write to
    /// the file.
    fn refuse_shared_files(&self, regions: &[Region]) -> Result<(), RollbackError> {
        let differing = self.data.union(&self.zero);
        let shared_file = |region: &&Region| {
            region.sharing == Sharing::Shared && matches!(region.backing, Backing::File { .. })
        };
        for region in regions.iter().filter(shared_file) {
            if !differing.within(region.pages).is_empty() {
                let reason = if region.name.starts_with("anon_inode:") {
                    "memory shared with the kernel has changed since, and is not put back"
                } else {
                    "a file mapped shared has changed since, and is not put back"
                };
                return Err(refusal(regions, region.pages, reason));
            }
        }
        Ok(())
    }

    /// Shared memory and huge pages that the process itself may not write to, nobody may write to
    /// through it. What another of its mappings shows too is put back there.
    fn refuse_unwritable(&mut self, regions: &[Region]) -> Result<(), RollbackError> {
        let unwritable = |region: &&Region| {
            let is_huge = region.advice.iter().any(|advice| advice == "hugetlb");
            !region.protection.write && (region.sharing == Sharing::Shared || is_huge)
        };
        let differing = self.data.union(&self.zero);
        for region in regions.iter().filter(unwritable) {
            let mut left = differing.within(region.pages);
            for &seen in &seen_elsewhere(region, regions) {
                left.remove(seen);
                self.data.remove(seen);
                self.zero.remove(seen);
            }
            if let Some(&pages) = left.ranges().first() {
                let reason = "memory that may not be written to has changed, and is not put back";
                return Err(refusal(regions, pages, reason));
            }
        }
        Ok(())
    }

    /// Reads the wanted bytes, so that nothing is changed if the store cannot give them.
    fn read_ahead(&mut self, view: &View, space: usize) -> Result<(), RollbackError> {
        let mut held_bytes = 0;
        for &range in self.data.ranges() {
            let held = &mut self.held;
            read_bytes::<RollbackError>(view, space, range, &self.files, |pages, bytes| {
                if held_bytes + bytes.len() <= HELD_BYTES {
                    held_bytes += bytes.len();
                    held.push((pages, bytes.to_vec()));
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Refuses guards in what is `sealed` (mseal(2)), where the kernel may refuse them.
    pub fn check_sealed(&self, sealed: &PageSet, regions: &[Region]) -> Result<(), RollbackError> {
        match self.guard.intersect(sealed).ranges().first() {
            None => Ok(()),
            Some(&pages) => Err(refusal(
                regions,
                pages,
                "it is sealed (mseal(2)), and no guard region can be put into it any more",
            )),
        }
    }

    /// The system calls that it cannot do without, by number.
    pub fn calls(&self) -> impl Iterator<Item = i64> {
        let guards = !self.guard.is_empty() || !self.unguard.is_empty();
        guards.then_some(nix::libc::SYS_madvise).into_iter()
    }

    /// Writes the pages.
    pub fn apply(
        &self,
        pid: i32,
        stopped: &mut StoppedProcess,
        view: &View,
        space: usize,
        now: &LiveMemory<'_>,
    ) -> Result<(), RollbackError> {
        let memory = now.memory;
        let long = |range: &&PageRange| range.count() >= DROP_FROM;
        let dropped: PageSet = self
            .droppable
            .ranges()
            .iter()
            .filter(long)
            .copied()
            .collect();
        let dontneed = nix::libc::MADV_DONTNEED.unsigned_abs().into();
        let refused = |error: &RemoteCallError| {
            use RemoteCallError::{Failed, ForbiddenBySeccomp};
            matches!(error, Failed { .. } | ForbiddenBySeccomp { .. })
        };
        // Locked memory cannot be dropped, say; it is written then.
        let advice = [
            (&self.unguard, MADV_GUARD_REMOVE, false),
            (&dropped, dontneed, true),
            (&self.guard, MADV_GUARD_INSTALL, false),
        ];
        if advice.iter().any(|(pages, ..)| !pages.is_empty()) {
            let remote = |source| RollbackError::Remote { pid, source };
            let mut calls = stopped.remote_calls().map_err(remote)?;
            let advised = advice.iter().try_for_each(|(pages, advice, may_fail)| {
                pages.ranges().iter().try_for_each(|range| {
                    let (start, end) = SIZE.span_of(*range);
                    let arguments = [start, end - start, *advice, 0, 0, 0];
                    match calls.call(nix::libc::SYS_madvise, arguments) {
                        Err(error) if *may_fail && refused(&error) => Ok(()),
                        other => other.map(drop),
                    }
                })
            });
            advised.and(calls.finish()).map_err(remote)?;
        }
        let zeros = vec![0; SIZE.bytes_of(COMPARE_AT_ONCE) as usize];
        // What still holds something could not be dropped, or is where the calls had their stack.
        let left = holding(now.pagemap, &dropped)?;
        let written = self.zero.subtract(&dropped).union(&left);
        for piece in written
            .ranges()
            .iter()
            .flat_map(|r| r.pieces(COMPARE_AT_ONCE))
        {
            let bytes = &zeros[..SIZE.bytes_of(piece.count()) as usize];
            memory.write(SIZE.address_of(piece.start()), bytes)?;
        }
        let mut held = PageSet::new();
        for (pages, bytes) in &self.held {
            memory.write(SIZE.address_of(pages.start()), bytes)?;
            held.insert(*pages);
        }
        for &range in self.data.subtract(&held).ranges() {
            read_bytes(view, space, range, &self.files, |pages, bytes| {
                memory.write(SIZE.address_of(pages.start()), bytes)?;
                Ok::<(), RollbackError>(())
            })?;
        }
        Ok(())
    }

    /// How many pages are written.
    pub fn restored(&self) -> PageCount {
        self.data.count() + self.zero.count() + self.guard.count()
    }

    /// How many pages were read.
    pub fn compared(&self) -> PageCount {
        self.compared
    }
}

fn regions_of(view: &View, space: usize) -> &[Region] {
    &view.spaces()[space].regions
}

fn refusal(regions: &[Region], pages: PageRange, reason: &'static str) -> RollbackError {
    let region = regions
        .iter()
        .find(|region| region.pages.intersection(pages).is_some());
    let (start, end) = SIZE.span_of(pages);
    RollbackError::Mapping {
        start,
        end,
        name: region.map_or_else(String::new, |region| region.name.clone()),
        reason,
    }
}

/// The pages of `region`, which shows shared memory, that another of `regions` shows, too, and may be
/// written to there.
fn seen_elsewhere(region: &Region, regions: &[Region]) -> Vec<PageRange> {
    let Some((object, offset)) = shared_object(region) else {
        return Vec::new();
    };
    let pages_at = |other: &Region| {
        let (found, other_offset) = shared_object(other).filter(|_| other.protection.write)?;
        // Where the other would begin if it were laid over this one by what it shows.
        let (start, _) = SIZE.span_of(region.pages);
        let start = i128::from(start) + i128::from(other_offset) - i128::from(offset);
        let end = start + i128::from(SIZE.bytes_of(other.pages.count()));
        let (start, end) = (u64::try_from(start.max(0)), u64::try_from(end));
        let laid = SIZE.covering(start.ok()?, end.ok()?);
        (found == object).then(|| laid.intersection(region.pages))?
    };
    regions.iter().filter_map(pages_at).collect()
}

/// Device and inode of the shared memory that a region shows, and from which byte on.
fn shared_object(region: &Region) -> Option<((u64, u64), u64)> {
    match region.backing {
        Backing::SharedMemory {
            offset_bytes,
            device,
            inode,
            ..
        } => Some(((device, inode), offset_bytes)),
        _ => None,
    }
}

fn scan(pagemap: &Pagemap, request: ScanRequest, found: &mut PageSet) -> Result<(), RollbackError> {
    let mut vector = vec![ScannedRange::EMPTY; 512];
    pagemap.scan(&request, &mut vector, |range| {
        found.insert(SIZE.covering(range.start(), range.end()));
    })?;
    Ok(())
}

/// The pages of `trusted` that were written since the last harvest, or that no tracker watches.
fn doubtful(pagemap: &Pagemap, trusted: &PageSet) -> Result<PageSet, RollbackError> {
    let mut found = PageSet::new();
    for &range in trusted.ranges() {
        let (start, end) = SIZE.span_of(range);
        let over = ScanRequest::over(start, end);
        let written = ScanRequest {
            all_of: Categories::WRITTEN,
            returned: Categories::WRITTEN,
            ..over
        };
        let unwatched = ScanRequest {
            inverted: Categories::WP_ALLOWED,
            all_of: Categories::WP_ALLOWED,
            ..over
        };
        scan(pagemap, written, &mut found)?;
        scan(pagemap, unwatched, &mut found)?;
    }
    Ok(found)
}

/// The guard pages among `pages`; none where the kernel knows none.
fn guards(pagemap: &Pagemap, pages: PageRange) -> Result<PageSet, RollbackError> {
    let (start, end) = SIZE.span_of(pages);
    let request = ScanRequest {
        any_of: Categories::GUARD,
        ..ScanRequest::over(start, end)
    };
    let mut found = PageSet::new();
    match scan(pagemap, request, &mut found) {
        Err(_) => Ok(PageSet::new()),
        Ok(()) => Ok(found),
    }
}

/// The pages among `pages` that may hold something.
pub(super) fn holding(pagemap: &Pagemap, pages: &PageSet) -> Result<PageSet, RollbackError> {
    let mut found = PageSet::new();
    for &range in pages.ranges() {
        let (start, end) = SIZE.span_of(range);
        let request = ScanRequest {
            any_of: Categories::PRESENT | Categories::SWAPPED,
            ..ScanRequest::over(start, end)
        };
        scan(pagemap, request, &mut found)?;
    }
    Ok(found)
}
