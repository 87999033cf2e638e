//! Prevents that pages of files are taken for others: that hashes move, that a region without a file
//! has such pages, and that the store serves bytes that it does not have.

use crate::common::*;
use pagetide_pages::PageIndex;
use pagetide_snapshot::*;
use std::sync::Arc;

fn spaces() -> Vec<Space> {
    let regions = vec![of_file(region(10, 20)), region(20, 24)];
    vec![Space::new("mem", size(512), regions)]
}

fn hashes(seeds: std::ops::Range<u8>) -> Vec<PageHash> {
    seeds.map(|seed| hash(seed, 512)).collect()
}

fn new_store() -> (MemoryStorage, Store) {
    let storage = MemoryStorage::new();
    let store = Store::create(Arc::new(storage.clone())).expect("a store");
    (storage, store)
}

/// Ten pages of a file, the third and fourth written, then four anonymous pages.
fn full(store: &Store, lock: &WriterLock) -> View {
    let mut writer = store.begin(lock, None, options()).expect("a writer");
    writer.set_spaces(spaces()).expect("spaces");
    // In two calls, the later part first, and some of it twice.
    for (first, seeds) in [(15, 25..30), (10, 40..43), (10, 20..25)] {
        writer
            .put_file_pages(0, PageIndex(first), &hashes(seeds))
            .expect("put");
    }
    writer
        .put_pages(0, &[(PageIndex(12), &page(60, 1024))])
        .expect("put");
    writer
        .put_state(0, pages(20, 24), PageState::Zero)
        .expect("put");
    writer.commit().expect("commit")
}

#[test]
fn pages_of_files_are_hashes_and_nothing_else() {
    let (storage, store) = new_store();
    let lock = store.lock().expect("the lock");
    let view = full(&store, &lock);
    let info = view.info();
    assert_eq!(
        (info.pages.0, info.zero_pages.0, info.file_pages.0),
        (2, 4, 8)
    );
    let again = open(&storage).expect("a store").view(SnapshotId(1));
    for view in [view, again.expect("a view")] {
        let file = PageState::File;
        let runs: Vec<_> = view.runs(0, pages(0, 20)).collect();
        let data = (pages(12, 14), PageState::Data);
        assert_eq!(runs, [(pages(10, 12), file), data, (pages(14, 20), file)]);
        for (page, seed) in [(10, 20), (11, 21), (14, 24), (15, 25), (19, 29)] {
            let found = view.page_hash(0, PageIndex(page));
            assert_eq!(found, Some(hash(seed, 512)), "page {page}");
        }
        let mut seen = Vec::new();
        view.read(0, pages(13, 18), |range, content| {
            if let PageContent::File(hashes) = content {
                seen.push((range, hashes.to_vec()));
            }
            Ok::<(), ReadError>(())
        })
        .expect("read");
        assert_eq!(seen, [(pages(14, 18), hashes(24..28))]);
    }
    // Four of the twelve hashes that were put did not last: 8 and 2 of 16 bytes are in the index.
    let bytes = storage.get(&snapshot_name(1)).expect("a file");
    let (_, index) = sections(&bytes);
    assert_eq!(u64_at(&bytes, index + 16), 10);
}

