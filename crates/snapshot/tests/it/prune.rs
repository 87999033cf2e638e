//! Prevents that making a chain shorter changes, loses or takes from under a reader any page of a snapshot that stays, and that
//! it leaves files without end.

use crate::chain::{Version, add, check_view, version};
use crate::common::*;
use crate::model::*;
use pagetide_pages::{PageIndex, PageSet};
use pagetide_snapshot::*;
use proptest::prelude::*;
use std::sync::Arc;

pub fn keep(last: u64) -> Keep {
    Keep {
        last,
        ..Keep::default()
    }
}

pub fn listed(store: &Store) -> Vec<u64> {
    let all = store.snapshots().expect("a list");
    assert!(all.damaged.is_empty(), "{:?}", all.damaged);
    all.good.iter().map(|info| info.id.0).collect()
}

/// One more delta of one space of 16 pages, of which it writes some; gives all pages.
pub fn grow(store: &Store, lock: &WriterLock, parent: Option<&View>, seed: u64) -> View {
    let mut writer = store.begin(lock, parent, options()).expect("a writer");
    let space = Space::new("mem", size(512), vec![region(0, 16)]);
    writer.set_spaces(vec![space]).expect("spaces");
    writer
        .attach("seed", seed.to_le_bytes().to_vec())
        .expect("attach");
    if parent.is_none() {
        let all: Vec<u8> = (0..16).flat_map(|n| page(100 + n, 512)).collect();
        writer.put_pages(0, &[(PageIndex(0), &all)]).expect("put");
    }
    for step in 0..3 {
        let at = PageIndex((seed * 7 + step * 5) % 16);
        let bytes = page(8 + ((seed * 3 + step) % 240) as u8, 512);
        writer.put_pages(0, &[(at, &bytes)]).expect("put");
    }
    writer.commit().expect("commit")
}

/// So many snapshots in a row, and all that can be seen of them.
pub fn row(count: u64) -> (MemoryStorage, Store, Vec<Seen>) {
    let storage = MemoryStorage::new();
    let store = Store::create(Arc::new(storage.clone())).expect("a store");
    let lock = store.lock().expect("the lock");
    let mut last = None;
    for seed in 0..count {
        last = Some(grow(&store, &lock, last.as_ref(), seed));
    }
    drop(lock);
    let seen = (1..=count).map(|id| see(&store, id).expect("readable"));
    let seen = seen.collect();
    (storage, store, seen)
}

/// What may not change of a snapshot, however it is stored.
pub fn must_be_as_before(store: &Store, before: &[Seen]) {
    for id in listed(store) {
        let (now, then) = (see(store, id).expect("readable"), &before[id as usize - 1]);
        assert_eq!(now.contents, then.contents, "snapshot {id}");
        assert_eq!(now.spaces, then.spaces);
        assert_eq!(now.attachments, then.attachments);
        let known = |seen: &Seen| (seen.info.content_hash, seen.info.created_unix_ns);
        assert_eq!(known(&now), known(then), "others know it by its hash");
        assert_eq!(now.info.logical_bytes, then.info.logical_bytes);
    }
    let report = verify(store);
    assert!(report.ok, "{:?}", report.damaged);
    assert_eq!(report.snapshots as usize, listed(store).len());
}

fn bases(storage: &MemoryStorage) -> usize {
    let names = storage.names();
    names.iter().filter(|name| name.ends_with(".base")).count()
}

#[test]
fn the_newest_stay_and_are_what_they_were() {
    for last in 1..=12 {
        let (storage, store, before) = row(12);
        let pruned = store.prune(&keep(last), false).expect("pruned");
        let expected: Vec<u64> = (13 - last..=12).collect();
        assert_eq!(listed(&store), expected);
        assert_eq!(pruned.kept, last);
        let gone: Vec<u64> = pruned.removed.iter().map(|id| id.0).collect();
        assert_eq!(gone, (1..13 - last).collect::<Vec<u64>>());
        must_be_as_before(&store, &before);
        // Each base is longer than all after it.
        assert!(bases(&storage) <= 3, "{last}: {:?}", storage.names());
        let again = store.prune(&keep(last), false).expect("pruned");
        assert_eq!((again.removed.len(), again.freed_bytes), (0, 0));
        if let Some(gone) = pruned.removed.last() {
            let view = store.view(*gone);
            assert!(matches!(view, Err(ReadError::Pruned { .. })), "{view:?}");
        }
        let lock = store.lock().expect("the lock");
        let newest = store.view(SnapshotId(12)).expect("a view");
        assert_eq!(grow(&store, &lock, Some(&newest), 12).id(), SnapshotId(13));
        assert!(verify(&store).ok);
    }
}

