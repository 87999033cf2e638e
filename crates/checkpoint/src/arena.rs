//! The bounded buffer that pages are copied into while the target is stopped.
//!
//! It is allocated and touched before the stop, because the first touch of fresh memory costs several
//! times what the copy does. It grows in chunks up to its limit; when the limit is met the caller
//! empties it. It knows nothing of what the pages are.

use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet, PageSize};
use std::collections::HashMap;

/// Chunks are of this size: large enough that a copy is not cut up, small enough to grow by.
const CHUNK_BYTES: usize = 4 << 20;

/// As many ranges as one system call can read.
const RANGES_AT_ONCE: usize = 1024;

/// Pages of one space with their bytes.
pub(crate) type Pieces<'a> = Vec<(PageIndex, &'a [u8])>;

/// Pages copied out of spaces.
pub(crate) struct Arena {
    page_size: PageSize,
    limit_chunks: usize,
    chunks: Vec<Vec<u8>>,
    /// How many chunks are in use, and how much of the last one is taken.
    open_chunks: usize,
    taken: usize,
    ranges: Vec<PageRange>,
    /// Chunk and offset of each range.
    places: Vec<(usize, usize)>,
    /// Number of a space, and its first range; each goes on to the next.
    spaces: Vec<(usize, usize)>,
}

/// Ranges that are still to be copied, consumed from the front.
pub(crate) struct RangeQueue<'a> {
    ranges: &'a [PageRange],
    /// How much of the first range is copied already.
    done: PageCount,
}

impl<'a> RangeQueue<'a> {
    pub fn new(ranges: &'a [PageRange]) -> Self {
        let done = PageCount(0);
        RangeQueue { ranges, done }
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Up to `count` pages from the front.
    pub fn next(&mut self, count: PageCount) -> Option<PageRange> {
        let (first, others) = self.ranges.split_first()?;
        let start = first.start().plus(self.done);
        let left = PageRange::new(start, first.end());
        let piece = left.pieces(count).next().unwrap_or(left);
        if piece.end() == first.end() {
            (self.ranges, self.done) = (others, PageCount(0));
        } else {
            self.done += piece.count();
        }
        Some(piece)
    }
}

/// A place for pages to be copied to: ranges, and room for their bytes one after another.
pub(crate) struct Batch<'a> {
    pub ranges: &'a [PageRange],
    pub bytes: &'a mut [u8],
}

impl Arena {
    /// An empty arena that will hold at most `limit_bytes`, but at least one chunk.
    pub fn new(page_size: PageSize, limit_bytes: u64) -> Self {
        let limit_chunks = usize::try_from(limit_bytes).unwrap_or(usize::MAX) / CHUNK_BYTES;
        Self {
            page_size,
            limit_chunks: limit_chunks.max(1),
            chunks: Vec::new(),
            open_chunks: 0,
            taken: 0,
            ranges: Vec::new(),
            places: Vec::new(),
            spaces: vec![(0, 0)],
        }
    }

    /// What is taken from now on belongs to the space with this index.
    pub fn open_space(&mut self, number: usize) {
        self.spaces.push((number, self.ranges.len()));
    }

    /// Makes sure that `bytes` (up to the limit) can be taken without touching fresh memory.
    pub fn prepare(&mut self, bytes: u64) {
        let wanted = usize::try_from(bytes)
            .unwrap_or(usize::MAX)
            .div_ceil(CHUNK_BYTES);
        // One more, since pieces do not fill every chunk to the last byte.
        let wanted = wanted.saturating_add(1).min(self.limit_chunks);
        while self.chunks.len() < wanted {
            self.grow();
        }
    }

    fn grow(&mut self) {
        // Any value but zero, so that every page is really written to.
        self.chunks.push(vec![1; CHUNK_BYTES]);
    }

    /// Room for as many of the `wanted` pages as fit side by side, but for at least one; `None` if the
    /// limit is met and the arena must be emptied first. `wanted` must not be empty.
    pub fn take(&mut self, wanted: &mut RangeQueue<'_>) -> Option<Batch<'_>> {
        let page = self.page_size.len();
        if self.open_chunks == 0 || CHUNK_BYTES - self.taken < page {
            if self.open_chunks == self.limit_chunks {
                return None;
            }
            if self.open_chunks == self.chunks.len() {
                self.grow();
            }
            self.open_chunks += 1;
            self.taken = 0;
        }
        let chunk = self.open_chunks - 1;
        let (first, offset) = (self.ranges.len(), self.taken);
        while self.ranges.len() - first < RANGES_AT_ONCE {
            let room = PageCount(((CHUNK_BYTES - self.taken) / page) as u64);
            if room == PageCount(0) {
                break;
            }
            let Some(range) = wanted.next(room) else {
                break;
            };
            self.ranges.push(range);
            self.places.push((chunk, self.taken));
            self.taken += self.page_size.bytes_of(range.count()) as usize;
        }
        Some(Batch {
            ranges: &self.ranges[first..],
            bytes: &mut self.chunks[chunk][offset..self.taken],
        })
    }

    /// The pages and their bytes by space, in the order they were taken.
    pub fn pieces(&self) -> Vec<(usize, Pieces<'_>)> {
        let piece = |(range, &(chunk, offset)): (&PageRange, &(usize, usize))| {
            let length = self.page_size.bytes_of(range.count()) as usize;
            (range.start(), &self.chunks[chunk][offset..offset + length])
        };
        let ends = self.spaces.iter().skip(1).map(|&(_, first)| first);
        let ends = ends.chain([self.ranges.len()]);
        let of_space = |(&(number, first), end): (&(usize, usize), usize)| {
            let (ranges, places) = (&self.ranges[first..end], &self.places[first..end]);
            (number, ranges.iter().zip(places).map(piece).collect())
        };
        let mut pieces: Vec<(usize, Pieces<'_>)> =
            self.spaces.iter().zip(ends).map(of_space).collect();
        pieces.retain(|(_, pieces)| !pieces.is_empty());
        pieces
    }

    /// The same, but for the pages of each space that are in `left_out`, by its number.
    pub fn pieces_without(&self, left_out: &HashMap<usize, PageSet>) -> Vec<(usize, Pieces<'_>)> {
        let mut all = self.pieces();
        for (space, pieces) in &mut all {
            let left_out = left_out.get(space).filter(|pages| !pages.is_empty());
            if let Some(left_out) = left_out {
                *pieces = self.cut(pieces, left_out);
            }
        }
        all
    }

    /// What of `pieces` is not in `left_out`.
    fn cut<'a>(&self, pieces: &Pieces<'a>, left_out: &PageSet) -> Pieces<'a> {
        let page = self.page_size.len();
        let mut kept = Vec::with_capacity(pieces.len());
        for &(first, bytes) in pieces {
            let all = PageRange::with_count(first, PageCount((bytes.len() / page) as u64));
            for part in PageSet::from(all).subtract(left_out).ranges() {
                let from = self.page_size.bytes_of(PageCount(part.start().0 - first.0)) as usize;
                let length = self.page_size.bytes_of(part.count()) as usize;
                kept.push((part.start(), &bytes[from..from + length]));
            }
        }
        kept
    }

