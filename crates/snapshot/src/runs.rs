//! Lists of runs of pages: laying one over another, cutting them to regions, finding gaps. Pure
//! arithmetic; no file and no page is touched here. Everything takes time in proportion to the
//! lengths of its lists, but for a logarithm: a process can have mappings by the ten thousands.

use crate::model::{PageState, Region};
use pagetide_pages::{PageIndex, PageRange};
use std::collections::BinaryHeap;

/// Pages with one state, and for data and pages of files where their hashes are: from `ordinal` on in
/// the view's layer number `layer`. For data these are the numbers of the stored pages too. Both are 0
/// for other states, so equal things compare equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub pages: PageRange,
    pub state: PageState,
    pub layer: u32,
    pub ordinal: u64,
}

impl Resolved {
    /// The part of the run in `range`.
    pub fn cut(self, range: PageRange) -> Option<Self> {
        let pages = self.pages.intersection(range)?;
        let skipped = pages.start().0 - self.pages.start().0;
        Some(Self {
            pages,
            ordinal: if self.state.is_hashed() {
                self.ordinal + skipped
            } else {
                0
            },
            ..self
        })
    }

    fn continues(&self, before: &Self) -> bool {
        before.pages.end() == self.pages.start()
            && before.state == self.state
            && before.layer == self.layer
            && (!self.state.is_hashed() || before.ordinal + before.pages.count().0 == self.ordinal)
    }
}

/// Adds `run` at the end, as part of the last one if it continues that.
pub fn push(runs: &mut Vec<Resolved>, run: Resolved) {
    match runs.last_mut() {
        Some(last) if run.continues(last) => {
            last.pages = PageRange::new(last.pages.start(), run.pages.end());
        }
        _ => runs.push(run),
    }
}

/// The runs that touch `range`, uncut.
pub fn touching(runs: &[Resolved], range: PageRange) -> &[Resolved] {
    let first = runs.partition_point(|run| run.pages.end() <= range.start());
    let rest = &runs[first..];
    &rest[..rest.partition_point(|run| run.pages.start() < range.end())]
}

/// The run that a page is in.
pub fn at(runs: &[Resolved], page: PageIndex) -> Option<&Resolved> {
    let after = runs.partition_point(|run| run.pages.start() <= page);
    let run = &runs[after.checked_sub(1)?];
    run.pages.contains(page).then_some(run)
}

/// The parts of ascending `runs` that lie in the ascending `ranges`.
pub fn within(runs: &[Resolved], ranges: impl IntoIterator<Item = PageRange>) -> Vec<Resolved> {
    let mut kept = Vec::new();
    for range in ranges {
        for part in touching(runs, range)
            .iter()
            .filter_map(|run| run.cut(range))
        {
            push(&mut kept, part);
        }
    }
    kept
}

/// The parts of ascending `runs` where the ascending `top` has nothing.
pub fn without(runs: &[Resolved], top: &[Resolved]) -> Vec<Resolved> {
    let starts = top.iter().map(|run| run.pages.start());
    let ends = top.iter().map(|run| run.pages.end());
    let gaps = std::iter::once(PageIndex(0)).chain(ends);
    let gaps = gaps.zip(starts.chain([PageIndex(u64::MAX)]));
    within(runs, gaps.map(|(start, end)| PageRange::new(start, end)))
}

/// The parts of ascending `runs` that lie in the ascending `regions`, and that `keep` wants there.
pub fn restrict<'r>(
    runs: &[Resolved],
    regions: impl IntoIterator<Item = &'r Region>,
    mut keep: impl FnMut(&Region, &Resolved) -> bool,
) -> Vec<Resolved> {
    let mut kept = Vec::with_capacity(runs.len());
    for region in regions {
        for run in touching(runs, region.pages) {
            if let Some(part) = run.cut(region.pages).filter(|part| keep(region, part)) {
                push(&mut kept, part);
            }
        }
    }
    kept
}

