//! Prevents: a wrong idea of what registers, what a registration survives, and what "mark as written"
//! reaches. Whatever drops a registration in silence is a fact that the tracker is built around.

use nix::libc;
use pagetide_kernel::maps::{MappingName, mappings};
use pagetide_kernel::pagemap_scan::{Categories, Pagemap};
use pagetide_kernel::userfaultfd::{UserfaultfdError, WriteProtector};
use pagetide_testing::child::{Child, create_userfaultfd};
use pagetide_testing::machine::Machine;
use pagetide_testing::{HUGE, PAGE, READ_WRITE, Region, needs, skipped};

fn protect(region: &Region) -> (WriteProtector, Pagemap) {
    let protector = WriteProtector::of_self().unwrap();
    register(&protector, region).unwrap();
    (protector, Pagemap::of_self().unwrap())
}

fn register(protector: &WriteProtector, region: &Region) -> Result<(), UserfaultfdError> {
    protector.register(region.start(), region.end() - region.start())
}

fn is_registered(region: &Region, page: usize) -> bool {
    region.state(page).contains(Categories::WP_ALLOWED)
}

#[test]
fn every_ordinary_mapping_registers_and_is_tracked() {
    needs!(wp_async);
    let file = pagetide_testing::file_of(4, 1);
    let memfd = pagetide_testing::memfd("tracked", 4);
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let regions = [
        ("private", Region::private(4)),
        ("shared", Region::shared(4)),
        ("private file", Region::of_file(&file, 4, false)),
        ("shared file", Region::of_file(&file, 4, true)),
        ("private memfd", Region::of_file(&memfd, 4, false)),
        ("shared memfd", Region::of_file(&memfd, 4, true)),
        (
            "stack-like",
            Region::map(4 * PAGE, READ_WRITE, private | libc::MAP_GROWSDOWN, None).unwrap(),
        ),
        (
            "no reserve",
            Region::map(4 * PAGE, READ_WRITE, private | libc::MAP_NORESERVE, None).unwrap(),
        ),
        (
            "locked",
            Region::map(4 * PAGE, READ_WRITE, private | libc::MAP_LOCKED, None).unwrap(),
        ),
    ];
    for (what, region) in &regions {
        let (_protector, pagemap) = protect(region);
        assert_eq!(region.take_written(&pagemap), [0, 1, 2, 3], "{what}");
        assert_eq!(region.take_written(&pagemap), [], "{what}");
        region.store(1, 9);
        assert_eq!(
            region.load(2),
            if what.ends_with(" file") { 1 } else { 0 },
            "{what}"
        );
        assert_eq!(region.take_written(&pagemap), [1], "{what}");
        region.store(1, 10);
        region.store(3, 10);
        assert_eq!(region.take_written(&pagemap), [1, 3], "{what}");
    }
}

#[test]
fn mappings_without_permissions_register() {
    needs!(wp_async);
    let region = Region::filled(4, 1);
    for protection in [libc::PROT_NONE, libc::PROT_READ, libc::PROT_EXEC] {
        region.protect(0..4, protection);
        let (_protector, pagemap) = protect(&region);
        assert_eq!(region.take_written(&pagemap), [0, 1, 2, 3]);
    }
}

#[test]
fn hugetlb_registers_and_is_tracked_in_its_own_pages() {
    needs!(wp_async);
    let mut machine = Machine::lock();
    if let Err(reason) = machine.huge_pages(4) {
        return skipped("hugetlb_registers_and_is_tracked_in_its_own_pages", &reason);
    }
    for shared in [false, true] {
        let region = Region::hugetlb(3, shared).unwrap();
        region.fill(0..1024, 1);
        let (protector, pagemap) = protect(&region);
        // The third page was never touched. Unlike elsewhere, its empty slot does not read written.
        assert_eq!(region.take_written(&pagemap), (0..1024).collect::<Vec<_>>());
        assert_eq!(region.take_written(&pagemap), []);
        region.store(700, 2);
        assert_eq!(
            region.take_written(&pagemap),
            (512..1024).collect::<Vec<_>>()
        );
        region.store(1024, 2);
        assert_eq!(
            region.take_written(&pagemap),
            (1024..1536).collect::<Vec<_>>()
        );
        protector.mark_written(region.start(), HUGE as u64).unwrap();
        assert_eq!(region.take_written(&pagemap), (0..512).collect::<Vec<_>>());
        let part = protector.mark_written(region.start(), PAGE as u64);
        assert!(
            matches!(part, Err(UserfaultfdError::Kernel { .. })),
            "{part:?}"
        );
    }
}