    /// Empties it; the memory stays, touched.
    pub fn clear(&mut self) {
        let open = self.spaces.last().map_or(0, |&(number, _)| number);
        self.spaces = vec![(open, 0)];
        self.ranges.clear();
        self.places.clear();
        self.open_chunks = 0;
        self.taken = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_arena_gives_nothing_until_it_is_emptied() {
        let mut arena = Arena::new(PageSize::KIB_4, CHUNK_BYTES as u64);
        arena.prepare(u64::MAX);
        let pages = [
            PageRange::with_count(PageIndex(7), PageCount(2)),
            PageRange::with_count(PageIndex(100), PageCount(2000)),
        ];
        let mut wanted = RangeQueue::new(&pages);
        let batch = arena.take(&mut wanted).expect("an empty arena has room");
        assert_eq!(batch.bytes.len(), CHUNK_BYTES);
        assert_eq!(batch.ranges[0], pages[0]);
        assert_eq!(batch.ranges[1].count(), PageCount(1022));
        batch.bytes.fill(9);
        assert!(arena.take(&mut wanted).is_none() && !wanted.is_empty());
        let pieces = &arena.pieces()[0].1;
        assert_eq!((pieces.len(), pieces[1].0), (2, PageIndex(100)));
        assert!(
            pieces
                .iter()
                .all(|(_, bytes)| bytes.iter().all(|&byte| byte == 9))
        );
        arena.clear();
        let rest = arena.take(&mut wanted).expect("it was emptied");
        assert_eq!(
            rest.ranges,
            [PageRange::new(PageIndex(1122), PageIndex(2100))]
        );
        assert!(wanted.is_empty());
    }

    #[test]
    fn pages_are_given_by_space() {
        let mut arena = Arena::new(PageSize::KIB_4, CHUNK_BYTES as u64);
        for space in [3, 5, 3, 7] {
            arena.open_space(space);
            if space != 5 {
                let page = [PageRange::single(PageIndex(space as u64))];
                let batch = arena.take(&mut RangeQueue::new(&page)).expect("room");
                batch.bytes.fill(space as u8);
            }
        }
        let found: Vec<_> = arena
            .pieces()
            .into_iter()
            .map(|(space, pieces)| (space, pieces.len(), pieces[0].1[0]))
            .collect();
        assert_eq!(found, [(3, 1, 3), (3, 1, 3), (7, 1, 7)]);
    }

    #[test]
    fn what_is_left_out_of_one_space_is_cut_out_of_its_pieces_alone() {
        let mut arena = Arena::new(PageSize::KIB_4, CHUNK_BYTES as u64);
        let pages = PageRange::new(PageIndex(10), PageIndex(14));
        for space in [0, 1] {
            arena.open_space(space);
            let batch = arena.take(&mut RangeQueue::new(std::slice::from_ref(&pages)));
            let batch = batch.expect("room");
            for (value, page) in (10..).zip(batch.bytes.chunks_mut(4096)) {
                page.fill(value);
            }
        }
        let middle = PageRange::new(PageIndex(11), PageIndex(13));
        let left_out = HashMap::from([(1, PageSet::from(middle))]);
        type Told = (usize, Vec<(u64, Vec<u8>)>);
        let told: Vec<Told> = arena
            .pieces_without(&left_out)
            .into_iter()
            .map(|(space, pieces)| {
                let firsts = |bytes: &[u8]| bytes.chunks(4096).map(|page| page[0]).collect();
                let pieces = pieces.iter().map(|(page, bytes)| (page.0, firsts(bytes)));
                (space, pieces.collect())
            })
            .collect();
        let whole = (0, vec![(10, vec![10, 11, 12, 13])]);
        let cut = (1, vec![(10, vec![10]), (13, vec![13])]);
        assert_eq!(told, [whole, cut]);
    }
}
