//! A set of pages, held as sorted, disjoint, coalesced ranges.
//!
//! The kernel reports written pages as ranges, mostly in ascending order, sometimes twice. Adding
//! at the end is therefore cheap, and adding what is there already changes nothing.

use crate::range::{PageCount, PageIndex, PageRange};
use std::fmt;

/// A set of pages of one space.
///
/// The ranges are sorted, none is empty, and no two touch: equal sets have equal ranges.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct PageSet {
    ranges: Vec<PageRange>,
}

impl PageSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// True if the set holds no page.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many pages the set holds.
    pub fn count(&self) -> PageCount {
        self.ranges.iter().map(|range| range.count()).sum()
    }

    /// The ranges of the set: sorted, disjoint, none touching the next.
    pub fn ranges(&self) -> &[PageRange] {
        &self.ranges
    }

    /// The pages of the set in ascending order.
    pub fn pages(&self) -> impl Iterator<Item = PageIndex> + '_ {
        self.ranges.iter().flat_map(|range| range.pages())
    }

    /// True if `page` is in the set.
    pub fn contains(&self, page: PageIndex) -> bool {
        self.range_at(page).is_some()
    }

    /// True if every page of `range` is in the set.
    pub fn contains_range(&self, range: PageRange) -> bool {
        range.is_empty()
            || self
                .range_at(range.start())
                .is_some_and(|found| range.end() <= found.end())
    }

    /// The range of the set that holds `page`.
    pub fn range_at(&self, page: PageIndex) -> Option<PageRange> {
        let after = self.ranges.partition_point(|range| range.start() <= page);
        let candidate = *self.ranges.get(after.checked_sub(1)?)?;
        candidate.contains(page).then_some(candidate)
    }

    /// Adds the pages of `range`; those that are there already stay.
    pub fn insert(&mut self, range: PageRange) {
        if range.is_empty() {
            return;
        }
        match self.ranges.last_mut() {
            None => return self.ranges.push(range),
            Some(last) if last.end() < range.start() => return self.ranges.push(range),
            Some(last) if last.start() <= range.start() => {
                *last = PageRange::new(last.start(), last.end().max(range.end()));
                return;
            }
            Some(_) => {}
        }
        // Everything from `first` up to `past` overlaps or touches the new range and merges into it.
        let first = self.ranges.partition_point(|r| r.end() < range.start());
        let past = self.ranges.partition_point(|r| r.start() <= range.end());
        let mut merged = range;
        if let Some(swallowed) = self.ranges.get(first..past).filter(|s| !s.is_empty()) {
            merged = PageRange::new(
                range.start().min(swallowed[0].start()),
                range.end().max(swallowed[swallowed.len() - 1].end()),
            );
        }
        self.ranges.splice(first..past, [merged]);
    }

    /// Removes the pages of `range`; those that are not there do not matter.
    pub fn remove(&mut self, range: PageRange) {
        if range.is_empty() {
            return;
        }
        let first = self.ranges.partition_point(|r| r.end() <= range.start());
        let past = self.ranges.partition_point(|r| r.start() < range.end());
        if first >= past {
            return;
        }
        let left = PageRange::new(self.ranges[first].start(), range.start());
        let right = PageRange::new(range.end(), self.ranges[past - 1].end());
        let kept = [left, right].into_iter().filter(|r| !r.is_empty());
        self.ranges.splice(first..past, kept);
    }

    /// The pages that are in either set.
    pub fn union(&self, other: &Self) -> Self {
        if self.is_empty() {
            return other.clone();
        }
        if other.is_empty() {
            return self.clone();
        }
        let mut union = Self {
            ranges: Vec::with_capacity(self.ranges.len() + other.ranges.len()),
        };
        let (mut a, mut b) = (
            self.ranges.iter().peekable(),
            other.ranges.iter().peekable(),
        );
        loop {
            let next = match (a.peek(), b.peek()) {
                (Some(left), Some(right)) if left.start() <= right.start() => a.next(),
                (_, Some(_)) => b.next(),
                (Some(_), None) => a.next(),
                (None, None) => return union,
            };
            next.into_iter().for_each(|range| union.insert(*range));
        }
    }

    /// The pages of this set that are not in `other`.
    pub fn subtract(&self, other: &Self) -> Self {
        let mut rest = Self::new();
        let mut holes = other.ranges.iter().copied().peekable();
        for &range in &self.ranges {
            let mut at = range.start();
            while let Some(hole) = holes.peek().copied() {
                if hole.end() <= at {
                    holes.next();
                    continue;
                }
                if hole.start() >= range.end() {
                    break;
                }
                rest.insert(PageRange::new(at, hole.start()));
                at = at.max(hole.end());
                if hole.end() >= range.end() {
                    break;
                }
            }
            rest.insert(PageRange::new(at, range.end()));
        }
        rest
    }

    /// The pages that are in both sets.
    pub fn intersect(&self, other: &Self) -> Self {
        let mut both = Self::new();
        let (mut a, mut b) = (0, 0);
        while let (Some(&left), Some(&right)) = (self.ranges.get(a), other.ranges.get(b)) {
            if let Some(common) = left.intersection(right) {
                both.insert(common);
            }
            if left.end() <= right.end() {
                a += 1;
            } else {
                b += 1;
            }
        }
        both
    }

    /// The part of the set that lies in `range`.
    pub fn within(&self, range: PageRange) -> Self {
        let first = self.ranges.partition_point(|r| r.end() <= range.start());
        let ranges = self.ranges[first..]
            .iter()
            .map_while(|r| r.intersection(range))
            .collect();
        Self { ranges }
    }
}

impl FromIterator<PageRange> for PageSet {
    fn from_iter<I: IntoIterator<Item = PageRange>>(ranges: I) -> Self {
        let mut sorted: Vec<PageRange> = ranges.into_iter().collect();
        sorted.sort_unstable();
        let mut set = Self::new();
        sorted.into_iter().for_each(|range| set.insert(range));
        set
    }
}

impl From<PageRange> for PageSet {
    fn from(range: PageRange) -> Self {
        let mut set = Self::new();
        set.insert(range);
        set
    }
}

/// More ranges than this that belong somewhere in the middle are merged in one pass over the set; each
/// insertion there moves all that follows.
const MERGED_FROM: usize = 8;

impl Extend<PageRange> for PageSet {
    fn extend<I: IntoIterator<Item = PageRange>>(&mut self, ranges: I) {
        let mut amid = Vec::new();
        for range in ranges {
            match self.ranges.last() {
                Some(last) if range.start() < last.start() => amid.push(range),
                _ => self.insert(range),
            }
        }
        if amid.len() < MERGED_FROM {
            amid.into_iter().for_each(|range| self.insert(range));
        } else {
            *self = self.union(&amid.into_iter().collect());
        }
    }
}

impl fmt::Debug for PageSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&self.ranges).finish()
    }
}
