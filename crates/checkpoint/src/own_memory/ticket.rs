//! What is known of a snapshot that is stored in the background: a ticket for whoever waits, and a mark up to which all
//! is durable.

use super::error::OwnMemoryError;
use super::stored::OwnSnapshot;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What came of it.
type Outcome = Result<OwnSnapshot, OwnMemoryError>;

/// Stands for a snapshot that is stored in the background ([`Captured::commit_in_background`](crate::Captured)). Dropping
/// it changes nothing: the snapshot is stored all the same.
#[must_use = "it tells whether the snapshot could be stored"]
pub struct Ticket {
    place: Arc<OutcomeSlot>,
    number: u64,
}

#[derive(Default)]
struct OutcomeSlot {
    outcome: Mutex<Option<Outcome>>,
    changed: Condvar,
}

impl OutcomeSlot {
    fn lock(&self) -> MutexGuard<'_, Option<Outcome>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The other end of a ticket. Dropped without an answer, it says that there was none.
pub(super) struct Reply {
    to: Option<Recipient>,
}

enum Recipient {
    Ticket(Arc<OutcomeSlot>),
    Callback(Box<dyn FnOnce(Outcome) + Send>),
}

impl Reply {
    /// A ticket for capture `number`, and its other end.
    pub fn and_ticket(number: u64) -> (Self, Ticket) {
        let place = Arc::new(OutcomeSlot::default());
        let to = Some(Recipient::Ticket(Arc::clone(&place)));
        (Self { to }, Ticket { place, number })
    }

    /// Calls `done` with the outcome.
    pub fn calling(done: impl FnOnce(Outcome) + Send + 'static) -> Self {
        let to = Some(Recipient::Callback(Box::new(done)));
        Self { to }
    }

    pub fn answer(mut self, outcome: Outcome) {
        self.send(outcome);
    }

    fn send(&mut self, outcome: Outcome) {
        match self.to.take() {
            None => {}
            Some(Recipient::Ticket(place)) => {
                *place.lock() = Some(outcome);
                place.changed.notify_all();
            }
            Some(Recipient::Callback(done)) => done(outcome),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.send(Err(OwnMemoryError::NotStored));
    }
}

impl Ticket {
    /// The number of the capture, as [`Captured::number`](crate::Captured::number).
    pub fn number(&self) -> u64 {
        self.number
    }

    /// True if it is known what came of it: [`Ticket::wait`] will not wait.
    pub fn is_done(&self) -> bool {
        self.place.lock().is_some()
    }

    /// What came of it, or the ticket again if that is not known yet.
    pub fn try_wait(self) -> Result<Result<OwnSnapshot, OwnMemoryError>, Self> {
        let outcome = self.place.lock().take();
        outcome.ok_or(self)
    }

    /// Waits until it is stored, durably, or has failed. After a failure its pages are in the next snapshot.
    pub fn wait(self) -> Result<OwnSnapshot, OwnMemoryError> {
        let mut outcome = self.place.lock();
        loop {
            if let Some(outcome) = outcome.take() {
                return outcome;
            }
            let waited = self.place.changed.wait(outcome);
            outcome = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("number", &self.number)
            .field("is_done", &self.is_done())
            .finish()
    }
}
