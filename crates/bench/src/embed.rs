//! Memory of our own, as an engine or a monitor uses it: captures, resets and restores of a gigabyte, each beside the bare
//! calls under it, in turn.

#![allow(unsafe_code)]

use crate::report::{Row, median, milliseconds, ratio};
use crate::target::{MIB, PAGE, fill, scatter};
use pagetide::{OwnMemory, OwnMemoryOptions, OwnRegion, OwnTracker, OwnTrackerOptions, Placement};
use pagetide_kernel::pagemap_scan::{Categories, Pagemap, ScanFlags, ScanRequest, ScannedRange};
use pagetide_kernel::userfaultfd::WriteProtector;
use pagetide_pages::PageIndex;
use pagetide_snapshot::Store;
use std::hint::black_box;
use std::time::{Duration, Instant};

const ROUNDS: usize = 201;
/// 0.1 % of a gigabyte, and what a fuzzer's input was seen to write.
const WRITTEN: usize = (MIB << 8) / 1000;
const BY_AN_INPUT: usize = 265;

/// A gigabyte of memory that is filled, from the first whole page on.
struct Memory {
    bytes: Vec<u8>,
    skip: usize,
}

impl Memory {
    fn filled() -> Self {
        let mut memory = Self::fresh();
        fill(memory.pages());
        memory
    }

    fn fresh() -> Self {
        let bytes = vec![0u8; (MIB << 20) + PAGE];
        let skip = bytes.as_ptr().align_offset(PAGE);
        Self { bytes, skip }
    }

    fn pages(&mut self) -> &mut [u8] {
        &mut self.bytes[self.skip..][..MIB << 20]
    }

    fn place(&mut self) -> Placement {
        let (start, length) = (self.pages().as_mut_ptr(), MIB << 20);
        // SAFETY: the memory outlives what is made of it, and nothing of it is borrowed while it is put back.
        Placement::new(unsafe { OwnRegion::new(start, length) }, PageIndex(0))
    }
}

/// The bare calls: a userfaultfd and a scan that reports and protects.
struct Bare {
    _protector: WriteProtector,
    pagemap: Pagemap,
    vector: Vec<ScannedRange>,
    start: u64,
}

impl Bare {
    fn new(memory: &mut Memory) -> anyhow::Result<Self> {
        let start = memory.pages().as_ptr() as u64;
        let protector = WriteProtector::of_self()?;
        protector.register(start, (MIB << 20) as u64)?;
        let mut bare = Self {
            _protector: protector,
            pagemap: Pagemap::of_self()?,
            vector: vec![ScannedRange::EMPTY; 8192],
            start,
        };
        bare.scan(|_, _| {})?;
        Ok(bare)
    }

    /// Reports and protects, as offsets.
    fn scan(&mut self, mut each: impl FnMut(usize, usize)) -> anyhow::Result<()> {
        let (start, end) = (self.start, self.start + (MIB << 20) as u64);
        let request = ScanRequest {
            flags: ScanFlags::WRITE_PROTECT_MATCHING,
            all_of: Categories::WRITTEN,
            returned: Categories::WRITTEN,
            ..ScanRequest::over(start, end)
        };
        Ok(self.pagemap.scan(&request, &mut self.vector, |found| {
            each(
                (found.start() - start) as usize,
                (found.end() - start) as usize,
            );
        })?)
    }
}

pub fn measure() -> anyhow::Result<Vec<Row>> {
    let mut rows = captures()?;
    rows.push(resets()?);
    rows.push(many_regions()?);
    rows.extend(restores()?);
    Ok(rows)
}

fn last_of_hundred(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

fn captures() -> anyhow::Result<Vec<Row>> {
    let (mut ours, mut other) = (Memory::filled(), Memory::filled());
    let directory = tempfile::tempdir()?;
    let store = Store::create_directory(directory.path().join("store"))?;
    let mut own = OwnMemory::new(store, &[ours.place()], OwnMemoryOptions::default())?;
    own.prepare(64 << 20);
    own.precopy()?;
    let first = own.capture()?;
    let first_pause = first.paused();
    first.commit()?;
    let mut bare = Bare::new(&mut other)?;
    let mut copy = vec![1u8; 2 * WRITTEN * PAGE];
    let mut round = 1;
    let (mut captured, mut scanned) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        scatter(other.pages(), WRITTEN, &mut round);
        let started = Instant::now();
        let memory = other.pages();
        let mut at = 0;
        bare.scan(|from, to| {
            copy[at..at + to - from].copy_from_slice(&memory[from..to]);
            at += to - from;
        })?;
        black_box(&copy);
        scanned.push(started.elapsed());
        scatter(ours.pages(), WRITTEN, &mut round);
        let started = Instant::now();
        let one = own.capture()?;
        captured.push(started.elapsed());
        one.commit()?;
    }
    let slowest = last_of_hundred(captured.clone());
    let (captured, scanned) = (median(captured), median(scanned));
    Ok(vec![
        Row {
            what: "own memory: capture, 0.1 % written",
            ours: format!("{}, p99 {}", milliseconds(captured), milliseconds(slowest)),
            limit: format!("{} bare scan + memcpy", milliseconds(scanned)),
            ratio: ratio(captured, scanned),
            bar: "<= 1.15",
        },
        Row {
            what: "own memory: pause for the first snapshot, copied before",
            ours: milliseconds(first_pause),
            limit: String::new(),
            ratio: None,
            bar: "<= 5 ms",
        },
    ])
}

