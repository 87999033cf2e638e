//! Prevents: a wrong idea of what PAGEMAP_SCAN reports. Each test is one behaviour of the running
//! kernel that harvesting relies on or guards against: every flag, mask and limit, every way in which
//! a call stops early. (Errors: `scan_errors`.) If one fails on a new kernel, what stands on it has to change.

#![allow(unsafe_code)]

use nix::libc;
use pagetide_kernel::pagemap_scan::{
    Categories, Pagemap, ScanError, ScanFlags, ScanProgress, ScanRequest, ScannedRange,
};
use pagetide_kernel::probe::known_categories;
use pagetide_kernel::userfaultfd::WriteProtector;
use pagetide_testing::child::{Child, run_to_end};
use pagetide_testing::{PAGE, Region, harvesting, needs, skipped};

/// One call, with what it reported: first page, page past the last, categories.
fn scan_once(
    request: &ScanRequest,
    region: &Region,
    slots: usize,
) -> (Vec<(usize, usize, Categories)>, ScanProgress) {
    let pagemap = Pagemap::of_self().unwrap();
    let mut vector = vec![ScannedRange::EMPTY; slots];
    let progress = pagemap.scan_once(request, &mut vector).unwrap();
    let position = |address: u64| (address - region.start()) as usize / PAGE;
    let reported = vector[..progress.filled]
        .iter()
        .map(|range| {
            (
                position(range.start()),
                position(range.end()),
                range.categories(),
            )
        })
        .collect();
    (reported, progress)
}

fn tracked(pages: usize) -> (Region, WriteProtector, Pagemap) {
    let region = Region::filled(pages, 1);
    let protector = WriteProtector::of_self().unwrap();
    protector
        .register(region.start(), (pages * PAGE) as u64)
        .unwrap();
    (region, protector, Pagemap::of_self().unwrap())
}

/// Eight pages of which 2 and 5 were written since they were protected.
fn two_of_eight() -> (Region, WriteProtector, Pagemap) {
    let (region, protector, pagemap) = tracked(8);
    assert_eq!(region.take_written(&pagemap), [0, 1, 2, 3, 4, 5, 6, 7]);
    region.store(2, 2);
    region.store(5, 2);
    (region, protector, pagemap)
}

#[test]
fn reporting_alone_changes_nothing() {
    needs!(wp_async);
    let (region, _protector, pagemap) = two_of_eight();
    let request = ScanRequest {
        flags: ScanFlags::empty(),
        ..harvesting(region.start(), region.end())
    };
    for _ in 0..2 {
        let (reported, _) = scan_once(&request, &region, 8);
        assert_eq!(
            reported,
            [(2, 3, Categories::WRITTEN), (5, 6, Categories::WRITTEN)]
        );
    }
    assert_eq!(region.take_written(&pagemap), [2, 5]);
    assert_eq!(region.take_written(&pagemap), []);
}

#[test]
fn all_of_needs_every_category() {
    needs!(wp_async);
    let (region, _protector, _) = two_of_eight();
    let request = |all_of| ScanRequest {
        all_of,
        ..ScanRequest::over(region.start(), region.end())
    };
    let both = Categories::WRITTEN | Categories::PRESENT;
    let (reported, _) = scan_once(&request(both), &region, 8);
    assert_eq!(
        reported,
        [(2, 3, Categories::empty()), (5, 6, Categories::empty())]
    );
    let (reported, _) = scan_once(&request(Categories::WRITTEN | Categories::FILE), &region, 8);
    assert_eq!(reported, []);
}

#[test]
fn any_of_needs_one_category() {
    needs!(wp_async);
    let (region, _protector, _) = two_of_eight();
    let request = |any_of| ScanRequest {
        any_of,
        ..ScanRequest::over(region.start(), region.end())
    };
    let (reported, _) = scan_once(&request(Categories::WRITTEN | Categories::FILE), &region, 8);
    assert_eq!(
        reported,
        [(2, 3, Categories::empty()), (5, 6, Categories::empty())]
    );
    let (reported, _) = scan_once(&request(Categories::FILE | Categories::SWAPPED), &region, 8);
    assert_eq!(reported, []);
    let (reported, _) = scan_once(
        &request(Categories::WRITTEN | Categories::PRESENT),
        &region,
        8,
    );
    assert_eq!(reported, [(0, 8, Categories::empty())]);
}

