//! Prevents that a chain written by an earlier version can no longer be read: the files in
//! `tests/data/format-1` were written once, by an earlier `examples/golden.rs`, and must be read for
//! ever. What they hold is written out here a second time, by hand.

use crate::common::*;
use pagetide_pages::PageIndex;
use pagetide_snapshot::*;
use std::path::Path;

const STORE_ID: &str = "ff36835a3a6f253306073b68a664fc65";
const CONTENT_HASHES: [&str; 2] = [
    "f6b5385202fcac1aed8fb93543814a499af03749d8b5dbd8db2f7742a285c848",
    "4ef39ce75cf1f685dd3a4965ee222e37075bfd9328f345d73d091a22b75e78fc",
];

fn golden() -> Store {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/format-1");
    Store::open_directory(path).expect("the store of format 1")
}

pub fn bytes_of(view: &View, space: usize, number: u64) -> Vec<u8> {
    let mut bytes = vec![0xaa; view.spaces()[space].page_size.len()];
    view.read_page(space, PageIndex(number), &mut bytes)
        .expect("read");
    bytes
}

/// The page that has `text` again and again.
pub fn repeated(text: &str, length: usize) -> Vec<u8> {
    text.bytes().cycle().take(length).collect()
}

/// The page whose byte number n is (n * n / 7 + n) % 251.
pub fn uneven(length: usize) -> Vec<u8> {
    (0..length).map(|n| ((n * n / 7 + n) % 251) as u8).collect()
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
            (
                i.id.0,
                i.parent.map(|p| p.0),
                i.kind,
                i.pages.0,
                i.zero_pages.0,
                i.logical_bytes,
            )
        })
        .collect();
    let expected = [
        (1, None, SnapshotKind::Full, 4, 3, 9 * 4096 + 2 * 65536),
        (2, Some(1), SnapshotKind::Delta, 2, 1, 10 * 4096 + 2 * 65536),
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
    assert_eq!(view.attachment("empty"), Some(&b""[..]));
    let mem = &view.spaces()[0];
    assert_eq!((mem.name.as_str(), mem.page_size.bytes()), ("mem", 4096));
    assert_eq!(mem.regions.len(), 3);
    assert_eq!(mem.regions[0].pages, pages(0x10, 0x18));
    assert_eq!(mem.regions[0].name, "[heap]");
    assert_eq!(mem.regions[0].advice, ["hugepage", "dontfork"]);
    assert_eq!(mem.regions[0].backing, Backing::Anonymous);
    let text = Region {
        pages: pages(0x20, 0x21),
        protection: Protection {
            read: true,
            write: false,
            execute: true,
        },
        sharing: Sharing::Private,
        backing: Backing::File {
            path: b"/usr/bin/true\xff".to_vec(),
            offset_bytes: 8192,
            device: 0xfd01,
            inode: 123456,
            size_bytes: 26936,
            modified_ns: -1_500_000_000,
            build_id: vec![],
        },
        name: String::new(),
        advice: vec![],
        capture: Capture::Captured,
        shows: None,
    };
    assert_eq!(mem.regions[1], text);
    assert_eq!(mem.regions[2].backing, Backing::Kernel);
    let reason = "the kernel makes it".to_owned();
    assert_eq!(mem.regions[2].capture, Capture::NotCaptured { reason });
    let shared = &view.spaces()[1];
    assert_eq!(
        (shared.name.as_str(), shared.page_size.bytes()),
        ("shm:8:1234", 65536)
    );
    assert_eq!(shared.regions[0].sharing, Sharing::Shared);
    let backing = Backing::SharedMemory {
        path: b"/memfd:buffer".to_vec(),
        offset_bytes: 65536,
        device: 8,
        inode: 1234,
    };
    assert_eq!(shared.regions[0].backing, backing);

    assert_eq!(bytes_of(&view, 0, 0x10), repeated("page sixteen ", 4096));
    assert_eq!(bytes_of(&view, 0, 0x11), uneven(4096));
    assert_eq!(bytes_of(&view, 0, 0x12), repeated("eighteen", 4096));
    for number in 0x13..0x15 {
        assert_eq!(bytes_of(&view, 0, number), vec![0; 4096]);
    }
    assert_eq!(view.page_state(0, PageIndex(0x15)), Some(PageState::Guard));
    assert_eq!(view.page_state(0, PageIndex(0x17)), Some(PageState::Guard));
    assert_eq!(view.page_state(0, PageIndex(0x18)), None);
    assert_eq!(
        view.page_state(0, PageIndex(0x20)),
        Some(PageState::Unbacked)
    );
    assert_eq!(view.page_state(0, PageIndex(0x30)), None);
    assert_eq!(bytes_of(&view, 1, 0), vec![0; 65536]);
    assert_eq!(bytes_of(&view, 1, 1), repeated("shared", 65536));
}

