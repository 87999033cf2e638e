//! What was captured, until it is stored or given back: a handle, which may go to any thread.

use super::error::OwnMemoryError;
use super::layer::Layer;
use super::line::{Line, gone};
use super::stored::OwnSnapshot;
use super::ticket::{Reply, Ticket};
use super::worker::Worker;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What was captured and is not stored yet. It borrows nothing and may be sent to another thread; several may be under way,
/// and each becomes one snapshot, in the order in which they were captured.
///
/// Dropped, it is given back: its pages count as written again. If a later one is under way, they fall to that one and are
/// stored with it. So they do if this is forgotten (`std::mem::forget`), or if a later one is committed
/// first: then there is no snapshot of this one alone, and to commit it is an error
/// ([`OwnMemoryError::StoredWithLater`]). When its [`OwnMemory`](crate::OwnMemory) is dropped all that is held by then is given
/// back ([`OwnMemoryError::Closed`]).
#[must_use = "a capture that is dropped is given back"]
pub struct Captured {
    line: Arc<Line>,
    worker: Arc<Worker>,
    number: u64,
    paused: Duration,
    is_handed_over: bool,
}

impl Captured {
    pub(super) fn new(line: &Arc<Line>, worker: &Arc<Worker>, number: u64) -> Self {
        Self {
            line: Arc::clone(line),
            worker: Arc::clone(worker),
            number,
            paused: Duration::ZERO,
            is_handed_over: false,
        }
    }

    /// How long the capture took: the writers were paused that long.
    pub fn paused(&self) -> Duration {
        self.paused
    }

    /// Its number: 1 for the first capture, and then one more for each. See [`OwnMemory::durable`](crate::OwnMemory::durable).
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Adds named bytes to the snapshot: vCPU state, a log position. One of the same name is replaced. A name that is empty
    /// and what is more than a snapshot holds is refused here, and what was attached before stays.
    pub fn attach(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), OwnMemoryError> {
        self.line.check_pid()?;
        let attached = self.line.hand_over.with(self.number, |layer| {
            let others = layer.attachments.iter();
            let others = others.filter(|(other, _)| other != name);
            let others = others.map(|(name, bytes)| (name.as_str(), bytes.len() as u64));
            let all = others.chain([(name, bytes.len() as u64)]);
            pagetide_snapshot::check_attachments(all)?;
            layer.attachments.retain(|(other, _)| other != name);
            layer.attachments.push((name.to_owned(), bytes));
            Ok::<(), pagetide_snapshot::WriteError>(())
        });
        Ok(attached.map_err(gone)??)
    }

    /// Stores what was captured. Durable when it returns; on an error the pages count as written again.
    /// Waits for what is being stored, and for what was given to the background before.
    pub fn commit(mut self) -> Result<OwnSnapshot, OwnMemoryError> {
        self.line.check_pid()?;
        self.is_handed_over = true;
        self.line.commit(self.number)
    }

    /// Has it stored by a thread of the [`OwnMemory`](crate::OwnMemory), which blocks all signals, after those that were given
    /// to it before. On an error the pages are in the next snapshot.
    pub fn commit_in_background(self) -> Result<Ticket, OwnMemoryError> {
        let (reply, ticket) = Reply::and_ticket(self.number);
        self.hand_to_worker(reply)?;
        Ok(ticket)
    }

    /// As [`Captured::commit_in_background`], and has that thread call `done` in the end. It must not wait for another
    /// snapshot to be stored; no lock of ours is held.
    pub fn commit_and_call(
        self,
        done: impl FnOnce(Result<OwnSnapshot, OwnMemoryError>) + Send + 'static,
    ) -> Result<(), OwnMemoryError> {
        self.hand_to_worker(Reply::calling(done))
    }

    fn hand_to_worker(mut self, reply: Reply) -> Result<(), OwnMemoryError> {
        self.line.check_pid()?;
        self.worker.start(&self.line)?;
        let set = |layer: &mut Layer| layer.reply = Some(reply);
        let queued = self.line.hand_over.queue(self.number, set);
        queued.map_err(gone)?;
        self.is_handed_over = true;
        Ok(())
    }

    /// Leaves it for the next capture, which has all of it.
    pub(super) fn leave(mut self) {
        self.is_handed_over = true;
        self.line.hand_over.leave(self.number);
    }

    pub(super) fn set_paused(&mut self, paused: Duration) {
        self.paused = paused;
    }

    /// Stores nothing; the pages count as written again, or fall to a later capture.
    pub fn give_back(self) {}
}

impl Drop for Captured {
    fn drop(&mut self) {
        // Before any lock: in a forked child another thread may have held it.
        if !self.is_handed_over && self.line.check_pid().is_ok() {
            self.line.hand_over.give_back(self.number);
        }
    }
}

impl fmt::Debug for Captured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Captured")
            .field("number", &self.number)
            .field("paused", &self.paused)
            .finish_non_exhaustive()
    }
}