#[test]
fn inverted_flips_a_category_before_matching() {
    needs!(wp_async);
    let (region, _protector, _) = two_of_eight();
    let request = ScanRequest {
        inverted: Categories::WRITTEN,
        all_of: Categories::WRITTEN | Categories::PRESENT,
        ..ScanRequest::over(region.start(), region.end())
    };
    let (reported, _) = scan_once(&request, &region, 8);
    let clean: Vec<_> = reported.iter().map(|range| (range.0, range.1)).collect();
    assert_eq!(clean, [(0, 2), (3, 5), (6, 8)]);
}

#[test]
fn masks_together_say_what_is_wanted() {
    needs!(wp_async);
    let (region, _protector, _) = two_of_eight();
    // Written, and not present.
    region.advise(6..7, libc::MADV_DONTNEED).unwrap();
    let request = ScanRequest {
        all_of: Categories::WRITTEN | Categories::SWAPPED,
        inverted: Categories::SWAPPED,
        any_of: Categories::PRESENT | Categories::HUGE,
        returned: Categories::WRITTEN | Categories::PRESENT,
        ..ScanRequest::over(region.start(), region.end())
    };
    let (reported, _) = scan_once(&request, &region, 8);
    let both = Categories::WRITTEN | Categories::PRESENT;
    assert_eq!(reported, [(2, 3, both), (5, 6, both)]);
}

#[test]
fn inversion_does_not_touch_what_is_returned() {
    needs!(wp_async);
    let (region, _protector, _) = two_of_eight();
    let request = ScanRequest {
        inverted: Categories::WRITTEN,
        all_of: Categories::WRITTEN,
        returned: Categories::WRITTEN | Categories::PRESENT,
        ..ScanRequest::over(region.start(), region.end())
    };
    let (reported, _) = scan_once(&request, &region, 8);
    assert!(
        reported.iter().all(|range| range.2 == Categories::PRESENT),
        "{reported:?}"
    );
}

#[test]
fn ranges_merge_as_long_as_the_returned_categories_are_equal() {
    needs!(wp_async);
    let (region, _protector, _) = two_of_eight();
    let request = |returned| ScanRequest {
        all_of: Categories::PRESENT,
        returned,
        ..ScanRequest::over(region.start(), region.end())
    };
    let (reported, _) = scan_once(&request(Categories::PRESENT), &region, 8);
    assert_eq!(reported, [(0, 8, Categories::PRESENT)]);
    let (reported, _) = scan_once(&request(Categories::WRITTEN), &region, 8);
    let cut: Vec<_> = reported.iter().map(|range| (range.0, range.1)).collect();
    assert_eq!(cut, [(0, 2), (2, 3), (3, 5), (5, 6), (6, 8)]);
}

#[test]
fn no_mask_reports_every_mapped_page_and_no_hole() {
    needs!(wp_async);
    let (region, _protector, _) = tracked(8);
    region.unmap(3..5);
    let request = ScanRequest::over(region.start(), region.end());
    let (reported, progress) = scan_once(&request, &region, 8);
    assert_eq!(
        reported,
        [(0, 3, Categories::empty()), (5, 8, Categories::empty())]
    );
    assert!(progress.complete);
}

