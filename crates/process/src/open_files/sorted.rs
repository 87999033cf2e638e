//! Things in an order that only the kernel knows, and tells of two at a time: found by halving, and put in between at a cost that does not
//! grow with how many there are.

use std::cmp::Ordering;

/// As many stand together before they are parted.
const TOGETHER_MAX: usize = 512;

/// Positions in a list of the caller's, in order, in groups.
#[derive(Debug, Default)]
pub(super) struct Sorted {
    /// None is empty.
    groups: Vec<Vec<usize>>,
}

impl Sorted {
    /// One that equals `new`, or nothing, and `new` stands among them then. `compare` tells how a known one stands to `new`. The
    /// first error ends it.
    pub(super) fn find_or_insert<E>(
        &mut self,
        new: usize,
        mut compare: impl FnMut(usize) -> Result<Ordering, E>,
    ) -> Result<Option<usize>, E> {
        // The group with the last beginning that is not beyond it.
        let after = match halve(self.groups.len(), |middle| compare(self.groups[middle][0]))? {
            Ok(same) => return Ok(Some(self.groups[same][0])),
            Err(after) => after,
        };
        let number = after.saturating_sub(1);
        if self.groups.is_empty() {
            self.groups.push(Vec::with_capacity(TOGETHER_MAX));
        }
        let group = &mut self.groups[number];
        let place = match halve(group.len(), |middle| compare(group[middle]))? {
            Ok(same) => return Ok(Some(group[same])),
            Err(place) => place,
        };
        group.insert(place, new);
        if group.len() > TOGETHER_MAX {
            let rest = group.split_off(TOGETHER_MAX / 2);
            self.groups.insert(number + 1, rest);
        }
        Ok(None)
    }
}

/// Where what is looked for stands among `count` things, or would. `compare` tells how one of them stands to it.
fn halve<E>(
    count: usize,
    mut compare: impl FnMut(usize) -> Result<Ordering, E>,
) -> Result<Result<usize, usize>, E> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low.midpoint(high);
        match compare(middle)? {
            Ordering::Equal => return Ok(Ok(middle)),
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
        }
    }
    Ok(Err(low))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::time::Duration;

    /// Distinct numbers in no order.
    fn keys(count: u64) -> Vec<u64> {
        (0..count)
            .map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
            .collect()
    }

    /// How many were new, and how often two were compared.
    fn sort(keys: &[u64]) -> (usize, u64, Sorted) {
        let (mut new, mut comparisons) = (0, 0);
        let mut sorted = Sorted::default();
        for (index, key) in keys.iter().enumerate() {
            let compare = |other: usize| {
                comparisons += 1;
                Ok::<_, Infallible>(keys[other].cmp(key))
            };
            match sorted.find_or_insert(index, compare) {
                Ok(Some(same)) => assert_eq!(keys[same], *key),
                Ok(None) => new += 1,
            }
        }
        (new, comparisons, sorted)
    }

    #[test]
    fn equal_ones_are_found_and_the_rest_is_in_order() {
        let mut all = keys(5000);
        all.extend(keys(7000));
        let (new, _, sorted) = sort(&all);
        assert_eq!(new, 7000);
        let order: Vec<u64> = sorted
            .groups
            .concat()
            .into_iter()
            .map(|index| all[index])
            .collect();
        assert!(order.is_sorted() && order.len() == 7000);
        let (new, _, _) = sort(&[3, 3, 3]);
        assert_eq!(new, 1);
    }

    #[test]
    fn an_error_ends_it() {
        let mut sorted = Sorted::default();
        assert_eq!(sorted.find_or_insert(0, |_| Err("not asked")), Ok(None));
        assert_eq!(sorted.find_or_insert(1, |_| Err("asked")), Err("asked"));
    }

    /// Processor time of the calling thread, the least of some runs: other programs make no difference to it.
    fn time(count: u64) -> Duration {
        let all = keys(count);
        let once = || {
            let clock = rustix::time::ClockId::ThreadCPUTime;
            let before = rustix::time::clock_gettime(clock);
            sort(&all);
            let after = rustix::time::clock_gettime(clock);
            let ns = |at: rustix::time::Timespec| at.tv_sec * 1_000_000_000 + at.tv_nsec;
            Duration::from_nanos((ns(after) - ns(before)).unsigned_abs())
        };
        (0..5).map(|_| once()).min().unwrap_or_default()
    }

    #[test]
    fn twice_as_many_take_little_more_than_twice_as_long() {
        let count = 1 << 17;
        let (_, comparisons, _) = sort(&keys(count));
        // Two searches, in 17 halvings together and one more for each.
        assert!(comparisons < count * 20, "{comparisons}");
        let (some, twice) = (time(count), time(2 * count));
        assert!(twice < some * 3, "{some:?} {twice:?}");
    }
}
