//! Prevents: a write that is lost in silence. One test for each way in which the kernel's report of
//! written pages misleads a tracker that takes it at its word; `docs/KERNEL.md` numbers them.

use nix::libc;
use pagetide_kernel::maps::mappings;
use pagetide_kernel::memory::ProcessMemory;
use pagetide_kernel::pagemap_scan::{Categories, Pagemap};
use pagetide_kernel::userfaultfd::{UserfaultfdError, WriteProtector};
use pagetide_pages::{PageRange, PageSize};
use pagetide_testing::child::{Child, create_userfaultfd, execute_sleep};
use pagetide_testing::machine::Machine;
use pagetide_testing::{PAGE, Region, needs, skipped};
use pagetide_tracker::{
    GivenBack, Harvest, LayoutChange, RefusedReason, TrackError, Tracker, WpAsync,
};

/// The mappings of this process within the regions, as a tracker's user would list them.
fn listed(regions: &[&Region]) -> Vec<PageRange> {
    let all = mappings(std::process::id().cast_signed()).unwrap();
    let pages = all.iter().map(|mapping| mapping.pages());
    let inside = |range: &PageRange| {
        let within = |region: &&Region| region.pages().intersection(*range).is_some();
        regions.iter().any(within)
    };
    pages.filter(inside).collect()
}

fn harvest(tracker: &mut WpAsync, region: &Region) -> Harvest {
    tracker.harvest(&listed(&[region])).unwrap()
}

/// What is written, counted from the start of the region, committed.
fn written(tracker: &mut WpAsync, region: &Region) -> Vec<usize> {
    let harvest = harvest(tracker, region);
    let pages = region.positions(harvest.written());
    harvest.commit();
    pages
}

fn fresh(layout: &LayoutChange, region: &Region) -> Vec<usize> {
    region.positions(&layout.fresh)
}

/// A tracker that has committed everything in the region.
fn settled(region: &Region) -> WpAsync {
    let mut tracker = WpAsync::of_self().unwrap();
    harvest(&mut tracker, region).commit();
    assert_eq!(written(&mut tracker, region), []);
    tracker
}

#[test]
fn t01_unregistered_mapping_is_fresh() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    region.unmap(4..8);
    let mut tracker = settled(&region);
    region.replace(4..8);
    region.store(5, 2);
    let harvest = harvest(&mut tracker, &region);
    assert_eq!(fresh(harvest.layout(), &region), [4, 5, 6, 7]);
    assert_eq!(region.positions(harvest.written()), [4, 5, 6, 7]);
    harvest.commit();
    region.store(6, 2);
    assert_eq!(
        written(&mut tracker, &region),
        [6],
        "it is watched from then on"
    );
}

#[test]
fn t02_a_mixed_layout_loses_no_record() {
    needs!(wp_async);
    let region = Region::filled(16, 1);
    let mut tracker = settled(&region);
    region.store(1, 2);
    region.replace(8..9);
    region.store(12, 2);
    assert_eq!(written(&mut tracker, &region), [1, 8, 12]);
    assert_eq!(written(&mut tracker, &region), []);
}

#[test]
fn t03_a_mapping_replaced_at_the_same_address_is_fresh() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let mut tracker = settled(&region);
    let before = listed(&[&region]);
    region.unmap(0..8);
    region.replace(0..8);
    region.fill(0..8, 2);
    assert_eq!(
        listed(&[&region]),
        before,
        "the list of mappings does not tell"
    );
    let harvest = harvest(&mut tracker, &region);
    assert_eq!(fresh(harvest.layout(), &region).len(), 8);
    assert_eq!(region.positions(harvest.written()).len(), 8);
    harvest.commit();
}