/// `base` where `top` has nothing, `top` elsewhere.
pub fn overlay(base: &[Resolved], top: &[Resolved]) -> Vec<Resolved> {
    let mut merged = Vec::with_capacity(base.len() + top.len());
    let mut rest = base.iter().copied().peekable();
    let mut from = PageIndex(0);
    for run in top {
        base_between(
            &mut merged,
            &mut rest,
            PageRange::new(from, run.pages.start()),
        );
        push(&mut merged, *run);
        from = run.pages.end();
    }
    base_between(
        &mut merged,
        &mut rest,
        PageRange::new(from, PageIndex(u64::MAX)),
    );
    merged
}

fn base_between(
    merged: &mut Vec<Resolved>,
    rest: &mut std::iter::Peekable<impl Iterator<Item = Resolved>>,
    gap: PageRange,
) {
    while let Some(run) = rest.peek().copied() {
        if run.pages.start() >= gap.end() {
            break;
        }
        if let Some(part) = run.cut(gap) {
            push(merged, part);
        }
        if run.pages.end() > gap.end() {
            break;
        }
        rest.next();
    }
}

/// The first pages of the ascending `ranges` that no run covers.
pub fn first_gap(
    runs: &[Resolved],
    ranges: impl IntoIterator<Item = PageRange>,
) -> Option<PageRange> {
    for range in ranges {
        let mut at = range.start();
        for run in touching(runs, range) {
            if run.pages.start() > at {
                return Some(PageRange::new(at, run.pages.start()));
            }
            at = run.pages.end();
        }
        if at < range.end() {
            return Some(PageRange::new(at, range.end()));
        }
    }
    None
}

/// What a writer was told about some pages. Of two that speak of the same page the one with the
/// larger `sequence` holds. No `state` means that the parent's holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub pages: PageRange,
    pub state: Option<PageState>,
    pub ordinal: u64,
    pub sequence: u64,
    /// Each page has a sequence number of its own, counting up from `sequence`. Else all have that.
    pub counted: bool,
}

/// Adds `entry` at the end, as part of the last one if it continues that in every way. That leaves
/// entries of one call comparable by `sequence`: where they overlap, one is wholly later.
pub fn log(entries: &mut Vec<Entry>, entry: Entry) {
    match entries.last_mut() {
        Some(last)
            if last.counted
                && entry.counted
                && last.pages.end() == entry.pages.start()
                && last.state == entry.state
                && last.sequence + last.pages.count().0 == entry.sequence
                && (!entry.state.is_some_and(PageState::is_hashed)
                    || last.ordinal + last.pages.count().0 == entry.ordinal) =>
        {
            last.pages = PageRange::new(last.pages.start(), entry.pages.end());
        }
        _ => entries.push(entry),
    }
}

/// What holds in the end, ascending, as runs of layer number `layer`. Pages of which it holds that
/// they are the parent's are left out.
///
/// The entries are swept in the order of their first page. Those that cover the page the sweep has
/// reached are in a heap, the latest on top; it holds until it ends or another entry begins.
pub fn latest(mut entries: Vec<Entry>, layer: u32) -> Vec<Resolved> {
    entries.sort_unstable_by_key(|entry| (entry.pages.start(), entry.sequence));
    let mut runs = Vec::with_capacity(entries.len());
    let mut open: BinaryHeap<(u64, usize)> = BinaryHeap::new();
    let mut next = 0;
    let mut at = PageIndex(0);
    loop {
        while open
            .peek()
            .is_some_and(|&(_, number)| entries[number].pages.end() <= at)
        {
            open.pop();
        }
        if open.is_empty() {
            match entries.get(next) {
                Some(entry) => at = at.max(entry.pages.start()),
                None => return runs,
            }
        }
        while entries
            .get(next)
            .is_some_and(|entry| entry.pages.start() <= at)
        {
            if entries[next].pages.end() > at {
                open.push((entries[next].sequence, next));
            }
            next += 1;
        }
        let Some(&(_, number)) = open.peek() else {
            continue;
        };
        let holds = entries[number];
        let until = match entries.get(next) {
            Some(entry) => holds.pages.end().min(entry.pages.start()),
            None => holds.pages.end(),
        };
        if let Some(state) = holds.state {
            let whole = Resolved {
                pages: holds.pages,
                state,
                layer: if state.is_hashed() { layer } else { 0 },
                ordinal: holds.ordinal,
            };
            if let Some(part) = whole.cut(PageRange::new(at, until)) {
                push(&mut runs, part);
            }
        }
        at = until;
    }
}
