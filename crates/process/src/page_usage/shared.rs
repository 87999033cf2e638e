//! Which page frames two processes share: mapped pages compared between them, as
//! `Documentation/admin-guide/mm/pagemap.rst` says.

use super::count::{Nature, groups, spans};
use super::error::PageUsageError;
use super::sources::Sources;
use pagetide_kernel::kpageflags::PageFlags;
use pagetide_kernel::maps::Mapping;
use pagetide_kernel::pagemap::PagemapEntry;
use pagetide_kernel::pagemap_scan::Categories;
use pagetide_kernel::smaps::counted_mappings;
use pagetide_pages::{PageCount, PageIndex, PageRange};

/// Pages of one process that are the very frames that another has, in ascending order.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SharedFrames {
    /// Mappings of the first process in which there are any.
    pub regions: Vec<SharedRegion>,
    /// Pages of the first process that are shared.
    pub pages: PageCount,
    /// Pages of the first process that have a frame, shared or not. The zero page is none.
    pub of: PageCount,
}

/// A mapping, and what is shared of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SharedRegion {
    /// The mapping of the first process.
    pub mapping: Mapping,
    /// What is shared of it.
    pub ranges: Vec<SharedRange>,
}

/// Neighbouring pages that are neighbours in the other process, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedRange {
    /// Where they are in the first process.
    pub pages: PageRange,
    /// Where the first of them is in the other one; of several places the lowest.
    pub other_start: PageIndex,
}

/// Which frames of process `pid` process `other` has mapped, too. The zero page, which all share, is left out. Both run on
/// meanwhile: of pages that come and go the answer is of no one moment.
///
/// Takes 16 bytes of memory for each page that `other` has in memory. Needs CAP_SYS_ADMIN.
pub fn shared_frames(pid: i32, other: i32) -> Result<SharedFrames, PageUsageError> {
    let mut frames = Vec::new();
    each_frame(other, |_, page, frame| frames.push((frame, page)))?;
    frames.sort_unstable();
    let mut shared = SharedFrames {
        regions: Vec::new(),
        pages: PageCount(0),
        of: PageCount(0),
    };
    each_frame(pid, |mapping, page, frame| {
        shared.of += PageCount(1);
        let at = frames.partition_point(|found| *found < (frame, PageIndex(0)));
        let Some((_, other_page)) = frames.get(at).filter(|(found, _)| *found == frame) else {
            return;
        };
        shared.pages += PageCount(1);
        if shared
            .regions
            .last()
            .is_none_or(|region| region.mapping.start != mapping.start)
        {
            shared.regions.push(SharedRegion {
                mapping: mapping.clone(),
                ranges: Vec::new(),
            });
        }
        if let Some(region) = shared.regions.last_mut() {
            add(&mut region.ranges, page, *other_page);
        }
    })?;
    Ok(shared)
}

/// Adds a page that comes after those of `ranges`.
fn add(ranges: &mut Vec<SharedRange>, page: PageIndex, other: PageIndex) {
    if let Some(last) = ranges.last_mut()
        && last.pages.end() == page
        && last.other_start.0 + last.pages.count().0 == other.0
    {
        last.pages = PageRange::new(last.pages.start(), PageIndex(page.0 + 1));
        return;
    }
    ranges.push(SharedRange {
        pages: PageRange::single(page),
        other_start: other,
    });
}

/// Calls `each` with every page of process `pid` that is in memory, and its frame.
fn each_frame(
    pid: i32,
    mut each: impl FnMut(&Mapping, PageIndex, u64),
) -> Result<(), PageUsageError> {
    let sources = Sources::open(pid)?;
    if !sources.frames {
        return Err(PageUsageError::FramesHidden);
    }
    for counted in counted_mappings(pid)? {
        let nature = Nature::of(&counted);
        if nature.is_of_the_kernel(&counted.mapping) {
            continue;
        }
        for group in groups(spans(&sources, counted.mapping.pages())?) {
            for span in group {
                let entries = sources.pagemap.entries(span.pages)?;
                let zeros = zeros(&sources, span.categories, &entries)?;
                for ((page, entry), zero) in span.pages.pages().zip(entries).zip(zeros) {
                    if let Some(frame) = entry.frame_number()
                        && nature.is_counted(entry, zero)
                    {
                        each(&counted.mapping, page, frame);
                    }
                }
            }
        }
    }
    if sources.pagemap.is_alive() {
        Ok(())
    } else {
        Err(PageUsageError::Gone { pid })
    }
}

/// Which of the pages with these entries are the zero page. Where the kernel has no PAGEMAP_SCAN, the flags of the frames tell.
fn zeros(
    sources: &Sources,
    categories: Option<Categories>,
    entries: &[PagemapEntry],
) -> Result<Vec<bool>, PageUsageError> {
    if let Some(all) = categories {
        return Ok(vec![all.contains(Categories::ZERO_PAGE); entries.len()]);
    }
    // The frame of an entry without one is frame 0, whose flags are of no use.
    let frames: Vec<u64> = (entries.iter())
        .map(|entry| entry.frame_number().unwrap_or(0))
        .collect();
    let flags = sources.look_up(&frames)?.flags;
    Ok(match flags {
        Some(flags) => (flags.iter())
            .map(|flags| flags.contains(PageFlags::ZERO_PAGE))
            .collect(),
        None => vec![false; entries.len()],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_grow_only_where_both_sides_do() {
        let mut ranges = Vec::new();
        for (page, other) in [(10, 5), (11, 6), (12, 9), (14, 10), (15, 11)] {
            add(&mut ranges, PageIndex(page), PageIndex(other));
        }
        let range = |start, count, other| SharedRange {
            pages: PageRange::with_count(PageIndex(start), PageCount(count)),
            other_start: PageIndex(other),
        };
        assert_eq!(ranges, [range(10, 2, 5), range(12, 1, 9), range(14, 2, 10)]);
    }
}
