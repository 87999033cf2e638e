//! Prevents that a chain of format 2 can no longer be read: the files in `tests/data/format-2` were
//! written once by `examples/golden.rs` and must be read for ever. What they hold is written out here
//! a second time, by hand.

use crate::common::*;
use crate::golden::{bytes_of, repeated, uneven};
use pagetide_pages::PageIndex;
use pagetide_snapshot::*;
use std::path::Path;

const STORE_ID: &str = "e67a65a63e548ef6af7fb6d58f549712";
const CONTENT_HASHES: [&str; 2] = [
    "8fb47b046165715e8ff781d8466fa32e5eae43c6801bca58d237ff390074acd6",
    "a4d68be8b52dc361e3e7efaab008f30c84e804f0087a514db51088a99e5c22dd",
];

fn golden() -> Store {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/format-2");
    Store::open_directory(path).expect("the store of format 2")
}

fn file(text: &str) -> Option<PageHash> {
    Some(PageHash::of(&repeated(text, 4096)))
}

fn runs(view: &View, space: usize) -> Vec<((u64, u64), PageState)> {
    view.runs(space, pages(0, u64::MAX))
        .map(|(range, state)| ((range.start().0, range.end().0), state))
        .collect()
}

#[test]
fn the_chain_is_listed() {
    let store = golden();
    assert_eq!(store.id().to_string(), STORE_ID);
    let listed = store.snapshots().expect("a list");
    assert!(listed.damaged.is_empty());
    let seen: Vec<_> = listed
        .good
        .iter()
        .map(|i| {
            let pages = (i.pages.0, i.zero_pages.0, i.file_pages.0);
            (i.id.0, i.parent.map(|p| p.0), pages, i.logical_bytes)
        })
        .collect();
    let expected = [
        (1, None, (7, 4, 3), 23 * 4096 + 2 * 65536),
        (2, Some(1), (5, 1, 1), 24 * 4096 + 2 * 65536),
    ];
    assert_eq!(seen, expected);
    let hashes: Vec<_> = listed
        .good
        .iter()
        .map(|i| i.content_hash.to_string())
        .collect();
    assert_eq!(hashes, CONTENT_HASHES);
    let report = verify(&store);
    assert!(report.ok, "{:?}", report.damaged);
}

#[test]
fn the_full_snapshot_is_what_it_was() {
    let view = golden().view(SnapshotId(1)).expect("a view");
    assert_eq!(view.attachment("registers"), Some(&b"rip=0x401000"[..]));
    let mem = &view.spaces()[0];
    assert_eq!((mem.name.as_str(), mem.regions.len()), ("mem", 5));
    let Backing::File {
        build_id, inode, ..
    } = &mem.regions[1].backing
    else {
        panic!("the text is of a file");
    };
    assert_eq!(
        (build_id.as_slice(), *inode),
        (&[0xc0, 0xff, 0xee, 0][..], 123456)
    );
    let shows = |at: usize| mem.regions[at].shows.clone().expect("it shows something");
    assert_eq!(mem.regions[0].shows, None);
    assert_eq!(shows(3), shown_page("shm:8:1234", 0));
    assert_eq!(shows(4), shown_page("shm:8:1234", 2));
    assert_eq!(view.spaces()[2].name, "shm:8:1234");

    use PageState::{Data, File, Guard, Unbacked, Zero};
    let expected = [
        ((0x10, 0x13), Data),
        ((0x13, 0x15), Zero),
        ((0x15, 0x18), Guard),
        ((0x20, 0x23), File),
        ((0x23, 0x24), Unbacked),
        ((0x40, 0x41), Data),
        ((0x41, 0x42), Guard),
        ((0x42, 0x44), Data),
        ((0x44, 0x45), Unbacked),
        ((0x50, 0x52), Data),
    ];
    assert_eq!(runs(&view, 0), expected);
    for (at, text) in [(0x20, "file 0"), (0x21, "file 1"), (0x22, "file 2")] {
        assert_eq!(view.page_hash(0, PageIndex(at)), file(text));
    }
    assert_eq!(bytes_of(&view, 0, 0x11), uneven(4096));
    assert_eq!(bytes_of(&view, 0, 0x12), repeated("eighteen", 4096));
    assert_eq!(bytes_of(&view, 0, 0x40), uneven(4096));
    assert_eq!(bytes_of(&view, 0, 0x42), repeated("object two ", 4096));
    assert_eq!(bytes_of(&view, 0, 0x43), repeated("eighteen", 4096));
    assert_eq!(bytes_of(&view, 0, 0x50), repeated("object two ", 4096));
    assert_eq!(bytes_of(&view, 0, 0x51), repeated("eighteen", 4096));
    assert_eq!(bytes_of(&view, 1, 1), repeated("shared", 65536));
    assert_eq!(bytes_of(&view, 2, 1), vec![0; 4096]);
}

#[test]
fn the_delta_is_what_it_was() {
    let store = golden();
    let view = store.view(SnapshotId(2)).expect("a view");
    assert_eq!(view.spaces()[0].regions[0].pages, pages(0x10, 0x19));
    assert_eq!(bytes_of(&view, 0, 0x11), repeated("changed ", 4096));
    assert_eq!(bytes_of(&view, 0, 0x18), uneven(4096));
    assert_eq!(view.page_hash(0, PageIndex(0x20)), file("file 0"));
    assert_eq!(bytes_of(&view, 0, 0x21), repeated("copied ", 4096));
    assert_eq!(view.page_hash(0, PageIndex(0x22)), file("replaced"));
    assert_eq!(view.page_state(0, PageIndex(0x22)), Some(PageState::File));
    assert_eq!(view.page_state(0, PageIndex(0x41)), Some(PageState::Guard));
    for at in [0x42, 0x50] {
        assert_eq!(bytes_of(&view, 0, at), repeated("changed ", 4096));
    }
    assert_eq!(bytes_of(&view, 0, 0x43), repeated("eighteen", 4096));
    assert_eq!(bytes_of(&view, 0, 0x51), repeated("own ", 4096));
    assert_eq!(bytes_of(&view, 2, 2), repeated("changed ", 4096));
    let parent = store.view(SnapshotId(1)).expect("a view");
    let changed = store.changed(&parent, &view, "mem");
    let expected = [
        pages(0x11, 0x13),
        pages(0x18, 0x19),
        pages(0x21, 0x23),
        pages(0x51, 0x52),
    ];
    assert_eq!(changed.ranges(), expected);
    let changed = store.changed(&parent, &view, "shm:8:1234");
    assert_eq!(changed.ranges(), [pages(2, 3)]);
}

fn shown_page(space: &str, first: u64) -> Shown {
    Shown {
        space: space.into(),
        first_page: PageIndex(first),
    }
}
