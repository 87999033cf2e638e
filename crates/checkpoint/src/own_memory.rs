//! Snapshots of memory of the calling process: a VM's guest memory, a database's arena. For embedding;
//! needs no privilege and no ptrace.
//!
//! The embedder names address ranges and the place each has in a space. It pauses whoever writes to them,
//! calls [`OwnMemory::capture`], lets them go on, and then stores what was captured, or gives it back.
//! Between the two calls nothing waits for a disk.
//!
//! What is tracked is what is written through this process's page tables: by its threads, by system
//! calls, by KVM guests. What others write to shared memory, holes punched into it, and devices that write
//! by DMA are not seen: ranges for which that can happen must be left out or stored in full each time.

use crate::arena::Arena;
use crate::capture::{ASK_FROM, CaptureError, Copied, SIZE, Source};
use crate::sparse::Behind;
use pagetide_kernel::maps::{self, Mapping, MapsError};
use pagetide_kernel::memory::{MemoryError, ProcessMemory};
use pagetide_kernel::pagemap_scan::{Categories, OpenPagemapError, Pagemap};
use pagetide_kernel::pagemap_scan::{ScanRequest, ScannedRange};
use pagetide_kernel::probe;
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};
use pagetide_snapshot::{
    LockError, PageContent, PageHash, PageState, ReadError, Region, Space, Store, View, WriteError,
    WriteOptions, WriterLock,
};
use pagetide_tracker::{Harvest, TrackError, Tracker, WpAsync};
use std::time::{Duration, Instant};

/// A range of memory of this process, and its place in the space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Address of the first byte; a multiple of 4096.
    pub address: u64,
    /// Length in bytes; a multiple of 4096, not 0.
    pub length_bytes: u64,
    /// The page of the space that the first byte belongs to, such as the guest frame number.
    pub first_page: PageIndex,
}

impl Placement {
    fn mapped(&self) -> PageRange {
        SIZE.covering(self.address, self.address.saturating_add(self.length_bytes))
    }

    fn in_space(&self) -> PageRange {
        PageRange::with_count(self.first_page, self.mapped().count())
    }
}

/// Why own memory could not be captured, stored or put back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OwnMemoryError {
    /// A range is not made of whole pages, is empty, or is not mapped as a whole.
    #[error("{address:#x}+{length_bytes:#x} cannot be tracked: {reason}")]
    Range {
        /// Address of the first byte.
        address: u64,
        /// Length in bytes.
        length_bytes: u64,
        /// Why not, for people.
        reason: String,
    },
    /// Two ranges overlap, in memory or in the space.
    #[error("the range at {address:#x} overlaps another, in memory or in the space")]
    Overlap {
        /// Address of the first byte.
        address: u64,
    },
    /// The snapshot has no such space.
    #[error("snapshot {id} has no space {name}")]
    NoSpace {
        /// The snapshot.
        id: pagetide_snapshot::SnapshotId,
        /// The name of the space.
        name: String,
    },
    /// Written pages could not be found.
    #[error(transparent)]
    Track(#[from] TrackError),
    /// Pages could not be copied.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Memory could not be read or written.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The mappings could not be read.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// The pagemap could not be opened.
    #[error(transparent)]
    OpenPagemap(#[from] OpenPagemapError),
    /// The store is not free.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The store could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The store could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// How snapshots of own memory are taken.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OwnMemoryOptions {
    /// The name of the space in the snapshots.
    pub space: String,
    /// The most memory that copied pages may take. A capture of more is stored in part while the writers
    /// are paused.
    pub buffer_bytes: u64,
    /// How snapshots are written.
    pub write: WriteOptions,
}

impl Default for OwnMemoryOptions {
    fn default() -> OwnMemoryOptions {
        OwnMemoryOptions {
            space: "memory".to_owned(),
            buffer_bytes: 256 << 20,
            write: WriteOptions::default(),
        }
    }
}

/// Takes snapshots of memory of this process. Holds the store's writer lock.
pub struct OwnMemory {
    placements: Vec<Placement>,
    /// Of the mapped pages, private anonymous ones.
    anonymous: PageSet,
    /// The others.
    behind: Behind,
    store: Store,
    lock: WriterLock,
    options: OwnMemoryOptions,
    tracker: WpAsync,
    pagemap: Pagemap,
    memory: ProcessMemory,
    knows_guards: bool,
    arena: Arena,
    last: Option<View>,
}

/// What was captured and is not stored yet. Dropped, it is given back: the pages count as written again.
#[must_use = "a capture that is dropped is given back"]
pub struct Captured<'a> {
    owner: &'a mut OwnMemory,
    writer: pagetide_snapshot::SnapshotWriter,
    harvest: Harvest,
    states: Vec<(PageRange, PageState)>,
    written: PageCount,
    paused: Duration,
}