#[test]
fn kernel_mappings_do_not_register() {
    needs!(wp_async);
    let maps = mappings(std::process::id().cast_signed()).unwrap();
    let protector = WriteProtector::of_self().unwrap();
    let mut seen = 0;
    for mapping in &maps {
        if matches!(mapping.name, MappingName::Vdso | MappingName::KernelData(_)) {
            let answer = protector.register(mapping.start, mapping.length_bytes());
            let refused = matches!(answer, Err(UserfaultfdError::CannotRegister { .. }));
            assert!(refused, "{:?}: {answer:?}", mapping.name);
            seen += 1;
        }
    }
    assert!(seen >= 2);
}

#[test]
fn rings_the_kernel_writes_to_do_not_register() {
    needs!(wp_async);
    let ring = match pagetide_testing::ring::Ring::new() {
        Ok(ring) => ring,
        Err(error) => {
            return skipped(
                "rings_the_kernel_writes_to_do_not_register",
                &error.to_string(),
            );
        }
    };
    let protector = WriteProtector::of_self().unwrap();
    let answer = register(&protector, &ring.rings);
    assert!(
        matches!(answer, Err(UserfaultfdError::CannotRegister { .. })),
        "{answer:?}"
    );
}

#[test]
fn nothing_mapped_does_not_register() {
    needs!(wp_async);
    let region = Region::filled(4, 1);
    region.unmap(0..4);
    let protector = WriteProtector::of_self().unwrap();
    let answer = register(&protector, &region);
    assert!(
        matches!(answer, Err(UserfaultfdError::CannotRegister { .. })),
        "{answer:?}"
    );
}

#[test]
fn a_hole_in_the_range_does_not_hinder() {
    needs!(wp_async);
    let region = Region::filled(4, 1);
    region.unmap(1..2);
    let (_protector, _) = protect(&region);
    assert!(is_registered(&region, 0) && is_registered(&region, 3));
}

#[test]
fn registering_again_keeps_what_is_known() {
    needs!(wp_async);
    let region = Region::filled(4, 1);
    let (protector, pagemap) = protect(&region);
    region.take_written(&pagemap);
    region.store(2, 2);
    register(&protector, &region).unwrap();
    assert_eq!(region.take_written(&pagemap), [2]);
}

#[test]
fn one_refusal_fails_the_whole_range_and_changes_nothing() {
    needs!(wp_async);
    let _alone = pagetide_testing::child::without_children();
    let region = Region::filled(4, 1);
    let other = WriteProtector::of_self().unwrap();
    other.register(region.address(2), PAGE as u64).unwrap();
    let ours = WriteProtector::of_self().unwrap();
    let answer = register(&ours, &region);
    match answer {
        Err(UserfaultfdError::OwnedByAnother { start, length }) => {
            assert_eq!((start, length), (region.start(), 4 * PAGE as u64));
        }
        other => panic!("{other:?}"),
    }
    assert!(!is_registered(&region, 0) && is_registered(&region, 2) && !is_registered(&region, 3));
    drop(other);
    register(&ours, &region).unwrap();
}

#[test]
fn unregistering_ends_tracking_and_forgets() {
    needs!(wp_async);
    let region = Region::filled(4, 1);
    let (protector, pagemap) = protect(&region);
    region.take_written(&pagemap);
    protector
        .unregister(region.start(), 4 * PAGE as u64)
        .unwrap();
    assert!(!is_registered(&region, 0));
    region.store(1, 2);
    assert_eq!(region.take_written(&pagemap), []);
    register(&protector, &region).unwrap();
    assert_eq!(region.take_written(&pagemap), [0, 1, 2, 3]);
}

#[test]
fn closing_the_last_fd_lets_the_process_run_on() {
    needs!(wp_async);
    let _alone = pagetide_testing::child::without_children();
    let region = Region::filled(4, 1);
    let (protector, pagemap) = protect(&region);
    region.take_written(&pagemap);
    drop(protector);
    assert!(!is_registered(&region, 0));
    region.store(0, 5);
    assert_eq!(region.load(0), 5);
}

