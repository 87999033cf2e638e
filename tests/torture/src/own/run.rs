//! Programs in processes of their own: many from a seed, or one from a file; what fails is cut down and kept.

use super::driver::run_program;
use super::generate::program;
use crate::program::parse;
use crate::run::{Failure, program_seed};
use crate::shrink::shrink;
use crate::tally::Tally;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How programs are run.
#[derive(Clone, Debug)]
pub struct Search {
    /// The `torture` program, which runs one of them.
    pub binary: PathBuf,
    /// A directory on a disk.
    pub disk: PathBuf,
    /// How long one program may take.
    pub patience: Duration,
    /// How long what fails is cut down.
    pub shrink: Duration,
}

/// Programs in which a page was lost once, or worse, as they were found and cut down.
pub fn kept() -> Vec<Vec<String>> {
    let kept = [
        include_str!("../../programs/own_moved_buffer.txt"),
        include_str!("../../programs/own_put_back_where_two_show_one.txt"),
    ];
    kept.into_iter().map(parse).collect()
}

/// Runs programs from `seed` on until `time` is up or one fails. `say` is told, for people.
///
/// # Errors
///
/// What failed, and where it is kept.
pub fn search(
    search: &Search,
    seed: u64,
    time: Duration,
    mut say: impl FnMut(String),
) -> Result<Tally, String> {
    let (since, mut told) = (Instant::now(), Instant::now());
    let mut all = Tally::default();
    while since.elapsed() < time {
        let seed = program_seed(seed, all.programs);
        let lines = program(seed);
        match run(search, &lines) {
            Ok(tally) => all.add(&tally),
            Err(failure) => return Err(report(search, seed, lines, &failure, say)),
        }
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            let elapsed = since.elapsed().as_secs();
            say(format!("{elapsed} s, own memory, after seed {seed}: {all}"));
        }
    }
    Ok(all)
}

/// Runs one program.
///
/// # Errors
///
/// What failed.
pub fn replay(search: &Search, program: &[String]) -> Result<Tally, String> {
    run(search, program).map_err(|failure| format!("step {}: {}", failure.step, failure.what))
}

fn run(search: &Search, program: &[String]) -> Result<Tally, Failure> {
    let failed = |what: String| Failure {
        step: program.len(),
        what,
    };
    let mut file = tempfile::NamedTempFile::new().map_err(|error| failed(error.to_string()))?;
    std::io::Write::write_all(&mut file, program.join("\n").as_bytes())
        .map_err(|error| failed(error.to_string()))?;
    let mut child = Command::new(&search.binary)
        .arg("--own-program")
        .arg(file.path())
        .arg("--disk")
        .arg(&search.disk)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("{}: {error}", search.binary.display())))?;
    let since = Instant::now();
    let status = loop {
        match child
            .try_wait()
            .map_err(|error| failed(error.to_string()))?
        {
            Some(status) => break status,
            None if since.elapsed() > search.patience => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed("it does not end".to_owned()));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let mut said = String::new();
    if let Some(mut output) = child.stdout.take() {
        // What it says fits into the pipe.
        let _ = output.read_to_string(&mut said);
    }
    match status.code() {
        Some(0) => Ok(tally_of(&said)),
        Some(1) => {
            let (step, what) = said.split_once(' ').unwrap_or(("", &said));
            Err(Failure {
                step: step.parse().unwrap_or(program.len()),
                what: what.trim().to_owned(),
            })
        }
        _ => Err(failed(format!("it died: {status} {said}"))),
    }
}

/// Runs the program in `path` in this process and says how it went, for `run`. The exit code.
#[must_use]
pub fn in_this_process(path: &Path, disk: &Path) -> u8 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    match run_program(&parse(&text), disk) {
        Ok(tally) => {
            println!("{}", told(&tally));
            0
        }
        Err((step, what)) => {
            println!("{step} {what}");
            1
        }
    }
}

/// A tally as lines that `tally_of` reads.
fn told(tally: &Tally) -> String {
    let mut lines = vec![format!(
        "! {} {} {} {} {} {}",
        tally.compared,
        tally.full,
        tally.delta,
        tally.overlapped,
        tally.written_pages,
        tally.compared_pages
    )];
    for (kind, count) in &tally.done {
        lines.push(format!("+{count} {kind}"));
    }
    for (kind, errors) in &tally.refused {
        for (error, count) in errors {
            lines.push(format!("-{count} {kind}|{}", error.replace('\n', " ")));
        }
    }
    lines.join("\n")
}

fn tally_of(said: &str) -> Tally {
    let mut tally = Tally {
        programs: 1,
        ..Tally::default()
    };
    for line in said.lines() {
        if let Some(counts) = line.strip_prefix("! ") {
            let counts = crate::program::numbers(counts);
            let count = |at: usize| counts.get(at).copied().unwrap_or(0);
            (tally.compared, tally.full, tally.delta) = (count(0), count(1), count(2));
            (tally.overlapped, tally.written_pages) = (count(3), count(4));
            tally.compared_pages = count(5);
        } else if let Some((count, kind)) = line.strip_prefix('+').and_then(|l| l.split_once(' ')) {
            tally
                .done
                .insert(kind.to_owned(), count.parse().unwrap_or(0));
        } else if let Some((count, rest)) = line.strip_prefix('-').and_then(|l| l.split_once(' ')) {
            let (kind, error) = rest.split_once('|').unwrap_or((rest, ""));
            let errors: &mut BTreeMap<_, _> = tally.refused.entry(kind.to_owned()).or_default();
            errors.insert(error.to_owned(), count.parse().unwrap_or(0));
        }
    }
    tally
}

/// Cuts a program that failed down and keeps it. What is told of it.
fn report(
    search: &Search,
    seed: u64,
    program: Vec<String>,
    failure: &Failure,
    mut say: impl FnMut(String),
) -> String {
    say(format!(
        "FAILED with seed {seed}, step {}: {}",
        failure.step, failure.what
    ));
    let end = (failure.step + 1).min(program.len());
    let program = program[..end].to_vec();
    let mut last = failure.clone();
    let small = shrink(program, search.shrink, |less| match run(search, less) {
        Err(failure) if failure.is_like(&last) => {
            last = failure;
            true
        }
        _ => false,
    });
    let path = std::env::temp_dir().join(format!("torture-own-{seed}.txt"));
    let text = format!("# seed {seed}\n# {}\n{}\n", last.what, small.join("\n"));
    let kept = match std::fs::write(&path, text) {
        Ok(()) => path.display().to_string(),
        Err(error) => format!("not kept: {error}"),
    };
    format!(
        "seed {seed}: {}\n{}\nRun it again: torture --own --replay {kept}",
        last.what,
        small.join("\n")
    )
}
