//! Seeing through regions that show pages of another space: from a page of the region to the page
//! it shows. It is done when a page is asked for, and one level deep: what is shown shows nothing.

use crate::error::ReadError;
use crate::format::metadata::captured;
use crate::model::{PageState, Region, Space};
use crate::runs::{self, Resolved};
use crate::view::Inner;
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};

/// Pages of one region, and the page of another space that the first of them shows.
#[derive(Clone, Copy)]
pub struct Sight {
    pub pages: PageRange,
    pub space: usize,
    pub first: PageIndex,
}

impl Sight {
    /// The pages that are shown.
    pub fn target(&self) -> PageRange {
        PageRange::with_count(self.first, self.pages.count())
    }

    /// The part of it in `range`.
    pub fn cut(&self, range: PageRange) -> Option<Self> {
        let pages = self.pages.intersection(range)?;
        let skipped = PageCount(pages.start().0 - self.pages.start().0);
        Some(Self {
            pages,
            first: self.first.plus(skipped),
            ..*self
        })
    }
}

/// A run, and where its pages are recorded: the same place, or that of what they show.
#[derive(Clone, Copy)]
pub struct Placed {
    pub run: Resolved,
    pub space: usize,
    pub first: PageIndex,
}

/// The regions that touch `range`.
fn regions_in(space: &Space, range: PageRange) -> &[Region] {
    let regions = &space.regions;
    let first = regions.partition_point(|region| region.pages.end() <= range.start());
    let rest = &regions[first..];
    &rest[..rest.partition_point(|region| region.pages.start() < range.end())]
}

impl Inner {
    /// What the pages of `range`, all of which are shown, show: ascending, a region at a time.
    pub fn sights(&self, space: usize, range: PageRange) -> impl Iterator<Item = Sight> + '_ {
        let regions = self.spaces.get(space).map(|space| regions_in(space, range));
        let regions = regions.into_iter().flatten();
        regions.filter_map(move |region| {
            let shown = region.shows.as_ref()?;
            let whole = Sight {
                pages: region.pages,
                space: *self.names.get(&shown.space)?,
                first: shown.first_page,
            };
            whole.cut(range)
        })
    }

    /// The runs of what is shown, at the pages that show it.
    fn behind(&self, sight: Sight) -> impl Iterator<Item = Placed> + '_ {
        let parts = self.own_parts(sight.space, sight.target());
        parts.map(move |run| {
            let first = run.pages.start();
            let skipped = PageCount(first.0 - sight.first.0);
            let start = sight.pages.start().plus(skipped);
            Placed {
                run: Resolved {
                    pages: PageRange::with_count(start, run.pages.count()),
                    ..run
                },
                space: sight.space,
                first,
            }
        })
    }

    /// The runs in `range`, cut to it, none of them `Shown`.
    pub fn parts(&self, space: usize, range: PageRange) -> impl Iterator<Item = Resolved> + '_ {
        self.placed_parts(space, range).map(|placed| placed.run)
    }

    /// The same, with where they are recorded.
    pub fn placed_parts(
        &self,
        space: usize,
        range: PageRange,
    ) -> impl Iterator<Item = Placed> + '_ {
        self.own_parts(space, range)
            .flat_map(move |run| self.placed(space, run))
    }

    /// What `run` is: itself, or what is behind it.
    pub fn seen(&self, space: usize, run: Resolved) -> impl Iterator<Item = Resolved> + '_ {
        self.placed(space, run).map(|placed| placed.run)
    }

    fn placed(&self, space: usize, run: Resolved) -> impl Iterator<Item = Placed> + '_ {
        let is_shown = run.state == PageState::Shown;
        let sights = is_shown.then(|| self.sights(space, run.pages));
        let behind = sights.into_iter().flatten();
        let behind = behind.flat_map(move |sight| self.behind(sight));
        let own = Placed {
            run,
            space,
            first: run.pages.start(),
        };
        (!is_shown).then_some(own).into_iter().chain(behind)
    }

    /// What a page is, as a run of one page.
    pub fn at(&self, space: usize, page: PageIndex) -> Option<Resolved> {
        let run = self.own_at(space, page)?.cut(PageRange::single(page))?;
        self.seen(space, run).next()
    }

    /// Checks that whatever is shown is there: a captured region has all its pages, that was checked.
    pub fn check_shown(&self) -> Result<(), ReadError> {
        let there: Vec<PageSet> = self.spaces.iter().map(|s| captured(s).collect()).collect();
        for (number, runs) in self.runs.iter().enumerate() {
            let shown = runs.iter().filter(|run| run.state == PageState::Shown);
            for sight in shown.flat_map(|run| self.sights(number, run.pages)) {
                if there[sight.space].contains_range(sight.target()) {
                    continue;
                }
                let missing = PageSet::from(sight.target()).subtract(&there[sight.space]);
                let gap = missing.ranges().first().map_or(sight.target(), |gap| *gap);
                let space = &self.spaces[sight.space];
                return Err(ReadError::MissingPages {
                    snapshot: self.info.id,
                    space: space.name.clone(),
                    address: space.page_size.address_of(gap.start()),
                    length: space.page_size.bytes_of(gap.count()),
                });
            }
        }
        Ok(())
    }

    /// The runs in `range` as they are recorded, cut to it.
    pub fn own_parts(&self, space: usize, range: PageRange) -> impl Iterator<Item = Resolved> + '_ {
        let runs = self.runs.get(space).map_or(&[][..], |runs| runs);
        let touching = runs::touching(runs, range);
        touching.iter().filter_map(move |run| run.cut(range))
    }

    /// The run that a page is recorded in.
    pub fn own_at(&self, space: usize, page: PageIndex) -> Option<&Resolved> {
        runs::at(self.runs.get(space)?, page)
    }
}
