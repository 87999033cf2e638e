//! Prevents that a crash, a failing disk or a full one leaves half a snapshot, takes committed ones
//! away, or keeps the next from being made: every operation of a commit fails once, and is the last.

use crate::common::*;
use pagetide_pages::PageIndex;
use pagetide_snapshot::storage::{AfterCrash, Fault};
use pagetide_snapshot::*;
use std::sync::Arc;

/// Everything a run does: open, lock, view, begin, put, commit.
fn add_delta(storage: &MemoryStorage) -> Result<SnapshotId, String> {
    let store = open(storage).map_err(|e| e.to_string())?;
    let lock = store.lock().map_err(|e| e.to_string())?;
    let newest = store
        .newest()
        .map_err(|e| e.to_string())?
        .ok_or("an empty store")?;
    let parent = store.view(newest.id).map_err(|e| e.to_string())?;
    let mut writer = store
        .begin(&lock, Some(&parent), once())
        .map_err(|e| e.to_string())?;
    let mut write = || -> Result<(), WriteError> {
        writer.set_spaces(parent.spaces().to_vec())?;
        for number in 4..9 {
            writer.put_pages(0, &[(PageIndex(number), &page(100 + number as u8, 512))])?;
        }
        writer.put_pages(2, &[(PageIndex(2), &page(105, 512))])?;
        writer.put_file_pages(0, PageIndex(21), &[hash(30, 512), hash(31, 512)])?;
        writer.put_state(0, pages(52, 54), PageState::Shown)?;
        writer.put_pages(1, &[(PageIndex(1), &page(120, 3072))])
    };
    write().map_err(|e| e.to_string())?;
    Ok(writer.commit().map_err(|e| e.to_string())?.id())
}

/// How many operations `add_delta` takes.
fn operations() -> u64 {
    let (storage, _) = small_chain();
    storage.set_fault(None);
    add_delta(&storage).expect("nothing fails");
    storage.operations()
}

/// The store has the three snapshots it had, or a whole fourth one, and takes another.
fn must_be_sound(storage: &MemoryStorage, before: &[Seen], at: &str) -> usize {
    let store = open(storage).unwrap_or_else(|error| panic!("{at}: {error}"));
    let listed = store.snapshots().expect("a list");
    assert!(listed.damaged.is_empty(), "{at}: {:?}", listed.damaged);
    for seen in before {
        assert_eq!(
            &see(&store, seen.info.id.0).expect("readable"),
            seen,
            "{at}"
        );
    }
    assert!(
        listed.good.len() >= before.len() && listed.good.len() <= before.len() + 1,
        "{at}"
    );
    let report = verify(&store);
    assert!(report.ok, "{at}: {:?}", report.damaged);
    drop(store);
    let next = add_delta(storage).unwrap_or_else(|error| panic!("{at}: {error}"));
    assert_eq!(next.0, listed.good.len() as u64 + 1, "{at}");
    assert!(verify(&open(storage).expect("a store")).ok, "{at}");
    assert!(
        storage
            .names()
            .iter()
            .all(|name| !name.ends_with(".partial")),
        "{at}"
    );
    listed.good.len()
}

fn before(store: &Store) -> Vec<Seen> {
    (1..=3)
        .map(|id| see(store, id).expect("readable"))
        .collect()
}

#[test]
fn a_crash_at_any_operation_keeps_what_was_committed() {
    let mut counts = Vec::new();
    for at in 0..operations() {
        let (storage, store) = small_chain();
        let before = before(&store);
        storage.set_fault(Some(Fault::FailFrom(at)));
        add_delta(&storage).expect_err("it crashes");
        for after in [AfterCrash::Lost, AfterCrash::Torn, AfterCrash::Kept] {
            let survived = storage.crashed(after);
            counts.push(must_be_sound(
                &survived,
                &before,
                &format!("operation {at}"),
            ));
        }
    }
    // The last crash comes after the rename: there the new snapshot may stay, and is whole.
    assert!(counts.contains(&3) && counts.contains(&4));
}

#[test]
fn a_commit_that_succeeded_survives_a_power_cut() {
    let (storage, _) = small_chain();
    add_delta(&storage).expect("nothing fails");
    let survived = storage.crashed(AfterCrash::Lost);
    assert_eq!(
        open(&survived)
            .expect("a store")
            .snapshots()
            .expect("a list")
            .good
            .len(),
        4
    );
}

