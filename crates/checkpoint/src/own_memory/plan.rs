//! Which pages of own memory to copy: what the tracker says, what it cannot know, and what is proved to be unchanged.

use super::ground::{Ground, Kind};
use crate::capture::CaptureError;
use crate::compared::ComparedBecause;
use crate::files::{self, FileKey, FileReport, Files, Stamps};
use crate::page_tables::{PageTables, Private};
use crate::rings::{self, Depth};
use pagetide_kernel::maps::Mapping;
use pagetide_pages::{PageRange, PageSet};
use std::collections::{HashMap, HashSet};

/// What may change memory of this process with no page fault, at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Signs {
    /// Registered I/O buffers.
    pub buffers: PageSet,
    /// Reads by the kernel may be under way, and land after they were seen.
    pub under_way: bool,
    /// A ring or a device may write to memory that nothing lists: nothing that the tracker says is enough.
    pub unlisted: Option<ComparedBecause>,
}

impl Signs {
    /// Looks at the descriptors and mappings of process `pid`, which is this one. If it `has_buffer_rings`, they may lie in
    /// the memory.
    pub fn look(pid: i32, mappings: &[Mapping], has_buffer_rings: bool) -> Self {
        let io = rings::asynchronous_io(pid, mappings, Depth::Shallow);
        let buffer_ring = has_buffer_rings.then_some(ComparedBecause::BufferRing);
        Self {
            under_way: io.any || rings::reads_directly(pid),
            unlisted: io.unlisted.into_iter().next().or(buffer_ring),
            buffers: io.buffers,
        }
    }
}

/// What one snapshot has to remember for the next.
#[derive(Clone, Debug, Default)]
pub(super) struct Memo {
    /// Registered I/O buffers: the kernel may write to them without a trace.
    buffers: PageSet,
    /// What was mapped anew while there were such buffers, wherever: mremap(2) takes pinned pages along, and they
    /// stay listed at their old addresses.
    moved: PageSet,
    /// What was written by the time of this snapshot, if reads were under way that may still land in it.
    in_flight: PageSet,
    /// A ring or a device might write to memory that nothing listed.
    unlisted: bool,
    /// Where files showed, which, and from where on: the page of the file that page 0 would show.
    shown: HashMap<(FileKey, u64), PageSet>,
    /// The files that nobody could have changed without a trace.
    settled: HashSet<Stamps>,
}

impl Memo {
    /// Those of `pages` that showed the same of the same file as `mapping` does, if that file is what it was: it is then
    /// among the `settled`.
    fn shown_still(
        &self,
        mapping: &Mapping,
        pages: PageRange,
        report: &FileReport,
        settled: &HashSet<&Stamps>,
    ) -> PageSet {
        if !report.unchanged_since(mapping, settled) {
            return PageSet::new();
        }
        let what = (files::key(mapping), origin(mapping));
        let same = self.shown.get(&what);
        same.map_or_else(PageSet::new, |shown| shown.within(pages))
    }
}

/// The byte of the file that address 0 would show.
fn origin(mapping: &Mapping) -> u64 {
    mapping.offset_bytes.wrapping_sub(mapping.start)
}

/// What is known when a capture begins.
pub(super) struct Known<'a> {
    pub ground: &'a Ground,
    pub tables: PageTables<'a>,
    pub files: &'a Files,
    pub report: &'a FileReport,
    pub signs: Signs,
    /// What the tracker says, and what was told.
    pub written: PageSet,
    /// Of this, what was mapped since the last harvest.
    pub fresh: &'a PageSet,
    /// What the tracker does not watch.
    pub untracked: &'a PageSet,
    /// What is remembered from the parent; `None` if there is no parent.
    pub memo: Option<&'a Memo>,
    /// Shared memory that is tracked and cannot be believed this time.
    pub doubtful: PageSet,
    /// Nothing can be believed this time.
    pub is_doubtful: bool,
}

/// Which pages to copy. What is in none of the sets is what it was.
pub(super) struct OwnCopyPlan {
    /// Private pages to copy whatever they hold.
    pub read: PageSet,
    /// Private pages to compare with the parent.
    pub compare: PageSet,
    /// Those among them where a slot of the page table that is empty means zeros.
    pub anonymous: PageSet,
    /// Shared pages to compare with the parent.
    pub shared: PageSet,
    /// Pages that are zeros.
    pub zero: PageSet,
    /// Guard regions over files.
    pub guards: PageSet,
    /// Why memory that could be tracked is compared.
    pub compared_because: Option<ComparedBecause>,
    pub memo: Memo,
}

