//! Prevents that damage goes unnoticed or is served as data: every byte of a small chain is flipped,
//! every length is cut, bytes are added; each must be named by `verify`, and none may be read.

use crate::common::*;
use pagetide_snapshot::*;

/// Reads all there is. Each snapshot must be as it was, or refused. Gives those that were refused.
fn refused(store: &Store, whole: &[Seen]) -> Vec<u64> {
    let mut refused = Vec::new();
    for seen in whole {
        match see(store, seen.info.id.0) {
            Ok(now) => assert_eq!(&now, seen),
            Err(error) => {
                assert!(!matches!(error, ReadError::Io { .. }), "{error}");
                refused.push(seen.info.id.0);
            }
        }
    }
    refused
}

/// Verifies and reads the chain with `bytes` as the file of snapshot `id`.
fn must_be_named(storage: &MemoryStorage, whole: &[Seen], id: u64, bytes: Vec<u8>, what: &str) {
    let copy = storage.duplicate();
    copy.put(&snapshot_name(id), bytes);
    let store = open(&copy).expect("the store file is sound");
    let report = verify(&store);
    assert!(!report.ok, "{what} of snapshot {id} was not found");
    let named: Vec<u64> = report
        .damaged
        .iter()
        .map(|damage| damage.snapshot.0)
        .collect();
    assert!(
        named.iter().all(|&named| named == id),
        "{what} of snapshot {id}: {:?}",
        report.damaged
    );
    let refused = refused(&store, whole);
    assert!(
        refused.iter().all(|&refused| refused >= id),
        "{what}: {refused:?}"
    );
    let listed = store.snapshots().expect("a list");
    assert_eq!(
        listed.good.len() + listed.damaged.len(),
        whole.len(),
        "{what}"
    );
    assert!(
        listed.damaged.iter().all(|damaged| damaged.id.0 == id),
        "{what}"
    );
    for good in &listed.good {
        assert_eq!(good, &whole[good.id.0 as usize - 1].info, "{what}");
    }
}

fn chain() -> (MemoryStorage, Vec<Seen>) {
    let (storage, store) = small_chain();
    (storage, seen(&store))
}

fn seen(store: &Store) -> Vec<Seen> {
    assert!(verify(store).ok);
    let listed = store.snapshots().expect("a list");
    let ids = listed.good.iter().map(|info| info.id.0);
    ids.map(|id| see(store, id).expect("readable")).collect()
}

fn chains() -> [(MemoryStorage, Vec<Seen>); 2] {
    let (storage, store) = chain_of_differences();
    [chain(), (storage, seen(&store))]
}

#[test]
fn every_flipped_byte_is_named() {
    let each = chains().into_iter().flat_map(|(storage, whole)| {
        let ids = 1..=whole.len() as u64;
        ids.map(move |id| (storage.clone(), whole.clone(), id))
    });
    for (storage, whole, id) in each {
        let bytes = storage.get(&snapshot_name(id)).expect("a file");
        for at in 0..bytes.len() {
            for mask in [0xff, 1 << (at % 8)] {
                let mut flipped = bytes.clone();
                flipped[at] ^= mask;
                must_be_named(
                    &storage,
                    &whole,
                    id,
                    flipped,
                    &format!("byte {at} ^ {mask:#x}"),
                );
            }
        }
    }
}

#[test]
fn every_other_length_is_named() {
    let each = chains().into_iter().flat_map(|(storage, whole)| {
        let ids = 1..=whole.len() as u64;
        ids.map(move |id| (storage.clone(), whole.clone(), id))
    });
    for (storage, whole, id) in each {
        let bytes = storage.get(&snapshot_name(id)).expect("a file");
        for length in 0..bytes.len() {
            let what = format!("the cut at {length}");
            must_be_named(&storage, &whole, id, bytes[..length].to_vec(), &what);
        }
        for more in [&[0][..], &[0; 16], &[0xff; 5]] {
            let longer = [&bytes, more].concat();
            must_be_named(&storage, &whole, id, longer, "the tail");
        }
    }
}

#[test]
fn a_damaged_store_file_is_refused() {
    let (storage, _) = small_chain();
    let bytes = storage.get("pagetide-store").expect("a file");
    let doctored = (0..bytes.len()).flat_map(|at| {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        [flipped, bytes[..at].to_vec()]
    });
    for bytes in doctored.chain([[&bytes[..], &[0]].concat()]) {
        storage.put("pagetide-store", bytes);
        assert!(matches!(open(&storage), Err(OpenError::Damaged { .. })));
    }
}

#[test]
fn lost_pages_are_named_by_space_and_address() {
    let (storage, _) = chain();
    let mut bytes = storage.get(&snapshot_name(2)).expect("a file");
    // The first frame of the second snapshot has the pages 10 and 11 of `mem`.
    bytes[212] ^= 1;
    storage.put(&snapshot_name(2), bytes);
    let report = verify(&open(&storage).expect("a store"));
    let damage = &report.damaged[0];
    assert_eq!(damage.space.as_deref(), Some("mem"));
    assert_eq!(
        (damage.address, damage.length_bytes),
        (Some(10 * 512), 1024)
    );
    assert_eq!(report.damaged.len(), 1);
    assert_eq!(report.snapshots, 3);
}

#[test]
fn a_damaged_newest_snapshot_leaves_the_store_usable() {
    let (storage, whole) = chain();
    storage.put(&snapshot_name(3), vec![1, 2, 3]);
    let store = open(&storage).expect("a store");
    assert_eq!(store.newest().expect("a list"), Some(whole[1].info.clone()));
    let lock = store.lock().expect("the lock");
    let parent = store.view(SnapshotId(2)).expect("a view");
    let mut writer = store
        .begin(&lock, Some(&parent), options())
        .expect("a writer");
    writer.set_spaces(parent.spaces().to_vec()).expect("spaces");
    // Number 3 is used, damaged or not.
    assert_eq!(writer.commit().expect("commit").id(), SnapshotId(4));
    assert_eq!(
        see(&store, 4).expect("readable").contents,
        whole[1].contents
    );
}
