//! The hashes of what files have, computed before the stop: those of pages that a mapping may show, of files that stand for
//! their pages, as far as the parent does not have them.

use super::context::Context;
use super::standstill::PriorFindings;
use crate::error::TakeError;
use crate::file_pages::FileHashes;
use crate::files::{self, FileReport};
use crate::layout::{self, ChangeDetection};
use crate::mapped_file::file_page;
use crate::member::Member;
use crate::parent;
use pagetide_kernel::maps::Mapping;
use pagetide_pages::{PageIndex, PageRange, PageSet};
use std::collections::{HashMap, HashSet};

/// Hashes what settled files have where mappings may show them and the parent does not say so.
#[tracing::instrument(level = "debug", skip_all, name = "hash files")]
pub(crate) fn hash_files(
    context: &Context<'_>,
    before: &[PriorFindings],
    report: &FileReport,
) -> Result<FileHashes, TakeError> {
    let mut wanted: HashMap<files::FileKey, PageSet> = HashMap::new();
    for (member, before) in context.members.list().iter().zip(before) {
        let needless = needless(context, member, before, report)?;
        let earlier = member
            .memo_of(context.parent)
            .map(|memo| memo.settled.iter());
        let earlier: HashSet<_> = earlier.into_iter().flatten().collect();
        // What is shared is told by object, and was when its file was this already.
        let told = |mapping: &&Mapping| mapping.shared && report.unchanged_since(mapping, &earlier);
        let all = standing(&before.mappings, report);
        for mapping in all.filter(|mapping| !told(mapping)) {
            let pages = PageSet::from(mapping.pages());
            let pages = pages.subtract(&needless.within(mapping.pages()));
            let first = file_page(mapping, mapping.pages().start());
            let shift = |range: &PageRange| {
                let start = first.0 + (range.start().0 - mapping.pages().start().0);
                PageRange::with_count(PageIndex(start), range.count())
            };
            let shown = wanted.entry(files::key(mapping)).or_default();
            shown.extend(pages.ranges().iter().map(shift));
        }
    }
    let mut hashes = FileHashes::default();
    for (key, pages) in &wanted {
        if let Some(stamps) = report.standing(*key) {
            hashes.add(context.files, *key, pages, stamps.size_bytes);
        }
    }
    Ok(hashes)
}

/// The mappings of files that may stand for their pages.
fn standing<'a>(
    mappings: &'a [Mapping],
    report: &'a FileReport,
) -> impl Iterator<Item = &'a Mapping> {
    let standing =
        |mapping: &&Mapping| mapping.has_file() && report.standing(files::key(mapping)).is_some();
    mappings.iter().filter(standing)
}

/// Pages that show the process's own copies, or of which the parent says already what holds still.
fn needless(
    context: &Context<'_>,
    member: &Member,
    before: &PriorFindings,
    report: &FileReport,
) -> Result<PageSet, TakeError> {
    let over_file = |mapping: &&Mapping| layout::watch(mapping) == ChangeDetection::OverFile;
    let private = standing(&before.mappings, report).filter(over_file);
    let private: PageSet = private.map(Mapping::pages).collect();
    let found = member.unless_lost(member.private_pages(&private))?;
    let needless = found.copies.union(&found.guards);
    if let Some(memo) = member.memo_of(context.parent)
        && let Some(view) = context.parent
        && let Some(space) = view.space_index(&member.names.space)
    {
        let unchanged = parent::unchanged_files((view, space), &before.mappings, report, memo);
        return Ok(needless.union(&parent::in_file(view, space, &unchanged)));
    }
    Ok(needless)
}
