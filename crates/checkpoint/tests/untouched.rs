//! Prevents that memory of the calling process which was never touched costs page tables when it is captured, and that
//! what is stored to in it is missed.

#![allow(unsafe_code)]

mod snaps;

use nix::libc;
use pagetide::{ComparedBecause, OwnMemory, OwnMemoryOptions, OwnRegion, OwnSnapshot, Placement};
use pagetide_kernel::probe::Probe;
use pagetide_pages::{PageCount, PageIndex};
use pagetide_snapshot::Store;
use pagetide_testing::{Region, needs};
use snaps::{differing, exact, place, snap, store};

const PAGE: usize = 4096;
const PAGES: usize = 16 << 18;
/// Pages that one page table serves.
const TABLE: usize = 512;

/// The tests look at the page tables of the whole process, so they run one at a time.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn page_tables() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("own status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmPTE:"));
    let kib = line.expect("VmPTE").trim().trim_end_matches(" kB");
    kib.parse().expect("a number")
}

#[test]
fn t38_own_memory_that_was_never_touched_costs_no_page_tables() {
    if let Err(reason) = Probe::of_this_kernel().wp_async {
        eprintln!("SKIPPED t38_own_memory_that_was_never_touched_costs_no_page_tables: {reason}");
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::create_directory(directory.path().join("store")).expect("a new store");
    // Zeros by the allocator are memory that nobody touched.
    let mut bytes = vec![0u8; (PAGES + 1) * PAGE];
    let offset = bytes.as_ptr().align_offset(PAGE);
    // SAFETY: the bytes outlive what is made of them, and nothing is put back.
    let region = unsafe { OwnRegion::new(bytes[offset..].as_mut_ptr(), PAGES * PAGE) };
    let place = Placement::new(region, PageIndex(0));
    let before = page_tables();
    let mut memory =
        OwnMemory::new(store, &[place], OwnMemoryOptions::default()).expect("a good range");
    memory
        .capture()
        .expect("captured")
        .commit()
        .expect("stored");
    for (round, page) in [PAGES / 2, PAGES / 2, PAGES / 3, 0].into_iter().enumerate() {
        let value = round as u8 + 1;
        bytes[offset + page * PAGE] = value;
        let captured = memory.capture().expect("captured");
        let snapshot = captured.commit().expect("stored");
        assert!(snapshot.written_pages < PageCount(1024), "{snapshot:?}");
        let view = snapshot.view;
        let mut stored = vec![9; PAGE];
        view.read_page(0, PageIndex(page as u64), &mut stored)
            .expect("the page");
        assert_eq!(stored[0], value, "page {page}");
        view.read_page(0, PageIndex(page as u64 + 1), &mut stored)
            .expect("the page after it");
        assert_eq!(stored[0], 0);
    }
    let after = page_tables();
    assert!(after <= before + 1024, "{before} KiB became {after} KiB");
}

/// Names `region`, and nothing else, with the reason.
#[track_caller]
fn assert_compared(snapshot: &OwnSnapshot, region: &Region) {
    let [named] = &snapshot.not_tracked[..] else {
        panic!("{:?}", snapshot.not_tracked);
    };
    assert_eq!((named.start, named.end), (region.start(), region.end()));
    let ComparedBecause::Refused(why) = &named.reason else {
        panic!("{named:?}");
    };
    assert!(why.contains("page tables"), "{why}");
    assert_eq!(named.pid, std::process::id().cast_signed());
}

#[test]
fn t38_own_memory_that_would_take_too_many_page_tables_is_compared_and_named() {
    needs!(wp_async);
    let _alone = alone();
    // One page in four page tables is touched: what is empty between is too short to be passed over.
    let sparse = Region::private(256 * TABLE);
    let _ = sparse.advise(0..256 * TABLE, libc::MADV_NOHUGEPAGE);
    for page in (0..256 * TABLE).step_by(4 * TABLE) {
        sparse.store(page, 3);
    }
    let full = Region::filled(64, 5);
    let beside = sparse.page_count() as u64;
    let mut options = OwnMemoryOptions::default();
    options.page_table_limit_bytes = Some(0);
    let places = [place(&sparse, 0), place(&full, beside)];
    let mut own = OwnMemory::new(store(), &places, options).expect("good regions");
    let before = page_tables();
    assert_compared(&snap(&mut own).expect("a full one"), &sparse);
    sparse.store(8 * TABLE, 7);
    sparse.store(9 * TABLE + 1, 8);
    full.store(3, 9);
    let delta = snap(&mut own).expect("a delta");
    assert_compared(&delta, &sparse);
    assert_eq!(delta.written_pages, PageCount(3));
    let nothing = snap(&mut own).expect("a delta of nothing");
    assert_compared(&nothing, &sparse);
    assert_eq!(nothing.written_pages, PageCount(0));
    let after = page_tables();
    assert!(after <= before + 128, "{before} KiB became {after} KiB");
    let mut stored = vec![0; PAGE];
    let read = nothing
        .view
        .read_page(0, PageIndex(beside + 3), &mut stored);
    read.expect("a page of the other region");
    assert_eq!(stored[0], 9);
    // Looking at each page makes its page table, so that none is to be made any more.
    assert_eq!(differing(&nothing.view, &sparse), [0; 0]);
    let tracked = exact(&mut own, &sparse, "tracked");
    assert_eq!(tracked.not_tracked, []);
    sparse.store(5, 1);
    let written = exact(&mut own, &sparse, "a page written");
    assert_eq!(written.written_pages, PageCount(1));
}
