//! The way back along a chain, from its newest snapshot on: the first record of a page that is met is the one that holds, so
//! each file is looked at once, and what is not needed of it is let go of at once. A page is only looked for as long as it is in
//! captured regions of every snapshot on the way: one that was not part of a snapshot never comes back from further down.
//!
//! Where the record of a page is a difference, that page is looked for on: the next record of it that is met is what the
//! difference is to. What is found so is a layer beneath what was found before (see `beneath`).

use crate::beneath::Beneath;
use crate::differences::DEPTH_MAX;
use crate::format::index::{Index, Run};
use crate::format::metadata::captured;
use crate::kept::CompactIndex;
use crate::layer::Layer;
use crate::model::{Capture, PageState, Region, Space};
use crate::runs::{self, Resolved};
use pagetide_pages::{PageIndex, PageRange};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

/// See the head of this file.
pub struct Back {
    spaces: Vec<Space>,
    looked_for: Vec<LookedFor>,
    /// The files that pages are taken from, newest first.
    layers: Vec<Arc<Layer>>,
}

/// What is not found yet of a space of the newest snapshot, and what is.
struct LookedFor {
    /// Where each range of pages ends, by where it begins, and what is looked for of them: 0 for the pages themselves, 1 for
    /// what their differences are to, and so on.
    open: BTreeMap<u64, (u64, usize)>,
    /// By that number.
    found: Vec<Vec<Resolved>>,
    /// The regions of the snapshots that were passed, where they changed.
    layouts: Vec<Vec<Region>>,
}

/// What a chain comes to.
pub struct Arrived {
    pub spaces: Vec<Space>,
    /// By space.
    pub runs: Vec<Vec<Resolved>>,
    /// By space.
    pub beneath: Vec<Beneath>,
    /// Oldest first.
    pub layers: Vec<Arc<Layer>>,
}

impl Back {
    /// On the way from a snapshot with these spaces.
    pub fn from(spaces: Vec<Space>) -> Self {
        let all = spaces.iter().map(|space| LookedFor {
            open: captured(space)
                .map(|p| (p.start().0, (p.end().0, 0)))
                .collect(),
            found: vec![Vec::new()],
            layouts: Vec::new(),
        });
        Self {
            looked_for: all.collect(),
            spaces,
            layers: Vec::new(),
        }
    }

    /// True if nothing is looked for any more.
    pub fn is_done(&self) -> bool {
        self.looked_for.iter().all(LookedFor::is_done)
    }

    /// Passes a snapshot with these spaces; `layer` makes of what is needed of its index what is kept.
    pub fn step(
        &mut self,
        spaces: &[Space],
        index: Index,
        layer: impl FnOnce(CompactIndex) -> Layer,
    ) {
        let number = self.layers.len() as u32;
        let own: HashMap<_, _> = spaces.iter().map(key).zip(0u32..).collect();
        let mut needed: Vec<Range<u64>> = Vec::new();
        let all = CompactIndex::all(index.frames, index.hashes);
        for (space, one) in self.spaces.iter().zip(&mut self.looked_for) {
            // A space that was not there has nothing from before.
            let Some(&position) = own.get(&key(space)) else {
                one.open.clear();
                continue;
            };
            if one.is_done() {
                continue;
            }
            for run in runs_of(&index.runs, position) {
                one.take(run, number, &all, &mut needed);
            }
            one.pass(&spaces[position as usize]);
        }
        if needed.is_empty() {
            return;
        }
        let count = needed.iter().map(|range| range.end - range.start).sum();
        let kept = if all.is_mostly_unneeded(count) {
            all.only(needed)
        } else {
            all
        };
        self.layers.push(Arc::new(layer(kept)));
    }

    /// What was found.
    pub fn arrive(self) -> Arrived {
        let last = (self.layers.len() as u32).saturating_sub(1);
        let in_order = |mut found: Vec<Resolved>| {
            found.sort_unstable_by_key(|run| run.pages.start());
            let mut joined = Vec::with_capacity(found.len());
            for mut run in found {
                if run.state.is_hashed() {
                    run.layer = last - run.layer;
                }
                runs::push(&mut joined, run);
            }
            joined
        };
        let (mut runs, mut beneath) = (Vec::new(), Vec::new());
        for one in self.looked_for {
            let mut levels = one.found.into_iter().map(in_order);
            runs.push(levels.next().unwrap_or_default());
            beneath.push(levels.collect());
        }
        Arrived {
            runs,
            beneath,
            layers: self.layers.into_iter().rev().collect(),
            spaces: self.spaces,
        }
    }
}

impl LookedFor {
    fn is_done(&self) -> bool {
        self.open.is_empty()
    }

