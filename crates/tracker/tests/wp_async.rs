//! Prevents: a harvest that is lost between the kernel and the store. Harvests are committed, given
//! back, dropped and abandoned in every order; what was not committed must come again.

use nix::libc;
use pagetide_kernel::pagemap_scan::Pagemap;
use pagetide_kernel::userfaultfd::WriteProtector;
use pagetide_pages::{PageIndex, PageRange, PageSize};
use pagetide_testing::machine::Machine;
use pagetide_testing::{HUGE, PAGE, Region, needs, skipped};
use pagetide_tracker::{Backend, GivenBack, Harvest, TrackError, Tracker, WpAsync};

fn harvest(tracker: &mut WpAsync, region: &Region) -> Harvest {
    tracker.harvest(&[region.pages()]).unwrap()
}

fn written(tracker: &mut WpAsync, region: &Region) -> Vec<usize> {
    let harvest = harvest(tracker, region);
    let pages = region.positions(harvest.written());
    harvest.commit();
    pages
}

fn settled(region: &Region) -> WpAsync {
    let mut tracker = WpAsync::of_self().unwrap();
    harvest(&mut tracker, region).commit();
    tracker
}

/// A region with a tracker, and a second userfaultfd on the same address space left as by a process
/// that keeps it: what the kernel itself knows, apart from the tracker's memory.
fn seen_by_the_kernel(region: &Region) -> Vec<usize> {
    region.take_written(&Pagemap::of_self().unwrap())
}

#[test]
fn it_says_what_it_is() {
    needs!(wp_async);
    let tracker = WpAsync::of_self().unwrap();
    assert_eq!(tracker.backend(), Backend::WpAsync);
    assert_eq!(tracker.page_size(), PageSize::KIB_4);
    assert_eq!(Backend::WpAsync.to_string(), "wp-async");
}

#[test]
fn the_first_harvest_is_everything_and_the_next_what_was_stored() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let mut tracker = WpAsync::of_self().unwrap();
    assert_eq!(written(&mut tracker, &region), (0..8).collect::<Vec<_>>());
    assert_eq!(written(&mut tracker, &region), []);
    region.store(3, 2);
    region.store_at(8 * PAGE - 1, 2);
    assert_eq!(written(&mut tracker, &region), [3, 7]);
}

#[test]
fn arming_starts_with_everything_written_and_takes_nothing() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let mut tracker = WpAsync::of_self().unwrap();
    let change = tracker.arm(&[region.pages()]).unwrap();
    assert_eq!(region.positions(&change.fresh).len(), 8);
    let again = tracker.arm(&[region.pages()]).unwrap();
    assert!(again.fresh.is_empty(), "watched already");
    assert_eq!(written(&mut tracker, &region).len(), 8);
    region.store(2, 2);
    tracker.arm(&[region.pages()]).unwrap();
    assert_eq!(written(&mut tracker, &region), [2]);
}

#[test]
fn arming_part_by_part() {
    needs!(wp_async);
    let first = Region::filled(4, 1);
    let second = Region::filled(4, 1);
    let mut tracker = WpAsync::of_self().unwrap();
    harvest(&mut tracker, &first).commit();
    let both = [first.pages(), second.pages()];
    let change = tracker.arm(&both).unwrap();
    assert_eq!(first.positions(&change.fresh), []);
    assert_eq!(second.positions(&change.fresh).len(), 4);
    first.store(1, 2);
    let harvest = tracker.harvest(&both).unwrap();
    assert_eq!(first.positions(harvest.written()), [1]);
    assert_eq!(second.positions(harvest.written()).len(), 4);
    harvest.commit();
}