#[test]
fn t04_moved_mapping_is_fresh() {
    needs!(wp_async);
    let from = Region::filled(8, 1);
    let to = Region::private(8);
    to.unmap(0..8);
    let mut tracker = settled(&from);
    from.move_to(0..8, &to, 0, false);
    let harvest = harvest(&mut tracker, &to);
    assert_eq!(fresh(harvest.layout(), &to).len(), 8);
    assert_eq!(to.positions(harvest.written()).len(), 8);
    harvest.commit();
    to.store(3, 2);
    assert_eq!(written(&mut tracker, &to), [3]);
}

#[test]
fn t04_moving_over_a_watched_mapping_is_fresh() {
    needs!(wp_async);
    let from = Region::filled(4, 9);
    let to = Region::filled(8, 1);
    let mut tracker = WpAsync::of_self().unwrap();
    tracker.harvest(&listed(&[&from, &to])).unwrap().commit();
    from.move_to(0..4, &to, 2, true);
    let harvest = tracker.harvest(&listed(&[&from, &to])).unwrap();
    assert_eq!(to.positions(harvest.written()), [2, 3, 4, 5]);
    assert_eq!(
        from.positions(harvest.written()),
        [0, 1, 2, 3],
        "what was left behind is zero"
    );
    harvest.commit();
}

#[test]
fn t04_a_grown_tail_is_written() {
    needs!(wp_async);
    let region = Region::filled(600, 1);
    let mut tracker = settled(&region);
    region.resize_in_place(0..600, 2000).unwrap();
    let region = region.assume_pages(2000);
    assert_eq!(
        written(&mut tracker, &region),
        (600..2000).collect::<Vec<_>>()
    );
    region.store(1999, 1);
    assert_eq!(written(&mut tracker, &region), [1999]);
}

#[test]
fn t04_shrunk_and_regrown_is_written() {
    needs!(wp_async);
    let region = Region::filled(2048, 1);
    let mut tracker = settled(&region);
    region.resize_in_place(0..2048, 8).unwrap();
    region.resize_in_place(0..8, 2048).unwrap();
    assert_eq!(
        written(&mut tracker, &region),
        (8..2048).collect::<Vec<_>>()
    );
}

/// Watched memory that was joined by a mapping that mremap(2) moved to its side, which took the registration from
/// both, and page 9 of which was written then.
fn joined() -> (Region, WpAsync) {
    let region = Region::filled(16, 1);
    region.unmap(0..4);
    // Never touched: only then does it forget the place where it was made.
    let from = Region::private(4);
    let mut tracker = WpAsync::of_self().unwrap();
    let both = listed(&[&from, &region]);
    tracker.harvest(&both).unwrap().commit();
    tracker.harvest(&both).unwrap().commit();
    from.move_to(0..4, &region, 0, false);
    assert_eq!(listed(&[&region]).len(), 1, "they are one mapping");
    region.store(9, 2);
    (region, tracker)
}

#[test]
fn t33_joined_by_a_moved_mapping_and_written_meanwhile() {
    needs!(wp_async);
    let (region, mut tracker) = joined();
    let harvest = harvest(&mut tracker, &region);
    assert_eq!(fresh(harvest.layout(), &region).len(), 16);
    harvest.commit();
    assert_eq!(written(&mut tracker, &region), []);
    region.store(9, 3);
    region.store(12, 3);
    assert_eq!(written(&mut tracker, &region), [9, 12]);
}

#[test]
fn t33_moved_and_written_meanwhile() {
    needs!(wp_async);
    let from = Region::filled(8, 1);
    let to = Region::private(8);
    to.unmap(0..8);
    let mut tracker = settled(&from);
    from.move_to(0..8, &to, 0, false);
    to.store(3, 2);
    harvest(&mut tracker, &to).commit();
    to.store(3, 3);
    assert_eq!(written(&mut tracker, &to), [3]);
}

