//! Prevents: losing memory that was moved, or a mapping that came to be by moving. Every form of
//! mremap(2), and remap_file_pages(2): what each does to content, to the registration, to what reads
//! written, and to the number of mappings. Growing in place and moving in the plainest forms are in
//! `userfaultfd.rs`.
//!
//! The facts about content hold on every kernel; those about tracking are tests of their own.

use nix::libc;
use pagetide_kernel::pagemap_scan::Categories;
use pagetide_testing::child::run_to_end;
use pagetide_testing::watched::{Watcher, loads, mapping_count, refused_with};
use pagetide_testing::{PAGE, Region, needs, skipped};

const PAGES: usize = 8;

fn stored(region: Region) -> Region {
    (0..PAGES).for_each(|page| region.store(page, page as u8 + 1));
    region
}

fn private() -> Region {
    stored(Region::private(PAGES))
}

fn memfd() -> Region {
    stored(Region::of_file(
        &pagetide_testing::memfd("remap", PAGES),
        PAGES,
        true,
    ))
}

fn numbered() -> Vec<u8> {
    (1..=PAGES as u8).collect()
}

fn is_registered(region: &Region, page: usize) -> bool {
    region.state(page).contains(Categories::WP_ALLOWED)
}

fn ends_of_reading(region: &Region, page: usize) -> Result<i32, i32> {
    run_to_end(|| i32::from(region.load(page)))
}

/// A region that cannot grow where it is: a page without any permission follows.
fn hemmed_in() -> Region {
    let region = Region::private(PAGES + 1);
    region.protect(PAGES..PAGES + 1, libc::PROT_NONE);
    stored(region.assume_pages(PAGES))
}

#[test]
fn growing_with_a_move_takes_content_along_and_adds_zeros() {
    let region = hemmed_in();
    assert!(refused_with(
        region.resize_in_place(0..PAGES, PAGES + 4),
        libc::ENOMEM
    ));
    let grown = region
        .resize_anywhere(0..PAGES, PAGES + 4)
        .expect("it moved");
    let mut expected = numbered();
    expected.extend([0; 4]);
    assert_eq!(loads(&grown), expected);
    assert_eq!(ends_of_reading(&region, 0), Err(libc::SIGSEGV));
    assert_eq!(mapping_count(&grown), 1);
}

#[test]
fn growing_with_a_move_drops_the_registration() {
    needs!(wp_async);
    let watcher = Watcher::of_self();
    let region = hemmed_in();
    watcher.settle(&region);
    let grown = region
        .resize_anywhere(0..PAGES, PAGES + 4)
        .expect("it moved");
    assert!(!is_registered(&grown, 0) && !is_registered(&grown, PAGES));
    grown.store(3, 90);
    assert_eq!(watcher.written(&grown), [], "passed over in silence");
    assert_eq!(watcher.written(&region), [], "nothing is there any more");
}

#[test]
fn shrinking_unmaps_the_tail_and_keeps_the_rest() {
    let region = private();
    region.resize_in_place(0..PAGES, 5).unwrap();
    assert_eq!(ends_of_reading(&region, 4), Ok(5));
    assert_eq!(ends_of_reading(&region, 5), Err(libc::SIGSEGV));
    assert_eq!(loads(&region.assume_pages(5)), [1, 2, 3, 4, 5]);
}

#[test]
fn shrinking_keeps_the_registration_and_what_is_known() {
    needs!(wp_async);
    let watcher = Watcher::of_self();
    let region = private();
    watcher.settle(&region);
    region.store(1, 90);
    region.store(6, 90);
    region.resize_in_place(0..PAGES, 5).unwrap();
    assert!(is_registered(&region, 4));
    assert_eq!(watcher.written(&region), [1], "what is gone is not named");
}

#[test]
fn moving_over_a_mapping_replaces_it_whatever_it_was() {
    for target in [private(), memfd()] {
        let region = private();
        region.move_to(2..5, &target, 4, false);
        assert_eq!(loads(&target), [1, 2, 3, 4, 3, 4, 5, 8]);
        assert_eq!(ends_of_reading(&region, 3), Err(libc::SIGSEGV));
        assert_eq!((region.load(1), region.load(5)), (2, 6));
        assert_eq!((mapping_count(&target), mapping_count(&region)), (3, 2));
    }
}

