//! Snapshots of memory of the calling process: a VM's guest memory, a database's arena. For embedding;
//! needs no privilege and no ptrace.
//!
//! The embedder names regions and the place each has in a space. It pauses whoever writes to them,
//! calls [`OwnMemory::capture`], lets them go on, and then stores what was captured, or gives it back.
//! Between the two calls nothing waits for a disk.
//!
//! Every capture looks at what is mapped under the regions now (`ground`), decides what to copy (`plan`), and
//! copies. Private anonymous memory is tracked. What can change with no page fault of this process is compared by
//! content, by the same rules as for another process: shared memory, unless the embedder promises that it is
//! written through its region only ([`Placement::written_through_it_only`]); private mappings of files; huge pages
//! of the pool; what would need too many page tables to be tracked. Fixed buffers of io_uring, and what was written while direct reads may be under way, is copied once
//! more; where a ring or a device may write to memory that nothing lists, all of it is compared, and the snapshot
//! says so. What is not mapped any more, or is no memory, is an error.
//!
//! "Whoever writes" are threads, KVM guests, and other processes with a mapping of shared memory; also a system call
//! that another thread is in (read(2) into a region), and process_vm_writev(2) into this process. A write that is
//! not paused may be in a capture in part, and is whole in the next. Not so a direct read (O_DIRECT, io_uring) that
//! stays under way over two captures: wait for such reads before a capture.
//!
//! Whether a ring of buffers may lie in the memory (IOU_PBUF_RING_INC) is asked when a snapshot has been stored, since it
//! takes 30 ms an io_uring. That is early enough: making one counts as a write to it, and what was written while there is
//! an io_uring is copied once more. What nothing shows is an io_uring without a descriptor (IORING_SETUP_REGISTERED_FD_ONLY): keep
//! its queues and buffers out of the regions, or tell of what is written there ([`WrittenPages::mark`]).

mod baseline;
mod captured;
mod claims;
mod differing;
mod epoch;
mod error;
mod ground;
mod hand_over;
mod layer;
mod lazy;
mod line;
mod marks;
mod placement;
mod plan;
mod populating;
mod put_back;
mod shared;
mod shown_twice;
mod stored;
mod sync;
mod ticket;
mod watched;
mod worker;

use crate::arena::Arena;
use crate::capture::{CaptureError, SIZE};
use crate::compared::ComparedBecause;
use crate::report::NotTracked;
pub use baseline::Baseline;
pub use captured::Captured;
pub use epoch::{OwnHarvest, OwnTracker, OwnTrackerOptions};
pub use error::OwnMemoryError;
use hand_over::CaptureStart;
use layer::{CaptureFigures, CarryOver, Layer};
use line::{LastSnapshot, Line, Making};
pub use marks::WrittenPages;
use pagetide_pages::{PageCount, PageIndex, PageSet};
use pagetide_snapshot::{Region, SnapshotWriter, Space, Store, View, WriteError, WriteOptions};
pub use placement::Placement;
use placement::Places;
pub use populating::Population;
use put_back::PutBack;
use std::sync::Arc;
use std::time::Instant;
pub use stored::OwnSnapshot;
pub use ticket::Ticket;
use watched::{Observed, Reference, Taken, Watched};
use worker::Worker;

/// A ring of buffers that was made before a capture has to be known of by the next but one: making it counts as a write,
/// and what was written is copied once more by the next.
const CAPTURES_WITHOUT_ASKING: u64 = 2;