#[test]
fn any_failing_operation_is_an_error_and_nothing_else() {
    let mut failures = 0;
    for at in 0..operations() {
        let (storage, store) = small_chain();
        let before = before(&store);
        storage.set_fault(Some(Fault::FailOnce(at)));
        let added = add_delta(&storage);
        storage.set_fault(None);
        let count = must_be_sound(&storage, &before, &format!("operation {at}"));
        assert_eq!(count, 3 + usize::from(added.is_ok()), "operation {at}");
        failures += usize::from(added.is_err());
    }
    // Nothing may be ignored: each operation is there because it is needed.
    assert_eq!(failures as u64, operations());
}

#[test]
fn a_crash_while_a_store_is_made_leaves_none_or_a_whole_one() {
    for at in 0..8 {
        let storage = MemoryStorage::new();
        storage.set_fault(Some(Fault::FailFrom(at)));
        let made = Store::create(Arc::new(storage.clone()));
        for after in [AfterCrash::Lost, AfterCrash::Torn, AfterCrash::Kept] {
            let survived = storage.crashed(after);
            match open(&survived) {
                Ok(store) => assert!(store.snapshots().expect("a list").good.is_empty()),
                Err(error) => {
                    assert!(made.is_err(), "operation {at}: {error}");
                    assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");
                    Store::create(Arc::new(survived)).expect("a second attempt");
                }
            }
        }
    }
}

#[test]
fn a_full_disk_is_named_and_harms_nothing() {
    let (storage, store) = small_chain();
    let before = before(&store);
    let full = {
        add_delta(&storage).expect("there is room");
        storage.get(&snapshot_name(4)).expect("a file").len() as u64
    };
    // The time in the metadata, and so what it compresses to, is another each time.
    let margin = 16;
    for room in 0..full + margin {
        let (storage, _) = small_chain();
        storage.set_fault(Some(Fault::FullAfter(room)));
        let error = match add_delta(&storage) {
            Ok(_) if room + margin >= full => return,
            Ok(_) => panic!("a file of {full} bytes fits in {room}"),
            Err(error) => error,
        };
        assert!(error.contains("no space left"), "{error}");
        storage.set_fault(None);
        let expected: Vec<_> = before.iter().map(|seen| &seen.contents).collect();
        let store = open(&storage).expect("a store");
        for (id, contents) in (1..).zip(expected) {
            assert_eq!(&see(&store, id).expect("readable").contents, contents);
        }
        assert_eq!(storage.names().len(), 4, "{room}");
    }
    panic!("a file of {full} bytes never fits");
}

#[test]
fn a_writer_that_failed_or_was_dropped_is_gone() {
    let (storage, store) = small_chain();
    let lock = store.lock().expect("the lock");
    let mut writer = store.begin(&lock, None, options()).expect("a writer");
    writer
        .set_spaces(vec![Space::new("mem", size(512), vec![region(0, 4)])])
        .expect("spaces");
    storage.set_fault(Some(Fault::FailOnce(0)));
    writer
        .put_pages(0, &[(PageIndex(0), &page(50, 2048))])
        .expect_err("it fails");
    let again = writer.put_pages(0, &[(PageIndex(0), &page(50, 2048))]);
    assert!(matches!(again, Err(WriteError::Failed { .. })));
    assert!(matches!(writer.commit(), Err(WriteError::Failed { .. })));
    assert_eq!(storage.names().len(), 4);
    drop(store.begin(&lock, None, options()).expect("a writer"));
    assert_eq!(storage.names().len(), 4);
}

#[test]
fn read_only_storage_is_named_and_can_be_read() {
    let (storage, _) = small_chain();
    storage.set_fault(Some(Fault::ReadOnly));
    let store = open(&storage).expect("a store");
    see(&store, 3).expect("readable");
    assert!(verify(&store).ok);
    assert!(matches!(store.lock(), Err(LockError::ReadOnly { .. })));
    let empty = MemoryStorage::new();
    empty.set_fault(Some(Fault::ReadOnly));
    let made = Store::create(Arc::new(empty));
    assert!(matches!(made, Err(OpenError::ReadOnly { .. })));
}
