//! Pages that count as written because somebody says so. For what the kernel does not tell.

use crate::capture::SIZE;
use pagetide_pages::PageSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Tells an [`OwnMemory`](crate::OwnMemory) that pages were written of which the kernel does not say so: by a device, by
/// another process that maps the same shared memory, by a hole that was punched. May be cloned and used from any
/// thread, also while a capture is being stored.
#[derive(Clone, Debug, Default)]
pub struct WrittenPages {
    told: Arc<Mutex<Marked>>,
}

/// What was told.
#[derive(Debug, Default)]
struct Marked {
    /// Since it was asked last.
    once: PageSet,
    /// For ever.
    always: PageSet,
}

impl WrittenPages {
    /// Counts the pages of `length_bytes` bytes from `address` on as written: the next capture has them. Say so after
    /// the write; what is written after the capture has to be told again. Addresses that belong to no region do
    /// not matter.
    pub fn mark(&self, address: u64, length_bytes: u64) {
        let end = address.saturating_add(length_bytes);
        self.lock().once.insert(SIZE.covering(address, end));
    }

    /// Counts the pages of `length_bytes` bytes from `address` on as written at every capture from now on: for what a device
    /// or another process writes to all the time (the rings of vhost).
    pub fn mark_always(&self, address: u64, length_bytes: u64) {
        let end = address.saturating_add(length_bytes);
        self.lock().always.insert(SIZE.covering(address, end));
    }

    /// Ends [`WrittenPages::mark_always`] for the pages. They count as written once more.
    pub fn mark_no_longer(&self, address: u64, length_bytes: u64) {
        let end = address.saturating_add(length_bytes);
        let pages = PageSet::from(SIZE.covering(address, end));
        let mut told = self.lock();
        let ended = told.always.intersect(&pages);
        told.always = told.always.subtract(&pages);
        told.once.extend(ended.ranges().iter().copied());
    }

    /// As [`WrittenPages::mark`], of pages.
    pub(super) fn mark_pages(&self, pages: &PageSet) {
        self.lock().once.extend(pages.ranges().iter().copied());
    }

    /// Takes what was told.
    pub(super) fn take(&self) -> PageSet {
        let mut told = self.lock();
        std::mem::take(&mut told.once).union(&told.always)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Marked> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
