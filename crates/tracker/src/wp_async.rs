//! The `wp-async` backend: mappings are registered with a userfaultfd whose write faults the kernel
//! resolves by itself, and PAGEMAP_SCAN reports and re-protects the written pages in one step.
//!
//! The kernel's scan passes over a mapping that is not registered without a word, and a mapping that
//! took another's place at the same address looks just like it in `/proc/PID/maps`. So before every
//! harvest a second, reading scan looks for exactly that: mapped pages that are not registered.
//! Those are registered and count as written in full.
//!
//! A mapping that took another's place may also have been registered meanwhile by the target itself,
//! with a userfaultfd of its own. So before every harvest everything is registered once more, which
//! changes nothing where it is ours and is refused where it is not.
//!
//! A mapping can lose its registration and keep the marks in its page tables: what mremap(2) moves may
//! join a neighbour, which loses the registration with it. A page that is written then is writable and
//! marked, and would read clean for ever. So what is newly registered has its marks taken away first.
//!
//! Memory that holds nothing and is not marked reads written at all times. Long parts of it are passed over (see
//! `empty`), and counted as written at each harvest: marking them would fill page tables with markers.
//!
//! Some kernels scan a dead address space as empty, without an error. So every harvest asks, last of
//! all, whether the address space still exists.

use crate::backend::Backend;
use crate::empty::{self, TABLE_BYTES};
use crate::error::TrackError;
use crate::harvest::{GivenBack, Harvest, Ledger};
use crate::layout_change::{LayoutChange, Refused, RefusedReason};
use crate::tracker::Tracker;
use pagetide_kernel::pagemap_scan::{Categories, Pagemap, ScanFlags, ScanRequest, ScannedRange};
use pagetide_kernel::userfaultfd::{UserfaultfdError, WriteProtector};
use pagetide_pages::{PageCount, PageRange, PageSet, PageSize};
use std::sync::Arc;

/// Slots of the result vector: 192 KiB, enough that a scan of scattered pages is a few calls.
const VECTOR_SLOTS: usize = 8192;

/// Pages between two ranges that are scanned with them rather than apart.
const SETTLE_GAP: u64 = 64;

const SIZE: PageSize = PageSize::KIB_4;

/// Addresses from here on are the kernel's: `[vsyscall]` is listed there, and a scan would refuse it.
const KERNEL_HALF: u64 = 1 << 63;

/// Tracking by asynchronous write-protection. See the head of this file.
pub struct WpAsync {
    protector: Arc<WriteProtector>,
    pagemap: Arc<Pagemap>,
    ledger: Arc<Ledger>,
    /// What is registered with this tracker's userfaultfd out of the mappings it was last given.
    registered: PageSet,
    /// Of what is registered, the pages of which it was asked whether they hold anything.
    looked: PageSet,
    /// Of these, long parts that held nothing and were never marked.
    empty: PageSet,
    /// The most page tables, in bytes, that are made at a harvest for memory that holds nothing.
    page_table_limit: u64,
    /// No mark in the page tables is to be believed, until all are taken away once.
    distrusts: bool,
    vector: Vec<ScannedRange>,
}

impl WpAsync {
    /// Tracks memory of the calling process itself. Needs no privilege.
    pub fn of_self() -> Result<Self, TrackError> {
        let pagemap = Pagemap::of_self()?;
        Ok(Self::with(WriteProtector::of_self()?, pagemap))
    }

    /// Tracks the address space to which both of these belong: a userfaultfd created in it, and its
    /// pagemap. If the userfaultfd was in use before, by a tracker that is gone, tracking goes on
    /// where that one left it.
    pub fn with(protector: WriteProtector, pagemap: Pagemap) -> Self {
        let (protector, pagemap) = (Arc::new(protector), Arc::new(pagemap));
        let (marker, reader) = (Arc::clone(&protector), Arc::clone(&pagemap));
        Self {
            protector,
            pagemap,
            ledger: Arc::new(Ledger::new(move |pages| {
                mark_written(&marker, &reader, pages)
            })),
            registered: PageSet::new(),
            looked: PageSet::new(),
            empty: PageSet::new(),
            page_table_limit: u64::MAX,
            distrusts: false,
            vector: vec![ScannedRange::EMPTY; VECTOR_SLOTS],
        }
    }

    /// Has everything count as written at first, whatever its marks say. For a userfaultfd whose last user may have
    /// been killed at any point of a harvest.
    #[must_use]
    pub fn distrusting(self) -> Self {
        Self {
            distrusts: true,
            ..self
        }
    }