#[test]
fn present_file_zero_page_and_huge_are_told_apart() {
    needs!(scan);
    let private = Region::private(3);
    private.store(0, 1);
    assert_eq!(private.load(1), 0);
    let plain = |region: &Region, page| region.state(page).difference(Categories::SOFT_DIRTY);
    assert_eq!(
        plain(&private, 0),
        Categories::WRITTEN | Categories::PRESENT
    );
    assert_eq!(
        plain(&private, 1),
        Categories::WRITTEN | Categories::PRESENT | Categories::ZERO_PAGE
    );
    assert_eq!(
        plain(&private, 2),
        Categories::WRITTEN,
        "an empty slot counts as written"
    );
    let file = pagetide_testing::file_of(2, 7);
    let shared = Region::of_file(&file, 2, true);
    assert_eq!(shared.load(0), 7);
    assert!(
        shared
            .state(0)
            .contains(Categories::FILE | Categories::PRESENT)
    );
    let copied = Region::of_file(&file, 2, false);
    assert_eq!(copied.load(0), 7);
    copied.store(1, 8);
    assert!(
        copied
            .state(0)
            .contains(Categories::FILE | Categories::PRESENT)
    );
    assert!(copied.state(1).contains(Categories::PRESENT));
    assert!(
        !copied.state(1).contains(Categories::FILE),
        "a private copy is no file page"
    );
    match Region::transparent_huge(1, 1) {
        Some(huge) => assert!(
            huge.state(3)
                .contains(Categories::HUGE | Categories::PRESENT)
        ),
        None => skipped(
            "present_file_zero_page_and_huge_are_told_apart (huge)",
            "no huge pages",
        ),
    }
}

#[test]
fn wp_allowed_tells_registered_from_not() {
    needs!(wp_async);
    let _alone = pagetide_testing::child::without_children();
    let region = Region::filled(8, 1);
    let protector = WriteProtector::of_self().unwrap();
    protector
        .register(region.address(2), 3 * PAGE as u64)
        .unwrap();
    let request = ScanRequest {
        inverted: Categories::WP_ALLOWED,
        all_of: Categories::WP_ALLOWED,
        ..ScanRequest::over(region.start(), region.end())
    };
    let (reported, _) = scan_once(&request, &region, 8);
    assert_eq!(
        reported,
        [(0, 2, Categories::empty()), (5, 8, Categories::empty())]
    );
    drop(protector);
    let (reported, _) = scan_once(&request, &region, 8);
    assert_eq!(
        reported,
        [(0, 8, Categories::empty())],
        "closing the fd unregisters"
    );
}

#[test]
fn harvesting_passes_over_unregistered_mappings_in_silence() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let protector = WriteProtector::of_self().unwrap();
    protector.register(region.start(), 4 * PAGE as u64).unwrap();
    let pagemap = Pagemap::of_self().unwrap();
    assert_eq!(
        region.take_written(&pagemap),
        [0, 1, 2, 3],
        "4..8 are written, too"
    );
}

#[test]
fn check_with_protect_loses_the_records_before_an_unregistered_mapping() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let protector = WriteProtector::of_self().unwrap();
    protector.register(region.start(), 4 * PAGE as u64).unwrap();
    let pagemap = Pagemap::of_self().unwrap();
    let request = ScanRequest {
        flags: ScanFlags::WRITE_PROTECT_MATCHING | ScanFlags::CHECK_WP_ASYNC,
        ..harvesting(region.start(), region.end())
    };
    let answer = pagemap.scan_once(&request, &mut [ScannedRange::EMPTY; 8]);
    assert!(
        matches!(answer, Err(ScanError::NotRegistered { .. })),
        "{answer:?}"
    );
    assert_eq!(
        region.take_written(&pagemap),
        [],
        "the pages were cleared without a report"
    );
}

#[test]
fn check_alone_only_fails() {
    needs!(wp_async);
    let (region, _protector, pagemap) = two_of_eight();
    let request = ScanRequest {
        flags: ScanFlags::CHECK_WP_ASYNC,
        ..harvesting(region.start(), region.end())
    };
    assert_eq!(scan_once(&request, &region, 8).0.len(), 2);
    region.replace(7..8);
    let answer = pagemap.scan_once(&request, &mut [ScannedRange::EMPTY; 8]);
    assert!(
        matches!(answer, Err(ScanError::NotRegistered { .. })),
        "{answer:?}"
    );
    assert_eq!(region.take_written(&pagemap), [2, 5]);
}

