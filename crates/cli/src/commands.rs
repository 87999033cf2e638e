//! The commands, one file each.

mod checkpoint;
mod detach;
mod diff;
mod export;
mod inspect;
mod log;
mod opening;
mod owner;
mod packaging;
mod pages;
mod probe;
mod prune;
mod restore;
mod rollback;
mod show;
mod snapshots;
mod verify;

use crate::args::{Command, Diff, StoreAt, StoreOnly};
use crate::privilege;
use std::process::ExitCode;

/// Does what the user asked for.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match &command {
        Command::Log(StoreOnly { store, .. })
        | Command::Verify(StoreOnly { store, .. })
        | Command::Show(StoreAt { store, .. })
        | Command::Diff(Diff { store, .. }) => privilege::only_read(store)?,
        Command::Export(_) | Command::Rollback(_) | Command::Prune(_) | Command::Squash(_) => {
            privilege::decompress_apart(true)?
        }
        // A small one needs only one process.
        Command::Restore(_) => privilege::decompress_apart(false)?,
        _ => {}
    }
    match command {
        Command::Probe(options) => probe::run(&options),
        Command::Checkpoint(options) => return checkpoint::run(&options),
        Command::Run(options) => return checkpoint::run_command(&options),
        Command::Log(options) => log::run(&options),
        Command::Show(options) => show::run(&options),
        Command::Diff(options) => diff::run(&options),
        Command::Verify(options) => return verify::run(&options),
        Command::Export(options) => export::run(&options),
        Command::Prune(options) => prune::prune(&options),
        Command::Squash(options) => prune::squash(&options),
        Command::Rollback(options) => rollback::run(&options),
        Command::Restore(options) => {
            restore::check_rights(&options)?;
            return restore::run(&options);
        }
        Command::Inspect(options) => inspect::run(&options),
        Command::Pages(options) => pages::run(&options),
        Command::Detach(options) => detach::run(&options),
        Command::Completions(options) => packaging::completions(&options),
        Command::Man(options) => packaging::man(&options),
    }
    .map(|()| ExitCode::SUCCESS)
}
