//! What a view keeps of the index of a file: of the frames and hashes those that it needs. A chain that lives long has
//! many files of which a page or two are still as they were; the rest of their indexes must not stay in memory for them.

use crate::format::index::Frame;
use crate::model::PageHash;
use std::ops::Range;

/// So many hashes are not worth the trouble.
const SMALL: usize = 64;

/// Frames and hashes of an index: all at first.
#[derive(Debug)]
pub struct CompactIndex {
    /// Ascending, with gaps where none is needed.
    pub frames: Vec<Frame>,
    /// Where the hashes of pages from some number on begin: ascending.
    stretches: Vec<Stretch>,
    hashes: Vec<PageHash>,
    /// Whether any of the frames is of differences.
    has_differences: bool,
}

#[derive(Clone, Copy, Debug)]
struct Stretch {
    first: u64,
    at: usize,
}

impl CompactIndex {
    /// All of an index but its runs.
    pub fn all(frames: Vec<Frame>, hashes: Vec<PageHash>) -> Self {
        Self {
            has_differences: frames.iter().any(Frame::differs),
            frames,
            stretches: vec![Stretch { first: 0, at: 0 }],
            hashes,
        }
    }

    /// The hashes of `count` pages from number `first` on, which are kept.
    pub fn hashes(&self, first: u64, count: u64) -> &[PageHash] {
        let after = self.stretches.partition_point(|s| s.first <= first);
        let stretch = self.stretches[after - 1];
        let start = stretch.at + (first - stretch.first) as usize;
        &self.hashes[start..start + count as usize]
    }

    /// The position of the frame that holds the stored page `ordinal`.
    pub fn frame_of(&self, ordinal: u64) -> usize {
        let after = self.frames.partition_point(|f| f.first_ordinal <= ordinal);
        after.saturating_sub(1)
    }

    /// Those of the stored pages `wanted` that are differences, ascending. Their frames are kept.
    pub fn differing(&self, wanted: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let first = if self.has_differences {
            self.frame_of(wanted.start)
        } else {
            self.frames.len()
        };
        let end = wanted.end;
        let frames = self.frames[first..].iter();
        let touching = frames.take_while(move |frame| frame.first_ordinal < end);
        touching.filter(|frame| frame.differs()).map(move |frame| {
            let frame_end = frame.first_ordinal + u64::from(frame.page_count);
            frame.first_ordinal.max(wanted.start)..frame_end.min(end)
        })
    }

    /// Whether it is worth it to keep no more than `needed` hashes.
    pub fn is_mostly_unneeded(&self, needed: u64) -> bool {
        self.hashes.len() > SMALL && needed <= self.hashes.len() as u64 / 2
    }

    /// What is needed for the pages with these numbers, in any order.
    pub fn only(&self, mut needed: Vec<Range<u64>>) -> Self {
        needed.sort_unstable_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in needed {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        let (mut stretches, mut hashes) = (Vec::with_capacity(joined.len()), Vec::new());
        for range in &joined {
            let at = hashes.len();
            stretches.push(Stretch {
                first: range.start,
                at,
            });
            hashes.extend_from_slice(self.hashes(range.start, range.end - range.start));
        }
        let is_needed = |frame: &&Frame| {
            let end = frame.first_ordinal + u64::from(frame.page_count);
            let next = joined.partition_point(|range| range.end <= frame.first_ordinal);
            joined.get(next).is_some_and(|range| range.start < end)
        };
        let frames: Vec<Frame> = self.frames.iter().filter(is_needed).cloned().collect();
        Self {
            has_differences: frames.iter().any(Frame::differs),
            frames,
            stretches,
            hashes,
        }
    }
}