#[test]
fn a_full_vector_stops_the_scan_where_it_can_go_on() {
    needs!(wp_async);
    let (region, _protector, pagemap) = tracked(16);
    region.take_written(&pagemap);
    (0..16).step_by(2).for_each(|page| region.store(page, 2));
    for slots in [1, 2, 3, 7] {
        let pages = (0..16).step_by(2);
        pages.clone().for_each(|page| region.store(page, 3));
        let mut seen = Vec::new();
        let mut request = harvesting(region.start(), region.end());
        loop {
            let (reported, progress) = scan_once(&request, &region, slots);
            seen.extend(reported.iter().map(|range| range.0));
            if progress.complete {
                break;
            }
            assert_eq!(progress.filled, slots);
            assert!(progress.walk_end > request.start, "no progress");
            request.start = progress.walk_end;
        }
        assert_eq!(seen, pages.collect::<Vec<_>>(), "{slots} slots");
    }
}

#[test]
fn what_a_full_vector_left_out_is_not_protected() {
    needs!(wp_async);
    let (region, _protector, pagemap) = two_of_eight();
    let (reported, progress) = scan_once(&harvesting(region.start(), region.end()), &region, 1);
    assert_eq!(reported.len(), 1);
    assert!(!progress.complete);
    assert_eq!(region.take_written(&pagemap), [5]);
}

#[test]
fn max_pages_stops_within_a_range_and_protects_no_more() {
    needs!(wp_async);
    let (region, _protector, pagemap) = tracked(16);
    let request = ScanRequest {
        max_pages: 5,
        ..harvesting(region.start(), region.end())
    };
    let (reported, progress) = scan_once(&request, &region, 8);
    assert_eq!(reported, [(0, 5, Categories::WRITTEN)]);
    assert_eq!(progress.walk_end, region.address(5));
    assert!(!progress.complete);
    assert_eq!(region.take_written(&pagemap), (5..16).collect::<Vec<_>>());
}

#[test]
fn max_pages_that_is_not_met_ends_at_the_end() {
    needs!(wp_async);
    let (region, _protector, _) = two_of_eight();
    let request = ScanRequest {
        max_pages: 5,
        ..harvesting(region.start(), region.end())
    };
    let (reported, progress) = scan_once(&request, &region, 8);
    assert_eq!(reported.len(), 2);
    assert_eq!(progress.walk_end, region.end());
    assert!(progress.complete);
}

#[test]
fn an_undisturbed_walk_ends_at_the_end() {
    needs!(wp_async);
    let (region, _protector, _) = two_of_eight();
    let (_, progress) = scan_once(&harvesting(region.start(), region.end()), &region, 8);
    assert_eq!((progress.walk_end, progress.complete), (region.end(), true));
}

#[test]
fn with_many_ranges_the_walk_end_may_be_stale_but_the_count_is_not() {
    needs!(wp_async);
    // The kernel hands ranges out 512 at a time, and may leave `walk_end` at the last such place.
    const PAGES: usize = 4000;
    let (region, _protector, pagemap) = tracked(PAGES);
    region.take_written(&pagemap);
    (0..PAGES).step_by(2).for_each(|page| region.store(page, 2));
    let (reported, progress) = scan_once(&harvesting(region.start(), region.end()), &region, PAGES);
    assert_eq!(reported.len(), PAGES / 2);
    assert!(progress.complete, "fewer ranges than slots is all there is");
    assert!(progress.walk_end <= region.end());
    assert_eq!(region.take_written(&pagemap), []);
}

#[test]
fn scan_gives_every_range_once_whatever_the_vector() {
    needs!(wp_async);
    const PAGES: usize = 3000;
    let (region, _protector, pagemap) = tracked(PAGES);
    for slots in [1, 2, 511, 512, 513, 1500, 1501] {
        region.take_written(&pagemap);
        (0..PAGES)
            .step_by(2)
            .for_each(|page| region.store(page, slots as u8));
        let vector = &mut vec![ScannedRange::EMPTY; slots];
        let expected: Vec<u64> = (0..PAGES)
            .step_by(2)
            .map(|page| region.address(page))
            .collect();
        let harvesting = harvesting(region.start(), region.end());
        // T17: a harvest would not report twice what it has protected.
        let reading = ScanRequest {
            flags: ScanFlags::empty(),
            ..harvesting
        };
        for request in [reading, harvesting] {
            let mut seen = Vec::new();
            pagemap
                .scan(&request, vector, |range| seen.push(range.start()))
                .unwrap();
            assert_eq!(seen, expected, "{slots} slots, {:?}", request.flags);
        }
    }
}

