//! What of a process is marked by its tracker, which of its new memory is left for later, and how marks are taken back.

use crate::capture::SIZE;
use crate::compared::ComparedBecause;
use crate::growth;
use crate::layout::Layout;
use crate::member::Member;
use crate::report::NotTracked;
use pagetide_kernel::maps::Mapping;
use pagetide_pages::{PageRange, PageSet};
use pagetide_tracker::{Harvest, TrackError};

impl Member {
    /// Ends what earlier snapshots have marked: the process is not to see it.
    pub fn take_marks_back(&mut self, mappings: &[Mapping]) -> Result<(), TrackError> {
        let Some(tracking) = self.tracking.as_mut() else {
            return Ok(());
        };
        let private = mappings.iter().filter(|mapping| !mapping.shared);
        let private: Vec<PageRange> = private.map(Mapping::pages).collect();
        tracking.tracker.release(&private)
    }

    /// Takes what was written of what is tracked. New memory is left to be compared where a mapping more would be too much for it.
    pub fn harvest(&mut self, layout: &Layout) -> Result<Option<Harvest>, TrackError> {
        let Some(tracking) = self.tracking.as_mut() else {
            return Ok(None);
        };
        let mappings = &layout.mappings;
        let are_many = growth::are_many(mappings.len(), self.most_mappings);
        let leave = |fresh: &PageSet| match are_many {
            true => fresh.clone(),
            false => growth::not_worth_a_mapping(mappings, fresh),
        };
        let harvest = tracking.tracker.harvest_but(&layout.tracked, &leave)?;
        Ok(Some(harvest))
    }
}

/// Names what is left to be compared, if that is because there are many mappings.
pub(crate) fn left_for_many(
    (pid, most): (i32, u64),
    layout: &Layout,
    left: &PageSet,
) -> Vec<NotTracked> {
    let mappings = layout.mappings.len();
    if !growth::are_many(mappings, most) {
        return Vec::new();
    }
    let name = |range: &PageRange| {
        let (start, end) = SIZE.span_of(*range);
        NotTracked {
            pid,
            start,
            end,
            reason: ComparedBecause::ManyMappings { mappings, most },
        }
    };
    left.ranges().iter().map(name).collect()
}