#[test]
fn mapping_over_drops_the_registration() {
    needs!(wp_async);
    let region = Region::filled(4, 1);
    let (_protector, _) = protect(&region);
    region.replace(1..3);
    let registered: Vec<bool> = (0..4).map(|page| is_registered(&region, page)).collect();
    assert_eq!(registered, [true, false, false, true]);
}

#[test]
fn moving_drops_the_registration() {
    needs!(wp_async);
    let region = Region::filled(4, 1);
    let target = Region::private(4);
    let (_protector, _) = protect(&region);
    region.move_to(0..4, &target, 0, false);
    assert!(!is_registered(&target, 0));
    assert_eq!(target.load(3), 1);
}

#[test]
fn moving_without_unmapping_leaves_written_slots_behind() {
    needs!(wp_async);
    let plain = Region::filled(2048, 1);
    let huge = Region::transparent_huge(4, 1);
    for region in [Some(plain), huge].into_iter().flatten() {
        let target = Region::private(2048);
        let (_protector, pagemap) = protect(&region);
        region.take_written(&pagemap);
        region.move_to(0..2048, &target, 0, true);
        assert!(!is_registered(&target, 0) && is_registered(&region, 0));
        assert_eq!(
            region.take_written(&pagemap).len(),
            2048,
            "all of it reads zero now"
        );
    }
}

#[test]
fn growing_in_place_keeps_the_registration_and_the_tail_reads_written() {
    needs!(wp_async);
    let region = Region::filled(4, 1);
    let (_protector, pagemap) = protect(&region);
    region.take_written(&pagemap);
    region.resize_in_place(0..4, 2000).unwrap();
    let region = region.assume_pages(2000);
    assert!(is_registered(&region, 1999));
    assert_eq!(region.take_written(&pagemap), (4..2000).collect::<Vec<_>>());
}

#[test]
fn shrinking_and_growing_again_reads_written() {
    needs!(wp_async);
    let region = Region::filled(2048, 1);
    let (_protector, pagemap) = protect(&region);
    region.take_written(&pagemap);
    region.resize_in_place(0..2048, 100).unwrap();
    region.resize_in_place(0..100, 2048).unwrap();
    assert_eq!(
        region.take_written(&pagemap),
        (100..2048).collect::<Vec<_>>()
    );
}

#[test]
fn a_stack_that_grows_takes_its_registration_along() {
    needs!(wp_async);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let region = Region::map(64 * PAGE, READ_WRITE, flags, None).unwrap();
    region.replace_with(63..64, READ_WRITE, flags | libc::MAP_GROWSDOWN);
    region.unmap(0..63);
    let protector = WriteProtector::of_self().unwrap();
    protector.register(region.address(63), PAGE as u64).unwrap();
    let pagemap = Pagemap::of_self().unwrap();
    assert_eq!(region.take_written(&pagemap), [63]);
    region.store(62, 1);
    region.store(60, 1);
    assert_eq!(region.take_written(&pagemap), [60, 61, 62]);
}

#[test]
fn changing_permissions_loses_nothing() {
    needs!(wp_async);
    let region = Region::filled(4, 1);
    let (_protector, pagemap) = protect(&region);
    region.take_written(&pagemap);
    region.store(0, 2);
    for protection in [libc::PROT_READ, libc::PROT_NONE, READ_WRITE] {
        region.protect(0..2, protection);
    }
    region.store(1, 2);
    assert_eq!(region.take_written(&pagemap), [0, 1]);
}

#[test]
fn advice_that_keeps_the_content_loses_nothing() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let (_protector, pagemap) = protect(&region);
    region.take_written(&pagemap);
    region.store(3, 2);
    for advice in [
        libc::MADV_COLD,
        libc::MADV_PAGEOUT,
        libc::MADV_WILLNEED,
        libc::MADV_POPULATE_READ,
    ] {
        region.advise(0..8, advice).unwrap();
    }
    assert_eq!(region.take_written(&pagemap), [3]);
    region.advise(5..7, libc::MADV_POPULATE_WRITE).unwrap();
    assert_eq!(
        region.take_written(&pagemap),
        [5, 6],
        "a write fault is a write"
    );
}

