//! Prevents that snapshots of different chains or stores are taken for one another, that two write
//! at once, and that a later format is misread.

use crate::common::*;
use pagetide_pages::{PageIndex, PageRange};
use pagetide_snapshot::*;
use std::sync::Arc;

#[test]
fn the_second_writer_is_locked_out() {
    let (storage, store) = small_chain();
    let lock = store.lock().expect("the lock");
    let other = open(&storage).expect("a store");
    assert!(matches!(
        other.lock(),
        Err(LockError::Locked {
            holder: Some(_),
            ..
        })
    ));
    let writer = store.begin(&lock, None, options()).expect("a writer");
    let second = store.begin(&lock, None, options());
    assert!(matches!(second, Err(WriteError::Busy { .. })));
    // A writer keeps the lock even when the handle is gone.
    drop(lock);
    assert!(matches!(other.lock(), Err(LockError::Locked { .. })));
    drop(writer);
    let lock = other.lock().expect("the lock");
    store.begin(&lock, None, options()).expect("the same store");
}

#[test]
fn locks_and_parents_of_other_stores_are_refused() {
    let (_, a) = small_chain();
    let (_, b) = small_chain();
    let (lock_a, lock_b) = (a.lock().expect("the lock"), b.lock().expect("the lock"));
    let foreign = a.begin(&lock_b, None, options());
    assert!(matches!(foreign, Err(WriteError::ForeignLock { .. })));
    let view = b.view(SnapshotId(1)).expect("a view");
    let foreign = a.begin(&lock_a, Some(&view), options());
    assert!(matches!(foreign, Err(WriteError::ForeignParent { .. })));
}

#[test]
fn a_file_of_another_store_is_refused() {
    let (a, _) = small_chain();
    let (b, _) = small_chain();
    a.put(&snapshot_name(2), b.get(&snapshot_name(2)).expect("a file"));
    let store = open(&a).expect("a store");
    let view = store.view(SnapshotId(2));
    assert!(matches!(view, Err(ReadError::ForeignSnapshot { .. })));
    assert!(store.view(SnapshotId(3)).is_err());
    store.view(SnapshotId(1)).expect("not touched");
    assert_eq!(verify(&store).damaged[0].snapshot, SnapshotId(2));
}

#[test]
fn a_replaced_parent_is_refused_by_its_hash() {
    let (storage, _) = small_chain();
    // The same snapshot but for the time of its creation, with sound checksums.
    let bytes = storage.get(&snapshot_name(1)).expect("a file");
    let mut record = metadata_record(&bytes);
    record[0] ^= 1;
    storage.put(&snapshot_name(1), with_metadata_record(&bytes, &record));
    let store = open(&storage).expect("a store");
    store.view(SnapshotId(1)).expect("sound by itself");
    for id in [2, 3] {
        let view = store.view(SnapshotId(id));
        assert!(matches!(view, Err(ReadError::ParentReplaced { .. })));
    }
    let named: Vec<_> = verify(&store)
        .damaged
        .iter()
        .map(|d| d.snapshot.0)
        .collect();
    assert_eq!(named, [2]);
}

#[test]
fn a_missing_parent_is_named() {
    let (storage, _) = small_chain();
    Storage::remove(&storage, &snapshot_name(1)).expect("removed");
    let store = open(&storage).expect("a store");
    let view = store.view(SnapshotId(3));
    assert!(matches!(view, Err(ReadError::ParentMissing { .. })));
    assert!(matches!(
        store.view(SnapshotId(1)),
        Err(ReadError::NoSuchSnapshot { .. })
    ));
    let named: Vec<_> = verify(&store)
        .damaged
        .iter()
        .map(|d| d.snapshot.0)
        .collect();
    assert_eq!(named, [2]);
}

#[test]
fn a_file_under_the_name_of_another_is_refused() {
    let (storage, _) = small_chain();
    storage.put(
        &snapshot_name(4),
        storage.get(&snapshot_name(1)).expect("a file"),
    );
    let store = open(&storage).expect("a store");
    assert!(matches!(
        store.view(SnapshotId(4)),
        Err(ReadError::Damaged { .. })
    ));
}

