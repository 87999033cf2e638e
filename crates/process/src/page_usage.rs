//! What the page tables say of a live process: for each mapping and in all, and of one page.
//!
//! Everything is read from outside, through `/proc`; the process is neither stopped nor entered. It may run
//! on meanwhile: then the numbers of two mappings, or of two sources, are of different moments. Those of a
//! process that stands still agree with `smaps` and `numa_maps` to the byte, up to their rounding.
//!
//! Sources: `Documentation/admin-guide/mm/pagemap.rst`, proc_pid_smaps(5), numa_maps(5).

mod count;
mod error;
mod object;
mod page;
mod shared;
mod sources;
mod swap;
mod usage;

pub use error::PageUsageError;
pub use object::ObjectState;
pub use page::{ExplainedPage, explain_page};
use pagetide_kernel::maps::Mapping;
use pagetide_kernel::numa_maps::{NumaMapping, numa_mappings};
use pagetide_kernel::smaps::{CountedMapping, counted_mappings};
use pagetide_pages::{PageRange, PageSize};
pub use shared::{SharedFrames, SharedRange, SharedRegion, shared_frames};
use sources::Sources;
pub use sources::page_sources;
use std::collections::{BTreeMap, HashMap};
pub use swap::{SwapEntry, SwapKind};
pub use usage::{PageUsage, RegionUsage, Unavailable, Usage};

/// Counts the pages of process `pid` that lie in `within` (addresses), or all of them.
///
/// Costs a walk over its page tables for `smaps`, `numa_maps` and `pagemap` each, and 24 bytes read for each
/// page in memory if page frames may be looked up; nothing for address space that holds nothing.
pub fn page_usage(pid: i32, within: Option<PageRange>) -> Result<PageUsage, PageUsageError> {
    let mut sources = Sources::open(pid)?;
    let counted = regions(pid, within, &mut sources);
    // Errors of a space that is gone say less.
    if !sources.pagemap.is_alive() {
        return Err(PageUsageError::Gone { pid });
    }
    let regions = counted?;
    let mut totals = Usage::default();
    regions.iter().for_each(|region| totals.add(&region.usage));
    let inodes = totals.cgroup_pages.iter().flat_map(BTreeMap::keys);
    let cgroup_paths = inodes
        .filter_map(|&inode| Some((inode, sources.cgroup_path(inode)?.to_owned())))
        .collect();
    Ok(PageUsage {
        regions,
        totals,
        cgroup_paths,
        unavailable: sources.unavailable,
    })
}

fn regions(
    pid: i32,
    within: Option<PageRange>,
    sources: &mut Sources,
) -> Result<Vec<RegionUsage>, PageUsageError> {
    let mappings = counted_mappings(pid)?;
    let nodes = nodes(pid, sources);
    let region = |mut counted: CountedMapping| {
        let whole = counted.mapping.clone();
        let is_part = within.is_some_and(|within| clip(&mut counted.mapping, within));
        let mut usage = count::count(sources, &counted, is_part)?;
        object::count(pid, sources, &whole, &counted.mapping, &mut usage);
        let numa = nodes.as_ref().and_then(|nodes| nodes.get(&whole.start));
        usage.numa_bytes = (nodes.is_some() && !is_part).then(BTreeMap::new);
        // The kernel counts nodes by mapping.
        if let Some(NumaMapping {
            nodes,
            page_bytes: Some(unit),
            ..
        }) = numa.filter(|_| !is_part)
        {
            usage.numa_bytes = Some(nodes.iter().map(|(node, n)| (*node, n * unit)).collect());
        }
        Ok(RegionUsage {
            page_bytes: counted.bytes("KernelPageSize"),
            numa_policy: numa.map(|numa| numa.policy.clone()),
            mapping: counted.mapping,
            flags: counted.flags,
            usage,
        })
    };
    let touched = |counted: &CountedMapping| {
        within.is_none_or(|within| counted.mapping.pages().intersection(within).is_some())
    };
    mappings.into_iter().filter(touched).map(region).collect()
}

/// Leaves of `mapping` what lies in `within`, and tells whether that is less than all of it.
fn clip(mapping: &mut Mapping, within: PageRange) -> bool {
    let (from, to) = PageSize::KIB_4.span_of(within);
    let (start, end) = (mapping.start.max(from), mapping.end.min(to));
    let is_part = (start, end) != (mapping.start, mapping.end);
    mapping.offset_bytes += start - mapping.start;
    (mapping.start, mapping.end) = (start, end);
    is_part
}

/// The lines of `numa_maps` by their address, if there are any.
fn nodes(pid: i32, sources: &mut Sources) -> Option<HashMap<u64, NumaMapping>> {
    match numa_mappings(pid) {
        Ok(lines) => Some(lines.into_iter().map(|line| (line.start, line)).collect()),
        Err(error) => {
            sources.numa_unavailable(&error);
            None
        }
    }
}
