//! Prevents that a change of an embedder's memory is missed for what is mapped there: shared memory that others
//! write or punch, files that show through, huge pages, mappings that replace others. Every snapshot is compared
//! with what the memory holds.

#![allow(unsafe_code)]

mod snaps;

use nix::libc;
use pagetide::{OwnMemory, OwnMemoryError, OwnMemoryOptions, Placement};
use pagetide_pages::PageCount;
use pagetide_testing::machine::Machine;
use pagetide_testing::watched::has_flag;
use pagetide_testing::{
    HUGE, PAGE, Region, file_of, memfd, needs, punch_hole, secret_file, skipped,
};
use snaps::{differing, exact, own, own_at, place, snap, store};
use std::os::unix::fs::{FileExt, MetadataExt};

/// A shared memfd of `pages` pages, the first `used` of them filled, mapped once.
fn shared(pages: usize, used: usize) -> (std::fs::File, Region) {
    let file = memfd("guest", pages);
    let region = Region::of_file(&file, pages, true);
    for page in 0..used {
        region.fill(page..page + 1, page as u8 | 1);
    }
    (file, region)
}

#[test]
fn t45_shared_memory_that_others_write_or_punch_is_compared() {
    needs!(wp_async);
    let (file, region) = shared(256, 256);
    let mut own = own(&region);
    exact(&mut own, &region, "full");
    assert_eq!(
        exact(&mut own, &region, "nothing").written_pages,
        PageCount(0)
    );
    region.store(3, 77);
    assert_eq!(
        exact(&mut own, &region, "stored to").written_pages,
        PageCount(1)
    );
    let other = Region::of_file(&file, 256, true);
    other.store(9, 50);
    exact(&mut own, &region, "by another mapping");
    file.write_all_at(b"hello", 20 * PAGE as u64).unwrap();
    exact(&mut own, &region, "by pwrite(2)");
    punch_hole(&file, 40..48);
    exact(&mut own, &region, "a hole");
    region.fill(50..52, 9);
    exact(&mut own, &region, "filled");
    region.advise(50..60, libc::MADV_REMOVE).unwrap();
    // Once it is read, no page table tells that it was ever away.
    assert_eq!(region.load(51), 0);
    exact(&mut own, &region, "MADV_REMOVE, then read");
    region.advise(60..100, libc::MADV_DONTNEED).unwrap();
    exact(&mut own, &region, "MADV_DONTNEED");
    file.set_len(100 * PAGE as u64 + 5).unwrap();
    let shorter = exact(&mut own, &region, "shorter");
    assert_eq!(
        shorter.unreadable_pages,
        PageCount(0),
        "past the end is told by state"
    );
    region.store_at(100 * PAGE + 900, 9);
    exact(&mut own, &region, "past the end, in the last page");
    file.set_len(256 * PAGE as u64).unwrap();
    exact(&mut own, &region, "longer");
}

#[test]
fn t45_a_child_that_writes_to_shared_memory_is_seen() {
    needs!(wp_async);
    let region = Region::shared(64);
    region.fill(0..64, 5);
    let mut own = own(&region);
    exact(&mut own, &region, "full");
    let ended = pagetide_testing::child::run_to_end(|| {
        region.store(7, 8);
        0
    });
    assert_eq!(ended, Ok(0));
    assert_eq!(
        exact(&mut own, &region, "a child").written_pages,
        PageCount(1)
    );
}

#[test]
fn what_was_never_used_of_shared_memory_is_not_allocated() {
    needs!(wp_async);
    for alone in [false, true] {
        let (file, region) = shared(8192, 16);
        let before = file.metadata().unwrap().blocks();
        let place = place(&region, 0);
        let mut own = own_at(if alone {
            place.written_through_it_only()
        } else {
            place
        });
        for page in [20, 40, 60] {
            snap(&mut own).unwrap();
            region.store(page, 1);
        }
        let after = file.metadata().unwrap().blocks();
        assert_eq!(after - before, 3 * (PAGE as u64 / 512), "alone: {alone}");
        snap(&mut own).unwrap();
    }
}

