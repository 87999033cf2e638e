//! Prevents that work on many threads gives other pages than work on one: many frames at once, put
//! and read, with an error in the middle.

use crate::common::*;
use pagetide_pages::PageIndex;
use pagetide_snapshot::storage::Fault;
use pagetide_snapshot::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const COUNT: u64 = 3000;

/// Pages of all sorts: text, noise, zeros.
fn image() -> Vec<u8> {
    (0..COUNT)
        .flat_map(|n| page((n * 7 % 13) as u8, 512))
        .collect()
}

fn with_threads(threads: usize) -> WriteOptions {
    WriteOptions {
        threads,
        frame_bytes: 2048,
        ..WriteOptions::default()
    }
}

fn space() -> Vec<Space> {
    vec![Space::new("mem", size(512), vec![region(0, COUNT)])]
}

#[test]
fn the_file_is_the_same_whatever_the_threads() {
    let image = image();
    let mut lengths = Vec::new();
    for threads in [1, 2, 7] {
        let storage = MemoryStorage::new();
        let store = Store::create(Arc::new(storage)).expect("a store");
        let lock = store.lock().expect("the lock");
        let mut writer = store
            .begin(&lock, None, with_threads(threads))
            .expect("a writer");
        writer.set_spaces(space()).expect("spaces");
        let (left, right) = image.split_at(512 * 1000);
        writer
            .put_pages(0, &[(PageIndex(1000), right), (PageIndex(0), left)])
            .expect("put");
        let view = writer.commit().expect("commit");
        let found = contents(&view, 0).expect("read");
        for (number, bytes) in image.chunks(512).enumerate() {
            assert_eq!(found[&(number as u64)], Content::of(bytes), "page {number}");
        }
        let visited = AtomicUsize::new(0);
        view.read_parallel(0, pages(0, COUNT), threads, |range, content| {
            if let PageContent::Bytes(bytes) = content {
                let start = range.start().0 as usize * 512;
                assert_eq!(bytes, &image[start..start + bytes.len()]);
            }
            visited.fetch_add(range.count().0 as usize, Ordering::Relaxed);
            Ok::<(), ReadError>(())
        })
        .expect("read");
        assert_eq!(visited.into_inner(), COUNT as usize);
        lengths.push((view.info().pages, view.info().zero_pages));
    }
    assert!(lengths.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn the_first_error_ends_a_parallel_read() {
    let store = Store::create(Arc::new(MemoryStorage::new())).expect("a store");
    let lock = store.lock().expect("the lock");
    let mut writer = store.begin(&lock, None, with_threads(2)).expect("a writer");
    writer.set_spaces(space()).expect("spaces");
    writer
        .put_pages(0, &[(PageIndex(0), &image())])
        .expect("put");
    let view = writer.commit().expect("commit");
    let error = view.read_parallel(0, pages(0, COUNT), 4, |range, _| {
        let stop = range.contains(PageIndex(500));
        if stop { Err(Stopped::Here) } else { Ok(()) }
    });
    assert!(matches!(error, Err(Stopped::Here)));
}

#[derive(Debug)]
enum Stopped {
    Here,
    Read,
}

impl From<ReadError> for Stopped {
    fn from(_: ReadError) -> Self {
        Self::Read
    }
}

#[test]
fn a_failing_disk_ends_a_parallel_write() {
    let storage = MemoryStorage::new();
    let store = Store::create(Arc::new(storage.clone())).expect("a store");
    let lock = store.lock().expect("the lock");
    for at in [0, 1, 50, 300] {
        let mut writer = store.begin(&lock, None, with_threads(3)).expect("a writer");
        writer.set_spaces(space()).expect("spaces");
        storage.set_fault(Some(Fault::FailOnce(at)));
        let put = writer.put_pages(0, &[(PageIndex(0), &image())]);
        assert!(matches!(put, Err(WriteError::Io { .. })));
    }
    assert!(store.snapshots().expect("a list").good.is_empty());
}