/// How snapshots of own memory are taken.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OwnMemoryOptions {
    /// The name of the space in the snapshots.
    pub space: String,
    /// The most memory that the copied pages of one capture may take, in bytes. A capture of more is stored in part while
    /// the writers are paused; with an earlier one still under way it is refused ([`OwnMemoryError::BufferFull`]).
    pub buffer_bytes: u64,
    /// The most page tables, in bytes, that one capture may make for memory that holds nothing. A mapping for which
    /// this is not enough is compared with the parent instead of being tracked ([`OwnSnapshot::not_tracked`]).
    /// `None` for a sixteenth of what is left to this process by its memory cgroups and by the machine.
    pub page_table_limit_bytes: Option<u64>,
    /// The embedder promises that no ring of buffers for io_uring (IORING_REGISTER_PBUF_RING) lies in the regions that the
    /// kernel writes to by itself (IOU_PBUF_RING_INC). Where one lies cannot be asked, so without this promise all
    /// regions are read in full and compared as long as the process has such a ring anywhere, or an io_uring that answers
    /// the thread alone that made it (IORING_SETUP_SINGLE_ISSUER), and a commit takes 30 ms more for each io_uring.
    pub no_buffer_rings: bool,
    /// How snapshots are written.
    pub write: WriteOptions,
}

impl Default for OwnMemoryOptions {
    fn default() -> Self {
        Self {
            space: "memory".to_owned(),
            buffer_bytes: 256 << 20,
            page_table_limit_bytes: None,
            no_buffer_rings: false,
            write: WriteOptions::default(),
        }
    }
}

/// Takes snapshots of memory of this process. Holds the store's writer lock.
///
/// It belongs to the process that made it. In a forked child every call fails with [`OwnMemoryError::Forked`], it
/// keeps no lock and leads to no descriptor, and dropping it there touches neither the parent's memory nor its
/// files. A child makes one of its own, with a store of its own.
///
/// Dropping it waits for what was given to the background, and gives back what is held.
pub struct OwnMemory {
    line: Arc<Line>,
    worker: Arc<Worker>,
    space: String,
    /// What captures remember that are not known to be stored, by number.
    recent: Vec<(u64, Arc<CarryOver>)>,
    watched: Watched,
}

impl OwnMemory {
    /// Makes ready to take snapshots of `placements` into `store`, and begins to track them. The first one is full.
    /// No other `OwnMemory` of this process, and no other userfaultfd, may have a part of them.
    pub fn new(
        store: Store,
        placements: &[Placement],
        options: OwnMemoryOptions,
    ) -> Result<Self, OwnMemoryError> {
        let watched = Watched::new(placements, options.page_table_limit_bytes)?;
        Self::with(store, watched, options)
    }

    fn with(
        store: Store,
        watched: Watched,
        options: OwnMemoryOptions,
    ) -> Result<Self, OwnMemoryError> {
        let making = Making {
            write: options.write,
            buffer_bytes: options.buffer_bytes,
            no_buffer_rings: options.no_buffer_rings,
        };
        let line = Line::open(store, watched.pid, making)?;
        Ok(Self {
            line: Arc::new(line),
            worker: Arc::default(),
            space: options.space,
            recent: Vec::new(),
            watched,
        })
    }

    /// As [`OwnMemory::new`] and [`OwnMemory::restore`], but returns before the memory has its content: pages come from `view`, a
    /// snapshot of `store`, when they are touched, also by system calls and by KVM guests, and by and by otherwise. They
    /// are tracked from the first instruction, and the next snapshot is a delta to `view`. The regions must be private
    /// anonymous memory that nobody has touched.
    ///
    /// A thread of its own puts pages there, as long as this lives; it blocks all signals. Dropping this waits until all is
    /// there. A forked child does not see what has not come by then. Needs CAP_SYS_PTRACE, or 1 in
    /// `vm.unprivileged_userfaultfd`.
    ///
    /// # Errors
    /// Those of [`OwnMemory::new`]; [`OwnMemoryError::NotFresh`], [`OwnMemoryError::NoSpace`],
    /// [`OwnMemoryError::NotInSnapshot`].
    pub fn populate_lazily(
        store: Store,
        view: &View,
        placements: &[Placement],
        options: OwnMemoryOptions,
    ) -> Result<(Self, Population), OwnMemoryError> {
        let name = &options.space;
        let space = view
            .space_index(name)
            .ok_or_else(|| OwnMemoryError::NoSpace {
                id: view.id(),
                name: name.clone(),
            })?;
        put_back::check_whole(view, space, &Places::new(placements)?)?;
        let parent = view.chain().get(1).copied();
        let changed = match parent {
            Some(parent) => store.changed(&store.view(parent)?, view, name),
            None => PageSet::new(),
        };
        let limit = options.page_table_limit_bytes;
        let watch = |make: &mut dyn FnMut() -> _| Watched::with(placements, limit, make);
        let (watched, population) = lazy::begin(watch, view, space, &changed)?;
        let mut own = Self::with(store, watched, options)?;
        own.go_on_from(view, false)?;
        Ok((own, population))
    }

