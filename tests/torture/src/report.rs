//! What is told of a program that failed: how to run it again, whether it fails again, what is left of it
//! when all that is not needed is taken out.

use crate::conditions::Conditions;
use crate::program::is_of_driver;
use crate::run::{Failure, Found, run};
use crate::shrink::shrink;
use std::path::PathBuf;
use std::time::Duration;

/// So often a cut program is tried: how threads and checkpoints interleave differs each time.
const TRIES: u32 = 4;

/// What does not end is waited for so long while a program is cut down.
const PATIENCE: Duration = Duration::from_secs(30);

/// Saves the program, runs it again, cuts it down, and saves what is left. Tells `say`, for people.
pub fn report(
    found: &Found,
    conditions: &Conditions,
    patience: Duration,
    mut say: impl FnMut(String),
) {
    let epoch = epoch_of(&found.program, found.failure.step);
    say(format!(
        "FAILED with seed {}, epoch {epoch}, step {}, after {} operations, backend {}: {}",
        found.seed, found.failure.step, found.operations, conditions.backend, found.failure.what
    ));
    let end = (found.failure.step + 1).min(found.program.len());
    let program = found.program[..end].to_vec();
    let whole = save(found, "program", &program, &found.failure);
    say(format!("The program: {}", whole.display()));
    let Some(again) = failing(&program, conditions, TRIES) else {
        say("It did not fail again; it depends on how things interleave.".into());
        return;
    };
    say(format!("It fails again at step {}.", again.step));
    let mut last = again;
    let conditions = &Conditions {
        patience: conditions.patience.min(PATIENCE),
        ..conditions.clone()
    };
    let small = shrink(program, patience, |less| {
        match failing(less, conditions, 1) {
            Some(failure) if failure.is_like(&last) => {
                last = failure;
                true
            }
            _ => false,
        }
    });
    let path = save(found, "minimal", &small, &last);
    let operations = small.iter().filter(|line| !is_of_driver(line)).count();
    say(format!(
        "Cut down to {} steps, {operations} of them operations of the target: {}\n{}\nIt says: {}\nRun it again:\n  \
         torture --backend {} --replay {}",
        small.len(),
        path.display(),
        small.join("\n"),
        last.what,
        conditions.backend,
        path.display()
    ));
}

fn failing(program: &[String], conditions: &Conditions, tries: u32) -> Option<Failure> {
    (0..tries).find_map(|_| run(program, conditions, None).err())
}

fn epoch_of(program: &[String], step: usize) -> usize {
    let before = &program[..step.min(program.len())];
    before
        .iter()
        .filter(|line| line.starts_with("!check"))
        .count()
}

fn save(found: &Found, name: &str, program: &[String], failure: &Failure) -> PathBuf {
    let file = format!("torture-{}-{name}.txt", found.seed);
    let path = std::env::temp_dir().join(file);
    let what = failure.what.replace('\n', "\n# ");
    let text = format!("# seed {}\n# {what}\n{}\n", found.seed, program.join("\n"));
    if let Err(error) = std::fs::write(&path, text) {
        eprintln!("{}: {error}", path.display());
    }
    path
}