#[test]
fn only_the_given_mappings_are_harvested() {
    needs!(wp_async);
    let first = Region::filled(4, 1);
    let second = Region::filled(4, 1);
    let mut tracker = WpAsync::of_self().unwrap();
    tracker
        .harvest(&[first.pages(), second.pages()])
        .unwrap()
        .commit();
    first.store(1, 2);
    second.store(2, 2);
    let harvest = tracker.harvest(&[first.pages()]).unwrap();
    assert_eq!(second.positions(harvest.written()), []);
    harvest.commit();
    let harvest = tracker.harvest(&[first.pages(), second.pages()]).unwrap();
    assert_eq!(first.positions(harvest.written()), []);
    assert_eq!(second.positions(harvest.written()), [2]);
    harvest.commit();
}

#[test]
fn committed_pages_do_not_come_again() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let mut tracker = settled(&region);
    region.store(3, 2);
    harvest(&mut tracker, &region).commit();
    assert_eq!(seen_by_the_kernel(&region), []);
    assert_eq!(written(&mut tracker, &region), []);
}

#[test]
fn given_back_pages_come_again_with_what_was_stored_since() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let mut tracker = settled(&region);
    region.store(3, 2);
    let taken = harvest(&mut tracker, &region);
    region.store(5, 2);
    assert_eq!(taken.give_back(), GivenBack::InKernel);
    assert_eq!(written(&mut tracker, &region), [3, 5]);
    assert_eq!(written(&mut tracker, &region), []);
}

#[test]
fn given_back_pages_are_known_to_the_kernel_itself() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let mut tracker = settled(&region);
    region.store(3, 2);
    assert_eq!(
        harvest(&mut tracker, &region).give_back(),
        GivenBack::InKernel
    );
    assert_eq!(
        seen_by_the_kernel(&region),
        [3],
        "whoever harvests next will see them"
    );
}

#[test]
fn a_dropped_harvest_is_given_back() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let mut tracker = settled(&region);
    region.store(3, 2);
    drop(harvest(&mut tracker, &region));
    assert_eq!(seen_by_the_kernel(&region), [3]);
    assert_eq!(
        written(&mut tracker, &region),
        [3],
        "and known to the tracker"
    );
}

#[test]
fn a_harvest_dropped_by_a_panic_is_given_back() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let mut tracker = settled(&region);
    region.store(3, 2);
    let taken = harvest(&mut tracker, &region);
    let panicked = std::thread::spawn(move || {
        let _taken = taken;
        std::panic::resume_unwind(Box::new("while the pages were being stored"));
    });
    assert!(panicked.join().is_err());
    assert_eq!(written(&mut tracker, &region), [3]);
}

#[test]
fn given_back_over_and_over_nothing_is_lost() {
    needs!(wp_async);
    let region = Region::filled(16, 1);
    let mut tracker = settled(&region);
    for page in 0..16 {
        region.store(page, 2);
        let taken = harvest(&mut tracker, &region);
        assert_eq!(
            region.positions(taken.written()),
            (0..=page).collect::<Vec<_>>()
        );
        let _ = taken.give_back();
    }
    assert_eq!(written(&mut tracker, &region).len(), 16);
}

#[test]
fn two_harvests_under_way_settle_on_their_own() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let mut tracker = settled(&region);
    region.store(1, 2);
    let first = harvest(&mut tracker, &region);
    region.store(2, 2);
    let second = harvest(&mut tracker, &region);
    second.commit();
    let _ = first.give_back();
    assert_eq!(written(&mut tracker, &region), [1]);
}

#[test]
fn a_harvest_may_outlive_its_tracker() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let mut tracker = settled(&region);
    region.store(1, 2);
    let taken = harvest(&mut tracker, &region);
    drop(tracker);
    assert_eq!(
        taken.give_back(),
        GivenBack::InKernel,
        "it keeps the userfaultfd open"
    );
}

