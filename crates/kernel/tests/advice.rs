//! Prevents: taking an advice of madvise(2) for harmless, or for a write, without having looked. Each
//! advice of the manual that leaves the content alone, in the manual's order: the content, what is
//! reported as written, and what VmFlags say. Advice that changes content is in `advice_content.rs`.
//!
//! The facts about content and VmFlags hold on every kernel; those about tracking are tests of their
//! own, since not every kernel can track.

#![allow(unsafe_code)]

use nix::libc;
use pagetide_kernel::pagemap_scan::Categories;
use pagetide_testing::child::run_to_end;
use pagetide_testing::watched::{Watcher, advise_or_skip, flags_of, has_flag, loads, refused_with};
use pagetide_testing::{PAGE, Region, needs, skipped};

const PAGES: usize = 8;

/// Private, shared and file memory, each page with its number.
fn kinds() -> Vec<(&'static str, Region)> {
    let file = pagetide_testing::file_of(PAGES, 1);
    let kinds = vec![
        ("private", Region::private(PAGES)),
        ("shared", Region::shared(PAGES)),
        ("private file", Region::of_file(&file, PAGES, false)),
        ("shared file", Region::of_file(&file, PAGES, true)),
    ];
    for (_, region) in &kinds {
        (0..PAGES).for_each(|page| region.store(page, page as u8 + 1));
    }
    kinds
}

fn numbered() -> Vec<u8> {
    (1..=PAGES as u8).collect()
}

/// Advice that is an attribute of a mapping: given, its VmFlag is there; taken back, it is not. In
/// between the content stays.
fn is_an_attribute(region: &Region, flag: &str, give: i32, take: i32) {
    assert!(!has_flag(region, 3, flag));
    region.advise(2..6, give).unwrap();
    let has = |page| has_flag(region, page, flag);
    assert_eq!([has(1), has(2), has(5), has(6)], [false, true, true, false]);
    assert_eq!(loads(region), numbered());
    region.advise(0..PAGES, take).unwrap();
    assert!(!has(3), "{flag} stays: {:?}", flags_of(region, 3));
    assert_eq!(loads(region), numbered());
}

