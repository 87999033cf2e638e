//! What a delta costs of pages in which a few bytes were written: as differences, and as whole pages beside it.

use crate::report::{Row, median, rate};
use anyhow::Context;
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSize};
use pagetide_snapshot::{
    ReadError, Region, Shadow, SnapshotId, Space, Store, View, WriteOptions, WriterLock,
};
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
const PAGES: usize = 16 << 10;
const DELTAS: usize = 64;
const PAGE_BYTES: usize = 4096;

/// How long a delta of all pages took, and how many bytes of its file there are for each page.
struct Cost {
    time: Duration,
    bytes: u64,
}

pub fn measure() -> anyhow::Result<Vec<Row>> {
    let sparse = [true, false].map(|has_shadow| deltas(has_shadow, 8));
    let [differences, whole] =
        sparse.map(|cost| cost.context("a store in the temporary directory"));
    let (differences, whole) = (differences?, whole?);
    let dense = [true, false].map(|has_shadow| deltas(has_shadow, PAGE_BYTES));
    let [compared, plain] = dense.map(|cost| cost.context("a store in the temporary directory"));
    let (compared, plain) = (compared?, plain?);
    let (chain, full) = reading_a_chain()?;
    Ok(vec![
        Row {
            what: "delta, 8 bytes written in each page, half noise",
            ours: cost_in_words(&differences),
            limit: format!("whole pages: {}", cost_in_words(&whole)),
            ratio: Some(differences.bytes as f64 / whole.bytes as f64),
            bar: "<= 60 B, 1/15",
        },
        Row {
            what: "delta, all pages new, with a shadow",
            ours: cost_in_words(&compared),
            limit: format!("without: {}", cost_in_words(&plain)),
            ratio: crate::report::ratio(plain.time, compared.time),
            bar: ">= 0.95",
        },
        Row {
            what: "reading a snapshot that is 64 deltas, 8 bytes in each tenth page",
            ours: rate((PAGES * PAGE_BYTES) as u64, chain),
            limit: format!("full: {}", rate((PAGES * PAGE_BYTES) as u64, full)),
            ratio: crate::report::ratio(chain, full),
            bar: "<= 1.25",
        },
    ])
}

/// How long it takes to open and read all of a snapshot that is a chain of deltas, and of the full one that it begins with.
fn reading_a_chain() -> anyhow::Result<(Duration, Duration)> {
    let directory = tempfile::tempdir()?;
    let store = Store::create_directory(directory.path().join("store"))?;
    let lock = store.lock()?;
    let options = WriteOptions {
        shadow: Some(Shadow::new(1 << 30)),
        ..WriteOptions::default()
    };
    let mut noise = 1;
    let mut memory = half_noise(&mut noise);
    let full = put(&store, &lock, None, &options, &memory)?;
    let mut last = full.clone();
    for round in 0..DELTAS {
        let written = memory.chunks_mut(PAGE_BYTES).skip(round % 10).step_by(10);
        for page in written {
            fill(&mut page[64 * (round % 32)..][..8], &mut noise);
        }
        last = put(&store, &lock, Some(&last), &options, &memory)?;
    }
    let (mut of_chain, mut of_full) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        of_full.push(read(&store, full.id())?);
        of_chain.push(read(&store, last.id())?);
    }
    Ok((median(of_chain), median(of_full)))
}

fn read(store: &Store, id: SnapshotId) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let view = store.view(id)?;
    let all = PageRange::with_count(PageIndex(0), PageCount(PAGES as u64));
    view.read_parallel(0, all, 0, |_, _| Ok::<(), ReadError>(()))?;
    Ok(started.elapsed())
}

fn cost_in_words(cost: &Cost) -> String {
    let rate = rate((PAGES * PAGE_BYTES) as u64, cost.time);
    format!("{rate}, {} B a page", cost.bytes)
}

/// A full snapshot and deltas of all pages, in each of which `written` bytes were written, on one thread.
fn deltas(has_shadow: bool, written: usize) -> anyhow::Result<Cost> {
    let directory = tempfile::tempdir()?;
    let store = Store::create_directory(directory.path().join("store"))?;
    let lock = store.lock()?;
    let options = WriteOptions {
        threads: 1,
        shadow: has_shadow.then(|| Shadow::new(1 << 30)),
        ..WriteOptions::default()
    };
    let mut noise = 1;
    let mut memory = half_noise(&mut noise);
    let mut last = put(&store, &lock, None, &options, &memory)?;
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        for page in memory.chunks_mut(PAGE_BYTES) {
            match written {
                PAGE_BYTES => fill(&mut page[..PAGE_BYTES / 2], &mut noise),
                _ => fill(&mut page[512 * round..][..written], &mut noise),
            }
        }
        let started = Instant::now();
        last = put(&store, &lock, Some(&last), &options, &memory)?;
        times.push(started.elapsed());
    }
    Ok(Cost {
        time: median(times),
        bytes: last.info().stored_bytes / PAGES as u64,
    })
}

/// Pages of which one half is noise, and the other zeros.
fn half_noise(noise: &mut u64) -> Vec<u8> {
    let mut memory = vec![0; PAGES * PAGE_BYTES];
    for page in memory.chunks_mut(PAGE_BYTES) {
        fill(&mut page[..PAGE_BYTES / 2], noise);
    }
    memory
}

fn fill(bytes: &mut [u8], noise: &mut u64) {
    for word in bytes.chunks_mut(8) {
        *noise = noise
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let mixed = (*noise ^ *noise >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&mixed.to_le_bytes()[..word.len()]);
    }
}

fn put(
    store: &Store,
    lock: &WriterLock,
    parent: Option<&View>,
    options: &WriteOptions,
    memory: &[u8],
) -> anyhow::Result<View> {
    let mut writer = store.begin(lock, parent, options.clone())?;
    let pages = PageRange::with_count(PageIndex(0), PageCount(PAGES as u64));
    let region = Region::anonymous(pages);
    writer.set_spaces(vec![Space::new("mem", PageSize::KIB_4, vec![region])])?;
    writer.put_pages(0, &[(PageIndex(0), memory)])?;
    Ok(writer.commit()?)
}
