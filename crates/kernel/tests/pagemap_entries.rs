//! Prevents: misreading `/proc/PID/pagemap`. Each bit that is used is made to appear and disappear, and
//! reads that end early are errors, not missing pages.

use pagetide_kernel::pagemap::{PagemapEntry, ReadEntriesError};
use pagetide_kernel::pagemap_scan::Pagemap;
use pagetide_kernel::userfaultfd::WriteProtector;
use pagetide_pages::{PageCount, PageIndex, PageRange};
use pagetide_testing::machine::Machine;
use pagetide_testing::{PAGE, Region, needs, skipped};
use std::os::unix::fs::FileExt;

fn entries(region: &Region) -> Vec<PagemapEntry> {
    let pagemap = Pagemap::of_self().unwrap();
    pagemap.entries(region.pages()).unwrap()
}

#[test]
fn an_empty_slot_has_an_empty_entry() {
    let _alone = pagetide_testing::child::without_children();
    let region = Region::private(3);
    region.store(1, 1);
    let entries = entries(&region);
    assert_eq!(entries.len(), 3);
    let soft_dirty = 1 << 55;
    assert_eq!(entries[0].0 & !soft_dirty, 0);
    assert!(entries[1].is_present() && entries[1].is_exclusive());
    assert!(!entries[1].is_swapped() && !entries[1].is_file_or_shared());
}

#[test]
fn file_pages_and_shared_pages_are_marked_and_private_copies_are_not() {
    let file = pagetide_testing::file_of(2, 7);
    let private = Region::of_file(&file, 2, false);
    assert_eq!(private.load(0), 7);
    private.store(1, 8);
    let marked: Vec<bool> = entries(&private)
        .iter()
        .map(|e| e.is_file_or_shared())
        .collect();
    assert_eq!(marked, [true, false]);
    let shared = Region::shared(1);
    shared.store(0, 1);
    assert!(entries(&shared)[0].is_file_or_shared());
}

#[test]
fn protection_is_seen_on_pages_and_on_empty_slots() {
    needs!(wp_async);
    let region = Region::private(3);
    region.store(0, 1);
    let protector = WriteProtector::of_self().unwrap();
    protector.register(region.start(), 3 * PAGE as u64).unwrap();
    region.take_written(&Pagemap::of_self().unwrap());
    let before = entries(&region);
    assert!(before.iter().all(|entry| entry.is_write_protected()));
    assert!(
        before[1].is_swapped() && !before[1].is_present(),
        "a marker reads as swapped"
    );
    region.store(0, 2);
    assert!(!entries(&region)[0].is_write_protected());
}

#[test]
fn a_page_that_two_processes_share_is_not_exclusive() {
    let alone = pagetide_testing::child::without_children();
    let region = Region::filled(1, 1);
    assert!(entries(&region)[0].is_exclusive());
    drop(alone);
    let child = pagetide_testing::child::Child::run(|board| board.tell(0, 1));
    child.wait(0);
    assert!(!entries(&region)[0].is_exclusive());
}

#[test]
fn frame_numbers_are_hidden_or_tell_shared_pages() {
    let region = Region::shared(1);
    region.store(0, 1);
    let file_of_region = format!(
        "/proc/self/map_files/{:x}-{:x}",
        region.start(),
        region.end()
    );
    let Ok(file) = std::fs::File::options()
        .read(true)
        .write(true)
        .open(file_of_region)
    else {
        return skipped(
            "frame_numbers_are_hidden_or_tell_shared_pages",
            "map_files cannot be opened",
        );
    };
    let again = Region::of_file(&file, 1, true);
    assert_eq!(again.load(0), 1);
    assert_eq!(
        entries(&region)[0].frame_number(),
        entries(&again)[0].frame_number()
    );
}

