//! Copying pages out of a process into the arena: the part of a checkpoint that runs in the stop
//! window. No compression, no disk, no formatting here.
//!
//! Pages arrive as two sets. Those to *read* are copied as they are. Those to *compare* are read into a
//! scratch buffer and copied only if their hash differs from the one in the parent snapshot. Before a
//! long range of memory is read, the kernel is asked which of its pages hold anything, because reading a
//! page that was never touched would make the kernel map or even allocate it.

use crate::arena::{Arena, RangeQueue};
use pagetide_kernel::memory::{MemoryError, ProcessMemory};
use pagetide_kernel::pagemap_scan::{Categories, Pagemap, ScanError, ScanRequest, ScannedRange};
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet, PageSize};
use pagetide_snapshot::{PageHash, PageState};
use std::collections::HashMap;

pub(crate) const SIZE: PageSize = PageSize::KIB_4;

/// From this length on, the kernel is asked what a range holds before it is read. A scan call costs
/// about as much as reading a few pages.
pub(crate) const ASK_FROM: PageCount = PageCount(16);

/// Pages compared at once: 256 KiB, which stays in the cache between the read and the hash.
const COMPARE_AT_ONCE: PageCount = PageCount(64);

/// Why pages could not be copied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// Memory could not be read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The page tables could not be scanned.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// A shared memory object could not be read.
    #[error("read the shared memory {name}")]
    Object {
        /// Its name, as `/proc/PID/maps` shows it.
        name: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// What the mappings are could not be read.
    #[error(transparent)]
    Maps(#[from] pagetide_kernel::maps::MapsError),
    /// The full buffer could not be emptied into the store.
    #[error(transparent)]
    Store(#[from] pagetide_snapshot::WriteError),
}

/// What the copying needs to know of where pages come from.
pub(crate) struct PageSource<'a> {
    pub memory: &'a ProcessMemory,
    pub pagemap: &'a Pagemap,
    /// The hash that a page has in the parent, if there is a parent and the page is in it.
    pub known: Option<&'a dyn Fn(PageIndex) -> Option<PageHash>>,
    /// The kernel's scan knows guard regions.
    pub knows_guards: bool,
    /// From this length on, the kernel is asked what a range of private memory holds.
    pub ask_from: PageCount,
    /// What pages are to hold in place of what is read.
    pub instead: &'a HashMap<PageIndex, Vec<u8>>,
}

/// What was copied.
pub(crate) struct Copied<'a> {
    pub arena: &'a mut Arena,
    /// Called with a full arena, which is cleared afterwards.
    pub spill: &'a mut dyn FnMut(&Arena) -> Result<(), CaptureError>,
    /// Pages whose state is known without bytes.
    pub states: Vec<(PageRange, PageState)>,
    /// Pages that were copied, those that could not be read among them.
    pub pages: PageSet,
    /// Pages that could not be read.
    pub unreadable: PageSet,
    /// Pages that were read and found to be what their file has.
    pub in_file: Vec<(PageIndex, PageHash)>,
    scratch: Vec<u8>,
    vector: Vec<ScannedRange>,
}

/// What becomes of a page that was read.
pub(crate) enum Verdict {
    /// It is what the parent has.
    Unchanged,
    /// It is what its file has.
    InFile(PageHash),
    /// It is kept.
    Keep,
}

impl<'a> Copied<'a> {
    pub fn new(
        arena: &'a mut Arena,
        spill: &'a mut dyn FnMut(&Arena) -> Result<(), CaptureError>,
    ) -> Self {
        Copied {
            arena,
            spill,
            states: Vec::new(),
            pages: PageSet::new(),
            unreadable: PageSet::new(),
            in_file: Vec::new(),
            scratch: vec![1; SIZE.bytes_of(COMPARE_AT_ONCE) as usize],
            vector: vec![ScannedRange::EMPTY; 1024],
        }
    }

    /// Reads `ranges`, some pages at a time, with `read`, which names the pages it could not read, and keeps
    /// those of which `judge` says so. What was judged is what is kept: memory may change between two reads.
    pub fn keep_some<E>(
        &mut self,
        ranges: &[PageRange],
        mut read: impl FnMut(&[PageRange], &mut [u8]) -> Result<Vec<PageRange>, E>,
        judge: impl Fn(PageIndex, &[u8]) -> Verdict,
    ) -> Result<(), CaptureError>
    where
        CaptureError: From<E>,
    {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut kept = Vec::new();
        let mut wanted = RangeQueue::new(ranges);
        let mut pieces = Vec::new();
        while !wanted.is_empty() {
            let mut room = COMPARE_AT_ONCE;
            pieces.clear();
            while let Some(piece) = wanted.next(room) {
                room = PageCount(room.0 - piece.count().0);
                pieces.push(piece);
                if room == PageCount(0) {
                    break;
                }
            }
            let length = SIZE.bytes_of(PageCount(COMPARE_AT_ONCE.0 - room.0)) as usize;
            let bytes = &mut scratch[..length];
            let unreadable: PageSet = read(&pieces, bytes)?.into_iter().collect();
            let pages = pieces.iter().flat_map(|piece| piece.pages());
            for (page, bytes) in pages.zip(bytes.chunks_exact(SIZE.len())) {
                if unreadable.contains(page) {
                    continue;
                }
                match judge(page, bytes) {
                    Verdict::Unchanged => {}
                    Verdict::InFile(hash) => self.in_file.push((page, hash)),
                    Verdict::Keep => {
                        self.keep(page, bytes)?;
                        kept.push(PageRange::single(page));
                    }
                }
            }
            self.unreadable.extend(unreadable.ranges().iter().copied());
        }
        self.pages.extend(kept);
        self.scratch = scratch;
        Ok(())
    }