#[test]
fn t33_registered_by_a_tracker_that_was_killed_then() {
    needs!(wp_async);
    use std::os::fd::AsFd;
    let (region, tracker) = joined();
    let (start, end) = PageSize::KIB_4.span_of(region.pages());
    tracker.protector().register(start, end - start).unwrap();
    let kept = tracker.protector().as_fd().try_clone_to_owned().unwrap();
    drop(tracker);
    let protector = WriteProtector::already_enabled(kept);
    let mut second = WpAsync::with(protector, Pagemap::of_self().unwrap()).distrusting();
    assert_eq!(written(&mut second, &region).len(), 16);
    region.store(9, 3);
    assert_eq!(written(&mut second, &region), [9]);
}

#[test]
fn t05_a_childs_stores_are_not_the_parents_and_the_child_is_all_written() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let mut tracker = settled(&region);
    let child = Child::run(|board| {
        region.store(5, 2);
        board.tell(0, create_userfaultfd());
        board.wait(1);
        region.store(6, 2);
        board.tell(2, 1);
    });
    let fd = child.wait(0);
    assert_eq!(written(&mut tracker, &region), []);
    let protector = WriteProtector::enable(child.fetch(fd)).unwrap();
    let pagemap = Pagemap::of_process(child.pid()).unwrap();
    let mut theirs = WpAsync::with(protector, pagemap);
    let all: Vec<usize> = (0..8).collect();
    assert_eq!(
        written(&mut theirs, &region),
        all,
        "nothing of it is known before"
    );
    assert_eq!(written(&mut theirs, &region), []);
    child.tell(1, 1);
    child.wait(2);
    assert_eq!(written(&mut theirs, &region), [6]);
    assert_eq!(written(&mut tracker, &region), []);
}

#[test]
fn t05_a_userfaultfd_of_the_parent_never_calls_the_child_clean() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let child = Child::run(|board| {
        board.tell(0, 1);
        board.wait(1);
        region.store(6, 2);
        board.tell(2, 1);
    });
    child.wait(0);
    let parents = WriteProtector::of_self().unwrap();
    let mut mixed = WpAsync::with(parents, Pagemap::of_process(child.pid()).unwrap());
    harvest(&mut mixed, &region).commit();
    child.tell(1, 1);
    child.wait(2);
    assert!(written(&mut mixed, &region).contains(&6));
}

/// A child that tracking was set up for, committed once, and that executes another program when told.
fn tracked_child(region: &Region) -> (Child, WpAsync) {
    let child = Child::run(|board| {
        board.tell(0, create_userfaultfd());
        board.wait(1);
        execute_sleep();
    });
    let protector = WriteProtector::enable(child.fetch(child.wait(0))).unwrap();
    let pagemap = Pagemap::of_process(child.pid()).unwrap();
    let mut tracker = WpAsync::with(protector, pagemap);
    harvest(&mut tracker, region).commit();
    (child, tracker)
}

fn all_say_gone(tracker: &mut WpAsync, lists: &[Vec<PageRange>]) {
    for mappings in lists {
        let armed = tracker.arm(mappings);
        assert!(
            matches!(armed, Err(TrackError::SpaceGone)),
            "{mappings:x?}: {armed:?}"
        );
        let harvest = tracker.harvest(mappings);
        assert!(
            matches!(harvest, Err(TrackError::SpaceGone)),
            "{mappings:x?}: {harvest:?}"
        );
    }
}

#[test]
fn t06_execve_is_space_gone_and_not_nothing_written() {
    needs!(wp_async);
    let region = Region::filled(4, 1);
    let (child, mut tracker) = tracked_child(&region);
    child.tell(1, 1);
    child.wait_for_program("/bin/sleep");
    let new: Vec<PageRange> = mappings(child.pid())
        .unwrap()
        .iter()
        .map(|m| m.pages())
        .collect();
    assert!(!new.is_empty());
    all_say_gone(&mut tracker, &[new, listed(&[&region]), Vec::new()]);
}

#[test]
fn t06_exit_is_space_gone_and_not_nothing_written() {
    needs!(wp_async);
    let region = Region::filled(4, 1);
    let (child, mut tracker) = tracked_child(&region);
    child.kill();
    all_say_gone(&mut tracker, &[listed(&[&region]), Vec::new()]);
}

