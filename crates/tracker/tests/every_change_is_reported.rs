//! Prevents: the loss that nobody thought of. Random stores, drops, moves, replacements, protections,
//! guards and forks over a few MiB, with harvests at random moments that are committed, given back or
//! dropped. A store is kept that is only ever updated from committed harvests; after each commit it
//! must equal the memory, byte for byte.

use nix::libc;
use pagetide_kernel::maps::mappings;
use pagetide_kernel::memory::ProcessMemory;
use pagetide_kernel::probe::Probe;
use pagetide_pages::{PageRange, PageSet, PageSize};
use pagetide_testing::{PAGE, READ_WRITE, Region, needs};
use pagetide_tracker::{Backend, SoftDirty, Tracker, WpAsync};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

const PAGES: usize = 1536;

#[derive(Clone, Debug)]
enum Step {
    Store(usize, u8),
    Fill(Range<usize>, u8),
    StoreFromOutside(usize, u8),
    Drop(Range<usize>),
    Replace(Range<usize>),
    Unmap(Range<usize>),
    Move(Range<usize>, usize, bool),
    ReadOnly(Range<usize>),
    PageOut(Range<usize>),
    Guard(Range<usize>),
    Huge(Range<usize>),
    Fork,
    Commit,
    GiveBack,
    Lose,
    NewTracker,
}

fn pages() -> impl Strategy<Value = Range<usize>> {
    let length = prop_oneof![4 => 1..20usize, 1 => 500..1100usize];
    (0..PAGES, length).prop_map(|(start, length)| start..PAGES.min(start + length))
}

fn step() -> impl Strategy<Value = Step> {
    let value = 1..=255u8;
    prop_oneof![
        8 => (0..PAGES, value.clone()).prop_map(|(page, value)| Step::Store(page, value)),
        4 => (pages(), value.clone()).prop_map(|(pages, value)| Step::Fill(pages, value)),
        2 => (0..PAGES, value).prop_map(|(page, value)| Step::StoreFromOutside(page, value)),
        3 => pages().prop_map(Step::Drop),
        2 => pages().prop_map(Step::Replace),
        2 => pages().prop_map(Step::Unmap),
        3 => (pages(), 0..PAGES, any::<bool>()).prop_map(|(from, to, keep)| Step::Move(from, to, keep)),
        2 => pages().prop_map(Step::ReadOnly),
        1 => pages().prop_map(Step::PageOut),
        2 => pages().prop_map(Step::Guard),
        1 => pages().prop_map(Step::Huge),
        1 => Just(Step::Fork),
        6 => Just(Step::Commit),
        2 => Just(Step::GiveBack),
        1 => Just(Step::Lose),
        1 => Just(Step::NewTracker),
    ]
}

/// What a page of the region is, as the test knows it.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Writable,
    ReadOnly,
    Guard,
    Hole,
}

struct World {
    region: Region,
    kinds: Vec<Kind>,
    /// The bytes that the memory must hold.
    truth: Vec<u8>,
    /// The bytes known from committed harvests.
    stored: Vec<u8>,
    backend: Backend,
    tracker: Box<dyn Tracker>,
    memory: ProcessMemory,
}

fn tracker(backend: Backend) -> Box<dyn Tracker> {
    match backend {
        Backend::SoftDirty => Box::new(SoftDirty::of_self().unwrap()),
        _ => Box::new(WpAsync::of_self().unwrap()),
    }
}

impl World {
    fn new(backend: Backend) -> Self {
        Self {
            backend,
            region: Region::filled(PAGES, 1),
            kinds: vec![Kind::Writable; PAGES],
            truth: vec![1; PAGES * PAGE],
            stored: vec![0; PAGES * PAGE],
            tracker: tracker(backend),
            memory: ProcessMemory::open(std::process::id().cast_signed()).unwrap(),
        }
    }

    fn bytes(pages: Range<usize>) -> Range<usize> {
        pages.start * PAGE..pages.end * PAGE
    }

