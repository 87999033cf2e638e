//! What a program does to its regions without thinking of whoever takes snapshots of them. After each of it a snapshot is
//! what memory holds, or an error that says what is wrong, and never something old. (What it must not be able to write
//! at all does not compile: see `OwnMemory`.)

#![allow(unsafe_code)]

use crate::snaps::{content, differing_from, exact, own, place, snap, store};
use nix::libc;
use pagetide::{OwnMemory, OwnMemoryError, OwnMemoryOptions};
use pagetide_pages::{PageCount, PageIndex};
use pagetide_snapshot::storage::Fault;
use pagetide_snapshot::{MemoryStorage, Store};
use pagetide_testing::child::run_to_end;
use pagetide_testing::{HUGE, PAGE, READ_WRITE, Region, needs};
use std::sync::Arc;

#[test]
fn written_between_capture_and_its_end() {
    needs!(wp_async);
    let region = Region::filled(256, 5);
    let mut own = own(&region);
    exact(&mut own, &region, "full");
    for give_back in [false, true] {
        region.store(0, 99);
        let truth = content(&region);
        let captured = own.capture().unwrap();
        region.store(5, 77);
        region.store(0, 98);
        if give_back {
            captured.give_back()
        } else {
            assert!(differing_from(&captured.commit().unwrap().view, &truth).is_empty())
        }
        region.store(11, 5);
        exact(&mut own, &region, "the next");
    }
}

#[test]
fn advised_and_protected() {
    needs!(wp_async);
    let region = Region::filled(1024, 5);
    let mut own = own(&region);
    exact(&mut own, &region, "full");
    region.advise(64..664, libc::MADV_DONTNEED).unwrap();
    exact(&mut own, &region, "MADV_DONTNEED of a part");
    region.store(100, 4);
    region.advise(90..110, libc::MADV_DONTNEED).unwrap();
    exact(&mut own, &region, "written, then dropped");
    region.store(800, 9);
    region.protect(790..820, libc::PROT_NONE);
    exact(&mut own, &region, "no access while it is captured");
    region.protect(790..820, READ_WRITE);
    region.store(801, 9);
    exact(&mut own, &region, "access again");
}

#[test]
fn unmapped_and_mapped_again() {
    needs!(wp_async);
    let region = Region::filled(1024, 5);
    let mut own = own(&region);
    exact(&mut own, &region, "full");
    region.unmap(100..150);
    for _ in 0..2 {
        let error = own.capture().expect_err("a part is gone");
        assert!(matches!(error, OwnMemoryError::NotMapped { .. }), "{error}");
    }
    region.replace(100..150);
    exact(&mut own, &region, "mapped again, empty");
    region.unmap(0..1024);
    let error = own.capture().expect_err("all is gone");
    assert!(matches!(error, OwnMemoryError::NotMapped { .. }), "{error}");
}

#[test]
fn something_else_moved_into_it() {
    needs!(wp_async);
    let (region, other) = (Region::filled(1024, 5), Region::filled(64, 111));
    let mut own = own(&region);
    exact(&mut own, &region, "full");
    other.move_to(0..64, &region, 320, false);
    exact(&mut own, &region, "moved in");
    region.store(330, 1);
    exact(&mut own, &region, "and written");
}

#[test]
fn committed_by_another_thread_while_it_is_written() {
    needs!(wp_async);
    let region = Region::filled(256, 5);
    let mut own = own(&region);
    exact(&mut own, &region, "full");
    region.store(7, 70);
    let truth = content(&region);
    let captured = own.capture().unwrap();
    let stored = std::thread::scope(|scope| {
        let stored = scope.spawn(move || captured.commit().unwrap());
        region.store(8, 1);
        stored.join().unwrap()
    });
    assert!(differing_from(&stored.view, &truth).is_empty());
    exact(&mut own, &region, "the next");
    let mut own = std::thread::scope(|scope| {
        let moved = scope.spawn(move || {
            snap(&mut own).unwrap();
            own
        });
        moved.join().unwrap()
    });
    region.store(1, 9);
    exact(&mut own, &region, "moved to a thread and back");
}

#[test]
fn the_disk_is_full_and_then_not() {
    needs!(wp_async);
    let region = Region::private(4096);
    let mut numbers = crate::snaps::Numbers(1);
    let storage = MemoryStorage::new();
    let store = Store::create(Arc::new(storage.clone())).unwrap();
    let mut options = OwnMemoryOptions::default();
    options.buffer_bytes = 4 << 20;
    let mut own = OwnMemory::new(store, &[place(&region, 0)], options).unwrap();
    exact(&mut own, &region, "full");
    for page in 0..4096 {
        for at in 0..64 {
            region.store_at(page * PAGE + at * 64, numbers.below(256) as u8);
        }
    }
    for room in [0, 1 << 10, 1 << 16] {
        storage.set_fault(Some(Fault::FullAfter(room)));
        snap(&mut own).map(drop).expect_err("there is no room");
    }
    storage.set_fault(None);
    region.store(5, 5);
    exact(&mut own, &region, "room again");
}

