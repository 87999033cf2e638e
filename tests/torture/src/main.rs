//! `torture`: random programs until time is up or one fails; then it is cut down and shown.

use clap::Parser;
use pagetide_torture::generate::Length;
use pagetide_torture::kinds;
use pagetide_torture::program;
use pagetide_torture::report;
use pagetide_torture::run::{Conditions, run, run_for};
use pagetide_torture::tally::ByKind;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Random programs of memory management under checkpoints, each snapshot compared with the process
#[derive(Debug, Parser)]
struct Arguments {
    /// Where the programs come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The backend under test, as `pagetide checkpoint --backend` takes it
    #[arg(long, default_value = "wp-async")]
    backend: String,
    /// How long to go on with new programs
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Epochs of each program [default: by the seed]
    #[arg(long)]
    epochs: Option<u64>,
    /// Operations of each epoch [default: by the seed]
    #[arg(long)]
    ops_per_epoch: Option<u64>,
    /// Run this program instead
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Print the program of the seed and run nothing
    #[arg(long)]
    print: bool,
    /// How long to cut down a program that failed
    #[arg(long, default_value_t = 180)]
    shrink_seconds: u64,
    /// Fail if a kind of operation that is available never succeeded
    #[arg(long)]
    every_kind: bool,
    /// A directory on a disk, for files
    #[arg(long, default_value = "/var/tmp")]
    disk: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let length = Length {
        epochs: arguments.epochs,
        operations: arguments.ops_per_epoch,
    };
    if arguments.print {
        for line in pagetide_torture::generate::program(arguments.seed, length) {
            println!("{line}");
        }
        return ExitCode::SUCCESS;
    }
    // What fails in a program is told once, by what is found.
    std::panic::set_hook(Box::new(|_| {}));
    let conditions = Conditions {
        backend: arguments.backend.clone(),
        disk: arguments.disk.clone(),
    };
    match &arguments.replay {
        Some(path) => replay(path, &conditions),
        None => search(&arguments, length, &conditions),
    }
}

fn replay(path: &PathBuf, conditions: &Conditions) -> ExitCode {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            return ExitCode::from(2);
        }
    };
    match run(&program::parse(&text), conditions) {
        Ok(tally) => {
            println!("{tally}\n{}", ByKind(&tally));
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("step {}: {}", failure.step, failure.what);
            ExitCode::FAILURE
        }
    }
}

fn search(arguments: &Arguments, length: Length, conditions: &Conditions) -> ExitCode {
    let available = kinds::available(conditions);
    for (kind, error) in &available.no {
        println!("not available here: {kind}: {error}");
    }
    let since = Instant::now();
    let mut told = Instant::now();
    let duration = Duration::from_secs(arguments.seconds);
    let (tally, found) = run_for(
        arguments.seed,
        length,
        duration,
        conditions,
        |seed, tally| {
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                let elapsed = since.elapsed().as_secs();
                println!(
                    "{elapsed} s, {}, after seed {seed}: {tally}",
                    conditions.backend
                );
            }
        },
    );
    println!(
        "{} (seed {}): {tally}\n{}",
        conditions.backend,
        arguments.seed,
        ByKind(&tally)
    );
    if let Some(found) = found {
        let patience = Duration::from_secs(arguments.shrink_seconds);
        report::report(&found, conditions, patience, |line| println!("{line}"));
        return ExitCode::FAILURE;
    }
    let missing = kinds::missing(&available, &tally);
    if !missing.is_empty() {
        println!("available, and never done: {missing:?}");
        if arguments.every_kind {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
