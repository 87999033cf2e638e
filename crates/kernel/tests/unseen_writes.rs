//! Prevents: trusting the written set where the kernel's report is silent. Every test here is a change
//! of content that reads as *not written*. Nothing in the scan gives it away, so what stands above must
//! know the cases: shared objects, private file mappings, private hugetlb, pinned memory. If one of
//! these tests fails, the kernel has got better, and a precaution may be dropped.

use nix::libc;
use pagetide_kernel::maps::mappings;
use pagetide_kernel::pagemap_scan::{Categories, Pagemap};
use pagetide_kernel::userfaultfd::WriteProtector;
use pagetide_testing::aio::SlowFile;
use pagetide_testing::machine::Machine;
use pagetide_testing::ring::Ring;
use pagetide_testing::{PAGE, Region, needs, skipped};
use std::os::unix::fs::FileExt;

/// The region registered and harvested: from here on only what is written should be reported.
fn harvested(region: &Region) -> (WriteProtector, Pagemap) {
    let protector = WriteProtector::of_self().unwrap();
    protector
        .register(region.start(), region.end() - region.start())
        .unwrap();
    let pagemap = Pagemap::of_self().unwrap();
    region.take_written(&pagemap);
    assert_eq!(region.take_written(&pagemap), []);
    (protector, pagemap)
}

// Shared memory: holes and writers that do not go through this mapping.

#[test]
fn t07_a_hole_punched_into_shared_memory_reads_not_written() {
    needs!(wp_async);
    let file = pagetide_testing::memfd("holes", 8);
    let region = Region::of_file(&file, 8, true);
    region.fill(0..8, 5);
    let (_protector, pagemap) = harvested(&region);
    region.advise(1..2, libc::MADV_REMOVE).unwrap();
    pagetide_testing::punch_hole(&file, 3..4);
    assert_eq!((region.load(1), region.load(3)), (0, 0));
    assert_eq!(region.take_written(&pagemap), []);
}

#[test]
fn t07_truncating_and_extending_shared_memory_reads_not_written() {
    needs!(wp_async);
    let file = pagetide_testing::memfd("truncated", 8);
    let region = Region::of_file(&file, 8, true);
    region.fill(0..8, 5);
    let (_protector, pagemap) = harvested(&region);
    file.set_len(2 * PAGE as u64).unwrap();
    file.set_len(8 * PAGE as u64).unwrap();
    assert_eq!(region.load(4), 0);
    let written = region.take_written(&pagemap);
    // Some of the slots lose their marker, which one cannot rely on.
    assert!(!(2..8).all(|page| written.contains(&page)), "{written:?}");
}

#[test]
fn t08_a_write_to_the_object_reads_not_written() {
    needs!(wp_async);
    let file = pagetide_testing::memfd("written", 8);
    let region = Region::of_file(&file, 8, true);
    region.fill(0..8, 5);
    let (_protector, pagemap) = harvested(&region);
    file.write_at(b"x", 3 * PAGE as u64).unwrap();
    assert_eq!(region.load(3), b'x');
    assert_eq!(region.take_written(&pagemap), []);
}

#[test]
fn t08_a_store_through_another_mapping_reads_not_written() {
    needs!(wp_async);
    let file = pagetide_testing::memfd("twice", 8);
    let region = Region::of_file(&file, 8, true);
    region.fill(0..8, 5);
    let other = Region::of_file(&file, 8, true);
    let (_protector, pagemap) = harvested(&region);
    other.store(2, 6);
    assert_eq!(region.load(2), 6);
    assert_eq!(region.take_written(&pagemap), []);
}

#[test]
fn t08_a_store_by_another_process_reads_not_written() {
    needs!(wp_async);
    let region = Region::shared(8);
    region.fill(0..8, 5);
    let (_protector, pagemap) = harvested(&region);
    let child = pagetide_testing::child::Child::run(|board| {
        region.store(2, 6);
        board.tell(0, 1);
    });
    child.wait(0);
    assert_eq!(region.load(2), 6);
    assert_eq!(region.take_written(&pagemap), []);
}

// Private file mappings: a page is the file's until it is written, and may become the file's again.

