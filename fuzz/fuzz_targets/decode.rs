//! Finds snapshot files that make a reader panic, hang or allocate without bound. The input changes
//! a sound file, which then gets sound checksums again: otherwise no input would pass the first.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pagetide_kernel::counted_memory::CountedMemory;
use pagetide_pages::{PageIndex, PageRange, PageSize};
use pagetide_snapshot::*;
use std::sync::{Arc, LazyLock};

/// Counts what is allocated: no input may make it much.
#[global_allocator]
static MEMORY: CountedMemory = CountedMemory::new();

/// Metadata may be 64 MiB long, and is held packed, unpacked and decoded.
const MOST_BYTES: usize = 256 << 20;

const STORE: &str = "pagetide-store";
const SNAPSHOT: &str = "snapshots/0000000001.snap";

/// The store file and a small full snapshot, with a region that shows another space, one of a file,
/// and pages that are stored once.
static SOUND: LazyLock<(Vec<u8>, Vec<u8>)> = LazyLock::new(|| {
    let storage = MemoryStorage::new();
    let store = Store::create(Arc::new(storage.clone())).expect("a store");
    let lock = store.lock().expect("the lock");
    let options = WriteOptions {
        threads: 1,
        frame_bytes: 1024,
        deduplicate: true,
        ..WriteOptions::default()
    };
    let mut writer = store.begin(&lock, None, options).expect("a writer");
    let range = |start, end| PageRange::new(PageIndex(start), PageIndex(end));
    let region = |start, end| Region::anonymous(range(start, end));
    let of_file = Region {
        backing: Backing::File {
            path: b"/bin/x".to_vec(),
            offset_bytes: 512,
            device: 1,
            inode: 2,
            size_bytes: 4000,
            modified_ns: -1,
            build_id: vec![1, 2],
        },
        ..region(12, 15)
    };
    let showing = Region {
        shows: Some(Shown {
            space: "shm:1:2".into(),
            first_page: PageIndex(1),
        }),
        ..region(20, 23)
    };
    let size = PageSize::new(512).expect("a page size");
    let mem = Space::new("mem", size, vec![region(4, 10), of_file, showing]);
    let object = Space::new("shm:1:2", size, vec![region(0, 4)]);
    writer.set_spaces(vec![mem, object]).expect("spaces");
    writer.attach("registers", vec![1, 2, 3]).expect("attach");
    writer.put_state(0, range(4, 10), PageState::Guard).expect("put");
    writer.put_pages(0, &[(PageIndex(5), &[7; 2048])]).expect("put");
    let hashes = [PageHash([1; 16]), PageHash([2; 16]), PageHash([3; 16])];
    writer.put_file_pages(0, PageIndex(12), &hashes).expect("put");
    writer.put_state(0, range(20, 23), PageState::Shown).expect("put");
    writer.put_pages(1, &[(PageIndex(0), &[9; 1024]), (PageIndex(2), &[7; 1024])]).expect("put");
    writer.commit().expect("commit");
    let get = |name| storage.get(name).expect("a file");
    (get(STORE), get(SNAPSHOT))
});

fn u64_at(bytes: &[u8], at: usize) -> usize {
    bytes[at..at + 8].iter().rev().fold(0, |sum, &byte| sum << 8 | usize::from(byte))
}

/// Makes the checksums of `file` right, as far as its lengths make sense.
fn reseal(file: &mut [u8]) {
    if file.len() < 212 {
        return;
    }
    let metadata = u64_at(file, 88).saturating_add(212);
    let index = metadata.saturating_add(u64_at(file, 96));
    if index <= file.len() {
        let hashes = [&file[metadata..index], &file[index..]].map(blake3::hash);
        file[112..144].copy_from_slice(hashes[0].as_bytes());
        file[144..176].copy_from_slice(hashes[1].as_bytes());
    }
    let content = *blake3::hash(&file[..176]).as_bytes();
    file[176..208].copy_from_slice(&content);
    let crc = crc32c::crc32c(&file[..208]);
    file[208..212].copy_from_slice(&crc.to_le_bytes());
}

fuzz_target!(|input: &[u8]| {
    let (descriptor, sound) = &*SOUND;
    let mut file = sound.clone();
    // Three bytes at a time: where, and what to put there. The first byte may cut the file.
    let (cut, changes) = input.split_first().unwrap_or((&0, &[]));
    for change in changes.chunks_exact(3) {
        let at = usize::from(change[0]) << 8 | usize::from(change[1]);
        let length = file.len();
        file[at % length] = change[2];
    }
    file.truncate(file.len() - usize::from(*cut) / 16);
    let length = file.len() as u64;
    if cut % 2 == 1 {
        file[16..24].copy_from_slice(&length.to_le_bytes());
    }
    if cut % 4 < 2 {
        reseal(&mut file);
    }
    let storage = MemoryStorage::new();
    storage.put(STORE, descriptor.clone());
    storage.put(SNAPSHOT, file);
    let store = Store::open(Arc::new(storage)).expect("the store file is sound");
    let report = store.verify(&|_| ()).expect("memory does not fail");
    let listed = store.snapshots().expect("memory does not fail");
    assert_eq!(listed.good.len() + listed.damaged.len(), 1);
    let read = store.view(SnapshotId(1)).and_then(|view| {
        let all = PageRange::new(PageIndex(0), PageIndex(u64::MAX));
        (0..view.spaces().len()).try_for_each(|space| {
            let states: Vec<_> = view.runs(space, all).collect();
            assert!(states.iter().all(|(_, state)| *state != PageState::Shown));
            assert!(store.changed(&view, &view, &view.spaces()[space].name).is_empty());
            view.read(space, all, |_, _| Ok::<(), ReadError>(()))
        })
    });
    assert!(!report.ok || read.is_ok(), "what is sound can be read");
    let peak = MEMORY.take_peak();
    assert!(peak < MOST_BYTES, "{peak} bytes were allocated at once");
});