    /// Makes room for `bytes` of written pages, so that the next capture touches no fresh memory.
    pub fn prepare(&mut self, bytes: u64) {
        let mut arena = self.line.arena();
        arena.prepare(bytes);
        self.line.keep(arena);
    }

    /// What tells of pages that were written without a trace. It may be cloned and moved to other threads.
    pub fn written_pages(&self) -> WrittenPages {
        self.watched.told.clone()
    }

    /// The regions, by address.
    pub fn regions(&self) -> &[Placement] {
        self.watched.places.list()
    }

    /// Has it take snapshots of `placements` from now on, and of nothing else: regions may be added, grown, shrunk, moved to
    /// another place of the space, and removed. What is new counts as written; what goes is not tracked any more, and can be
    /// unmapped then. What was captured before keeps its regions. On an error all is as it was.
    pub fn set_regions(&mut self, placements: &[Placement]) -> Result<(), OwnMemoryError> {
        self.watched.check_pid()?;
        self.watched.set_places(placements)
    }

    /// Takes what was written since the last capture and copies it. Call it while nobody writes to the memory; when it
    /// returns, they may write again. No file of the store is opened, unless more was written than the buffer holds.
    pub fn capture(&mut self) -> Result<Captured, OwnMemoryError> {
        let started = Instant::now();
        self.watched.check_pid()?;
        let begun = self.line.hand_over.begin();
        // Dropped on an error, it ends what has begun.
        let mut captured = Captured::new(&self.line, &self.worker, begun.number);
        let mut layer = self.take(&begun)?;
        self.recent.push((begun.number, Arc::clone(&layer.next)));
        let paused = started.elapsed();
        layer.said.paused = paused;
        captured.set_paused(paused);
        self.line.hand_over.hold(begun.number, layer);
        Ok(captured)
    }

    /// Copies what was written, while they go on writing, and leaves it for the next capture: that one, for which they have
    /// to pause, copies only what was written since. Worth it before the first snapshot, which is full. Returns how many
    /// pages were copied. What is more than the buffer holds is stored meanwhile.
    ///
    /// Until the next capture is committed there is no snapshot with these pages.
    pub fn precopy(&mut self) -> Result<PageCount, OwnMemoryError> {
        let captured = self.capture()?;
        let count = |layer: &mut Layer| layer.said.written();
        let copied = self.line.hand_over.with(captured.number(), count);
        captured.leave();
        copied.map_err(line::gone)
    }

    /// The number of the newest capture up to which all is durable: whatever was captured by then is in a snapshot. 0 before
    /// the first. It may be asked at any time, and costs a lock.
    pub fn durable(&self) -> u64 {
        match self.watched.check_pid() {
            Ok(()) => self.line.hand_over.durable(),
            Err(_) => 0,
        }
    }

    /// Waits until all up to capture `number` is durable. False if it will not be: nothing is under way any more that has its
    /// pages.
    pub fn wait_until_durable(&self, number: u64) -> bool {
        self.watched.check_pid().is_ok() && self.line.hand_over.wait_until_durable(number)
    }

    /// Goes on from a snapshot of this store of which the memory has the content, as far as the caller knows: the next
    /// snapshot is a delta to it. It is not believed: the next capture reads all memory, while the writers are paused, and compares
    /// it. [`OwnMemory::restore`] puts memory to a snapshot and needs no comparing.
    pub fn resume_from(&mut self, view: &View) -> Result<(), OwnMemoryError> {
        self.go_on_from(view, true)
    }