/// A stored snapshot of own memory.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OwnSnapshot {
    /// The snapshot.
    pub view: View,
    /// Pages that were copied.
    pub written_pages: PageCount,
    /// How long [`OwnMemory::capture`] took: the writers were paused that long.
    pub paused: Duration,
}

impl OwnMemory {
    /// Makes ready to take snapshots of `placements` into `store`. The first one is full.
    pub fn new(
        store: Store,
        placements: &[Placement],
        options: OwnMemoryOptions,
    ) -> Result<OwnMemory, OwnMemoryError> {
        let mut placements = placements.to_vec();
        placements.sort_by_key(|placement| placement.address);
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let mappings = maps::mappings(pid)?;
        let anonymous = check(&placements, &mappings)?;
        let memory = ProcessMemory::open(pid)?;
        memory.expect(&mappings);
        let placed: PageSet = placements.iter().map(Placement::mapped).collect();
        let behind = Behind::of(pid, &mappings, &placed);
        Ok(OwnMemory {
            anonymous,
            behind,
            lock: store.lock()?,
            tracker: WpAsync::of_self()?,
            pagemap: Pagemap::of_self()?,
            memory,
            knows_guards: probe::known_categories().contains(Categories::GUARD),
            arena: Arena::new(SIZE, options.buffer_bytes),
            last: None,
            placements,
            store,
            options,
        })
    }

    /// Makes room for `bytes` of written pages, so that the next capture touches no fresh memory.
    pub fn prepare(&mut self, bytes: u64) {
        self.arena.prepare(bytes);
    }

    /// Takes what was written since the last stored snapshot and copies it. Call it while nobody writes
    /// to the memory; when it returns, they may write again.
    pub fn capture(&mut self) -> Result<Captured<'_>, OwnMemoryError> {
        let started = Instant::now();
        let space = self.space();
        let options = self.options.write.clone();
        let mut writer = self.store.begin(&self.lock, self.last.as_ref(), options)?;
        writer.set_spaces(vec![space])?;
        let mapped: Vec<PageRange> = self.placements.iter().map(Placement::mapped).collect();
        // Before the harvest leaves its marks in the page tables.
        let empty = self.empty()?;
        let harvest = self.tracker.harvest(&mapped)?;
        if let Some(refused) = harvest.layout().refused.first() {
            let (start, end) = SIZE.span_of(refused.pages);
            return Err(OwnMemoryError::Range {
                address: start,
                length_bytes: end - start,
                reason: refused.reason.to_string(),
            });
        }
        let pages = match self.last {
            None => mapped.iter().copied().collect(),
            Some(_) => harvest.written().clone(),
        };
        let zero = pages.intersect(&empty);
        let pages = pages.subtract(&empty);
        let source = Source {
            memory: &self.memory,
            pagemap: &self.pagemap,
            known: None,
            knows_guards: self.knows_guards,
            ask_from: ASK_FROM,
        };
        self.arena.clear();
        let placements = &self.placements;
        let mut spill = |arena: &Arena| Ok(writer.put_pages(0, &placed(placements, arena))?);
        let mut copied = Copied::new(&mut self.arena, &mut spill);
        source.read(&pages, &self.anonymous, &mut copied)?;
        let mut states = std::mem::take(&mut copied.states);
        let zeros = zero.ranges().iter();
        states.extend(zeros.map(|&range| (range, PageState::Zero)));
        let unreadable = std::mem::take(&mut copied.unreadable);
        let written = copied.pages.subtract(&unreadable).count();
        states.extend(
            unreadable
                .ranges()
                .iter()
                .map(|&range| (range, PageState::Unbacked)),
        );
        Ok(Captured {
            owner: self,
            writer,
            harvest,
            states,
            written,
            paused: started.elapsed(),
        })
    }

    /// Puts the memory back to a snapshot, writing only pages that differ, and returns how many were
    /// written. Call it while nobody uses the memory. The next snapshot is a delta that says so.
    pub fn roll_back(&mut self, view: &View) -> Result<PageCount, OwnMemoryError> {
        let space =
            view.space_index(&self.options.space)
                .ok_or_else(|| OwnMemoryError::NoSpace {
                    id: view.id(),
                    name: self.options.space.clone(),
                })?;
        let mut restored = PageCount(0);
        let mut page_now = vec![0; SIZE.len()];
        let zeros = vec![0; SIZE.len()];
        let empty = self.empty()?;
        for placement in &self.placements {
            let distance = placement
                .mapped()
                .start()
                .0
                .wrapping_sub(placement.first_page.0);
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
                    self.memory.read(address, &mut page_now)?;
                    if PageHash::of(&page_now) != PageHash::of(bytes) {
                        self.memory.write(address, bytes)?;
                        restored += PageCount(1);
                    }
                }
                Ok::<(), OwnMemoryError>(())
            })?;
        }
        Ok(restored)
    }

    /// The mapped pages that show nothing that was ever allocated; they are zero, and reading would allocate them.
    fn empty(&self) -> Result<PageSet, OwnMemoryError> {
        let mut vector = vec![ScannedRange::EMPTY; 256];
        self.behind.empty(|pages| {
            let mut held = Vec::new();
            for &range in pages.ranges() {
                let (start, end) = SIZE.span_of(range);
                let request = ScanRequest {
                    any_of: Categories::PRESENT | Categories::SWAPPED,
                    ..ScanRequest::over(start, end)
                };
                let scanned = self.pagemap.scan(&request, &mut vector, |found| {
                    held.push(SIZE.covering(found.start(), found.end()));
                });
                scanned.map_err(CaptureError::from)?;
            }
            Ok(held.into_iter().collect())
        })
    }

    fn space(&self) -> Space {
        let mut regions: Vec<Region> = self
            .placements
            .iter()
            .map(|placement| Region::anonymous(placement.in_space()))
            .collect();
        regions.sort_by_key(|region| region.pages);
        Space::new(self.options.space.clone(), SIZE, regions)
    }
}

