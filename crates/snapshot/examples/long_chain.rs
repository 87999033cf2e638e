//! What a chain costs by its length: opening it, one more snapshot, a page at random, descriptors and memory. It is what stands in
//! `docs/FORMAT.md`, in "Long chains".
//!
//! `cargo run --release -p pagetide-snapshot --example long_chain -- DIRECTORY`

use pagetide_pages::{PageCount, PageIndex, PageRange, PageSize};
use pagetide_snapshot::*;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Memory of 64 MiB, of which each snapshot has 16 pages.
const PAGES: u64 = 16 << 10;
const WRITTEN: u64 = 16;

fn spaces() -> Vec<Space> {
    let pages = PageRange::with_count(PageIndex(0), PageCount(PAGES));
    vec![Space::new(
        "mem",
        PageSize::KIB_4,
        vec![Region::anonymous(pages)],
    )]
}

fn page(seed: u64) -> Vec<u8> {
    let words = (0..512_u64).map(|n| {
        seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(n as u32 % 64)
            >> 40
    });
    words.flat_map(u64::to_le_bytes).collect()
}

fn add(
    store: &Store,
    lock: &WriterLock,
    parent: Option<&View>,
    number: u64,
) -> Result<View, Box<dyn Error>> {
    let mut writer = store.begin(lock, parent, WriteOptions::default())?;
    writer.set_spaces(spaces())?;
    let written: Vec<u64> = match parent {
        None => (0..PAGES).collect(),
        Some(_) => (0..WRITTEN)
            .map(|n| (number * 7919 + n * 1021) % PAGES)
            .collect(),
    };
    for at in written {
        writer.put_pages(0, &[(PageIndex(at), &page(number * PAGES + at))])?;
    }
    Ok(writer.commit()?)
}

fn own(name: &str) -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(name));
    let words = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(words.unwrap_or("0").parse()?)
}

fn measure(place: &Path, count: u64) -> Result<(), Box<dyn Error>> {
    let directory = place.join(count.to_string());
    let store = Store::create_directory(&directory)?;
    let lock = store.lock()?;
    let mut last = add(&store, &lock, None, 0)?;
    let mut took = Vec::new();
    for number in 1..count {
        let since = Instant::now();
        last = add(&store, &lock, Some(&last), number)?;
        took.push(since.elapsed());
    }
    let mut latest: Vec<Duration> = took.into_iter().rev().take(100).collect();
    latest.sort_unstable();
    let commit = latest[latest.len() / 2];
    drop(last);
    let since = Instant::now();
    let view = Store::open_directory(&directory)?.view(SnapshotId(count))?;
    let open = since.elapsed();
    let mut buffer = vec![0; 4096];
    let since = Instant::now();
    for number in 0..200 {
        view.read_page(0, PageIndex(number * 77_777 % PAGES), &mut buffer)?;
    }
    let read = since.elapsed() / 200;
    println!(
        "| {count} | {:.1} ms | {:.2} ms | {} us | {} | {} MiB |",
        open.as_secs_f64() * 1e3,
        commit.as_secs_f64() * 1e3,
        read.as_micros(),
        fs::read_dir("/proc/self/fd")?.count(),
        own("VmRSS")? / 1024
    );
    fs::remove_dir_all(directory)?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let place = std::env::args().nth(1).ok_or("a directory is needed")?;
    println!("| snapshots | open | one more | a page at random | descriptors | own memory |");
    println!("|---|---|---|---|---|---|");
    for count in [10, 1000, 10_000] {
        measure(Path::new(&place), count)?;
    }
    Ok(())
}
