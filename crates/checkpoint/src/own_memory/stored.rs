//! A stored snapshot of own memory: what is reported of it.

use crate::compared::ComparedBecause;
use crate::report::NotTracked;
use pagetide_pages::PageCount;
use pagetide_snapshot::View;
use std::time::Duration;

/// A stored snapshot of own memory.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OwnSnapshot {
    /// The snapshot.
    pub view: View,
    /// The number of its capture.
    pub number: u64,
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
    /// How long [`OwnMemory::capture`](crate::OwnMemory::capture) took: the writers were paused that long.
    pub paused: Duration,
}
