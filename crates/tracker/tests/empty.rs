//! Prevents that memory which holds nothing costs page tables when it is tracked, and that what is stored to there is
//! missed because it was never marked.

use nix::libc;
use pagetide_kernel::pagemap_scan::Categories;
use pagetide_pages::PageCount;
use pagetide_testing::{PAGE, Region, needs};
use pagetide_tracker::{GivenBack, RefusedReason, Tracker, WpAsync};

/// Pages that one page table serves.
const TABLE: usize = 512;
const GIB: usize = 1 << 18;

/// Page tables of this process in bytes. Other tests of this file change them, too, so they run one at a time.
fn page_tables() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPTE:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() << 10
}

fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Address space of `pages` pages that is not accounted for.
fn reserved(pages: usize) -> Region {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let region = Region::map(
        pages * PAGE,
        libc::PROT_READ | libc::PROT_WRITE,
        flags,
        None,
    )
    .unwrap();
    let _ = region.advise(0..pages, libc::MADV_NOHUGEPAGE);
    region
}

fn holds(written: &pagetide_pages::PageSet, region: &Region, page: usize) -> bool {
    let address = region.address(page);
    let first = pagetide_pages::PageSize::KIB_4.index_of(address);
    written.contains(first)
}

#[test]
fn t38_memory_that_holds_nothing_costs_no_page_tables() {
    needs!(wp_async);
    let _alone = alone();
    let region = reserved(64 * GIB);
    region.store(GIB, 1);
    let before = page_tables();
    let mut tracker = WpAsync::of_self().unwrap();
    let first = tracker.harvest(&[region.pages()]).unwrap();
    assert_eq!(first.written().count(), PageCount(64 * GIB as u64));
    first.commit();
    for page in [5 * GIB + 7, 5 * GIB + 7, GIB, 40 * GIB] {
        region.store(page, 2);
        let harvest = tracker.harvest(&[region.pages()]).unwrap();
        assert!(
            holds(harvest.written(), &region, page),
            "page {page} is missed"
        );
        harvest.commit();
    }
    // What was harvested where it holds something is clean until it is stored to again.
    let harvest = tracker.harvest(&[region.pages()]).unwrap();
    for page in [GIB, 5 * GIB + 7, 40 * GIB, GIB + 1] {
        assert!(
            !holds(harvest.written(), &region, page),
            "page {page} was not written"
        );
    }
    assert!(
        harvest.written().ranges().len() < 16,
        "the empty parts stay few ranges"
    );
    assert_eq!(harvest.give_back(), GivenBack::InKernel);
    assert!(page_tables() <= before + (1 << 20));
}

/// Another tracker, which knows nothing of the one before, does not fill the page tables either, and sees the same.
#[test]
fn t38_what_was_passed_over_is_passed_over_by_the_next_tracker() {
    needs!(wp_async);
    let _alone = alone();
    let region = reserved(4 * GIB);
    let mut tracker = WpAsync::of_self().unwrap();
    tracker.harvest(&[region.pages()]).unwrap().commit();
    let before = page_tables();
    region.store(GIB, 1);
    region.store(2 * GIB, 1);
    region
        .advise(2 * GIB..2 * GIB + TABLE, libc::MADV_DONTNEED)
        .unwrap();
    let uffd = rustix_dup(&tracker);
    let mut next = WpAsync::with(
        uffd,
        pagetide_kernel::pagemap_scan::Pagemap::of_self().unwrap(),
    );
    let expected = next.survey(&[region.pages()]).unwrap();
    assert!(
        expected.is_some_and(|pages| pages < PageCount(4096)),
        "{expected:?}"
    );
    let harvest = next.harvest(&[region.pages()]).unwrap();
    assert!(holds(harvest.written(), &region, GIB));
    assert!(
        holds(harvest.written(), &region, 2 * GIB),
        "a page that was dropped"
    );
    harvest.commit();
    assert!(page_tables() <= before + (256 << 10));
}

/// The userfaultfd of a tracker, as a later tracker of the same process has it.
fn rustix_dup(tracker: &WpAsync) -> pagetide_kernel::userfaultfd::WriteProtector {
    use std::os::fd::AsFd;
    let copy = tracker.protector().as_fd().try_clone_to_owned().unwrap();
    pagetide_kernel::userfaultfd::WriteProtector::already_enabled(copy)
}

#[test]
fn t38_what_would_take_too_many_page_tables_is_refused_by_name() {
    needs!(wp_async);
    let _alone = alone();
    // Too small to be passed over.
    let small = Region::private(6 * TABLE);
    let full = Region::filled(6 * TABLE, 1);
    let mut tracker = WpAsync::of_self().unwrap().with_page_table_limit(8192);
    let mut both = [small.pages(), full.pages()];
    both.sort_unstable();
    let harvest = tracker.harvest(&both).unwrap();
    let refused = &harvest.layout().refused;
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0].pages, small.pages());
    assert!(
        matches!(refused[0].reason, RefusedReason::PageTables { needed_bytes, .. } if needed_bytes > 8192)
    );
    assert!(
        !small.state(7).contains(Categories::WP_ALLOWED),
        "it is not registered"
    );
    assert!(holds(harvest.written(), &full, 100));
    harvest.commit();
    small.fill(0..6 * TABLE, 1);
    let harvest = tracker.harvest(&both).unwrap();
    assert!(
        harvest.layout().refused.is_empty(),
        "it has its page tables now"
    );
    assert!(holds(harvest.written(), &small, 100));
}

#[test]
fn what_is_left_for_later_is_new_again_and_not_marked() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let mut tracker = WpAsync::of_self().unwrap();
    let harvest = tracker
        .harvest_but(&[region.pages()], &|fresh| fresh.clone())
        .unwrap();
    assert_eq!(region.positions(&harvest.layout().left).len(), 8);
    assert!(harvest.written().is_empty() && harvest.layout().fresh.is_empty());
    harvest.commit();
    assert!(!region.state(0).contains(Categories::WP_ALLOWED));
    let harvest = tracker.harvest(&[region.pages()]).unwrap();
    assert_eq!(region.positions(harvest.written()).len(), 8);
    harvest.commit();
}

#[test]
fn t40_what_is_released_has_no_marks_and_is_new_again() {
    needs!(wp_async);
    let region = Region::filled(8, 1);
    let mut tracker = WpAsync::of_self().unwrap();
    tracker.harvest(&[region.pages()]).unwrap().commit();
    assert!(!region.state(3).contains(Categories::WRITTEN));
    tracker.release(&[region.pages()]).unwrap();
    assert!(
        region.state(3).contains(Categories::WRITTEN),
        "a mark is left"
    );
    assert!(!region.state(3).contains(Categories::WP_ALLOWED));
    let harvest = tracker.harvest(&[region.pages()]).unwrap();
    assert_eq!(region.positions(&harvest.layout().fresh).len(), 8);
    assert_eq!(region.positions(harvest.written()).len(), 8);
    harvest.commit();
}