    /// Takes of a run what is looked for, and notes which stored pages or hashes that are. Which of its pages are differences
    /// `kept` knows.
    fn take(&mut self, run: &Run, number: u32, kept: &CompactIndex, needed: &mut Vec<Range<u64>>) {
        let layer = if run.state.is_hashed() { number } else { 0 };
        let whole = Resolved {
            pages: run.pages,
            state: run.state,
            layer,
            ordinal: run.ordinal,
        };
        let mut parts = vec![whole];
        // Other states can be in any region.
        if matches!(run.state, PageState::Shown | PageState::File) {
            for regions in &self.layouts {
                let kept = parts.into_iter().flat_map(|part| admitted(regions, part));
                parts = kept.collect();
            }
        }
        for part in parts {
            self.take_part(part, kept, needed);
        }
    }

    fn take_part(&mut self, part: Resolved, kept: &CompactIndex, needed: &mut Vec<Range<u64>>) {
        // What this file has differences to is in an older one.
        let mut below: Vec<(PageRange, usize)> = Vec::new();
        for (pages, level) in cut_out(&mut self.open, part.pages) {
            let Some(found) = part.cut(pages) else {
                continue;
            };
            if found.state.is_hashed() {
                needed.push(found.ordinal..found.ordinal + found.pages.count().0);
            }
            // What is deeper is not looked for, and so found to be missing.
            if level < DEPTH_MAX {
                below.extend(found.differing(kept).map(|pages| (pages, level + 1)));
            }
            self.found[level].push(found);
        }
        for (pages, level) in below {
            if self.found.len() == level {
                self.found.push(Vec::new());
            }
            self.open.insert(pages.start().0, (pages.end().0, level));
        }
    }

    /// From here on only what these regions have is looked for.
    fn pass(&mut self, space: &Space) {
        if self.layouts.last() == Some(&space.regions) {
            return;
        }
        self.layouts.push(space.regions.clone());
        let mut left = BTreeMap::new();
        for region in captured(space) {
            for (pages, level) in cut_out(&mut self.open, region) {
                left.insert(pages.start().0, (pages.end().0, level));
            }
        }
        self.open = left;
    }
}

/// The parts of a run in captured regions that can have pages in its state.
fn admitted(regions: &[Region], run: Resolved) -> impl Iterator<Item = Resolved> + '_ {
    let first = regions.partition_point(|region| region.pages.end() <= run.pages.start());
    let touching = regions[first..]
        .iter()
        .take_while(move |region| region.pages.start() < run.pages.end());
    touching
        .filter(move |region| region.capture == Capture::Captured && region.admits(run.state))
        .filter_map(move |region| run.cut(region.pages))
}

/// What makes spaces of two snapshots the same.
fn key(space: &Space) -> (&str, usize) {
    (space.name.as_str(), space.page_size.len())
}

/// The runs of one space.
fn runs_of(runs: &[Run], space: u32) -> &[Run] {
    let first = runs.partition_point(|run| run.space < space);
    let rest = &runs[first..];
    &rest[..rest.partition_point(|run| run.space == space)]
}

/// Takes `pages` out of ascending ranges; what was there of them, and what each range is marked with.
fn cut_out(open: &mut BTreeMap<u64, (u64, usize)>, pages: PageRange) -> Vec<(PageRange, usize)> {
    let (start, end) = (pages.start().0, pages.end().0);
    let mut touched: Vec<(u64, u64, usize)> = Vec::new();
    if let Some((&from, &(to, mark))) = open.range(..start).next_back()
        && to > start
    {
        touched.push((from, to, mark));
    }
    let within = open.range(start..end);
    touched.extend(within.map(|(&from, &(to, mark))| (from, to, mark)));
    let mut parts = Vec::with_capacity(touched.len());
    for (from, to, mark) in touched {
        open.remove(&from);
        if from < start {
            open.insert(from, (start, mark));
        }
        if to > end {
            open.insert(end, (to, mark));
        }
        let (from, to) = (from.max(start), to.min(end));
        parts.push((PageRange::new(PageIndex(from), PageIndex(to)), mark));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_out_is_gone() {
        let range = |start, end| PageRange::new(PageIndex(start), PageIndex(end));
        let mut open = BTreeMap::from([(0, (10, 0)), (20, (30, 2)), (40, (50, 1))]);
        assert_eq!(
            cut_out(&mut open, range(5, 25)),
            [(range(5, 10), 0), (range(20, 25), 2)]
        );
        assert_eq!(
            open,
            BTreeMap::from([(0, (5, 0)), (25, (30, 2)), (40, (50, 1))])
        );
        assert_eq!(cut_out(&mut open, range(42, 44)), [(range(42, 44), 1)]);
        assert_eq!(
            open,
            BTreeMap::from([(0, (5, 0)), (25, (30, 2)), (40, (42, 1)), (44, (50, 1))])
        );
        assert_eq!(cut_out(&mut open, range(5, 25)), []);
        assert_eq!(cut_out(&mut open, range(0, 60)).len(), 4);
        assert!(open.is_empty());
    }
}