    /// New mappings are refused if a harvest would make more page tables for them than this, in bytes, for
    /// memory that holds nothing.
    #[must_use]
    pub fn with_page_table_limit(self, bytes: u64) -> Self {
        Self {
            page_table_limit: bytes,
            ..self
        }
    }

    /// The userfaultfd.
    pub fn protector(&self) -> &WriteProtector {
        &self.protector
    }

    /// Has `pages` count as not written, whatever was written to them up to now. For whoever has just written to them himself,
    /// while nobody else did. Pages that are not tracked stay as they are.
    pub fn settle(&mut self, pages: &PageSet) -> Result<(), TrackError> {
        let pages = pages.intersect(&self.registered).subtract(&self.empty);
        let mut near: Vec<PageRange> = Vec::new();
        for &range in pages.ranges() {
            match near.last_mut() {
                Some(last) if range.start().0 - last.end().0 <= SETTLE_GAP => {
                    *last = PageRange::new(last.start(), range.end());
                }
                _ => near.push(range),
            }
        }
        // What lies between is not to be settled: only what was asked for is taken.
        let mut taken = PageSet::new();
        let near: PageSet = near.into_iter().collect();
        self.take_written(&near, &mut taken)?;
        let others = taken.subtract(&pages);
        if !others.is_empty() {
            let _ = self.ledger.give_back(&others);
        }
        self.check_alive()
    }

    /// The parts of `spans` that are mapped and not registered with any userfaultfd.
    fn unregistered(&mut self, spans: &PageSet) -> Result<PageSet, TrackError> {
        let mut found = PageSet::new();
        for &span in spans.ranges() {
            let (start, end) = SIZE.span_of(span);
            let request = ScanRequest {
                inverted: Categories::WP_ALLOWED,
                all_of: Categories::WP_ALLOWED,
                ..ScanRequest::over(start, end)
            };
            self.pagemap.scan(&request, &mut self.vector, |range| {
                found.insert(SIZE.covering(range.start(), range.end()));
            })?;
        }
        Ok(found)
    }

    /// Of the new `mappings`, those for which no page tables may be made any more.
    fn too_large(
        &self,
        fresh: &PageSet,
        mappings: &[PageRange],
    ) -> Result<Vec<Refused>, TrackError> {
        let limit = self.page_table_limit / TABLE_BYTES;
        if empty::tables_at_most(fresh) <= limit {
            return Ok(Vec::new());
        }
        let marked = fresh.subtract(&empty::empty_runs(&self.pagemap, fresh)?);
        if empty::tables_at_most(&marked) <= limit {
            return Ok(Vec::new());
        }
        let (mut left, mut refused) = (limit, Vec::new());
        for &mapping in mappings {
            let needed = empty::tables_needed(&self.pagemap, &marked.within(mapping))?;
            if needed <= left {
                left -= needed;
                continue;
            }
            let reason = RefusedReason::PageTables {
                needed_bytes: needed * TABLE_BYTES,
                left_bytes: left * TABLE_BYTES,
            };
            let pages = mapping;
            refused.push(Refused { pages, reason });
        }
        Ok(refused)
    }

    /// Finds out which long parts of `spans` hold nothing, where that is not known, and whether the others still do.
    fn look_for_empty(&mut self, spans: &PageSet) -> Result<(), TrackError> {
        let unknown = spans.subtract(&self.looked);
        let still = empty::still_empty(&self.pagemap, &self.empty.intersect(spans))?;
        self.empty = still.union(&empty::empty_runs(&self.pagemap, &unknown)?);
        self.looked = spans.clone();
        Ok(())
    }

