//! Prevents that a region shows other pages than those of its object: where it begins, what lies
//! over it, what became of the object since, and objects that cannot be shown.

use crate::common::*;
use pagetide_pages::{PageIndex, PageRange};
use pagetide_snapshot::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const OBJECT: &str = "shm:1:9";

fn new_store() -> (MemoryStorage, Store) {
    let storage = MemoryStorage::new();
    let store = Store::create(Arc::new(storage.clone())).expect("a store");
    (storage, store)
}

fn spaces(mem: Vec<Region>, object: Vec<Region>) -> Vec<Space> {
    vec![
        Space::new("mem", size(512), mem),
        Space::new(OBJECT, size(512), object),
    ]
}

/// Two mappings of an object of eight pages, one of all and one of its second half.
fn two_mappings() -> Vec<Space> {
    let mem = vec![
        showing(region(100, 108), OBJECT, 0),
        showing(region(200, 204), OBJECT, 4),
    ];
    spaces(mem, vec![region(0, 8)])
}

fn object(seed: u8) -> Vec<u8> {
    (0..8).flat_map(|n| page(seed + n, 512)).collect()
}

fn full(store: &Store, lock: &WriterLock) -> View {
    let mut writer = store.begin(lock, None, options()).expect("a writer");
    writer.set_spaces(two_mappings()).expect("spaces");
    for range in [pages(100, 108), pages(200, 204)] {
        writer.put_state(0, range, PageState::Shown).expect("put");
    }
    writer
        .put_pages(1, &[(PageIndex(0), &object(20))])
        .expect("put");
    writer.commit().expect("commit")
}

fn seeds(view: &View, space: usize) -> BTreeMap<u64, Content> {
    contents(view, space).expect("read")
}

fn expected(parts: &[(u64, std::ops::Range<u8>)]) -> BTreeMap<u64, Content> {
    let pages = parts
        .iter()
        .flat_map(|(first, seeds)| (*first..).zip(seeds.clone()));
    pages
        .map(|(number, seed)| (number, Content::of(&page(seed, 512))))
        .collect()
}

#[test]
fn all_mappings_of_an_object_show_it_and_it_is_stored_once() {
    let (_, store) = new_store();
    let lock = store.lock().expect("the lock");
    let view = full(&store, &lock);
    let info = view.info();
    assert_eq!((info.pages.0, info.zero_pages.0), (8, 0));
    assert_eq!(seeds(&view, 0), expected(&[(100, 20..28), (200, 24..28)]));
    assert_eq!(seeds(&view, 1), expected(&[(0, 20..28)]));
    let runs: Vec<_> = view.runs(0, pages(0, 300)).collect();
    let data = PageState::Data;
    assert_eq!(runs, [(pages(100, 108), data), (pages(200, 204), data)]);
    assert_eq!(view.page_state(0, PageIndex(203)), Some(PageState::Data));
    assert_eq!(view.page_state(0, PageIndex(204)), None);
    assert_eq!(view.page_hash(0, PageIndex(201)), Some(hash(25, 512)));
    // A part of a mapping, across frames of the object.
    let part: Vec<_> = view.runs(0, pages(103, 202)).map(|run| run.0).collect();
    assert_eq!(part, [pages(103, 108), pages(200, 202)]);
}

#[test]
fn a_change_of_the_object_is_seen_through_every_mapping() {
    let (_, store) = new_store();
    let lock = store.lock().expect("the lock");
    let parent = full(&store, &lock);
    let mut writer = store
        .begin(&lock, Some(&parent), options())
        .expect("a writer");
    writer.set_spaces(two_mappings()).expect("spaces");
    writer
        .put_pages(1, &[(PageIndex(5), &page(50, 512))])
        .expect("put");
    // A hole was punched.
    writer
        .put_state(1, pages(6, 7), PageState::Zero)
        .expect("put");
    let view = writer.commit().expect("commit");
    for at in [105, 201] {
        assert_eq!(view.page_hash(0, PageIndex(at)), Some(hash(50, 512)));
        assert_eq!(view.page_state(0, PageIndex(at + 1)), Some(PageState::Zero));
    }
    assert_eq!((view.info().pages.0, view.info().zero_pages.0), (1, 1));
    // Only the object itself differs.
    assert!(store.changed(&parent, &view, "mem").is_empty());
    assert_eq!(
        store.changed(&parent, &view, OBJECT).ranges(),
        [pages(5, 7)]
    );
}

