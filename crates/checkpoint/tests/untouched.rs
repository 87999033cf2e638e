//! Prevents that memory of the calling process which was never touched costs page tables when it is captured, and that
//! what is stored to in it is missed.

#![allow(unsafe_code)]

use pagetide::{OwnMemory, OwnMemoryOptions, OwnRegion, Placement};
use pagetide_kernel::probe::Probe;
use pagetide_pages::{PageCount, PageIndex};
use pagetide_snapshot::Store;

const PAGE: usize = 4096;
const PAGES: usize = 16 << 18;

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
