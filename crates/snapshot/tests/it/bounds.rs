//! Prevents that a length in a file is believed before it is bounded. Lengths are made huge and the
//! checksums sound again, so that only the bounds stand in the way. The smallest huge length is a
//! tebibyte: to allocate that ends the test run.

use crate::common::*;
use pagetide_snapshot::*;

const HUGE: [u64; 4] = [1 << 40, 1 << 62, u64::MAX - 300, u64::MAX];

/// Reads everything that can be read of a store whose first snapshot is `bytes`.
fn read_all(storage: &MemoryStorage, bytes: Vec<u8>) -> Result<Seen, ReadError> {
    storage.put(&snapshot_name(1), bytes);
    let store = open(storage).expect("a store");
    let listed = store.snapshots().expect("a list");
    assert_eq!(listed.good.len() + listed.damaged.len(), 1);
    let report = verify(&store);
    let seen = see(&store, 1);
    assert!(!report.ok || seen.is_ok(), "{:?}", seen.err());
    seen
}

/// A store with one full snapshot, and its file.
fn one_snapshot() -> (MemoryStorage, Vec<u8>) {
    let (storage, _) = small_chain();
    for id in [2, 3] {
        Storage::remove(&storage, &snapshot_name(id)).expect("removed");
    }
    let bytes = storage.get(&snapshot_name(1)).expect("a file");
    (storage, bytes)
}

fn with_u64(bytes: &[u8], at: usize, value: u64) -> Vec<u8> {
    let mut doctored = bytes.to_vec();
    doctored[at..at + 8].copy_from_slice(&value.to_le_bytes());
    doctored
}

#[test]
fn lengths_in_the_header_are_bounded() {
    let (storage, whole) = one_snapshot();
    for at in [16, 88, 96, 104] {
        for value in HUGE.into_iter().chain([0, 1, u64_at(&whole, at) + 1]) {
            let mut bytes = with_u64(&whole, at, value);
            reseal_header(&mut bytes);
            read_all(&storage, bytes).expect_err("the lengths do not add up");
        }
    }
    for length in [0_u32, 19, 211, 213, 4096, 4097, u32::MAX] {
        let mut bytes = whole.clone();
        bytes[12..16].copy_from_slice(&length.to_le_bytes());
        reseal(&mut bytes);
        read_all(&storage, bytes).expect_err("the header has another length");
    }
    // Two lengths that are wrong by the same amount, so that the sum overflows to the right one.
    let mut bytes = with_u64(&whole, 88, u64_at(&whole, 88).wrapping_sub(1 << 63));
    bytes = with_u64(&bytes, 104, u64_at(&whole, 104).wrapping_add(1 << 63));
    reseal_header(&mut bytes);
    read_all(&storage, bytes).expect_err("the sum overflows");
}

#[test]
fn counts_in_the_index_are_bounded() {
    let (storage, whole) = one_snapshot();
    let (_, index) = sections(&whole);
    let runs = u64_at(&whole, index) as usize;
    let frames = index + 24 + 32 * runs;
    // The three counts; first page, count and place of the first run.
    for at in [
        index,
        index + 8,
        index + 16,
        index + 32,
        index + 40,
        index + 48,
    ] {
        for value in HUGE {
            let mut bytes = with_u64(&whole, at, value);
            reseal(&mut bytes);
            read_all(&storage, bytes).expect_err("the count is bounded");
        }
    }
    // Space of a run; space, stored length and page count of a frame.
    for at in [index + 24, frames, frames + 8, frames + 12] {
        for value in [0xffff_u32, u32::MAX] {
            let mut bytes = whole.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            reseal(&mut bytes);
            read_all(&storage, bytes).expect_err("the number is bounded");
        }
    }
}

#[test]
fn lengths_in_the_metadata_are_bounded() {
    let (storage, whole) = one_snapshot();
    // The length of the record itself.
    let (metadata, _) = sections(&whole);
    for value in HUGE {
        let mut bytes = with_u64(&whole, metadata, value);
        reseal(&mut bytes);
        read_all(&storage, bytes).expect_err("the length is bounded");
    }
    // The number of spaces; the length of the first name; after `mem` and the page size the number
    // of regions; and in the first region the lengths of path, build-id, name, advice and reason.
    let record = metadata_record(&whole);
    let regions = 32 + 8 + 8 + 3 + 8;
    assert_eq!(u64_at(&record, regions), 5);
    let path = regions + 8 + 16 + 5 + 12 + 40;
    assert_eq!(u64_at(&record, path), 0);
    for at in [32, 40, regions]
        .into_iter()
        .chain((0..5).map(|n| path + 8 * n))
    {
        for value in HUGE {
            let bytes = with_metadata_record(&whole, &with_u64(&record, at, value));
            read_all(&storage, bytes).expect_err("the length is bounded");
        }
    }
}

#[test]
fn no_number_anywhere_makes_a_reader_panic() {
    let (storage, whole) = one_snapshot();
    let (metadata, index) = sections(&whole);
    let mut refused = 0;
    for at in (16..170).chain(metadata..index).chain(index..whole.len()) {
        if at + 8 > whole.len() {
            continue;
        }
        for value in HUGE.into_iter().chain([0, 1]) {
            let mut bytes = with_u64(&whole, at, value);
            reseal(&mut bytes);
            refused += usize::from(read_all(&storage, bytes).is_err());
        }
    }
    let record = metadata_record(&whole);
    for at in 0..record.len() - 8 {
        for value in HUGE.into_iter().chain([0, 1]) {
            let bytes = with_metadata_record(&whole, &with_u64(&record, at, value));
            refused += usize::from(read_all(&storage, bytes).is_err());
        }
    }
    assert!(refused > whole.len() - metadata);
}

#[test]
fn a_frame_that_unfolds_to_more_than_its_pages_is_refused() {
    let (storage, whole) = one_snapshot();
    let (_, index) = sections(&whole);
    let frame = index + 24 + 32 * u64_at(&whole, index) as usize;
    let stored = u32::from_le_bytes(whole[frame + 8..frame + 12].try_into().expect("four bytes"));
    // In the place of the first frame, of two small pages, one of 4 MiB of zeros.
    let bomb = zstd_of_zeros(4 << 20);
    assert!(bomb.len() < 1024, "short enough for the frame it replaces");
    let mut bytes = whole[..212].to_vec();
    bytes.extend_from_slice(&bomb);
    bytes.extend_from_slice(&whole[212 + stored as usize..]);
    let grown = (bomb.len() as u64).wrapping_sub(u64::from(stored));
    let frame = frame.wrapping_add(grown as usize);
    bytes[frame + 4..frame + 6].copy_from_slice(&1_u16.to_le_bytes());
    bytes[frame + 8..frame + 12].copy_from_slice(&(bomb.len() as u32).to_le_bytes());
    bytes[frame + 16..frame + 48].copy_from_slice(blake3::hash(&bomb).as_bytes());
    for at in [16, 88] {
        bytes = with_u64(&bytes, at, u64_at(&bytes, at).wrapping_add(grown));
    }
    reseal(&mut bytes);
    let error = read_all(&storage, bytes).expect_err("it is refused");
    assert!(error.to_string().contains("decompress"), "{error}");
}

fn zstd_of_zeros(length: usize) -> Vec<u8> {
    zstd::bulk::compress(&vec![0; length], 1).expect("compressed")
}