#[test]
fn a_mapping_that_moves_over_its_object_differs_where_the_content_does() {
    let (_, store) = new_store();
    let lock = store.lock().expect("the lock");
    let parent = full(&store, &lock);
    let mut writer = store
        .begin(&lock, Some(&parent), options())
        .expect("a writer");
    let mut moved = two_mappings();
    moved[0].regions[1] = showing(region(200, 204), OBJECT, 3);
    writer.set_spaces(moved).expect("spaces");
    // It shows what its region shows now, whether that is said again or not.
    let view = writer.commit().expect("commit");
    assert_eq!(seeds(&view, 0), expected(&[(100, 20..28), (200, 23..27)]));
    assert_eq!(
        store.changed(&parent, &view, "mem").ranges(),
        [pages(200, 204)]
    );
}

#[test]
fn own_pages_lie_over_what_is_shown() {
    let (_, store) = new_store();
    let lock = store.lock().expect("the lock");
    let parent = full(&store, &lock);
    let mut writer = store
        .begin(&lock, Some(&parent), options())
        .expect("a writer");
    writer.set_spaces(two_mappings()).expect("spaces");
    let single = |page| PageRange::single(PageIndex(page));
    writer
        .put_state(0, single(101), PageState::Guard)
        .expect("put");
    // The same bytes as the object has: what is shown does not count as unchanged.
    writer
        .put_pages(0, &[(PageIndex(102), &page(22, 512))])
        .expect("put");
    assert_eq!(writer.counters().elided_pages.0, 0);
    writer
        .put_pages(1, &[(PageIndex(2), &page(60, 512))])
        .expect("put");
    let view = writer.commit().expect("commit");
    let mut model = expected(&[(100, 20..28), (200, 24..28)]);
    model.insert(101, Content::Guard);
    assert_eq!(seeds(&view, 0), model);
    assert_eq!(
        store.changed(&parent, &view, "mem").ranges(),
        [pages(101, 102)]
    );
    // Shown again, with pages that still are, the object is seen again.
    let mut writer = store
        .begin(&lock, Some(&view), options())
        .expect("a writer");
    writer.set_spaces(two_mappings()).expect("spaces");
    writer
        .put_state(0, pages(100, 108), PageState::Shown)
        .expect("put");
    let view = writer.commit().expect("commit");
    let mut model = expected(&[(100, 20..28), (200, 24..28)]);
    model.insert(102, Content::of(&page(60, 512)));
    assert_eq!(seeds(&view, 0), model);
}

#[test]
fn a_region_that_no_longer_shows_must_say_what_it_has() {
    let (_, store) = new_store();
    let lock = store.lock().expect("the lock");
    let parent = full(&store, &lock);
    let mut plain = two_mappings();
    plain[0].regions[1] = region(200, 204);
    let begin = || {
        let mut writer = store
            .begin(&lock, Some(&parent), options())
            .expect("a writer");
        writer.set_spaces(plain.clone()).expect("spaces");
        writer
    };
    let missing = begin().commit().expect_err("nothing is known of it");
    let WriteError::MissingPages {
        space,
        address,
        length,
    } = missing
    else {
        panic!("{missing}");
    };
    assert_eq!(
        (space.as_str(), address, length),
        ("mem", 200 * 512, 4 * 512)
    );
    let mut writer = begin();
    // Of a page that the parent did not show.
    writer
        .put_state(0, pages(199, 204), PageState::Shown)
        .expect("put");
    let misfit = writer.commit().expect_err("its region shows nothing");
    let WriteError::BadPages { pages: range, .. } = misfit else {
        panic!("{misfit}");
    };
    assert_eq!(range, pages(200, 204));
    let mut writer = begin();
    writer
        .put_pages(0, &[(PageIndex(200), &page(70, 2048))])
        .expect("put");
    writer.commit().expect("commit");
}

