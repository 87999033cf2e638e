//! The commands, one file each.

mod checkpoint;
mod detach;
mod diff;
mod export;
mod inspect;
mod log;
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

use crate::args::{Command, Diff, StoreAt, StoreOnly, Which};
use crate::output;
use crate::privilege;
use crate::wrong::Wrong;
use anyhow::Context;
use pagetide::AttachError;
use pagetide_process::StopOptions;
use pagetide_snapshot::{DirectoryStorage, SnapshotId, Store, View};
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

/// How long the threads of a process may take to stop for a single command: on a machine that is busy
/// with other things it can be long.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// An error if somebody else takes checkpoints of the process now. While it stands still for them it could not even be looked at.
fn check_free(pid: i32) -> Result<(), AttachError> {
    match pagetide::checkpointed_by(pid) {
        Some(by) => Err(AttachError::Busy { pid, by }),
        None => Ok(()),
    }
}

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
fn storage_to_act(path: &Path, trust: bool) -> Arc<DirectoryStorage> {
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
fn view_at(store: &Store, at: Option<Which>) -> anyhow::Result<View> {
    let refused = |what: &str| Wrong::Refused(format!("{}: {what}", store.location()));
    let id = match at {
        Some(Which::Id(id)) => SnapshotId(id),
        None | Some(Which::BeforeNewest(0)) => match store.newest()? {
            Some(info) => info.id,
            None => return Err(refused("there is no snapshot yet").into()),
        },
        Some(Which::BeforeNewest(back)) => {
            let good = store.snapshots()?.good;
            match good.iter().rev().nth(back) {
                Some(info) => info.id,
                None => {
                    let count = output::counted(good.len() as u64, "snapshot", "snapshots");
                    return Err(
                        refused(&format!("there is no -{}: it has {count}", back + 1)).into(),
                    );
                }
            }
        }
    };
    store
        .view(id)
        .with_context(|| format!("open snapshot {id} of {}", store.location()))
}
