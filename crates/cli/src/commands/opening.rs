//! What commands open before they begin: a store, a snapshot of it, a process.

use crate::args::Which;
use crate::output;
use crate::wrong::Wrong;
use anyhow::Context;
use pagetide::AttachError;
use pagetide_process::StopOptions;
use pagetide_snapshot::{DirectoryStorage, SnapshotId, Store, View};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long the threads of a process may take to stop for a single command: on a machine that is busy
/// with other things it can be long.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// An error if somebody else takes checkpoints of the process now. While it stands still for them it could not even be looked at.
pub fn check_free(pid: i32) -> Result<(), AttachError> {
    match pagetide::checkpointed_by(pid) {
        Some(by) => Err(AttachError::Busy { pid, by }),
        None => Ok(()),
    }
}

pub fn stop_options() -> StopOptions {
    StopOptions::with_timeout(STOP_TIMEOUT)
}

/// The store in a directory, which must be there, for a command that only tells what is in it: whoever could write to it.
pub fn open_store(path: &Path) -> anyhow::Result<Store> {
    Ok(Store::open(Arc::new(DirectoryStorage::trusting(path)))?)
}

/// The store in a directory, which must be there, for a command that acts on what is in it: nobody but root and the caller
/// may be able to write to it, unless the user says that it can be relied on.
pub fn open_store_to_act(path: &Path, trust: bool) -> anyhow::Result<Store> {
    Ok(Store::open(storage_to_act(path, trust))?)
}

/// See `open_store_to_act`.
pub fn storage_to_act(path: &Path, trust: bool) -> Arc<DirectoryStorage> {
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
pub fn view_at(store: &Store, at: Option<Which>) -> anyhow::Result<View> {
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
