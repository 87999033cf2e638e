//! Prevents that a rollback reads all memory to find the few pages that differ. It is alone in its program: what a process has
//! read is counted for all its threads.

#![allow(unsafe_code)]

use pagetide::{OwnMemory, OwnMemoryOptions, OwnRegion, Placement};
use pagetide_kernel::userfaultfd::WriteProtector;
use pagetide_pages::{PageCount, PageIndex};
use pagetide_snapshot::{MemoryStorage, Store};
use std::sync::Arc;

const PAGE: usize = 4096;
const PAGES: usize = 16_384;

/// Bytes that this process has read from files, `/proc/self/mem` among them.
fn read_bytes() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").expect("read what was read");
    let told = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    told.expect("rchar").parse().expect("a number")
}

#[test]
fn only_what_was_written_or_differs_by_hash_is_read() {
    if WriteProtector::of_self().is_err() {
        eprintln!("SKIPPED only_what_was_written_or_differs_by_hash_is_read: no write-protection");
        return;
    }
    let mut bytes = vec![5u8; (PAGES + 1) * PAGE];
    let skip = bytes.as_ptr().align_offset(PAGE);
    // SAFETY: the memory outlives what is made of it, and is not borrowed while it is put back.
    let region = unsafe { OwnRegion::new(bytes.as_mut_ptr().wrapping_add(skip), PAGES * PAGE) };
    let place = Placement::new(region, PageIndex(0));
    let store = Store::create(Arc::new(MemoryStorage::new())).expect("a new store");
    let mut own = OwnMemory::new(store, &[place], OwnMemoryOptions::default()).expect("good");
    let first = own.capture().unwrap().commit().unwrap().view;
    for page in 0..10 {
        bytes[skip + page * 1000 * PAGE] = 1;
    }
    own.capture().unwrap().commit().unwrap();
    for page in 0..5 {
        bytes[skip + (page * 1000 + 7) * PAGE] = 2;
    }
    let before = read_bytes();
    assert_eq!(own.roll_back(&first).unwrap(), PageCount(15));
    let read = read_bytes() - before;
    assert!(read < 2 << 20, "{read} bytes of {} were read", PAGES * PAGE);
    assert!(bytes[skip..][..PAGES * PAGE].iter().all(|&byte| byte == 5));
}
