//! Memory that comes from a snapshot when it is touched, and is tracked meanwhile. What it has is compared with the memory
//! that the snapshot was taken of.

#![allow(unsafe_code)]

use crate::snaps::{Numbers, content, differing_from, exact, own, place, snap, store};
use nix::libc;
use pagetide::{OwnMemory, OwnMemoryError, OwnMemoryOptions, Population};
use pagetide_kernel::userfaultfd::missing::MissingPages;
use pagetide_pages::PageCount;
use pagetide_snapshot::{SnapshotKind, Store, View};
use pagetide_testing::{PAGE, Region, needs, skip_by_path};
use std::io::Write;
use std::os::fd::AsRawFd;

const PAGES: usize = 3000;

/// Memory with holes, zeros and noise, and a snapshot of it that is a delta.
fn made() -> (Store, View, Vec<u8>) {
    let (store, region) = (store(), Region::private(PAGES));
    let mut numbers = Numbers(5);
    for page in (0..PAGES).filter(|page| page % 700 < 500) {
        for at in 0..64 {
            region.store_at(page * PAGE + at * 64, numbers.below(256) as u8);
        }
    }
    region.fill(90..95, 0);
    let options = OwnMemoryOptions::default();
    let mut own = OwnMemory::new(store.clone(), &[place(&region, 0)], options).unwrap();
    exact(&mut own, &region, "full");
    region.fill(2000..2010, 7);
    let view = exact(&mut own, &region, "delta").view;
    (store, view, content(&region))
}

fn lazily(store: &Store, view: &View, fresh: &Region) -> (OwnMemory, Population) {
    let options = OwnMemoryOptions::default();
    OwnMemory::populate_lazily(store.clone(), view, &[place(fresh, 0)], options).expect("fresh")
}

/// Ends a test where there may be no userfaultfd for what the kernel touches.
macro_rules! needs_missing_pages {
    () => {
        needs!(wp_async);
        if let Err(error) = MissingPages::of_self_tracked() {
            fn here() {}
            let name = std::any::type_name_of_val(&here);
            return skip_by_path(name, &format!("no userfaultfd for missing pages: {error}"));
        }
    };
}

#[test]
fn t49_pages_that_come_when_they_are_touched_are_tracked_from_then_on() {
    needs_missing_pages!();
    let (store, view, truth) = made();
    for seed in 1..6 {
        let fresh = Region::private(PAGES);
        let (mut own, population) = lazily(&store, &view, &fresh);
        let mut numbers = Numbers(seed);
        let mut truth = truth.clone();
        let mut written = std::collections::BTreeSet::new();
        for round in 0..4 {
            for _ in 0..100 {
                let page = numbers.below(PAGES as u64) as usize;
                assert_eq!(fresh.load(page), truth[page * PAGE], "page {page}");
                if numbers.below(4) == 0 {
                    fresh.store(page, 99);
                    truth[page * PAGE] = 99;
                    written.insert(page);
                }
            }
            let stored = snap(&mut own).unwrap();
            assert_eq!(
                stored.view.info().kind,
                SnapshotKind::Delta,
                "round {round}"
            );
            assert_eq!(
                differing_from(&stored.view, &truth),
                [0; 0],
                "round {round}"
            );
            // What is not in the snapshot's own pages counts as written when it is touched; they are zeros.
            assert!(stored.view.info().pages <= PageCount(written.len() as u64));
            written.clear();
        }
        population.wait().unwrap();
        assert!(content(&fresh) == truth, "seed {seed}");
        fresh.store(2005, 1);
        truth[2005 * PAGE] = 1;
        let stored = snap(&mut own).unwrap();
        assert_eq!(differing_from(&stored.view, &truth), [0; 0]);
        assert_eq!(stored.view.info().pages, PageCount(1));
    }
}

