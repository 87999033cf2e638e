//! How captures are handed over to whoever stores them. Each has a number and waits here from its beginning until it is
//! stored or given back, and they are stored in the order of their numbers, one at a time. What is not stored itself falls to
//! the next that is: its pages are in no later capture. So nothing is lost with one that is given back, fails or is forgotten.
//!
//! It knows nothing of pages and threads; a model checker runs it (`tests/hand_over.rs`).

use super::sync::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;

/// See the head of this file. `T` is what one capture holds.
pub struct HandOver<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    /// Held while something is given back: until that is done it is neither here nor counts as written, and no capture
    /// must begin. Taken before `state`.
    giving_back: Mutex<()>,
}

struct State<T> {
    /// The number of the newest capture.
    newest: u64,
    /// Those that wait, ascending.
    waiting: VecDeque<Waiting<T>>,
    /// What was left for the next one, oldest first, and the number of the newest of it.
    left: Vec<T>,
    newest_left: Option<u64>,
    /// The one that is being stored.
    storing: Option<u64>,
    /// All up to this one is stored.
    durable: u64,
    is_closed: bool,
}

struct Waiting<T> {
    number: u64,
    stage: Stage<T>,
    /// What fell to it, oldest first.
    older: Vec<T>,
}

enum Stage<T> {
    /// It is being taken.
    Begun,
    /// Whoever took it has it.
    Held(T),
    /// It is to be stored in the background.
    Queued(T),
}

/// A capture that has begun.
pub struct CaptureStart {
    pub number: u64,
    /// The newest one before it that is not stored yet, and may not be.
    pub before: Option<u64>,
}

/// Why a capture is not to be had any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureLoss {
    /// It was stored together with a later one, or is about to be.
    WithLater,
    /// All is over.
    Closed,
}

impl<T> Default for HandOver<T> {
    fn default() -> Self {
        let state = State {
            newest: 0,
            waiting: VecDeque::new(),
            left: Vec::new(),
            newest_left: None,
            storing: None,
            durable: 0,
            is_closed: false,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            giving_back: Mutex::new(()),
        }
    }
}

impl<T> State<T> {
    fn place(&self, number: u64) -> Option<usize> {
        let found = self
            .waiting
            .binary_search_by_key(&number, |waiting| waiting.number);
        found.ok()
    }

    fn place_or_gone(&self, number: u64) -> Result<usize, CaptureLoss> {
        self.place(number).ok_or(if self.is_closed {
            CaptureLoss::Closed
        } else {
            CaptureLoss::WithLater
        })
    }

    /// Lets what is in `parts` fall to the first that waits and is newer than `number`, or gives it back.
    fn pass_on(&mut self, number: u64, mut parts: Vec<T>) -> Vec<T> {
        let mut later = self.waiting.iter_mut();
        let next = later.find(|waiting| waiting.number > number);
        let older = match (next, self.newest_left) {
            (Some(next), _) => &mut next.older,
            (None, Some(left)) if left > number => &mut self.left,
            (None, _) => return parts,
        };
        parts.append(older);
        *older = parts;
        Vec::new()
    }

    /// Takes out the parts of one.
    fn remove(&mut self, number: u64) -> Vec<T> {
        let place = self.place(number);
        let Some(waiting) = place.and_then(|place| self.waiting.remove(place)) else {
            return Vec::new();
        };
        let mut parts = waiting.older;
        if let Stage::Held(part) | Stage::Queued(part) = waiting.stage {
            parts.push(part);
        }
        parts
    }

    /// True if one before the place is queued.
    fn is_queued_before(&self, place: usize) -> bool {
        let mut before = self.waiting.iter().take(place);
        before.any(|waiting| matches!(waiting.stage, Stage::Queued(_)))
    }

    /// True if something is being stored, or is to be without anybody's asking.
    fn is_busy(&self) -> bool {
        self.storing.is_some() || self.is_queued_before(usize::MAX)
    }

    /// Takes out all that there is.
    fn take_all(&mut self) -> Vec<T> {
        let mut parts = match self.waiting.len().checked_sub(1) {
            Some(last) => self.take_up_to(last),
            None => Vec::new(),
        };
        parts.append(&mut self.left);
        self.newest_left = None;
        parts
    }

    /// Takes out all up to this place, oldest first.
    fn take_up_to(&mut self, place: usize) -> Vec<T> {
        let mut parts = Vec::new();
        for waiting in self.waiting.drain(..=place) {
            parts.extend(waiting.older);
            if let Stage::Held(part) | Stage::Queued(part) = waiting.stage {
                parts.push(part);
            }
        }
        parts
    }
}

