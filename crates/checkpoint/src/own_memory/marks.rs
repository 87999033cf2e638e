//! Pages that count as written because somebody says so. For what the kernel does not tell.

use crate::capture::SIZE;
use pagetide_pages::PageSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Tells an [`OwnMemory`](crate::OwnMemory) that pages were written of which the kernel does not say so: by a device, by
/// another process that maps the same shared memory, by a hole that was punched. May be cloned and used from any
/// thread, also while a capture is being stored.
#[derive(Clone, Debug, Default)]
pub struct WrittenPages {
    pages: Arc<Mutex<PageSet>>,
}

impl WrittenPages {
    /// Counts the pages of `length_bytes` bytes from `address` on as written: the next capture has them. Say so after
    /// the write; what is written after the capture has to be told again. Addresses that belong to no region do
    /// not matter.
    pub fn mark(&self, address: u64, length_bytes: u64) {
        let end = address.saturating_add(length_bytes);
        self.lock().insert(SIZE.covering(address, end));
    }

    /// Takes what was told.
    pub(super) fn take(&self) -> PageSet {
        std::mem::take(&mut *self.lock())
    }

    /// What was taken is to be told again.
    pub(super) fn give_back(&self, pages: &PageSet) {
        self.lock().extend(pages.ranges().iter().copied());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, PageSet> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