    /// Puts the memory to a snapshot of this store, by all cores, and goes on from it: the next snapshot is a delta to it.
    /// Call it while nobody uses the memory. For memory that is fresh, in a process that begins where another one ended;
    /// what holds the right bytes already is not written. Returns how many pages were. Errors as of [`OwnMemory::roll_back`].
    pub fn restore(&mut self, view: &View) -> Result<PageCount, OwnMemoryError> {
        self.check_store(view)?;
        let restored = self.put_back(view, None)?;
        // Written by us, and by nobody else meanwhile.
        let (ground, _) = self.watched.look()?;
        let harvest =
            pagetide_tracker::Tracker::harvest(&mut self.watched.tracker, &ground.tracked())?;
        let told = self.watched.told.take();
        let written = harvest.written().union(&told);
        self.watched.add_to_baselines(&written, None);
        self.go_on_from(view, false)?;
        harvest.commit();
        Ok(restored)
    }

    fn check_store(&self, view: &View) -> Result<(), OwnMemoryError> {
        self.watched.check_pid()?;
        if view.store_id() == self.line.store.id() {
            Ok(())
        } else {
            Err(OwnMemoryError::OtherStore { id: view.id() })
        }
    }

    fn go_on_from(&mut self, view: &View, is_doubtful: bool) -> Result<(), OwnMemoryError> {
        self.check_store(view)?;
        // What is under way is of the time before.
        self.line.hand_over.give_back_all();
        self.recent.clear();
        self.watched.is_followed = true;
        self.line.go_on_from(view.clone(), is_doubtful);
        Ok(())
    }

    /// Puts the memory back to a snapshot, and returns how many pages were written. Call it while nobody uses the memory. Only
    /// pages that were written since the last snapshot, or for which that one has another hash than `view`, are read, and those that differ are
    /// written. The next snapshot is a delta that says so.
    ///
    /// What cannot be put back is refused before anything is written: a region that is not mapped as a whole, a page of which
    /// the snapshot does not say what it was ([`OwnMemoryError::NotInSnapshot`]), and regions that have come to show the
    /// same shared memory, if the snapshot has different bytes for them ([`OwnMemoryError::ShowTheSame`]). A snapshot that cannot be read
    /// is found out before anything is written, as far as what is to be written fits into the buffer; beyond that, and where
    /// memory cannot be written, the error says which pages were not put back ([`OwnMemoryError::PutBackInPart`]).
    pub fn roll_back(&mut self, view: &View) -> Result<PageCount, OwnMemoryError> {
        self.watched.check_pid()?;
        let last = self.line.last();
        let observed = match (&last.view, last.is_doubtful) {
            (Some(known), false) if known.store_id() == view.store_id() => Some(known.clone()),
            _ => None,
        };
        self.put_back(view, observed.as_ref())
    }

    /// Puts back what may differ; if memory may have more of `known` than was written since, only that.
    fn put_back(&mut self, view: &View, known: Option<&View>) -> Result<PageCount, OwnMemoryError> {
        let name = &self.space;
        let space = view
            .space_index(name)
            .ok_or_else(|| OwnMemoryError::NoSpace {
                id: view.id(),
                name: name.clone(),
            })?;
        self.watched.bring_all()?;
        let mut only = None;
        if let Some(known) = known {
            let last = self.line.last();
            let observed = self.watched.observe(&Reference {
                next: last.next.as_deref(),
                has_buffer_rings: last.has_buffer_rings,
                is_doubtful: last.is_doubtful,
            })?;
            // Given back: it counts as written still.
            let mut touched = observed.touched();
            drop(observed);
            for (_, next) in &self.recent {
                touched = touched.union(&next.touched);
            }
            let differ = self.line.store.changed(known, view, &self.space);
            only = Some(touched.union(&self.watched.places.mapped_of(&differ)));
        }
        let (ground, report) = self.watched.look()?;
        let put_back = PutBack {
            view,
            space,
            places: &self.watched.places,
            ground: &ground,
            memory: &self.watched.memory,
            tables: self.watched.tables(),
            empty: &self.watched.empty(&ground, &report)?,
            only: only.as_ref(),
            buffer_bytes: self.line.buffer_bytes(),
        };
        put_back.run()
    }

