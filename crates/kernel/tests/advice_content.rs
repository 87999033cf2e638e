//! Prevents: missing a change of content that an advice of madvise(2) makes, or inventing one. Each
//! advice that takes content away or makes it unreadable, in the manual's order, on private, shared and
//! file memory. Advice that keeps the content is in `advice.rs`.
//!
//! The facts about content and VmFlags hold on every kernel; those about tracking are tests of their
//! own, since not every kernel can track.

use nix::libc;
use pagetide_kernel::memory::ProcessMemory;
use pagetide_kernel::pagemap_scan::Categories;
use pagetide_pages::PageSize;
use pagetide_testing::child::run_to_end;
use pagetide_testing::machine::Machine;
use pagetide_testing::watched::{Watcher, advise_or_skip, has_flag, loads, refused_with};
use pagetide_testing::{MADV_GUARD_INSTALL, MADV_GUARD_REMOVE, PAGE, Region, needs, poison};
use std::fs::File;

const PAGES: usize = 8;

/// The content of files here; what processes store is another.
const OF_FILE: u8 = 7;

/// Memory of one kind in which every page was stored to: 1, 2, 3 and so on.
fn stored(region: Region) -> Region {
    (0..PAGES).for_each(|page| region.store(page, page as u8 + 1));
    region
}

fn private() -> Region {
    stored(Region::private(PAGES))
}

fn private_file() -> Region {
    stored(Region::of_file(
        &pagetide_testing::file_of(PAGES, OF_FILE),
        PAGES,
        false,
    ))
}

/// Shared anonymous memory, a memfd, and a file on a disk.
fn shared_kinds() -> Vec<(&'static str, Region)> {
    let of = |file: &File| stored(Region::of_file(file, PAGES, true));
    vec![
        ("shared", stored(Region::shared(PAGES))),
        ("memfd", of(&pagetide_testing::memfd("advice", PAGES))),
        (
            "shared file",
            of(&pagetide_testing::file_of(PAGES, OF_FILE)),
        ),
    ]
}

fn numbered() -> Vec<u8> {
    (1..=PAGES as u8).collect()
}

// DONTNEED, and DONTNEED_LOCKED, which does the same to locked memory.

#[test]
fn dontneed_zeroes_private_memory_shows_the_file_again_and_keeps_what_is_shared() {
    let region = private();
    region.advise(2..4, libc::MADV_DONTNEED).unwrap();
    assert_eq!(loads(&region), [1, 2, 0, 0, 5, 6, 7, 8]);
    let region = private_file();
    region.advise(2..4, libc::MADV_DONTNEED).unwrap();
    assert_eq!(loads(&region), [1, 2, OF_FILE, OF_FILE, 5, 6, 7, 8]);
    for (kind, region) in shared_kinds() {
        region.advise(2..4, libc::MADV_DONTNEED).unwrap();
        assert_eq!(loads(&region), numbered(), "{kind}");
    }
}

#[test]
fn dontneed_of_private_memory_reads_written_and_not_present() {
    needs!(wp_async);
    let watcher = Watcher::of_self();
    let region = private();
    watcher.settle(&region);
    region.store(6, 90);
    region.advise(2..4, libc::MADV_DONTNEED).unwrap();
    assert!(!region.state(2).contains(Categories::PRESENT));
    assert_eq!(watcher.written(&region), [2, 3, 6]);
    assert_eq!(loads(&region), [1, 2, 0, 0, 5, 6, 90, 8]);
    assert_eq!(watcher.written(&region), [], "zeros that are read");
}

#[test]
fn dontneed_of_a_private_copy_that_was_harvested_reads_not_written() {
    needs!(wp_async);
    let watcher = Watcher::of_self();
    let region = private_file();
    watcher.settle(&region);
    region.advise(2..4, libc::MADV_DONTNEED).unwrap();
    assert_eq!(watcher.written(&region), []);
    assert_eq!(loads(&region), [1, 2, OF_FILE, OF_FILE, 5, 6, 7, 8]);
    // Copies stored since the harvest are another thing: those read written.
    region.store(5, 90);
    region.advise(5..6, libc::MADV_DONTNEED).unwrap();
    assert_eq!(watcher.written(&region), [5]);
}

#[test]
fn dontneed_of_shared_memory_forgets_no_write() {
    needs!(wp_async);
    let watcher = Watcher::of_self();
    for (kind, region) in shared_kinds() {
        watcher.settle(&region);
        region.store(3, 90);
        region.advise(2..6, libc::MADV_DONTNEED).unwrap();
        assert_eq!(watcher.written(&region), [3], "{kind}");
        region.store(4, 91);
        assert_eq!(watcher.written(&region), [4], "{kind}");
        assert_eq!(loads(&region), [1, 2, 3, 90, 91, 6, 7, 8], "{kind}");
    }
}