#[test]
fn an_empty_range_scans_as_nothing() {
    needs!(wp_async);
    let (region, _protector, pagemap) = tracked(1);
    let mut called = false;
    let request = harvesting(region.start(), region.start());
    pagemap
        .scan(&request, &mut [ScannedRange::EMPTY], |_| called = true)
        .unwrap();
    assert!(!called);
}

#[test]
fn a_request_without_a_vector_is_not_sent() {
    needs!(wp_async);
    let (region, _protector, pagemap) = tracked(2);
    let answer = pagemap.scan_once(&harvesting(region.start(), region.end()), &mut []);
    assert!(
        matches!(answer, Err(ScanError::NoVector { .. })),
        "{answer:?}"
    );
    assert_eq!(
        region.take_written(&pagemap),
        [0, 1],
        "nothing was protected"
    );
}

#[test]
fn an_end_within_a_page_covers_the_page() {
    needs!(wp_async);
    let (region, _protector, _) = tracked(2);
    let request = ScanRequest::over(region.start(), region.start() + PAGE as u64 + 1);
    let (reported, _) = scan_once(&request, &region, 4);
    assert_eq!(reported, [(0, 2, Categories::empty())]);
}

#[test]
fn an_empty_slot_reads_written_until_it_is_protected_and_then_swapped() {
    needs!(wp_async);
    let region = Region::private(4);
    let protector = WriteProtector::of_self().unwrap();
    protector.register(region.start(), 4 * PAGE as u64).unwrap();
    let pagemap = Pagemap::of_self().unwrap();
    assert_eq!(
        region.state(0),
        Categories::WP_ALLOWED | Categories::WRITTEN
    );
    assert_eq!(region.take_written(&pagemap), [0, 1, 2, 3]);
    assert_eq!(
        region.state(0),
        Categories::WP_ALLOWED | Categories::SWAPPED,
        "the marker on an empty slot"
    );
    assert_eq!(region.load(1), 0);
    assert_eq!(region.take_written(&pagemap), [], "reading is not writing");
    region.store(2, 1);
    assert_eq!(region.take_written(&pagemap), [2]);
}

#[test]
fn zapped_page_tables_and_huge_pages_read_written() {
    needs!(wp_async);
    // Dropping 2 MiB at once takes the page table away: no entry is left to carry the news.
    let plain = Region::filled(2048, 1);
    let huge = Region::transparent_huge(4, 1);
    if huge.is_none() {
        skipped(
            "zapped_page_tables_and_huge_pages_read_written (huge)",
            "no huge pages",
        );
    }
    for region in [Some(plain), huge].into_iter().flatten() {
        let protector = WriteProtector::of_self().unwrap();
        protector
            .register(region.start(), region.end() - region.start())
            .unwrap();
        let pagemap = Pagemap::of_self().unwrap();
        region.take_written(&pagemap);
        region.advise(512..1024, libc::MADV_DONTNEED).unwrap();
        assert_eq!(
            region.take_written(&pagemap),
            (512..1024).collect::<Vec<_>>()
        );
        region.advise(0..2048, libc::MADV_DONTNEED).unwrap();
        assert_eq!(region.take_written(&pagemap), (0..2048).collect::<Vec<_>>());
    }
}

#[test]
fn every_known_category_is_accepted_in_every_mask() {
    let region = Region::filled(1, 1);
    let pagemap = Pagemap::of_self().unwrap();
    for category in known_categories().iter() {
        let plain = ScanRequest::over(region.start(), region.end());
        let requests = [
            ScanRequest {
                returned: category,
                ..plain
            },
            ScanRequest {
                all_of: category,
                ..plain
            },
            ScanRequest {
                any_of: category,
                ..plain
            },
            ScanRequest {
                inverted: category,
                ..plain
            },
        ];
        for request in requests {
            pagemap
                .scan_once(&request, &mut [ScannedRange::EMPTY])
                .unwrap();
        }
    }
}

