//! What whoever restores has decided.

use super::error::ReopenError;
use super::socket::TcpChoice;
use crate::opener::Openers;
use std::collections::HashMap;
use std::os::fd::OwnedFd;

/// What whoever restores has decided.
#[derive(Debug, Default)]
pub struct ReopenChoices {
    /// Names of what was accepted: those of blockers ([`Blocker::name`](crate::Blocker::name)), and `file-changed:PATH`.
    pub accepted: Vec<String>,
    /// The least number that a descriptor of [`Reopened`](super::Reopened) has. All of them are greater than any number that a
    /// process wants, anyhow.
    pub at_least: i32,
    /// Memory that processes share and that has been made already: device and inode of the time of the snapshot, and a
    /// descriptor of what takes its place.
    pub objects: HashMap<(u64, u64), OwnedFd>,
    /// What becomes of TCP connections.
    pub tcp: TcpChoice,
    /// As whom the files of each process are opened.
    pub openers: Openers,
    /// Standard streams that led out of the snapshot lead to `/dev/null`, and not where this program's own do.
    pub without_streams: bool,
}

impl ReopenChoices {
    pub(crate) fn accepts(&self, name: &str) -> bool {
        self.accepted.iter().any(|accepted| accepted == name)
    }
}

/// The error, unless its name is among what was accepted.
pub(crate) fn accept(error: ReopenError, choices: &ReopenChoices) -> Result<(), ReopenError> {
    match &error {
        ReopenError::FileChanged { path, .. }
            if choices.accepts(&format!("file-changed:{}", path.display())) =>
        {
            Ok(())
        }
        _ => Err(error),
    }
}
