//! Regions that come, go, grow and shrink while snapshots are taken, and memory that a snapshot is put into. What a region
//! has is compared with `/proc/self/mem`, at its place in the space.

#![allow(unsafe_code)]

use crate::snaps::{content, differing_from, exact, place, snap, store};
use pagetide::{OwnMemory, OwnMemoryError, OwnMemoryOptions, OwnRegion, Placement};
use pagetide_pages::{PageCount, PageIndex};
use pagetide_snapshot::{SnapshotKind, Store, View};
use pagetide_testing::{PAGE, Region, needs};

/// The first `pages` pages of a region, at `first` of the space.
fn part(region: &Region, pages: usize, first: u64) -> Placement {
    // SAFETY: memory of the test alone, to which no reference exists, and which outlives what is made of it.
    let named = unsafe { OwnRegion::new(region.start() as *mut u8, pages * PAGE) };
    Placement::new(named, PageIndex(first))
}

/// True if the snapshot has what the first `pages` pages of `region` hold, at `first` of the space.
fn has(view: &View, region: &Region, pages: usize, first: u64) -> bool {
    let space = view.space_index("memory").expect("the space");
    let now = content(region);
    let mut stored = vec![0; PAGE];
    now.chunks_exact(PAGE)
        .take(pages)
        .zip(first..)
        .all(|(now, page)| {
            let read = view.read_page(space, PageIndex(page), &mut stored);
            read.is_ok() && stored == now
        })
}

fn made(store: Store, regions: &[Placement]) -> OwnMemory {
    OwnMemory::new(store, regions, OwnMemoryOptions::default()).expect("good regions")
}

#[test]
fn regions_are_added_grown_shrunk_moved_and_removed() {
    needs!(wp_async);
    let (one, two) = (Region::filled(64, 5), Region::filled(64, 6));
    let mut own = made(store(), &[part(&one, 16, 0)]);
    snap(&mut own).unwrap();
    let under_way = {
        one.store(3, 9);
        own.capture().unwrap()
    };
    // Grown, and another added.
    own.set_regions(&[part(&one, 32, 0), part(&two, 64, 100)])
        .unwrap();
    one.store(20, 7);
    let stored = under_way.commit().unwrap();
    assert_eq!(stored.view.spaces()[0].regions.len(), 1);
    let stored = snap(&mut own).unwrap();
    assert!(has(&stored.view, &one, 32, 0) && has(&stored.view, &two, 64, 100));
    assert_eq!(stored.written_pages, PageCount(16 + 64));
    // Shrunk: what is gone is not in the snapshot, and nobody tracks it.
    own.set_regions(&[part(&one, 8, 0), part(&two, 64, 100)])
        .unwrap();
    let stored = snap(&mut own).unwrap();
    assert_eq!(stored.view.page_state(0, PageIndex(9)), None);
    one.unmap(8..64);
    one.store(2, 1);
    two.store(2, 1);
    let stored = snap(&mut own).unwrap();
    assert_eq!(stored.written_pages, PageCount(2));
    // At another place of the space; what was there is another's now.
    own.set_regions(&[part(&two, 64, 0)]).unwrap();
    let stored = snap(&mut own).unwrap();
    assert!(has(&stored.view, &two, 64, 0));
    // Removed, changed, and there again.
    let three = Region::filled(8, 1);
    own.set_regions(&[part(&three, 8, 0)]).unwrap();
    two.fill(10..20, 99);
    snap(&mut own).unwrap();
    own.set_regions(&[part(&three, 8, 0), part(&two, 64, 100)])
        .unwrap();
    let stored = snap(&mut own).unwrap();
    assert!(has(&stored.view, &two, 64, 100) && has(&stored.view, &three, 8, 0));
}

#[test]
fn a_change_of_regions_that_is_refused_changes_nothing() {
    needs!(wp_async);
    let (one, two, three) = (
        Region::filled(64, 5),
        Region::filled(64, 6),
        Region::filled(8, 7),
    );
    let mut own = made(store(), &[part(&one, 64, 0)]);
    let other = made(store(), &[part(&two, 64, 0)]);
    exact(&mut own, &one, "full");
    let error = own.set_regions(&[part(&one, 64, 0), part(&two, 64, 100)]);
    let error = error.expect_err("it belongs to another");
    assert!(matches!(error, OwnMemoryError::InUse { .. }), "{error}");
    three.unmap(3..4);
    let error = own.set_regions(&[part(&three, 8, 0)]).expect_err("a hole");
    assert!(matches!(error, OwnMemoryError::NotMapped { .. }), "{error}");
    one.store(9, 9);
    assert_eq!(exact(&mut own, &one, "goes on").written_pages, PageCount(1));
    drop(other);
    own.set_regions(&[part(&one, 64, 0), part(&two, 64, 100)])
        .unwrap();
}

#[test]
fn the_snapshot_after_a_restore_is_a_delta() {
    needs!(wp_async);
    let store = store();
    let region = Region::filled(3000, 5);
    region.advise(100..2000, nix::libc::MADV_DONTNEED).unwrap();
    let (view, truth) = {
        let mut own = made(store.clone(), &[place(&region, 0)]);
        exact(&mut own, &region, "full");
        region.fill(40..50, 7);
        (exact(&mut own, &region, "delta").view, content(&region))
    };
    let fresh = Region::private(3000);
    fresh.store(1500, 3);
    let mut own = made(store.clone(), &[place(&fresh, 0)]);
    assert_eq!(own.restore(&view).unwrap(), PageCount(1101));
    assert!(content(&fresh) == truth);
    fresh.store(77, 1);
    let next = exact(&mut own, &fresh, "after it");
    assert_eq!(next.view.info().parent, Some(view.id()));
    assert_eq!(next.view.info().kind, SnapshotKind::Delta);
    assert!(
        next.written_pages <= PageCount(1 + 1900),
        "{:?}",
        next.written_pages
    );
    assert!(next.view.info().pages <= PageCount(1));
    drop(own);
    // Restored by other means, and wrongly so in one place.
    let other = Region::private(3000);
    other.store_bytes(0, &truth);
    other.store(2500, 9);
    let mut own = made(store, &[place(&other, 0)]);
    own.resume_from(&view).unwrap();
    let next = exact(&mut own, &other, "after it");
    assert_eq!(next.view.info().parent, Some(view.id()));
    assert_eq!(next.view.info().pages, PageCount(1));
    other.store(3, 3);
    assert_eq!(snap(&mut own).unwrap().written_pages, PageCount(1));
}

#[test]
fn a_snapshot_of_another_store_is_no_parent() {
    needs!(wp_async);
    let region = Region::filled(16, 5);
    let view = {
        let mut own = made(store(), &[place(&region, 0)]);
        snap(&mut own).unwrap().view
    };
    let mut own = made(store(), &[place(&region, 0)]);
    for refused in [own.resume_from(&view).err(), own.restore(&view).err()] {
        let error = refused.expect("it is elsewhere");
        assert!(
            matches!(error, OwnMemoryError::OtherStore { .. }),
            "{error}"
        );
    }
    region.store(3, 1);
    own.roll_back(&view)
        .expect("memory can be put back all the same");
    assert_eq!(region.load(3), 5);
    let full = exact(&mut own, &region, "full");
    assert!(differing_from(&full.view, &content(&region)).is_empty());
}