    fn keep(&mut self, page: PageIndex, bytes: &[u8]) -> Result<(), CaptureError> {
        let one = [PageRange::single(page)];
        loop {
            if let Some(batch) = self.arena.take(&mut RangeQueue::new(&one)) {
                batch.bytes.copy_from_slice(bytes);
                return Ok(());
            }
            self.spill()?;
        }
    }

    /// Empties the full arena.
    fn spill(&mut self) -> Result<(), CaptureError> {
        (self.spill)(self.arena)?;
        self.arena.clear();
        Ok(())
    }
}

impl PageSource<'_> {
    /// Copies `pages` of private memory, asking first what long ranges hold: what holds nothing is
    /// zero. `anonymous` are the pages where that is so; elsewhere a page that is not in memory still
    /// has content.
    pub fn read(
        &self,
        pages: &PageSet,
        anonymous: &PageSet,
        copied: &mut Copied<'_>,
    ) -> Result<(), CaptureError> {
        let mut direct = Vec::new();
        let (askable, other) = (pages.intersect(anonymous), pages.subtract(anonymous));
        direct.extend_from_slice(other.ranges());
        for &range in askable.ranges() {
            if range.count() < self.ask_from {
                direct.push(range);
            } else {
                self.sort_by_content(range, &mut direct, copied)?;
            }
        }
        direct.sort_unstable();
        self.copy(&direct, copied)
    }

    /// Adds the pages of `range` that may hold something to `direct` and records the others.
    fn sort_by_content(
        &self,
        range: PageRange,
        direct: &mut Vec<PageRange>,
        copied: &mut Copied<'_>,
    ) -> Result<(), CaptureError> {
        let (start, end) = SIZE.span_of(range);
        let guard = if self.knows_guards {
            Categories::GUARD
        } else {
            Categories::empty()
        };
        let request = ScanRequest {
            any_of: Categories::PRESENT | Categories::SWAPPED,
            returned: guard,
            ..ScanRequest::over(start, end)
        };
        let mut at = range.start();
        let states = &mut copied.states;
        self.pagemap.scan(&request, &mut copied.vector, |found| {
            let pages = SIZE.covering(found.start(), found.end());
            push_state(states, PageRange::new(at, pages.start()), PageState::Zero);
            if found.categories().contains(Categories::GUARD) {
                push_state(states, pages, PageState::Guard);
            } else {
                direct.push(pages);
            }
            at = pages.end();
        })?;
        push_state(states, PageRange::new(at, range.end()), PageState::Zero);
        Ok(())
    }

    /// Copies `ranges`, ascending, into the arena.
    fn copy(&self, ranges: &[PageRange], copied: &mut Copied<'_>) -> Result<(), CaptureError> {
        let mut wanted = RangeQueue::new(ranges);
        while !wanted.is_empty() {
            let Some(batch) = copied.arena.take(&mut wanted) else {
                copied.spill()?;
                continue;
            };
            let unreadable = self.read_pages(batch.ranges, batch.bytes)?;
            copied.pages.extend(batch.ranges.iter().copied());
            copied.unreadable.extend(unreadable);
        }
        Ok(())
    }

    /// Reads `ranges`, and names those that cannot be read.
    fn read_pages(
        &self,
        ranges: &[PageRange],
        bytes: &mut [u8],
    ) -> Result<Vec<PageRange>, MemoryError> {
        let unreadable = self.memory.read_pages(SIZE, ranges, bytes)?;
        if !self.instead.is_empty() {
            let pages = ranges.iter().flat_map(|range| range.pages());
            for (page, bytes) in pages.zip(bytes.chunks_exact_mut(SIZE.len())) {
                if let Some(other) = self.instead.get(&page) {
                    bytes.copy_from_slice(other);
                }
            }
        }
        Ok(unreadable)
    }

    /// Reads `pages` and copies those whose content is not the parent's. Of the `anonymous` pages those that
    /// hold nothing are zero and never read: the mapping may belong to a userfaultfd of the process, and
    /// reading would wait for a handler that stands still.
    pub fn compare(
        &self,
        pages: &PageSet,
        anonymous: &PageSet,
        copied: &mut Copied<'_>,
    ) -> Result<(), CaptureError> {
        let mut direct = pages.subtract(anonymous).ranges().to_vec();
        for &range in pages.intersect(anonymous).ranges() {
            self.sort_by_content(range, &mut direct, copied)?;
        }
        direct.sort_unstable();
        let Some(known) = self.known else {
            return self.copy(&direct, copied);
        };
        let read = |pieces: &[PageRange], bytes: &mut [u8]| self.read_pages(pieces, bytes);
        copied.keep_some(&direct, read, |page, bytes| match known(page) {
            Some(known) if known == PageHash::of(bytes) => Verdict::Unchanged,
            _ => Verdict::Keep,
        })
    }
}

fn push_state(states: &mut Vec<(PageRange, PageState)>, range: PageRange, state: PageState) {
    if !range.is_empty() {
        states.push((range, state));
    }
}