#[test]
fn memory_that_is_promised_to_be_written_through_its_region_only_is_tracked() {
    needs!(wp_async);
    let (file, region) = shared(512, 512);
    let mut own = own_at(place(&region, 0).written_through_it_only());
    exact(&mut own, &region, "full");
    region.store(3, 77);
    assert_eq!(
        exact(&mut own, &region, "stored to").written_pages,
        PageCount(1)
    );
    // What was promised not to happen, and is noticed all the same.
    punch_hole(&file, 40..48);
    exact(&mut own, &region, "a hole");
    // What is told.
    region.advise(100..120, libc::MADV_REMOVE).unwrap();
    region.fill(300..400, 3);
    own.written_pages()
        .mark(region.address(100), 20 * PAGE as u64);
    exact(&mut own, &region, "holes that were told");
    let told = own.written_pages();
    file.write_all_at(b"hello", 20 * PAGE as u64).unwrap();
    let captured = own.capture().unwrap();
    captured.give_back();
    told.mark(region.address(20), 1);
    own.capture().unwrap().give_back();
    assert_eq!(
        exact(&mut own, &region, "told, given back").written_pages,
        PageCount(1)
    );
    // What is noticed and refused.
    let other = Region::of_file(&file, 4, true);
    let refused = own.capture().expect_err("another mapping");
    assert!(
        matches!(refused, OwnMemoryError::AlsoMapped { elsewhere, .. } if elsewhere == other.start()),
        "{refused}"
    );
    drop(other);
    exact(&mut own, &region, "it is gone");
}

#[test]
fn the_same_memory_at_two_places_of_the_space() {
    needs!(wp_async);
    let (file, region) = shared(32, 32);
    let second = Region::of_file(&file, 32, true);
    let both = |promise: bool| {
        let made = [place(&region, 0), place(&second, 100)].map(|place: Placement| {
            if promise {
                place.written_through_it_only()
            } else {
                place
            }
        });
        OwnMemory::new(store(), &made, OwnMemoryOptions::default())
    };
    assert!(matches!(
        both(true).err(),
        Some(OwnMemoryError::AlsoMapped { .. })
    ));
    let mut own = both(false).unwrap();
    exact(&mut own, &region, "full");
    second.store(5, 50);
    exact(&mut own, &region, "written at the other place");
}

#[test]
fn what_two_regions_have_come_to_show_is_put_back_only_if_it_held_the_same() {
    needs!(wp_async);
    let (file, first) = shared(32, 32);
    let second = Region::private(32);
    second.fill(0..32, 40);
    let places = [place(&first, 0), place(&second, 100)];
    let mut own = OwnMemory::new(store(), &places, OwnMemoryOptions::default()).unwrap();
    let apart = exact(&mut own, &first, "apart").view;
    for page in 4..8 {
        second.fill(page..page + 1, page as u8 | 1);
    }
    let the_same = exact(&mut own, &first, "the same in four pages").view;
    Region::of_file(&file, 32, true).move_to(4..8, &second, 4, false);
    first.fill(0..32, 9);
    let contents =
        |region: &Region| -> Vec<_> { (0..32).map(|page| snaps::page_now(region, page)).collect() };
    let before = (contents(&first), contents(&second));
    let refused = own
        .roll_back(&apart)
        .expect_err("one page cannot hold two things");
    let told = matches!(refused, OwnMemoryError::ShowTheSame { count: 4, address, elsewhere, .. }
        if [address, elsewhere] == [first.address(4), second.address(4)]);
    assert!(told, "{refused}");
    assert_eq!(
        (contents(&first), contents(&second)),
        before,
        "nothing was written"
    );
    own.roll_back(&the_same).unwrap();
    assert_eq!(differing(&the_same, &first), [0; 0]);
    assert_eq!(contents(&second)[4..8], contents(&first)[4..8]);
    // As they were first: then all can be put back.
    second.replace(4..8);
    own.roll_back(&apart).unwrap();
    assert_eq!(differing(&apart, &first), [0; 0]);
    assert_eq!(second.load(5), 40);
}

#[test]
fn what_a_private_mapping_shows_of_a_shared_one_is_put_back_after_it() {
    needs!(wp_async);
    let (file, shown) = shared(16, 16);
    // By address the private one comes first, and shows what is put into the other later.
    let over = Region::private(32);
    Region::of_file(&file, 16, false).move_to(0..16, &over, 0, false);
    Region::of_file(&file, 16, true).move_to(0..16, &over, 16, false);
    let mut own = own(&over);
    let before = exact(&mut own, &over, "it shows the file").view;
    shown.fill(0..16, 99);
    exact(&mut own, &over, "both have changed");
    own.roll_back(&before).unwrap();
    assert_eq!(differing(&before, &over), [0; 0]);
    // And where the private one held what the file did not.
    over.fill(3..5, 7);
    let copies = exact(&mut own, &over, "copies").view;
    over.advise(0..16, libc::MADV_DONTNEED).unwrap();
    shown.fill(0..16, 7);
    own.roll_back(&copies).unwrap();
    assert_eq!(differing(&copies, &over), [0; 0]);
}