#[test]
fn the_store_does_not_serve_what_it_does_not_have() {
    let (_, store) = new_store();
    let view = full(&store, &store.lock().expect("the lock"));
    let error = view
        .read_page(0, PageIndex(15), &mut [0; 512])
        .expect_err("the bytes are in the file");
    let ReadError::InFile { space, address, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!((space.as_str(), *address), ("mem", 15 * 512));
    assert!(error.to_string().contains("0x1e00"), "{error}");
}

#[test]
fn a_delta_holds_and_changes_pages_of_files() {
    let (storage, store) = new_store();
    let lock = store.lock().expect("the lock");
    let parent = full(&store, &lock);
    let mut writer = store
        .begin(&lock, Some(&parent), options())
        .expect("a writer");
    writer.set_spaces(spaces()).expect("spaces");
    // Written, then dropped: the file is seen again. Beside it the file has changed.
    writer
        .put_file_pages(0, PageIndex(12), &hashes(22..23))
        .expect("put");
    let mut changed = hashes(24..30);
    changed[3] = hash(90, 512);
    writer
        .put_file_pages(0, PageIndex(14), &changed)
        .expect("put");
    // The bytes of the file, but in a private copy: that is not the same.
    writer
        .put_pages(0, &[(PageIndex(10), &page(20, 512))])
        .expect("put");
    assert_eq!(writer.counters().file_pages.0, 7);
    let view = writer.commit().expect("commit");
    // What the parent has already is not recorded again.
    assert_eq!((view.info().pages.0, view.info().file_pages.0), (1, 2));
    let again = open(&storage).expect("a store");
    let again = again.view(SnapshotId(2)).expect("a view");
    for view in [&view, &again] {
        let mut expected = hashes(20..30);
        expected[3] = PageHash::of(&page(60, 1024)[512..]);
        expected[7] = hash(90, 512);
        for (page, hash) in (10..).zip(expected) {
            assert_eq!(view.page_hash(0, PageIndex(page)), Some(hash), "{page}");
        }
        assert_eq!(view.page_state(0, PageIndex(10)), Some(PageState::Data));
        assert_eq!(view.page_state(0, PageIndex(12)), Some(PageState::File));
        let differ = store.changed(&parent, view, "mem");
        assert_eq!(differ.ranges(), [pages(12, 13), pages(17, 18)]);
    }
    // Bytes equal to those of the parent's file are stored all the same.
    assert_eq!(again.info().pages.0, 1);
}

#[test]
fn regions_without_a_file_have_no_pages_of_one() {
    let (_, store) = new_store();
    let lock = store.lock().expect("the lock");
    let parent = full(&store, &lock);
    let begin = |parent: Option<&View>, spaces| {
        let mut writer = store.begin(&lock, parent, options()).expect("a writer");
        writer.set_spaces(spaces).expect("spaces");
        writer
    };
    let mut writer = begin(Some(&parent), spaces());
    writer
        .put_file_pages(0, PageIndex(18), &hashes(50..55))
        .expect("put");
    let error = writer.commit().expect_err("refused");
    let WriteError::BadPages { pages: range, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(range, pages(20, 23));
    // Something else was mapped there, and nobody said what it has.
    let anonymous = vec![Space::new("mem", size(512), vec![region(10, 24)])];
    let error = begin(Some(&parent), anonymous).commit();
    let error = error.expect_err("nothing is known of it");
    assert!(matches!(error, WriteError::MissingPages { .. }), "{error}");
    let mut writer = begin(None, spaces());
    let without = writer.put_state(0, pages(10, 20), PageState::File);
    assert!(matches!(without, Err(WriteError::BadPages { .. })));
    let past = writer.put_file_pages(0, PageIndex(u64::MAX), &hashes(1..3));
    assert!(matches!(past, Err(WriteError::BadPages { .. })));
    let nowhere = writer.put_file_pages(1, PageIndex(0), &[]);
    assert!(matches!(nowhere, Err(WriteError::Invalid { .. })));
}

#[test]
fn what_identifies_a_file_is_kept() {
    let (storage, store) = new_store();
    full(&store, &store.lock().expect("the lock"));
    let view = open(&storage).expect("a store").view(SnapshotId(1));
    let Backing::File {
        build_id,
        size_bytes,
        modified_ns,
        ..
    } = view.expect("a view").spaces()[0].regions[0].backing.clone()
    else {
        panic!("it has a file");
    };
    assert_eq!(build_id, [0xab, 0, 7]);
    assert_eq!((size_bytes, modified_ns), (99999, -3));
}

#[test]
fn files_that_misplace_hashes_are_damaged() {
    let (storage, store) = new_store();
    full(&store, &store.lock().expect("the lock"));
    let whole = storage.get(&snapshot_name(1)).expect("a file");
    let (_, index) = sections(&whole);
    let run = |number: usize| index + 24 + 32 * number;
    assert_eq!((whole[run(0) + 4], whole[run(1) + 4]), (6, 1));
    assert_eq!(u64_at(&whole, run(0) + 24), 2, "after the stored pages");
    let with = |changes: &[(usize, u64)]| {
        let mut bytes = whole.clone();
        for &(at, value) in changes {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        reseal(&mut bytes);
        bytes
    };
    // Hashes of stored pages for a file; hashes past the last; data in the hashes of the file; and
    // hashes that belong to nobody's pages, of which format 1 has none.
    let mut first = with(&[]);
    first[8] = 1;
    reseal(&mut first);
    // The counters of data, zeros and pages in files.
    let record = metadata_record(&whole);
    let miscounted = [8, 16, 24].map(|at| {
        let mut record = record.clone();
        record[at] += 1;
        let bytes = with_metadata_record(&whole, &record);
        (bytes, "its counters do not match its index")
    });
    let misplaced = [
        (with(&[(run(0) + 24, 1)]), "points past the hashes"),
        (with(&[(run(0) + 24, 9)]), "points past the hashes"),
        (with(&[(run(0) + 24, u64::MAX)]), "points past the hashes"),
        (with(&[(run(1) + 24, 1)]), "points past the stored pages"),
        (first, "its metadata does not decode"),
    ];
    for (bytes, what) in misplaced.into_iter().chain(miscounted) {
        storage.put(&snapshot_name(1), bytes);
        let store = open(&storage).expect("a store");
        let error = store.view(SnapshotId(1)).expect_err("damaged").to_string();
        assert!(error.contains(what), "{error}");
    }
}
