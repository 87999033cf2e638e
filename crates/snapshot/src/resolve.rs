//! One step along a chain: the pages of a snapshot out of those of its parent and its own, and which files these are
//! still taken from. A page that was not part of the parent never comes back from further down the chain.

use crate::format::index::Run;
use crate::format::metadata::captured_regions;
use crate::layer::Layer;
use crate::model::{Region, Space};
use crate::runs::{self, Resolved};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// The runs of an index, by space.
pub fn by_space(runs: &[Run], spaces: usize) -> Vec<Vec<Resolved>> {
    let mut top = vec![Vec::new(); spaces];
    for run in runs {
        top[run.space as usize].push(Resolved {
            pages: run.pages,
            state: run.state,
            layer: 0,
            ordinal: run.ordinal,
        });
    }
    top
}

/// The pages of a space: the parent's in the captured regions, under those of the snapshot itself,
/// whose layer is number `own`.
pub fn resolve(
    base: Option<&[Resolved]>,
    space: &Space,
    top: &[Resolved],
    own: usize,
) -> Vec<Resolved> {
    let mut top = top.to_vec();
    for run in top.iter_mut().filter(|run| run.state.is_hashed()) {
        run.layer = own as u32;
    }
    match base {
        None => top,
        Some(base) => {
            let admitted = |region: &Region, run: &Resolved| region.admits(run.state);
            let base = runs::restrict(base, captured_regions(space), admitted);
            runs::overlay(&base, &top)
        }
    }
}

/// Lets go of the layers that no page is taken from any more, and renumbers the rest.
pub fn drop_unused(layers: &mut Vec<Arc<Layer>>, runs: &mut [Vec<Resolved>]) {
    let mut used = vec![false; layers.len()];
    let hashed = |run: &&mut Resolved| run.state.is_hashed();
    for run in runs.iter_mut().flatten().filter(hashed) {
        used[run.layer as usize] = true;
    }
    if used.iter().all(|&used| used) {
        return;
    }
    let mut number = 0;
    let numbers: Vec<u32> = used
        .iter()
        .map(|&used| {
            number += u32::from(used);
            number.saturating_sub(1)
        })
        .collect();
    for run in runs.iter_mut().flatten().filter(hashed) {
        run.layer = numbers[run.layer as usize];
    }
    let mut used = used.into_iter();
    layers.retain(|_| used.next().unwrap_or(true));
}

/// Lets go of what is not needed of layers, where that is most of it.
pub fn drop_unneeded(layers: &mut [Arc<Layer>], runs: &[Vec<Resolved>]) {
    let hashed = || runs.iter().flatten().filter(|run| run.state.is_hashed());
    let mut needed = vec![0u64; layers.len()];
    for run in hashed() {
        needed[run.layer as usize] += run.pages.count().0;
    }
    let mut ranges: BTreeMap<u32, Vec<Range<u64>>> = (0..)
        .zip(layers.iter().zip(&needed))
        .filter(|(_, (layer, needed))| layer.kept.is_mostly_unneeded(**needed))
        .map(|(number, _)| (number, Vec::new()))
        .collect();
    if ranges.is_empty() {
        return;
    }
    for run in hashed() {
        if let Some(ranges) = ranges.get_mut(&run.layer) {
            ranges.push(run.ordinal..run.ordinal + run.pages.count().0);
        }
    }
    for (number, ranges) in ranges {
        let layer = &mut layers[number as usize];
        *layer = Arc::new(Layer {
            id: layer.id,
            store: layer.store,
            storage: Arc::clone(&layer.storage),
            header: layer.header.clone(),
            kept: layer.kept.only(ranges),
        });
    }
}
