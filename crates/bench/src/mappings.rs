//! A process of sixty thousand mappings: what a snapshot costs for each of them, against a bare reading of
//! `/proc/PID/maps` and one scan of each contiguous span.

#![allow(unsafe_code)]

use crate::report::{Row, median, ratio};
use crate::target::{PAGE, Target, fill, scatter};
use pagetide::{Checkpointer, Options, Request, Residence};
use pagetide_kernel::maps;
use pagetide_kernel::pagemap_scan::{Categories, Pagemap, ScanRequest, ScannedRange};
use pagetide_pages::{PageSet, PageSize};
use pagetide_snapshot::Store;
use rustix::mm::{MprotectFlags, mprotect};
use std::hint::black_box;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

const MAPPINGS: usize = 60_000;
const ROUNDS: usize = 7;
const WRITTEN: usize = 600;

/// The target's side: memory of which every second page may not be written.
pub fn serve() -> anyhow::Result<()> {
    let mut memory = vec![1u8; (MAPPINGS + 1) * PAGE];
    let skip = memory.as_ptr().align_offset(PAGE);
    let pages = &mut memory[skip..skip + MAPPINGS * PAGE];
    fill(pages);
    for page in pages.chunks_mut(PAGE).skip(1).step_by(2) {
        // SAFETY: a whole page of this allocation, borrowed by nobody else and not stored to before it
        // may be written again; the allocation is never freed, since the process exits with it.
        unsafe { mprotect(page.as_mut_ptr().cast(), PAGE, MprotectFlags::READ) }?;
    }
    let mut stdout = std::io::stdout();
    writeln!(stdout, "ready")?;
    let mut writable: Vec<&mut [u8]> = pages.chunks_mut(PAGE).step_by(2).collect();
    let (mut round, count) = (1, writable.len());
    for line in std::io::stdin().lock().lines() {
        for number in 0..line?.trim_start_matches("write ").parse()? {
            scatter(writable[number * 48 % count], 1, &mut round);
        }
        writeln!(stdout, "0")?;
    }
    std::process::exit(0)
}

pub fn measure() -> anyhow::Result<Vec<Row>> {
    let mut target = Target::start_as("mappings")?;
    let directory = tempfile::tempdir()?;
    let store = Store::create_directory(directory.path().join("store"))?;
    let mut options = Options::default();
    options.residence = Residence::Here;
    let mut checkpointer = Checkpointer::attach(target.pid()?, store, options)?;
    let full = checkpointer.take(Request::default())?;
    let (mut bare, mut total, mut stop) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        target.write(WRITTEN)?;
        bare.push(bare_loop(target.pid()?)?);
        let delta = checkpointer.take(Request::default())?;
        total.push(delta.total);
        stop.push(delta.stop);
    }
    let bare = median(bare);
    let row = |what, ours| Row {
        what,
        ours: a_mapping(ours),
        limit: format!("{} bare maps + scan", a_mapping(bare)),
        ratio: ratio(ours, bare),
        bar: "",
    };
    Ok(vec![
        row("time per mapping, 60,000 mappings, full", full.total),
        row("time per mapping, 60,000 mappings, delta", median(total)),
        row(
            "time per mapping, 60,000 mappings, stop window",
            median(stop),
        ),
    ])
}

fn a_mapping(time: Duration) -> String {
    format!("{:.2} us", time.as_secs_f64() * 1e6 / MAPPINGS as f64)
}

/// Mappings as text, and the written pages of each contiguous span.
fn bare_loop(pid: i32) -> anyhow::Result<Duration> {
    let all = maps::mappings(pid)?;
    let spans: PageSet = all.iter().map(maps::Mapping::pages).collect();
    let pagemap = Pagemap::of_process(pid)?;
    let mut vector = vec![ScannedRange::EMPTY; 8192];
    let started = Instant::now();
    black_box(std::fs::read(format!("/proc/{pid}/maps"))?);
    for &span in spans.ranges() {
        let (start, end) = PageSize::KIB_4.span_of(span);
        // `[vsyscall]` is in the kernel's half.
        if i64::try_from(end).is_err() {
            continue;
        }
        let written = ScanRequest {
            all_of: Categories::WRITTEN,
            returned: Categories::WRITTEN,
            ..ScanRequest::over(start, end)
        };
        pagemap.scan(&written, &mut vector, |range| {
            black_box(range);
        })?;
    }
    Ok(started.elapsed())
}