#[test]
fn fork_leaves_the_parent_tracked_and_the_child_not() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let (_protector, pagemap) = protect(&region);
    region.take_written(&pagemap);
    region.store(0, 2);
    let child = Child::run(|board| {
        region.store(5, 9);
        board.tell(0, 1);
    });
    child.wait(0);
    let theirs = Pagemap::of_process(child.pid()).unwrap();
    let state = pagetide_testing::state_of(&theirs, region.address(5));
    assert!(!state.contains(Categories::WP_ALLOWED));
    region.store(1, 2);
    assert_eq!(
        region.take_written(&pagemap),
        [0, 1],
        "what the child stores is its own"
    );
    child.kill();
    region.store(2, 2);
    assert_eq!(region.take_written(&pagemap), [2]);
}

#[test]
fn a_userfaultfd_inherited_by_fork_still_means_the_parent() {
    needs!(wp_async);
    let region = Region::filled(2, 1);
    let child = Child::run(|board| {
        board.tell(1, create_userfaultfd());
        board.tell(0, 1);
    });
    child.wait(0);
    let theirs = WriteProtector::enable(child.fetch(child.wait(1))).unwrap();
    register(&theirs, &region).unwrap();
    assert!(
        !is_registered(&region, 0),
        "made by the child, for the child"
    );
    let state =
        pagetide_testing::state_of(&Pagemap::of_process(child.pid()).unwrap(), region.start());
    assert!(state.contains(Categories::WP_ALLOWED));
}

#[test]
fn of_a_dead_address_space_registering_and_marking_say_gone() {
    needs!(wp_async);
    let region = Region::filled(2, 1);
    let child = Child::run(|board| board.tell(0, create_userfaultfd()));
    let protector = WriteProtector::enable(child.fetch(child.wait(0))).unwrap();
    register(&protector, &region).unwrap();
    child.kill();
    let gone = |answer: Result<(), UserfaultfdError>| match answer {
        Err(UserfaultfdError::SpaceGone { start, .. }) => assert_eq!(start, region.start()),
        other => panic!("{other:?}"),
    };
    gone(register(&protector, &region));
    gone(protector.mark_written(region.start(), PAGE as u64));
}

#[test]
fn enabling_works_once() {
    needs!(wp_async);
    let child = Child::run(|board| board.tell(0, create_userfaultfd()));
    let fd = child.wait(0);
    WriteProtector::enable(child.fetch(fd)).unwrap();
    let again = WriteProtector::enable(child.fetch(fd));
    assert!(
        matches!(again, Err(UserfaultfdError::FeaturesMissing(_))),
        "{again:?}"
    );
    let region = Region::filled(1, 1);
    let taken = WriteProtector::already_enabled(child.fetch(fd));
    register(&taken, &region)
        .map_err(drop)
        .expect_err("mapped after the child was made");
}

#[test]
fn mark_written_reaches_pages_empty_slots_huge_pages_and_the_zero_page() {
    needs!(wp_async);
    let region = Region::private(4);
    region.store(0, 1);
    assert_eq!(region.load(1), 0);
    let (protector, pagemap) = protect(&region);
    region.take_written(&pagemap);
    protector
        .mark_written(region.start(), 4 * PAGE as u64)
        .unwrap();
    assert_eq!(region.take_written(&pagemap), [0, 1, 2, 3]);
    protector
        .mark_written(region.address(1), 2 * PAGE as u64)
        .unwrap();
    assert_eq!(region.take_written(&pagemap), [1, 2]);
    let Some(huge) = Region::transparent_huge(2, 1) else {
        return skipped("mark_written_reaches_... (huge)", "no huge pages");
    };
    let (protector, pagemap) = protect(&huge);
    huge.take_written(&pagemap);
    protector.mark_written(huge.start(), HUGE as u64).unwrap();
    assert_eq!(huge.take_written(&pagemap), (0..512).collect::<Vec<_>>());
    protector
        .mark_written(huge.address(515), 2 * PAGE as u64)
        .unwrap();
    assert_eq!(huge.take_written(&pagemap), [515, 516]);
}

#[test]
fn mark_written_reaches_shared_and_file_pages() {
    needs!(wp_async);
    let file = pagetide_testing::file_of(4, 1);
    for region in [
        Region::shared(4),
        Region::of_file(&file, 4, true),
        Region::of_file(&file, 4, false),
    ] {
        region.store(0, 1);
        region.load(1);
        let (protector, pagemap) = protect(&region);
        region.take_written(&pagemap);
        protector
            .mark_written(region.start(), 4 * PAGE as u64)
            .unwrap();
        assert_eq!(region.take_written(&pagemap), [0, 1, 2, 3]);
    }
}