#[test]
fn a_dry_run_says_the_same_and_does_nothing() {
    let (storage, store, _) = row(6);
    let names = storage.names();
    let said = store.prune(&keep(2), true).expect("said");
    assert_eq!(storage.names(), names);
    let done = store.prune(&keep(2), false).expect("done");
    assert_eq!((said.removed, said.kept), (done.removed, done.kept));
}

/// Pruned after each snapshot, as a schedule does: few files, and little is copied for each.
#[test]
fn a_chain_that_lives_long_stays_short() {
    let (storage, store, mut before) = row(1);
    let lock = store.lock().expect("the lock");
    let mut last = store.view(SnapshotId(1)).expect("a view");
    for seed in 1..400 {
        last = grow(&store, &lock, Some(&last), seed);
        before.push(see(&store, last.id().0).expect("readable"));
        store.prune(&keep(5), false).expect("pruned");
        assert!(bases(&storage) <= 8, "{:?}", storage.names());
        if seed % 40 == 0 {
            must_be_as_before(&store, &before);
        }
    }
    must_be_as_before(&store, &before);
    // The view of the writer goes on over files that were rewritten under it.
    let all = contents(&last, 0).expect("readable");
    assert_eq!(all, before[399].contents[0]);
    let bytes: usize = storage
        .names()
        .iter()
        .filter_map(|name| storage.get(name))
        .map(|bytes| bytes.len())
        .sum();
    assert!(bytes < 60_000, "{bytes}");
}

#[test]
fn hours_and_days_keep_their_newest() {
    let (storage, store, before) = row(9);
    // Nine snapshots were taken within a second: their times are moved apart, two to an hour.
    let base = before[0].info.created_unix_ns;
    for id in 1..=9u64 {
        let name = snapshot_name(id);
        let file = storage.get(&name).expect("a file");
        let mut record = metadata_record(&file);
        let time = base / 3_600_000_000_000 * 3_600_000_000_000 + id / 2 * 3_600_000_000_000;
        record[..8].copy_from_slice(&time.to_le_bytes());
        storage.put(&name, with_metadata_record(&file, &record));
    }
    chain_anew(&storage, 9);
    let hourly = Keep {
        hourly: 3,
        ..Keep::default()
    };
    store.prune(&hourly, false).expect("pruned");
    assert_eq!(listed(&store), [5, 7, 9]);
    assert!(verify(&store).ok);
    let daily = Keep {
        daily: 1,
        ..Keep::default()
    };
    store.prune(&daily, false).expect("pruned");
    assert_eq!(listed(&store), [9]);
    assert!(verify(&store).ok);
}

/// Gives each delta the content hash that its parent has by now.
fn chain_anew(storage: &MemoryStorage, count: u64) {
    for id in 2..=count {
        let parent = storage.get(&snapshot_name(id - 1)).expect("a file");
        let mut file = storage.get(&snapshot_name(id)).expect("a file");
        file[56..88].copy_from_slice(&parent[176..208]);
        reseal_header(&mut file);
        storage.put(&snapshot_name(id), file);
    }
}

