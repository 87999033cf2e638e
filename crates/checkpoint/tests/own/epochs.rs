//! Epochs without a store: whoever copies what each tells has a copy of the memory.

use crate::snaps::{Numbers, content, place};
use nix::libc;
use pagetide::{OwnHarvest, OwnTracker, OwnTrackerOptions};
use pagetide_pages::{PageCount, PageIndex};
use pagetide_testing::{PAGE, Region, needs};

fn tracker(region: &Region, first: u64) -> OwnTracker {
    let made = OwnTracker::new(&[place(region, first)], OwnTrackerOptions::default());
    made.expect("a good region")
}

/// Copies what was written to `copy`.
fn apply(harvest: &OwnHarvest, region: &Region, copy: &mut [u8]) {
    let now = content(region);
    for (address, length) in harvest.addresses() {
        let from = (address - region.start()) as usize;
        let range = from..from + length as usize;
        copy[range.clone()].copy_from_slice(&now[range]);
    }
}

#[test]
fn a_copy_that_follows_the_epochs_is_the_memory() {
    needs!(wp_async);
    let region = Region::filled(400, 5);
    let mut tracker = tracker(&region, 1000);
    let mut copy = vec![0; 400 * PAGE];
    let mut numbers = Numbers(99);
    let mut under_way: Vec<OwnHarvest> = Vec::new();
    for round in 0..200 {
        for _ in 0..numbers.below(8) {
            let page = numbers.below(380) as usize;
            match numbers.below(5) {
                0 => region.advise(page..page + 9, libc::MADV_DONTNEED).unwrap(),
                1 => region.replace(page..page + 3),
                _ => region.store(page, numbers.below(9) as u8),
            }
        }
        let harvest = tracker.harvest().unwrap();
        if round == 0 {
            assert_eq!(harvest.count(), PageCount(400));
        }
        match numbers.below(4) {
            0 => harvest.give_back(),
            1 => under_way.push(harvest),
            _ => {
                apply(&harvest, &region, &mut copy);
                harvest.commit();
            }
        }
        if numbers.below(3) == 0
            && let Some(late) = under_way.pop()
        {
            std::thread::scope(|scope| scope.spawn(|| drop(late)).join()).unwrap();
        }
    }
    drop(under_way);
    let harvest = tracker.harvest().unwrap();
    apply(&harvest, &region, &mut copy);
    harvest.commit();
    assert!(copy == content(&region));
    region.store(7, 77);
    let harvest = tracker.harvest().unwrap();
    let written: Vec<PageIndex> = harvest.written().pages().collect();
    assert_eq!(written, [PageIndex(1007)]);
    harvest.commit();
    assert_eq!(tracker.harvest().unwrap().count(), PageCount(0));
}

#[test]
fn a_reset_is_a_change_for_the_next_epoch() {
    needs!(wp_async);
    let region = Region::filled(64, 5);
    let mut tracker = tracker(&region, 0);
    let baseline = tracker.baseline().unwrap();
    tracker.harvest().unwrap().commit();
    region.store(3, 9);
    tracker.harvest().unwrap().commit();
    region.store(4, 9);
    tracker.reset_to(&baseline).unwrap();
    let harvest = tracker.harvest().unwrap();
    let written: Vec<PageIndex> = harvest.written().pages().collect();
    assert_eq!(written, [PageIndex(3), PageIndex(4)]);
}

#[test]
fn what_is_told_once_is_written_once_and_what_is_told_for_ever_in_each_epoch() {
    needs!(wp_async);
    let region = Region::filled(64, 5);
    let mut tracker = tracker(&region, 0);
    tracker.harvest().unwrap().commit();
    let told = tracker.written_pages();
    told.mark(region.address(3), 1);
    told.mark_always(region.address(9), 2 * PAGE as u64);
    let mut counts = Vec::new();
    for round in 0..4 {
        if round == 2 {
            told.mark_no_longer(region.address(9), PAGE as u64);
        }
        let harvest = tracker.harvest().unwrap();
        counts.push(harvest.count().0);
        harvest.commit();
    }
    assert_eq!(counts, [3, 2, 2, 1]);
}
