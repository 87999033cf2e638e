//! Which pages an address space still misses, where it has them now, and where they were in the snapshot: a process that
//! runs moves its pages about and gives them up. Pure arithmetic.

use pagetide_pages::{PageCount, PageIndex, PageRange};
use std::collections::BTreeMap;

/// Ranges of pages, none touching another's pages, and to each a range of the same length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ranges(BTreeMap<u64, (u64, u64)>);

/// A range, and where the range that belongs to it begins.
type Pair = (PageRange, PageIndex);

fn pair(start: u64, end: u64, other: u64) -> Pair {
    (
        PageRange::new(PageIndex(start), PageIndex(end)),
        PageIndex(other),
    )
}

/// The range that belongs to that of a pair, and where that one begins.
fn turned((range, other): Pair) -> Pair {
    (PageRange::with_count(other, range.count()), range.start())
}

impl Ranges {
    fn insert(&mut self, (range, other): Pair) {
        if !range.is_empty() {
            self.0.insert(range.start().0, (range.end().0, other.0));
        }
    }

    /// What lies in `range`, cut to it.
    fn within(&self, range: PageRange) -> Vec<Pair> {
        let (start, end) = (range.start().0, range.end().0);
        let before = self.0.range(..start).next_back();
        let rest = self.0.range(start..end.max(start));
        let cut = |(&from, &(to, other)): (&u64, &(u64, u64))| {
            let (cut, till) = (from.max(start), to.min(end));
            (cut < till).then(|| pair(cut, till, other + (cut - from)))
        };
        before.into_iter().chain(rest).filter_map(cut).collect()
    }

    /// Takes out what lies in `range`.
    fn remove(&mut self, range: PageRange) -> Vec<Pair> {
        let found = self.within(range);
        for &(found, _) in &found {
            let holder = self.0.range(..=found.start().0).next_back();
            let Some((&from, &(to, other))) = holder else {
                continue;
            };
            self.0.remove(&from);
            self.insert(pair(from, found.start().0, other));
            let skipped = found.end().0 - from;
            self.insert(pair(found.end().0, to, other + skipped));
        }
        found
    }
}

/// See the head of this file. No page of the snapshot is missing at two places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Missing {
    /// From where pages are now to where they were.
    now: Ranges,
    /// From where they were to where they are.
    then: Ranges,
}

impl Missing {
    /// These pages are missing where they were in the snapshot.
    pub fn insert(&mut self, range: PageRange) {
        self.put((range, range.start()));
    }

    fn put(&mut self, now: Pair) {
        self.now.insert(now);
        self.then.insert(turned(now));
    }

    /// Which page of the snapshot is missing at `page`.
    pub fn at(&self, page: PageIndex) -> Option<PageIndex> {
        let found = self.now.within(PageRange::single(page));
        found.first().map(|&(_, then)| then)
    }

    /// The first page in `now` that is missing.
    pub fn first_in(&self, now: PageRange) -> Option<PageIndex> {
        let (start, end) = (now.start().0, now.end().0);
        let holder = self.now.0.range(..=start).next_back();
        if holder.is_some_and(|(_, &(till, _))| till > start && start < end) {
            return Some(now.start());
        }
        let next = self.now.0.range(start..end.max(start)).next();
        next.map(|(&from, _)| PageIndex(from))
    }

    /// Where pages of the snapshot are missing: ranges of now, and where each begins in the snapshot.
    pub fn places(&self, then: PageRange) -> Vec<(PageRange, PageIndex)> {
        let found = self.then.within(then);
        found.into_iter().map(turned).collect()
    }

    /// They are no longer missing at `now`: put, or given up.
    pub fn remove(&mut self, now: PageRange) {
        for found in self.now.remove(now) {
            self.then.remove(turned(found).0);
        }
    }

    /// Pages moved within the address space; what was missing at their new place is no longer there.
    pub fn move_pages(&mut self, from: PageRange, to: PageIndex) {
        let moved = self.now.remove(from);
        for &found in &moved {
            self.then.remove(turned(found).0);
        }
        self.remove(PageRange::with_count(to, from.count()));
        for (range, then) in moved {
            let skipped = PageCount(range.start().0 - from.start().0);
            self.put((PageRange::with_count(to.plus(skipped), range.count()), then));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> PageRange {
        PageRange::new(PageIndex(start), PageIndex(end))
    }

    /// Against a list of single pages, by steps that look random.
    #[test]
    fn pages_are_found_where_they_were_moved_to() {
        let mut missing = Missing::default();
        let mut pages: BTreeMap<u64, u64> = BTreeMap::new();
        missing.insert(range(100, 160));
        missing.insert(range(200, 260));
        pages.extend((100..160).chain(200..260).map(|page| (page, page)));
        let mut state = 7_u64;
        let mut next = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        for step in 0..200 {
            let (start, length) = (90 + next(200), 1 + next(12));
            if step % 3 == 0 {
                missing.remove(range(start, start + length));
                pages.retain(|page, _| !(start..start + length).contains(page));
            } else {
                let to = 90 + next(400);
                if to < start + length && start < to + length {
                    continue;
                }
                missing.move_pages(range(start, start + length), PageIndex(to));
                let moved: Vec<_> = pages
                    .extract_if(start..start + length, |_, _| true)
                    .collect();
                pages.retain(|page, _| !(to..to + length).contains(page));
                pages.extend(
                    moved
                        .into_iter()
                        .map(|(page, then)| (page - start + to, then)),
                );
            }
            for start in (80..520).step_by(7) {
                let found = missing.first_in(range(start, start + 9));
                let expected = pages.range(start..start + 9).next();
                assert_eq!(found, expected.map(|(page, _)| PageIndex(*page)));
            }
            for page in 80..520 {
                let found = missing.at(PageIndex(page)).map(|then| then.0);
                assert_eq!(
                    found,
                    pages.get(&page).copied(),
                    "page {page} after step {step}"
                );
            }
            for then in 80..280 {
                let found = missing.places(range(then, then + 1));
                let places: Vec<u64> = found.iter().map(|(now, _)| now.start().0).collect();
                let expected = pages.iter().filter(|(_, of)| **of == then);
                assert_eq!(places, expected.map(|(now, _)| *now).collect::<Vec<_>>());
            }
        }
        assert!(!pages.is_empty());
    }
}