#[test]
fn moving_over_a_mapping_drops_the_registration_of_both() {
    needs!(wp_async);
    let watcher = Watcher::of_self();
    let (region, target) = (private(), private());
    watcher.settle(&region);
    watcher.settle(&target);
    region.store(3, 90);
    region.move_to(2..5, &target, 4, false);
    let registered: Vec<bool> = (0..PAGES)
        .map(|page| is_registered(&target, page))
        .collect();
    let around = [true, true, true, true, false, false, false, true];
    assert_eq!(registered, around);
    assert_eq!(
        watcher.written(&target),
        [],
        "a write that was known is lost"
    );
    assert_eq!(watcher.written(&region), []);
}

#[test]
fn moving_without_unmapping_leaves_zeros_or_the_object() {
    let region = private();
    let target = Region::private(PAGES);
    region.move_to(0..PAGES, &target, 0, true);
    assert_eq!(loads(&target), numbered());
    assert_eq!(loads(&region), [0; PAGES]);
    let region = memfd();
    let target = Region::private(PAGES);
    // Since 5.13 for shared memory.
    if let Err(error) = region.try_move_to(0..PAGES, &target, 0, true) {
        let test = "moving_without_unmapping_leaves_zeros_or_the_object";
        return skipped(test, &error.to_string());
    }
    assert_eq!((loads(&target), loads(&region)), (numbered(), numbered()));
    target.store(2, 90);
    assert_eq!(region.load(2), 90, "two mappings of one object");
}

#[test]
fn moving_shared_memory_without_unmapping_makes_a_second_writer() {
    needs!(wp_async);
    let watcher = Watcher::of_self();
    let region = memfd();
    watcher.settle(&region);
    let target = Region::private(PAGES);
    region
        .try_move_to(0..PAGES, &target, 0, true)
        .expect("since 5.13");
    assert!(is_registered(&region, 0) && !is_registered(&target, 0));
    // What was protected is at the new place; the slots that are left hold nothing, and read so.
    watcher.written(&region);
    target.store(2, 90);
    assert_eq!(watcher.written(&region), []);
    assert_eq!(region.load(2), 90, "and nobody has said so");
}

#[test]
fn moving_nothing_duplicates_shared_memory_and_is_refused_for_private() {
    let region = memfd();
    let second = region.duplicate(2..6).unwrap();
    assert_eq!(loads(&second), [3, 4, 5, 6]);
    second.store(1, 90);
    assert_eq!(loads(&region), [1, 2, 3, 90, 5, 6, 7, 8]);
    assert!(private().duplicate(0..PAGES).is_err());
}

#[test]
fn a_duplicate_is_not_registered_and_stores_through_it_read_not_written() {
    needs!(wp_async);
    let watcher = Watcher::of_self();
    let region = memfd();
    watcher.settle(&region);
    let second = region.duplicate(2..6).unwrap();
    assert!(is_registered(&region, 2) && !is_registered(&second, 0));
    second.store(1, 90);
    assert_eq!(watcher.written(&region), []);
    assert_eq!(watcher.written(&second), []);
    assert_eq!(region.load(3), 90);
}

#[test]
fn several_mappings_move_at_once_or_not_at_all() {
    let test = "several_mappings_move_at_once_or_not_at_all";
    let region = private();
    region.protect(3..5, libc::PROT_READ);
    let target = Region::private(PAGES);
    // Since 6.17.
    match region.try_move_to(0..PAGES, &target, 0, false) {
        Ok(()) => {
            assert_eq!(loads(&target), numbered());
            assert_eq!(mapping_count(&target), 3);
            assert_eq!(mapping_count(&region), 0);
        }
        Err(error) => {
            // The target may be unmapped by now; what was to be moved stays.
            assert_eq!(loads(&region), numbered());
            skipped(test, &format!("mremap of several mappings: {error}"));
        }
    }
}

/// True if this kernel moves several mappings at once (6.17).
fn moves_several() -> bool {
    let region = private();
    region.protect(3..5, libc::PROT_READ);
    let target = Region::private(PAGES);
    region.try_move_to(0..PAGES, &target, 0, false).is_ok()
}

