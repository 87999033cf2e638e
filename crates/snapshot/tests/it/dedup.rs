//! Prevents that a page stored once has the bytes of another: found again in the same call, in an
//! earlier one, in another space, while its frame still fills, and after it was written over.

use crate::common::*;
use pagetide_pages::PageIndex;
use pagetide_snapshot::*;
use std::sync::Arc;

const COUNT: u64 = 600;

fn spaces() -> Vec<Space> {
    let space = |name, bytes| Space::new(name, size(bytes), vec![region(0, COUNT)]);
    vec![space("1:mem", 512), space("2:mem", 512), space("big", 1024)]
}

fn new_store() -> (MemoryStorage, Store) {
    let storage = MemoryStorage::new();
    let store = Store::create(Arc::new(storage.clone())).expect("a store");
    (storage, store)
}

fn unbacked(writer: &mut SnapshotWriter) {
    for space in 0..3 {
        let all = pages(0, COUNT);
        writer
            .put_state(space, all, PageState::Unbacked)
            .expect("put");
    }
}

fn seeded(seeds: impl Iterator<Item = u8>) -> Vec<u8> {
    seeds.flat_map(|seed| page(seed, 512)).collect()
}

/// The number of frames and of stored pages of a snapshot file.
fn stored(storage: &MemoryStorage, id: u64) -> (u64, u64) {
    let bytes = storage.get(&snapshot_name(id)).expect("a file");
    let (_, index) = sections(&bytes);
    (u64_at(&bytes, index + 8), u64_at(&bytes, index + 16))
}

#[test]
fn equal_pages_are_stored_once_wherever_they_are() {
    for threads in [1, 3] {
        for frame_bytes in [512, 1024, 1 << 20] {
            let (storage, store) = new_store();
            let lock = store.lock().expect("the lock");
            let options = WriteOptions {
                threads,
                frame_bytes,
                ..once()
            };
            let mut writer = store.begin(&lock, None, options).expect("a writer");
            writer.set_spaces(spaces()).expect("spaces");
            unbacked(&mut writer);
            // Ten kinds of pages in one call, in both directions; then the same in another space.
            let seeds = |n: u64| 20 + (n % 10) as u8;
            let here = seeded((0..COUNT).map(seeds));
            let there = seeded((0..COUNT).rev().map(seeds));
            writer.put_pages(0, &[(PageIndex(0), &here)]).expect("put");
            writer.put_pages(1, &[(PageIndex(0), &there)]).expect("put");
            let counters = writer.counters();
            assert_eq!(counters.stored_pages.0, 10);
            assert_eq!(counters.deduplicated_pages.0, 2 * COUNT - 10);
            let view = writer.commit().expect("commit");
            assert_eq!(stored(&storage, 1).1, 10);
            assert_eq!(view.info().pages.0, 2 * COUNT);
            let again = open(&storage).expect("a store");
            let again = again.view(SnapshotId(1)).expect("a view");
            for view in [&view, &again] {
                for (space, bytes) in [(0, &here), (1, &there)] {
                    let found = contents(view, space).expect("read");
                    for (number, bytes) in (0..).zip(bytes.chunks(512)) {
                        assert_eq!(found[&number], Content::of(bytes), "page {number}");
                    }
                }
            }
            assert!(verify(&store).ok);
        }
    }
}

#[test]
fn the_file_is_the_same_whatever_the_threads() {
    let frames = [1, 2, 5].map(|threads| {
        let (storage, store) = new_store();
        let lock = store.lock().expect("the lock");
        let options = WriteOptions { threads, ..once() };
        let mut writer = store.begin(&lock, None, options).expect("a writer");
        writer.set_spaces(spaces()).expect("spaces");
        unbacked(&mut writer);
        let bytes = seeded((0..COUNT).map(|n| (n * n % 41) as u8));
        writer.put_pages(1, &[(PageIndex(0), &bytes)]).expect("put");
        writer.commit().expect("commit");
        let file = storage.get(&snapshot_name(1)).expect("a file");
        let (metadata, index) = sections(&file);
        (file[212..metadata].to_vec(), file[index..].to_vec())
    });
    assert!(frames[0] == frames[1] && frames[0] == frames[2]);
}

#[test]
fn runs_of_pages_stored_together_stay_together() {
    let (storage, store) = new_store();
    let lock = store.lock().expect("the lock");
    let mut writer = store.begin(&lock, None, once()).expect("a writer");
    writer.set_spaces(spaces()).expect("spaces");
    unbacked(&mut writer);
    let bytes = seeded(20..60);
    for (space, first) in [(0, 0), (0, 100), (1, 7)] {
        let put = [(PageIndex(first), bytes.as_slice())];
        writer.put_pages(space, &put).expect("put");
    }
    writer.commit().expect("commit");
    let file = storage.get(&snapshot_name(1)).expect("a file");
    let (_, index) = sections(&file);
    let runs = (0..u64_at(&file, index) as usize).map(|number| index + 24 + 32 * number);
    let data: Vec<_> = runs
        .filter(|&at| file[at + 4] == 1)
        .map(|at| {
            (
                u64_at(&file, at + 8),
                u64_at(&file, at + 16),
                u64_at(&file, at + 24),
            )
        })
        .collect();
    assert_eq!(data, [(0, 40, 0), (100, 40, 0), (7, 40, 0)]);
}