#[test]
fn a_guard_has_its_bit() {
    let region = Region::filled(2, 1);
    if region
        .advise(0..1, pagetide_testing::MADV_GUARD_INSTALL)
        .is_err()
    {
        return skipped("a_guard_has_its_bit", "no guard regions");
    }
    let entries = entries(&region);
    assert!(entries[0].is_guard() && !entries[0].is_present());
    assert!(!entries[1].is_guard());
}

#[test]
fn a_swapped_page_has_a_slot_and_keeps_its_protection() {
    needs!(wp_async);
    let _alone = pagetide_testing::child::without_children();
    let mut machine = Machine::lock();
    if let Err(reason) = machine.swap() {
        return skipped(
            "a_swapped_page_has_a_slot_and_keeps_its_protection",
            &reason,
        );
    }
    let region = Region::filled(4, 3);
    let protector = WriteProtector::of_self().unwrap();
    protector.register(region.start(), 4 * PAGE as u64).unwrap();
    region.take_written(&Pagemap::of_self().unwrap());
    region.store(1, 4);
    region.page_out(0..4);
    let swapped = entries(&region);
    assert!(
        swapped
            .iter()
            .all(|e| e.swap_slot().is_some() && e.frame_number().is_none())
    );
    let protected: Vec<bool> = swapped.iter().map(|e| e.is_write_protected()).collect();
    assert_eq!(protected, [true, false, true, true]);
    assert_eq!(region.load(0), 3);
    assert!(entries(&region)[0].is_present() && entries(&region)[0].is_write_protected());
}

#[test]
fn many_entries_are_read_in_order() {
    const PAGES: usize = 10_000;
    let region = Region::private(PAGES);
    (0..PAGES).step_by(3).for_each(|page| region.store(page, 1));
    let present = entries(&region);
    assert_eq!(present.len(), PAGES);
    assert!((0..PAGES).all(|page| present[page].is_present() == (page % 3 == 0)));
}

#[test]
fn soft_dirty_is_zero_where_the_kernel_has_none() {
    let region = Region::filled(1, 1);
    let probe = pagetide_kernel::probe::Probe::of_this_kernel();
    if probe.soft_dirty.is_err() {
        assert!(!entries(&region)[0].is_soft_dirty());
    } else {
        region.store(0, 2);
        assert!(entries(&region)[0].is_soft_dirty());
    }
}

#[test]
fn past_the_address_space_the_entries_end() {
    let pagemap = Pagemap::of_self().unwrap();
    let vsyscall =
        PageRange::with_count(PageIndex(0xffff_ffff_ff60_0000 / PAGE as u64), PageCount(1));
    match pagemap.entries(vsyscall) {
        Err(ReadEntriesError::Ended { page }) => assert_eq!(page, vsyscall.start().0),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_entries_of_a_dead_process_end() {
    let child = pagetide_testing::child::Child::run(|board| board.tell(0, 1));
    child.wait(0);
    let pagemap = Pagemap::of_process(child.pid()).unwrap();
    child.kill();
    let answer = pagemap.entries(PageRange::single(PageIndex(16)));
    assert!(
        matches!(answer, Err(ReadEntriesError::Ended { page: 16 })),
        "{answer:?}"
    );
}

#[test]
fn reads_that_are_not_of_whole_entries_are_refused() {
    let files = ["self/pagemap", "kpagecount", "kpageflags", "kpagecgroup"];
    for name in files {
        let path = format!("/proc/{name}");
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            // Without privilege, or without CONFIG_MEMCG.
            Err(error) => {
                assert_ne!(name, "self/pagemap", "{error}");
                continue;
            }
        };
        let mut bytes = [0; 16];
        let errno = |read: std::io::Result<usize>| read.err().and_then(|e| e.raw_os_error());
        for (offset, length) in [(4, 8), (1, 16), (0, 7), (8, 12)] {
            let read = file.read_at(&mut bytes[..length], offset);
            assert_eq!(
                errno(read),
                Some(nix::libc::EINVAL),
                "{path} {offset} {length}"
            );
        }
        let read = file.read_at(&mut bytes, 8);
        assert!(read.is_ok(), "{path}: {read:?}");
    }
}