#[test]
fn t10_a_dropped_page_is_written() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let mut tracker = settled(&region);
    region.advise(2..4, libc::MADV_DONTNEED).unwrap();
    assert!(!region.state(2).contains(Categories::PRESENT));
    assert_eq!(written(&mut tracker, &region), [2, 3]);
    region.advise(2..4, libc::MADV_DONTNEED).unwrap();
    assert_eq!((region.load(2), region.load(4)), (0, 1));
    assert_eq!(
        written(&mut tracker, &region),
        [2, 3],
        "though nothing was there any more"
    );
}

#[test]
fn t10_dropping_whole_page_tables_and_huge_pages_is_written() {
    needs!(wp_async);
    let plain = Region::filled(1536, 1);
    let huge = Region::transparent_huge(3, 1);
    if huge.is_none() {
        skipped(
            "t10_dropping_whole_page_tables_and_huge_pages_is_written (huge)",
            "no huge pages",
        );
    }
    for region in [Some(plain), huge].into_iter().flatten() {
        let mut tracker = settled(&region);
        region.advise(512..1024, libc::MADV_DONTNEED).unwrap();
        assert_eq!(
            written(&mut tracker, &region),
            (512..1024).collect::<Vec<_>>()
        );
    }
}

#[test]
fn t11_a_swapped_written_page_is_written() {
    needs!(wp_async);
    let _alone = pagetide_testing::child::without_children();
    let mut machine = Machine::lock();
    if let Err(reason) = machine.swap() {
        return skipped("t11_a_swapped_written_page_is_written", &reason);
    }
    let region = Region::filled(8, 1);
    let mut tracker = settled(&region);
    region.store(3, 2);
    region.page_out(0..8);
    let state = region.state(3);
    assert!(state.contains(Categories::SWAPPED) && !state.contains(Categories::PRESENT));
    assert_eq!(written(&mut tracker, &region), [3]);
    assert_eq!(region.load(3), 2);
    assert_eq!(written(&mut tracker, &region), []);
}

#[test]
fn t12_a_marker_on_an_empty_slot_is_clean_until_it_is_stored_to() {
    needs!(wp_async);
    let region = Region::private(8);
    let mut tracker = settled(&region);
    assert!(
        region.state(2).contains(Categories::SWAPPED),
        "nothing is in swap"
    );
    region.store(2, 1);
    assert_eq!(written(&mut tracker, &region), [2]);
}

#[test]
fn t13_a_freed_page_that_turns_zero_is_written() {
    needs!(wp_async);
    let _alone = pagetide_testing::child::without_children();
    let mut machine = Machine::lock();
    if let Err(reason) = machine.swap() {
        return skipped("t13_a_freed_page_that_turns_zero_is_written", &reason);
    }
    let region = Region::filled(64, 1);
    let mut tracker = settled(&region);
    region.advise(0..64, libc::MADV_FREE).unwrap();
    region.advise(0..64, libc::MADV_PAGEOUT).unwrap();
    let written = written(&mut tracker, &region);
    let zero: Vec<usize> = (0..64).filter(|page| region.load(*page) == 0).collect();
    if zero.is_empty() {
        return skipped(
            "t13_a_freed_page_that_turns_zero_is_written",
            "nothing was reclaimed",
        );
    }
    assert!(
        zero.iter().all(|page| written.contains(page)),
        "{zero:?} {written:?}"
    );
}

