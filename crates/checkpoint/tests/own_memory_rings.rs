//! Prevents that an embedder loses what the kernel writes to its memory with no page fault: fixed buffers of
//! io_uring, queues of rings in own memory, direct reads under way. A program of its own, since such things concern all
//! of a process: each capture beside them copies more.

#![allow(unsafe_code)]

mod snaps;

use pagetide::{ComparedBecause, OwnMemory, OwnMemoryOptions};
use pagetide_testing::aio::SlowFile;
use pagetide_testing::ring::Ring;
use pagetide_testing::{PAGE, Region, file_of, needs, skipped};
use snaps::{exact, own, snap};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// One at a time: what a test does here is seen in the others, and what its ring had pinned for a moment after it was closed.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let is_pinned = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        !status.contains("VmPin:\t       0 kB")
    };
    let until = Instant::now() + Duration::from_secs(60);
    while is_pinned() {
        assert!(Instant::now() < until, "a closed ring keeps its buffers");
        std::thread::sleep(Duration::from_millis(1));
    }
    alone
}

fn ring_or_skip(test: &str, ring: std::io::Result<Ring>) -> Option<Ring> {
    ring.map_err(|error| skipped(test, &format!("io_uring: {error}")))
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
    // It is gone at the next capture, and has written before, to a page that was not written for a while.
    ring.submit_nothing();
    snap(&mut own).unwrap();
    snap(&mut own).unwrap();
    ring.let_run();
    let rings = ring.end();
    let snapshot = exact(&mut own, &rings, "after the ring has gone");
    let before = Some(ComparedBecause::UnlistedRingBefore);
    assert_eq!(snapshot.compared_because, before);
    let snapshot = exact(&mut own, &rings, "and then");
    assert_eq!(snapshot.compared_because, None);
}

#[test]
fn t30_a_direct_read_that_ends_after_a_capture_is_in_the_next() {
    needs!(wp_async);
    let _alone = alone();
    let test = "t30_a_direct_read_that_ends_after_a_capture_is_in_the_next";
    let slow = match SlowFile::mount() {
        Ok(slow) => slow,
        Err(error) => return skipped(test, &format!("FUSE: {error}")),
    };
    let file = slow.open().unwrap();
    let region = Region::filled(16, 5);
    let mut own = own(&region);
    exact(&mut own, &region, "full");
    // read(2) of a file that is open for direct I/O, by another thread.
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| pagetide_testing::read_into(&region, 2, &file));
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

/// Where the ring of buffers lies in the region.
const RING_PAGE: usize = 4;

/// An io_uring that takes its buffers from a ring in a region, and what is sent to it.
struct Receiving<'a> {
    region: &'a Region,
    ring: Ring,
    group: u16,
    ends: (UnixStream, UnixStream),
}

impl Receiving<'_> {
    /// Stores nothing to the region. `None`, and said, where the kernel writes to no such ring.
    fn begin<'a>(test: &str, region: &'a Region, group: u16) -> Option<Receiving<'a>> {
        let ring = ring_or_skip(test, Ring::new())?;
        if let Err(error) = ring.provide_buffers(group, region, RING_PAGE) {
            skipped(test, &format!("a ring of buffers: {error}"));
            return None;
        }
        let ends = UnixStream::pair().unwrap();
        Some(Receiving {
            region,
            ring,
            group,
            ends,
        })
    }

    /// The kernel takes of the buffer, and nobody else writes to the page with the ring.
    fn receive(&mut self, value: u8) {
        let before = snaps::page_now(self.region, RING_PAGE);
        self.ends.0.write_all(&[value; 1000]).unwrap();
        let received = self.ring.receive(&self.ends.1, 1000, self.group);
        assert_eq!(received, 1000);
        assert_ne!(
            snaps::page_now(self.region, RING_PAGE),
            before,
            "the kernel wrote what is left"
        );
    }
}

#[test]
fn t73_a_ring_of_buffers_in_own_memory_makes_all_of_it_compared_and_says_so() {
    needs!(wp_async);
    let _alone = alone();
    let test = "t73_a_ring_of_buffers_in_own_memory_makes_all_of_it_compared_and_says_so";
    // The last number of all is found last, which takes time.
    for (group, rounds) in [(0, 20), (u16::MAX, 4)] {
        let region = Region::filled(32, 5);
        Ring::lay_out_buffer(&region, RING_PAGE, 24);
        let mut own = own(&region);
        exact(&mut own, &region, "full");
        let Some(mut receiving) = Receiving::begin(test, &region, group) else {
            return;
        };
        receiving.receive(1);
        exact(&mut own, &region, "it has come");
        for round in 0..rounds {
            receiving.receive(round + 2);
            let snapshot = exact(&mut own, &region, "received");
            assert_eq!(snapshot.compared_because, Some(ComparedBecause::BufferRing));
        }
        // The ring is gone at the next capture, and was written to before.
        receiving.receive(99);
        receiving.ring.provide_no_more(group).unwrap();
        exact(&mut own, &region, "it has gone");
        exact(&mut own, &region, "and then");
        let snapshot = exact(&mut own, &region, "nothing is there any more");
        assert_eq!(snapshot.compared_because, None);
        assert_eq!(snapshot.written_pages.0, 0);
    }
}

/// The ring comes after one snapshot was stored, and has gone when the next one is.
#[test]
fn t73_a_ring_of_buffers_that_goes_between_a_capture_and_its_end() {
    needs!(wp_async);
    let _alone = alone();
    let test = "t73_a_ring_of_buffers_that_goes_between_a_capture_and_its_end";
    let region = Region::filled(32, 5);
    Ring::lay_out_buffer(&region, RING_PAGE, 24);
    let mut own = own(&region);
    exact(&mut own, &region, "full");
    let Some(mut receiving) = Receiving::begin(test, &region, 7) else {
        return;
    };
    let captured = own.capture().unwrap();
    receiving.receive(1);
    receiving.ring.provide_no_more(7).unwrap();
    captured.commit().unwrap();
    exact(&mut own, &region, "written after the capture");
}

#[test]
fn t73_a_ring_that_answers_one_thread_alone_may_have_buffers_unless_it_is_promised() {
    needs!(wp_async);
    let _alone = alone();
    let test = "t73_a_ring_that_answers_one_thread_alone_may_have_buffers_unless_it_is_promised";
    if !pagetide_kernel::io_uring::writes_to_buffer_rings() {
        return skipped(test, "a ring of buffers that the kernel writes to");
    }
    let (made, is_made) = mpsc::channel();
    let (done, is_done) = mpsc::channel::<()>();
    let other = std::thread::spawn(move || {
        let ring = Ring::for_one_thread();
        made.send(ring.as_ref().err().map(ToString::to_string))
            .unwrap();
        // It keeps the ring until then, or until the test has failed.
        let _ = is_done.recv();
    });
    if let Some(error) = is_made.recv().unwrap() {
        return skipped(test, &format!("io_uring: {error}"));
    }
    let region = Region::filled(32, 5);
    for no_buffer_rings in [false, true] {
        let mut options = OwnMemoryOptions::default();
        options.no_buffer_rings = no_buffer_rings;
        let mut own = OwnMemory::new(snaps::store(), &[snaps::place(&region, 0)], options).unwrap();
        exact(&mut own, &region, "full");
        let because = exact(&mut own, &region, "a ring").compared_because;
        let expected = (!no_buffer_rings).then_some(ComparedBecause::BufferRing);
        assert_eq!(because, expected);
    }
    drop(done);
    other.join().unwrap();
}
