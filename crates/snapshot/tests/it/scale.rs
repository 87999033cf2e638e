//! Prevents that a snapshot of a process with mappings by the ten thousands takes time by their
//! square. Nothing is timed: with 60,000 regions and as many spaces and pages, what is quadratic does
//! billions of steps, many times over, and the test would run for minutes where it takes seconds.

use crate::common::*;
use pagetide_pages::{PageCount, PageIndex, PageRange};
use pagetide_snapshot::*;
use std::sync::Arc;

const MAPPINGS: u64 = 60_000;

fn object(number: u64) -> String {
    format!("shm:1:{number}")
}

/// Regions of two pages with a gap after each: anonymous, of a file, and showing an object of their
/// own or all the same.
fn spaces() -> Vec<Space> {
    let mut spaces = vec![Space::new("mem", size(512), Vec::new())];
    let mut regions = Vec::new();
    for number in 0..MAPPINGS {
        let plain = region(3 * number, 3 * number + 2);
        regions.push(match number % 4 {
            0 => plain,
            1 => of_file(plain),
            2 => showing(plain, "shm:all", number % 1000),
            _ => {
                let own = Space::new(object(number), size(512), vec![region(0, 2)]);
                spaces.push(own);
                showing(plain, &object(number), 0)
            }
        });
    }
    spaces[0].regions = regions;
    spaces.push(Space::new("shm:all", size(512), vec![region(0, 1002)]));
    spaces
}

fn put_all(writer: &mut SnapshotWriter, spaces: &[Space], pages_of: impl Fn(u64) -> Vec<u8>) {
    for (number, region) in (0..).zip(&spaces[0].regions) {
        let first = region.pages.start();
        let put = match number % 4 {
            0 => writer.put_pages(0, &[(first, &pages_of(number))]),
            1 => writer.put_file_pages(0, first, &[hash(9, 512), hash((number % 251) as u8, 512)]),
            _ => writer.put_state(0, region.pages, PageState::Shown),
        };
        put.expect("put");
    }
    for space in 1..spaces.len() {
        writer
            .put_pages(space, &[(PageIndex(0), &pages_of(space as u64))])
            .expect("put");
    }
}

#[test]
fn sixty_thousand_mappings_are_no_trouble() {
    let storage = MemoryStorage::new();
    let store = Store::create(Arc::new(storage.clone())).expect("a store");
    let lock = store.lock().expect("the lock");
    let spaces = spaces();
    let two = |number: u64| [page(8 + (number % 97) as u8, 512), page(1, 512)].concat();
    let options = WriteOptions {
        deduplicate: true,
        ..WriteOptions::default()
    };
    let mut writer = store.begin(&lock, None, options.clone()).expect("a writer");
    writer.set_spaces(spaces.clone()).expect("spaces");
    writer
        .put_state(spaces.len() - 1, pages(0, 1002), PageState::Zero)
        .expect("put");
    put_all(&mut writer, &spaces, two);
    let full = writer.commit().expect("commit");
    // 97 kinds of first pages and one of second ones, whatever shows them.
    assert_eq!(full.info().file_pages, PageCount(MAPPINGS / 2));

    // Everything is said again, one page of an object and one of a region are new.
    let mut writer = store.begin(&lock, Some(&full), options).expect("a writer");
    writer.set_spaces(spaces.clone()).expect("spaces");
    put_all(&mut writer, &spaces, two);
    for (space, page_number) in [(0, 12), (7, 1)] {
        writer
            .put_pages(space, &[(PageIndex(page_number), &page(200, 512))])
            .expect("put");
    }
    let delta = writer.commit().expect("commit");
    assert_eq!((delta.info().pages.0, delta.info().file_pages.0), (2, 0));

    let store = open(&storage).expect("a store");
    let again = store.view(delta.id()).expect("a view");
    for view in [&delta, &again] {
        let mut visited = PageCount(0);
        view.read_parallel(0, pages(0, u64::MAX), 2, |_, _| Ok::<(), ReadError>(()))
            .expect("read");
        for (range, _) in view.runs(0, pages(0, u64::MAX)) {
            visited += range.count();
        }
        assert_eq!(visited, PageCount(2 * MAPPINGS));
        // Every page by itself.
        for number in 0..3 * MAPPINGS {
            let page = PageIndex(number);
            assert_eq!(view.page_hash(0, page).is_some(), number % 3 < 2);
        }
        let differ = store.changed(&full, view, "mem");
        assert_eq!(differ.ranges(), [PageRange::single(PageIndex(12))]);
        for space in &spaces[1..] {
            let differ = store.changed(&full, view, &space.name);
            assert_eq!(differ.count().0, u64::from(space.name == spaces[7].name));
        }
    }
    assert!(verify(&store).ok);
}
