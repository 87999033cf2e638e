//! Large parts of memory that hold nothing: which they are, and what it would cost to mark them.
//!
//! Marking a slot that holds no page puts a marker into the page table, and a page table that is not there is
//! made for it: 2 MiB a GiB, for memory that was never touched. What is not marked reads written at all
//! times, so leaving it unmarked loses nothing. It is done by *chunks*, the memory that one page table
//! serves, and for runs of them, since each run takes a system call of its own at every harvest.

use pagetide_kernel::pagemap_scan::{Categories, Pagemap, ScanError, ScanRequest, ScannedRange};
use pagetide_pages::{PageIndex, PageRange, PageSet, PageSize};

const SIZE: PageSize = PageSize::KIB_4;

/// Pages of one page table.
const CHUNK: u64 = 512;

/// Bytes of one page table.
pub(crate) const TABLE_BYTES: u64 = 4096;

/// Runs of fewer chunks are marked: they cost less memory than a system call costs time.
const RUN: u64 = 8;

/// The first page from `start` on that holds something: content in memory or in swap, a guard, or a mark.
fn first_held(
    pagemap: &Pagemap,
    start: PageIndex,
    end: PageIndex,
) -> Result<Option<PageIndex>, ScanError> {
    let (from, to) = SIZE.span_of(PageRange::new(start, end));
    let request = ScanRequest {
        any_of: Categories::PRESENT | Categories::SWAPPED,
        max_pages: 1,
        ..ScanRequest::over(from, to)
    };
    let vector = &mut [ScannedRange::EMPTY];
    loop {
        match pagemap.scan_once(&request, vector) {
            Err(ScanError::Kernel { source, .. })
                if source.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(progress) if progress.filled == 0 => return Ok(None),
            Ok(_) => return Ok(Some(SIZE.index_of(vector[0].start()))),
            Err(error) => return Err(error),
        }
    }
}

fn chunks(from: u64, to: u64) -> PageRange {
    PageRange::new(PageIndex(from * CHUNK), PageIndex(to * CHUNK))
}

/// The long runs of whole chunks in `spans` that hold nothing. Of memory that is full, one chunk in each
/// [`RUN`] is looked at.
pub(crate) fn empty_runs(pagemap: &Pagemap, spans: &PageSet) -> Result<PageSet, ScanError> {
    let mut found = PageSet::new();
    for span in spans.ranges() {
        let first = span.start().0.div_ceil(CHUNK);
        let past = span.end().0 / CHUNK;
        let is_empty = |chunk: u64| {
            let chunk = chunks(chunk, chunk + 1);
            first_held(pagemap, chunk.start(), chunk.end()).map(|held| held.is_none())
        };
        // Chunks before this one are known.
        let mut known = first;
        // A run of that length has such a chunk in it.
        let mut probe = first.next_multiple_of(RUN);
        while probe < past {
            if !is_empty(probe)? {
                known = probe + 1;
                probe += RUN;
                continue;
            }
            let mut from = probe;
            while from > known && is_empty(from - 1)? {
                from -= 1;
            }
            let rest = chunks(probe, past);
            let held = first_held(pagemap, rest.start(), rest.end())?;
            let to = held.map_or(past, |page| page.0 / CHUNK);
            if to - from >= RUN {
                found.insert(chunks(from, to));
            }
            known = to;
            probe = (to + 1).next_multiple_of(RUN);
        }
    }
    Ok(found)
}

/// Of `runs`, which held nothing, those that still do.
pub(crate) fn still_empty(pagemap: &Pagemap, runs: &PageSet) -> Result<PageSet, ScanError> {
    let mut still = PageSet::new();
    for &run in runs.ranges() {
        if first_held(pagemap, run.start(), run.end())?.is_none() {
            still.insert(run);
        } else {
            let rest = empty_runs(pagemap, &PageSet::from(run))?;
            still.extend(rest.ranges().iter().copied());
        }
    }
    Ok(still)
}

/// The most page tables that marking `spans` could make: one for each chunk they touch.
pub(crate) fn tables_at_most(spans: &PageSet) -> u64 {
    let touched = |span: &PageRange| span.end().0.div_ceil(CHUNK) - span.start().0 / CHUNK;
    spans.ranges().iter().map(touched).sum()
}

/// About how many page tables marking `spans` would make: one for each chunk that holds nothing there.
pub(crate) fn tables_needed(pagemap: &Pagemap, spans: &PageSet) -> Result<u64, ScanError> {
    let mut needed = 0;
    for span in spans.ranges() {
        let mut at = span.start();
        while at < span.end() {
            let held = first_held(pagemap, at, span.end())?;
            let until = held.map_or(span.end().0.div_ceil(CHUNK), |page| page.0 / CHUNK);
            needed += until - at.0 / CHUNK;
            at = PageIndex((until + 1) * CHUNK).min(span.end());
        }
    }
    Ok(needed)
}