#[test]
fn what_the_kernel_does_not_take_back_is_owed_by_the_tracker() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let mut tracker = settled(&region);
    (1..7).for_each(|page| region.store(page, 2));
    let taken = harvest(&mut tracker, &region);
    region.replace(2..3);
    assert_eq!(taken.give_back(), GivenBack::InMemory);
    assert_eq!(written(&mut tracker, &region), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn owed_pages_wait_for_a_harvest_that_covers_them() {
    needs!(wp_async);
    let first = Region::filled(4, 1);
    let second = Region::filled(4, 1);
    let both = [first.pages(), second.pages()];
    let mut tracker = WpAsync::of_self().unwrap();
    tracker.harvest(&both).unwrap().commit();
    second.store(1, 2);
    let taken = tracker.harvest(&both).unwrap();
    let _ = taken.give_back();
    // The kernel forgets, so only the tracker's own account can tell.
    assert_eq!(seen_by_the_kernel(&second), [1]);
    tracker.harvest(&[first.pages()]).unwrap().commit();
    tracker.harvest(&[first.pages()]).unwrap().commit();
    let harvest = tracker.harvest(&both).unwrap();
    assert_eq!(second.positions(harvest.written()), [1]);
    harvest.commit();
}

#[test]
fn owed_pages_that_are_unmapped_are_not_reported() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let mut tracker = settled(&region);
    (0..8).for_each(|page| region.store(page, 2));
    let _ = harvest(&mut tracker, &region).give_back();
    region.unmap(4..8);
    let harvest = tracker.harvest(&[region.range(0..4)]).unwrap();
    assert_eq!(region.positions(harvest.written()), [0, 1, 2, 3]);
    harvest.commit();
}

#[test]
fn fresh_pages_stay_owed_until_a_harvest_takes_them() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let mut tracker = WpAsync::of_self().unwrap();
    tracker.arm(&[region.pages()]).unwrap();
    // The kernel's own account is emptied: fresh pages count as written because the tracker says so.
    assert_eq!(seen_by_the_kernel(&region).len(), 8);
    assert_eq!(written(&mut tracker, &region).len(), 8);
}

#[test]
fn an_unusable_list_is_an_error_and_loses_nothing() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let mut tracker = settled(&region);
    region.store(2, 2);
    // Between the halves of the address space nothing can be mapped.
    let nowhere = PageRange::new(PageIndex(1 << 50), PageIndex((1 << 50) + 1));
    let failed = tracker.harvest(&[region.pages(), nowhere]);
    assert!(matches!(failed, Err(TrackError::Scan(_))), "{failed:?}");
    assert_eq!(written(&mut tracker, &region), [2]);
}

#[test]
fn a_mapping_that_went_away_is_refused_and_the_rest_goes_on() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let gone = Region::filled(4, 1);
    let mut tracker = WpAsync::of_self().unwrap();
    let both = [region.pages(), gone.pages()];
    tracker.harvest(&both).unwrap().commit();
    gone.unmap(0..4);
    region.store(2, 2);
    let harvest = tracker.harvest(&both).unwrap();
    let refused: Vec<PageRange> = harvest.layout().refused.iter().map(|r| r.pages).collect();
    assert_eq!(refused, [gone.pages()]);
    assert_eq!(region.positions(harvest.written()), [2]);
    harvest.commit();
}

#[test]
fn a_later_tracker_goes_on_where_one_left_a_userfaultfd() {
    needs!(wp_async);
    use std::os::fd::AsFd;
    let region = Region::filled(8, 1);
    let first = settled(&region);
    let kept = first.protector().as_fd().try_clone_to_owned().unwrap();
    drop(first);
    region.store(4, 2);
    let protector = WriteProtector::already_enabled(kept);
    let mut second = WpAsync::with(protector, Pagemap::of_self().unwrap());
    assert_eq!(written(&mut second, &region), [4]);
}

#[test]
fn without_its_userfaultfd_everything_is_fresh_again() {
    needs!(wp_async);
    let _alone = pagetide_testing::child::without_children();
    let region = Region::filled(8, 1);
    drop(settled(&region));
    let mut second = WpAsync::of_self().unwrap();
    assert_eq!(written(&mut second, &region).len(), 8);
}

