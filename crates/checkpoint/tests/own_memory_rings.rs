//! Prevents that an embedder loses what the kernel writes to its memory with no page fault: fixed buffers of
//! io_uring, queues of rings in own memory, direct reads under way. A program of its own, since such things concern all
//! of a process: each capture beside them copies more.

#![allow(unsafe_code)]

#[path = "../../kernel/tests/common/mod.rs"]
mod common;
mod snaps;

use common::aio::SlowFile;
use common::ring::Ring;
use common::{PAGE, Region, file_of, needs, skip};
use pagetide::ComparedBecause;
use snaps::{exact, own, snap};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One at a time: what a test does here is seen in the others.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ring_or_skip(test: &str, ring: std::io::Result<Ring>) -> Option<Ring> {
    ring.map_err(|error| skip(test, &format!("io_uring: {error}")))
        .ok()
}

#[test]
fn t09_reads_into_a_fixed_buffer_are_in_every_snapshot() {
    needs!(wp_async);
    let _alone = alone();
    let test = "t09_reads_into_a_fixed_buffer_are_in_every_snapshot";
    let region = Region::filled(64, 5);
    let Some(mut ring) = ring_or_skip(test, Ring::new()) else {
        return;
    };
    ring.register_buffer(&region, 8..16).unwrap();
    let mut own = own(&region);
    exact(&mut own, &region, "full");
    for round in 0..4u8 {
        let file = file_of(1, round + 20);
        ring.start_read(&file, region.address(9), PAGE, true);
        assert_eq!(ring.finish(), i32::try_from(PAGE).unwrap());
        exact(&mut own, &region, "a fixed read");
    }
    // The ring is gone at the next capture, and has written before.
    let file = file_of(1, 99);
    ring.start_read(&file, region.address(10), PAGE, true);
    assert_eq!(ring.finish(), i32::try_from(PAGE).unwrap());
    drop(ring);
    exact(&mut own, &region, "after the ring has gone");
    assert_eq!(
        exact(&mut own, &region, "nothing is held any more")
            .written_pages
            .0,
        0
    );
}

#[test]
fn t47_a_fixed_buffer_that_was_moved_is_written_where_it_lies_now() {
    needs!(wp_async);
    let _alone = alone();
    let test = "t47_a_fixed_buffer_that_was_moved_is_written_where_it_lies_now";
    let region = Region::filled(64, 5);
    let outside = Region::filled(4, 6);
    let Some(mut ring) = ring_or_skip(test, Ring::new()) else {
        return;
    };
    ring.register_buffer(&outside, 0..4).unwrap();
    let mut own = own(&region);
    exact(&mut own, &region, "full");
    // Into the region, and then within it.
    outside.move_to(0..4, &region, 8, false);
    exact(&mut own, &region, "moved");
    for round in 0..4u8 {
        if round == 2 {
            region.move_to(8..12, &region, 30, true);
            exact(&mut own, &region, "moved again");
        }
        let file = file_of(1, round + 20);
        ring.start_read(&file, outside.address(1), PAGE, true);
        assert_eq!(ring.finish(), i32::try_from(PAGE).unwrap());
        let at = if round < 2 { 9 } else { 31 };
        assert_eq!(
            region.load(at),
            round + 20,
            "the kernel writes to the page that was pinned"
        );
        exact(&mut own, &region, "a fixed read");
    }
    drop(ring);
    exact(&mut own, &region, "after the ring has gone");
    assert_eq!(
        exact(&mut own, &region, "nothing is held any more")
            .written_pages
            .0,
        0
    );
}

#[test]
fn t29_a_ring_in_own_memory_makes_all_of_it_compared_and_says_so() {
    needs!(wp_async);
    let _alone = alone();
    let test = "t29_a_ring_in_own_memory_makes_all_of_it_compared_and_says_so";
    let Some(mut ring) = ring_or_skip(test, Ring::in_own_memory()) else {
        return;
    };
    let mut own = own(&ring.rings);
    exact(&mut own, &ring.rings, "full");
    for _ in 0..3 {
        ring.submit_nothing();
        snap(&mut own).unwrap();
        let before = ring.completions();
        ring.let_run();
        assert_eq!(ring.completions(), before + 1);
        let snapshot = exact(&mut own, &ring.rings, "a completion");
        assert_eq!(
            snapshot.compared_because,
            Some(ComparedBecause::UnlistedRing)
        );
    }
}

#[test]
fn t30_a_direct_read_that_ends_after_a_capture_is_in_the_next() {
    needs!(wp_async);
    let _alone = alone();
    let test = "t30_a_direct_read_that_ends_after_a_capture_is_in_the_next";
    let slow = match SlowFile::mount() {
        Ok(slow) => slow,
        Err(error) => return skip(test, &format!("FUSE: {error}")),
    };
    let file = slow.open().unwrap();
    let region = Region::filled(16, 5);
    let mut own = own(&region);
    exact(&mut own, &region, "full");
    // read(2) of a file that is open for direct I/O, by another thread.
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| common::read_into(&region, 2, &file));
        slow.asked();
        exact(&mut own, &region, "under way");
        slow.answer(b'n');
        assert_eq!(reader.join().unwrap().unwrap(), PAGE);
    });
    assert_eq!(region.load(2), b'n');
    exact(&mut own, &region, "it has ended");
    let Some(mut ring) = ring_or_skip(test, Ring::new()) else {
        return;
    };
    ring.start_read(&file, region.address(4), PAGE, false);
    slow.asked();
    exact(&mut own, &region, "under way");
    slow.answer(b'm');
    assert_eq!(ring.finish(), i32::try_from(PAGE).unwrap());
    assert_eq!(region.load(4), b'm');
    exact(&mut own, &region, "it has ended");
}
