//! The way from captures to a store: one snapshot after the other, each a delta to the one before, from whichever thread.
//! It outlives nothing: when its owner goes, what was not stored by then is given back.

use super::error::OwnMemoryError;
use super::hand_over::{CaptureLoss, HandOver};
use super::layer::{CaptureFigures, CarryOver, Layer};
use super::stored::OwnSnapshot;
use crate::arena::Arena;
use crate::capture::SIZE;
use crate::rings;
use pagetide_kernel::own_descriptors::{Withheld, withhold, without_forks};
use pagetide_snapshot::{SnapshotWriter, Store, View, WriteOptions, WriterLock};
use rustix::fs::{FlockOperation, flock};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// So many empty buffers are kept for captures to come.
const KEPT_ARENAS: usize = 2;

/// See the head of this file.
pub(super) struct Line {
    pub pid: u32,
    pub hand_over: HandOver<Layer>,
    pub store: Store,
    write: WriteOptions,
    buffer_bytes: u64,
    no_buffer_rings: bool,
    locked: Mutex<Option<Locked>>,
    last: Mutex<LastSnapshot>,
    arenas: Mutex<Vec<Arena>>,
}

/// The writer's lock, which a forked child must not have.
struct Locked {
    /// Before the descriptor that it is about.
    _withheld: Option<Withheld>,
    lock: WriterLock,
}

/// What is known of the last snapshot that was stored, and may be asked at any time.
#[derive(Clone, Default)]
pub(super) struct LastSnapshot {
    pub view: Option<View>,
    pub next: Option<Arc<CarryOver>>,
    /// A ring of buffers might lie in the memory when that was asked last.
    pub has_buffer_rings: bool,
    /// The newest capture when that was asked.
    pub asked_at: u64,
    /// Memory is to be compared with the view as a whole once, since nobody knows what was written.
    pub is_doubtful: bool,
}

