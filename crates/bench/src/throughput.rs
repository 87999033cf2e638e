//! How fast snapshots of a gigabyte are stored, how large deltas are, and how much memory it takes.

use crate::report::{Row, cores, median, rate, ratio};
use crate::target::{MIB, Target, fill};
use anyhow::Context;
use pagetide::{Checkpointer, Options, Request, Residence};
use pagetide_snapshot::Store;
use std::process::Command;
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
const FRAME_BYTES: usize = 128 << 10;
const BUFFER_MIB: u64 = 64;

pub fn measure() -> anyhow::Result<Vec<Row>> {
    let mut target = Target::start()?;
    let directory = tempfile::tempdir()?;
    let store = Store::create_directory(directory.path().join("store"))?;
    let mut options = Options::default();
    options.residence = Residence::Here;
    let mut checkpointer = Checkpointer::attach(target.pid()?, store, options)?;
    let (mut full, mut delta, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    let (mut delta_bytes, mut delta_pages) = (0, 0);
    for _ in 0..ROUNDS {
        let request = Request {
            full: true,
            ..Request::default()
        };
        full.push(checkpointer.take(request)?.total);
        bare.push(compress_all()?);
        target.write((MIB << 8) / 10)?;
        let report = checkpointer.take(Request::default())?;
        delta.push(report.total);
        delta_bytes = report.stored_bytes;
        delta_pages = report.stored_pages.0;
    }
    let bytes = (MIB as u64) << 20;
    let (full, bare, delta) = (median(full), median(bare), median(delta));
    let peak = peak(target.pid()?)?;
    Ok(vec![
        Row {
            what: "full snapshot, to durable",
            ours: rate(bytes, full),
            limit: format!("{} zstd -1, {} cores, no I/O", rate(bytes, bare), cores()),
            ratio: ratio(bare, full),
            bar: ">= 0.95",
        },
        Row {
            what: "delta, 10 % written, to durable",
            ours: rate(delta_pages * 4096, delta),
            limit: format!("{} B a page stored", delta_bytes / delta_pages.max(1)),
            ratio: None,
            bar: "",
        },
        Row {
            what: "own peak memory, full and deltas, buffer of 64 MiB",
            ours: format!("{} MiB", peak >> 10),
            limit: format!("{MIB} MiB target"),
            ratio: Some(peak as f64 / 1024.0 / MIB as f64),
            bar: "never a copy",
        },
    ])
}

/// The same gigabyte through bare zstd at the same level and block size, on all cores.
fn compress_all() -> anyhow::Result<Duration> {
    let mut memory = vec![1u8; MIB << 20];
    fill(&mut memory);
    let started = Instant::now();
    let part = memory.len() / cores();
    std::thread::scope(|scope| {
        let workers: Vec<_> = memory
            .chunks(part)
            .map(|part| {
                scope.spawn(move || {
                    let mut compressor = zstd::bulk::Compressor::new(1)?;
                    let mut out = vec![0; zstd::zstd_safe::compress_bound(FRAME_BYTES)];
                    part.chunks(FRAME_BYTES).try_for_each(|frame| {
                        compressor.compress_to_buffer(frame, &mut out).map(drop)
                    })
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|_| Err(std::io::Error::other("a worker panicked")))
        })
    })?;
    Ok(started.elapsed())
}

/// The peak memory, in KiB, of a program of its own that takes a full snapshot and three deltas.
fn peak(pid: i32) -> anyhow::Result<u64> {
    let output = Command::new(std::env::current_exe()?)
        .args(["peak", &pid.to_string()])
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    text.trim()
        .parse()
        .with_context(|| format!("no peak: {}", String::from_utf8_lossy(&output.stderr)))
}

/// The side of that program.
pub fn serve_peak(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let pid = arguments.next().context("no pid")?.parse()?;
    let directory = tempfile::tempdir()?;
    let store = Store::create_directory(directory.path().join("store"))?;
    let mut options = Options::default();
    options.residence = Residence::Here;
    options.buffer_bytes = BUFFER_MIB << 20;
    let mut checkpointer = Checkpointer::attach(pid, store, options)?;
    for _ in 0..4 {
        checkpointer.take(Request::default())?;
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next())
        .context("no VmHWM in /proc/self/status")?;
    println!("{peak}");
    Ok(())
}
