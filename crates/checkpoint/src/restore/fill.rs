//! What the pages of a new process hold: read from the chain by all cores and written into its memory.

use super::error::RestoreError;
use super::nature::Nature;
use crate::capture::SIZE;
use pagetide_kernel::memory::ProcessMemory;
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};
use pagetide_snapshot::{Backing, Capture, PageContent, RangeContent, Region, Sharing, View};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of zeros written at once.
const ZEROS: usize = 1 << 18;

/// What was done.
pub(super) struct Filled {
    /// How many pages were written.
    pub pages: PageCount,
    /// Pages that are to be guards.
    pub guards: Vec<PageRange>,
}

/// How the pages of a region get their content.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// They are written. What was never written is zero.
    Written,
    /// They are written; what is zero covers something else.
    ZerosToo,
    /// By something else, or not at all.
    NotHere,
}

fn way(region: &Region) -> Way {
    match (&region.backing, &region.capture) {
        (Backing::Kernel, _) | (_, Capture::NotCaptured { .. }) => Way::NotHere,
        _ if region.shows.is_some() => Way::NotHere,
        (Backing::Anonymous, _) => Way::Written,
        (Backing::File { .. }, _) if region.sharing == Sharing::Shared => Way::NotHere,
        (Backing::File { .. }, _) if Nature::of(region) == Nature::HugePages => Way::Written,
        _ => Way::ZerosToo,
    }
}

/// Writes the pages of space index `space`, whose regions are mapped already, but for those that come later or are there.
pub(super) fn fill(
    view: &View,
    space: usize,
    others: &PageSet,
    memory: &ProcessMemory,
) -> Result<Filled, RestoreError> {
    let regions = &view.spaces()[space].regions;
    let all = match (regions.first(), regions.last()) {
        (Some(first), Some(last)) => PageRange::new(first.pages.start(), last.pages.end()),
        _ => PageRange::new(PageIndex(0), PageIndex(0)),
    };
    let now = PageSet::from(all).subtract(others);
    let written = AtomicU64::new(0);
    let guards = Mutex::new(Vec::new());
    view.read_ranges_loose::<RestoreError>(space, now.ranges(), |pages, found| {
        let is_zero = match found {
            RangeContent::Settled(PageContent::Unbacked | PageContent::File(_)) => return Ok(()),
            RangeContent::Settled(PageContent::Guard) => {
                let mut guards = guards.lock().unwrap_or_else(PoisonError::into_inner);
                guards.push(pages);
                return Ok(());
            }
            RangeContent::Settled(PageContent::Zero) => true,
            RangeContent::Settled(PageContent::Bytes(_)) | RangeContent::Loose(_) => false,
        };
        let first = regions.partition_point(|region| region.pages.end() <= pages.start());
        for region in &regions[first..] {
            let Some(part) = region.pages.intersection(pages) else {
                break;
            };
            match (way(region), is_zero) {
                (Way::NotHere, _) | (Way::Written, true) => continue,
                (_, true) => zero(memory, part)?,
                (_, false) => put(memory, region, part, pages, &found)?,
            }
            written.fetch_add(part.count().0, Ordering::Relaxed);
        }
        Ok(())
    })?;
    let mut guards = guards.into_inner().unwrap_or_else(PoisonError::into_inner);
    guards.sort_by_key(|pages| pages.start());
    Ok(Filled {
        pages: PageCount(written.into_inner()),
        guards,
    })
}

/// Writes those pages of `region` that are `part` of what was `found`.
fn put(
    memory: &ProcessMemory,
    region: &Region,
    part: PageRange,
    pages: PageRange,
    found: &RangeContent<'_>,
) -> Result<(), RestoreError> {
    let skip = SIZE.bytes_of(PageCount(part.start().0 - pages.start().0)) as usize;
    let wanted = skip..skip + SIZE.bytes_of(part.count()) as usize;
    let address = SIZE.address_of(part.start());
    match (found, region.protection.write) {
        (RangeContent::Loose(bytes), true) => memory.fill_loose(address, &bytes[wanted])?,
        (RangeContent::Loose(bytes), false) => memory.write_loose(address, &bytes[wanted])?,
        (RangeContent::Settled(PageContent::Bytes(bytes)), true) => {
            memory.fill(address, &bytes[wanted])?;
        }
        (RangeContent::Settled(PageContent::Bytes(bytes)), false) => {
            memory.write(address, &bytes[wanted])?;
        }
        (RangeContent::Settled(_), _) => {}
    }
    Ok(())
}

fn zero(memory: &ProcessMemory, pages: PageRange) -> Result<(), RestoreError> {
    let zeros = vec![0; ZEROS];
    let (start, end) = SIZE.span_of(pages);
    let mut at = start;
    while at < end {
        let length = (end - at).min(ZEROS as u64);
        memory.write(at, &zeros[..length as usize])?;
        at += length;
    }
    Ok(())
}