#[test]
fn an_intact_huge_page_is_protected_as_one_and_a_store_splits_it() {
    needs!(wp_async);
    let Some(region) = Region::transparent_huge(2, 1) else {
        return skipped(
            "an_intact_huge_page_is_protected_as_one_and_a_store_splits_it",
            "no huge pages",
        );
    };
    let protector = WriteProtector::of_self().unwrap();
    protector
        .register(region.start(), region.end() - region.start())
        .unwrap();
    let pagemap = Pagemap::of_self().unwrap();
    assert_eq!(region.take_written(&pagemap).len(), 1024);
    assert!(region.state(0).contains(Categories::HUGE));
    region.store(3, 2);
    assert_eq!(region.take_written(&pagemap), [3]);
    assert!(!region.state(0).contains(Categories::HUGE), "split");
    assert!(region.state(600).contains(Categories::HUGE), "not touched");
    let collapse = region.advise(0..512, libc::MADV_COLLAPSE).unwrap_err();
    assert_eq!(
        collapse.raw_os_error(),
        Some(libc::EINVAL),
        "no collapse while protected"
    );
}

#[test]
fn part_of_a_huge_page_can_be_protected() {
    needs!(wp_async);
    let Some(region) = Region::transparent_huge(1, 1) else {
        return skipped("part_of_a_huge_page_can_be_protected", "no huge pages");
    };
    let protector = WriteProtector::of_self().unwrap();
    protector
        .register(region.start(), region.end() - region.start())
        .unwrap();
    let pagemap = Pagemap::of_self().unwrap();
    let request = harvesting(region.address(8), region.address(16));
    let (reported, _) = scan_once(&request, &region, 4);
    assert_eq!(reported, [(8, 16, Categories::WRITTEN)]);
    let rest: Vec<usize> = (0..8).chain(16..512).collect();
    assert_eq!(region.take_written(&pagemap), rest);
}

#[test]
fn another_process_is_scanned_by_its_own_pagemap() {
    needs!(scan);
    let region = Region::filled(4, 1);
    let child = Child::run(|board| {
        region.unmap(2..4);
        board.tell(0, 1);
    });
    child.wait(0);
    let theirs = Pagemap::of_process(child.pid()).unwrap();
    let mut seen = 0;
    let request = ScanRequest::over(region.start(), region.end());
    let vector = &mut [ScannedRange::EMPTY; 4];
    theirs
        .scan(&request, vector, |range| {
            seen += range.end() - range.start()
        })
        .unwrap();
    assert_eq!(seen, 2 * PAGE as u64);
}

#[test]
fn a_guard_region_reads_written_swapped_guard_and_faults() {
    let region = Region::filled(4, 1);
    if region
        .advise(1..2, pagetide_testing::MADV_GUARD_INSTALL)
        .is_err()
    {
        return skipped(
            "a_guard_region_reads_written_swapped_guard_and_faults",
            "no guard regions",
        );
    }
    let protector = WriteProtector::of_self().unwrap();
    protector.register(region.start(), 4 * PAGE as u64).unwrap();
    let pagemap = Pagemap::of_self().unwrap();
    let guard = Categories::SWAPPED | Categories::GUARD | Categories::WP_ALLOWED;
    if !known_categories().contains(Categories::GUARD) {
        return skipped(
            "a_guard_region_reads_written_swapped_guard_and_faults",
            "no category GUARD",
        );
    }
    assert_eq!(region.state(1), guard | Categories::WRITTEN);
    assert_eq!(region.take_written(&pagemap), [0, 1, 2, 3]);
    assert_eq!(
        region.state(1),
        guard,
        "protecting a guard keeps it a guard"
    );
    let stored = run_to_end(|| {
        region.store(1, 1);
        0
    });
    assert_eq!(stored, Err(libc::SIGSEGV));
    region
        .advise(1..2, pagetide_testing::MADV_GUARD_REMOVE)
        .unwrap();
    assert_eq!(
        region.take_written(&pagemap),
        [1],
        "a removed guard reads written"
    );
    assert_eq!(region.load(1), 0);
}
