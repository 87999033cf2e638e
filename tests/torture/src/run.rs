//! Running one program, and many.

use crate::conditions::Conditions;
use crate::generate::{self, Length};
use crate::program::REPEATED;
use crate::program::is_of_driver;
use crate::random::Random;
use crate::stage::{Stage, text_of};
use crate::tally::Tally;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

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
    pub fn is_like(&self, other: &Self) -> bool {
        let sort = |failure: &Self| {
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

/// Runs a program to its end, or if it comes earlier, to the first check after `deadline`.
pub fn run(
    program: &[String],
    conditions: &Conditions,
    deadline: Option<Instant>,
) -> Result<Tally, Failure> {
    let mut step = 0;
    let whole = catch_unwind(AssertUnwindSafe(|| {
        let mut stage = Stage::new(conditions);
        let mut waiting: Vec<String> = Vec::new();
        for (number, line) in program.iter().enumerate() {
            step = number;
            if !is_of_driver(line) {
                let exec = line == "exec";
                if exec {
                    // What it has read ahead would be lost.
                    stage.operate(&std::mem::take(&mut waiting))?;
                }
                waiting.push(line.clone());
                if exec || waiting.len() >= 256 {
                    stage.operate(&std::mem::take(&mut waiting))?;
                }
                continue;
            }
            let before = std::mem::take(&mut waiting);
            let repeated = if line.starts_with("!during") {
                before.len().saturating_sub(REPEATED)
            } else {
                before.len()
            };
            stage.operate(&before[..repeated])?;
            if repeated < before.len() {
                stage.during(&before[repeated..], line)?
            } else {
                stage.drive(line)?
            }
            let is_late = deadline.is_some_and(|deadline| Instant::now() > deadline);
            if is_late && line.starts_with("!check") {
                break;
            }
        }
        stage.operate(&waiting)?;
        step = program.len();
        stage.finish()
    }));
    let what = match whole {
        Ok(Ok(tally)) => return Ok(tally),
        Ok(Err(what)) => what,
        // The harness panics where something must not be.
        Err(panic) => text_of(panic),
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
        _ => Random::new(seed ^ number.wrapping_mul(0x9e37_79b9)).number() >> 16,
    }
}

/// How far a run goes.
#[derive(Clone, Copy, Debug)]
pub enum Extent {
    /// Until time is up, the last program being cut short.
    Time(Duration),
    /// So many programs.
    Programs(u64),
}

/// Runs one program after the other until the end of `extent` or until one fails. `each` is told after
/// each of them.
pub fn run_all(
    seed: u64,
    length: Length,
    extent: Extent,
    conditions: &Conditions,
    mut each: impl FnMut(u64, &Tally),
) -> (Tally, Option<Found>) {
    let deadline = match extent {
        Extent::Time(duration) => Some(Instant::now() + duration),
        Extent::Programs(_) => None,
    };
    let mut all = Tally::default();
    loop {
        let over = match (extent, deadline) {
            (Extent::Programs(count), _) => all.programs >= count,
            (_, Some(deadline)) => Instant::now() >= deadline,
            (_, None) => true,
        };
        if over {
            return (all, None);
        }
        let seed = program_seed(seed, all.programs);
        let program = generate::program(seed, length);
        match run(&program, conditions, deadline) {
            Ok(tally) => all.add(&tally),
            Err(failure) => {
                let before = program[..failure.step]
                    .iter()
                    .filter(|line| !is_of_driver(line));
                let found = Found {
                    seed,
                    operations: all.operations().0 + before.count() as u64,
                    program,
                    failure,
                };
                return (all, Some(found));
            }
        }
        each(seed, &all);
    }
}