#[test]
fn one_delta_for_many() {
    for (from, to) in (1..=6).flat_map(|from| (from + 1..=7).map(move |to| (from, to))) {
        let (storage, store, before) = row(7);
        let squashed = store
            .squash(SnapshotId(from), SnapshotId(to))
            .expect("done");
        let gone: Vec<u64> = squashed.removed.iter().map(|id| id.0).collect();
        assert_eq!(gone, (from + 1..to).collect::<Vec<u64>>());
        let expected: Vec<u64> = (1..=7).filter(|id| !gone.contains(id)).collect();
        assert_eq!(listed(&store), expected);
        must_be_as_before(&store, &before);
        assert_eq!(bases(&storage), 0);
        let all = store.snapshots().expect("a list").good;
        let last = all
            .iter()
            .find(|info| info.id.0 == to)
            .expect("it is there");
        assert_eq!(last.parent, Some(SnapshotId(from)));
        assert!(gone.is_empty() || squashed.freed_bytes > 0);
    }
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let (storage, store, before) = row(4);
    let lock = store.lock().expect("the lock");
    let second = store.view(SnapshotId(2)).expect("a view");
    let branch = grow(&store, &lock, Some(&second), 77);
    drop((second, lock));
    let names = storage.names();
    let refused = |result: Result<Pruned, PruneError>| result.expect_err("refused");
    let squash = |from, to| store.squash(SnapshotId(from), SnapshotId(to));
    let nothing = store.prune(&Keep::default(), false);
    assert!(matches!(refused(nothing), PruneError::NothingKept));
    for (from, to) in [(4, 2), (3, 5), (2, 2)] {
        let error = refused(squash(from, to));
        assert!(matches!(error, PruneError::NotAncestor { .. }), "{error}");
    }
    for (to, on_the_way) in [(4, 5), (5, 3)] {
        let PruneError::Fork { snapshot, child } = refused(squash(1, to)) else {
            panic!("a branch begins in between");
        };
        assert_eq!((snapshot.0, child.0), (2, on_the_way));
    }
    let missing = refused(squash(1, 9));
    assert!(matches!(
        missing,
        PruneError::Read(ReadError::NoSuchSnapshot { .. })
    ));
    assert_eq!(squash(2, 5).expect("it is so already").removed, []);
    let held = store.view(SnapshotId(4)).expect("a view");
    let in_use = refused(squash(2, 4));
    assert!(matches!(in_use, PruneError::InUse { .. }), "{in_use}");
    drop((held, branch));
    let whole = storage.get(&snapshot_name(2)).expect("a file");
    let mut bytes = whole.clone();
    bytes[40] ^= 1;
    storage.put(&snapshot_name(2), bytes);
    let damaged = refused(store.prune(&keep(1), false));
    assert!(matches!(
        damaged,
        PruneError::Damaged {
            snapshot: SnapshotId(2),
            ..
        }
    ));
    storage.put(&snapshot_name(2), whole);
    assert_eq!(names, storage.names());
    must_be_as_before(
        &store,
        &[before, vec![see(&store, 5).expect("it")]].concat(),
    );
}

/// A branch keeps what it comes from, and one that is not kept goes as a whole.
#[test]
fn branches_keep_what_they_need() {
    let (storage, store, mut before) = row(4);
    let lock = store.lock().expect("the lock");
    let second = store.view(SnapshotId(2)).expect("a view");
    let mut branch = grow(&store, &lock, Some(&second), 50);
    branch = grow(&store, &lock, Some(&branch), 51);
    drop(second);
    for id in [5, 6] {
        before.push(see(&store, id).expect("readable"));
    }
    store.prune(&keep(3), false).expect("pruned");
    assert_eq!(listed(&store), [4, 5, 6]);
    must_be_as_before(&store, &before);
    store.prune(&keep(1), false).expect("pruned");
    assert_eq!(listed(&store), [6]);
    must_be_as_before(&store, &before);
    assert!(bases(&storage) <= 2, "{:?}", storage.names());
    drop(branch);
}

/// All pages of a view, by every way there is to read them.
fn read_every_way(view: &View) -> Vec<Vec<u8>> {
    let mut one = vec![vec![0; 512]; 16];
    for (number, buffer) in (0..).zip(&mut one) {
        view.read_page(0, PageIndex(number), buffer).expect("read");
    }
    let found = std::sync::Mutex::new(vec![Vec::new(); 16]);
    let visit = |range: pagetide_pages::PageRange, content: PageContent<'_>| {
        if let PageContent::Bytes(bytes) = content {
            let mut found = found.lock().expect("no panic");
            for (page, bytes) in range.pages().zip(bytes.chunks(512)) {
                found[page.0 as usize] = bytes.to_vec();
            }
        }
        Ok::<(), ReadError>(())
    };
    view.read_parallel(0, pages(0, 16), 2, visit).expect("read");
    let parallel = std::mem::replace(&mut *found.lock().expect("no panic"), vec![Vec::new(); 16]);
    assert_eq!(parallel, one);
    let mut reader = BatchReader::new().expect("a reader");
    for batch in view.batches(0, &PageSet::from(pages(0, 16))) {
        for (range, bytes) in reader.read(view, &batch).expect("read") {
            for (page, bytes) in range.pages().zip(bytes.chunks(512)) {
                found.lock().expect("no panic")[page.0 as usize] = bytes.to_vec();
            }
        }
    }
    assert_eq!(found.into_inner().expect("no panic"), one);
    one
}

