//! What the tests of own memory share: an `OwnMemory` over regions, and its snapshots compared with what
//! `/proc/self/mem` says the memory holds.

#![allow(unsafe_code, dead_code)]

use pagetide::{OwnMemory, OwnMemoryError, OwnMemoryOptions, OwnRegion, OwnSnapshot, Placement};
use pagetide_pages::PageIndex;
use pagetide_snapshot::{MemoryStorage, Store, View};
use pagetide_testing::{PAGE, Region};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A store in memory.
pub fn store() -> Store {
    Store::create(Arc::new(MemoryStorage::new())).expect("a new store")
}

/// The pages of a region, at `first` of the space.
pub fn place(region: &Region, first: u64) -> Placement {
    let length_bytes = region.page_count() * PAGE;
    // SAFETY: a region is memory of the test alone, to which no reference exists; the tests keep it as long as
    // what they make of it.
    let named = unsafe { OwnRegion::new(region.start() as *mut u8, length_bytes) };
    Placement::new(named, PageIndex(first))
}

/// An `OwnMemory` of one region, at page 0.
pub fn own(region: &Region) -> OwnMemory {
    own_at(place(region, 0))
}

/// The same of a placement.
pub fn own_at(place: Placement) -> OwnMemory {
    OwnMemory::new(store(), &[place], OwnMemoryOptions::default()).expect("a good region")
}

/// All bytes of a region.
pub fn content(region: &Region) -> Vec<u8> {
    let memory = File::open("/proc/self/mem").expect("memory");
    let mut bytes = vec![0; region.page_count() * PAGE];
    let read = memory.read_exact_at(&mut bytes, region.start());
    read.expect("all of it is mapped");
    bytes
}

/// The pages of a snapshot, from page 0 on, that are not those of `bytes`.
pub fn differing_from(view: &View, bytes: &[u8]) -> Vec<usize> {
    let space = view.space_index("memory").expect("the space");
    let mut stored = vec![0; PAGE];
    let pages = bytes.chunks_exact(PAGE).enumerate();
    let differ = pages.filter(|(page, bytes)| {
        let read = view.read_page(space, PageIndex(*page as u64), &mut stored);
        read.is_err() || stored != *bytes
    });
    differ.map(|(page, _)| page).collect()
}

/// Numbers that look random, the same in each run.
pub struct Numbers(pub u64);

impl Numbers {
    /// One below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Captures and stores.
pub fn snap(own: &mut OwnMemory) -> Result<OwnSnapshot, OwnMemoryError> {
    own.capture()?.commit()
}

/// What a page holds; `None` if it cannot be read.
pub fn page_now(region: &Region, page: usize) -> Option<Vec<u8>> {
    let memory = File::open("/proc/self/mem").expect("memory");
    let mut bytes = vec![0; PAGE];
    let read = memory.read_exact_at(&mut bytes, region.address(page));
    read.is_ok().then_some(bytes)
}

/// The pages of a snapshot, of a region at page 0, that are not what memory holds.
pub fn differing(view: &View, region: &Region) -> Vec<usize> {
    let space = view.space_index("memory").expect("the space");
    let differs = |&page: &usize| {
        let mut stored = vec![0; PAGE];
        let read = view.read_page(space, PageIndex(page as u64), &mut stored);
        read.ok().map(|_| stored) != page_now(region, page)
    };
    (0..region.page_count()).filter(differs).collect()
}

/// Takes a snapshot and demands that it is what memory holds.
#[track_caller]
pub fn exact(own: &mut OwnMemory, region: &Region, what: &str) -> OwnSnapshot {
    let snapshot = snap(own).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(differing(&snapshot.view, region), [0; 0], "{what}");
    snapshot
}