#[test]
fn the_delta_is_what_it_was() {
    let view = golden().view(SnapshotId(2)).expect("a view");
    assert_eq!(view.attachments().len(), 1);
    assert_eq!(view.attachment("registers"), Some(&b"rip=0x401005"[..]));
    assert_eq!(view.spaces()[0].regions[0].pages, pages(0x10, 0x19));
    assert_eq!(bytes_of(&view, 0, 0x10), repeated("page sixteen ", 4096));
    assert_eq!(bytes_of(&view, 0, 0x11), repeated("changed ", 4096));
    assert_eq!(bytes_of(&view, 0, 0x12), vec![0; 4096]);
    assert_eq!(bytes_of(&view, 0, 0x18), uneven(4096));
    assert_eq!(view.page_state(0, PageIndex(0x16)), Some(PageState::Guard));
    assert_eq!(
        view.page_state(0, PageIndex(0x20)),
        Some(PageState::Unbacked)
    );
    assert_eq!(bytes_of(&view, 1, 1), repeated("shared", 65536));
    let store = golden();
    let parent = store.view(SnapshotId(1)).expect("a view");
    let changed = store.changed(&parent, &view, "mem");
    assert_eq!(changed.ranges(), [pages(0x11, 0x13), pages(0x18, 0x19)]);
}

/// A copy of the chain with a doctored first snapshot, which then has sound checksums.
fn doctored(change: impl Fn(&mut Vec<u8>)) -> Store {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/format-1");
    let storage = MemoryStorage::new();
    for name in ["pagetide-store", "snapshots/0000000001.snap"] {
        let mut bytes = std::fs::read(path.join(name)).expect("a file of the chain");
        if name == snapshot_name(1) {
            let (metadata, _) = sections(&bytes);
            change(&mut bytes);
            let (length, frames) = (bytes.len() as u64, metadata as u64 - 212);
            let index = length - 212 - frames - u64_at(&bytes, 96);
            bytes[16..24].copy_from_slice(&length.to_le_bytes());
            bytes[104..112].copy_from_slice(&index.to_le_bytes());
            reseal(&mut bytes);
        }
        storage.put(name, bytes);
    }
    open(&storage).expect("a store")
}

#[test]
fn what_came_with_format_2_is_damage_in_format_1() {
    doctored(|_| ()).view(SnapshotId(1)).expect("not changed");
    let refused = |store: Store, what: &str| {
        let error = store.view(SnapshotId(1)).expect_err("refused");
        assert!(matches!(error, ReadError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(what), "{error}");
    };
    for kind in [5, 6] {
        let store = doctored(|bytes| {
            let (_, index) = sections(bytes);
            let mut kinds = (0..).map(|run| index + 24 + 32 * run + 4);
            let zeros = kinds.find(|&at| bytes[at] == 2).expect("a run of zeros");
            bytes[zeros] = kind;
        });
        refused(store, "a kind that format 1 does not have");
    }
    let store = doctored(|bytes| {
        let (_, index) = sections(bytes);
        bytes[index + 16] += 1;
        bytes.extend_from_slice(&[1; 16]);
    });
    refused(store, "one hash for each stored page");
    // The same file, but for the version that it says it has.
    refused(
        doctored(|bytes| bytes[8] = 2),
        "its metadata does not decode",
    );
}