#[test]
fn neighbours_of_every_kind_are_tracked_side_by_side() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    region.replace_with(
        2..4,
        pagetide_testing::READ_WRITE,
        libc::MAP_SHARED | libc::MAP_ANONYMOUS,
    );
    region.protect(5..6, libc::PROT_READ);
    let mappings: Vec<PageRange> = [0..2, 2..4, 4..5, 5..6, 6..8]
        .map(|pages| region.range(pages))
        .into();
    let mut tracker = WpAsync::of_self().unwrap();
    let all = tracker.harvest(&mappings).unwrap();
    assert_eq!(region.positions(all.written()).len(), 8);
    all.commit();
    [1, 2, 6].iter().for_each(|page| region.store(*page, 2));
    let harvest = tracker.harvest(&mappings).unwrap();
    assert_eq!(region.positions(harvest.written()), [1, 2, 6]);
    assert_eq!(harvest.give_back(), GivenBack::InKernel);
    assert_eq!(seen_by_the_kernel(&region), [1, 2, 6]);
}

#[test]
fn given_back_huge_pages_of_all_kinds_are_known_to_the_kernel() {
    needs!(wp_async);
    if let Some(region) = Region::transparent_huge(2, 1) {
        let mut tracker = settled(&region);
        region.store(700, 2);
        assert_eq!(
            harvest(&mut tracker, &region).give_back(),
            GivenBack::InKernel
        );
        assert_eq!(seen_by_the_kernel(&region), [700]);
    } else {
        skipped(
            "given_back_huge_pages_of_all_kinds_are_known_to_the_kernel (thp)",
            "no huge pages",
        );
    }
    let mut machine = Machine::lock();
    if let Err(reason) = machine.huge_pages(4) {
        return skipped(
            "given_back_huge_pages_of_all_kinds_are_known_to_the_kernel",
            &reason,
        );
    }
    let region = Region::hugetlb(2, false).unwrap();
    region.fill(0..1024, 1);
    let mut tracker = settled(&region);
    region.store(600, 2);
    let taken = harvest(&mut tracker, &region);
    let whole: Vec<usize> = (HUGE / PAGE..2 * HUGE / PAGE).collect();
    assert_eq!(region.positions(taken.written()), whole);
    assert_eq!(taken.give_back(), GivenBack::InKernel);
    assert_eq!(seen_by_the_kernel(&region), whole);
}

#[test]
fn given_back_swapped_pages_are_known_to_the_kernel() {
    needs!(wp_async);
    let _alone = pagetide_testing::child::without_children();
    let mut machine = Machine::lock();
    if let Err(reason) = machine.swap() {
        return skipped("given_back_swapped_pages_are_known_to_the_kernel", &reason);
    }
    let region = Region::filled(8, 1);
    let mut tracker = settled(&region);
    region.store(3, 2);
    region.page_out(0..8);
    assert_eq!(
        harvest(&mut tracker, &region).give_back(),
        GivenBack::InKernel
    );
    assert_eq!(seen_by_the_kernel(&region), [3]);
    assert_eq!(region.load(3), 2);
}

#[test]
fn stores_by_another_thread_during_harvests_are_never_lost() {
    needs!(wp_async);
    use std::sync::atomic::{AtomicBool, Ordering};
    const PAGES: usize = 512;
    let region = Region::filled(PAGES, 0);
    let mut tracker = settled(&region);
    let (stop, region_ref) = (AtomicBool::new(false), &region);
    let mut copy = vec![0u8; PAGES];
    let take = |tracker: &mut WpAsync, copy: &mut [u8]| {
        let harvest = harvest(tracker, region_ref);
        for page in region_ref.positions(harvest.written()) {
            copy[page] = region_ref.load(page);
        }
        harvest.commit();
    };
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut state = 1u64;
            while !stop.load(Ordering::Relaxed) {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                region.store((state >> 33) as usize % PAGES, (state >> 50) as u8);
            }
        });
        (0..300).for_each(|_| take(&mut tracker, &mut copy));
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    });
    take(&mut tracker, &mut copy);
    let now: Vec<u8> = (0..PAGES).map(|page| region.load(page)).collect();
    assert_eq!(copy, now);
}
