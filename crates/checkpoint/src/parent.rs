//! What the parent snapshot says of pages: which it leaves in files, which it shows of objects, and which mappings show the
//! same as they did in it.

use crate::capture::SIZE;
use crate::files::{self, FileReport, Stamps};
use crate::layout::{self, ChangeDetection};
use crate::memo::Memo;
use pagetide_kernel::maps::Mapping;
use pagetide_pages::PageSet;
use pagetide_snapshot::{Backing, PageState, Region, Sharing, View};
use std::collections::HashSet;

/// The pages that regions of the snapshot show of other spaces.
pub(crate) fn shown_in(view: &View, space: usize) -> PageSet {
    let regions = view.spaces()[space].regions.iter();
    regions
        .filter(|region| region.shows.is_some())
        .map(|region| region.pages)
        .collect()
}

/// The pages among `pages` that the snapshot itself leaves in the file of their region.
pub(crate) fn in_file(view: &View, space: usize, pages: &PageSet) -> PageSet {
    let mut found = PageSet::new();
    for &range in pages.subtract(&shown_in(view, space)).ranges() {
        let runs = view.runs(space, range);
        found.extend(
            runs.filter(|(_, state)| *state == PageState::File)
                .map(|(pages, _)| pages),
        );
    }
    found
}

/// The pages of private mappings of files that show the same of the same files as in the parent, and
/// those files are what they were then.
pub(crate) fn unchanged_files(
    (parent, space): (&View, usize),
    mappings: &[Mapping],
    report: &FileReport,
    memo: &Memo,
) -> PageSet {
    let earlier: HashSet<&Stamps> = memo.settled.iter().collect();
    let over_file = mappings
        .iter()
        .filter(|mapping| layout::watch(mapping) == ChangeDetection::OverFile);
    let unchanged: PageSet = over_file
        .clone()
        .filter(|mapping| report.unchanged_since(mapping, &earlier))
        .map(Mapping::pages)
        .collect();
    let regions = &parent.spaces()[space].regions;
    let mut same = Vec::new();
    for mapping in over_file {
        let pages = mapping.pages();
        let from = regions.partition_point(|region| region.pages.end() <= pages.start());
        for region in &regions[from..] {
            let Some(part) = region.pages.intersection(pages) else {
                break;
            };
            if shows_the_same(mapping, region) {
                same.push(part);
            }
        }
    }
    unchanged.intersect(&same.into_iter().collect())
}

/// True if a private mapping and a region of the parent show the same of one file where they overlap.
fn shows_the_same(mapping: &Mapping, region: &Region) -> bool {
    let Backing::File {
        offset_bytes,
        device,
        inode,
        ..
    } = region.backing
    else {
        return false;
    };
    let (start, _) = SIZE.span_of(region.pages);
    region.sharing == Sharing::Private
        && (device, inode) == files::key(mapping)
        && mapping.offset_bytes.wrapping_sub(mapping.start) == offset_bytes.wrapping_sub(start)
}
