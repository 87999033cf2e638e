//! The memory that a scenario works on, the tracker that watches it, and the truth: the contents of all
//! of its pages, compared before and after by hash.

use super::calls;
use pagetide_kernel::maps::mappings;
use pagetide_kernel::memory::ProcessMemory;
use pagetide_kernel::pagemap_scan::Pagemap;
use pagetide_kernel::probe::Probe;
use pagetide_pages::{PageIndex, PageRange, PageSet, PageSize};
use pagetide_testing::Region;
use pagetide_tracker::{Backend, Harvest, SoftDirty, Tracker, WpAsync};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// Nothing ever: zeros.
    Zero,
    /// Bytes with this hash, not all zero.
    Bytes(u64),
    /// It cannot be read.
    Unreadable,
}

/// Soft-dirty bits belong to the whole process, so there is one scenario at a time, and no child of another
/// test in it.
pub struct World {
    pub tracker: Box<dyn Tracker>,
    name: String,
    areas: Vec<PageRange>,
    before: BTreeMap<PageIndex, Content>,
    memory: ProcessMemory,
    pagemap: Pagemap,
    _alone: MutexGuard<'static, ()>,
}

/// A tracker of this process.
fn tracker(backend: Backend) -> Box<dyn Tracker> {
    match backend {
        Backend::WpAsync => Box::new(WpAsync::of_self().unwrap()),
        Backend::SoftDirty => Box::new(SoftDirty::of_self().unwrap()),
        other => panic!("{other} has no tracker"),
    }
}

/// Runs a scenario by a backend, if this kernel has that.
pub fn run(backend: Backend, name: &str, scenario: fn(&mut World)) {
    static ALONE: Mutex<()> = Mutex::new(());
    static PROBE: OnceLock<Probe> = OnceLock::new();
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // Probing clears soft-dirty bits.
    let probe = PROBE.get_or_init(Probe::of_this_kernel);
    let module = backend.name().replace('-', "_");
    let name = format!("{module}::{name}");
    let usable = match backend {
        Backend::WpAsync => &probe.wp_async,
        _ => &probe.soft_dirty,
    };
    if let Err(reason) = usable {
        return pagetide_testing::skipped(&name, reason);
    }
    scenario(&mut World {
        tracker: tracker(backend),
        name,
        areas: Vec::new(),
        before: BTreeMap::new(),
        memory: ProcessMemory::open(std::process::id().cast_signed()).unwrap(),
        pagemap: Pagemap::of_self().unwrap(),
        _alone: alone,
    });
}

impl World {
    /// Says that the scenario cannot go on here.
    pub fn skip(&self, reason: &str) {
        pagetide_testing::skipped(&self.name, reason);
    }

    /// From now on this region belongs to the world, mapped or not.
    pub fn watch(&mut self, region: &Region) {
        self.areas.push(region.pages());
    }

    /// As [`World::watch`], for addresses that are no region.
    pub fn watch_pages(&mut self, pages: PageRange) {
        self.areas.push(pages);
    }

    /// `pages` of private memory, filled, and all that is known committed.
    pub fn settled(&mut self, pages: usize, value: u8) -> Region {
        let region = Region::filled(pages, value);
        self.watch(&region);
        self.settle();
        region
    }

    /// Commits everything.
    pub fn settle(&mut self) {
        self.check();
    }

    /// The mapped parts of the world.
    pub fn listed(&self) -> Vec<PageRange> {
        let all = mappings(std::process::id().cast_signed()).unwrap();
        let pages = all.iter().map(|mapping| mapping.pages());
        let parts = pages.flat_map(|pages| {
            let common = self.areas.iter().map(move |area| area.intersection(pages));
            common.flatten().collect::<Vec<_>>()
        });
        let mut parts: Vec<PageRange> = parts.collect();
        parts.sort_unstable();
        parts
    }

    pub fn harvest(&mut self) -> Harvest {
        let listed = self.listed();
        self.tracker.harvest(&listed).unwrap()
    }

    /// Harvests and commits, and holds the truth against it. Gives the pages whose content changed, or
    /// that were not mapped before.
    #[track_caller]
    pub fn check(&mut self) -> PageSet {
        let harvest = self.harvest();
        let refused: PageSet = harvest.layout().refused.iter().map(|r| r.pages).collect();
        let known = harvest.written().union(&refused);
        harvest.commit();
        let now = self.contents();
        let differs =
            |(page, content): &(&PageIndex, &Content)| self.before.get(page) != Some(*content);
        let changed = now.iter().filter(differs);
        let changed: PageSet = changed.map(|(page, _)| PageRange::single(*page)).collect();
        let missed = changed.subtract(&known);
        assert!(
            missed.is_empty(),
            "{}: {missed:?} changed and is not reported",
            self.name
        );
        self.before = now;
        changed
    }

    /// As [`World::check`]; so many pages must have changed.
    #[track_caller]
    pub fn expect(&mut self, pages: u64) {
        let changed = self.check();
        assert_eq!(
            changed.count().0,
            pages,
            "{}: {changed:?} changed",
            self.name
        );
    }

    /// What is reported when nothing happens.
    pub fn reported(&mut self) -> PageSet {
        let harvest = self.harvest();
        let written = harvest.written().clone();
        harvest.commit();
        written
    }

    fn contents(&self) -> BTreeMap<PageIndex, Content> {
        let mut contents = BTreeMap::new();
        for range in self.listed() {
            let entries = self.pagemap.entries(range).unwrap();
            let file = calls::has_file(range.start());
            for (page, entry) in range.pages().zip(entries) {
                // A page that was never touched is not touched here either.
                let empty = !file && !entry.is_present() && !entry.is_swapped();
                let content = if empty {
                    Content::Zero
                } else {
                    self.content(page)
                };
                contents.insert(page, content);
            }
        }
        contents
    }

    fn content(&self, page: PageIndex) -> Content {
        let mut bytes = vec![0; pagetide_testing::PAGE];
        let one = [PageRange::single(page)];
        let unreadable = self.memory.read_pages(PageSize::KIB_4, &one, &mut bytes);
        if !unreadable.unwrap().is_empty() {
            return Content::Unreadable;
        }
        if bytes.iter().all(|byte| *byte == 0) {
            return Content::Zero;
        }
        let mut hasher = DefaultHasher::new();
        hasher.write(&bytes);
        Content::Bytes(hasher.finish())
    }
}