    /// See [`Tracker::arm`]; `leave` as in [`Tracker::harvest_but`].
    fn arm_but(
        &mut self,
        mappings: &[PageRange],
        leave: &dyn Fn(&PageSet) -> PageSet,
    ) -> Result<LayoutChange, TrackError> {
        let ours = mappings.partition_point(|mapping| SIZE.span_of(*mapping).0 < KERNEL_HALF);
        let (mappings, kernels) = mappings.split_at(ours);
        let mut change = LayoutChange::default();
        change.refused.extend(kernels.iter().map(|&pages| {
            let (start, end) = SIZE.span_of(pages);
            let length = end - start;
            let reason = UserfaultfdError::CannotRegister { start, length };
            Refused {
                pages,
                reason: reason.into(),
            }
        }));
        let spans: PageSet = mappings.iter().copied().collect();
        let fresh = self.unregistered(&spans)?;
        change.left = leave(&fresh).intersect(&fresh);
        let fresh = fresh.subtract(&change.left);
        change.refused.extend(self.too_large(&fresh, mappings)?);
        let refused: PageSet = change.refused.iter().map(|refused| refused.pages).collect();
        let fresh = fresh.subtract(&refused);
        let spans = spans.subtract(&change.left).subtract(&refused);
        // Owed before it is registered: after that, no scan tells any more that it was fresh.
        self.ledger.owe(&fresh);
        self.registered = PageSet::new();
        self.looked = self.looked.subtract(&fresh);
        for &span in spans.ranges() {
            self.register(span, mappings, &mut change.refused)?;
        }
        self.check_alive()?;
        let refused: PageSet = change.refused.iter().map(|refused| refused.pages).collect();
        change.fresh = fresh.subtract(&refused);
        self.registered = spans.subtract(&refused);
        let doubtful = if std::mem::take(&mut self.distrusts) {
            self.registered.clone()
        } else {
            change.fresh.clone()
        };
        self.take_stale_marks(&doubtful, mappings)?;
        Ok(change)
    }

    /// Registers `span`, and if that fails because of one mapping in it, each mapping on its own.
    fn register(
        &self,
        span: PageRange,
        mappings: &[PageRange],
        refused: &mut Vec<Refused>,
    ) -> Result<(), TrackError> {
        for_each_mapping(span, mappings, |range| {
            let (start, end) = SIZE.span_of(range);
            self.protector.register(start, end - start)
        })
        .map(|failed| {
            refused.extend(failed.into_iter().map(|(pages, error)| Refused {
                pages,
                reason: error.into(),
            }));
        })
    }

    /// Takes the marks of earlier registrations from `pages`. Where that fails, the registration ends, so that the
    /// next harvest finds it missing; until then the pages count as written.
    fn take_stale_marks(&self, pages: &PageSet, mappings: &[PageRange]) -> Result<(), TrackError> {
        for &span in pages.ranges() {
            let failed = for_each_mapping(span, mappings, |range| {
                let (start, end) = SIZE.span_of(range);
                self.protector.mark_written(start, end - start)
            })?;
            for (range, error) in failed {
                tracing::debug!(%error, "marks of an earlier registration stay");
                self.ledger.owe(&PageSet::from_iter([range]));
                let (start, end) = SIZE.span_of(range);
                if let Err(error) = self.protector.unregister(start, end - start) {
                    tracing::debug!(%error, "a mapping is gone");
                }
            }
        }
        Ok(())
    }

    fn check_alive(&self) -> Result<(), TrackError> {
        if self.pagemap.is_alive() {
            Ok(())
        } else {
            Err(TrackError::SpaceGone)
        }
    }

    /// Reports and re-protects the written pages of `spans`, adding them to `written`.
    fn take_written(&mut self, spans: &PageSet, written: &mut PageSet) -> Result<(), TrackError> {
        for &span in spans.ranges() {
            let (start, end) = SIZE.span_of(span);
            // Exactly this mask: it is the kernel's fast path, and some kernels report zapped pages
            // and holes as clean with any other.
            let request = ScanRequest {
                flags: ScanFlags::WRITE_PROTECT_MATCHING,
                all_of: Categories::WRITTEN,
                returned: Categories::WRITTEN,
                ..ScanRequest::over(start, end)
            };
            self.pagemap.scan(&request, &mut self.vector, |range| {
                written.insert(SIZE.covering(range.start(), range.end()));
            })?;
        }
        Ok(())
    }
}

/// Does it to `span`, and if that fails because of one mapping in it, to each mapping on its own. Returns those for
/// which it failed, and why.
fn for_each_mapping(
    span: PageRange,
    mappings: &[PageRange],
    act: impl Fn(PageRange) -> Result<(), UserfaultfdError>,
) -> Result<Vec<(PageRange, UserfaultfdError)>, TrackError> {
    match act(span) {
        Ok(()) => return Ok(Vec::new()),
        Err(UserfaultfdError::SpaceGone { .. }) => return Err(TrackError::SpaceGone),
        Err(_) => {}
    }
    let first = mappings.partition_point(|mapping| mapping.end() <= span.start());
    let inside = mappings[first..]
        .iter()
        .map_while(|mapping| mapping.intersection(span));
    let mut failed = Vec::new();
    for mapping in inside {
        match act(mapping) {
            Ok(()) => {}
            Err(UserfaultfdError::SpaceGone { .. }) => return Err(TrackError::SpaceGone),
            Err(error) => failed.push((mapping, error)),
        }
    }
    Ok(failed)
}

