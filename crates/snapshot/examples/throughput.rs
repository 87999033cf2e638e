//! Measures how fast snapshots are written and read, and how large they get, by frame size and
//! level: the figures in `docs/FORMAT.md`. In memory, so that no disk is measured.
//!
//! `cargo run --release --example throughput -- [FILE ...]`: the pages are those of the files,
//! which should be memory images.

use pagetide_pages::{PageCount, PageIndex, PageRange, PageSize};
use pagetide_snapshot::*;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn pages(count: u64) -> PageRange {
    PageRange::with_count(PageIndex(0), PageCount(count))
}

struct Measured {
    stored_bytes: u64,
    write: Duration,
    read: Duration,
    read_parallel: Duration,
    one_page: Duration,
}

fn measure(
    image: &[u8],
    frame_bytes: usize,
    level: i32,
    threads: usize,
) -> Result<Measured, Box<dyn Error>> {
    let count = (image.len() / 4096) as u64;
    let store = Store::create(Arc::new(MemoryStorage::new()))?;
    let lock = store.lock()?;
    let options = WriteOptions {
        compression: Compression::Zstd(level),
        threads,
        frame_bytes,
        ..WriteOptions::default()
    };
    let start = Instant::now();
    let mut writer = store.begin(&lock, None, options)?;
    let region = Region::anonymous(pages(count));
    writer.set_spaces(vec![Space::new("mem", PageSize::KIB_4, vec![region])])?;
    for (number, part) in image.chunks(64 << 20).enumerate() {
        let first = PageIndex(number as u64 * ((64 << 20) / 4096));
        writer.put_pages(0, &[(first, part)])?;
    }
    let view = writer.commit()?;
    let write = start.elapsed();

    let start = Instant::now();
    let mut checked = 0_u64;
    view.read(0, pages(count), |range, _| {
        checked += range.count().0;
        Ok::<(), ReadError>(())
    })?;
    assert_eq!(checked, count);
    let read = start.elapsed();
    let start = Instant::now();
    view.read_parallel(0, pages(count), 0, |_, _| Ok::<(), ReadError>(()))?;
    let read_parallel = start.elapsed();

    let mut page = vec![0; 4096];
    let (mut number, probes) = (1_u64, 2000);
    let start = Instant::now();
    for _ in 0..probes {
        number = number.wrapping_mul(6364136223846793005).wrapping_add(1);
        view.read_page(0, PageIndex((number >> 20) % count), &mut page)?;
    }
    Ok(Measured {
        stored_bytes: view.info().stored_bytes,
        write,
        read,
        read_parallel,
        one_page: start.elapsed() / probes,
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut image = Vec::new();
    for path in std::env::args().skip(1) {
        image.extend(std::fs::read(path)?);
    }
    image.truncate(image.len() / 4096 * 4096);
    println!("{} MiB; MiB/s of pages", image.len() >> 20);
    println!("level frame_KiB threads  ratio  write   read read_all  one_page_us");
    let speed = |time: Duration| image.len() as f64 / 1048576.0 / time.as_secs_f64();
    for level in [1, 3] {
        for frame_kib in [16, 64, 128, 256, 1024] {
            for threads in [1, 2] {
                // The middle one of three, by writing time.
                let mut runs: Vec<Measured> = (0..3)
                    .map(|_| measure(&image, frame_kib << 10, level, threads))
                    .collect::<Result<_, _>>()?;
                runs.sort_by_key(|run| run.write);
                let run = &runs[1];
                println!(
                    "{level:5} {frame_kib:9} {threads:7} {:6.2} {:6.0} {:6.0} {:8.0} {:12.1}",
                    image.len() as f64 / run.stored_bytes as f64,
                    speed(run.write),
                    speed(run.read),
                    speed(run.read_parallel),
                    run.one_page.as_secs_f64() * 1e6
                );
            }
        }
    }
    Ok(())
}
