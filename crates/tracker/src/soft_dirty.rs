//! The `soft-dirty` backend: the kernel sets a bit for each page that is stored to, and clears all bits of
//! an address space at a request. For kernels without asynchronous write-protection.
//!
//! The bits are not the whole truth. A page that is dropped leaves none; a mapping's mark, which stands
//! for the bits of all its pages, can be lost when mappings merge; and pages that are moved together with
//! their page table keep the bits they had, so that two areas can change places without a trace. So
//! besides the bits, each harvest looks where the content of every page lies, and compares that with what
//! the last harvest saw: see `seen`. This needs frame numbers, which only CAP_SYS_ADMIN may see.
//!
//! Reading the bits and clearing them are two steps. What is written in between is lost: so a harvest is
//! right only while nothing runs in the address space and nobody writes into it from outside.
//!
//! There is one set of bits for an address space. Whoever else clears them steals from this tracker, and
//! the kernel has no way to tell: who uses it must see to it that there is one tracker only.
//!
//! Only private memory in pages of 4 KiB or transparent huge pages is watched. Of shared memory the bits
//! are lost when it is reclaimed, and huge pages of hugetlbfs have none.

use crate::backend::Backend;
use crate::error::TrackError;
use crate::harvest::{GivenBack, Harvest, Ledger};
use crate::layout_change::{LayoutChange, Refused, RefusedReason};
use crate::seen::{self, Seen};
use crate::tracker::Tracker;
use pagetide_kernel::clear_refs::{ClearRefs, ClearRefsError};
use pagetide_kernel::maps::{self, Mapping, MappingName};
use pagetide_kernel::pagemap::ReadEntriesError;
use pagetide_kernel::pagemap_scan::Pagemap;
use pagetide_pages::{PageRange, PageSet, PageSize};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

const SIZE: PageSize = PageSize::KIB_4;

/// Tracking by soft-dirty bits. See the head of this file.
pub struct SoftDirty {
    pid: i32,
    clear_refs: ClearRefs,
    pagemap: Pagemap,
    ledger: Arc<Ledger>,
    /// What the last harvest saw; nothing of what it did not cover.
    seen: Seen,
}

impl SoftDirty {
    /// Tracks the calling process itself. Takes over the soft-dirty bits of all of its memory.
    pub fn of_self() -> Result<Self, TrackError> {
        Self::of_process(std::process::id().cast_signed())
    }

    /// Tracks process `pid`. Takes over the soft-dirty bits of all of its memory.
    pub fn of_process(pid: i32) -> Result<Self, TrackError> {
        Ok(Self {
            pid,
            clear_refs: ClearRefs::of_process(pid)?,
            pagemap: Pagemap::of_process(pid)?,
            // Bits can be cleared from outside, but not set.
            ledger: Arc::new(Ledger::new(|_| GivenBack::InMemory)),
            seen: Seen::default(),
        })
    }

    /// Goes on where another tracker of the same process left off, right after a harvest that was
    /// committed, with what [`Tracker::remembered`] gave then. If the bytes are not understood, everything is fresh.
    pub fn go_on(&mut self, remembered: &[u8]) {
        self.seen = Seen::from_bytes(remembered).unwrap_or_default();
    }

    /// What `mappings` are mapped to, as far as they can be watched.
    fn look(&self, mappings: &[PageRange]) -> Result<(Seen, Vec<Refused>), TrackError> {
        let listed = maps::mappings(self.pid)?;
        let huge = huge_pages(self.pid)?;
        let mut now = Seen::default();
        let mut refused = Vec::new();
        for &wanted in mappings {
            let mut at = wanted.start();
            let mut refuse = |pages: PageRange, reason| {
                if !pages.is_empty() {
                    refused.push(Refused { pages, reason });
                }
            };
            let first = listed.partition_point(|mapping| mapping.pages().end() <= wanted.start());
            for mapping in &listed[first..] {
                let Some(pages) = mapping.pages().intersection(wanted) else {
                    break;
                };
                refuse(PageRange::new(at, pages.start()), RefusedReason::NotMapped);
                at = pages.end();
                match why_not(mapping, &huge) {
                    Some(reason) => refuse(pages, reason),
                    None => now.backing.push(pages, seen::backing(mapping)),
                }
            }
            refuse(PageRange::new(at, wanted.end()), RefusedReason::NotMapped);
        }
        Ok((now, refused))
    }

    /// Where the content of the pages of `now` lies. Gives those that were stored to.
    fn read(&self, now: &mut Seen) -> Result<PageSet, TrackError> {
        let mut stored = PageSet::new();
        let mut hidden = false;
        for &range in now.backing.pages().ranges() {
            self.pagemap.each_entry(range, |page, entry| {
                match seen::place(page, entry) {
                    // Where there is no content there was no store that still shows.
                    Ok(None) => {}
                    Ok(Some(place)) => {
                        let page = PageRange::single(page);
                        now.places.push(page, place);
                        if entry.is_soft_dirty() {
                            stored.insert(page);
                        }
                    }
                    Err(seen::Hidden) => hidden = true,
                }
            })?;
        }
        if hidden {
            Err(TrackError::FramesHidden)
        } else {
            Ok(stored)
        }
    }

