//! The commands, one file each.

mod checkpoint;
mod detach;
mod diff;
mod export;
mod inspect;
mod log;
mod packaging;
mod pages;
mod probe;
mod restore;
mod rollback;
mod show;
mod verify;

use crate::args::{Command, Diff, StoreAt, StoreOnly};
use crate::failure::Wrong;
use crate::output;
use crate::privilege;
use anyhow::Context;
use pagetide_process::StopOptions;
use pagetide_snapshot::{DirectoryStorage, SnapshotId, Storage, Store, View};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Does what the user asked for.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match &command {
        Command::Log(StoreOnly { store, .. })
        | Command::Verify(StoreOnly { store, .. })
        | Command::Show(StoreAt { store, .. })
        | Command::Diff(Diff { store, .. }) => privilege::only_read(store)?,
        Command::Export(_) | Command::Rollback(_) => privilege::decompress_apart(true)?,
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
        Command::Rollback(options) => rollback::run(&options),
        Command::Restore(options) => return restore::run(&options),
        Command::Inspect(options) => inspect::run(&options),
        Command::Pages(options) => pages::run(&options),
        Command::Detach(options) => detach::run(&options),
        Command::Completions(options) => packaging::completions(&options),
        Command::Man(options) => packaging::man(&options),
    }
    .map(|()| ExitCode::SUCCESS)
}

/// How long the threads of a process may take to stop for a single command: on a machine that is busy
/// with other things it can be long.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

fn stop_options() -> StopOptions {
    StopOptions::with_timeout(STOP_TIMEOUT)
}

/// The store in a directory, which must be there, for a command that only tells what is in it: whoever could write to it.
fn open_store(path: &Path) -> anyhow::Result<Store> {
    Ok(Store::open(Arc::new(DirectoryStorage::trusting(path)))?)
}

/// The store in a directory, which must be there, for a command that acts on what is in it: nobody but root and the caller
/// may be able to write to it, unless the user says that it can be relied on.
fn open_store_to_act(path: &Path, trust: bool) -> anyhow::Result<Store> {
    Ok(Store::open(storage_to_act(path, trust))?)
}

/// See `open_store_to_act`.
fn storage_to_act(path: &Path, trust: bool) -> Arc<dyn Storage> {
    if !trust {
        return Arc::new(DirectoryStorage::new(path));
    }
    output::note!(
        "pagetide: --trust-store: who can write to {} was not checked",
        path.display()
    );
    Arc::new(DirectoryStorage::trusting(path))
}

/// A snapshot of a store: the one asked for, or the newest.
fn view_at(store: &Store, at: Option<u64>) -> anyhow::Result<View> {
    let id = match at {
        Some(id) => SnapshotId(id),
        None => match store.newest()? {
            Some(info) => info.id,
            None => {
                let message = format!("{}: there is no snapshot yet", store.location());
                return Err(Wrong::Refused(message).into());
            }
        },
    };
    store
        .view(id)
        .with_context(|| format!("open snapshot {id} of {}", store.location()))
}