/// How snapshots are made of what is captured.
pub(super) struct Making {
    pub write: WriteOptions,
    pub buffer_bytes: u64,
    pub no_buffer_rings: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Line {
    /// Takes the lock of the store for process `pid`, which is this one.
    pub fn open(store: Store, pid: u32, making: Making) -> Result<Self, OwnMemoryError> {
        let held = without_forks(|| -> Result<Locked, OwnMemoryError> {
            let lock = store.lock()?;
            let withheld = lock.descriptor().map(withhold).transpose();
            Ok(Locked {
                _withheld: withheld.map_err(OwnMemoryError::Withhold)?,
                lock,
            })
        });
        let held = held.map_err(OwnMemoryError::Withhold)??;
        Ok(Self {
            pid,
            hand_over: HandOver::default(),
            store,
            write: making.write,
            buffer_bytes: making.buffer_bytes,
            no_buffer_rings: making.no_buffer_rings,
            locked: Mutex::new(Some(held)),
            last: Mutex::new(LastSnapshot::default()),
            arenas: Mutex::new(Vec::new()),
        })
    }

    /// Fails in a forked child, before any lock is taken: another thread of the parent may have held it.
    pub fn check_pid(&self) -> Result<(), OwnMemoryError> {
        check_pid(self.pid)
    }

    /// What is known of the last snapshot.
    pub fn last(&self) -> LastSnapshot {
        locked(&self.last).clone()
    }

    /// Goes on from `view`, of which memory has the content; `is_doubtful` if that is not known.
    pub fn go_on_from(&self, view: View, is_doubtful: bool) {
        let mut last = locked(&self.last);
        *last = LastSnapshot {
            view: Some(view),
            next: Some(Arc::default()),
            is_doubtful,
            ..*last
        };
    }

    /// The most that one capture copies before it is stored in part.
    pub fn buffer_bytes(&self) -> u64 {
        self.buffer_bytes
    }

    /// An empty buffer.
    pub fn arena(&self) -> Arena {
        let kept = locked(&self.arenas).pop();
        kept.unwrap_or_else(|| Arena::new(SIZE, self.buffer_bytes))
    }

    /// Keeps an empty buffer.
    pub fn keep(&self, arena: Arena) {
        let mut arenas = locked(&self.arenas);
        if arenas.len() < KEPT_ARENAS {
            arenas.push(arena);
        }
    }

    /// Asks whether a ring of buffers may lie in the memory. It takes 30 ms an io_uring.
    pub fn ask_for_buffer_rings(&self) -> bool {
        let asked_at = self.hand_over.newest();
        let has = !self.no_buffer_rings && rings::may_have_own_buffer_rings(self.pid.cast_signed());
        let mut last = locked(&self.last);
        if asked_at >= last.asked_at {
            (last.has_buffer_rings, last.asked_at) = (has, asked_at);
        }
        has
    }

    /// A new snapshot, a delta to the last one.
    pub fn begin(&self) -> Result<SnapshotWriter, OwnMemoryError> {
        let held = locked(&self.locked);
        let held = held.as_ref().ok_or(OwnMemoryError::Closed)?;
        let view = self.last().view;
        Ok(self
            .store
            .begin(&held.lock, view.as_ref(), self.write.clone())?)
    }

    /// Stores capture `number` and all that falls to it.
    pub fn commit(&self, number: u64) -> Result<OwnSnapshot, OwnMemoryError> {
        self.check_pid()?;
        let layers = self.hand_over.take(number).map_err(gone)?;
        self.store_now(number, layers)
    }

    /// Stores what was taken out of the hand-over.
    pub fn store_now(
        &self,
        number: u64,
        layers: Vec<Layer>,
    ) -> Result<OwnSnapshot, OwnMemoryError> {
        let mut turn = Turn {
            line: self,
            number,
            layers,
        };
        let view = self.write(&mut turn.layers)?;
        let layers = std::mem::take(&mut turn.layers);
        std::mem::forget(turn);
        let next = layers.last().map(|newest| Arc::clone(&newest.next));
        {
            let mut last = locked(&self.last);
            (last.view, last.next) = (Some(view.clone()), next);
            last.is_doubtful = false;
        }
        let said = said_of(&layers);
        for layer in layers {
            self.keep(layer.commit());
        }
        self.hand_over.stored(number);
        self.ask_for_buffer_rings();
        Ok(OwnSnapshot {
            view,
            number,
            written_pages: said.written(),
            unreadable_pages: said.unreadable.subtract(&said.guards).count(),
            mapped_anew_pages: said.mapped_anew.count(),
            compared_because: said.compared_because,
            not_tracked: said.not_tracked,
            paused: said.paused,
        })
    }

    fn write(&self, layers: &mut [Layer]) -> Result<View, OwnMemoryError> {
        let begun = layers.first_mut().and_then(|first| first.begun.take());
        let mut is_begun = begun.is_some();
        let mut writer = match begun {
            Some(writer) => writer,
            None => self.begin()?,
        };
        if let Some(newest) = layers.last() {
            writer.set_spaces(vec![newest.space.clone()])?;
        }
        for layer in &*layers {
            if layer.is_in_part && !std::mem::take(&mut is_begun) {
                return Err(OwnMemoryError::EarlierLost);
            }
            layer.put(&mut writer)?;
        }
        if let Some(newest) = layers.last_mut() {
            for (name, bytes) in std::mem::take(&mut newest.attachments) {
                writer.attach(name, bytes)?;
            }
        }
        Ok(writer.commit()?)
    }

    /// Gives back what is held after what is queued was stored, and lets go of the store.
    pub fn close(&self) {
        self.hand_over.close();
        let held = locked(&self.locked).take();
        if let Some(lock) = held.as_ref().and_then(|held| held.lock.descriptor()) {
            // At once, whoever has a copy of the descriptor for a moment yet.
            let _ = flock(lock, FlockOperation::Unlock);
        }
    }
}

impl Drop for Line {
    /// A forked child leaves it all alone: the marks and the files are its parent's.
    fn drop(&mut self) {
        if self.check_pid().is_err() {
            std::mem::forget(self.hand_over.take_all());
        }
    }
}

/// A snapshot that is being stored. Whatever ends it early, its layers fall to the next.
struct Turn<'a> {
    line: &'a Line,
    number: u64,
    layers: Vec<Layer>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let layers = std::mem::take(&mut self.layers);
        self.line.hand_over.failed(self.number, layers);
    }
}

/// What is said of the newest layer and of those that fell to it.
fn said_of(layers: &[Layer]) -> CaptureFigures {
    let mut said = CaptureFigures::default();
    for layer in layers {
        let below = said_of(&layer.below);
        said = layer.said.clone().over(&said.over(&below));
    }
    said
}

/// Why a capture is gone.
pub(super) fn gone(gone: CaptureLoss) -> OwnMemoryError {
    match gone {
        CaptureLoss::WithLater => OwnMemoryError::StoredWithLater,
        CaptureLoss::Closed => OwnMemoryError::Closed,
    }
}

/// Fails if this process is not `owner`.
pub(super) fn check_pid(owner: u32) -> Result<(), OwnMemoryError> {
    match pid_now() {
        pid if pid == owner => Ok(()),
        child => Err(OwnMemoryError::Forked { owner, child }),
    }
}

/// The number of this process.
pub(super) fn pid_now() -> u32 {
    rustix::process::getpid()
        .as_raw_nonzero()
        .get()
        .cast_unsigned()
}