    fn check_alive(&self) -> Result<(), TrackError> {
        if self.pagemap.is_alive() {
            Ok(())
        } else {
            Err(TrackError::SpaceGone)
        }
    }

    /// An address space that goes away while it is looked at fails in many ways.
    fn explain(&self, error: TrackError) -> TrackError {
        if self.pagemap.is_alive() {
            error
        } else {
            TrackError::SpaceGone
        }
    }

    fn take(&mut self, mappings: &[PageRange]) -> Result<(PageSet, LayoutChange), TrackError> {
        let (mut now, refused) = self.look(mappings)?;
        let stored = self.read(&mut now)?;
        let watched = now.backing.pages();
        let fresh = now.fresh_since(&self.seen);
        let written = now
            .changed_since(&self.seen)
            .union(&stored)
            .intersect(&watched);
        // Until the bits are cleared for certain, nothing may be taken for known.
        self.seen = Seen::default();
        self.clear_refs.clear_soft_dirty()?;
        self.check_alive()?;
        self.seen = now;
        let change = LayoutChange {
            fresh,
            refused,
            ..LayoutChange::default()
        };
        Ok((written, change))
    }
}

/// Why a mapping cannot be watched.
fn why_not(mapping: &Mapping, huge: &PageSet) -> Option<RefusedReason> {
    let of_kernel = match &mapping.name {
        MappingName::Vdso | MappingName::KernelData(_) => true,
        MappingName::Path(path) => {
            let path = path.as_os_str().as_bytes();
            path.starts_with(b"/dev/") && !path.starts_with(b"/dev/shm/") && path != b"/dev/zero"
                || path.starts_with(b"anon_inode:")
        }
        _ => false,
    };
    match () {
        () if of_kernel => Some(RefusedReason::Device),
        () if mapping.shared => Some(RefusedReason::Shared),
        () if huge.contains(mapping.pages().start()) => Some(RefusedReason::HugePages),
        () => None,
    }
}

/// The mappings of huge pages of hugetlbfs. Only read in a process that has such pages, as it is slow: where
/// there are none, such a mapping holds nothing that could change.
fn huge_pages(pid: i32) -> Result<PageSet, TrackError> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let held = status
        .lines()
        .find_map(|line| line.strip_prefix("HugetlbPages:"));
    if held.is_some_and(|held| held.trim() == "0 kB") {
        return Ok(PageSet::new());
    }
    let described = maps::mappings_with_flags(pid)?;
    let is_huge = |flags: &[String]| flags.iter().any(|flag| flag == "ht");
    let huge = described.iter().filter(|(_, flags)| is_huge(flags));
    Ok(huge.map(|(mapping, _)| mapping.pages()).collect())
}

impl Tracker for SoftDirty {
    fn backend(&self) -> Backend {
        Backend::SoftDirty
    }

    fn page_size(&self) -> PageSize {
        SIZE
    }

    fn needs_stop(&self) -> bool {
        true
    }

    /// A few bytes for each run of pages that lie in consecutive frames.
    fn remembered(&self) -> Vec<u8> {
        self.seen.to_bytes()
    }

    fn arm(&mut self, mappings: &[PageRange]) -> Result<LayoutChange, TrackError> {
        let looked = self.look(mappings).map_err(|error| self.explain(error));
        let (now, refused) = looked?;
        self.check_alive()?;
        Ok(LayoutChange {
            fresh: now.fresh_since(&self.seen),
            refused,
            ..LayoutChange::default()
        })
    }

    /// Forgets what it saw last: whoever clears the bits meanwhile, all is written then.
    fn release(&mut self, _mappings: &[PageRange]) -> Result<(), TrackError> {
        self.seen = Seen::default();
        Ok(())
    }

    fn harvest_but(
        &mut self,
        mappings: &[PageRange],
        _leave: &dyn Fn(&PageSet) -> PageSet,
    ) -> Result<Harvest, TrackError> {
        let taken = self.take(mappings);
        let (written, layout) = taken.map_err(|error| self.explain(error))?;
        let watched = self.seen.backing.pages();
        let owed = self.ledger.collect();
        self.ledger.owe(&owed.subtract(&watched));
        let written = written.union(&owed.intersect(&watched));
        let ledger = Arc::clone(&self.ledger);
        Ok(Harvest::new(written, PageSet::new(), layout, ledger))
    }
}

impl From<ClearRefsError> for TrackError {
    fn from(error: ClearRefsError) -> Self {
        match error {
            ClearRefsError::Ended => Self::SpaceGone,
            other => Self::ClearRefs(other),
        }
    }
}

impl From<ReadEntriesError> for TrackError {
    fn from(error: ReadEntriesError) -> Self {
        Self::Entries(error)
    }
}
