//! From how many differences a page of a view is made, and what is beneath each: all must be there.

use crate::differences::DEPTH_MAX;
use crate::error::ReadError;
use crate::format::FormatError;
use crate::layer::{Layer, file_name};
use crate::model::PageState;
use crate::runs::{self, Resolved};
use crate::view::Inner;
use pagetide_pages::{PageIndex, PageRange};
use std::sync::Arc;

impl Inner {
    /// The record beneath that of `page` at `level`, which is a difference; level 0 is the view's own.
    pub fn beneath_at(&self, space: usize, level: usize, page: PageIndex) -> Option<&Resolved> {
        let runs = self.beneath.get(space)?.get(level)?;
        runs::at(runs, page)
    }

    /// From how many differences a page is made that is recorded in `run`.
    pub fn depth(&self, space: usize, run: &Resolved, page: PageIndex) -> usize {
        let mut run = Some(run);
        let mut depth = 0;
        while let Some(found) = run.filter(|run| self.is_difference(run, page)) {
            run = self.beneath_at(space, depth, page);
            depth += 1;
            debug_assert!(found.state == PageState::Data, "only data differs");
        }
        depth
    }

    fn is_difference(&self, run: &Resolved, page: PageIndex) -> bool {
        let is_data = run.state == PageState::Data;
        let page = run.cut(PageRange::single(page)).filter(|_| is_data);
        page.is_some_and(|page| {
            let kept = &self.layers[page.layer as usize].kept;
            page.differing(kept).next().is_some()
        })
    }

    /// Checks that whatever differences are to is there, and has bytes in the store.
    pub fn check_beneath(&self) -> Result<(), ReadError> {
        for (runs, beneath) in self.runs.iter().zip(&self.beneath) {
            let levels = std::iter::once(runs).chain(beneath);
            for (level, above) in levels.enumerate() {
                let below = beneath.get(level).filter(|_| level < DEPTH_MAX);
                check_level(&self.layers, above, below.map_or(&[], Vec::as_slice))?;
            }
        }
        Ok(())
    }
}

fn check_level(
    layers: &[Arc<Layer>],
    above: &[Resolved],
    below: &[Resolved],
) -> Result<(), ReadError> {
    for run in above.iter().filter(|run| run.state == PageState::Data) {
        let layer = &layers[run.layer as usize];
        for pages in run.differing(&layer.kept) {
            let mut touching = runs::touching(below, pages).iter();
            let has_bytes = touching.all(|run| run.state == PageState::Data);
            if !has_bytes || runs::first_gap(below, [pages]).is_some() {
                let what = "pages are differences to pages that are not there".to_owned();
                return Err(FormatError::Damaged(what).at(layer.id, &file_name(layer.id)));
            }
        }
    }
    Ok(())
}
