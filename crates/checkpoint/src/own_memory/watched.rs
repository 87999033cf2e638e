//! Regions of this process that are watched: where they are, who claims them, and the tracker over them. It knows no
//! snapshots: what was written since some moment is one answer, and what is done about it is others' business.

use super::claims::Claim;
use super::differing::Differing;
use super::error::OwnMemoryError;
use super::ground::{Ground, Kind, refused};
use super::layer::{CarryOver, ReportedWrites};
use super::line::{check_pid, pid_now};
use super::marks::WrittenPages;
use super::placement::{Placement, Places};
use super::plan::{Known, OwnCopyPlan, Signs};
use super::populating::Populating;
use super::shared::{SharedReader, lengths};
use crate::arena::Arena;
use crate::capture::{ASK_FROM, CaptureError, Copied, PageSource, SIZE};
use crate::files::{FileReport, Files};
use crate::page_table_limit;
use crate::page_tables::PageTables;
use pagetide_kernel::memory::{MemoryError, ProcessMemory};
use pagetide_kernel::own_descriptors::{Withheld, withhold, without_forks};
use pagetide_kernel::pagemap_scan::{Categories, Pagemap};
use pagetide_kernel::probe;
use pagetide_kernel::userfaultfd::UserfaultfdError;
use pagetide_pages::{PageIndex, PageRange, PageSet};
use pagetide_snapshot::{PageHash, PageState};
use pagetide_tracker::{Harvest, Refused, RefusedReason, TrackError, Tracker, WpAsync};
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// How often, and how long apart, it is tried to track memory that another userfaultfd holds.
const HELD_TRIES: u32 = 20;
const HELD_PAUSE: Duration = Duration::from_millis(5);

/// See the head of this file.
pub(super) struct Watched {
    pub pid: u32,
    /// It ends before the memory is let go of.
    pub populating: Option<Populating>,
    /// Before the descriptors that they are about.
    _withheld: Vec<Withheld>,
    claim: Claim,
    pub places: Arc<Places>,
    pub tracker: WpAsync,
    pub pagemap: Pagemap,
    pub memory: ProcessMemory,
    knows_guards: bool,
    pub files: Files,
    pub told: WrittenPages,
    /// Somebody relies on what is told: there was a capture, or an epoch.
    pub is_followed: bool,
    pub baselines: Vec<Weak<Mutex<Differing>>>,
}

/// What leads to this address space, which a forked child must not have.
struct Ways {
    withheld: Vec<Withheld>,
    tracker: WpAsync,
    pagemap: Pagemap,
    memory: ProcessMemory,
}

impl Ways {
    fn open(
        pid: i32,
        make: impl FnOnce() -> Result<WpAsync, TrackError>,
    ) -> Result<Self, OwnMemoryError> {
        let mut ways = Self {
            withheld: Vec::new(),
            tracker: make()?,
            pagemap: Pagemap::of_self()?,
            memory: ProcessMemory::open(pid)?,
        };
        let all = [
            ways.tracker.protector().as_fd(),
            ways.pagemap.as_fd(),
            ways.memory.as_fd(),
        ];
        let withheld: std::io::Result<Vec<Withheld>> = all.into_iter().map(withhold).collect();
        ways.withheld = withheld.map_err(OwnMemoryError::Withhold)?;
        Ok(ways)
    }
}

/// Says why this process may not open what is its own, if it is for that.
fn explained(error: OwnMemoryError) -> OwnMemoryError {
    use rustix::process::{DumpableBehavior, dumpable_behavior};
    let is_opening = matches!(
        error,
        OwnMemoryError::OpenPagemap(_)
            | OwnMemoryError::Track(TrackError::OpenPagemap(_))
            | OwnMemoryError::Memory(MemoryError::Open { .. })
    );
    match dumpable_behavior() {
        Ok(DumpableBehavior::Dumpable) | Err(_) => error,
        Ok(_) if is_opening => OwnMemoryError::NotDumpable {
            source: Box::new(error),
        },
        Ok(_) => error,
    }
}

/// What was before: what may have been written is asked since then.
pub(super) struct Reference<'a> {
    /// What the capture then remembered; `None` if there was none, and all is to be read.
    pub next: Option<&'a CarryOver>,
    pub has_buffer_rings: bool,
    /// Nothing is to be taken for unchanged.
    pub is_doubtful: bool,
}

/// What may have been written.
pub(super) struct Observed {
    pub ground: Ground,
    pub report: FileReport,
    pub harvest: Harvest,
    pub told: ReportedWrites,
    pub plan: OwnCopyPlan,
    pub lengths: super::shared::Lengths,
}