#[test]
fn t14_guards_are_written_when_they_come_and_when_they_go() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let mut tracker = settled(&region);
    if region
        .advise(2..4, pagetide_testing::MADV_GUARD_INSTALL)
        .is_err()
    {
        return skipped(
            "t14_guards_are_written_when_they_come_and_when_they_go",
            "no guard regions",
        );
    }
    assert_eq!(written(&mut tracker, &region), [2, 3]);
    assert_eq!(written(&mut tracker, &region), []);
    let memory = ProcessMemory::open(std::process::id().cast_signed()).unwrap();
    let bytes = &mut vec![0; 2 * PAGE];
    let unreadable = memory
        .read_pages(PageSize::KIB_4, &[region.range(2..4)], bytes)
        .unwrap();
    assert_eq!(unreadable.len(), 2, "still guards after the harvest");
    region
        .advise(2..3, pagetide_testing::MADV_GUARD_REMOVE)
        .unwrap();
    assert_eq!(written(&mut tracker, &region), [2]);
}

#[test]
fn t31_guards_cannot_be_given_back_to_the_kernel_and_that_is_said() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let mut tracker = settled(&region);
    if region
        .advise(2..3, pagetide_testing::MADV_GUARD_INSTALL)
        .is_err()
    {
        let test = "t31_guards_cannot_be_given_back_to_the_kernel_and_that_is_said";
        return skipped(test, "no guard regions");
    }
    let taken = harvest(&mut tracker, &region);
    assert_eq!(taken.give_back(), GivenBack::InMemory);
    assert_eq!(written(&mut tracker, &region), [2]);
}

#[test]
fn t31_a_guard_reads_clean_to_a_later_tracker_and_is_fresh_all_the_same() {
    needs!(wp_async);
    let _alone = pagetide_testing::child::without_children();
    let region = Region::filled(8, 1);
    let mut tracker = settled(&region);
    if region
        .advise(2..3, pagetide_testing::MADV_GUARD_INSTALL)
        .is_err()
    {
        let test = "t31_a_guard_reads_clean_to_a_later_tracker_and_is_fresh_all_the_same";
        return skipped(test, "no guard regions");
    }
    drop(harvest(&mut tracker, &region));
    drop(tracker);
    let mut later = WpAsync::of_self().unwrap();
    later.arm(&listed(&[&region])).unwrap();
    assert!(
        !region.state(2).contains(Categories::WRITTEN),
        "the kernel keeps its protection"
    );
    assert_eq!(written(&mut later, &region), (0..8).collect::<Vec<_>>());
}

#[test]
fn t16_a_second_tracker_is_refused_and_steals_nothing() {
    needs!(wp_async);
    let _alone = pagetide_testing::child::without_children();
    let region = Region::filled(8, 1);
    let mut first = settled(&region);
    let mut second = WpAsync::of_self().unwrap();
    region.store(2, 2);
    let stolen = harvest(&mut second, &region);
    assert_eq!(region.positions(stolen.written()), []);
    assert_eq!(stolen.layout().refused.len(), 1);
    stolen.commit();
    assert_eq!(written(&mut first, &region), [2]);
    drop(first);
    let harvest = harvest(&mut second, &region);
    assert_eq!(fresh(harvest.layout(), &region).len(), 8, "free again");
    harvest.commit();
}

#[test]
fn t17_thousands_of_scattered_pages_are_each_reported() {
    needs!(wp_async);
    const PAGES: usize = 40_000;
    let region = Region::filled(PAGES, 1);
    let mut tracker = settled(&region);
    for step in [2, 3, 5, 64] {
        let stored: Vec<usize> = (0..PAGES).step_by(step).collect();
        stored
            .iter()
            .for_each(|page| region.store(*page, step as u8));
        assert_eq!(written(&mut tracker, &region), stored, "every {step}th");
        assert_eq!(written(&mut tracker, &region), []);
    }
}

#[test]
fn t18_holes_without_page_tables_are_written_in_full() {
    needs!(wp_async);
    let region = Region::private(4096);
    region.store(1, 1);
    let mut tracker = WpAsync::of_self().unwrap();
    assert_eq!(
        written(&mut tracker, &region),
        (0..4096).collect::<Vec<_>>()
    );
    region.store(3000, 1);
    assert_eq!(written(&mut tracker, &region), [3000]);
    region.advise(0..4096, libc::MADV_DONTNEED).unwrap();
    assert_eq!(
        written(&mut tracker, &region),
        (0..4096).collect::<Vec<_>>()
    );
}