#[test]
fn put_back_after_what_was_done_to_it() {
    needs!(wp_async);
    let region = Region::filled(1024, 5);
    let mut own = own(&region);
    let view = exact(&mut own, &region, "full").view;
    let truth = content(&region);
    region.advise(100..300, libc::MADV_DONTNEED).unwrap();
    region.store(5, 99);
    assert_eq!(own.roll_back(&view).unwrap(), PageCount(201));
    assert!(content(&region) == truth);
    region.store(5, 98);
    region.store(512, 98);
    region.protect(512..513, libc::PROT_READ);
    own.roll_back(&view).unwrap();
    region.protect(512..513, READ_WRITE);
    assert!(content(&region) == truth);
    exact(&mut own, &region, "the chain goes on");
}

#[test]
fn placements_side_by_side_in_another_order() {
    needs!(wp_async);
    let region = Region::private(600);
    region.fill(0..100, 3);
    region.fill(500..600, 9);
    let part = |at: usize, pages: usize, first: u64| {
        // SAFETY: memory of the test alone, to which no reference exists.
        let named =
            unsafe { pagetide::OwnRegion::new(region.address(at) as *mut u8, pages * PAGE) };
        pagetide::Placement::new(named, PageIndex(first))
    };
    let places = [part(0, 250, 1000), part(250, 150, 0), part(400, 200, 500)];
    let mut own = OwnMemory::new(store(), &places, OwnMemoryOptions::default()).unwrap();
    region.protect(300..320, libc::PROT_READ);
    let place_of = |page: usize| match page {
        0..250 => page + 1000,
        250..400 => page - 250,
        _ => page + 100,
    };
    for round in 0..3u8 {
        let view = snap(&mut own).unwrap().view;
        let now = content(&region);
        let mut stored = vec![0; PAGE];
        for (page, now) in now.chunks_exact(PAGE).enumerate() {
            let there = PageIndex(place_of(page) as u64);
            view.read_page(0, there, &mut stored).unwrap();
            assert!(stored == now, "round {round}: page {page}");
        }
        region.fill(240..260, round);
        region.fill(395..405, round);
    }
}

#[test]
fn a_long_chain_is_the_memory_in_the_end() {
    needs!(wp_async);
    let region = Region::filled(2048, 5);
    let store = store();
    let made = OwnMemory::new(
        store.clone(),
        &[place(&region, 0)],
        OwnMemoryOptions::default(),
    );
    let mut own = made.unwrap();
    let mut numbers = crate::snaps::Numbers(3);
    for _ in 0..400 {
        for _ in 0..20 {
            region.store(numbers.below(2048) as usize, numbers.below(250) as u8);
        }
        snap(&mut own).unwrap();
    }
    let last = store.newest().unwrap().expect("a snapshot").id;
    let view = store.view(last).unwrap();
    assert_eq!(view.chain().len(), 400);
    assert!(differing_from(&view, &content(&region)).is_empty());
}

#[test]
fn a_large_reservation_of_which_little_is_used() {
    needs!(wp_async);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let pages = (64usize << 30) / PAGE;
    let region = Region::map(pages * PAGE, READ_WRITE, flags, None).unwrap();
    region.fill(0..100, 5);
    let mut own = own(&region);
    for round in 0..4u8 {
        region.store(usize::from(round), 99);
        region.store(pages - 1 - usize::from(round) * 512, 7);
        let view = snap(&mut own).unwrap().view;
        let mut stored = vec![0; PAGE];
        for page in [usize::from(round), 99, 5000, pages - 1] {
            view.read_page(0, PageIndex(page as u64), &mut stored)
                .unwrap();
            assert_eq!(stored[0], region.load(page), "page {page}");
        }
    }
}

#[test]
fn transparent_huge_pages() {
    needs!(wp_async);
    let Some(region) = Region::transparent_huge(4, 5) else {
        return pagetide_testing::skipped("transparent_huge_pages", "huge pages");
    };
    let mut own = own(&region);
    exact(&mut own, &region, "full");
    region.store(5, 99);
    exact(&mut own, &region, "a byte");
    region.advise(0..HUGE / PAGE, libc::MADV_DONTNEED).unwrap();
    exact(&mut own, &region, "dropped");
}

/// A jailed monitor is not dumpable, and what is in its `/proc/self` belongs to root.
#[test]
fn a_process_that_is_not_dumpable_is_told_what_to_do() {
    needs!(wp_async);
    if !rustix::process::geteuid().is_root() {
        return pagetide_testing::skipped(
            "a_process_that_is_not_dumpable_is_told_what_to_do",
            "for root",
        );
    }
    let region = Region::filled(16, 5);
    let store = store();
    let ended = run_to_end(|| {
        // SAFETY: in a child that ends after this; the calls take numbers.
        unsafe { libc::setuid(65_534) };
        // SAFETY: as above.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
        let made = OwnMemory::new(
            store.clone(),
            &[place(&region, 0)],
            OwnMemoryOptions::default(),
        );
        match made {
            Err(OwnMemoryError::NotDumpable { .. }) => 0,
            Err(_) => 1,
            Ok(_) => 2,
        }
    });
    assert_eq!(ended, Ok(0));
    // Made before that, it goes on.
    let ended = run_to_end(|| {
        let mut own = crate::snaps::own(&region);
        // SAFETY: as above.
        unsafe { libc::setuid(65_534) };
        // SAFETY: as above.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
        region.store(3, 3);
        i32::from(snap(&mut own).is_err())
    });
    assert_eq!(ended, Ok(0));
}