impl OwnCopyPlan {
    pub fn new(known: Known<'_>) -> Result<Self, CaptureError> {
        let ground = known.ground;
        let signs = known.signs;
        let is_unlisted = signs.unlisted.is_some();
        let private = ground.pages(|kind| kind == Kind::Private);
        let alone = ground.pages(|kind| kind == Kind::SharedAlone);
        let huge = ground.pages(|kind| kind == Kind::Huge);
        let mut written = known.written.union(&signs.buffers);
        let compared_because = match known.memo {
            None => None,
            Some(memo) => {
                let before = memo.unlisted.then_some(ComparedBecause::UnlistedRingBefore);
                signs.unlisted.or(before)
            }
        };
        let mut moved = PageSet::new();
        match known.memo {
            None => written = private.union(&alone),
            Some(memo) => {
                let unseen = memo.buffers.union(&memo.moved).union(&memo.in_flight);
                written = written.union(&unseen);
                if !signs.buffers.is_empty() {
                    moved = memo.moved.union(known.fresh);
                }
            }
        }
        let read = written.intersect(&private);
        let mut shared = ground
            .pages(|kind| kind == Kind::Shared)
            .union(&written.union(&known.doubtful).intersect(&alone))
            .union(&known.untracked.intersect(&alone));
        let untracked = known.untracked.intersect(&private);
        let mut compare = huge.union(&untracked.subtract(&read));
        if compared_because.is_some() || known.is_doubtful {
            compare = compare.union(&private.subtract(&read));
            shared = shared.union(&alone);
        }
        let memo = Memo {
            buffers: signs.buffers,
            moved,
            in_flight: if signs.under_way {
                known.written
            } else {
                PageSet::new()
            },
            unlisted: is_unlisted,
            shown: HashMap::new(),
            settled: known.report.settled().into_iter().collect(),
        };
        let mut plan = Self {
            read,
            compare,
            anonymous: private.union(&huge),
            shared,
            zero: PageSet::new(),
            guards: PageSet::new(),
            compared_because,
            memo,
        };
        let over_file = ground.pages(|kind| kind == Kind::OverFile);
        if !over_file.is_empty() {
            let told = known.tables.private_pages(&over_file)?;
            plan.add_over_file(ground, &told, known.files, known.report, known.memo);
        }
        Ok(plan)
    }

    /// Adds what lies over files: copies are compared, and so is what the files show unless it is proved to be what
    /// it was. Reading what a file in memory has not got would allocate it.
    fn add_over_file(
        &mut self,
        ground: &Ground,
        told: &Private,
        files: &Files,
        report: &FileReport,
        memo: Option<&Memo>,
    ) {
        let over_file = ground
            .pieces
            .iter()
            .filter(|piece| piece.kind == Kind::OverFile);
        let settled = memo.map(|memo| memo.settled.iter().collect::<HashSet<&Stamps>>());
        let (mut zero, mut compare) = (Vec::new(), Vec::new());
        for piece in over_file {
            let pages = PageSet::from(piece.pages);
            let copies = told.copies.within(piece.pages);
            let shows = pages
                .subtract(&copies)
                .subtract(&told.guards.within(piece.pages));
            let mut doubtful = shows.clone();
            if let (Some(memo), Some(settled)) = (memo, &settled) {
                let same = memo.shown_still(&piece.mapping, piece.pages, report, settled);
                doubtful = doubtful.subtract(&same);
            }
            let holes = files.holes_in(&piece.mapping, report);
            let holes = holes.within(piece.pages).intersect(&doubtful);
            doubtful = doubtful.subtract(&holes);
            zero.extend_from_slice(holes.ranges());
            compare.extend_from_slice(copies.ranges());
            compare.extend_from_slice(doubtful.ranges());
            self.memo.remember_shown(&piece.mapping, &shows);
        }
        self.zero = self.zero.union(&zero.into_iter().collect());
        self.compare = self.compare.union(&compare.into_iter().collect());
        self.guards = told.guards.clone();
    }
}

impl Memo {
    fn remember_shown(&mut self, mapping: &Mapping, pages: &PageSet) {
        let what = (files::key(mapping), origin(mapping));
        let shown = self.shown.entry(what).or_default();
        shown.extend(pages.ranges().iter().copied());
    }
}
