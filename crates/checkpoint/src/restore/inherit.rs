//! Memory that fork(2) left shared between the processes of a tree, shared again. Pages of a child that are those of its
//! parent, or of the child before it, at the same address, are mapped and filled in this process before it forks the new
//! ones. Each of these keeps what is its own of that when it is emptied, and is not filled there: what it keeps it shares with
//! its relatives, until somebody writes, as it was.
//!
//! What is mapped in this process itself lies where nothing of it is. Should a region of the snapshot fall on something of
//! ours, which by chance is rare, it is filled in each process as if nothing were shared.

use super::error::RestoreError;
use super::mappings;
use super::plan::RestorePlan;
use super::sources::{SourceNumber, Sources};
use crate::advice::DROPPABLE;
use crate::capture::SIZE;
use crate::manifest::tree_of;
use pagetide_kernel::inherited::{Inherited, MapArguments};
use pagetide_kernel::memory::ProcessMemory;
use pagetide_pages::{PageRange, PageSet};
use pagetide_snapshot::{Backing, Capture, PageContent, PageState, Region, Sharing, View};
use std::collections::HashMap;

/// What one new process has from its birth on.
#[derive(Default)]
pub(super) struct Share {
    /// Parts of its regions that are mapped.
    pub kept: PageSet,
    /// Of these, pages that hold what they are to hold.
    pub filled: PageSet,
    /// Pages that hold something, and are to hold nothing of their own.
    pub dropped: PageSet,
}

/// See the head of this file.
#[derive(Default)]
pub(super) struct Inheritance {
    shares: HashMap<i32, Share>,
}

/// A region, or a part of one, that is mapped before the processes are born.
struct Extent {
    region: Region,
    pages: PageRange,
}

impl Inheritance {
    /// Maps and fills what the processes of `plans` have in common. It has to stay mapped until they are born.
    pub fn prepare(
        view: &View,
        plans: &[RestorePlan<'_>],
        sources: &Sources,
    ) -> Result<(Self, Inherited), RestoreError> {
        let mut common = Common::default();
        let parents: HashMap<i32, i32> = tree_of(view)
            .unwrap_or_default()
            .iter()
            .map(|process| (process.pid, process.parent))
            .collect();
        for (number, plan) in plans.iter().enumerate() {
            let parent = parents.get(&plan.pid).copied();
            let is_parent = |other: &&RestorePlan<'_>| Some(other.pid) == parent;
            let is_sibling = |other: &&RestorePlan<'_>| parents.get(&other.pid).copied() == parent;
            let earlier = &plans[..number];
            let relatives = [
                earlier.iter().find(is_parent),
                earlier.iter().rev().find(is_sibling),
            ];
            for relative in relatives.into_iter().flatten() {
                common.find(view, relative, plan, sources);
            }
        }
        common.fill(view)?;
        let shares = plans
            .iter()
            .map(|plan| (plan.pid, common.share(view, plan)));
        let inheritance = Self {
            shares: shares.collect(),
        };
        Ok((inheritance, common.inherited))
    }

    /// What the process that had pid `pid` has from its birth on.
    pub fn of(&self, pid: i32) -> Option<&Share> {
        self.shares.get(&pid)
    }
}

/// What is mapped, and whose pages it holds.
#[derive(Default)]
struct Common {
    inherited: Inherited,
    extents: Vec<Extent>,
    /// Pages by the space that they come from. No page is in two.
    pages: HashMap<usize, PageSet>,
    taken: PageSet,
}

impl Common {
    /// Takes the pages in which two processes are equal, and maps what they lie in.
    fn find(
        &mut self,
        view: &View,
        one: &RestorePlan<'_>,
        other: &RestorePlan<'_>,
        sources: &Sources,
    ) {
        for region in one.regions.iter().filter(|region| can_be_inherited(region)) {
            let from = other
                .regions
                .partition_point(|found| found.pages.end() <= region.pages.start());
            let mut equal = PageSet::new();
            for found in &other.regions[from..] {
                let Some(part) = found.pages.intersection(region.pages) else {
                    break;
                };
                if can_be_inherited(found) && is_like(region, found) {
                    let pages = PageSet::from(part).subtract(&self.taken);
                    equal = equal.union(&equal_pages(view, one.space, other.space, &pages));
                }
            }
            if equal.is_empty() {
                continue;
            }
            self.map(region, sources);
            let mapped: PageSet = self
                .extents
                .iter()
                .filter(|extent| is_like(&extent.region, region))
                .map(|extent| extent.pages)
                .collect();
            let equal = equal.intersect(&mapped);
            self.taken = self.taken.union(&equal);
            let of_space = self.pages.entry(one.space).or_default();
            *of_space = of_space.union(&equal);
        }
    }

