//! The command `pagetide`: flags, tables, JSON and exit codes over the libraries. What a command does
//! lives in `commands`, one file each; how it failed and what to do about it, in `failure`.

// Everything that is printed goes through `output`, which escapes what could deceive.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod blockers;
mod commands;
mod failure;
mod job_control;
mod keeping;
mod log;
mod output;
mod privilege;
mod schedule;
mod shown;
mod signals;
mod sink;
mod watch;
mod wrong;

use pagetide_kernel::counted_memory::CountedMemory;
use std::process::ExitCode;

#[global_allocator]
static MEMORY: CountedMemory = CountedMemory::new();

fn main() -> ExitCode {
    let arguments = args::Arguments::said();
    if let Some(bytes) = arguments.memory_limit {
        // What can be refused with a reason is refused by the libraries, before this has to end the program.
        pagetide_snapshot::limit_memory(bytes);
        MEMORY.limit(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
    if arguments.command.is_for_machines() {
        output::notes_for_machines();
    }
    // The trace is whole once this is dropped.
    let _trace = match log::begin(arguments.command.trace()) {
        Ok(trace) => trace,
        Err(error) => return failure::report(&error),
    };
    match commands::run(arguments.command) {
        Ok(code) => code,
        Err(error) => failure::report(&error),
    }
}
