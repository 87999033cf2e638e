//! New memory beside memory that is tracked: when it is worth a mapping of its own.
//!
//! Memory that grew has an anon_vma of its own once it is written to, and mappings are joined only if they have the
//! same. As long as it is not registered, it is joined with what grows on; once it is, it stays a mapping for
//! good, even when tracking ends. To register what has grown at each snapshot would cost a mapping each. So
//! new memory that continues tracked memory is compared until it is a good part of that.

use pagetide_kernel::maps::Mapping;
use pagetide_pages::{PageCount, PageSet};

/// Less than this is compared: it takes some milliseconds.
const ALWAYS_COMPARED: PageCount = PageCount(4096);
/// More than this is compared only beside very large memory.
const SELDOM_COMPARED: PageCount = PageCount(16384);

/// How large new memory must be to be tracked, beside `tracked` pages that it continues.
fn worth_a_mapping(tracked: PageCount) -> PageCount {
    let part = PageCount(tracked.0 / 8).min(SELDOM_COMPARED);
    // Beside very large memory so much that the number of mappings stays logarithmic.
    part.max(PageCount(tracked.0 / 256)).max(ALWAYS_COMPARED)
}

/// True if `next` begins where `mapping` ends, and both would be one if nobody had kept them apart.
fn continues(mapping: &Mapping, next: &Mapping) -> bool {
    let protection = |mapping: &Mapping| (mapping.read, mapping.write, mapping.execute);
    let plain = |mapping: &Mapping| !mapping.shared && !mapping.has_file();
    mapping.end == next.start
        && plain(mapping)
        && plain(next)
        && protection(mapping) == protection(next)
        && mapping.name == next.name
}

/// Of the `fresh` pages, those that are not to be tracked yet.
pub(crate) fn not_worth_a_mapping(mappings: &[Mapping], fresh: &PageSet) -> PageSet {
    let mut left = PageSet::new();
    for alike in mappings.chunk_by(continues) {
        let is_fresh = |mapping: &Mapping| fresh.contains(mapping.pages().start());
        let parts: Vec<&[Mapping]> = alike.chunk_by(|a, b| is_fresh(a) == is_fresh(b)).collect();
        let count = |part: &[Mapping]| -> PageCount {
            part.iter().map(|mapping| mapping.pages().count()).sum()
        };
        for (number, part) in parts
            .iter()
            .enumerate()
            .filter(|(_, part)| is_fresh(&part[0]))
        {
            let before = number.checked_sub(1).and_then(|number| parts.get(number));
            let beside = before.into_iter().chain(parts.get(number + 1));
            let tracked = beside.map(|part| count(part)).max();
            if tracked.is_some_and(|tracked| count(part) < worth_a_mapping(tracked)) {
                left.extend(part.iter().map(Mapping::pages));
            }
        }
    }
    left
}

/// How many mappings would be part of the one before them if nobody had kept them apart.
pub(crate) fn kept_apart(mappings: &[Mapping]) -> u64 {
    let apart = mappings
        .windows(2)
        .filter(|two| continues(&two[0], &two[1]));
    apart.count() as u64
}

/// How many mappings a process may have (vm.max_map_count).
pub(crate) fn most_mappings() -> u64 {
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    // The kernel's own choice.
    limit.trim().parse().unwrap_or(65530)
}

/// True if a process with so many mappings shall not get more by being tracked.
pub(crate) fn are_many(mappings: usize, most: u64) -> bool {
    mappings as u64 > most - most / 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::SIZE;
    use pagetide_kernel::maps::MappingName;
    use pagetide_pages::PageRange;

    const MIB: u64 = 1 << 20;

    fn mapping(start: u64, end: u64, write: bool) -> Mapping {
        Mapping {
            start,
            end,
            read: true,
            write,
            execute: false,
            shared: false,
            offset_bytes: 0,
            device: (0, 0),
            inode: 0,
            name: MappingName::None,
        }
    }

    fn left(mappings: &[Mapping], fresh: &[usize]) -> Vec<u64> {
        let fresh: PageSet = fresh.iter().map(|&at| mappings[at].pages()).collect();
        let left = not_worth_a_mapping(mappings, &fresh);
        left.ranges()
            .iter()
            .map(|range: &PageRange| SIZE.address_of(range.start()))
            .collect()
    }

    #[test]
    fn what_continues_tracked_memory_waits_until_it_is_a_good_part_of_it() {
        let heap = |tail| [mapping(0, 400 * MIB, true), mapping(400 * MIB, tail, true)];
        assert_eq!(left(&heap(449 * MIB), &[1]), [400 * MIB]);
        assert_eq!(left(&heap(451 * MIB), &[1]), []);
        assert_eq!(
            left(&heap(449 * MIB), &[0]),
            [],
            "the larger part is worth one"
        );
        assert_eq!(
            left(&heap(449 * MIB), &[0, 1]),
            [],
            "nothing is tracked beside it"
        );
    }

    #[test]
    fn what_could_not_be_joined_does_not_wait() {
        let apart = [mapping(0, 8 * MIB, true), mapping(9 * MIB, 10 * MIB, true)];
        assert_eq!(left(&apart, &[1]), []);
        let unlike = [mapping(0, 8 * MIB, true), mapping(8 * MIB, 9 * MIB, false)];
        assert_eq!(left(&unlike, &[1]), []);
        assert_eq!((kept_apart(&apart), kept_apart(&unlike)), (0, 0));
    }

    #[test]
    fn the_mappings_of_a_heap_that_grows_are_few() {
        let (mut tracked, mut mappings) = (132 << 10, 0);
        let mut size: u64 = tracked;
        for _ in 0..1000 {
            size += 256 << 10;
            let heap = [mapping(0, tracked, true), mapping(tracked, size, true)];
            if left(&heap, &[1]).is_empty() {
                (tracked, mappings) = (size, mappings + 1);
            }
        }
        assert!(mappings <= 15, "{mappings}");
    }
}