#[test]
fn pages_of_another_size_or_another_snapshot_are_others() {
    let (storage, store) = new_store();
    let lock = store.lock().expect("the lock");
    let mut writer = store.begin(&lock, None, once()).expect("a writer");
    writer.set_spaces(spaces()).expect("spaces");
    unbacked(&mut writer);
    let small = page(30, 512);
    let big = [small.clone(), small.clone()].concat();
    writer.put_pages(0, &[(PageIndex(0), &big)]).expect("put");
    writer.put_pages(2, &[(PageIndex(0), &big)]).expect("put");
    assert_eq!(writer.counters().deduplicated_pages.0, 1);
    let parent = writer.commit().expect("commit");
    assert_eq!(stored(&storage, 1), (2, 2));
    let mut writer = store.begin(&lock, Some(&parent), once()).expect("a writer");
    writer.set_spaces(spaces()).expect("spaces");
    writer.put_pages(1, &[(PageIndex(5), &small)]).expect("put");
    let view = writer.commit().expect("commit");
    assert_eq!(stored(&storage, 2), (1, 1));
    assert_eq!(view.page_hash(1, PageIndex(5)), Some(hash(30, 512)));
    let found = contents(&view, 2).expect("read");
    assert_eq!(found[&0], Content::of(&big));
}

#[test]
fn a_page_that_was_written_over_still_has_its_bytes_for_others() {
    let (_, store) = new_store();
    let lock = store.lock().expect("the lock");
    let mut writer = store.begin(&lock, None, once()).expect("a writer");
    writer.set_spaces(spaces()).expect("spaces");
    unbacked(&mut writer);
    let (a, b) = (page(40, 512), page(41, 512));
    for (space, page, bytes) in [(0, 3, &a), (1, 9, &a), (0, 3, &b), (0, 4, &b), (1, 9, &b)] {
        let put = [(PageIndex(page), bytes.as_slice())];
        writer.put_pages(space, &put).expect("put");
    }
    // Twice in one call, of which the later holds.
    let put = [(PageIndex(20), a.as_slice()), (PageIndex(20), b.as_slice())];
    writer.put_pages(0, &put).expect("put");
    let put = [(PageIndex(21), b.as_slice()), (PageIndex(21), a.as_slice())];
    writer.put_pages(0, &put).expect("put");
    let view = writer.commit().expect("commit");
    let hashes = [(0, 3, 41), (0, 4, 41), (1, 9, 41), (0, 20, 41), (0, 21, 40)];
    for (space, page, seed) in hashes {
        let found = view.page_hash(space, PageIndex(page));
        assert_eq!(found, Some(hash(seed, 512)), "page {page} of {space}");
        let found = contents(&view, space).expect("read");
        assert_eq!(found[&page], Content::of(&crate::common::page(seed, 512)));
    }
}

#[test]
fn every_place_of_a_lost_page_is_named() {
    let (storage, store) = new_store();
    let lock = store.lock().expect("the lock");
    let mut writer = store.begin(&lock, None, once()).expect("a writer");
    writer.set_spaces(spaces()).expect("spaces");
    unbacked(&mut writer);
    for (space, first) in [(0, 3), (0, 50), (1, 4)] {
        let bytes = page(40, 512);
        let put = [(PageIndex(first), bytes.as_slice())];
        writer.put_pages(space, &put).expect("put");
    }
    writer.commit().expect("commit");
    let mut bytes = storage.get(&snapshot_name(1)).expect("a file");
    bytes[212] ^= 1;
    storage.put(&snapshot_name(1), bytes);
    let report = verify(&open(&storage).expect("a store"));
    let named: Vec<_> = report
        .damaged
        .iter()
        .map(|d| (d.space.as_deref(), d.address, d.length_bytes))
        .collect();
    let at = |space, page: u64| (Some(space), Some(page * 512), 512);
    assert_eq!(named, [at("1:mem", 3), at("1:mem", 50), at("2:mem", 4)]);
}

#[test]
fn a_run_that_reaches_into_pages_of_another_size_is_damaged() {
    let (storage, store) = new_store();
    let lock = store.lock().expect("the lock");
    let mut writer = store.begin(&lock, None, once()).expect("a writer");
    writer.set_spaces(spaces()).expect("spaces");
    unbacked(&mut writer);
    // Two small pages, then a big one.
    for space in [0, 2] {
        let bytes = page(40, 1024);
        let put = [(PageIndex(0), bytes.as_slice())];
        writer.put_pages(space, &put).expect("put");
    }
    writer.commit().expect("commit");
    let whole = storage.get(&snapshot_name(1)).expect("a file");
    let (_, index) = sections(&whole);
    let (first, second) = (index + 24, index + 24 + 32);
    assert_eq!(
        (u64_at(&whole, first + 16), u64_at(&whole, first + 24)),
        (2, 0)
    );
    // One page, which is the big one; and all three pages, of which the last is the big one.
    let of = |count: u64, ordinal: u64| {
        let rest = [(second + 8, count), (second + 16, COUNT - count)];
        [(first + 16, count), (first + 24, ordinal), rest[0], rest[1]]
    };
    let (other, both) = (of(1, 2), of(3, 0));
    for changes in [other, both] {
        let mut bytes = whole.clone();
        for (at, value) in changes {
            bytes[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
        }
        reseal(&mut bytes);
        storage.put(&snapshot_name(1), bytes);
        let view = open(&storage).expect("a store").view(SnapshotId(1));
        let error = view.expect_err("damaged").to_string();
        assert!(error.contains("pages of another size"), "{error}");
    }
}
