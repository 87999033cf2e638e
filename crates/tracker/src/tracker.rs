//! What all backends do.

use crate::backend::Backend;
use crate::error::TrackError;
use crate::harvest::Harvest;
use crate::layout_change::LayoutChange;
use pagetide_pages::{PageCount, PageRange, PageSet, PageSize};

/// Finds written pages by one backend.
pub trait Tracker {
    /// Which backend this is.
    fn backend(&self) -> Backend;

    /// The unit in which pages are reported.
    fn page_size(&self) -> PageSize;

    /// True if a harvest is right only while nothing runs in the address space: taking and clearing are
    /// not one step then, and what is written in between is lost.
    fn needs_stop(&self) -> bool;

    /// What a later tracker of the same address space needs to know to go on from the last harvest,
    /// besides what the kernel itself knows. Nothing by default.
    fn remembered(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Begins to watch those of `mappings` that are not watched yet, and tells which these were. The
    /// mappings are whole ones, sorted, as the kernel lists them. Watching does not start with a
    /// clean slate: everything that is fresh counts as written until a harvest takes it.
    fn arm(&mut self, mappings: &[PageRange]) -> Result<LayoutChange, TrackError>;

    /// Takes and clears the written set of `mappings`, after arming what is new among them. What is
    /// written while this runs belongs to this harvest or to the next, never to neither.
    ///
    /// Long parts that hold nothing may be left unmarked, so that they cost nothing: they are part of every
    /// harvest, as ranges, whether they were written or not.
    ///
    /// On an error nothing is lost: what was taken so far is part of the next harvest.
    fn harvest(&mut self, mappings: &[PageRange]) -> Result<Harvest, TrackError> {
        self.harvest_but(mappings, &|_| PageSet::new())
    }

    /// As [`Tracker::harvest`], but what `leave` gives of the pages that are new is not watched yet. They
    /// are new again at the next harvest, and none of them is in the written set.
    ///
    /// A tracker for which watching costs nothing need not ask.
    fn harvest_but(
        &mut self,
        mappings: &[PageRange],
        leave: &dyn Fn(&PageSet) -> PageSet,
    ) -> Result<Harvest, TrackError>;

    /// Ends watching those of `mappings` that this tracker watches, and takes its marks from them: nothing of it can
    /// be seen in the address space any more. What is given to it again later is new.
    fn release(&mut self, mappings: &[PageRange]) -> Result<(), TrackError> {
        let _ = mappings;
        Ok(())
    }

    /// About how many pages of `mappings` hold something and would be in a harvest now; `None` if that cannot be
    /// told without one. Nothing is taken. What is learnt of parts that hold nothing makes the next harvest shorter.
    fn survey(&mut self, mappings: &[PageRange]) -> Result<Option<PageCount>, TrackError> {
        let _ = mappings;
        Ok(None)
    }
}
