//! A harvest and its two ends: committed, or given back. Not how it was gathered.

use crate::layout_change::LayoutChange;
use pagetide_pages::PageSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Where given-back pages go. Shared by a tracker and its harvests.
pub(crate) struct Ledger {
    owed: Mutex<PageSet>,
    restore: Box<dyn Fn(&PageSet) -> GivenBack + Send + Sync>,
}

/// How far a harvest could be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum GivenBack {
    /// The kernel itself counts the pages as written again: whoever harvests next will see them,
    /// even from another process.
    InKernel,
    /// Only the tracker that harvested them remembers. If it goes before its next harvest, the
    /// interval is lost, and the next snapshot must not rely on it.
    InMemory,
}

impl Ledger {
    pub(crate) fn new(restore: impl Fn(&PageSet) -> GivenBack + Send + Sync + 'static) -> Self {
        Self {
            owed: Mutex::new(PageSet::new()),
            restore: Box::new(restore),
        }
    }

    /// Remembers pages that the next harvest must hold.
    pub(crate) fn owe(&self, pages: &PageSet) {
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        owed.extend(pages.ranges().iter().copied());
    }

    /// Takes what is owed.
    pub(crate) fn collect(&self) -> PageSet {
        std::mem::take(&mut self.owed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// As [`Ledger::owe`], and tells the kernel.
    pub(crate) fn give_back(&self, pages: &PageSet) -> GivenBack {
        self.owe(pages);
        (self.restore)(pages)
    }
}

/// The written set of one epoch, taken from the kernel and not yet stored.
///
/// Call [`Harvest::commit`] when the pages are durably stored. Otherwise, by [`Harvest::give_back`]
/// or by dropping it, they count as written again.
#[must_use = "a harvest that is dropped is given back"]
pub struct Harvest {
    written: PageSet,
    /// Of these, pages that were not marked: they read written still.
    unmarked: PageSet,
    layout: LayoutChange,
    ledger: Option<Arc<Ledger>>,
}

impl Harvest {
    pub(crate) fn new(
        written: PageSet,
        unmarked: PageSet,
        layout: LayoutChange,
        ledger: Arc<Ledger>,
    ) -> Self {
        Self {
            written,
            unmarked,
            layout,
            ledger: Some(ledger),
        }
    }

    /// The pages written since the last harvest, fresh ones among them.
    pub fn written(&self) -> &PageSet {
        &self.written
    }

    /// What changed in the layout.
    pub fn layout(&self) -> &LayoutChange {
        &self.layout
    }

    /// The pages are durably stored.
    pub fn commit(mut self) {
        self.ledger = None;
    }

    /// The pages were not stored: they are part of the next harvest.
    pub fn give_back(mut self) -> GivenBack {
        match self.ledger.take() {
            Some(ledger) => ledger.give_back(&self.written.subtract(&self.unmarked)),
            None => GivenBack::InKernel,
        }
    }
}

impl Drop for Harvest {
    fn drop(&mut self) {
        if let Some(ledger) = self.ledger.take() {
            let _ = ledger.give_back(&self.written.subtract(&self.unmarked));
        }
    }
}

impl std::fmt::Debug for Harvest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Harvest")
            .field("written", &self.written)
            .field("layout", &self.layout)
            .field("settled", &self.ledger.is_none())
            .finish()
    }
}