    /// Maps what is not mapped yet of a region.
    fn map(&mut self, region: &Region, sources: &Sources) {
        let mapped: PageSet = self.extents.iter().map(|extent| extent.pages).collect();
        for &pages in PageSet::from(region.pages).subtract(&mapped).ranges() {
            let region = mappings::part_of(region, pages);
            let source = match sources.of(&region) {
                Some(SourceNumber::File(number)) => Some(number),
                Some(SourceNumber::Segment(_)) => continue,
                None if region.backing == Backing::Anonymous => None,
                None => continue,
            };
            let [address, length, protection, flags, _, offset] =
                mappings::mmap_arguments(&region, source);
            let number = |word: u64| i32::try_from(word).unwrap_or(0);
            let wanted = MapArguments {
                address,
                length: usize::try_from(length).unwrap_or(0),
                protection: number(protection),
                flags: number(flags),
                file: source.map(|source| (source, offset.cast_signed())),
            };
            match self.inherited.map(&wanted) {
                Ok(()) => self.extents.push(Extent { region, pages }),
                Err(error) => {
                    tracing::debug!(%error, address, "not shared again");
                }
            }
        }
    }

    /// Writes the pages.
    fn fill(&self, view: &View) -> Result<(), RestoreError> {
        let memory = ProcessMemory::open(std::process::id().cast_signed())?;
        for (&space, pages) in &self.pages {
            view.read_ranges_parallel::<RestoreError>(
                space,
                pages.ranges(),
                0,
                |pages, content| {
                    if let PageContent::Bytes(bytes) = content {
                        memory.write(SIZE.address_of(pages.start()), bytes)?;
                    }
                    Ok(())
                },
            )?;
        }
        Ok(())
    }

    /// What `plan` has of it.
    fn share(&self, view: &View, plan: &RestorePlan<'_>) -> Share {
        let mut share = Share::default();
        for extent in &self.extents {
            let from = plan
                .regions
                .partition_point(|region| region.pages.end() <= extent.pages.start());
            for region in &plan.regions[from..] {
                let Some(part) = region.pages.intersection(extent.pages) else {
                    break;
                };
                if !can_be_inherited(region) || !is_like(region, &extent.region) {
                    continue;
                }
                let mut filled = PageSet::new();
                for (&space, pages) in &self.pages {
                    let pages = pages.within(part);
                    let equal = if space == plan.space {
                        pages
                    } else {
                        equal_pages(view, space, plan.space, &pages)
                    };
                    filled = filled.union(&equal);
                }
                if filled.is_empty() {
                    continue;
                }
                let data = data_in(view, plan.space, &PageSet::from(part));
                let others = self.taken.within(part).subtract(&filled);
                share.dropped = share.dropped.union(&others.subtract(&data));
                share.filled = share.filled.union(&filled);
                share.kept.insert(part);
            }
        }
        share
    }
}

/// True if fork(2) gives a region on as it is, and nothing but its pages, protection and advice have to be right.
fn can_be_inherited(region: &Region) -> bool {
    let not_so = [
        "growsdown",
        "hugetlb",
        "dontfork",
        "wipeonfork",
        "locked",
        DROPPABLE,
    ];
    let is_plain = !region
        .advice
        .iter()
        .any(|advice| not_so.contains(&advice.as_str()));
    let by_kind = match &region.backing {
        Backing::Anonymous => true,
        Backing::File { path, .. } => !path.starts_with(b"/anon_hugepage"),
        Backing::SharedMemory { .. } | Backing::Kernel => false,
    };
    let is_captured = region.capture == Capture::Captured && region.shows.is_none();
    is_plain && by_kind && is_captured && region.sharing == Sharing::Private
}

/// True if a page of one region can stand for the page at the same address of another: they map the same, and what the
/// kernel keeps of how they were mapped is the same.
fn is_like(one: &Region, other: &Region) -> bool {
    let shown = |region: &Region| match region.backing {
        Backing::File {
            device,
            inode,
            offset_bytes,
            ..
        } => {
            let start = SIZE.address_of(region.pages.start());
            Some((device, inode, offset_bytes.wrapping_sub(start)))
        }
        _ => None,
    };
    let reserves = |region: &Region| region.advice.iter().any(|advice| advice == "noreserve");
    let was_writable = |region: &Region| {
        region.protection.write || region.advice.iter().any(|advice| advice == "accounted")
    };
    shown(one) == shown(other)
        && reserves(one) == reserves(other)
        && was_writable(one) == was_writable(other)
}

/// The pages of `pages` that a space has bytes of.
fn data_in(view: &View, space: usize, pages: &PageSet) -> PageSet {
    let runs = pages
        .ranges()
        .iter()
        .flat_map(|&range| view.runs(space, range));
    let data = runs.filter(|(_, state)| *state == PageState::Data);
    data.map(|(pages, _)| pages).collect()
}

/// The pages of `pages` in which two spaces have the same bytes.
fn equal_pages(view: &View, one: usize, other: usize, pages: &PageSet) -> PageSet {
    let both = data_in(view, one, pages);
    let both = data_in(view, other, &both);
    let is_equal = |page: &_| view.page_hash(one, *page) == view.page_hash(other, *page);
    let equal = both.ranges().iter().flat_map(|range| range.pages());
    equal.filter(is_equal).map(PageRange::single).collect()
}
