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

mod captured;
mod claims;
mod error;
mod ground;
mod marks;
mod placement;
mod plan;
mod put_back;
mod shared;
mod shown_twice;

pub use captured::{Captured, OwnSnapshot};
pub use error::OwnMemoryError;
pub use marks::WrittenPages;
pub use placement::Placement;

use crate::arena::Arena;
use crate::capture::{ASK_FROM, Copied, SIZE, Source};
use crate::compared::ComparedBecause;
use crate::files::{FileReport, Files};
use crate::page_table_limit;
use crate::page_tables::PageTables;
use crate::report::NotTracked;
use crate::rings;
use captured::{Taken, Told};
use claims::Claim;
use ground::{Ground, Kind, refused};
use pagetide_kernel::memory::ProcessMemory;
use pagetide_kernel::own_descriptors::{Withheld, withhold, without_forks};
use pagetide_kernel::pagemap_scan::{Categories, Pagemap};
use pagetide_kernel::probe;
use pagetide_kernel::userfaultfd::UserfaultfdError;
use pagetide_pages::{PageCount, PageIndex, PageSet};
use pagetide_snapshot::{PageState, Region, Space, Store, View, WriteOptions, WriterLock};
use pagetide_tracker::{Refused, RefusedReason, Tracker, WpAsync};
use placement::Places;
use plan::{Known, Memo, Plan, Signs};
use put_back::PutBack;
use shared::{Lengths, SharedReader, lengths};
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How often, and how long apart, it is tried to track memory that another userfaultfd holds.
const HELD_TRIES: u32 = 20;
const HELD_PAUSE: Duration = Duration::from_millis(5);