#[test]
fn t20_a_harvest_of_nothing_scans_nothing() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let mut tracker = settled(&region);
    region.store(2, 2);
    let nothing = tracker.harvest(&[]).unwrap();
    assert!(nothing.written().is_empty() && nothing.layout().refused.is_empty());
    nothing.commit();
    assert_eq!(
        written(&mut tracker, &region),
        [2],
        "what was not asked for is not taken"
    );
}

#[test]
fn t24_a_mapping_of_another_userfaultfd_is_refused_and_the_rest_is_tracked() {
    needs!(wp_async);
    let _alone = pagetide_testing::child::without_children();
    let region = Region::filled(8, 1);
    region.replace(2..4);
    region.protect(2..4, libc::PROT_READ);
    let other = WriteProtector::of_self().unwrap();
    other.register(region.address(2), 2 * PAGE as u64).unwrap();
    let mut tracker = WpAsync::of_self().unwrap();
    for _ in 0..2 {
        region.store(1, 2);
        let harvest = harvest(&mut tracker, &region);
        let refused = &harvest.layout().refused;
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0].pages, region.range(2..4));
        let owned = matches!(
            refused[0].reason,
            RefusedReason::Protect(UserfaultfdError::OwnedByAnother { .. })
        );
        assert!(owned, "{:?}", refused[0].reason);
        assert!(region.positions(harvest.written()).contains(&1));
        harvest.commit();
    }
    region.store(7, 2);
    assert_eq!(written(&mut tracker, &region), [7]);
    drop(other);
    assert_eq!(written(&mut tracker, &region), [2, 3], "it is ours now");
}

#[test]
fn t24_a_mapping_taken_over_by_another_userfaultfd_is_refused() {
    needs!(wp_async);
    // The target replaces what we watch, and tracks it for itself before we look again: registered,
    // at an address that was ours, and harvested already, so that no scan tells.
    let region = Region::filled(8, 1);
    let mut tracker = settled(&region);
    region.replace(2..4);
    let other = WriteProtector::of_self().unwrap();
    other.register(region.address(2), 2 * PAGE as u64).unwrap();
    region.fill(2..4, 9);
    region.take_written(&Pagemap::of_self().unwrap());
    region.store(3, 10);
    let harvest = harvest(&mut tracker, &region);
    let refused: Vec<PageRange> = harvest.layout().refused.iter().map(|r| r.pages).collect();
    assert_eq!(refused, [region.range(2..4)]);
    harvest.commit();
    let theirs = region.take_written(&Pagemap::of_self().unwrap());
    assert_eq!(theirs, [3], "the target's own tracking is left alone");
}

#[test]
fn t26_what_cannot_be_watched_is_refused_by_name() {
    needs!(wp_async);
    let all = mappings(std::process::id().cast_signed()).unwrap();
    let is_kernels = |name: &_| {
        use pagetide_kernel::maps::MappingName;
        matches!(name, MappingName::Vdso | MappingName::KernelData(_))
    };
    let kernels: Vec<PageRange> = all
        .iter()
        .filter(|m| is_kernels(&m.name))
        .map(|m| m.pages())
        .collect();
    let region = Region::filled(4, 1);
    let mut given = kernels.clone();
    given.push(region.pages());
    given.sort();
    let mut tracker = WpAsync::of_self().unwrap();
    let harvest = tracker.harvest(&given).unwrap();
    let mut refused: Vec<PageRange> = harvest.layout().refused.iter().map(|r| r.pages).collect();
    refused.sort();
    assert_eq!(refused, kernels);
    assert_eq!(region.positions(harvest.written()), [0, 1, 2, 3]);
    harvest.commit();
    region.store(1, 2);
    let harvest = tracker.harvest(&given).unwrap();
    assert_eq!(region.positions(harvest.written()), [1]);
    harvest.commit();
}
