//! The thread that stores snapshots in the background. It is started when it is needed first, blocks all signals, and ends
//! with its owner.

use super::error::OwnMemoryError;
use super::line::Line;
use nix::sys::signal::{SigSet, SigmaskHow};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// See the head of this file.
#[derive(Default)]
pub(super) struct Worker {
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Worker {
    /// Starts the thread if it does not run.
    pub fn start(&self, line: &Arc<Line>) -> Result<(), OwnMemoryError> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let line = Arc::clone(line);
            let builder = std::thread::Builder::new().name("pagetide-store".to_owned());
            // It has the mask of the thread that makes it.
            let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
            let made = builder.spawn(move || store_all(&line));
            if let Ok(mask) = mask {
                let _ = mask.thread_set_mask();
            }
            *thread = Some(made.map_err(OwnMemoryError::Thread)?);
        }
        Ok(())
    }

    /// Waits until it has ended, which it does when all is over.
    pub fn join(&self) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // A callback may drop the owner.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

fn store_all(line: &Line) {
    while let Some((number, mut layers)) = line.hand_over.take_queued() {
        let reply = layers.last_mut().and_then(|newest| newest.reply.take());
        let stored = catch_unwind(AssertUnwindSafe(|| line.store_now(number, layers)));
        let outcome = stored.unwrap_or(Err(OwnMemoryError::NotStored));
        if let Some(reply) = reply {
            let _ = catch_unwind(AssertUnwindSafe(|| reply.answer(outcome)));
        }
    }
}