#[test]
fn t27_a_private_copy_that_is_dropped_reads_not_written() {
    needs!(wp_async);
    let file = pagetide_testing::file_of(8, b'f');
    let region = Region::of_file(&file, 8, false);
    region.fill(0..4, b'w');
    let (_protector, pagemap) = harvested(&region);
    region.advise(0..2, libc::MADV_DONTNEED).unwrap();
    assert_eq!(
        region.state(0),
        Categories::WP_ALLOWED | Categories::SWAPPED,
        "the kernel leaves the write-protect marker"
    );
    assert_eq!((region.load(0), region.load(2)), (b'f', b'w'));
    assert_eq!(region.take_written(&pagemap), []);
    // What tells, is that the page is a file page (or a bare marker), where a copy is neither.
    let plain = |page| region.state(page) & (Categories::FILE | Categories::PRESENT);
    assert_eq!(plain(0), Categories::FILE | Categories::PRESENT);
    assert_eq!(plain(1) & Categories::PRESENT, Categories::empty());
    assert_eq!(plain(2), Categories::PRESENT);
}

#[test]
fn t27_a_private_copy_that_is_truncated_away_reads_not_written() {
    needs!(wp_async);
    let file = pagetide_testing::file_of(8, b'f');
    let region = Region::of_file(&file, 8, false);
    region.fill(0..8, b'w');
    let (_protector, pagemap) = harvested(&region);
    file.set_len(4 * PAGE as u64).unwrap();
    file.set_len(8 * PAGE as u64).unwrap();
    assert_eq!((region.load(3), region.load(5)), (b'w', 0));
    let written = region.take_written(&pagemap);
    assert!(!written.contains(&5), "{written:?}");
}

#[test]
fn t27_a_change_of_the_file_reads_not_written_in_a_private_mapping() {
    needs!(wp_async);
    let file = pagetide_testing::file_of(8, b'f');
    let region = Region::of_file(&file, 8, false);
    let (_protector, pagemap) = harvested(&region);
    assert_eq!(region.load(1), b'f');
    file.write_at(b"x", 0).unwrap();
    file.write_at(b"x", PAGE as u64).unwrap();
    assert_eq!((region.load(0), region.load(1)), (b'x', b'x'));
    assert_eq!(region.take_written(&pagemap), []);
}

#[test]
fn t27_a_private_copy_of_a_memfd_that_is_dropped_reads_not_written() {
    needs!(wp_async);
    let region = Region::of_file(&pagetide_testing::memfd("private", 2), 2, false);
    region.fill(0..2, b'w');
    let (_protector, pagemap) = harvested(&region);
    region.advise(0..1, libc::MADV_DONTNEED).unwrap();
    assert_eq!((region.load(0), region.load(1)), (0, b'w'));
    assert_eq!(region.take_written(&pagemap), []);
}

#[test]
fn t28_private_hugetlb_that_is_dropped_reads_not_written() {
    needs!(wp_async);
    let mut machine = Machine::lock();
    if let Err(reason) = machine.huge_pages(4) {
        return skipped(
            "t28_private_hugetlb_that_is_dropped_reads_not_written",
            &reason,
        );
    }
    let region = Region::hugetlb(2, false).unwrap();
    region.fill(0..1024, 5);
    let (_protector, pagemap) = harvested(&region);
    region.advise(0..512, libc::MADV_DONTNEED).unwrap();
    assert_eq!(
        region.state(0),
        Categories::WP_ALLOWED | Categories::SWAPPED | Categories::HUGE
    );
    assert_eq!(region.load(0), 0);
    assert_eq!(region.take_written(&pagemap), [], "dropped while protected");
    // Once it was read, not even the missing page tells.
    assert!(region.state(0).contains(Categories::PRESENT));
    region.store(512, 6);
    region.advise(512..1024, libc::MADV_DONTNEED).unwrap();
    assert_eq!(region.take_written(&pagemap), [], "written, then dropped");
    assert_eq!(region.load(512), 0);
}

// Memory that the kernel has pinned, and writes to without asking the page table.

fn ring_or_skip(test: &str, ring: std::io::Result<Ring>) -> Option<Ring> {
    ring.map_err(|error| skipped(test, &format!("io_uring: {error}")))
        .ok()
}