#[test]
fn t27_a_copy_of_a_file_that_is_dropped_shows_the_file_again() {
    needs!(wp_async);
    let in_memory = memfd("resumed", 64);
    in_memory.write_all_at(&[7; 64 * PAGE], 0).unwrap();
    for file in [file_of(64, 7), in_memory] {
        let region = Region::of_file(&file, 64, false);
        let mut own = own(&region);
        exact(&mut own, &region, "full");
        region.fill(0..20, 5);
        exact(&mut own, &region, "copies");
        exact(&mut own, &region, "the same copies");
        region.advise(10..30, libc::MADV_DONTNEED).unwrap();
        exact(&mut own, &region, "dropped");
        file.write_all_at(b"changed", 50 * PAGE as u64).unwrap();
        exact(&mut own, &region, "the file has changed");
        file.write_all_at(b"changed", 5 * PAGE as u64).unwrap();
        exact(&mut own, &region, "the file has changed beneath a copy");
        region.advise(0..64, libc::MADV_DONTNEED).unwrap();
        exact(&mut own, &region, "all dropped");
    }
}

#[test]
fn t32_private_mappings_of_files_are_never_registered() {
    needs!(wp_async);
    let file = file_of(64, 7);
    let of_file = Region::of_file(&file, 64, false);
    let anonymous = Region::private(64);
    for (region, registered) in [(&of_file, false), (&anonymous, true)] {
        let mut own = own(region);
        for round in 0..3 {
            region.fill(round * 4..round * 4 + 2, 9);
            exact(&mut own, region, "with new copies of its own");
            assert_eq!(has_flag(region, 0, "uw"), registered, "round {round}");
        }
    }
}

#[test]
fn a_hole_of_a_memory_file_that_is_mapped_private_is_not_allocated() {
    needs!(wp_async);
    let file = memfd("sparse", 4096);
    let region = Region::of_file(&file, 4096, false);
    let mut own = own(&region);
    for page in [5, 6] {
        exact_written(&mut own, &region, page);
    }
    // The stores themselves read what they copy.
    assert_eq!(file.metadata().unwrap().blocks(), 2 * PAGE as u64 / 512);
}

fn exact_written(own: &mut OwnMemory, region: &Region, page: usize) {
    region.store(page, 3);
    let snapshot = snap(own).unwrap();
    let space = snapshot.view.space_index("memory").unwrap();
    let mut bytes = vec![0; PAGE];
    let index = pagetide_pages::PageIndex(page as u64);
    snapshot.view.read_page(space, index, &mut bytes).unwrap();
    assert_eq!(bytes[0], 3);
}

#[test]
fn t28_huge_pages_that_are_dropped() {
    needs!(wp_async);
    let test = "t28_huge_pages_that_are_dropped";
    let mut machine = Machine::lock();
    if let Err(reason) = machine.huge_pages(4) {
        return skipped(test, &reason);
    }
    let region = match Region::hugetlb(3, false) {
        Ok(region) => region,
        Err(error) => return skipped(test, &error.to_string()),
    };
    let each = HUGE / PAGE;
    region.fill(0..each, 3);
    let mut own = own(&region);
    let full = exact_huge(&mut own, &region, each);
    assert_eq!(full.written_pages, PageCount(each as u64));
    region.store(5, 9);
    assert_eq!(
        exact_huge(&mut own, &region, each).written_pages,
        PageCount(1)
    );
    region.store(each, 9);
    exact_huge(&mut own, &region, 2 * each);
    region.advise(0..each, libc::MADV_DONTNEED).unwrap();
    let dropped = snap(&mut own).unwrap();
    assert_eq!(region.load(5), 0);
    let differ = differing(&dropped.view, &region);
    assert_eq!(differ, [0; 0]);
}

