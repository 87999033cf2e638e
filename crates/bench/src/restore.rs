//! A process of one gigabyte, and of four, started again: with all its memory before its first instruction, and with most of
//! it after that; beside a memcpy of as much into fresh memory.

use crate::report::{Row, median, milliseconds, ratio};
use crate::target::{Target, fill};
use anyhow::Context;
use pagetide::{Checkpointer, Options, Request, Residence, RestoreOptions};
use pagetide_snapshot::{Store, View};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::hint::black_box;
use std::io::Write;
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;

/// The target's side: so much memory, and nothing to do.
pub fn serve(gib: &str) -> anyhow::Result<()> {
    let mut memory = vec![1u8; gib.parse::<usize>()? << 30];
    fill(&mut memory);
    writeln!(std::io::stdout(), "ready")?;
    // Pipes to others cannot be brought back.
    let nothing = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&nothing)?;
    loop {
        std::thread::park();
        black_box(&memory);
    }
}

pub fn measure() -> anyhow::Result<Vec<Row>> {
    let mut rows = measure_one("restore-1", 1, ONE)?;
    rows.extend(measure_one("restore-4", 4, FOUR)?);
    Ok(rows)
}

const ONE: [&str; 3] = [
    "restore, 1 GiB, first instruction",
    "restore --lazy, 1 GiB, first instruction",
    "restore --lazy, 1 GiB, all memory in",
];
const FOUR: [&str; 3] = [
    "restore, 4 GiB, first instruction",
    "restore --lazy, 4 GiB, first instruction",
    "restore --lazy, 4 GiB, all memory in",
];

fn measure_one(argument: &str, gib: usize, names: [&'static str; 3]) -> anyhow::Result<Vec<Row>> {
    let directory = tempfile::tempdir()?;
    let store = Store::create_directory(directory.path().join("store"))?;
    {
        // A program cannot bring back a process of its own file: the kernel lets it change only to one that is not mapped.
        let program = directory.path().join("program");
        std::fs::copy(std::env::current_exe()?, &program)?;
        let target = Target::start_program(&program, argument)?;
        let output = format!("/proc/{}/fd/2", target.pid()?);
        while std::fs::read_link(&output)?.as_os_str() != "/dev/null" {
            std::thread::yield_now();
        }
        let mut options = Options::default();
        options.residence = Residence::Here;
        options.restorable = true;
        Checkpointer::attach(target.pid()?, store, options)?.take(Request::default())?;
    }
    let store = Store::open_directory(directory.path().join("store"))?;
    let newest = store.newest()?.context("no snapshot")?;
    let view = store.view(newest.id)?;
    let (mut bare, mut eager, mut first, mut all) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        bare.push(copy_gib() * u32::try_from(gib)?);
        eager.push(restored(&store, &view, false)?.0);
        let (began, complete) = restored(&store, &view, true)?;
        first.push(began);
        all.push(complete);
    }
    let [bare, eager, first, all] = [bare, eager, first, all].map(median);
    let row = |what, ours, limit, of: &str, bar| Row {
        what,
        ours: milliseconds(ours),
        limit: format!("{} {of}", milliseconds(limit)),
        ratio: ratio(ours, limit),
        bar,
    };
    Ok(vec![
        row(names[0], eager, bare, "memcpy into fresh memory", "<= 1.00"),
        row(names[1], first, eager, "without --lazy", ""),
        row(names[2], all, eager, "without --lazy", ""),
    ])
}

/// One memcpy of a gigabyte into memory that was never touched. All is freed: what this process has makes its forks slower.
fn copy_gib() -> Duration {
    let source = vec![1u8; 1 << 30];
    let started = Instant::now();
    black_box(source.to_vec());
    started.elapsed()
}

/// Restores it and kills it: the time until its first instruction, and until all its memory is there.
fn restored(store: &Store, view: &View, lazy: bool) -> anyhow::Result<(Duration, Duration)> {
    let mut options = RestoreOptions::default();
    options.lazy = lazy;
    options.new_pid = true;
    options.without_streams = true;
    // Whatever it inherited.
    let blockers = pagetide::blockers_of(view).unwrap_or_default();
    options.accept = blockers.iter().map(|blocker| blocker.name()).collect();
    let started = Instant::now();
    let restored = pagetide::restore(store, view, &options)?;
    let first = restored.first_instruction;
    let all = match restored.filling {
        Some(filling) => {
            filling.wait()?;
            started.elapsed()
        }
        None => first,
    };
    let pid = Pid::from_raw(restored.pid);
    kill_process(pid.context("no process")?, Signal::KILL)?;
    waitpid(pid, WaitOptions::empty())?;
    Ok((first, all))
}
