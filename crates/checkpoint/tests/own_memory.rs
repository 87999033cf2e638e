//! Prevents an embedder's snapshot that is not what the memory held when it was captured: every version
//! is compared with a copy the test itself made, through commits, give-backs and rollbacks.

#![allow(unsafe_code)]

use pagetide::{OwnMemory, OwnMemoryError, OwnMemoryOptions, OwnRegion, Placement};
use pagetide_kernel::maps::{self, Mapping, MappingName};
use pagetide_kernel::shared_memory::{self, AttachedSegment, Segment};
use pagetide_pages::{PageCount, PageIndex};
use pagetide_snapshot::{SnapshotKind, Store, View};

const PAGE: usize = 4096;

/// Page-aligned memory of our own.
struct Block {
    bytes: Vec<u8>,
    offset: usize,
    pages: usize,
}

impl Block {
    fn new(pages: usize) -> Self {
        let bytes = vec![0; (pages + 1) * PAGE];
        let offset = bytes.as_ptr().align_offset(PAGE);
        Self {
            bytes,
            offset,
            pages,
        }
    }

    fn memory(&mut self) -> &mut [u8] {
        &mut self.bytes[self.offset..][..self.pages * PAGE]
    }

    fn placement(&mut self, first_page: u64) -> Placement {
        let address = self.memory().as_mut_ptr();
        placed(address, self.pages * PAGE, first_page)
    }
}

fn placed(address: *mut u8, length_bytes: usize, first_page: u64) -> Placement {
    // SAFETY: the memory is a block's, or nobody's. A block outlives what is made of it, and nothing of it is
    // borrowed while it is put back.
    let region = unsafe { OwnRegion::new(address, length_bytes) };
    Placement::new(region, PageIndex(first_page))
}

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::create_directory(directory.path().join("store")).expect("a new store");
    (directory, store)
}

fn pages_of(view: &View, first: u64, pages: usize) -> Vec<u8> {
    let space = view.space_index("arena").expect("the space is there");
    let mut all = Vec::new();
    for page in first..first + pages as u64 {
        let mut bytes = vec![0; PAGE];
        view.read_page(space, PageIndex(page), &mut bytes)
            .unwrap_or_else(|error| panic!("page {page}: {error}"));
        all.extend(bytes);
    }
    all
}

fn options() -> OwnMemoryOptions {
    let mut options = OwnMemoryOptions::default();
    options.space = "arena".to_owned();
    options
}

#[test]
fn every_version_is_what_the_memory_held() {
    let (_directory, store) = store();
    let (mut low, mut high) = (Block::new(300), Block::new(100));
    // In the space the blocks lie in another order than in memory, and far apart.
    let places = [low.placement(1 << 20), high.placement(5)];
    let mut own = OwnMemory::new(store.clone(), &places, options()).expect("two good ranges");
    let mut versions = Vec::new();
    for round in 0..12usize {
        for k in 0..20 * round {
            low.memory()[(k * 7919 + round * 131) % (300 * PAGE)] = (round + k) as u8;
            high.memory()[(k * 104_729 + round) % (100 * PAGE)] = (round * k) as u8;
        }
        let mut captured = own.capture().expect("captured");
        captured
            .attach("round", vec![round as u8])
            .expect("attached");
        let truth = (low.memory().to_vec(), high.memory().to_vec());
        // Written between capture and commit: belongs to the next version.
        low.memory()[round * PAGE] ^= 0xff;
        let snapshot = captured.commit().expect("stored");
        let expected = if round == 0 {
            SnapshotKind::Full
        } else {
            SnapshotKind::Delta
        };
        assert_eq!(snapshot.view.info().kind, expected);
        versions.push((snapshot.view.id(), truth));
    }
    for (round, (id, (low, high))) in versions.iter().enumerate() {
        let view = store.view(*id).expect("a readable version");
        assert!(
            pages_of(&view, 1 << 20, 300) == *low,
            "low block, version {id}"
        );
        assert!(pages_of(&view, 5, 100) == *high, "high block, version {id}");
        assert_eq!(view.attachment("round"), Some(&[round as u8][..]));
    }
}

#[test]
fn a_delta_holds_what_was_written_and_no_more() {
    let (_directory, store) = store();
    let mut block = Block::new(2000);
    block.memory().fill(7);
    let mut own = OwnMemory::new(store, &[block.placement(0)], options()).expect("a good range");
    let full = own.capture().expect("captured").commit().expect("stored");
    assert_eq!(full.written_pages, PageCount(2000));
    for page in [3, 4, 900] {
        block.memory()[page * PAGE] = 1;
    }
    let delta = own.capture().expect("captured").commit().expect("stored");
    assert_eq!(delta.written_pages, PageCount(3));
    assert_eq!(delta.view.info().pages, PageCount(3));
}

#[test]
fn what_is_given_back_or_dropped_is_in_the_next_snapshot() {
    let (_directory, store) = store();
    let mut block = Block::new(64);
    let mut own = OwnMemory::new(store, &[block.placement(0)], options()).expect("a good range");
    own.capture().expect("captured").commit().expect("stored");
    block.memory()[5 * PAGE] = 5;
    own.capture().expect("captured").give_back();
    block.memory()[6 * PAGE] = 6;
    drop(own.capture().expect("captured"));
    let snapshot = own.capture().expect("captured").commit().expect("stored");
    assert_eq!(snapshot.written_pages, PageCount(2));
    assert!(pages_of(&snapshot.view, 0, 64) == block.memory());
}