impl Observed {
    /// All pages that may not be what they were.
    pub fn touched(&self) -> PageSet {
        let plan = &self.plan;
        let mut touched = plan.read.union(&plan.compare);
        for more in [&plan.shared, &plan.zero, &plan.guards] {
            touched = touched.union(more);
        }
        touched
    }
}

/// What was copied, but for the bytes.
pub(super) struct Taken {
    pub states: Vec<(PageRange, PageState)>,
    pub copied: PageSet,
    pub unreadable: PageSet,
    pub guards: PageSet,
}

impl Watched {
    /// Begins to track `placements`. No other watcher of this process, and no other userfaultfd, may have a part of them.
    pub fn new(
        placements: &[Placement],
        page_table_limit_bytes: Option<u64>,
    ) -> Result<Self, OwnMemoryError> {
        Self::with(placements, page_table_limit_bytes, WpAsync::of_self)
    }

    /// The same, by a tracker of this process that is made for it.
    pub fn with(
        placements: &[Placement],
        page_table_limit_bytes: Option<u64>,
        make: impl FnOnce() -> Result<WpAsync, TrackError>,
    ) -> Result<Self, OwnMemoryError> {
        let pid = pid_now();
        let places = Places::new(placements)?;
        let claim = Claim::new(pid, &places.mapped())?;
        let ways = without_forks(|| Ways::open(pid.cast_signed(), make));
        let ways = ways.map_err(OwnMemoryError::Withhold)?;
        let ways = ways.map_err(explained)?;
        let limit = page_table_limit::of(pid.cast_signed(), page_table_limit_bytes);
        let mut watched = Self {
            pid,
            claim,
            populating: None,
            _withheld: ways.withheld,
            tracker: ways.tracker.with_page_table_limit(limit),
            pagemap: ways.pagemap,
            memory: ways.memory,
            knows_guards: probe::known_categories().contains(Categories::GUARD),
            files: Files::new(false),
            told: WrittenPages::default(),
            is_followed: false,
            baselines: Vec::new(),
            places: Arc::new(places),
        };
        let (ground, _) = watched.look()?;
        watched.memory.expect(&ground.mappings);
        watched.begin_tracking(&ground)?;
        Ok(watched)
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
            if change.refused.iter().any(is_held) {
                std::thread::sleep(HELD_PAUSE)
            } else {
                return refuse(&change.refused);
            }
        }
        let change = self.tracker.arm(&ground.tracked())?;
        refuse(&change.refused)
    }

    /// Watches `placements` from now on, and no others. What is new, or lies elsewhere in the space than it did, counts as
    /// written. On an error all is as it was.
    pub fn set_places(&mut self, placements: &[Placement]) -> Result<(), OwnMemoryError> {
        let places = Places::new(placements)?;
        let ground = Ground::look(self.pid.cast_signed(), &places)?;
        self.claim.change(&places.mapped())?;
        let old = std::mem::replace(&mut self.places, Arc::new(places));
        let looked = self.look();
        let begun = looked.and_then(|_| self.begin_tracking(&ground));
        if let Err(error) = begun {
            self.places = old;
            self.claim.change(&self.places.mapped())?;
            return Err(error);
        }
        let gone: Vec<PageRange> = old
            .mapped()
            .subtract(&self.places.mapped())
            .ranges()
            .to_vec();
        self.tracker.release(&gone)?;
        for placement in self.places.list() {
            let same = old
                .list()
                .iter()
                .filter(|old| old.is_in_line_with(placement));
            let same: PageSet = same
                .filter_map(|old| old.mapped().intersection(placement.mapped()))
                .collect();
            self.told
                .mark_pages(&PageSet::from(placement.mapped()).subtract(&same));
        }
        Ok(())
    }

    pub fn check_pid(&self) -> Result<(), OwnMemoryError> {
        check_pid(self.pid)
    }

    /// What lies under the regions, and what is known of the files there.
    pub fn look(&mut self) -> Result<(Ground, FileReport), OwnMemoryError> {
        if let Some(populating) = &self.populating {
            populating.catch_up();
        }
        let pid = self.pid.cast_signed();
        let ground = Ground::look(pid, &self.places)?;
        let with_file = ground.with_file();
        let report = self.files.look([(pid, &with_file[..])]);
        ground.refuse_devices(&report)?;
        ground.refuse_other_mappings()?;
        Ok((ground, report))
    }

    pub fn tables(&self) -> PageTables<'_> {
        PageTables {
            pagemap: &self.pagemap,
            knows_guards: self.knows_guards,
        }
    }

    /// Where memory comes lazily: has those of `pages` come that are to be read and are still missing. Some ways to read do not
    /// wait for them.
    pub fn bring(&self, pages: &PageSet) -> Result<(), OwnMemoryError> {
        if self.populating.is_some() {
            let tables = self.tables();
            let away = tables.having(pages, Categories::SWAPPED)?;
            let away = away.subtract(&tables.having(&away, Categories::PRESENT)?);
            self.memory.touch(SIZE, away.ranges());
        }
        Ok(())
    }

    /// The same of all memory, once what comes from the snapshot is there.
    pub fn bring_all(&self) -> Result<(), OwnMemoryError> {
        match &self.populating {
            Some(populating) => populating.wait()?,
            None => return Ok(()),
        }
        self.bring(&self.places.mapped())
    }

    /// Harvests, and finds out what else may have been written.
    pub fn observe(&mut self, since: &Reference<'_>) -> Result<Observed, OwnMemoryError> {
        let (ground, report) = self.look()?;
        let pid = self.pid.cast_signed();
        let signs = Signs::look(pid, &ground.mappings, since.has_buffer_rings);
        let harvest = self.tracker.harvest(&ground.tracked())?;
        refuse(&harvest.layout().refused)?;
        let untracked = harvest.layout().refused.iter();
        let untracked = untracked.map(|found| found.pages).collect();
        let told = ReportedWrites::take(&self.told);
        self.is_followed = true;
        self.add_to_baselines(&harvest.written().union(&told.pages), None);
        let before = since.next.map(|next| &next.lengths);
        let (lengths, doubtful) = lengths(&ground, &self.files, before);
        let plan = OwnCopyPlan::new(Known {
            ground: &ground,
            tables: self.tables(),
            files: &self.files,
            report: &report,
            signs,
            written: harvest.written().union(&told.pages),
            fresh: &harvest.layout().fresh,
            untracked: &untracked,
            memo: since.next.map(|next| &next.memo),
            doubtful,
            is_doubtful: since.is_doubtful,
        })?;
        Ok(Observed {
            ground,
            report,
            harvest,
            told,
            plan,
            lengths,
        })
    }

    /// Copies what was observed into `arena`, but for what has the hash that is `known`.
    pub fn copy(
        &self,
        observed: &Observed,
        known: Option<&dyn Fn(PageIndex) -> Option<PageHash>>,
        arena: &mut Arena,
        spill: &mut dyn FnMut(&Arena) -> Result<(), CaptureError>,
    ) -> Result<Taken, OwnMemoryError> {
        let source = PageSource {
            memory: &self.memory,
            pagemap: &self.pagemap,
            known,
            knows_guards: self.knows_guards,
            ask_from: ASK_FROM,
            instead: &HashMap::new(),
        };
        let reader = SharedReader {
            files: &self.files,
            report: &observed.report,
            tables: self.tables(),
            source: &source,
        };
        let plan = &observed.plan;
        self.bring(&plan.read.union(&plan.compare))?;
        let mut copied = Copied::new(arena, spill);
        source.read(&plan.read, &plan.anonymous, &mut copied)?;
        source.compare(&plan.compare, &plan.anonymous, &mut copied)?;
        for piece in &observed.ground.pieces {
            reader.copy(piece, &plan.shared, &mut copied)?;
        }
        let (pages, mut states) = (copied.pages, copied.states);
        let unreadable = copied.unreadable;
        if !unreadable.is_empty() {
            // It may have been unmapped while it was read.
            Ground::look(self.pid.cast_signed(), &self.places)?;
        }
        let guards = self.tables().guards(&unreadable)?.union(&plan.guards);
        for (pages, state) in [
            (&plan.zero, PageState::Zero),
            (&unreadable, PageState::Unbacked),
            (&guards, PageState::Guard),
        ] {
            states.extend(pages.ranges().iter().map(|&range| (range, state)));
        }
        Ok(Taken {
            states,
            copied: pages,
            unreadable,
            guards,
        })
    }

    /// The pages that show nothing that was ever allocated: they are zero, and reading would allocate them.
    pub fn empty(&self, ground: &Ground, report: &FileReport) -> Result<PageSet, OwnMemoryError> {
        let tables = self.tables();
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
}

/// What the tracker cannot watch cannot be captured, but for what would take too many page tables: that is compared.
pub(super) fn refuse(refused_by_tracker: &[Refused]) -> Result<(), OwnMemoryError> {
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
