//! How long a process of a gigabyte is stopped for a delta when 1 % of it was written, in both modes,
//! against a scan and a copy of the same pages with nothing around them, and against fork(2).

use crate::report::{Row, median, milliseconds, ratio};
use crate::scan::Tracked;
use crate::target::{MIB, Target, scatter};
use pagetide::{Checkpointer, Mode, Options, Request, Residence};
use pagetide_snapshot::Store;
use std::hint::black_box;
use std::time::{Duration, Instant};

const ROUNDS: usize = 21;
const WRITTEN: usize = (MIB << 8) / 100;

pub fn measure() -> anyhow::Result<Vec<Row>> {
    let mut target = Target::start()?;
    let forked: Vec<Duration> = (0..ROUNDS)
        .map(|_| target.fork())
        .collect::<anyhow::Result<_>>()?;
    let forked = median(forked);
    let (stop, copied) = windows(&mut target, Mode::Stop, true)?;
    let (precopy, left) = windows(&mut target, Mode::Precopy, true)?;
    let (memory_only, _) = windows(&mut target, Mode::Precopy, false)?;
    drop(target);
    let limit = bare(copied as usize)?;
    let limit_left = bare(left as usize)?;
    Ok(vec![
        Row {
            what: "stop window, 1 % written, copy while stopped",
            ours: milliseconds(stop),
            limit: format!("{} bare scan + memcpy", milliseconds(limit)),
            ratio: ratio(stop, limit),
            bar: "",
        },
        Row {
            what: "stop window, 1 % written, pre-copy",
            ours: milliseconds(precopy),
            limit: format!(
                "{} bare scan + memcpy of what was left",
                milliseconds(limit_left)
            ),
            ratio: ratio(precopy, limit_left),
            bar: "<= 1.25",
        },
        Row {
            what: "the same without what only a restore needs",
            ours: milliseconds(memory_only),
            limit: String::from("as above"),
            ratio: ratio(memory_only, limit_left),
            bar: "<= 1.25",
        },
        Row {
            what: "stop window, pre-copy, against fork of the process",
            ours: milliseconds(precopy),
            limit: format!("{} fork(2)", milliseconds(forked)),
            ratio: ratio(precopy, forked),
            bar: "<= 0.10",
        },
    ])
}

/// The median window, and how many pages were copied in it.
fn windows(target: &mut Target, mode: Mode, restorable: bool) -> anyhow::Result<(Duration, u64)> {
    let directory = tempfile::tempdir()?;
    let store = Store::create_directory(directory.path().join("store"))?;
    let mut options = Options::default();
    options.residence = Residence::Here;
    options.mode = mode;
    options.restorable = restorable;
    let mut checkpointer = Checkpointer::attach(target.pid()?, store, options)?;
    checkpointer.take(Request::default())?;
    let (mut times, mut pages) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        target.write(WRITTEN)?;
        let report = checkpointer.take(Request::default())?;
        times.push(report.stop);
        pages.push(report.window_pages.0);
    }
    pages.sort_unstable();
    Ok((median(times), pages[pages.len() / 2]))
}

/// A bare scan of a gigabyte in which `pages` were written, and a memcpy of as many pages.
fn bare(pages: usize) -> anyhow::Result<Duration> {
    let mut tracked = Tracked::new()?;
    let mut copy = vec![1u8; pages.max(1) * 4096];
    let mut round = 1;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        scatter(&mut tracked.memory, pages, &mut round);
        let scan = tracked.bare_scan()?;
        let started = Instant::now();
        let mut at = round;
        for page in copy.chunks_mut(4096).take(pages) {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let from = (at >> 33) as usize % (MIB << 8) * 4096;
            page.copy_from_slice(&tracked.memory[from..from + 4096]);
        }
        black_box(&copy);
        times.push(scan + started.elapsed());
    }
    Ok(median(times))
}
