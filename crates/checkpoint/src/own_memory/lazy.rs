//! Memory that comes when it is touched, and is tracked from the first instruction: fresh memory is registered for missing
//! pages and for write protection at the same time, and each page is put there protected. A thread puts those that are
//! touched, and between them the others, what the last delta wrote first.
//!
//! Pages of the snapshot that are zeros are left missing; the thread puts zeros when they are touched, and where memory was
//! dropped (MADV_DONTNEED). It runs as long as its owner.
//!
//! To drop a page that has not come leaves its mark, so it reads not written. The thread hears of it and tells of it, as an
//! embedder would; before anything is harvested it is waited for until it has caught up with what was dropped by then.

use super::error::OwnMemoryError;
use super::populating::{Filler, Populating, Population};
use super::watched::Watched;
use crate::capture::SIZE;
use pagetide_kernel::pagemap_scan::{Categories, Pagemap, ScanFlags, ScanRequest, ScannedRange};
use pagetide_kernel::userfaultfd::missing::MissingPages;
use pagetide_pages::PageSet;
use pagetide_snapshot::{PageState, View};
use pagetide_tracker::{TrackError, WpAsync};
use std::sync::Arc;

/// Registers the regions of `watch` and begins to fill them from a space of `view`. `changed` are the pages of the space that
/// its last delta wrote.
pub(super) fn begin(
    watch: impl FnOnce(
        &mut dyn FnMut() -> Result<WpAsync, TrackError>,
    ) -> Result<Watched, OwnMemoryError>,
    view: &View,
    space: usize,
    changed: &PageSet,
) -> Result<(Watched, Population), OwnMemoryError> {
    let mut made: Option<MissingPages> = None;
    let mut make = || -> Result<WpAsync, TrackError> {
        let pages = MissingPages::of_self_tracked().map_err(TrackError::Protect)?;
        let tracker = WpAsync::with(
            pages.protector().map_err(TrackError::Protect)?,
            Pagemap::of_self()?,
        );
        made = Some(pages);
        Ok(tracker)
    };
    let mut watched = watch(&mut make)?;
    let pages = Arc::new(made.ok_or(OwnMemoryError::Closed)?);
    refuse_used(&watched)?;
    let in_view = watched.places.list().iter();
    let data = in_view.flat_map(|place| {
        let runs = view.runs(space, place.in_space());
        runs.filter(|(_, state)| *state == PageState::Data)
            .map(|(pages, _)| pages)
    });
    let data: PageSet = data.collect();
    let left = watched.places.mapped_of(&data);
    for place in watched.places.list() {
        let (start, end) = SIZE.span_of(place.mapped());
        let registered = pages.register_tracked(start, end - start);
        registered.map_err(TrackError::Protect)?;
    }
    protect(&watched, &left)?;
    let population = Population {
        shared: Arc::default(),
    };
    population.shared.lock().left = left;
    let filler = Filler {
        pages: Arc::clone(&pages),
        view: view.clone(),
        space,
        places: Arc::clone(&watched.places),
        shared: Arc::clone(&population.shared),
        told: watched.told.clone(),
        first: watched.places.mapped_of(changed),
    };
    let populating = Populating::start(watched.pid, filler, &pages, population.clone())?;
    watched.populating = Some(populating);
    Ok((watched, population))
}

/// Memory that holds anything cannot come from a snapshot.
fn refuse_used(watched: &Watched) -> Result<(), OwnMemoryError> {
    let held = Categories::PRESENT | Categories::SWAPPED;
    let used = watched.tables().having(&watched.places.mapped(), held)?;
    match used.ranges().first() {
        None => Ok(()),
        Some(&first) => Err(OwnMemoryError::NotFresh {
            address: SIZE.address_of(first.start()),
            count: used.count().0,
        }),
    }
}

/// Marks pages that are still to come as not written.
fn protect(watched: &Watched, pages: &PageSet) -> Result<(), OwnMemoryError> {
    let mut vector = vec![ScannedRange::EMPTY; 1024];
    for &range in pages.ranges() {
        let (start, end) = SIZE.span_of(range);
        let request = ScanRequest {
            flags: ScanFlags::WRITE_PROTECT_MATCHING,
            all_of: Categories::WRITTEN,
            returned: Categories::WRITTEN,
            ..ScanRequest::over(start, end)
        };
        watched.pagemap.scan(&request, &mut vector, |_| {})?;
    }
    Ok(())
}