    fn all(&self, pages: &Range<usize>, wanted: impl Fn(Kind) -> bool) -> bool {
        self.kinds[pages.clone()].iter().all(|kind| wanted(*kind))
    }

    /// The pages become new, zero and of this kind.
    fn renew(&mut self, pages: Range<usize>, kind: Kind) {
        self.truth[Self::bytes(pages.clone())].fill(0);
        self.kinds[pages].fill(kind);
    }

    fn listed(&self) -> Vec<PageRange> {
        let all = mappings(std::process::id().cast_signed()).unwrap();
        let ours = self.region.pages();
        let pages = all
            .iter()
            .filter_map(|mapping| mapping.pages().intersection(ours));
        pages.collect()
    }

    fn commit(&mut self) {
        let listed = self.listed();
        let harvest = self.tracker.harvest(&listed).unwrap();
        assert!(
            harvest.layout().refused.is_empty(),
            "{:?}",
            harvest.layout().refused
        );
        let mapped: PageSet = listed.iter().copied().collect();
        // A page that is not mapped has no content: a checkpoint knows that from the layout.
        for page in self
            .region
            .positions(&PageSet::from(self.region.pages()).subtract(&mapped))
        {
            self.stored[Self::bytes(page..page + 1)].fill(0);
        }
        for range in harvest.written().ranges() {
            let first = self.region.positions(&PageSet::from(*range))[0];
            let bytes = Self::bytes(first..first + range.count().0 as usize);
            let out = &mut self.stored[bytes];
            self.memory
                .read_pages(PageSize::KIB_4, &[*range], out)
                .unwrap();
        }
        harvest.commit();
        for page in 0..PAGES {
            let bytes = Self::bytes(page..page + 1);
            let same = self.stored[bytes.clone()] == self.truth[bytes];
            assert!(same, "page {page} was changed and not reported");
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Store(page, value) if self.kinds[page] == Kind::Writable => {
                self.region.store(page, value);
                self.truth[page * PAGE] = value;
            }
            Step::Fill(pages, value) if self.all(&pages, |kind| kind == Kind::Writable) => {
                self.region.fill(pages.clone(), value);
                self.truth[Self::bytes(pages)].fill(value);
            }
            Step::StoreFromOutside(page, value)
                if matches!(self.kinds[page], Kind::Writable | Kind::ReadOnly) =>
            {
                let offset = page * PAGE + 17;
                self.memory
                    .write(self.region.start() + offset as u64, &[value])
                    .unwrap();
                self.truth[offset] = value;
            }
            Step::Drop(pages) if self.all(&pages, |kind| kind == Kind::Writable) => {
                self.region
                    .advise(pages.clone(), libc::MADV_DONTNEED)
                    .unwrap();
                self.renew(pages, Kind::Writable);
            }
            Step::Replace(pages) => {
                self.region.replace(pages.clone());
                self.renew(pages, Kind::Writable);
            }
            Step::Unmap(pages) => {
                self.region.unmap(pages.clone());
                self.renew(pages, Kind::Hole);
            }
            Step::Move(from, to, keep) => self.move_pages(from, to, keep),
            Step::ReadOnly(pages) if self.all(&pages, |kind| kind == Kind::Writable) => {
                self.region.protect(pages.clone(), libc::PROT_READ);
                self.kinds[pages].fill(Kind::ReadOnly);
            }
            Step::ReadOnly(pages) if self.all(&pages, |kind| kind == Kind::ReadOnly) => {
                self.region.protect(pages.clone(), READ_WRITE);
                self.kinds[pages].fill(Kind::Writable);
            }
            Step::PageOut(pages) if self.all(&pages, |kind| kind == Kind::Writable) => {
                self.region.advise(pages, libc::MADV_PAGEOUT).unwrap();
            }
            Step::Guard(pages) => self.guard(pages),
            Step::Huge(pages) => {
                // The kernel may refuse, where there is a hole or nothing like it.
                let _ = self.region.advise(pages, libc::MADV_HUGEPAGE);
            }
            Step::Fork => {
                let (region, kinds) = (&self.region, &self.kinds);
                let ended = pagetide_testing::child::run_to_end(|| {
                    let writable = |page: &usize| kinds[*page] == Kind::Writable;
                    (0..PAGES)
                        .step_by(7)
                        .filter(writable)
                        .for_each(|page| region.store(page, 99));
                    0
                });
                assert_eq!(ended, Ok(0));
            }
            Step::Commit => self.commit(),
            Step::GiveBack => {
                let listed = self.listed();
                let _ = self.tracker.harvest(&listed).unwrap().give_back();
            }
            Step::Lose => {
                let listed = self.listed();
                let harvest = self.tracker.harvest(&listed).unwrap();
                // Something happens before the loss is noticed.
                self.run(Step::Replace(3..5));
                drop(harvest);
            }
            Step::NewTracker => self.tracker = tracker(self.backend),
            _ => {}
        }
    }