/// The advice changes nothing that tracking knows, on any kind of memory: what was clean stays clean,
/// what was written stays written, and later stores are seen.
fn leaves_tracking_alone(test: &str, advices: &[i32], kinds: Vec<(&'static str, Region)>) {
    let watcher = Watcher::of_self();
    for (kind, region) in &kinds {
        for &advice in advices {
            watcher.settle(region);
            region.store(3, 90);
            if !advise_or_skip(test, region, 0..PAGES, advice) {
                return;
            }
            assert_eq!(watcher.written(region), [3], "{kind}, advice {advice}");
            region.store(5, 91);
            assert_eq!(watcher.written(region), [5], "{kind}, advice {advice}");
            let registered = region.state(0).contains(Categories::WP_ALLOWED);
            assert!(registered, "{kind}, advice {advice}");
        }
    }
}

#[test]
fn random_and_sequential_are_attributes_that_normal_takes_back() {
    for (_, region) in kinds() {
        is_an_attribute(&region, "rr", libc::MADV_RANDOM, libc::MADV_NORMAL);
        is_an_attribute(&region, "sr", libc::MADV_SEQUENTIAL, libc::MADV_NORMAL);
    }
}

#[test]
fn normal_random_and_sequential_leave_tracking_alone() {
    needs!(wp_async);
    leaves_tracking_alone(
        "normal_random_and_sequential_leave_tracking_alone",
        &[libc::MADV_RANDOM, libc::MADV_SEQUENTIAL, libc::MADV_NORMAL],
        kinds(),
    );
}

#[test]
fn willneed_changes_neither_content_nor_attributes() {
    for (kind, region) in kinds() {
        let before = flags_of(&region, 0);
        region.advise(0..PAGES, libc::MADV_WILLNEED).unwrap();
        assert_eq!(loads(&region), numbered(), "{kind}");
        assert_eq!(flags_of(&region, 0), before, "{kind}");
    }
}

#[test]
fn willneed_leaves_tracking_alone() {
    needs!(wp_async);
    let test = "willneed_leaves_tracking_alone";
    leaves_tracking_alone(test, &[libc::MADV_WILLNEED], kinds());
}

#[test]
fn dontfork_is_an_attribute_that_keeps_a_child_from_having_the_memory() {
    for (kind, region) in kinds() {
        is_an_attribute(&region, "dc", libc::MADV_DONTFORK, libc::MADV_DOFORK);
        region.advise(2..6, libc::MADV_DONTFORK).unwrap();
        let child = |page| run_to_end(|| i32::from(region.load(page)));
        assert_eq!(child(1), Ok(2), "{kind}");
        assert_eq!(child(2), Err(libc::SIGSEGV), "{kind}");
        region.advise(2..6, libc::MADV_DOFORK).unwrap();
        assert_eq!(child(2), Ok(3), "{kind}");
    }
}

#[test]
fn dontfork_and_dofork_leave_tracking_alone_and_so_does_the_fork() {
    needs!(wp_async);
    let test = "dontfork_and_dofork_leave_tracking_alone_and_so_does_the_fork";
    let advices = [libc::MADV_DONTFORK, libc::MADV_DOFORK];
    leaves_tracking_alone(test, &advices, kinds());
    let watcher = Watcher::of_self();
    for (kind, region) in kinds() {
        region.advise(2..6, libc::MADV_DONTFORK).unwrap();
        watcher.settle(&region);
        region.store(3, 90);
        region.store(6, 90);
        assert_eq!(run_to_end(|| i32::from(region.load(7))), Ok(8));
        assert_eq!(watcher.written(&region), [3, 6], "{kind}");
    }
}

#[test]
fn mergeable_is_an_attribute_of_private_memory_and_unmergeable_takes_it_back() {
    let test = "mergeable_is_an_attribute_of_private_memory_and_unmergeable_takes_it_back";
    let region = Region::private(PAGES);
    (0..PAGES).for_each(|page| region.store(page, page as u8 + 1));
    if advise_or_skip(test, &region, 0..1, libc::MADV_MERGEABLE) {
        region.advise(0..1, libc::MADV_UNMERGEABLE).unwrap();
        is_an_attribute(&region, "mg", libc::MADV_MERGEABLE, libc::MADV_UNMERGEABLE);
        let shared = Region::shared(PAGES);
        shared.advise(0..PAGES, libc::MADV_MERGEABLE).unwrap();
        assert!(!has_flag(&shared, 0, "mg"), "accepted and not done");
    }
}

#[test]
fn mergeable_and_unmergeable_leave_tracking_alone() {
    needs!(wp_async);
    // Where nothing is merged; what merging does is `merging_equal_pages_loses_no_write`.
    let _alone = pagetide_testing::machine::Machine::lock();
    leaves_tracking_alone(
        "mergeable_and_unmergeable_leave_tracking_alone",
        &[libc::MADV_MERGEABLE, libc::MADV_UNMERGEABLE],
        kinds(),
    );
}

#[test]
fn soft_offline_moves_a_page_which_keeps_its_content_and_its_state() {
    needs!(wp_async);
    const MADV_SOFT_OFFLINE: i32 = 101;
    let test = "soft_offline_moves_a_page_which_keeps_its_content_and_its_state";
    let region = Region::private(PAGES);
    (0..PAGES).for_each(|page| region.store(page, page as u8 + 1));
    let watcher = Watcher::of_self();
    watcher.settle(&region);
    region.store(5, 90);
    let frames = || {
        let entries = watcher.pagemap.entries(region.pages()).unwrap();
        let frame = |page: usize| entries[page].frame_number();
        [frame(2), frame(5), frame(6)]
    };
    let before = frames();
    // Two frames are lost to the machine until it starts again.
    for page in [2, 5] {
        if !advise_or_skip(test, &region, page..page + 1, MADV_SOFT_OFFLINE) {
            return;
        }
    }
    let after = frames();
    assert!(before[0] != after[0] && before[1] != after[1] && before[2] == after[2]);
    assert_eq!(loads(&region), [1, 2, 3, 4, 5, 90, 7, 8]);
    assert_eq!(watcher.written(&region), [5], "clean stays clean");
    region.store(2, 91);
    assert_eq!(watcher.written(&region), [2]);
}

#[test]
fn hugepage_and_nohugepage_are_attributes() {
    let test = "hugepage_and_nohugepage_are_attributes";
    for (kind, region) in kinds() {
        if !advise_or_skip(test, &region, 0..PAGES, libc::MADV_HUGEPAGE) {
            return;
        }
        let flags = || (has_flag(&region, 0, "hg"), has_flag(&region, 0, "nh"));
        assert_eq!(flags(), (true, false), "{kind}");
        region.advise(0..PAGES, libc::MADV_NOHUGEPAGE).unwrap();
        assert_eq!(flags(), (false, true), "{kind}");
        assert_eq!(loads(&region), numbered(), "{kind}");
    }
}

#[test]
fn hugepage_and_nohugepage_leave_tracking_alone() {
    needs!(wp_async);
    leaves_tracking_alone(
        "hugepage_and_nohugepage_leave_tracking_alone",
        &[libc::MADV_HUGEPAGE, libc::MADV_NOHUGEPAGE],
        kinds(),
    );
}

#[test]
fn dontdump_is_an_attribute() {
    for (_, region) in kinds() {
        is_an_attribute(&region, "dd", libc::MADV_DONTDUMP, libc::MADV_DODUMP);
    }
}

#[test]
fn dontdump_and_dodump_leave_tracking_alone() {
    needs!(wp_async);
    leaves_tracking_alone(
        "dontdump_and_dodump_leave_tracking_alone",
        &[libc::MADV_DONTDUMP, libc::MADV_DODUMP],
        kinds(),
    );
}

#[test]
fn wipeonfork_is_an_attribute_that_gives_a_child_zeros() {
    let region = Region::private(PAGES);
    (0..PAGES).for_each(|page| region.store(page, page as u8 + 1));
    is_an_attribute(&region, "wf", libc::MADV_WIPEONFORK, libc::MADV_KEEPONFORK);
    region.advise(2..6, libc::MADV_WIPEONFORK).unwrap();
    let child = |page| run_to_end(|| i32::from(region.load(page)));
    assert_eq!((child(1), child(2)), (Ok(2), Ok(0)));
    assert_eq!(loads(&region), numbered(), "the parent keeps its own");
    for (kind, region) in kinds().into_iter().skip(1) {
        let answer = region.advise(0..PAGES, libc::MADV_WIPEONFORK);
        assert!(refused_with(answer, libc::EINVAL), "{kind}");
    }
}

#[test]
fn wipeonfork_and_keeponfork_leave_tracking_alone_and_so_does_the_fork() {
    needs!(wp_async);
    let test = "wipeonfork_and_keeponfork_leave_tracking_alone_and_so_does_the_fork";
    let private = || vec![("private", Region::filled(PAGES, 1))];
    let advices = [libc::MADV_WIPEONFORK, libc::MADV_KEEPONFORK];
    leaves_tracking_alone(test, &advices, private());
    let watcher = Watcher::of_self();
    let region = Region::filled(PAGES, 1);
    region.advise(0..PAGES, libc::MADV_WIPEONFORK).unwrap();
    watcher.settle(&region);
    region.store(3, 90);
    assert_eq!(run_to_end(|| i32::from(region.load(7))), Ok(0));
    assert_eq!(watcher.written(&region), [3]);
}

#[test]
fn cold_and_pageout_change_neither_content_nor_attributes() {
    for (kind, region) in kinds() {
        let before = flags_of(&region, 0);
        region.advise(0..PAGES, libc::MADV_COLD).unwrap();
        region.advise(0..PAGES, libc::MADV_PAGEOUT).unwrap();
        assert_eq!(loads(&region), numbered(), "{kind}");
        assert_eq!(flags_of(&region, 0), before, "{kind}");
    }
}

#[test]
fn cold_and_pageout_are_refused_for_locked_memory() {
    let (_, region) = kinds().remove(0);
    region.lock(2..4).unwrap();
    for advice in [libc::MADV_COLD, libc::MADV_PAGEOUT] {
        assert!(refused_with(region.advise(0..PAGES, advice), libc::EINVAL));
    }
    assert_eq!(loads(&region), numbered());
}

#[test]
fn cold_and_pageout_leave_tracking_alone() {
    needs!(wp_async);
    leaves_tracking_alone(
        "cold_and_pageout_leave_tracking_alone",
        &[libc::MADV_COLD, libc::MADV_PAGEOUT],
        kinds(),
    );
}

#[test]
fn populating_changes_neither_content_nor_attributes() {
    for (kind, region) in kinds() {
        let before = flags_of(&region, 0);
        region.advise(0..PAGES, libc::MADV_POPULATE_READ).unwrap();
        region.advise(0..PAGES, libc::MADV_POPULATE_WRITE).unwrap();
        assert_eq!(loads(&region), numbered(), "{kind}");
        assert_eq!(flags_of(&region, 0), before, "{kind}");
    }
}

#[test]
fn populating_tells_why_it_fails_and_sends_no_signal() {
    let both = [libc::MADV_POPULATE_READ, libc::MADV_POPULATE_WRITE];
    let (_, region) = kinds().remove(0);
    region.protect(3..4, libc::PROT_NONE);
    for advice in both {
        assert!(refused_with(region.advise(0..PAGES, advice), libc::EINVAL));
    }
    region.protect(3..4, pagetide_testing::READ_WRITE);
    // Past the end of its file: whoever touches that gets a SIGBUS.
    let long = Region::of_file(&pagetide_testing::file_of(2, 1), PAGES, true);
    for advice in both {
        assert!(refused_with(long.advise(0..PAGES, advice), libc::EFAULT));
    }
    assert_eq!(loads(&region), numbered());
}

#[test]
fn populate_read_leaves_tracking_alone() {
    needs!(wp_async);
    let test = "populate_read_leaves_tracking_alone";
    leaves_tracking_alone(test, &[libc::MADV_POPULATE_READ], kinds());
    let watcher = Watcher::of_self();
    // Empty slots that are protected: the zero page comes to stand in them, and that is no write.
    let empty = Region::private(PAGES);
    watcher.settle(&empty);
    empty.advise(0..PAGES, libc::MADV_POPULATE_READ).unwrap();
    assert!(empty.state(2).contains(Categories::PRESENT));
    assert_eq!(watcher.written(&empty), []);
    empty.store(2, 1);
    assert_eq!(watcher.written(&empty), [2]);
}

#[test]
fn populate_write_reads_written_though_nothing_changes() {
    needs!(wp_async);
    let watcher = Watcher::of_self();
    for (kind, region) in kinds() {
        watcher.settle(&region);
        region.advise(2..5, libc::MADV_POPULATE_WRITE).unwrap();
        assert_eq!(watcher.written(&region), [2, 3, 4], "{kind}");
        assert_eq!(loads(&region), numbered(), "{kind}");
    }
}

#[test]
fn collapse_keeps_content() {
    let test = "collapse_keeps_content";
    let pages = pagetide_testing::HUGE / PAGE;
    let region = Region::filled(pages, 1);
    let _ = region.advise(0..pages, libc::MADV_HUGEPAGE);
    region.store(7, 2);
    region.advise(9..10, libc::MADV_DONTNEED).unwrap();
    match region.advise(0..pages, libc::MADV_COLLAPSE) {
        // What was not there is zero in the huge page.
        Ok(()) => {
            let loaded = [7, 8, 9, pages - 1].map(|page| region.load(page));
            assert_eq!(loaded, [2, 1, 0, 1]);
        }
        Err(error) => skipped(test, &format!("huge pages: {error}")),
    }
}

#[test]
fn collapse_is_refused_under_tracking_and_changes_nothing() {
    needs!(wp_async);
    let pages = pagetide_testing::HUGE / PAGE;
    let watcher = Watcher::of_self();
    let region = Region::filled(pages, 1);
    let _ = region.advise(0..pages, libc::MADV_HUGEPAGE);
    watcher.settle(&region);
    region.store(7, 2);
    assert!(region.advise(0..pages, libc::MADV_COLLAPSE).is_err());
    assert_eq!(watcher.written(&region), [7]);
    assert_eq!((region.load(7), region.load(pages - 1)), (2, 1));
}

#[test]
fn an_advice_nobody_knows_is_refused_and_changes_nothing() {
    let (_, region) = kinds().remove(0);
    assert!(refused_with(region.advise(0..PAGES, 1234), libc::EINVAL));
    assert_eq!(loads(&region), numbered());
}

/// madvise(2) of any range of bytes.
fn advise_bytes(start: u64, length: usize, advice: i32) -> std::io::Result<()> {
    let start = std::ptr::with_exposed_provenance_mut(start as usize);
    // SAFETY: the advice that is given here changes no content.
    match unsafe { libc::madvise(start, length, advice) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[test]
fn advice_is_for_whole_pages_and_may_be_for_none() {
    let (_, region) = kinds().remove(0);
    let crooked = advise_bytes(region.start() + 1, PAGE, libc::MADV_RANDOM);
    assert!(refused_with(crooked, libc::EINVAL));
    advise_bytes(region.start(), PAGE + 1, libc::MADV_RANDOM).unwrap();
    let given: Vec<bool> = (0..4).map(|page| has_flag(&region, page, "rr")).collect();
    assert_eq!(
        given,
        [true, true, false, false],
        "the length is rounded up"
    );
    advise_bytes(region.address(4), 0, libc::MADV_RANDOM).unwrap();
    assert!(!has_flag(&region, 4, "rr"));
    // Which asks whether the kernel knows it.
    advise_bytes(0, 0, libc::MADV_RANDOM).unwrap();
    assert!(refused_with(advise_bytes(0, 0, 1234), libc::EINVAL));
}

#[test]
fn what_is_not_mapped_is_passed_over_and_told() {
    let _alone = pagetide_testing::child::without_children();
    let (_, region) = kinds().remove(0);
    region.unmap(3..5);
    let answer = region.advise(0..PAGES, libc::MADV_RANDOM);
    assert!(refused_with(answer, libc::ENOMEM));
    assert!(
        [0, 2, 5, 7]
            .iter()
            .all(|page| has_flag(&region, *page, "rr"))
    );
}