#[test]
fn t09_a_read_into_a_fixed_buffer_reads_not_written_and_fdinfo_lists_it() {
    needs!(wp_async);
    let test = "t09_a_read_into_a_fixed_buffer_reads_not_written_and_fdinfo_lists_it";
    let region = Region::filled(8, 5);
    let Some(mut ring) = ring_or_skip(test, Ring::new()) else {
        return;
    };
    ring.register_buffer(&region, 3..5).unwrap();
    let (_protector, pagemap) = harvested(&region);
    let file = pagetide_testing::file_of(1, b'f');
    ring.start_read(&file, region.address(3), PAGE, true);
    assert_eq!(ring.finish(), i32::try_from(PAGE).unwrap());
    assert_eq!(region.load(3), b'f');
    assert_eq!(region.take_written(&pagemap), []);
    let description = ring.description();
    let listed = description
        .split_once("UserBufs:")
        .expect("a list of buffers")
        .1;
    assert!(listed.trim_start().starts_with('1'), "{description}");
    let line = format!("{:#x}/{}", region.address(3), 2 * PAGE);
    assert!(listed.contains(&line), "{line} is not in {description}");
}

#[test]
fn t09_a_read_into_an_ordinary_buffer_is_seen() {
    needs!(wp_async);
    let test = "t09_a_read_into_an_ordinary_buffer_is_seen";
    let region = Region::filled(8, 5);
    let Some(mut ring) = ring_or_skip(test, Ring::new()) else {
        return;
    };
    let (_protector, pagemap) = harvested(&region);
    let file = pagetide_testing::file_of(1, b'f');
    ring.start_read(&file, region.address(3), PAGE, false);
    assert_eq!(ring.finish(), i32::try_from(PAGE).unwrap());
    assert_eq!(region.take_written(&pagemap), [3]);
}

#[test]
fn t29_completions_in_memory_handed_to_a_ring_read_not_written_and_are_listed_nowhere() {
    let test = "t29_completions_in_memory_handed_to_a_ring_read_not_written_and_are_listed_nowhere";
    let Some(mut ring) = ring_or_skip(test, Ring::in_own_memory()) else {
        return;
    };
    let (_protector, pagemap) = harvested(&ring.rings);
    // Submitting stores to the ring, so the page is written once by us; harvest that away.
    ring.submit_nothing();
    ring.rings.take_written(&pagemap);
    let before = ring.completions();
    ring.let_run();
    assert_eq!(ring.completions(), before + 1);
    assert_eq!(ring.rings.take_written(&pagemap), []);
    let description = ring.description();
    assert!(
        !description.contains(&format!("{:#x}", ring.rings.start())),
        "{description}"
    );
    // What tells: a ring whose queues are mapped from it has its inode among the mappings.
    let mapped = |ring: &Ring| {
        let description = ring.description();
        let inode = description
            .lines()
            .find_map(|line| line.strip_prefix("ino:"));
        let inode: u64 = inode.expect("ino").trim().parse().unwrap();
        let all = mappings(std::process::id().cast_signed()).unwrap();
        all.iter().any(|mapping| mapping.inode == inode)
    };
    assert!(!mapped(&ring));
    assert!(mapped(&Ring::new().unwrap()));
}

#[test]
fn t30_a_direct_read_under_way_over_a_harvest_reads_not_written() {
    needs!(wp_async);
    let test = "t30_a_direct_read_under_way_over_a_harvest_reads_not_written";
    let slow = match SlowFile::mount() {
        Ok(slow) => slow,
        Err(error) => return skipped(test, &format!("FUSE: {error}")),
    };
    let Some(mut ring) = ring_or_skip(test, Ring::new()) else {
        return;
    };
    let file = slow.open().unwrap();
    let region = Region::filled(4, 5);
    let protector = WriteProtector::of_self().unwrap();
    protector.register(region.start(), 4 * PAGE as u64).unwrap();
    let pagemap = Pagemap::of_self().unwrap();
    ring.start_read(&file, region.address(2), PAGE, false);
    slow.asked();
    assert_eq!(region.take_written(&pagemap), [0, 1, 2, 3]);
    assert_eq!(
        region.load(2),
        5,
        "a checkpoint taken here has the old content"
    );
    slow.answer(b'n');
    assert_eq!(ring.finish(), i32::try_from(PAGE).unwrap());
    assert_eq!(region.load(2), b'n');
    assert_eq!(region.take_written(&pagemap), []);
    assert!(
        !ring
            .description()
            .contains(&format!("{:#x}", region.address(2)))
    );
}