    fn move_pages(&mut self, from: Range<usize>, to: usize, keep: bool) {
        let target = to..to + from.len();
        let apart = target.end <= from.start || from.end <= target.start;
        // One mapping at a time can be moved: make it one that is of one kind, and new.
        if target.end > PAGES || !apart || !self.all(&from, |kind| kind == Kind::Writable) {
            return;
        }
        self.region.replace(from.clone());
        self.renew(from.clone(), Kind::Writable);
        let value = to as u8 | 1;
        self.region.fill(from.clone(), value);
        self.region.move_to(from.clone(), &self.region, to, keep);
        self.renew(from, if keep { Kind::Writable } else { Kind::Hole });
        self.renew(target.clone(), Kind::Writable);
        self.truth[Self::bytes(target)].fill(value);
    }

    fn guard(&mut self, pages: Range<usize>) {
        if self.all(&pages, |kind| kind == Kind::Writable) {
            if self
                .region
                .advise(pages.clone(), pagetide_testing::MADV_GUARD_INSTALL)
                .is_ok()
            {
                self.renew(pages, Kind::Guard);
            }
        } else if self.all(&pages, |kind| matches!(kind, Kind::Guard | Kind::Writable)) {
            self.region
                .advise(pages.clone(), pagetide_testing::MADV_GUARD_REMOVE)
                .unwrap();
            for page in pages {
                if self.kinds[page] == Kind::Guard {
                    self.renew(page..page + 1, Kind::Writable);
                }
            }
        }
    }
}

fn every_changed_page_is_in_a_committed_harvest(backend: Backend) {
    // One at a time: a child that one test makes would keep the userfaultfd of the other open.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let cases = std::env::var("PAGETIDE_CASES").ok();
    let config = Config {
        cases: cases.map_or(60, |cases| cases.parse().expect("a number")),
        failure_persistence: None,
        max_shrink_iters: 300,
        ..Config::default()
    };
    let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, random);
    let steps = proptest::collection::vec(step(), 1..120);
    let result = runner.run(&steps, |steps| {
        let mut world = World::new(backend);
        steps.into_iter().for_each(|step| world.run(step));
        world.commit();
        Ok(())
    });
    result.unwrap();
}

mod wp_async {
    use super::*;

    #[test]
    fn every_changed_page_is_reported() {
        needs!(wp_async);
        every_changed_page_is_in_a_committed_harvest(Backend::WpAsync);
    }
}

mod soft_dirty {
    use super::*;

    #[test]
    fn every_changed_page_is_reported() {
        match Probe::of_this_kernel().soft_dirty {
            Ok(()) => every_changed_page_is_in_a_committed_harvest(Backend::SoftDirty),
            Err(reason) => {
                pagetide_testing::skipped("soft_dirty::every_changed_page_is_reported", &reason)
            }
        }
    }
}