    /// Copies all memory, to go back to it by [`OwnMemory::reset_to`]. Call it while nobody writes to the memory. The chain of
    /// snapshots goes on beside it.
    pub fn baseline(&mut self) -> Result<Baseline, OwnMemoryError> {
        let has_buffer_rings = self.line.last().has_buffer_rings;
        self.watched.baseline(has_buffer_rings)
    }

    /// Puts the memory back to a baseline, writing only what was written since that was taken or gone back to last, and
    /// returns how many pages that were. Call it while nobody uses the memory.
    ///
    /// # Errors
    /// [`OwnMemoryError::OtherBaseline`] if the regions are others by now. Where memory cannot be written,
    /// [`OwnMemoryError::PutBackInPart`] says which pages are not back; to go back once more tries them again. All other errors
    /// leave memory as it was.
    pub fn reset_to(&mut self, baseline: &Baseline) -> Result<PageCount, OwnMemoryError> {
        let has_buffer_rings = self.line.last().has_buffer_rings;
        self.watched.reset_to(baseline, has_buffer_rings)
    }

    /// What was before a capture that begins, as far as it is not stored.
    fn basis(&mut self, begun: &CaptureStart) -> LastSnapshot {
        let before = begun.before.and_then(|number| {
            let found = self.recent.iter().find(|(other, _)| *other == number);
            found.map(|(_, next)| Arc::clone(next))
        });
        if begun.before.is_none() {
            self.recent.clear();
        }
        // Asked first: what is durable by now is in the view that is asked for next.
        let durable = self.line.hand_over.durable();
        self.recent.retain(|(number, _)| *number > durable);
        let mut last = self.line.last();
        if before.is_some() {
            last.next = before;
            last.is_doubtful = false;
        }
        if last.next.is_some() && last.asked_at + CAPTURES_WITHOUT_ASKING < begun.number {
            last.has_buffer_rings |= self.line.ask_for_buffer_rings();
        }
        last
    }

    /// Harvests and copies.
    fn take(&mut self, begun: &CaptureStart) -> Result<Layer, OwnMemoryError> {
        let last = self.basis(begun);
        let observed = self.watched.observe(&Reference {
            next: last.next.as_deref(),
            has_buffer_rings: last.has_buffer_rings,
            is_doubtful: last.is_doubtful,
        })?;
        let (places, space) = (Arc::clone(&self.watched.places), self.space());
        let mut arena = self.line.arena();
        arena.clear();
        let mut overflow = Overflow {
            line: &self.line,
            number: begun.number,
            places: &places,
            space: &space,
            writer: None,
            below: Vec::new(),
            failed: None,
        };
        let taken = self.copy(&observed, last.view.as_ref(), &mut arena, &mut overflow);
        if let Some(error) = overflow.failed {
            return Err(error);
        }
        let (writer, below, taken) = (overflow.writer, overflow.below, taken?);
        let touched = observed.touched();
        let layout = observed.harvest.layout();
        let said = CaptureFigures {
            mapped_anew: match last.next {
                Some(_) => layout.fresh.clone(),
                None => PageSet::new(),
            },
            copied: taken.copied,
            unreadable: taken.unreadable,
            guards: taken.guards,
            compared_because: observed.plan.compared_because,
            not_tracked: self.not_tracked(&layout.refused),
            ..CaptureFigures::default()
        };
        Ok(Layer {
            arena,
            states: taken.states,
            is_in_part: writer.is_some(),
            begun: writer,
            below,
            places,
            space,
            harvest: observed.harvest,
            told: observed.told,
            attachments: Vec::new(),
            next: Arc::new(CarryOver {
                memo: observed.plan.memo,
                lengths: observed.lengths,
                touched,
            }),
            said,
            reply: None,
        })
    }