/// How snapshots of own memory are taken.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OwnMemoryOptions {
    /// The name of the space in the snapshots.
    pub space: String,
    /// The most memory that copied pages may take. A capture of more is stored in part while the writers
    /// are paused.
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
    fn default() -> OwnMemoryOptions {
        OwnMemoryOptions {
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
pub struct OwnMemory {
    pid: u32,
    /// Before the descriptors that they are about.
    _withheld: Vec<Withheld>,
    /// What was captured and is neither stored nor given back. It stands here and not in [`Captured`], so that
    /// nothing is lost with one that is forgotten.
    open: Option<Taken>,
    _claim: Claim,
    places: Places,
    store: Store,
    lock: WriterLock,
    options: OwnMemoryOptions,
    tracker: WpAsync,
    pagemap: Pagemap,
    memory: ProcessMemory,
    knows_guards: bool,
    files: Files,
    arena: Arena,
    told: WrittenPages,
    last: Option<Last>,
    /// When the last snapshot had been stored, a ring of buffers might lie in the memory.
    has_buffer_rings: bool,
}

/// The last snapshot that was stored.
struct Last {
    view: View,
    memo: Memo,
    lengths: Lengths,
}

/// What a forked child must not have: the lock of the store, and what leads to this address space.
struct Ways {
    withheld: Vec<Withheld>,
    lock: WriterLock,
    tracker: WpAsync,
    pagemap: Pagemap,
    memory: ProcessMemory,
}

impl Ways {
    fn open(store: &Store, pid: i32) -> Result<Ways, OwnMemoryError> {
        let mut ways = Ways {
            withheld: Vec::new(),
            lock: store.lock()?,
            tracker: WpAsync::of_self()?,
            pagemap: Pagemap::of_self()?,
            memory: ProcessMemory::open(pid)?,
        };
        let all = [
            ways.lock.descriptor(),
            Some(ways.tracker.protector().as_fd()),
            Some(ways.pagemap.as_fd()),
            Some(ways.memory.as_fd()),
        ];
        let withheld = all.into_iter().flatten().map(withhold);
        let withheld: std::io::Result<Vec<Withheld>> = withheld.collect();
        ways.withheld = withheld.map_err(OwnMemoryError::Withhold)?;
        Ok(ways)
    }
}

impl OwnMemory {
    /// Makes ready to take snapshots of `placements` into `store`, and begins to track them. The first one is full.
    /// No other `OwnMemory` of this process, and no other userfaultfd, may have a part of them.
    pub fn new(
        store: Store,
        placements: &[Placement],
        options: OwnMemoryOptions,
    ) -> Result<OwnMemory, OwnMemoryError> {
        let pid = pid_now();
        let places = Places::new(placements)?;
        let claim = Claim::new(pid, &places.mapped())?;
        let ways = without_forks(|| Ways::open(&store, pid.cast_signed()));
        let ways = ways.map_err(OwnMemoryError::Withhold)??;
        let limit = page_table_limit::of(pid.cast_signed(), options.page_table_limit_bytes);
        let mut own = OwnMemory {
            pid,
            open: None,
            _claim: claim,
            _withheld: ways.withheld,
            lock: ways.lock,
            tracker: ways.tracker.with_page_table_limit(limit),
            pagemap: ways.pagemap,
            memory: ways.memory,
            knows_guards: probe::known_categories().contains(Categories::GUARD),
            files: Files::new(false),
            arena: Arena::new(SIZE, options.buffer_bytes),
            told: WrittenPages::default(),
            last: None,
            has_buffer_rings: false,
            places,
            store,
            options,
        };
        let (ground, _) = own.look()?;
        own.memory.expect(&ground.mappings);
        own.begin_tracking(&ground)?;
        Ok(own)
    }

    /// A child that another thread forks has a copy of every descriptor until it lets go of what is withheld, and so for
    /// a moment holds what an earlier tracker had registered.
    fn begin_tracking(&mut self, ground: &Ground) -> Result<(), OwnMemoryError> {
        let is_held = |found: &Refused| {
            let reason = &found.reason;
            matches!(
                reason,
                RefusedReason::Protect(UserfaultfdError::OwnedByAnother { .. })
            )
        };
        for _ in 0..HELD_TRIES {
            let change = self.tracker.arm(&ground.tracked())?;
            match change.refused.iter().any(is_held) {
                true => std::thread::sleep(HELD_PAUSE),
                false => return refuse(&change.refused),
            }
        }
        let change = self.tracker.arm(&ground.tracked())?;
        refuse(&change.refused)
    }

    /// Makes room for `bytes` of written pages, so that the next capture touches no fresh memory.
    pub fn prepare(&mut self, bytes: u64) {
        self.arena.prepare(bytes);
    }

    /// What tells of pages that were written without a trace. It may be cloned and moved to other threads.
    pub fn written_pages(&self) -> WrittenPages {
        self.told.clone()
    }

    /// Takes what was written since the last stored snapshot and copies it. Call it while nobody writes
    /// to the memory; when it returns, they may write again. A capture that was neither stored nor given back is
    /// given back first.
    pub fn capture(&mut self) -> Result<Captured<'_>, OwnMemoryError> {
        let started = Instant::now();
        self.check_pid()?;
        self.give_back_open();
        let (ground, report) = self.look()?;
        let (pid, mappings) = (self.pid.cast_signed(), &ground.mappings);
        let signs = Signs::look(pid, mappings, self.has_buffer_rings);
        let mut taken = self.take(ground, &report, signs)?;
        taken.paused = started.elapsed();
        self.open = Some(taken);
        Ok(Captured::new(self))
    }

    /// Puts the memory back to a snapshot, writing only pages that differ, and returns how many were
    /// written. Call it while nobody uses the memory. The next snapshot is a delta that says so.
    ///
    /// What cannot be put back is refused before anything is written: a region that is not mapped as a whole, a page of which
    /// the snapshot does not say what it was ([`OwnMemoryError::NotInSnapshot`]), and regions that have come to show the
    /// same shared memory, if the snapshot has different bytes for them ([`OwnMemoryError::ShowTheSame`]).
    pub fn roll_back(&mut self, view: &View) -> Result<PageCount, OwnMemoryError> {
        self.check_pid()?;
        self.give_back_open();
        let (ground, report) = self.look()?;
        let name = &self.options.space;
        let space = view
            .space_index(name)
            .ok_or_else(|| OwnMemoryError::NoSpace {
                id: view.id(),
                name: name.clone(),
            })?;
        let put_back = PutBack {
            view,
            space,
            places: &self.places,
            ground: &ground,
            memory: &self.memory,
            empty: &self.empty(&ground, &report)?,
        };
        put_back.run()
    }

    /// What lies under the regions, and what is known of the files there.
    fn look(&mut self) -> Result<(Ground, FileReport), OwnMemoryError> {
        let pid = self.pid.cast_signed();
        let ground = Ground::look(pid, &self.places)?;
        let with_file = ground.with_file();
        let report = self.files.look([(pid, &with_file[..])]);
        ground.refuse_devices(&report)?;
        ground.refuse_other_mappings()?;
        Ok((ground, report))
    }

    /// Harvests and copies.
    fn take(
        &mut self,
        ground: Ground,
        report: &FileReport,
        signs: Signs,
    ) -> Result<Taken, OwnMemoryError> {
        let options = self.options.write.clone();
        let parent = self.last.as_ref();
        let view = parent.map(|last| &last.view);
        let mut writer = self.store.begin(&self.lock, view, options)?;
        writer.set_spaces(vec![self.space()])?;
        let harvest = self.tracker.harvest(&ground.tracked())?;
        refuse(&harvest.layout().refused)?;
        let untracked = harvest.layout().refused.iter();
        let untracked = untracked.map(|found| found.pages).collect();
        let told = Told::take(&self.told);
        let (lengths, doubtful) = lengths(&ground, &self.files, parent.map(|last| &last.lengths));
        let tables = PageTables {
            pagemap: &self.pagemap,
            knows_guards: self.knows_guards,
        };
        let plan = Plan::new(Known {
            ground: &ground,
            tables,
            files: &self.files,
            report,
            signs,
            written: harvest.written().union(&told.pages),
            fresh: &harvest.layout().fresh,
            untracked: &untracked,
            memo: parent.map(|last| &last.memo),
            doubtful,
        })?;
        let places = &self.places;
        let space = view.and_then(|view| Some((view, view.space_index(&self.options.space)?)));
        let known = space
            .map(|(view, space)| move |page| view.page_hash(space, places.page_in_space(page)?));
        let source = Source {
            memory: &self.memory,
            pagemap: &self.pagemap,
            known: known.as_ref().map(|known| known as &dyn Fn(PageIndex) -> _),
            knows_guards: self.knows_guards,
            ask_from: ASK_FROM,
            instead: &HashMap::new(),
        };
        let reader = SharedReader {
            files: &self.files,
            report,
            tables,
            source: &source,
        };
        self.arena.clear();
        let mut spill = |arena: &Arena| Ok(writer.put_pages(0, &places.placed(arena))?);
        let mut copied = Copied::new(&mut self.arena, &mut spill);
        source.read(&plan.read, &plan.anonymous, &mut copied)?;
        source.compare(&plan.compare, &plan.anonymous, &mut copied)?;
        for piece in &ground.pieces {
            reader.copy(piece, &plan.shared, &mut copied)?;
        }
        let (copied_pages, mut states) = (copied.pages, copied.states);
        let unreadable = copied.unreadable;
        if !unreadable.is_empty() {
            // It may have been unmapped while it was read.
            Ground::look(self.pid.cast_signed(), places)?;
        }
        let guards = tables.guards(&unreadable)?.union(&plan.guards);
        for (pages, state) in [
            (&plan.zero, PageState::Zero),
            (&unreadable, PageState::Unbacked),
            (&guards, PageState::Guard),
        ] {
            states.extend(pages.ranges().iter().map(|&range| (range, state)));
        }
        Ok(Taken {
            mapped_anew: match parent {
                Some(_) => harvest.layout().fresh.count(),
                None => PageCount(0),
            },
            written: copied_pages.subtract(&unreadable).count(),
            unreadable: unreadable.subtract(&guards).count(),
            compared_because: plan.compared_because,
            not_tracked: self.not_tracked(&harvest.layout().refused),
            next: (plan.memo, lengths),
            paused: Duration::ZERO,
            writer,
            harvest,
            told,
            states,
        })
    }

    /// What is compared because the tracker refused it.
    fn not_tracked(&self, refused: &[Refused]) -> Vec<NotTracked> {
        let named = refused.iter().map(|found| {
            let (start, end) = SIZE.span_of(found.pages);
            NotTracked {
                pid: self.pid.cast_signed(),
                start,
                end,
                reason: ComparedBecause::Refused(found.reason.to_string()),
            }
        });
        named.collect()
    }

    fn space(&self) -> Space {
        let placements = self.places.list().iter();
        let mut regions: Vec<Region> = placements
            .map(|placement| Region::anonymous(placement.in_space()))
            .collect();
        regions.sort_by_key(|region| region.pages);
        Space::new(self.options.space.clone(), SIZE, regions)
    }

    /// The pages that show nothing that was ever allocated: they are zero, and reading would allocate them.
    fn empty(&self, ground: &Ground, report: &FileReport) -> Result<PageSet, OwnMemoryError> {
        let tables = PageTables {
            pagemap: &self.pagemap,
            knows_guards: self.knows_guards,
        };
        let mut empty = Vec::new();
        for piece in &ground.pieces {
            let pages = PageSet::from(piece.pages);
            let held = Categories::PRESENT | Categories::SWAPPED;
            let found = match piece.kind {
                Kind::Private => PageSet::new(),
                Kind::Huge => pages.subtract(&tables.having(&pages, held)?),
                Kind::Shared | Kind::SharedAlone => self.files.holes_in(&piece.mapping, report),
                Kind::OverFile => {
                    let holes = self.files.holes_in(&piece.mapping, report);
                    holes.subtract(&tables.having(&holes.intersect(&pages), held)?)
                }
            };
            empty.extend_from_slice(found.within(piece.pages).ranges());
        }
        Ok(empty.into_iter().collect())
    }

    /// True if a ring of buffers may lie in the regions.
    fn may_have_buffer_rings(&self) -> bool {
        !self.options.no_buffer_rings && rings::may_have_own_buffer_rings(self.pid.cast_signed())
    }

    fn check_pid(&self) -> Result<(), OwnMemoryError> {
        match pid_now() {
            pid if pid == self.pid => Ok(()),
            child => Err(OwnMemoryError::Forked {
                owner: self.pid,
                child,
            }),
        }
    }
}

fn pid_now() -> u32 {
    rustix::process::getpid()
        .as_raw_nonzero()
        .get()
        .cast_unsigned()
}

/// What the tracker cannot watch cannot be captured, but for what would take too many page tables: that is compared.
fn refuse(refused_by_tracker: &[Refused]) -> Result<(), OwnMemoryError> {
    let can_be_compared =
        |found: &&Refused| matches!(found.reason, RefusedReason::PageTables { .. });
    match refused_by_tracker
        .iter()
        .find(|found| !can_be_compared(found))
    {
        None => Ok(()),
        Some(found) => Err(refused(found.pages, found.reason.to_string())),
    }
}
