//! Whose snapshots a store holds: the process that a snapshot names, and whether another one may be added to it.

use crate::wrong::Wrong;
use pagetide::PROCESS_ATTACHMENT;
use pagetide_process::{Examined, OutsideState, ProcessIdentity, ProcessState};
use pagetide_snapshot::{SnapshotId, Store};

/// A process that a snapshot holds, the one that was named first.
pub struct Owner {
    pub identity: ProcessIdentity,
    pub comm: String,
    /// The program and its arguments, as they were said.
    pub command: String,
}

impl Owner {
    fn of(outside: OutsideState) -> Self {
        let words = outside.cmdline.split(|byte| *byte == 0);
        let words: Vec<_> = words.map(String::from_utf8_lossy).collect();
        let command = words.join(" ").trim_end().to_owned();
        Self {
            identity: outside.identity,
            command: if command.is_empty() {
                outside.comm.clone()
            } else {
                command
            },
            comm: outside.comm,
        }
    }

    /// True if it is this very process, or one with its number and name: what was restored has these.
    fn is(&self, process: &Examined) -> bool {
        self.identity == process.identity
            || (self.identity.pid == process.identity.pid && self.comm == process.comm)
    }
}

/// The processes of a snapshot; none if it cannot be read, or is of no process.
pub fn owners(store: &Store, id: SnapshotId) -> Vec<Owner> {
    let prefix = format!("{PROCESS_ATTACHMENT}:");
    let attachments = store.attachments(id).unwrap_or_default();
    let of_process = attachments
        .into_iter()
        .filter(|one| one.name == PROCESS_ATTACHMENT || one.name.starts_with(&prefix));
    of_process
        .filter_map(|one| {
            Some(Owner::of(
                ProcessState::from_bytes(&one.bytes).ok()?.outside,
            ))
        })
        .collect()
}

/// An error if the newest snapshot of the store is of another process. `None` stands for one that is not started yet.
pub fn check(store: &Store, process: Option<&Examined>) -> anyhow::Result<()> {
    let Some(newest) = store.newest()? else {
        return Ok(());
    };
    let owners = owners(store, newest.id);
    let Some(first) = owners.first() else {
        return Ok(());
    };
    if process.is_some_and(|process| owners.iter().any(|owner| owner.is(process))) {
        return Ok(());
    }
    let other = match process {
        Some(process) => format!("process {} ({})", process.identity.pid, process.comm),
        None => "the command".to_owned(),
    };
    Err(Wrong::Refused(format!(
        "{}: its snapshots are of process {} ({}), and {other} is another one: name another store, or add it to this one with \
         --add",
        store.location(),
        first.identity.pid,
        first.comm
    ))
    .into())
}