#[test]
fn locked_memory_is_dropped_by_dontneed_locked_only() {
    let test = "locked_memory_is_dropped_by_dontneed_locked_only";
    let region = private();
    region.lock(0..PAGES).unwrap();
    assert!(has_flag(&region, 0, "lo"));
    let answer = region.advise(2..4, libc::MADV_DONTNEED);
    assert!(refused_with(answer, libc::EINVAL));
    assert_eq!(loads(&region), numbered());
    if advise_or_skip(test, &region, 2..4, libc::MADV_DONTNEED_LOCKED) {
        assert_eq!(loads(&region), [1, 2, 0, 0, 5, 6, 7, 8]);
    }
}

#[test]
fn dontneed_locked_reads_written() {
    needs!(wp_async);
    let watcher = Watcher::of_self();
    let region = private();
    region.lock(0..PAGES).unwrap();
    watcher.settle(&region);
    region.advise(2..4, libc::MADV_DONTNEED_LOCKED).unwrap();
    assert_eq!(watcher.written(&region), [2, 3]);
    assert_eq!(loads(&region), [1, 2, 0, 0, 5, 6, 7, 8]);
}

// REMOVE: a hole in the object behind the mapping.

#[test]
fn remove_zeroes_shared_memory_and_is_refused_for_private() {
    for (kind, region) in shared_kinds() {
        region.advise(2..4, libc::MADV_REMOVE).unwrap();
        assert_eq!(loads(&region), [1, 2, 0, 0, 5, 6, 7, 8], "{kind}");
    }
    for (region, errno) in [(private(), libc::EINVAL), (private_file(), libc::EACCES)] {
        let answer = region.advise(2..4, libc::MADV_REMOVE);
        assert!(refused_with(answer, errno));
        assert_eq!(loads(&region), numbered());
    }
    for (kind, region) in shared_kinds() {
        region.lock(2..4).unwrap();
        let answer = region.advise(2..4, libc::MADV_REMOVE);
        assert!(refused_with(answer, libc::EINVAL), "{kind}");
        assert_eq!(loads(&region), numbered(), "{kind}");
    }
}

#[test]
fn remove_reads_not_written() {
    needs!(wp_async);
    let watcher = Watcher::of_self();
    for (kind, region) in shared_kinds() {
        watcher.settle(&region);
        region.advise(2..4, libc::MADV_REMOVE).unwrap();
        assert_eq!(watcher.written(&region), [], "{kind}");
        assert_eq!(loads(&region), [1, 2, 0, 0, 5, 6, 7, 8], "{kind}");
    }
}

// HWPOISON: a page that can no longer be read. Not done to the machine's memory here: a marker of the
// kernel makes a page that behaves the same.

#[test]
fn a_poisoned_page_kills_its_reader_and_is_named_to_others() {
    let region = Region::private(PAGES);
    for page in (0..PAGES).filter(|page| *page != 3) {
        region.store(page, 1);
    }
    if !poison::install_or_skip(
        "a_poisoned_page_kills_its_reader_and_is_named_to_others",
        &region,
        3,
    ) {
        return;
    }
    let read = run_to_end(|| i32::from(region.load(3)));
    assert!(matches!(read, Ok(0) | Err(libc::SIGBUS)), "{read:?}");
    let memory = ProcessMemory::open(std::process::id().cast_signed()).unwrap();
    let mut bytes = vec![9u8; PAGES * PAGE];
    let unreadable = memory
        .read_pages(PageSize::KIB_4, &[region.pages()], &mut bytes)
        .unwrap();
    assert_eq!(unreadable, [region.range(3..4)], "and what follows is read");
    assert_eq!((bytes[2 * PAGE], bytes[4 * PAGE]), (1, 1));
    assert_eq!(bytes[3 * PAGE..4 * PAGE], [0; PAGE]);
}

#[test]
fn a_page_that_is_poisoned_reads_written() {
    needs!(wp_async);
    let test = "a_page_that_is_poisoned_reads_written";
    let watcher = Watcher::of_self();
    let region = private();
    watcher.settle(&region);
    region.advise(3..4, libc::MADV_DONTNEED).unwrap();
    assert_eq!(watcher.written(&region), [3]);
    // The slot holds a marker now, and the kernel poisons only what is quite empty.
    region.advise(3..4, libc::MADV_DONTNEED).unwrap();
    if !poison::by_or_skip(test, &watcher.protector, &region, 3) {
        return;
    }
    let state = region.state(3);
    assert!(
        state.contains(Categories::WRITTEN | Categories::SWAPPED),
        "{state:?}"
    );
    assert_eq!(watcher.written(&region), [3]);
    assert_eq!(watcher.written(&region), [], "it stays as it is");
}

// FREE: the content may go later.

#[test]
fn free_keeps_content_until_memory_is_short_and_a_store_cancels_it() {
    let region = private();
    region.advise(2..6, libc::MADV_FREE).unwrap();
    region.store(3, 90);
    for page in 0..PAGES {
        let held = region.load(page);
        let kept = if page == 3 { 90 } else { page as u8 + 1 };
        let may_go = (2..6).contains(&page) && page != 3;
        assert!(held == kept || may_go && held == 0, "page {page}: {held}");
    }
    for (kind, region) in shared_kinds() {
        let answer = region.advise(2..6, libc::MADV_FREE);
        assert!(refused_with(answer, libc::EINVAL), "{kind}");
    }
}

