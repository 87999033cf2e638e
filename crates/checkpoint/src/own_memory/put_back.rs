//! Putting own memory back to a snapshot.

use super::error::OwnMemoryError;
use super::placement::Places;
use crate::capture::SIZE;
use pagetide_kernel::memory::ProcessMemory;
use pagetide_pages::{PageCount, PageIndex, PageSet};
use pagetide_snapshot::{PageContent, PageHash, View};

/// Writes the pages that differ and returns how many these were. What is `empty`, by address, holds zeros and is not
/// read.
pub(super) fn put_back(
    view: &View,
    name: &str,
    places: &Places,
    memory: &ProcessMemory,
    empty: &PageSet,
) -> Result<PageCount, OwnMemoryError> {
    let space = view
        .space_index(name)
        .ok_or_else(|| OwnMemoryError::NoSpace {
            id: view.id(),
            name: name.to_owned(),
        })?;
    check_whole(view, space, places)?;
    let mut restored = PageCount(0);
    let mut page_now = vec![0; SIZE.len()];
    let zeros = vec![0; SIZE.len()];
    for placement in places.list() {
        let distance = placement
            .mapped()
            .start()
            .0
            .wrapping_sub(placement.first_page().0);
        view.read(space, placement.in_space(), |pages, content| {
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
                if step == 0 && empty.contains(mapped) {
                    continue;
                }
                let address = SIZE.address_of(mapped);
                memory.read(address, &mut page_now)?;
                if PageHash::of(&page_now) != PageHash::of(bytes) {
                    memory.write(address, bytes)?;
                    restored += PageCount(1);
                }
            }
            Ok::<(), OwnMemoryError>(())
        })?;
    }
    Ok(restored)
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
