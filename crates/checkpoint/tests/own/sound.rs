//! Prevents that an `OwnMemory` harms or loses by how it is used: in a forked child, twice over the same memory,
//! forgotten, panicked out of, put back to a snapshot that does not hold all of it.

#![allow(unsafe_code)]

use crate::snaps::{self, exact, own, place, snap, store};
use nix::libc;
use pagetide::{OwnMemory, OwnMemoryError, OwnMemoryOptions};
use pagetide_kernel::userfaultfd::WriteProtector;
use pagetide_pages::PageCount;
use pagetide_snapshot::Store;
use pagetide_testing::child::{Child, run_to_end};
use pagetide_testing::{PAGE, Region, needs};
use std::panic::{AssertUnwindSafe, catch_unwind};

fn is_forked<T>(outcome: Result<T, OwnMemoryError>) -> bool {
    matches!(outcome, Err(OwnMemoryError::Forked { .. }))
}

/// 0, or the number of the first that is false.
fn first_false(all: &[bool]) -> i32 {
    let at = all.iter().position(|&holds| !holds);
    at.map_or(0, |at| i32::try_from(at).unwrap_or(99) + 1)
}

#[test]
fn t46_a_forked_child_is_refused_and_takes_nothing_from_its_parent() {
    needs!(wp_async);
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create_directory(directory.path().join("store")).unwrap();
    let region = Region::filled(64, 5);
    let options = OwnMemoryOptions::default();
    let mut own = OwnMemory::new(store.clone(), &[place(&region, 0)], options).unwrap();
    let first = exact(&mut own, &region, "full");
    region.store(7, 70);
    let ended = run_to_end(|| {
        region.store(7, 71);
        region.store(8, 81);
        let told = [
            is_forked(own.capture().map(drop)),
            is_forked(own.roll_back(&first.view)),
            store.lock().is_err(),
        ];
        first_false(&told)
    });
    assert_eq!(ended, Ok(0));
    region.store(20, 8);
    assert_eq!(
        exact(&mut own, &region, "the parent").written_pages,
        PageCount(2)
    );
    // Between capture and commit, and dropped there.
    region.store(9, 90);
    let mut captured = Some(own.capture().unwrap());
    let ended = run_to_end(|| {
        let mut captured = captured.take().expect("it is there");
        let attached = is_forked(captured.attach("name", Vec::new()));
        first_false(&[attached, is_forked(captured.commit())])
    });
    assert_eq!(ended, Ok(0));
    let ended = run_to_end(|| {
        drop(captured.take());
        0
    });
    assert_eq!(ended, Ok(0));
    let stored = captured.take().expect("it is there").commit().unwrap();
    drop(captured);
    assert_eq!(stored.written_pages, PageCount(1));
    exact(&mut own, &region, "and then");
    let ended = run_to_end(|| {
        drop(own);
        0
    });
    assert_eq!(ended, Ok(0));
}

#[test]
fn t46_a_child_that_lives_holds_neither_the_store_nor_the_memory() {
    needs!(wp_async);
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create_directory(directory.path().join("store")).unwrap();
    let region = Region::filled(64, 5);
    let options = OwnMemoryOptions::default();
    let mut own = OwnMemory::new(store.clone(), &[place(&region, 0)], options.clone()).unwrap();
    exact(&mut own, &region, "full");
    let child = Child::run(|board| board.tell(0, 1));
    child.wait(0);
    region.store(8, 71);
    exact(&mut own, &region, "beside a child");
    drop(own);
    drop(store.lock().expect("no copy of the lock is left"));
    let mut own = OwnMemory::new(store, &[place(&region, 0)], options).expect("the memory is free");
    exact(&mut own, &region, "another one");
}