impl<T> HandOver<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<T>>) -> MutexGuard<'a, State<T>> {
        self.changed
            .wait(state)
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn giving_back(&self) -> MutexGuard<'_, ()> {
        self.giving_back
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A capture begins. Only one can be taken at a time.
    pub fn begin(&self) -> CaptureStart {
        let _giving_back = self.giving_back();
        let mut state = self.lock();
        let waiting = state.waiting.back().map(|waiting| waiting.number);
        let before = state.newest_left.take().max(waiting).or(state.storing);
        let older = std::mem::take(&mut state.left);
        state.newest += 1;
        let number = state.newest;
        state.waiting.push_back(Waiting {
            number,
            stage: Stage::Begun,
            older,
        });
        CaptureStart { number, before }
    }

    /// It was taken.
    pub fn hold(&self, number: u64, part: T) {
        let mut state = self.lock();
        if let Some(place) = state.place(number) {
            state.waiting[place].stage = Stage::Held(part);
        }
    }

    /// It is not to be stored, or could not be taken: it is dropped, and so counts as written again.
    pub fn give_back(&self, number: u64) {
        let _giving_back = self.giving_back();
        let mut state = self.lock();
        let parts = state.remove(number);
        let parts = state.pass_on(number, parts);
        drop(state);
        self.changed.notify_all();
        drop(parts);
    }

    /// Gives back all that is held or left; what is queued or being stored is waited for.
    pub fn give_back_all(&self) {
        loop {
            let mut state = self.lock();
            while state.is_busy() {
                state = self.wait(state);
            }
            drop(state);
            // Not held while it waits: what fails to be stored is given back, too.
            let _giving_back = self.giving_back();
            let mut state = self.lock();
            if state.is_busy() {
                continue;
            }
            let parts = state.take_all();
            drop(state);
            self.changed.notify_all();
            drop(parts);
            return;
        }
    }

    /// It is left for the next one, as long as that may take.
    pub fn leave(&self, number: u64) {
        let mut state = self.lock();
        let mut parts = state.remove(number);
        if !parts.is_empty() {
            state.left.append(&mut parts);
            state.newest_left = Some(number);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Does something to one that was taken.
    pub fn with<R>(&self, number: u64, act: impl FnOnce(&mut T) -> R) -> Result<R, CaptureLoss> {
        let mut state = self.lock();
        let place = state.place_or_gone(number)?;
        match &mut state.waiting[place].stage {
            Stage::Held(part) | Stage::Queued(part) => Ok(act(part)),
            Stage::Begun => Err(CaptureLoss::WithLater),
        }
    }

    /// It is to be stored when its turn comes, by whoever calls [`HandOver::take_queued`]; `act` is done to it before.
    pub fn queue(&self, number: u64, act: impl FnOnce(&mut T)) -> Result<(), CaptureLoss> {
        let mut state = self.lock();
        let place = state.place_or_gone(number)?;
        let stage = &mut state.waiting[place].stage;
        *stage = match std::mem::replace(stage, Stage::Begun) {
            Stage::Held(mut part) => {
                act(&mut part);
                Stage::Queued(part)
            }
            other => other,
        };
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Takes one that is to be stored now, with all that falls to it, oldest first. Waits for those that are being
    /// stored, and that are queued before it.
    pub fn take(&self, number: u64) -> Result<Vec<T>, CaptureLoss> {
        let mut state = self.lock();
        loop {
            let place = state.place_or_gone(number)?;
            if state.storing.is_none() && !state.is_queued_before(place) {
                state.storing = Some(number);
                return Ok(state.take_up_to(place));
            }
            state = self.wait(state);
        }
    }

    /// Takes the first that is queued, as [`HandOver::take`]; waits for one. `None` when all is over.
    pub fn take_queued(&self) -> Option<(u64, Vec<T>)> {
        let mut state = self.lock();
        loop {
            let is_queued = |waiting: &Waiting<T>| matches!(waiting.stage, Stage::Queued(_));
            match state.waiting.iter().position(is_queued) {
                Some(place) if state.storing.is_none() => {
                    let number = state.waiting[place].number;
                    state.storing = Some(number);
                    return Some((number, state.take_up_to(place)));
                }
                None if state.is_closed => return None,
                _ => state = self.wait(state),
            }
        }
    }

    /// Waits until nothing is stored or queued before one that is being taken, so that it can be stored in part already.
    /// What falls to it is handed over; `None` if another before it is held.
    pub fn turn(&self, number: u64) -> Option<Vec<T>> {
        let mut state = self.lock();
        loop {
            let place = state.place(number)?;
            if state.storing.is_none() && !state.is_queued_before(place) {
                if place > 0 {
                    return None;
                }
                return Some(std::mem::take(&mut state.waiting[place].older));
            }
            state = self.wait(state);
        }
    }

    /// What was taken to be stored is durable.
    pub fn stored(&self, number: u64) {
        let mut state = self.lock();
        state.storing = None;
        state.durable = state.durable.max(number);
        drop(state);
        self.changed.notify_all();
    }

    /// What was taken to be stored was not: it falls to the next one, or is dropped, and so counts as written again.
    pub fn failed(&self, number: u64, parts: Vec<T>) {
        let _giving_back = self.giving_back();
        let mut state = self.lock();
        state.storing = None;
        let parts = state.pass_on(number, parts);
        drop(state);
        self.changed.notify_all();
        drop(parts);
    }

    /// The number of the newest capture up to which all is stored; 0 if none is.
    pub fn durable(&self) -> u64 {
        self.lock().durable
    }

    /// The number of the newest capture; 0 if there was none.
    pub fn newest(&self) -> u64 {
        self.lock().newest
    }

    /// Waits until all up to `number` is stored. False if it will not be: it was given back, or all is over.
    pub fn wait_until_durable(&self, number: u64) -> bool {
        let mut state = self.lock();
        loop {
            if state.durable >= number {
                return true;
            }
            let is_under_way = !state.waiting.is_empty() || state.storing.is_some();
            if state.is_closed || number > state.newest || !is_under_way {
                return false;
            }
            state = self.wait(state);
        }
    }

    /// Ends it. Waits until what is queued and being stored is stored; what is held after that is dropped, and so counts as
    /// written again.
    pub fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        self.changed.notify_all();
        while state.is_busy() {
            state = self.wait(state);
        }
        let parts = state.take_all();
        drop(state);
        self.changed.notify_all();
        drop(parts);
    }

    /// All that waits, without a look at the lock: for a forked child, where it may be held for ever.
    pub fn take_all(&mut self) -> Vec<T> {
        let state = self.state.get_mut();
        let state = state.unwrap_or_else(std::sync::PoisonError::into_inner);
        state.take_all()
    }
}
