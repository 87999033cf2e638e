//! A page, a number of pages, and a contiguous range of them. Not a set: ranges here may be empty.

use std::fmt;

/// The position of a page in its space, counted in pages from the start of the space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(pub u64);

/// A number of pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageCount(pub u64);

impl PageIndex {
    /// The page `count` pages further on.
    pub const fn plus(self, count: PageCount) -> Self {
        Self(self.0 + count.0)
    }
}

impl std::ops::Add for PageCount {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl std::ops::AddAssign for PageCount {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

impl std::iter::Sum for PageCount {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self(0), |sum, count| sum + count)
    }
}

impl fmt::Display for PageCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The pages from `start` up to, not including, `end`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageRange {
    start: PageIndex,
    end: PageIndex,
}

impl PageRange {
    /// The pages from `start` up to, not including, `end`. An `end` before `start` gives the empty
    /// range at `start`.
    pub const fn new(start: PageIndex, end: PageIndex) -> Self {
        if end.0 < start.0 {
            Self { start, end: start }
        } else {
            Self { start, end }
        }
    }

    /// `count` pages from `start` on.
    pub const fn with_count(start: PageIndex, count: PageCount) -> Self {
        Self {
            start,
            end: start.plus(count),
        }
    }

    /// The one page `page`.
    pub const fn single(page: PageIndex) -> Self {
        Self::with_count(page, PageCount(1))
    }

    /// The first page.
    pub const fn start(self) -> PageIndex {
        self.start
    }

    /// The first page past the range.
    pub const fn end(self) -> PageIndex {
        self.end
    }

    /// How many pages the range holds.
    pub const fn count(self) -> PageCount {
        PageCount(self.end.0 - self.start.0)
    }

    /// True if the range holds no page.
    pub const fn is_empty(self) -> bool {
        self.start.0 == self.end.0
    }

    /// True if `page` is in the range.
    pub const fn contains(self, page: PageIndex) -> bool {
        self.start.0 <= page.0 && page.0 < self.end.0
    }

    /// The pages in both ranges; `None` if there are none.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(Self { start, end })
    }

    /// The pages of the range in ascending order.
    pub fn pages(self) -> impl Iterator<Item = PageIndex> {
        (self.start.0..self.end.0).map(PageIndex)
    }

    /// The range cut into pieces of at most `count` pages, in ascending order. A `count` of zero
    /// gives the whole range as one piece.
    pub fn pieces(self, count: PageCount) -> impl Iterator<Item = Self> {
        let step = if count.0 == 0 { u64::MAX } else { count.0 };
        let mut next = self.start.0;
        std::iter::from_fn(move || {
            (next < self.end.0).then(|| {
                let end = self.end.0.min(next.saturating_add(step));
                let piece = Self::new(PageIndex(next), PageIndex(end));
                next = end;
                piece
            })
        })
    }
}

impl fmt::Debug for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.0, self.end.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> PageRange {
        PageRange::new(PageIndex(start), PageIndex(end))
    }

    #[test]
    fn a_backward_range_is_empty() {
        assert!(range(5, 3).is_empty());
        assert_eq!(range(5, 3).count(), PageCount(0));
        assert!(!range(5, 3).contains(PageIndex(4)));
    }

    #[test]
    fn pieces_cover_the_range_in_order() {
        let pieces: Vec<_> = range(3, 10).pieces(PageCount(3)).collect();
        assert_eq!(pieces, [range(3, 6), range(6, 9), range(9, 10)]);
        assert_eq!(range(3, 10).pieces(PageCount(0)).count(), 1);
        assert_eq!(range(3, 3).pieces(PageCount(3)).count(), 0);
    }

    #[test]
    fn touching_ranges_do_not_intersect() {
        assert_eq!(range(0, 4).intersection(range(4, 8)), None);
        assert_eq!(range(0, 5).intersection(range(4, 8)), Some(range(4, 5)));
    }
}
