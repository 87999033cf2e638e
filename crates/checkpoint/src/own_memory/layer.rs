//! What one capture holds until it is stored: copies of pages, what is known of the others, and the harvest that they
//! came from. Dropped, its pages count as written again.

use super::marks::WrittenPages;
use super::placement::Places;
use super::plan::Memo;
use super::shared::Lengths;
use super::ticket::Reply;
use crate::arena::Arena;
use crate::compared::ComparedBecause;
use crate::report::NotTracked;
use pagetide_pages::{PageCount, PageRange, PageSet};
use pagetide_snapshot::{PageState, SnapshotWriter, Space, WriteError};
use pagetide_tracker::Harvest;
use std::sync::Arc;
use std::time::Duration;

/// See the head of this file.
pub(super) struct Layer {
    pub arena: Arena,
    pub states: Vec<(PageRange, PageState)>,
    pub places: Arc<Places>,
    pub space: Space,
    pub harvest: Harvest,
    pub told: ReportedWrites,
    /// The snapshot that was begun because the buffer did not hold it all, and what fell to it before.
    pub begun: Option<SnapshotWriter>,
    pub below: Vec<Self>,
    /// Some of its pages are in that snapshot only.
    pub is_in_part: bool,
    pub attachments: Vec<(String, Vec<u8>)>,
    /// What is remembered once this is stored.
    pub next: Arc<CarryOver>,
    pub said: CaptureFigures,
    /// Who waits for it, if it is stored in the background.
    pub reply: Option<Reply>,
}

/// What one capture has to remember for the next.
#[derive(Default)]
pub(super) struct CarryOver {
    pub memo: Memo,
    pub lengths: Lengths,
    /// Pages that may not be what the snapshot before it has.
    pub touched: PageSet,
}

/// What is reported of a capture.
#[derive(Clone, Default)]
pub(super) struct CaptureFigures {
    /// Pages that were copied.
    pub copied: PageSet,
    pub unreadable: PageSet,
    pub guards: PageSet,
    pub mapped_anew: PageSet,
    pub compared_because: Option<ComparedBecause>,
    pub not_tracked: Vec<NotTracked>,
    pub paused: Duration,
}

impl CaptureFigures {
    /// Of this and of what was captured before it and is stored with it.
    pub fn over(self, older: &Self) -> Self {
        Self {
            copied: self.copied.union(&older.copied),
            mapped_anew: self.mapped_anew.union(&older.mapped_anew),
            compared_because: self.compared_because.or(older.compared_because.clone()),
            ..self
        }
    }

    /// How many pages were copied.
    pub fn written(&self) -> PageCount {
        self.copied.subtract(&self.unreadable).count()
    }
}

/// Pages that were told to be written, and that are told again unless they are stored.
pub(super) struct ReportedWrites {
    teller: Option<WrittenPages>,
    pub pages: PageSet,
}

impl ReportedWrites {
    pub fn take(teller: &WrittenPages) -> Self {
        Self {
            pages: teller.take(),
            teller: Some(teller.clone()),
        }
    }

    /// They are stored.
    pub fn commit(mut self) {
        self.teller = None;
    }
}

impl Drop for ReportedWrites {
    fn drop(&mut self) {
        if let Some(teller) = &self.teller {
            teller.mark_pages(&self.pages);
        }
    }
}

impl Layer {
    /// Puts all of it into a snapshot.
    pub fn put(&self, writer: &mut SnapshotWriter) -> Result<(), WriteError> {
        writer.put_pages(0, &self.places.placed(&self.arena))?;
        for &(mapped, state) in &self.states {
            for (_, pages) in self.places.in_space(mapped) {
                writer.put_state(0, pages, state)?;
            }
        }
        Ok(())
    }

    /// It is stored. What remains is its buffer, empty.
    pub fn commit(self) -> Arena {
        for below in self.below {
            below.commit();
        }
        self.harvest.commit();
        self.told.commit();
        let mut arena = self.arena;
        arena.clear();
        arena
    }
}
