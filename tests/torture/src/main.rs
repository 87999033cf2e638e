//! `torture`: random programs until time is up or one fails; then it is cut down and shown.

use clap::Parser;
use pagetide_torture::conditions::Conditions;
use pagetide_torture::generate::Length;
use pagetide_torture::kinds;
use pagetide_torture::own;
use pagetide_torture::program;
use pagetide_torture::report;
use pagetide_torture::run::{Extent, Found, run, run_all};
use pagetide_torture::tally::{ByKind, Tally};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A run of so many operations must have done each kind that is available.
const LONG: u64 = 50_000;

/// Random programs of memory management under checkpoints, each snapshot compared with the process
#[derive(Debug, Parser)]
struct Arguments {
    /// Where the programs come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The backends under test, as `pagetide checkpoint --backend` takes them, apart by commas: each runs
    /// the programs that the first had time for
    #[arg(long, default_value = "wp-async", value_delimiter = ',')]
    backend: Vec<String>,
    /// How long the first backend goes on with new programs
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Epochs of each program [default: by the seed]
    #[arg(long)]
    epochs: Option<u64>,
    /// Operations of each epoch [default: by the seed]
    #[arg(long)]
    ops_per_epoch: Option<u64>,
    /// What every program has, whatever its seed, apart by commas: rings, own_rings, uffd, threads,
    /// children, hugetlb, exec, seals, machine, aged, packets, guests
    #[arg(long, value_name = "FLAVOURS", value_delimiter = ',')]
    with: Vec<String>,
    /// Run this program instead
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// With --replay: cut the program down if it fails
    #[arg(long, requires = "replay")]
    cut: bool,
    /// Run programs of the other kind: of `OwnMemory`, on memory of their own process
    #[arg(long)]
    own: bool,
    /// Run this program of `OwnMemory` in this very process
    #[arg(long, value_name = "FILE", hide = true)]
    own_program: Option<PathBuf>,
    /// Print the program of the seed and run nothing
    #[arg(long)]
    print: bool,
    /// How long to cut down a program that failed
    #[arg(long, default_value_t = 180)]
    shrink_seconds: u64,
    /// How long one run of pagetide may take, in seconds
    #[arg(long, default_value_t = 120)]
    patience: u64,
    /// A directory on a disk, for files
    #[arg(long, default_value = "/var/tmp")]
    disk: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(path) = &arguments.own_program {
        return ExitCode::from(own::in_this_process(path, &arguments.disk));
    }
    if arguments.own {
        return own_memory(&arguments);
    }
    let mut length = Length {
        epochs: arguments.epochs,
        operations: arguments.ops_per_epoch,
        ..Length::default()
    };
    for name in &arguments.with {
        if let Err(error) = length.always.switch_on(name) {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    }
    if arguments.print {
        for line in pagetide_torture::generate::program(arguments.seed, length) {
            println!("{line}");
        }
        return ExitCode::SUCCESS;
    }
    // What fails in a program is told once, by what is found.
    std::panic::set_hook(Box::new(|_| {}));
    let mut extent = Extent::Time(Duration::from_secs(arguments.seconds));
    for backend in &arguments.backend {
        let conditions = Conditions {
            backend: backend.clone(),
            disk: arguments.disk.clone(),
            patience: Duration::from_secs(arguments.patience),
        };
        let outcome = match &arguments.replay {
            Some(path) => replay(path, &arguments, &conditions),
            None => search(&arguments, length, extent, &conditions).map(|programs| {
                extent = Extent::Programs(programs);
            }),
        };
        if let Err(code) = outcome {
            return code;
        }
    }
    ExitCode::SUCCESS
}

/// Programs of `OwnMemory`, each in a process of its own.
fn own_memory(arguments: &Arguments) -> ExitCode {
    if arguments.print {
        println!("{}", own::program(arguments.seed).join("\n"));
        return ExitCode::SUCCESS;
    }
    let binary = match std::env::current_exe() {
        Ok(binary) => binary,
        Err(error) => {
            eprintln!("find this program: {error}");
            return ExitCode::from(2);
        }
    };
    let search = own::Search {
        binary,
        disk: arguments.disk.clone(),
        patience: Duration::from_secs(arguments.patience),
        shrink: Duration::from_secs(arguments.shrink_seconds),
    };
    let since = Instant::now();
    let outcome = match &arguments.replay {
        Some(path) => match std::fs::read_to_string(path) {
            Ok(text) => own::replay(&search, &program::parse(&text)),
            Err(error) => Err(format!("{}: {error}", path.display())),
        },
        None => {
            let time = Duration::from_secs(arguments.seconds);
            own::search(&search, arguments.seed, time, |line| println!("{line}"))
        }
    };
    match outcome {
        Ok(tally) => {
            let seconds = since.elapsed().as_secs();
            println!(
                "{}\nown memory, seed {}, {seconds} s: {tally}",
                ByKind(&tally),
                arguments.seed
            );
            ExitCode::SUCCESS
        }
        Err(what) => {
            println!("{what}");
            ExitCode::FAILURE
        }
    }
}

fn replay(path: &Path, arguments: &Arguments, conditions: &Conditions) -> Result<(), ExitCode> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            return Err(ExitCode::from(2));
        }
    };
    let program = program::parse(&text);
    let failure = match run(&program, conditions, None) {
        Ok(tally) => {
            println!("{tally}\n{}", ByKind(&tally));
            return Ok(());
        }
        Err(failure) => failure,
    };
    println!("step {}: {}", failure.step, failure.what);
    if arguments.cut {
        let found = Found {
            seed: arguments.seed,
            operations: failure.step as u64,
            program,
            failure,
        };
        let patience = Duration::from_secs(arguments.shrink_seconds);
        report::report(&found, conditions, patience, |line| println!("{line}"));
    }
    Err(ExitCode::FAILURE)
}

/// How many programs were run, all clean.
fn search(
    arguments: &Arguments,
    length: Length,
    extent: Extent,
    conditions: &Conditions,
) -> Result<u64, ExitCode> {
    let backend = &conditions.backend;
    let available = kinds::available(conditions);
    for (kind, error) in &available.no {
        println!("{backend}: not available here: {kind}: {error}");
    }
    let since = Instant::now();
    let mut told = Instant::now();
    let each = |seed, tally: &Tally| {
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            let elapsed = since.elapsed().as_secs();
            println!("{elapsed} s, {backend}, after seed {seed}: {tally}");
        }
    };
    let (tally, found) = run_all(arguments.seed, length, extent, conditions, each);
    println!("{backend}:\n{}", ByKind(&tally));
    if let Some(found) = found {
        let patience = Duration::from_secs(arguments.shrink_seconds);
        report::report(&found, conditions, patience, |line| println!("{line}"));
        return Err(ExitCode::FAILURE);
    }
    let seconds = since.elapsed().as_secs();
    println!("{backend}, seed {}, {seconds} s: {tally}", arguments.seed);
    let missing = kinds::missing(&available, &tally);
    if !missing.is_empty() {
        println!("{backend}: available, and never done: {missing:?}");
        if tally.operations().0 >= LONG {
            return Err(ExitCode::FAILURE);
        }
    }
    Ok(tally.programs)
}