fn readers_read_on(storage: Arc<dyn Storage>) {
    let store = Store::create(Arc::clone(&storage)).expect("a store");
    let other = Store::open(storage).expect("the same");
    let lock = store.lock().expect("the lock");
    let mut last = None;
    for seed in 0..12 {
        last = Some(grow(&store, &lock, last.as_ref(), seed));
    }
    let views = [3, 7, 12].map(|id| store.view(SnapshotId(id)).expect("a view"));
    let expected = views.map(|view| read_every_way(&view));
    let views = [3, 7, 12].map(|id| store.view(SnapshotId(id)).expect("a view"));
    let pruned = other.prune(&keep(2), false).expect("pruned");
    assert_eq!(pruned.in_use, [SnapshotId(3), SnapshotId(7)]);
    for round in 0..3 {
        let now = views.clone().map(|view| read_every_way(&view));
        assert!(now == expected, "round {round}");
        last = Some(grow(&store, &lock, last.as_ref(), 100 + round));
        other.prune(&keep(2), false).expect("pruned");
    }
    drop(views);
    let pruned = other.prune(&keep(2), false).expect("pruned");
    assert_eq!((pruned.in_use.len(), pruned.base_files), (0, 1));
    assert!(verify(&other).ok);
}

#[test]
fn nothing_is_taken_from_under_a_reader() {
    readers_read_on(Arc::new(MemoryStorage::new()));
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().join("store");
    readers_read_on(Arc::new(DirectoryStorage::new(root)));
}

/// A snapshot that is being written keeps its parent, though that was pruned meanwhile.
#[test]
fn a_writer_keeps_its_parent() {
    let (_, store, _) = row(5);
    let lock = store.lock().expect("the lock");
    let parent = store.view(SnapshotId(2)).expect("a view");
    let all = contents(&parent, 0).expect("readable");
    let mut writer = store.begin(&lock, Some(&parent), options()).expect("begun");
    drop(parent);
    let other = store.clone();
    assert_eq!(
        other.prune(&keep(1), false).expect("pruned").in_use,
        [SnapshotId(2)]
    );
    let space = Space::new("mem", size(512), vec![region(0, 16)]);
    writer.set_spaces(vec![space]).expect("spaces");
    let view = writer.commit().expect("commit");
    assert_eq!(contents(&view, 0).expect("readable"), all);
    other.prune(&keep(1), false).expect("pruned");
    assert_eq!(listed(&other), [6]);
    assert_eq!(
        contents(&store.view(SnapshotId(6)).expect("a view"), 0).expect("readable"),
        all
    );
}

#[test]
fn one_prunes_at_a_time_and_locks_out_no_writer() {
    let (storage, store, _) = row(2);
    let held = Storage::lock(&storage, storage::Right::Prune).expect("the right");
    let refused = store.prune(&keep(1), false).expect_err("refused");
    assert!(matches!(
        refused,
        PruneError::Lock(LockError::Locked { .. })
    ));
    drop(store.lock().expect("the lock"));
    drop(held);
    let _lock = store.lock().expect("the lock");
    store.prune(&keep(1), false).expect("pruned");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Random chains with branches, pruned and squashed at random while they grow.
    #[test]
    fn every_version_that_stays_is_what_was_put(
        versions in prop::collection::vec((version(), 0_u8..8, 0_usize..4, 0_usize..4), 2..10),
    ) {
        let storage = MemoryStorage::new();
        let store = Store::create(Arc::new(storage.clone())).expect("a store");
        let lock = store.lock().expect("the lock");
        let mut done: Vec<(View, Model)> = Vec::new();
        let mut models: Vec<Model> = Vec::new();
        let shadow = Shadow::new(1 << 20);
        for (version, what, first, second) in &versions {
            let version: &Version = version;
            add((&store, &lock, &shadow), &mut done, version);
            models.push(done[done.len() - 1].1.clone());
            let ids = listed(&store);
            match what {
                0 | 1 => {
                    store.prune(&keep(1 + *first as u64), false).expect("pruned");
                }
                2 | 3 => {
                    let at = |n: usize| SnapshotId(ids[n % ids.len()]);
                    let _ = store.squash(at(*first), at(first + second + 1));
                }
                // Readers and parents that are let go of.
                4 => drop(done.drain(..done.len() - 1)),
                _ => {}
            }
            for (view, model) in &done {
                check_view(view, model);
            }
        }
        for id in listed(&store) {
            check_view(&store.view(SnapshotId(id)).expect("a view"), &models[id as usize - 1]);
        }
        let report = verify(&store);
        prop_assert!(report.ok, "{:?}", report.damaged);
    }
}