#[test]
fn t41_several_mappings_are_moved_up_to_the_first_that_is_registered() {
    needs!(wp_async);
    let several = moves_several();
    let region = private();
    region.protect(3..5, libc::PROT_READ);
    let watcher = Watcher::of_self();
    let registered = region.address(3)..region.address(5);
    let length = registered.end - registered.start;
    watcher
        .protector
        .register(registered.start, length)
        .expect("register");
    let target = Region::private(PAGES);
    let moved = region.try_move_to(0..PAGES, &target, 0, false);
    let error = moved.expect_err("a registered mapping is moved with others");
    assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
    let left = if several { 2 } else { 3 };
    assert_eq!(
        mapping_count(&region),
        left,
        "what came before it has moved"
    );
}

#[test]
fn t41_what_came_beside_registered_memory_is_not_moved_with_it() {
    needs!(wp_async);
    let grow = |is_registered: bool| {
        let region = Region::private(PAGES);
        region.unmap(4..8);
        let watcher = Watcher::of_self();
        if is_registered {
            let length = region.address(4) - region.start();
            watcher
                .protector
                .register(region.start(), length)
                .expect("register");
        }
        region.replace(4..8);
        // As the rest of it.
        let _ = region.advise(4..8, libc::MADV_NOHUGEPAGE);
        let target = Region::private(PAGES);
        (
            mapping_count(&region),
            region.try_move_to(0..PAGES, &target, 0, false).is_ok(),
        )
    };
    assert_eq!(grow(false), (1, true), "it is one mapping");
    let (mappings, moved) = grow(true);
    assert!(
        mappings == 2 && !moved,
        "{mappings} mappings, moved: {moved}"
    );
}

// remap_file_pages(2): since 4.0 each call maps over what is there.

#[test]
fn each_page_that_is_shown_elsewhere_is_a_mapping_of_its_own() {
    let region = memfd();
    assert_eq!(mapping_count(&region), 1);
    for page in 0..PAGES {
        region.show(page..page + 1, PAGES - 1 - page).unwrap();
        // The last of them stands between what is in its own place and what is not.
        let expected = (page + 1 + usize::from(page + 1 < PAGES)).min(PAGES);
        assert_eq!(mapping_count(&region), expected, "after {page}");
    }
    assert_eq!(loads(&region), [8, 7, 6, 5, 4, 3, 2, 1]);
    region.store(0, 90);
    let in_order = |region: &Region| {
        for page in 0..PAGES {
            region.show(page..page + 1, page).unwrap();
        }
    };
    in_order(&region);
    assert_eq!(loads(&region), [1, 2, 3, 4, 5, 6, 7, 90]);
    assert_eq!(mapping_count(&region), 1, "they merge again");
}

#[test]
fn what_is_shown_elsewhere_is_rounded_down_and_keeps_its_protection() {
    let region = memfd();
    region.show_bytes(2 * PAGE + 1, PAGE + 1, 0, 5).unwrap();
    assert_eq!(loads(&region), [1, 2, 6, 4, 5, 6, 7, 8]);
    let refused = region.show_bytes(0, PAGE, libc::PROT_READ, 5).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    region.unmap(4..5);
    let refused = region.show(4..5, 0).unwrap_err();
    assert_eq!(
        refused.raw_os_error(),
        Some(libc::EINVAL),
        "nothing is mapped"
    );
}

#[test]
fn pages_shown_elsewhere_are_no_longer_registered() {
    needs!(wp_async);
    let watcher = Watcher::of_self();
    let region = memfd();
    watcher.settle(&region);
    region.store(3, 90);
    region.store(6, 91);
    region.show(2..4, 5).unwrap();
    let registered: Vec<bool> = (0..PAGES)
        .map(|page| is_registered(&region, page))
        .collect();
    let expected = [true, true, false, false, true, true, true, true];
    assert_eq!(registered, expected);
    assert_eq!(watcher.written(&region), [6], "passed over in silence");
    assert_eq!(loads(&region), [1, 2, 6, 91, 5, 6, 91, 8]);
}

#[test]
fn private_and_anonymous_memory_cannot_be_shown_elsewhere() {
    let file = pagetide_testing::file_of(PAGES, 7);
    for region in [private(), Region::of_file(&file, PAGES, false)] {
        assert!(region.show(0..1, 3).is_err());
    }
}