fn resets() -> anyhow::Result<Row> {
    let (mut ours, mut other) = (Memory::filled(), Memory::filled());
    let mut tracker = OwnTracker::new(&[ours.place()], OwnTrackerOptions::default())?;
    let baseline = tracker.baseline()?;
    let truth = other.pages().to_vec();
    let mut bare = Bare::new(&mut other)?;
    let mut round = 1;
    let (mut reset, mut by_hand) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        scatter(other.pages(), BY_AN_INPUT, &mut round);
        let started = Instant::now();
        let memory = other.pages();
        let mut written = Vec::new();
        bare.scan(|from, to| written.push((from, to)))?;
        for (from, to) in written {
            memory[from..to].copy_from_slice(&truth[from..to]);
        }
        bare.scan(|_, _| {})?;
        by_hand.push(started.elapsed());
        scatter(ours.pages(), BY_AN_INPUT, &mut round);
        let started = Instant::now();
        tracker.reset_to(&baseline)?;
        reset.push(started.elapsed());
    }
    anyhow::ensure!(ours.pages() == &truth[..], "a reset left something");
    let (reset, by_hand) = (median(reset), median(by_hand));
    Ok(Row {
        what: "own memory: reset of 265 written pages",
        ours: format!(
            "{}, {:.0} a second",
            milliseconds(reset),
            1.0 / reset.as_secs_f64()
        ),
        limit: format!("{} bare scan + memcpy + scan", milliseconds(by_hand)),
        ratio: ratio(reset, by_hand),
        bar: "<= 1.50, >= 600 a second",
    })
}

fn many_regions() -> anyhow::Result<Row> {
    const REGIONS: usize = 8000;
    let mut memory = Memory::fresh();
    let start = memory.pages().as_mut_ptr();
    let places: Vec<Placement> = (0..REGIONS)
        .map(|number| {
            // SAFETY: as above; the regions lie apart in it.
            let region =
                unsafe { OwnRegion::new(start.wrapping_add(number * 17 * PAGE), 16 * PAGE) };
            Placement::new(region, PageIndex(number as u64 * 20))
        })
        .collect();
    let directory = tempfile::tempdir()?;
    let store = Store::create_directory(directory.path().join("store"))?;
    let mut own = OwnMemory::new(store, &places, OwnMemoryOptions::default())?;
    own.prepare(256 << 20);
    own.capture()?.commit()?;
    let mut times = Vec::new();
    for round in 0..11u8 {
        for number in 0..REGIONS {
            for page in [1, 5, 9] {
                memory.pages()[(number * 17 + page) * PAGE] = round;
            }
        }
        let started = Instant::now();
        let captured = own.capture()?;
        times.push(started.elapsed());
        captured.commit()?;
    }
    Ok(Row {
        what: "own memory: capture of 8,000 regions, 3 pages of each",
        ours: milliseconds(median(times)),
        limit: String::new(),
        ratio: None,
        bar: "<= 10 ms",
    })
}

fn restores() -> anyhow::Result<Vec<Row>> {
    let directory = tempfile::tempdir()?;
    let store = Store::create_directory(directory.path().join("store"))?;
    let truth = {
        let mut memory = Memory::filled();
        let place = memory.place();
        let mut own = OwnMemory::new(store.clone(), &[place], OwnMemoryOptions::default())?;
        let mut round = 1;
        for _ in 0..25 {
            own.capture()?.commit()?;
            scatter(memory.pages(), WRITTEN, &mut round);
        }
        own.capture()?.commit()?;
        drop(own);
        memory
    };
    let newest = store.newest()?.map(|info| info.id);
    let view = store.view(newest.ok_or_else(|| anyhow::anyhow!("an empty store"))?)?;
    let (mut copied, mut restored, mut lazily) = (Vec::new(), Vec::new(), Vec::new());
    let mut truth = truth;
    for _ in 0..3 {
        let mut fresh = Memory::fresh();
        let started = Instant::now();
        fresh.pages().copy_from_slice(truth.pages());
        copied.push(started.elapsed());
        drop(fresh);
        let mut fresh = Memory::fresh();
        let started = Instant::now();
        let options = OwnMemoryOptions::default();
        let mut own = OwnMemory::new(store.clone(), &[fresh.place()], options)?;
        own.restore(&view)?;
        restored.push(started.elapsed());
        drop(own);
        anyhow::ensure!(fresh.pages() == truth.pages(), "restored to something else");
        drop(fresh);
        let mut fresh = Memory::fresh();
        let (place, options) = (fresh.place(), OwnMemoryOptions::default());
        let started = Instant::now();
        let (own, _) = OwnMemory::populate_lazily(store.clone(), &view, &[place], options)?;
        black_box(fresh.pages()[77 * PAGE]);
        lazily.push(started.elapsed());
        drop(own);
    }
    let (copied, restored) = (median(copied), median(restored));
    Ok(vec![
        Row {
            what: "own memory: restore, a chain of 25",
            ours: milliseconds(restored),
            limit: format!("{} memcpy into fresh memory", milliseconds(copied)),
            ratio: ratio(restored, copied),
            bar: "<= 1.00",
        },
        Row {
            what: "the same lazily, to the first page",
            ours: milliseconds(median(lazily)),
            limit: String::new(),
            ratio: None,
            bar: "<= 10 ms",
        },
    ])
}
