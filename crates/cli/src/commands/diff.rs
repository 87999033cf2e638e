//! `pagetide diff`: what differs between two snapshots, by region and by page.

use super::opening::{open_store, view_at};
use crate::args::{Diff, Which};
use crate::output::{self, Page};
use pagetide_pages::{PageSet, PageSize};
use pagetide_snapshot::{Region, View};
use serde::Serialize;
use std::collections::BTreeSet;

#[derive(Serialize)]
struct Answer {
    changed_pages: u64,
    regions: Vec<RegionDiff>,
}

#[derive(Serialize)]
struct RegionDiff {
    space: String,
    start: String,
    end: String,
    name: String,
    /// `changed`, `added`, `removed`, or `reshaped`: there in both, but with other attributes.
    change: &'static str,
    changed_pages: u64,
}

pub fn run(options: &Diff) -> anyhow::Result<()> {
    let store = open_store(&options.store)?;
    let a = view_at(&store, Some(Which::Id(options.a)))?;
    let b = view_at(&store, Some(Which::Id(options.b)))?;
    let names: BTreeSet<&str> = [&a, &b]
        .into_iter()
        .flat_map(|view| view.spaces().iter().map(|space| space.name.as_str()))
        .collect();
    let mut answer = Answer {
        changed_pages: 0,
        regions: Vec::new(),
    };
    for name in names {
        let changed = store.changed(&a, &b, name);
        answer.changed_pages += changed.count().0;
        compare(&a, &b, name, &changed, &mut answer.regions);
    }
    if options.json {
        return output::json(&answer);
    }
    let cells = |region: &RegionDiff| {
        vec![
            format!("{}-{}", region.start, region.end),
            region.change.to_owned(),
            region.changed_pages.to_string(),
            region.name.clone(),
        ]
    };
    let rows = answer.regions.iter().map(cells).collect();
    let header = ["region", "change", "pages", "name"];
    let mut page = Page::new();
    page.table(&header, &[2], rows).line("");
    page.line(format!("{} pages differ", answer.changed_pages));
    page.print()
}

/// The regions of one space that differ: those of the later snapshot, then those it lacks.
fn compare(a: &View, b: &View, name: &str, changed: &PageSet, out: &mut Vec<RegionDiff>) {
    let regions = |view: &View| {
        let space = view
            .space_index(name)
            .map(|index| view.spaces()[index].clone());
        space.map_or((PageSize::KIB_4, Vec::new()), |space| {
            (space.page_size, space.regions)
        })
    };
    let (old_size, old) = regions(a);
    let (new_size, new) = regions(b);
    let mut push = |size: PageSize, region: &Region, change| {
        let (start, end) = size.span_of(region.pages);
        out.push(RegionDiff {
            space: name.to_owned(),
            start: format!("{start:016x}"),
            end: format!("{end:016x}"),
            name: region.name.clone(),
            change,
            changed_pages: changed.within(region.pages).count().0,
        });
    };
    // There may be tens of thousands of regions; both lists are sorted.
    for region in &new {
        match same_pages(&old, region) {
            None => push(new_size, region, "added"),
            Some(known)
                if known.protection != region.protection
                    || known.sharing != region.sharing
                    || known.advice != region.advice =>
            {
                push(new_size, region, "reshaped");
            }
            Some(_) if !changed.within(region.pages).is_empty() => {
                push(new_size, region, "changed")
            }
            Some(_) => {}
        }
    }
    for region in &old {
        if same_pages(&new, region).is_none() {
            push(old_size, region, "removed");
        }
    }
}

/// The region of a sorted list that has exactly the pages of `region`.
fn same_pages<'a>(sorted: &'a [Region], region: &Region) -> Option<&'a Region> {
    let found = sorted.binary_search_by_key(&region.pages, |known| known.pages);
    found.ok().map(|at| &sorted[at])
}