/// Tells the kernel to count the pages as written again, and looks whether it does: it takes the
/// request for guard regions, too, and does nothing about them.
fn mark_written(protector: &WriteProtector, pagemap: &Pagemap, pages: &PageSet) -> GivenBack {
    let mut outcome = GivenBack::InKernel;
    for &range in pages.ranges() {
        let (start, end) = SIZE.span_of(range);
        if let Err(error) = protector.mark_written(start, end - start) {
            tracing::debug!(%error, "a range could not be given back to the kernel");
            outcome = GivenBack::InMemory;
        } else if !reads_written(pagemap, start, end) {
            tracing::debug!("{start:#x}..{end:#x} still reads clean after it was given back");
            outcome = GivenBack::InMemory;
        }
    }
    outcome
}

/// True if no page of the range reads clean.
fn reads_written(pagemap: &Pagemap, start: u64, end: u64) -> bool {
    let clean = ScanRequest {
        inverted: Categories::WRITTEN,
        all_of: Categories::WRITTEN,
        max_pages: 1,
        ..ScanRequest::over(start, end)
    };
    let vector = &mut [ScannedRange::EMPTY];
    matches!(pagemap.scan_once(&clean, vector), Ok(progress) if progress.filled == 0)
}

impl Tracker for WpAsync {
    fn backend(&self) -> Backend {
        Backend::WpAsync
    }

    fn page_size(&self) -> PageSize {
        SIZE
    }

    fn needs_stop(&self) -> bool {
        false
    }

    fn arm(&mut self, mappings: &[PageRange]) -> Result<LayoutChange, TrackError> {
        self.arm_but(mappings, &|_| PageSet::new())
    }

    fn harvest_but(
        &mut self,
        mappings: &[PageRange],
        leave: &dyn Fn(&PageSet) -> PageSet,
    ) -> Result<Harvest, TrackError> {
        let layout = self.arm_but(mappings, leave)?;
        let watched = self.registered.clone();
        self.look_for_empty(&watched)?;
        let unmarked = self.empty.clone();
        let mut written = PageSet::new();
        let taken = self.take_written(&watched.subtract(&unmarked), &mut written);
        if let Err(error) = taken.and_then(|()| self.check_alive()) {
            // Also to the kernel: this tracker may never harvest again.
            let _ = self.ledger.give_back(&written);
            return Err(error);
        }
        let owed = self.ledger.collect();
        self.ledger.owe(&owed.subtract(&watched));
        let written = written.union(&unmarked).union(&owed.intersect(&watched));
        let ledger = Arc::clone(&self.ledger);
        Ok(Harvest::new(written, unmarked, layout, ledger))
    }

    fn release(&mut self, mappings: &[PageRange]) -> Result<(), TrackError> {
        let ours = |mapping: &&PageRange| SIZE.span_of(**mapping).0 < KERNEL_HALF;
        for &mapping in mappings.iter().filter(ours) {
            let (start, end) = SIZE.span_of(mapping);
            let watched = ScanRequest {
                all_of: Categories::WP_ALLOWED,
                max_pages: 1,
                ..ScanRequest::over(start, end)
            };
            let found = self
                .pagemap
                .scan_once(&watched, &mut [ScannedRange::EMPTY])?;
            // Somebody else's cannot be registered again; some kernels would end it for us.
            if found.filled > 0 && self.protector.register(start, end - start).is_ok() {
                self.protector.unregister(start, end - start)?;
            }
        }
        self.registered = PageSet::new();
        self.looked = PageSet::new();
        self.empty = PageSet::new();
        Ok(())
    }

    fn survey(&mut self, mappings: &[PageRange]) -> Result<Option<PageCount>, TrackError> {
        let spans: PageSet = mappings
            .iter()
            .copied()
            .filter(|mapping| SIZE.span_of(*mapping).0 < KERNEL_HALF)
            .collect();
        self.look_for_empty(&spans)?;
        let mut count = PageCount(0);
        for &span in spans.subtract(&self.empty).ranges() {
            let (start, end) = SIZE.span_of(span);
            // The kernel's fast path, as in a harvest.
            let request = ScanRequest {
                all_of: Categories::WRITTEN,
                returned: Categories::WRITTEN,
                ..ScanRequest::over(start, end)
            };
            self.pagemap.scan(&request, &mut self.vector, |range| {
                count += SIZE.covering(range.start(), range.end()).count();
            })?;
        }
        Ok(Some(count))
    }
}