#[test]
fn mark_written_does_not_reach_guards() {
    let region = Region::filled(2, 1);
    if region
        .advise(0..1, pagetide_testing::MADV_GUARD_INSTALL)
        .is_err()
    {
        return skipped("mark_written_does_not_reach_guards", "no guard regions");
    }
    let (protector, pagemap) = protect(&region);
    assert_eq!(region.take_written(&pagemap), [0, 1]);
    protector
        .mark_written(region.start(), 2 * PAGE as u64)
        .unwrap();
    assert_eq!(
        region.take_written(&pagemap),
        [1],
        "guards have no content to lose"
    );
}

#[test]
fn mark_written_needs_registered_mappings() {
    needs!(wp_async);
    let region = Region::filled(4, 1);
    let (protector, pagemap) = protect(&region);
    region.take_written(&pagemap);
    region.replace(2..3);
    let answer = protector.mark_written(region.start(), 4 * PAGE as u64);
    assert!(
        matches!(answer, Err(UserfaultfdError::Kernel { .. })),
        "{answer:?}"
    );
    assert_eq!(
        region.take_written(&pagemap),
        [0, 1],
        "it stops at the first that is not"
    );
}

#[test]
fn swap_keeps_what_is_known_and_mark_written_reaches_it() {
    needs!(wp_async);
    let _alone = pagetide_testing::child::without_children();
    let mut machine = Machine::lock();
    if let Err(reason) = machine.swap() {
        return skipped(
            "swap_keeps_what_is_known_and_mark_written_reaches_it",
            &reason,
        );
    }
    let region = Region::filled(8, 1);
    let (protector, pagemap) = protect(&region);
    region.take_written(&pagemap);
    region.store(1, 2);
    region.page_out(0..8);
    let swapped = Categories::SWAPPED | Categories::WP_ALLOWED;
    assert_eq!(region.state(0), swapped);
    assert_eq!(region.state(1), swapped | Categories::WRITTEN);
    assert_eq!(region.take_written(&pagemap), [1]);
    protector
        .mark_written(region.address(2), 2 * PAGE as u64)
        .unwrap();
    assert_eq!(region.take_written(&pagemap), [2, 3]);
    assert_eq!((region.load(0), region.load(1)), (1, 2));
    assert_eq!(
        region.take_written(&pagemap),
        [],
        "reading back is not writing"
    );
    region.store(4, 2);
    assert_eq!(region.take_written(&pagemap), [4]);
    region.page_out(0..8);
    machine.swap_off();
    assert_eq!(
        region.take_written(&pagemap),
        [],
        "switching swap off loses nothing"
    );
    region.store(6, 2);
    assert_eq!(region.take_written(&pagemap), [6]);
}

#[test]
fn a_freed_page_reads_written_once_it_is_reclaimed() {
    needs!(wp_async);
    let _alone = pagetide_testing::child::without_children();
    let mut machine = Machine::lock();
    if let Err(reason) = machine.swap() {
        return skipped("a_freed_page_reads_written_once_it_is_reclaimed", &reason);
    }
    let region = Region::filled(64, 1);
    let (_protector, pagemap) = protect(&region);
    region.take_written(&pagemap);
    region.advise(0..64, libc::MADV_FREE).unwrap();
    assert_eq!(
        region.take_written(&pagemap),
        [],
        "the content is still there"
    );
    region.advise(0..64, libc::MADV_PAGEOUT).unwrap();
    // Reclaiming drops freed pages; which of them, is the kernel's choice.
    let written = region.take_written(&pagemap);
    for page in 0..64 {
        let lost = region.load(page) == 0;
        assert_eq!(lost, written.contains(&page), "page {page}");
    }
    if written.is_empty() {
        skipped(
            "a_freed_page_reads_written_once_it_is_reclaimed",
            "nothing was reclaimed",
        );
    }
}

/// Lets the kernel merge equal pages, those of zeros into the zero page or not. False, and the test is skipped, if it cannot be
/// asked to.
fn merges_or_skip(test: &str, machine: &mut Machine, use_zero_pages: &str) -> bool {
    let settings = [
        ("/sys/kernel/mm/ksm/use_zero_pages", use_zero_pages),
        ("/sys/kernel/mm/ksm/sleep_millisecs", "0"),
        ("/sys/kernel/mm/ksm/pages_to_scan", "100000"),
        ("/sys/kernel/mm/ksm/run", "1"),
    ];
    for (path, value) in settings {
        if let Err(error) = machine.set(path, value) {
            skipped(test, &format!("{path}: {error}"));
            return false;
        }
    }
    true
}

