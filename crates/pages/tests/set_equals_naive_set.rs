//! Prevents a page set that loses or invents pages: every operation is compared with the same
//! operation on a plain set of page numbers.

use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Small indices, so that ranges often overlap and touch.
const PAGES: u64 = 96;

fn ranges() -> impl Strategy<Value = Vec<PageRange>> {
    prop::collection::vec((0..PAGES, 0..12u64), 0..24).prop_map(|pairs| {
        let range = |(start, count)| PageRange::with_count(PageIndex(start), PageCount(count));
        pairs.into_iter().map(range).collect()
    })
}

fn naive(ranges: &[PageRange]) -> BTreeSet<PageIndex> {
    ranges.iter().flat_map(|range| range.pages()).collect()
}

fn built(ranges: &[PageRange]) -> PageSet {
    let mut set = PageSet::new();
    ranges.iter().for_each(|&range| set.insert(range));
    set
}

/// The set holds exactly the naive set's pages, in canonical form.
fn assert_same(set: &PageSet, naive: &BTreeSet<PageIndex>) {
    assert!(
        set.pages().eq(naive.iter().copied()),
        "{set:?} is not {naive:?}"
    );
    assert_eq!(set.count(), PageCount(naive.len() as u64));
    assert!(set.ranges().iter().all(|range| !range.is_empty()));
    assert!(
        set.ranges().windows(2).all(|w| w[0].end() < w[1].start()),
        "ranges overlap or touch: {set:?}"
    );
}

proptest! {
    #[test]
    fn insertion_in_any_order(ranges in ranges()) {
        assert_same(&built(&ranges), &naive(&ranges));
        assert_eq!(built(&ranges), ranges.iter().copied().collect::<PageSet>());
    }

    #[test]
    fn extension_by_few_and_by_many(first in ranges(), more in ranges()) {
        let mut set = built(&first);
        set.extend(more.iter().copied());
        assert_same(&set, &(&naive(&first) | &naive(&more)));
    }

    #[test]
    fn inserting_twice_is_harmless(ranges in ranges()) {
        let mut set = built(&ranges);
        ranges.iter().for_each(|&range| set.insert(range));
        assert_eq!(set, built(&ranges));
    }

    #[test]
    fn removal(ranges in ranges(), removed in ranges()) {
        let mut set = built(&ranges);
        removed.iter().for_each(|&range| set.remove(range));
        let expected = &naive(&ranges) - &naive(&removed);
        assert_same(&set, &expected);
    }

    #[test]
    fn union_subtract_intersect(a in ranges(), b in ranges()) {
        let (left, right) = (built(&a), built(&b));
        assert_same(&left.union(&right), &(&naive(&a) | &naive(&b)));
        assert_same(&left.subtract(&right), &(&naive(&a) - &naive(&b)));
        assert_same(&left.intersect(&right), &(&naive(&a) & &naive(&b)));
    }

    #[test]
    fn membership(a in ranges(), start in 0..PAGES, count in 0..12u64) {
        let (set, naive) = (built(&a), naive(&a));
        let range = PageRange::with_count(PageIndex(start), PageCount(count));
        for page in 0..PAGES + 12 {
            assert_eq!(set.contains(PageIndex(page)), naive.contains(&PageIndex(page)));
        }
        assert_eq!(set.contains_range(range), range.pages().all(|page| naive.contains(&page)));
        let inside = range.pages().filter(|page| naive.contains(page)).collect();
        assert_same(&set.within(range), &inside);
    }
}