#[test]
fn what_is_shown_must_be_there() {
    let (_, store) = new_store();
    let lock = store.lock().expect("the lock");
    let attempt = |object: Vec<Region>, guard: PageRange| {
        let mut writer = store.begin(&lock, None, options()).expect("a writer");
        let mem = vec![showing(region(100, 108), OBJECT, 2)];
        writer.set_spaces(spaces(mem, object)).expect("spaces");
        writer
            .put_state(0, pages(100, 108), PageState::Shown)
            .expect("put");
        writer.put_state(0, guard, PageState::Guard).expect("put");
        writer
            .put_state(1, pages(0, 40), PageState::Zero)
            .expect("put");
        writer.commit()
    };
    let none = pages(0, 0);
    attempt(vec![region(2, 5), region(5, 10)], none).expect("all is there");
    let cases = [
        (vec![region(0, 9)], 9, 1),
        (vec![region(3, 10)], 2, 1),
        (vec![region(0, 4), not_captured(4, 6), region(6, 10)], 4, 2),
        (vec![], 2, 8),
    ];
    for (object, first, count) in cases {
        let error = attempt(object, none).expect_err("a page is missing");
        let WriteError::MissingPages {
            space,
            address,
            length,
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!(
            (space.as_str(), address, length),
            (OBJECT, first * 512, count * 512)
        );
    }
    // Past the end of the object nothing is shown, if that is said.
    attempt(vec![region(0, 9)], pages(107, 108)).expect("all is there");
}

#[test]
fn an_object_that_shrinks_under_a_delta_is_missed() {
    let (_, store) = new_store();
    let lock = store.lock().expect("the lock");
    let parent = full(&store, &lock);
    let mut writer = store
        .begin(&lock, Some(&parent), options())
        .expect("a writer");
    let mut shrunk = two_mappings();
    shrunk[1].regions[0] = region(0, 6);
    writer.set_spaces(shrunk).expect("spaces");
    let error = writer.commit().expect_err("two pages are gone");
    assert!(matches!(error, WriteError::MissingPages { .. }), "{error}");
}

#[test]
fn objects_that_cannot_be_shown_are_refused() {
    let (_, store) = new_store();
    let lock = store.lock().expect("the lock");
    let mut writer = store.begin(&lock, None, options()).expect("a writer");
    let shows = |space: &str, first| vec![showing(region(0, 4), space, first)];
    let other_size = |name: &str| Space::new(name, size(1024), vec![region(0, 9)]);
    let mem = |regions| Space::new("mem", size(512), regions);
    for (spaces, what) in [
        (spaces(shows("shm:7", 0), vec![]), "does not exist"),
        (spaces(shows("mem", 0), vec![]), "shows another itself"),
        (
            spaces(shows(OBJECT, 0), shows("mem", 0)),
            "shows another itself",
        ),
        (
            vec![mem(shows("big", 0)), other_size("big")],
            "pages of another size",
        ),
        (spaces(shows(OBJECT, u64::MAX - 1), vec![]), "past its last"),
        (
            spaces(shows(OBJECT, (1 << 55) - 3), vec![]),
            "past its last",
        ),
    ] {
        let error = writer.set_spaces(spaces).expect_err("refused");
        assert!(matches!(error, WriteError::Invalid { .. }), "{error}");
        assert!(error.to_string().contains(what), "{error}");
    }
    let past = spaces(shows(OBJECT, (1 << 55) - 4), vec![]);
    writer
        .set_spaces(past)
        .expect("the last pages there can be");
}

/// Where the record of the first region of `mem` says what it shows, in a full snapshot.
fn shown_place(record: &[u8]) -> usize {
    let regions = 32 + 8 + 8 + 3 + 8;
    assert_eq!(u64_at(record, regions), 2);
    regions + 8 + 16 + 4
}

#[test]
fn files_that_show_what_is_not_there_are_damaged() {
    let (storage, store) = new_store();
    full(&store, &store.lock().expect("the lock"));
    let whole = storage.get(&snapshot_name(1)).expect("a file");
    let record = metadata_record(&whole);
    let at = shown_place(&record);
    assert_eq!((record[at], record[at + 1]), (2, 1));
    let doctored = |place: usize, value: u8| {
        let mut record = record.clone();
        record[place] = value;
        with_metadata_record(&whole, &record)
    };
    let (_, index) = sections(&whole);
    let with_kind = |kind: u8| {
        let mut bytes = whole.clone();
        // The second run is of the object, which shows nothing and is of no file.
        bytes[index + 24 + 2 * 32 + 4] = kind;
        bytes[index + 24 + 2 * 32 + 24..][..8].fill(0);
        reseal(&mut bytes);
        bytes
    };
    let first_page = at + 5;
    for (bytes, what) in [
        (doctored(at + 1, 0), "shows another itself"),
        (doctored(at + 1, 2), "shows a space that does not exist"),
        (doctored(at + 4, 9), "shows a space that does not exist"),
        (doctored(first_page + 7, 0xff), "past its last address"),
        (
            doctored(first_page, 1),
            "nothing is recorded for 0x1000+0x200",
        ),
        (doctored(at, 1), "shown by regions that show nothing"),
        (with_kind(5), "shown by regions that show nothing"),
        (with_kind(6), "in regions that have none"),
    ] {
        storage.put(&snapshot_name(1), bytes);
        let store = open(&storage).expect("a store");
        let error = store.view(SnapshotId(1)).expect_err("damaged").to_string();
        assert!(error.contains(what), "{error}");
        let report = verify(&store);
        assert!(!report.ok && report.damaged[0].what.contains(what));
    }
    storage.put(&snapshot_name(1), doctored(at, 3));
    let view = open(&storage).expect("a store").view(SnapshotId(1));
    assert!(matches!(view, Err(ReadError::Future { .. })));
}