    /// Copies what was observed, but for what is compared and is what `view` has.
    fn copy(
        &self,
        observed: &Observed,
        view: Option<&View>,
        arena: &mut Arena,
        overflow: &mut Overflow<'_>,
    ) -> Result<Taken, OwnMemoryError> {
        let in_view = view.and_then(|view| Some((view, view.space_index(&self.space)?)));
        let places = &self.watched.places;
        // What is captured and not stored is not what the view has.
        let known = in_view.map(|(view, space)| {
            move |page: PageIndex| {
                let mut recent = self.recent.iter();
                if recent.any(|(_, next)| next.touched.contains(page)) {
                    None
                } else {
                    view.page_hash(space, places.page_in_space(page)?)
                }
            }
        });
        let known = known.as_ref().map(|known| known as &dyn Fn(PageIndex) -> _);
        let mut spill = |arena: &Arena| overflow.take(arena);
        self.watched.copy(observed, known, arena, &mut spill)
    }

    /// What is compared because the tracker refused it.
    fn not_tracked(&self, refused: &[pagetide_tracker::Refused]) -> Vec<NotTracked> {
        let named = refused.iter().map(|found| {
            let (start, end) = SIZE.span_of(found.pages);
            NotTracked {
                pid: self.watched.pid.cast_signed(),
                start,
                end,
                reason: ComparedBecause::Refused(found.reason.to_string()),
            }
        });
        named.collect()
    }

    fn space(&self) -> Space {
        let placements = self.watched.places.list().iter();
        let mut regions: Vec<Region> = placements
            .map(|placement| Region::anonymous(placement.in_space()))
            .collect();
        regions.sort_by_key(|region| region.pages);
        Space::new(self.space.clone(), SIZE, regions)
    }
}

/// A capture of which more was written than the buffer holds: it is stored in part while it is taken.
struct Overflow<'a> {
    line: &'a Line,
    number: u64,
    places: &'a Places,
    space: &'a Space,
    writer: Option<SnapshotWriter>,
    /// What fell to the capture before, and is in the snapshot, too.
    below: Vec<Layer>,
    failed: Option<OwnMemoryError>,
}

impl Overflow<'_> {
    fn take(&mut self, arena: &Arena) -> Result<(), CaptureError> {
        if let Err(error) = self.begin() {
            self.failed = Some(error);
            // It ends the capture, and the reason stands beside it.
            let what = "the buffer is full".to_owned();
            return Err(WriteError::Invalid { what }.into());
        }
        match &mut self.writer {
            Some(writer) => Ok(writer.put_pages(0, &self.places.placed(arena))?),
            None => Ok(()),
        }
    }

    fn begin(&mut self) -> Result<(), OwnMemoryError> {
        if self.writer.is_some() {
            return Ok(());
        }
        let below = self.line.hand_over.turn(self.number);
        self.below = below.ok_or(OwnMemoryError::BufferFull)?;
        let begun = self.below.first_mut().and_then(|first| first.begun.take());
        let mut is_begun = begun.is_some();
        let mut writer = match begun {
            Some(writer) => writer,
            None => self.line.begin()?,
        };
        writer.set_spaces(vec![self.space.clone()])?;
        for layer in &self.below {
            if layer.is_in_part && !std::mem::take(&mut is_begun) {
                return Err(OwnMemoryError::EarlierLost);
            }
            layer.put(&mut writer)?;
        }
        self.writer = Some(writer);
        Ok(())
    }
}

impl Drop for OwnMemory {
    fn drop(&mut self) {
        // A forked child leaves all of it to its parent.
        if self.watched.check_pid().is_ok() {
            self.line.close();
            self.worker.join();
        }
    }
}
