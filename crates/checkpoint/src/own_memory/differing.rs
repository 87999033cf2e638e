//! What may differ from a baseline.

use super::shared::Lengths;
use pagetide_pages::PageSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What may differ from a baseline, by address.
#[derive(Default)]
pub(super) struct Differing {
    pub pages: PageSet,
    /// What the kernel may write to at any time: registered buffers, reads under way.
    pub unseen: PageSet,
    /// Nothing is known.
    pub is_all: bool,
    pub lengths: Lengths,
}

impl Differing {
    pub fn add(&mut self, pages: &PageSet) {
        self.pages.extend(pages.ranges().iter().copied());
    }
}

pub(super) fn locked(differing: &Mutex<Differing>) -> MutexGuard<'_, Differing> {
    differing.lock().unwrap_or_else(PoisonError::into_inner)
}
