//! Running one program, and many.

use crate::generate::{self, Length};
use crate::program::is_of_driver;
use crate::random::Random;
use crate::stage::Stage;
use crate::tally::Tally;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Under what a program runs.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// The backend, as `--backend` takes it.
    pub backend: String,
    /// A directory on a disk, for files.
    pub disk: PathBuf,
}

/// What went wrong, and after how much.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The step, counted from 0; the number of steps if it was at the end.
    pub step: usize,
    /// What differed, or what the code under test said.
    pub what: String,
}

impl Failure {
    /// True if the other is of the same sort: says the same, but for numbers.
    pub fn is_like(&self, other: &Failure) -> bool {
        let sort = |failure: &Failure| {
            let regions = failure.what.contains("only in the process");
            let said = failure.what.lines().next().unwrap_or("").to_owned();
            let said: String = said
                .split(':')
                .next()
                .unwrap_or("")
                .chars()
                .filter(|c| !c.is_ascii_digit())
                .collect();
            (said, regions)
        };
        sort(self) == sort(other)
    }
}

/// Runs a program to its end.
pub fn run(program: &[String], conditions: &Conditions) -> Result<Tally, Failure> {
    let mut step = 0;
    let whole = catch_unwind(AssertUnwindSafe(|| {
        let mut stage = Stage::new(&conditions.backend, &conditions.disk);
        let mut waiting: Vec<String> = Vec::new();
        for (number, line) in program.iter().enumerate() {
            step = number;
            if !is_of_driver(line) {
                let exec = line == "exec";
                if exec {
                    // What it has read ahead would be lost.
                    stage.operate(&std::mem::take(&mut waiting));
                }
                waiting.push(line.clone());
                if exec || waiting.len() >= 256 {
                    stage.operate(&std::mem::take(&mut waiting));
                }
                continue;
            }
            stage.operate(&std::mem::take(&mut waiting));
            stage.drive(line)?;
        }
        stage.operate(&waiting);
        step = program.len();
        stage.finish()
    }));
    let what = match whole {
        Ok(Ok(tally)) => return Ok(tally),
        Ok(Err(what)) => what,
        // The harness panics where something must not be.
        Err(panic) => match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(panic) => panic
                .downcast::<&str>()
                .map_or("a panic".into(), |text| text.to_string()),
        },
    };
    Err(Failure { step, what })
}

/// A program that failed.
#[derive(Clone, Debug)]
pub struct Found {
    /// The seed of the program.
    pub seed: u64,
    /// The program.
    pub program: Vec<String>,
    /// What went wrong.
    pub failure: Failure,
    /// Operations before it, in all programs.
    pub operations: u64,
}

/// The seed of the `number`th program of a run.
pub fn program_seed(seed: u64, number: u64) -> u64 {
    match number {
        0 => seed,
        _ => Random::new(seed ^ number.wrapping_mul(0x9e37_79b9)).next() >> 16,
    }
}

/// Runs one program after the other until time is up or one fails. `each` is told after each of them.
pub fn run_for(
    seed: u64,
    length: Length,
    duration: Duration,
    conditions: &Conditions,
    mut each: impl FnMut(u64, &Tally),
) -> (Tally, Option<Found>) {
    let since = Instant::now();
    let mut all = Tally::default();
    let mut number = 0;
    while since.elapsed() < duration {
        let seed = program_seed(seed, number);
        let program = generate::program(seed, length);
        match run(&program, conditions) {
            Ok(tally) => all.add(&tally),
            Err(failure) => {
                let operations = all.operations().0 + failure.step as u64;
                let found = Found {
                    seed,
                    program,
                    failure,
                    operations,
                };
                return (all, Some(found));
            }
        }
        number += 1;
        each(seed, &all);
    }
    (all, None)
}