#[test]
fn a_child_takes_snapshots_by_one_of_its_own() {
    needs!(wp_async);
    let region = Region::filled(64, 5);
    let mut parent = own(&region);
    exact(&mut parent, &region, "full");
    let (path, directory) = {
        let directory = tempfile::tempdir().unwrap();
        (directory.path().join("store"), directory)
    };
    let ended = run_to_end(|| {
        let store = Store::create_directory(&path).expect("a store");
        let options = OwnMemoryOptions::default();
        let made = OwnMemory::new(store, &[place(&region, 0)], options);
        let mut own = made.expect("the memory is the child's own");
        snap(&mut own).expect("full");
        region.store(5, 55);
        let delta = snap(&mut own).expect("delta");
        first_false(&[
            delta.written_pages == PageCount(1),
            snaps::differing(&delta.view, &region).is_empty(),
        ])
    });
    assert_eq!(ended, Ok(0));
    drop(directory);
    assert_eq!(
        exact(&mut parent, &region, "the parent").written_pages,
        PageCount(0)
    );
}

#[test]
fn two_users_of_the_same_memory_are_refused_at_once() {
    needs!(wp_async);
    let region = Region::filled(64, 5);
    let mut first = own(&region);
    exact(&mut first, &region, "full");
    let again = || OwnMemory::new(store(), &[place(&region, 0)], OwnMemoryOptions::default());
    for _ in 0..2 {
        let error = again().err().expect("it is in use");
        assert!(matches!(error, OwnMemoryError::InUse { .. }), "{error}");
    }
    region.store(9, 4);
    assert_eq!(
        exact(&mut first, &region, "goes on").written_pages,
        PageCount(1)
    );
    drop(first);
    let mut second = again().expect("it is free");
    exact(&mut second, &region, "the second");
    drop(second);
    // A userfaultfd of somebody else.
    let other = WriteProtector::of_self().unwrap();
    other.register(region.start(), PAGE as u64).unwrap();
    let error = again().err().expect("it belongs to another userfaultfd");
    assert!(error.to_string().contains("userfaultfd"), "{error}");
    drop(other);
    again().expect("nothing is left of the attempt");
}

#[test]
fn what_is_forgotten_or_panicked_out_of_is_in_the_next_snapshot() {
    needs!(wp_async);
    let region = Region::filled(64, 5);
    let mut own = own(&region);
    exact(&mut own, &region, "full");
    region.store(7, 70);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _captured = own.capture().unwrap();
        std::panic::resume_unwind(Box::new("in between"));
    }));
    assert!(panicked.is_err());
    assert_eq!(
        exact(&mut own, &region, "panic").written_pages,
        PageCount(1)
    );
    region.store(9, 70);
    std::mem::forget(own.capture().unwrap());
    region.store(10, 70);
    assert_eq!(
        exact(&mut own, &region, "forgotten").written_pages,
        PageCount(2)
    );
    // Forgotten once more, and all dropped: nothing is held.
    std::mem::forget(own.capture().unwrap());
    drop(own);
    let mut again = snaps::own(&region);
    exact(&mut again, &region, "another one");
}

#[test]
fn what_a_snapshot_does_not_hold_is_not_put_back_and_said_beforehand() {
    needs!(wp_async);
    let region = Region::filled(64, 5);
    let store = store();
    let options = OwnMemoryOptions::default;
    let half = {
        let half = Region::filled(32, 6);
        let mut own = OwnMemory::new(store.clone(), &[place(&half, 0)], options()).unwrap();
        snap(&mut own).unwrap().view
    };
    let mut own = OwnMemory::new(store, &[place(&region, 0)], options()).unwrap();
    let full = exact(&mut own, &region, "full");
    let error = own.roll_back(&half).expect_err("32 pages are not in it");
    let told = matches!(error, OwnMemoryError::NotInSnapshot { count: 32, address, .. }
        if address == region.address(32));
    assert!(told, "{error}");
    assert_eq!(region.load(0), 5, "nothing was put back");
    region.fill(0..64, 9);
    region.unmap(40..50);
    let error = own.roll_back(&full.view).expect_err("a part is not mapped");
    assert!(matches!(error, OwnMemoryError::NotMapped { .. }), "{error}");
    assert_eq!(region.load(0), 9, "nothing was put back");
    region.replace(40..50);
    own.roll_back(&full.view).expect("all is mapped");
    assert!((0..64).all(|page| region.load(page) == 5));
    region.advise(3..9, libc::MADV_DONTNEED).unwrap();
    exact(&mut own, &region, "the chain goes on");
}