impl Captured<'_> {
    /// How long the capture took: the writers were paused that long.
    pub fn paused(&self) -> Duration {
        self.paused
    }

    /// Adds named bytes to the snapshot: vCPU state, a log position.
    pub fn attach(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), OwnMemoryError> {
        Ok(self.writer.attach(name, bytes)?)
    }

    /// Stores what was captured. Durable when it returns; on an error the pages count as written again.
    pub fn commit(mut self) -> Result<OwnSnapshot, OwnMemoryError> {
        let placements = &self.owner.placements;
        self.writer
            .put_pages(0, &placed(placements, &self.owner.arena))?;
        for &(mapped, state) in &self.states {
            for pages in in_space(placements, mapped) {
                self.writer.put_state(0, pages, state)?;
            }
        }
        self.owner.arena.clear();
        let view = self.writer.commit()?;
        self.harvest.commit();
        self.owner.last = Some(view.clone());
        Ok(OwnSnapshot {
            view,
            written_pages: self.written,
            paused: self.paused,
        })
    }

    /// Stores nothing; the pages count as written again.
    pub fn give_back(self) {
        let _ = self.harvest.give_back();
    }
}

/// Whole pages, mapped without a gap, not overlapping. Gives the private anonymous pages.
fn check(placements: &[Placement], mappings: &[Mapping]) -> Result<PageSet, OwnMemoryError> {
    let mapped: PageSet = mappings.iter().map(Mapping::pages).collect();
    let anonymous: PageSet = mappings
        .iter()
        .filter(|mapping| !mapping.shared && !mapping.has_file())
        .map(Mapping::pages)
        .collect();
    let (mut taken, mut taken_in_space) = (PageSet::new(), PageSet::new());
    for placement in placements {
        let refuse = |reason: &str| OwnMemoryError::Range {
            address: placement.address,
            length_bytes: placement.length_bytes,
            reason: reason.to_owned(),
        };
        let end = placement.address.checked_add(placement.length_bytes);
        let whole = SIZE.is_aligned(placement.address) && SIZE.is_aligned(placement.length_bytes);
        let fits = placement
            .first_page
            .0
            .checked_add(placement.length_bytes / SIZE.bytes());
        if end.is_none() || fits.is_none() || !whole || placement.length_bytes == 0 {
            return Err(refuse("it is not made of whole pages of 4096 bytes"));
        }
        if !mapped.contains_range(placement.mapped()) {
            return Err(refuse("it is not mapped as a whole"));
        }
        let (pages, in_space) = (placement.mapped(), placement.in_space());
        if !taken.within(pages).is_empty() || !taken_in_space.within(in_space).is_empty() {
            let address = placement.address;
            return Err(OwnMemoryError::Overlap { address });
        }
        taken.insert(pages);
        taken_in_space.insert(in_space);
    }
    Ok(anonymous)
}

/// Where mapped pages lie in the space.
fn in_space(placements: &[Placement], mapped: PageRange) -> impl Iterator<Item = PageRange> {
    placements.iter().filter_map(move |placement| {
        let common = placement.mapped().intersection(mapped)?;
        let offset = common.start().0 - placement.mapped().start().0;
        let start = PageIndex(placement.first_page.0 + offset);
        Some(PageRange::with_count(start, common.count()))
    })
}

/// What is in the arena, by place in the space.
fn placed<'a>(placements: &[Placement], arena: &'a Arena) -> Vec<(PageIndex, &'a [u8])> {
    let mut placed = Vec::new();
    for (first, mut bytes) in arena.pieces().into_iter().flat_map(|(_, pieces)| pieces) {
        let count = PageCount((bytes.len() / SIZE.len()) as u64);
        // Placements are sorted by address, so the parts of a piece come in its order.
        for pages in in_space(placements, PageRange::with_count(first, count)) {
            let (part, rest) = bytes.split_at(SIZE.bytes_of(pages.count()) as usize);
            placed.push((pages.start(), part));
            bytes = rest;
        }
    }
    placed
}