/// Waits until it is so, for as long as the kernel would need to look at all memory many times.
fn while_merging(is_so: impl Fn() -> bool) -> bool {
    let scans = || std::fs::read_to_string("/sys/kernel/mm/ksm/full_scans").unwrap();
    let enough: u64 = scans().trim().parse::<u64>().unwrap() + 20;
    while !is_so() && scans().trim().parse::<u64>().unwrap() < enough {
        std::thread::yield_now();
    }
    is_so()
}

#[test]
fn merging_pages_of_zeros_into_the_zero_page_loses_no_write() {
    needs!(wp_async);
    let test = "merging_pages_of_zeros_into_the_zero_page_loses_no_write";
    let _alone = pagetide_testing::child::without_children();
    let mut machine = Machine::lock();
    if !merges_or_skip(test, &mut machine, "1") {
        return;
    }
    let region = Region::filled(16, 7);
    region.fill(0..16, 0);
    region.advise(0..16, libc::MADV_MERGEABLE).unwrap();
    let (_protector, pagemap) = protect(&region);
    region.take_written(&pagemap);
    let is_zero = |page: usize| region.state(page).contains(Categories::ZERO_PAGE);
    if !while_merging(|| (0..16).all(is_zero)) {
        return skipped(test, "nothing was merged");
    }
    region.take_written(&pagemap);
    region.store(3, 8);
    assert!(!is_zero(3) && is_zero(4));
    assert!(region.take_written(&pagemap).contains(&3));
    assert_eq!((region.load(2), region.load(3)), (0, 8));
    // What is not merged any more has pages of its own again.
    region.advise(0..16, libc::MADV_UNMERGEABLE).unwrap();
    region.take_written(&pagemap);
    region.store(4, 8);
    assert!(region.take_written(&pagemap).contains(&4));
    assert_eq!((region.load(4), region.load(5)), (8, 0));
}

#[test]
fn merging_equal_pages_loses_no_write() {
    needs!(wp_async);
    let test = "merging_equal_pages_loses_no_write";
    let _alone = pagetide_testing::child::without_children();
    let mut machine = Machine::lock();
    if !merges_or_skip(test, &mut machine, "0") {
        return;
    }
    let region = Region::filled(16, 7);
    region.advise(0..16, libc::MADV_MERGEABLE).unwrap();
    let (_protector, pagemap) = protect(&region);
    region.take_written(&pagemap);
    let entries = || pagemap.entries(region.pages()).unwrap();
    let merged = || {
        entries()
            .iter()
            .filter(|entry| !entry.is_exclusive())
            .count()
            >= 15
    };
    if !while_merging(merged) {
        return skipped(test, "nothing was merged");
    }
    region.take_written(&pagemap);
    region.store(3, 8);
    // Merging and unmerging may report pages that nobody stored to.
    assert!(region.take_written(&pagemap).contains(&3));
    assert_eq!((region.load(2), region.load(3)), (7, 8));
    region.advise(0..16, libc::MADV_UNMERGEABLE).unwrap();
    region.take_written(&pagemap);
    region.store(4, 8);
    assert!(region.take_written(&pagemap).contains(&4));
}

#[test]
fn stores_by_the_kernel_through_the_page_table_are_seen() {
    needs!(wp_async);
    use std::io::{Read, Write};
    use std::os::unix::fs::FileExt;
    let region = Region::filled(8, 1);
    let (_protector, pagemap) = protect(&region);
    region.take_written(&pagemap);
    let file = pagetide_testing::file_of(1, 9);
    pagetide_testing::read_into(&region, 2, &file).unwrap();
    assert_eq!(region.take_written(&pagemap), [2]);
    let (mut end, mut other) = std::os::unix::net::UnixStream::pair().unwrap();
    other.write_all(&[1; 10]).unwrap();
    end.read_exact(&mut [0; 5]).unwrap();
    pagetide_testing::read_into(&region, 3, &end).unwrap();
    assert_eq!(region.take_written(&pagemap), [3]);
    let memory = std::fs::File::options()
        .write(true)
        .open("/proc/self/mem")
        .unwrap();
    memory.write_at(b"x", region.address(5)).unwrap();
    assert_eq!(region.take_written(&pagemap), [5]);
}