#[test]
fn system_calls_wait_for_pages_and_what_is_dropped_does_not_come() {
    needs_missing_pages!();
    let (store, view, mut truth) = made();
    let fresh = Region::private(PAGES);
    let (mut own, population) = lazily(&store, &view, &fresh);
    fresh.advise(100..300, libc::MADV_DONTNEED).unwrap();
    truth[100 * PAGE..300 * PAGE].fill(0);
    // At once: the mark of what has not come says that it is not written.
    let stored = snap(&mut own).unwrap();
    assert_eq!(differing_from(&stored.view, &truth), [0; 0]);
    let mut file = tempfile::tempfile().unwrap();
    // SAFETY: the region is mapped as a whole, and the call reads no more of it.
    let length = unsafe { libc::write(file.as_raw_fd(), fresh.start() as *const _, PAGES * PAGE) };
    assert_eq!(length, (PAGES * PAGE).cast_signed());
    file.flush().unwrap();
    let mut copy = vec![0; PAGES * PAGE];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut copy, 0).unwrap();
    assert!(copy == truth);
    population.wait().unwrap();
    assert_eq!(population.left(), PageCount(0));
    fresh.advise(400..402, libc::MADV_DONTNEED).unwrap();
    assert_eq!(fresh.load(401), 0);
    truth[400 * PAGE..402 * PAGE].fill(0);
    let stored = snap(&mut own).unwrap();
    assert_eq!(differing_from(&stored.view, &truth), [0; 0]);
}

/// Where there is a child, pages that may be shared with it are read in a way that does not wait for missing ones.
#[test]
fn beside_a_child_all_is_captured_and_put_back_all_the_same() {
    needs_missing_pages!();
    let (store, view, mut truth) = made();
    let fresh = Region::private(PAGES);
    let child = pagetide_testing::child::Child::run(|board| board.tell(0, 1));
    child.wait(0);
    let (mut own, _population) = lazily(&store, &view, &fresh);
    fresh.advise(100..300, libc::MADV_DONTNEED).unwrap();
    truth[100 * PAGE..300 * PAGE].fill(0);
    for _ in 0..3 {
        let stored = snap(&mut own).unwrap();
        assert_eq!(differing_from(&stored.view, &truth), [0; 0]);
    }
    fresh.advise(600..640, libc::MADV_DONTNEED).unwrap();
    let baseline = own.baseline().unwrap();
    fresh.store(5, 5);
    own.reset_to(&baseline).unwrap();
    assert!(content(&fresh) == truth);
    own.roll_back(&view).unwrap();
    assert!(fresh.load(150) != 0 || content(&fresh) != truth);
    drop(child);
}

#[test]
fn dropping_the_owner_waits_until_all_is_there() {
    needs_missing_pages!();
    let (store, view, truth) = made();
    let fresh = Region::private(PAGES);
    let (own, population) = lazily(&store, &view, &fresh);
    drop(own);
    population.wait().unwrap();
    assert!(content(&fresh) == truth);
    let mut again = crate::snaps::own(&fresh);
    exact(&mut again, &fresh, "it is free");
}

#[test]
fn memory_that_holds_something_is_not_populated() {
    needs_missing_pages!();
    let (store, view, _) = made();
    let used = Region::private(PAGES);
    used.store(77, 1);
    let options = OwnMemoryOptions::default();
    let made = OwnMemory::populate_lazily(store.clone(), &view, &[place(&used, 0)], options);
    let error = made.err().expect("a page is used");
    let told = matches!(error, OwnMemoryError::NotFresh { address, count: 1 } if address == used.address(77));
    assert!(told, "{error}");
    let large = Region::private(PAGES + 1);
    let options = OwnMemoryOptions::default();
    let made = OwnMemory::populate_lazily(store, &view, &[place(&large, 0)], options);
    let error = made.err().expect("a page is not in it");
    assert!(
        matches!(error, OwnMemoryError::NotInSnapshot { .. }),
        "{error}"
    );
    drop(own(&used));
}