#[test]
fn a_rollback_writes_only_what_differs_and_the_chain_goes_on() {
    let (_directory, store) = store();
    let mut block = Block::new(64);
    block.memory()[PAGE] = 1;
    let mut own = OwnMemory::new(store, &[block.placement(0)], options()).expect("a good range");
    let first = own.capture().expect("captured").commit().expect("stored");
    let truth = block.memory().to_vec();
    block.memory()[PAGE] = 2;
    block.memory()[9 * PAGE] = 9;
    own.capture().expect("captured").commit().expect("stored");
    block.memory()[20 * PAGE] = 20;
    assert_eq!(own.roll_back(&first.view).expect("put back"), PageCount(3));
    assert!(block.memory() == truth);
    let after = own.capture().expect("captured").commit().expect("stored");
    assert_eq!(after.view.info().kind, SnapshotKind::Delta);
    assert!(pages_of(&after.view, 0, 64) == truth);
}

#[test]
fn bad_ranges_are_named() {
    let (_directory, store) = store();
    let mut block = Block::new(8);
    let good = block.placement(0);
    let start = block.memory().as_mut_ptr();
    let bad = [
        placed(start.wrapping_add(1), 8 * PAGE, 0),
        placed(start, 0, 0),
        placed(start, 8 * PAGE + 1, 0),
        placed((!0xfff_usize) as *mut u8, 1 << 40, 0),
    ];
    for (place, wrong) in bad.into_iter().enumerate() {
        let outcome = OwnMemory::new(store.clone(), &[wrong], options());
        assert!(
            matches!(outcome, Err(OwnMemoryError::Range { .. })),
            "range {place}"
        );
    }
    let unmapped = placed(PAGE as *mut u8, 8 * PAGE, 0);
    let outcome = OwnMemory::new(store.clone(), &[unmapped], options());
    assert!(matches!(outcome, Err(OwnMemoryError::NotMapped { .. })));
    let twice = OwnMemory::new(store, &[good, good], options());
    assert!(matches!(twice, Err(OwnMemoryError::Overlap { .. })));
}

/// A segment of System V shared memory, which goes when it is detached.
fn sparse_segment(length_bytes: u64) -> Option<(AttachedSegment, u64)> {
    let id = i32::try_from(std::process::id() % 30_000).expect("a small number");
    let wanted = Segment {
        id,
        length_bytes,
        key: 0,
        mode: 0o600,
        uid: 0,
        gid: 0,
        attached: 0,
    };
    // Choosing its number is for root.
    shared_memory::make_segment(&wanted).ok()?;
    let attached = AttachedSegment::attach(id).expect("attach it");
    shared_memory::remove_segment(id).expect("let it go with us");
    let mappings = maps::mappings(std::process::id().cast_signed()).expect("read the mappings");
    let of_segment = |mapping: &&Mapping| {
        matches!(mapping.name, MappingName::SystemV(_))
            && mapping.inode == u64::from(id.unsigned_abs())
    };
    let mapping = mappings.iter().find(of_segment).expect("it is mapped");
    Some((attached, mapping.start))
}

/// How many KiB of shared memory are allocated behind the mapping at `address`.
fn allocated_kib(address: u64, length_bytes: u64) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let end = address + length_bytes;
    let link = format!("/proc/self/map_files/{address:x}-{end:x}");
    let metadata = std::fs::metadata(link).expect("look at what is mapped");
    metadata.blocks() / 2
}

#[test]
fn t37_holes_of_shared_memory_are_not_allocated() {
    const LENGTH: u64 = 64 << 20;
    let (_directory, store) = store();
    let Some((memory, address)) = sparse_segment(LENGTH) else {
        eprintln!("SKIPPED t37_holes_of_shared_memory_are_not_allocated: no segment can be made");
        assert!(
            std::env::var_os("CI").is_none(),
            "the number of a segment can be chosen by root"
        );
        return;
    };
    memory.write_at(5 * PAGE, &[1; PAGE]);
    let place = placed(address as *mut u8, LENGTH as usize, 0);
    let mut own = OwnMemory::new(store, &[place], options()).expect("a good range");
    let full = own.capture().expect("captured").commit().expect("stored");
    assert_eq!(allocated_kib(address, LENGTH), 4);
    assert_eq!(full.written_pages, PageCount(1));
    memory.write_at(9000 * PAGE, &[2; PAGE]);
    let delta = own.capture().expect("captured").commit().expect("stored");
    assert_eq!(delta.written_pages, PageCount(1));
    own.roll_back(&full.view).expect("put back");
    assert_eq!(allocated_kib(address, LENGTH), 8);
    assert!(pages_of(&full.view, 0, 6)[5 * PAGE..] == [1; PAGE]);
    assert!(pages_of(&delta.view, 9000, 1) == [2; PAGE]);
    assert!(
        memory.to_vec()[9000 * PAGE..][..PAGE] == [0; PAGE],
        "it was put back"
    );
}
