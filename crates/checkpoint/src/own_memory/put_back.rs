//! Putting own memory back to a snapshot.

use super::error::OwnMemoryError;
use super::ground::{Ground, Kind};
use super::placement::Places;
use super::shown_twice;
use crate::capture::SIZE;
use pagetide_kernel::memory::ProcessMemory;
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};
use pagetide_snapshot::{PageContent, PageHash, View};

/// What is put back where.
pub(super) struct PutBack<'a> {
    pub view: &'a View,
    /// The position of the space in it.
    pub space: usize,
    pub places: &'a Places,
    pub ground: &'a Ground,
    pub memory: &'a ProcessMemory,
    /// Pages that hold zeros, by address. They are not read.
    pub empty: &'a PageSet,
}

impl PutBack<'_> {
    /// Writes the pages that differ and returns how many these were. What cannot be put back as a whole is refused
    /// before anything is written.
    pub fn run(&self) -> Result<PageCount, OwnMemoryError> {
        check_whole(self.view, self.space, self.places)?;
        shown_twice::refuse(self.view, self.space, self.places, self.ground)?;
        let is_shared = |kind| matches!(kind, Kind::Shared | Kind::SharedAlone);
        let mut restored = PageCount(0);
        // Private mappings come last: where they have no copy of a page they show what is put into the shared ones.
        for pages in [
            self.ground.pages(is_shared),
            self.ground.pages(|kind| !is_shared(kind)),
        ] {
            for &range in pages.ranges() {
                for (mapped, in_space) in self.places.in_space(range) {
                    restored += self.range(mapped.start(), in_space)?;
                }
            }
        }
        Ok(restored)
    }

    /// One range of the space, which begins at page `first` of memory.
    fn range(&self, first: PageIndex, in_space: PageRange) -> Result<PageCount, OwnMemoryError> {
        let mut restored = PageCount(0);
        let mut page_now = vec![0; SIZE.len()];
        let zeros = vec![0; SIZE.len()];
        let distance = first.0.wrapping_sub(in_space.start().0);
        self.view.read(self.space, in_space, |pages, content| {
            // A range of zeros may be far longer than memory: one page of them serves for all.
            let (wanted, step) = match content {
                PageContent::Bytes(bytes) => (bytes, SIZE.len()),
                PageContent::Zero => (&zeros[..], 0),
                PageContent::Guard | PageContent::Unbacked | PageContent::File(_) => {
                    return Ok(());
                }
            };
            for (number, page) in pages.pages().enumerate() {
                let bytes = &wanted[number * step..][..SIZE.len()];
                let mapped = PageIndex(page.0.wrapping_add(distance));
                if step == 0 && self.empty.contains(mapped) {
                    continue;
                }
                let address = SIZE.address_of(mapped);
                self.memory.read(address, &mut page_now)?;
                if PageHash::of(&page_now) != PageHash::of(bytes) {
                    self.memory.write(address, bytes)?;
                    restored += PageCount(1);
                }
            }
            Ok::<(), OwnMemoryError>(())
        })?;
        Ok(restored)
    }
}

/// The snapshot must say of each page what it was.
fn check_whole(view: &View, space: usize, places: &Places) -> Result<(), OwnMemoryError> {
    for placement in places.list() {
        let told = view
            .runs(space, placement.in_space())
            .map(|(pages, _)| pages);
        let told: PageSet = told.collect();
        let missing = PageSet::from_iter([placement.in_space()]).subtract(&told);
        if let Some(first) = missing.ranges().first() {
            let offset = PageCount(first.start().0 - placement.first_page().0);
            return Err(OwnMemoryError::NotInSnapshot {
                id: view.id(),
                count: missing.count().0,
                address: SIZE.address_of(placement.mapped().start().plus(offset)),
            });
        }
    }
    Ok(())
}