/// As `exact`, reading only the first `pages`: to read what is not there would take it from the pool.
fn exact_huge(own: &mut OwnMemory, region: &Region, pages: usize) -> pagetide::OwnSnapshot {
    let snapshot = snap(own).unwrap();
    let space = snapshot.view.space_index("memory").unwrap();
    let mut bytes = vec![0; PAGE];
    for page in 0..pages {
        let index = pagetide_pages::PageIndex(page as u64);
        snapshot.view.read_page(space, index, &mut bytes).unwrap();
        assert_eq!(
            Some(&bytes),
            snaps::page_now(region, page).as_ref(),
            "page {page}"
        );
    }
    snapshot
}

#[test]
fn what_is_not_mapped_any_more_is_an_error_and_nothing_is_lost() {
    needs!(wp_async);
    let region = Region::filled(64, 5);
    let mut own = own(&region);
    exact(&mut own, &region, "full");
    region.store(3, 9);
    region.unmap(20..30);
    for _ in 0..2 {
        let error = own.capture().expect_err("it is not mapped");
        let told = matches!(error, OwnMemoryError::NotMapped { address, length_bytes, .. }
            if address == region.address(20) && length_bytes == 10 * PAGE as u64);
        assert!(told, "{error}");
    }
    region.replace(20..30);
    let after = exact(&mut own, &region, "mapped again");
    assert_eq!(after.mapped_anew_pages, PageCount(10));
    let elsewhere = Region::private(64);
    region.move_to(40..64, &elsewhere, 0, false);
    let error = own.capture().expect_err("it was moved");
    assert!(matches!(error, OwnMemoryError::NotMapped { .. }), "{error}");
    elsewhere.move_to(0..24, &region, 40, false);
    exact(&mut own, &region, "moved back");
    region.unmap(0..64);
    let error = own.capture().expect_err("all is gone");
    assert!(matches!(error, OwnMemoryError::NotMapped { .. }), "{error}");
}

#[test]
fn what_was_unmapped_before_the_first_capture_is_an_error() {
    needs!(wp_async);
    let region = Region::filled(64, 5);
    let mut own = own(&region);
    region.unmap(20..30);
    let error = own.capture().expect_err("it is not mapped");
    assert!(matches!(error, OwnMemoryError::NotMapped { .. }), "{error}");
}

#[test]
fn whatever_is_mapped_over_a_region_is_captured_as_what_it_is() {
    needs!(wp_async);
    let region = Region::filled(256, 5);
    let mut own = own(&region);
    exact(&mut own, &region, "full");
    let file = memfd("over", 64);
    file.write_all_at(&[60; 64 * PAGE], 0).unwrap();
    let private = Region::of_file(&file, 64, false);
    private.move_to(0..64, &region, 32, false);
    exact(&mut own, &region, "a private mapping of a file");
    region.fill(40..50, 4);
    exact(&mut own, &region, "copies");
    region.advise(40..45, libc::MADV_DONTNEED).unwrap();
    exact(&mut own, &region, "dropped");
    let shared = Region::of_file(&file, 64, true);
    shared.move_to(0..64, &region, 128, false);
    exact(&mut own, &region, "a shared mapping");
    file.write_all_at(b"changed", 9 * PAGE as u64).unwrap();
    exact(&mut own, &region, "written by descriptor: both show it");
    region.replace(32..160);
    exact(&mut own, &region, "private anonymous memory again");
    region.store(60, 7);
    assert_eq!(
        exact(&mut own, &region, "tracked again").written_pages,
        PageCount(1)
    );
    region.protect(10..20, libc::PROT_NONE);
    region.store(30, 1);
    exact(&mut own, &region, "no access");
    region.protect(10..20, pagetide_testing::READ_WRITE);
    region.store(15, 1);
    exact(&mut own, &region, "access again");
}

#[test]
fn what_is_no_memory_is_refused_by_name() {
    needs!(wp_async);
    let test = "what_is_no_memory_is_refused_by_name";
    let refuses = |region: &Region, name: &str| {
        let made = OwnMemory::new(store(), &[place(region, 0)], OwnMemoryOptions::default());
        let error = made.err().expect("it is refused").to_string();
        assert!(error.contains(name), "{error}");
    };
    match pagetide_testing::ring::Ring::new() {
        Ok(ring) => refuses(&ring.rings, "io_uring"),
        Err(error) => skipped(test, &format!("io_uring: {error}")),
    }
    match secret_file() {
        Some(file) => {
            file.set_len(4 * PAGE as u64).unwrap();
            let region = Region::of_file(&file, 4, true);
            refuses(&region, "secretmem");
        }
        None => skipped(test, "memfd_secret(2)"),
    }
}