#[test]
fn free_forgets_no_write_and_the_store_that_cancels_it_is_seen() {
    needs!(wp_async);
    // Without swap a freed page stays, unless memory is short.
    let _machine = Machine::lock();
    let watcher = Watcher::of_self();
    let region = private();
    watcher.settle(&region);
    region.store(2, 90);
    region.advise(1..6, libc::MADV_FREE).unwrap();
    let written = watcher.written(&region);
    assert!(written.contains(&2), "{written:?}");
    region.store(4, 91);
    assert!(watcher.written(&region).contains(&4));
    assert_eq!(region.load(4), 91);
}

// GUARD_INSTALL and GUARD_REMOVE.

#[test]
fn a_guard_takes_content_for_good_and_kills_who_touches_it() {
    let test = "a_guard_takes_content_for_good_and_kills_who_touches_it";
    let region = private();
    if !advise_or_skip(test, &region, 2..4, MADV_GUARD_INSTALL) {
        return;
    }
    let read = |page| run_to_end(|| i32::from(region.load(page)));
    assert_eq!((read(1), read(2)), (Ok(2), Err(libc::SIGSEGV)));
    region.advise(0..PAGES, MADV_GUARD_REMOVE).unwrap();
    assert_eq!(loads(&region), [1, 2, 0, 0, 5, 6, 7, 8]);
}

#[test]
fn a_guard_stays_whatever_else_is_done_to_its_mapping() {
    let test = "a_guard_stays_whatever_else_is_done_to_its_mapping";
    let region = private();
    if !advise_or_skip(test, &region, 2..4, MADV_GUARD_INSTALL) {
        return;
    }
    // Each reader is a child: guards are inherited.
    let kills = |page| run_to_end(|| i32::from(region.load(page))) == Err(libc::SIGSEGV);
    let harmless = [
        libc::MADV_DONTNEED,
        libc::MADV_FREE,
        libc::MADV_COLD,
        libc::MADV_PAGEOUT,
        MADV_GUARD_INSTALL,
        libc::MADV_RANDOM,
    ];
    for advice in harmless {
        region.advise(2..4, advice).unwrap();
        assert!(kills(2) && kills(3), "{advice}");
    }
    region.protect(1..3, libc::PROT_READ);
    region.protect(1..3, pagetide_testing::READ_WRITE);
    assert!(kills(2) && kills(3));
    // What would have to touch it fails.
    for advice in [libc::MADV_POPULATE_READ, libc::MADV_POPULATE_WRITE] {
        assert!(refused_with(region.advise(2..3, advice), libc::EFAULT));
    }
    assert!(region.lock(3..4).is_err());
    assert_eq!((region.load(1), region.load(4)), (2, 5));
    // Nobody can put one where memory is locked; one that is there can be taken away.
    assert!(refused_with(
        region.advise(3..4, MADV_GUARD_INSTALL),
        libc::EINVAL
    ));
    region.advise(3..4, MADV_GUARD_REMOVE).unwrap();
    assert_eq!(region.load(3), 0);
    let there = Region::private(1);
    region.move_to(2..3, &there, 0, false);
    assert_eq!(run_to_end(|| i32::from(there.load(0))), Err(libc::SIGSEGV));
}

#[test]
fn a_guard_over_a_file_hides_it_and_takes_private_copies() {
    let test = "a_guard_over_a_file_hides_it_and_takes_private_copies";
    let region = private_file();
    if !advise_or_skip(test, &region, 2..4, MADV_GUARD_INSTALL) {
        return;
    }
    let read = |page| run_to_end(|| i32::from(region.load(page)));
    assert_eq!((read(1), read(2)), (Ok(2), Err(libc::SIGSEGV)));
    region.advise(0..PAGES, MADV_GUARD_REMOVE).unwrap();
    assert_eq!(loads(&region), [1, 2, OF_FILE, OF_FILE, 5, 6, 7, 8]);
    for (kind, region) in shared_kinds() {
        region.advise(2..4, MADV_GUARD_INSTALL).unwrap();
        region.advise(2..4, MADV_GUARD_REMOVE).unwrap();
        assert_eq!(loads(&region), numbered(), "{kind}");
    }
}

#[test]
fn a_guard_over_private_memory_reads_written_when_it_comes_and_when_it_goes() {
    needs!(wp_async);
    let test = "a_guard_over_private_memory_reads_written_when_it_comes_and_when_it_goes";
    let watcher = Watcher::of_self();
    let region = private();
    watcher.settle(&region);
    if !advise_or_skip(test, &region, 2..4, MADV_GUARD_INSTALL) {
        return;
    }
    assert_eq!(watcher.written(&region), [2, 3]);
    region.advise(2..4, MADV_GUARD_REMOVE).unwrap();
    assert_eq!(watcher.written(&region), [2, 3]);
    assert_eq!(loads(&region), [1, 2, 0, 0, 5, 6, 7, 8]);
}