#[test]
fn later_formats_are_named_and_not_misread() {
    let (storage, _) = small_chain();
    let whole = storage.get(&snapshot_name(1)).expect("a file");
    let (_, index) = sections(&whole);
    let runs = u64_at(&whole, index) as usize;
    let first_run = index + 24;
    let first_frame = first_run + 32 * runs;
    // Format version; kind and page encoding of a run; encoding and flags of a frame.
    for at in [
        8,
        first_run + 4,
        first_run + 6,
        first_frame + 4,
        first_frame + 6,
    ] {
        let mut bytes = whole.clone();
        bytes[at] = 9;
        reseal(&mut bytes);
        storage.put(&snapshot_name(1), bytes);
        let error = open(&storage)
            .expect("a store")
            .view(SnapshotId(1))
            .expect_err("unknown");
        assert!(matches!(error, ReadError::Future { .. }), "{error}");
        assert!(
            error.to_string().contains("written by a newer pagetide"),
            "{error}"
        );
    }
    // A later format may have a header of another length.
    let mut later = vec![0; 300];
    later[..16].copy_from_slice(b"\x89PTSNAP\n\x04\0\0\0\x2c\x01\0\0");
    let crc = crc32c::crc32c(&later[..296]);
    later[296..].copy_from_slice(&crc.to_le_bytes());
    later.extend_from_slice(&[1; 50]);
    storage.put(&snapshot_name(1), later);
    let error = open(&storage)
        .expect("a store")
        .view(SnapshotId(1))
        .expect_err("unknown");
    assert!(matches!(error, ReadError::Future { .. }), "{error}");

    let mut bytes = storage.get("pagetide-store").expect("a file");
    bytes[8] = 2;
    let end = bytes.len() - 4;
    let crc = crc32c::crc32c(&bytes[..end]);
    bytes[end..].copy_from_slice(&crc.to_le_bytes());
    storage.put("pagetide-store", bytes);
    assert!(matches!(
        open(&storage),
        Err(OpenError::FutureFormat { found: 2, .. })
    ));
}

#[test]
fn layouts_that_make_no_sense_are_refused() {
    let store = Store::create(Arc::new(MemoryStorage::new())).expect("a store");
    let lock = store.lock().expect("the lock");
    let mut writer = store.begin(&lock, None, options()).expect("a writer");
    let mem = |regions| Space::new("mem", size(512), regions);
    for spaces in [
        vec![mem(vec![region(0, 4), region(3, 5)])],
        vec![mem(vec![region(4, 6), region(0, 2)])],
        vec![mem(vec![region(4, 4)])],
        vec![mem(vec![]), mem(vec![])],
        vec![mem(vec![region(0, u64::MAX)])],
        vec![Space::new("huge", size(1 << 30), vec![])],
    ] {
        assert!(matches!(
            writer.set_spaces(spaces),
            Err(WriteError::Invalid { .. })
        ));
    }
    writer
        .set_spaces(vec![mem(vec![region(0, 2)])])
        .expect("spaces");
    let moved = vec![
        Space::new("other", size(512), vec![]),
        mem(vec![region(0, 2)]),
    ];
    assert!(matches!(
        writer.set_spaces(moved),
        Err(WriteError::Invalid { .. })
    ));
    let uneven = writer.put_pages(0, &[(PageIndex(0), &[1; 700])]);
    assert!(matches!(uneven, Err(WriteError::BadPages { .. })));
    assert!(matches!(
        writer.put_pages(1, &[]),
        Err(WriteError::Invalid { .. })
    ));
    let data = writer.put_state(0, PageRange::single(PageIndex(0)), PageState::Data);
    assert!(matches!(data, Err(WriteError::BadPages { .. })));
    // None of these spoils the writer.
    writer
        .put_pages(0, &[(PageIndex(0), &page(3, 1024))])
        .expect("put");
    writer.commit().expect("commit");
}
