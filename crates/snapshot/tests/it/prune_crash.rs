//! Prevents that a crash, a failing disk or a full one while a chain is made shorter takes a snapshot away that was to stay, or
//! leaves one that is not whole: every storage operation of a prune and of a squash fails once, and is the last.

use crate::common::*;
use crate::prune::{keep, listed, must_be_as_before, row};
use pagetide_snapshot::storage::{AfterCrash, Fault};
use pagetide_snapshot::*;

const COUNT: u64 = 7;

type Work = fn(&Store) -> Result<Pruned, PruneError>;

/// What is done, and which snapshots there are after it.
const WORKS: [(Work, &[u64]); 3] = [
    (|store| store.prune(&keep(3), false), &[5, 6, 7]),
    (
        |store| store.squash(SnapshotId(2), SnapshotId(6)),
        &[1, 2, 6, 7],
    ),
    // Over what was pruned before.
    (
        |store| {
            store.prune(&keep(5), false)?;
            store.prune(&keep(2), false)
        },
        &[6, 7],
    ),
];

fn operations(work: Work) -> u64 {
    let (storage, store, _) = row(COUNT);
    storage.set_fault(None);
    work(&store).expect("nothing fails");
    storage.operations()
}

/// All that was to stay is there, all that is there is what it was, and the work can be done once more.
fn must_be_sound(
    storage: &MemoryStorage,
    before: &[Seen],
    (work, after): (Work, &[u64]),
    at: &str,
) {
    let store = open(storage).unwrap_or_else(|error| panic!("{at}: {error}"));
    let there = listed(&store);
    assert!(after.iter().all(|id| there.contains(id)), "{at}: {there:?}");
    must_be_as_before(&store, before);
    work(&store).unwrap_or_else(|error| panic!("{at}: {error}"));
    assert_eq!(listed(&store), after, "{at}");
    must_be_as_before(&store, before);
    let names = storage.names();
    let left = names.iter().filter(|name| name.ends_with(".merging"));
    assert_eq!(left.count(), 0, "{at}");
    let bases = names.iter().filter(|name| name.ends_with(".base")).count();
    assert!(bases <= 3, "{at}: {names:?}");
}

#[test]
fn a_crash_at_any_operation_keeps_what_was_to_stay() {
    for (work, after) in WORKS {
        for at in 0..operations(work) {
            let (storage, store, before) = row(COUNT);
            storage.set_fault(Some(Fault::FailFrom(at)));
            let _ = work(&store);
            for crash in [AfterCrash::Lost, AfterCrash::Torn, AfterCrash::Kept] {
                let survived = storage.crashed(crash);
                let what = format!("operation {at}, {crash:?}");
                must_be_sound(&survived, &before, (work, after), &what);
            }
        }
    }
}

#[test]
fn any_failing_operation_is_an_error_and_loses_nothing() {
    for (work, after) in WORKS {
        for at in 0..operations(work) {
            let (storage, store, before) = row(COUNT);
            storage.set_fault(Some(Fault::FailOnce(at)));
            let done = work(&store);
            storage.set_fault(None);
            assert!(done.is_err(), "operation {at} is needed");
            must_be_sound(&storage, &before, (work, after), &format!("operation {at}"));
        }
    }
}

#[test]
fn a_full_disk_is_named_and_loses_nothing() {
    for (work, after) in WORKS {
        let mut named = 0;
        for room in (0..).step_by(97) {
            let (storage, store, before) = row(COUNT);
            storage.set_fault(Some(Fault::FullAfter(room)));
            let done = work(&store);
            storage.set_fault(None);
            let Err(error) = done else {
                must_be_sound(&storage, &before, (work, after), &format!("{room} bytes"));
                break;
            };
            assert!(matches!(error, PruneError::Full { .. }), "{error}");
            named += 1;
            must_be_sound(&storage, &before, (work, after), &format!("{room} bytes"));
        }
        assert!(named > 10, "{named}");
    }
}

/// Each byte of the files that a prune and a squash have made.
#[test]
fn every_flipped_byte_of_a_rewritten_file_is_named() {
    let (storage, store, before) = row(COUNT);
    store.prune(&keep(4), false).expect("pruned");
    store
        .squash(SnapshotId(4), SnapshotId(6))
        .expect("squashed");
    let names = storage.names();
    for name in names.iter().filter(|name| name.starts_with("snapshots/")) {
        let bytes = storage.get(name).expect("a file");
        let id: u64 = name[10..20].parse().expect("a number");
        for at in 0..bytes.len() {
            let copy = storage.duplicate();
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            copy.put(name, flipped);
            let store = open(&copy).expect("a store");
            let report = verify(&store);
            assert!(!report.ok, "byte {at} of {name}");
            assert!(report.damaged.iter().all(|damage| damage.snapshot.0 == id));
            for snapshot in [4, 6, 7] {
                if let Ok(seen) = see(&store, snapshot) {
                    assert_eq!(seen.contents, before[snapshot as usize - 1].contents);
                }
            }
            if at % 11 == 0 {
                store.prune(&keep(1), false).err();
                must_not_lie(&copy, &before);
            }
        }
    }
}

/// Whatever can still be read after a prune of a damaged store is what it was.
fn must_not_lie(storage: &MemoryStorage, before: &[Seen]) {
    let store = open(storage).expect("a store");
    for id in 1..=COUNT {
        if let Ok(seen) = see(&store, id) {
            assert_eq!(seen.contents, before[id as usize - 1].contents, "{id}");
        }
    }
}
