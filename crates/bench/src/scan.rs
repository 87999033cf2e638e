//! Finding the written pages of a gigabyte of own memory: a harvest against a bare PAGEMAP_SCAN loop.

use crate::report::{Row, median, milliseconds, ratio};
use crate::target::{MIB, fill, scatter};
use pagetide_kernel::pagemap_scan::{Categories, Pagemap, ScanFlags, ScanRequest, ScannedRange};
use pagetide_pages::{PageRange, PageSize};
use pagetide_tracker::{Tracker, WpAsync};
use std::hint::black_box;
use std::time::{Duration, Instant};

const ROUNDS: usize = 31;

/// A gigabyte of own memory that is tracked, and what a bare scan of it needs.
pub struct Tracked {
    pub memory: Vec<u8>,
    pub range: PageRange,
    pub tracker: WpAsync,
    pub pagemap: Pagemap,
    pub vector: Vec<ScannedRange>,
}

impl Tracked {
    pub fn new() -> anyhow::Result<Self> {
        let mut memory = vec![1u8; MIB << 20];
        fill(&mut memory);
        let start = (memory.as_ptr() as u64).next_multiple_of(4096);
        let end = (memory.as_ptr() as u64 + memory.len() as u64) & !4095;
        let range = PageSize::KIB_4.covering(start, end);
        let mut tracker = WpAsync::of_self()?;
        tracker.harvest(&[range])?.commit();
        Ok(Self {
            memory,
            range,
            tracker,
            pagemap: Pagemap::of_self()?,
            vector: vec![ScannedRange::EMPTY; 8192],
        })
    }

    pub fn bare_scan(&mut self) -> anyhow::Result<Duration> {
        bare_scan(&self.pagemap, self.range, &mut self.vector)
    }
}

pub fn measure() -> anyhow::Result<Vec<Row>> {
    let mut tracked = Tracked::new()?;
    let mut round = 1;
    let mut rows = Vec::new();
    for (what, written) in [
        ("scan, nothing written", 0),
        ("scan, 1 % written", (MIB << 8) / 100),
        ("scan, 10 % written", (MIB << 8) / 10),
    ] {
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            scatter(&mut tracked.memory, written, &mut round);
            bare.push(tracked.bare_scan()?);
            scatter(&mut tracked.memory, written, &mut round);
            let started = Instant::now();
            let harvest = tracked.tracker.harvest(&[tracked.range])?;
            ours.push(started.elapsed());
            harvest.commit();
        }
        let (ours, bare) = (median(ours), median(bare));
        rows.push(Row {
            what,
            ours: milliseconds(ours),
            limit: format!("{} bare ioctl loop", milliseconds(bare)),
            ratio: ratio(ours, bare),
            bar: "<= 1.10",
        });
    }
    Ok(rows)
}

/// What the kernel gives at best: the ioctl again and again, with the result left in the vector.
fn bare_scan(
    pagemap: &Pagemap,
    range: PageRange,
    vector: &mut [ScannedRange],
) -> anyhow::Result<Duration> {
    let (start, end) = PageSize::KIB_4.span_of(range);
    let mut request = ScanRequest {
        flags: ScanFlags::WRITE_PROTECT_MATCHING,
        all_of: Categories::WRITTEN,
        returned: Categories::WRITTEN,
        ..ScanRequest::over(start, end)
    };
    let started = Instant::now();
    loop {
        let progress = pagemap.scan_once(&request, vector)?;
        black_box(&vector[..progress.filled]);
        if progress.complete {
            return Ok(started.elapsed());
        }
        request.start = progress.walk_end;
    }
}
