//! What was captured, until it is stored or given back.

use super::marks::WrittenPages;
use super::plan::Memo;
use super::shared::Lengths;
use super::{Last, OwnMemory, OwnMemoryError};
use crate::compared::ComparedBecause;
use crate::report::NotTracked;
use pagetide_pages::{PageCount, PageRange, PageSet};
use pagetide_snapshot::{PageState, SnapshotWriter, View};
use pagetide_tracker::Harvest;
use rustix::fs::{FlockOperation, flock};
use std::time::Duration;

/// What was captured and is not stored yet. Dropped, it is given back: the pages count as written again. So they do
/// if it is forgotten (`std::mem::forget`), when its owner captures again or is dropped.
#[must_use = "a capture that is dropped is given back"]
pub struct Captured<'a> {
    owner: &'a mut OwnMemory,
}

/// The same, as its owner keeps it.
pub(super) struct Taken {
    pub writer: SnapshotWriter,
    pub harvest: Harvest,
    pub told: Told,
    pub states: Vec<(PageRange, PageState)>,
    /// What is remembered once this is stored.
    pub next: (Memo, Lengths),
    pub written: PageCount,
    pub unreadable: PageCount,
    pub mapped_anew: PageCount,
    pub compared_because: Option<ComparedBecause>,
    pub not_tracked: Vec<NotTracked>,
    pub paused: Duration,
}

/// Pages that were told to be written, and that are told again unless they are stored.
pub(super) struct Told {
    teller: Option<WrittenPages>,
    pub pages: PageSet,
}

impl Told {
    pub fn take(teller: &WrittenPages) -> Told {
        Told {
            pages: teller.take(),
            teller: Some(teller.clone()),
        }
    }

    fn commit(mut self) {
        self.teller = None;
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if let Some(teller) = &self.teller {
            teller.give_back(&self.pages);
        }
    }
}

/// A stored snapshot of own memory.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OwnSnapshot {
    /// The snapshot.
    pub view: View,
    /// Pages that were copied.
    pub written_pages: PageCount,
    /// Pages that hold nothing that can be read: past the end of their file, or broken. Guard regions do not count.
    pub unreadable_pages: PageCount,
    /// Pages under which something else was mapped since the last snapshot. They were copied in full.
    pub mapped_anew_pages: PageCount,
    /// Why memory that is otherwise tracked was read in full and compared, if it was.
    pub compared_because: Option<ComparedBecause>,
    /// The parts of the regions that are not tracked and are read in full and compared each time, and why.
    pub not_tracked: Vec<NotTracked>,
    /// How long [`OwnMemory::capture`] took: the writers were paused that long.
    pub paused: Duration,
}

impl<'a> Captured<'a> {
    pub(super) fn new(owner: &'a mut OwnMemory) -> Captured<'a> {
        Captured { owner }
    }

    /// How long the capture took: the writers were paused that long.
    pub fn paused(&self) -> Duration {
        let open = self.owner.open.as_ref();
        open.map_or(Duration::ZERO, |taken| taken.paused)
    }

    /// Adds named bytes to the snapshot: vCPU state, a log position.
    pub fn attach(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), OwnMemoryError> {
        self.owner.check_pid()?;
        if let Some(taken) = &mut self.owner.open {
            taken.writer.attach(name, bytes)?;
        }
        Ok(())
    }

    /// Stores what was captured. Durable when it returns; on an error the pages count as written again.
    pub fn commit(self) -> Result<OwnSnapshot, OwnMemoryError> {
        self.owner.check_pid()?;
        let owner = &mut *self.owner;
        let taken = owner.open.take();
        let mut taken = taken.expect("what was captured is there until this is gone");
        taken
            .writer
            .put_pages(0, &owner.places.placed(&owner.arena))?;
        for &(mapped, state) in &taken.states {
            for (_, pages) in owner.places.in_space(mapped) {
                taken.writer.put_state(0, pages, state)?;
            }
        }
        owner.arena.clear();
        let view = taken.writer.commit()?;
        taken.harvest.commit();
        taken.told.commit();
        let (memo, lengths) = taken.next;
        owner.last = Some(Last {
            view: view.clone(),
            memo,
            lengths,
        });
        owner.has_buffer_rings = owner.may_have_buffer_rings();
        Ok(OwnSnapshot {
            view,
            written_pages: taken.written,
            unreadable_pages: taken.unreadable,
            mapped_anew_pages: taken.mapped_anew,
            compared_because: taken.compared_because,
            not_tracked: taken.not_tracked,
            paused: taken.paused,
        })
    }

    /// Stores nothing; the pages count as written again.
    pub fn give_back(self) {}
}

impl Drop for Captured<'_> {
    fn drop(&mut self) {
        self.owner.give_back_open();
    }
}

impl OwnMemory {
    /// Gives back what was captured and not stored. A forked child leaves it alone: the marks and the file are its
    /// parent's.
    pub(super) fn give_back_open(&mut self) {
        let open = self.open.take();
        if self.check_pid().is_err() {
            std::mem::forget(open);
        }
    }
}

impl Drop for OwnMemory {
    fn drop(&mut self) {
        self.give_back_open();
        if let (Ok(()), Some(lock)) = (self.check_pid(), self.lock.descriptor()) {
            // At once, whoever has a copy of the descriptor for a moment yet.
            let _ = flock(lock, FlockOperation::Unlock);
        }
    }
}
