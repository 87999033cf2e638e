//! What was harvested for one snapshot, and where its pages go, until it is durable.

use crate::arena::Arena;
use crate::error::TakeError;
use crate::options::Options;
use crate::spaces::Spaces;
use pagetide_snapshot::SnapshotWriter;
use pagetide_tracker::{GivenBack, Harvest};
use std::sync::atomic::Ordering;

/// Everything harvested for one snapshot, with the process it is of, until it is durable.
#[derive(Default)]
pub(crate) struct Harvests {
    pub taken: Vec<(i32, Harvest)>,
}

impl Harvests {
    /// The snapshot is durable.
    pub fn commit(self) {
        self.taken
            .into_iter()
            .for_each(|(_, harvest)| harvest.commit());
    }

    /// The processes of which the kernel itself does not count all of it as written again.
    pub fn give_back(self) -> Vec<i32> {
        let given = self
            .taken
            .into_iter()
            .map(|(pid, harvest)| (pid, harvest.give_back()));
        given
            .filter(|(_, given)| *given != GivenBack::InKernel)
            .map(|(pid, _)| pid)
            .collect()
    }
}

/// Where the pages of one snapshot go.
pub(crate) struct Writing {
    pub spaces: Spaces,
    pub writer: SnapshotWriter,
}

/// Where copied pages go.
pub(crate) struct Sink<'a> {
    pub arena: &'a mut Arena,
    pub spaces: &'a Spaces,
    /// The index of the space of the process.
    pub number: usize,
    pub writer: &'a mut SnapshotWriter,
}

/// An error if the caller wants no more.
pub(crate) fn check_cancelled(options: &Options) -> Result<(), TakeError> {
    if options.cancel.load(Ordering::Relaxed) {
        Err(TakeError::Cancelled)
    } else {
        Ok(())
    }
}
