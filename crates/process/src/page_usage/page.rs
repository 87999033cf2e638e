//! All that is known of one page.

use super::count::{Nature, is_registered, spans};
use super::error::PageUsageError;
use super::object::{self, ObjectState};
use super::sources::Sources;
use super::swap::{SwapEntry, SwapKind, swap_entry};
use super::usage::Unavailable;
use pagetide_kernel::kpageflags::PageFlags;
use pagetide_kernel::maps::Mapping;
use pagetide_kernel::move_pages::{PageErrno, nodes_of};
use pagetide_kernel::numa_maps::numa_mappings;
use pagetide_kernel::pagemap::PagemapEntry;
use pagetide_kernel::pagemap_scan::Categories;
use pagetide_kernel::smaps::counted_mappings;
use pagetide_pages::{PageRange, PageSize};
use std::path::PathBuf;

/// One page, explained. What is `None` is not known, or not told to this user: then it is in `unavailable`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExplainedPage {
    /// Its first address.
    pub address: u64,
    /// The mapping it lies in.
    pub mapping: Mapping,
    /// VmFlags of the mapping, as their two-letter names.
    pub flags: Vec<String>,
    /// The entry of `pagemap`; empty for `[vsyscall]`, which is in no page table of the process.
    pub entry: PagemapEntry,
    /// The swap entry, if it is not in memory.
    pub swap: Option<SwapEntry>,
    /// Written since it was last write-protected; `None` if the mapping is not registered for that.
    pub written: Option<bool>,
    /// Soft-dirty; `None` if the kernel has no such bits.
    pub soft_dirty: Option<bool>,
    /// It is the zero page.
    pub zero: Option<bool>,
    /// It is mapped as part of a huge page.
    pub huge: Option<bool>,
    /// The page frame.
    pub frame: Option<u64>,
    /// The flags of the frame.
    pub page_flags: Option<PageFlags>,
    /// How often the frame is mapped.
    pub map_count: Option<u64>,
    /// The inode of the memory cgroup the frame is charged to; 0 for none.
    pub cgroup: Option<u64>,
    /// The path of that cgroup, if it can be seen from here.
    pub cgroup_path: Option<PathBuf>,
    /// The NUMA policy of the mapping, as the kernel prints it.
    pub numa_policy: Option<String>,
    /// The NUMA node it is on.
    pub numa_node: Option<u32>,
    /// Why the kernel gives no node for it.
    pub no_numa_node: Option<PageErrno>,
    /// What the object behind shared memory has here; `None` for anything else, and without privilege.
    pub object: Option<ObjectState>,
    /// There is nothing here: nobody has touched it, or it was dropped. `None` if that is not known.
    pub empty: Option<bool>,
    /// What is not told.
    pub unavailable: Vec<Unavailable>,
}

/// Why it is not known whether a page has content.
const FORGETFUL: &str = "the page table forgets pages of files and shared memory that are swapped out or reclaimed: \
                         an empty entry does not tell whether there is content";

/// Explains the page of process `pid` that holds the byte at `address`.
pub fn explain_page(pid: i32, address: u64) -> Result<ExplainedPage, PageUsageError> {
    let mut sources = Sources::open(pid)?;
    let explained = explain(pid, address, &mut sources);
    if !sources.pagemap.is_alive() {
        return Err(PageUsageError::Gone { pid });
    }
    explained
}

fn explain(pid: i32, address: u64, sources: &mut Sources) -> Result<ExplainedPage, PageUsageError> {
    let counted = counted_mappings(pid)?
        .into_iter()
        .find(|found| (found.mapping.start..found.mapping.end).contains(&address))
        .ok_or(PageUsageError::NotMapped { pid, address })?;
    let nature = Nature::of(&counted);
    let page = PageRange::single(PageSize::KIB_4.index_of(address));
    let in_page_tables = address < 1 << 63;
    let Entry {
        entry,
        categories,
        registered,
    } = if in_page_tables {
        Entry::read(page, sources)?
    } else {
        Entry::none()
    };
    let frame = entry.frame_number();
    let frames = frame.map(|frame| sources.look_up(&[frame]));
    let frames = frames.transpose()?.unwrap_or_default();
    let page_flags = frames.flags.map(|flags| flags[0]);
    let cgroup = frames.cgroups.map(|cgroups| cgroups[0]);
    let zero_by_flags = page_flags.map(|flags| flags.contains(PageFlags::ZERO_PAGE));
    let mut explained = ExplainedPage {
        address: PageSize::KIB_4.address_of(page.start()),
        swap: swap_entry(entry, sources.frames),
        written: registered.then(|| !entry.is_write_protected()),
        soft_dirty: sources.soft_dirty.then(|| entry.is_soft_dirty()),
        zero: categories
            .map(|all| {
                let huge = all.contains(Categories::HUGE);
                all.contains(Categories::ZERO_PAGE) || nature.is_huge_zero(entry, huge)
            })
            .map(|zero| zero || zero_by_flags == Some(true))
            .or(zero_by_flags),
        huge: categories.map(|all| all.contains(Categories::HUGE)),
        entry,
        frame,
        page_flags,
        map_count: frames.counts.map(|counts| counts[0]),
        cgroup,
        cgroup_path: cgroup.and_then(|inode| Some(sources.cgroup_path(inode)?.to_owned())),
        numa_policy: None,
        numa_node: None,
        no_numa_node: None,
        object: None,
        empty: None,
        unavailable: Vec::new(),
        flags: counted.flags,
        mapping: counted.mapping,
    };
    explained.numa_policy = policy_of(pid, &explained.mapping, sources);
    if in_page_tables {
        match node_of(pid, page, sources) {
            Some(Ok(node)) => explained.numa_node = Some(node),
            Some(Err(errno)) => explained.no_numa_node = Some(errno),
            None => {}
        }
        explained.object = object::state(pid, sources, &explained.mapping, page);
    }
    explained.empty = is_empty(&explained, nature);
    let hidden = explained
        .swap
        .is_some_and(|swap| swap.kind == SwapKind::Hidden);
    if explained.empty.is_none() && in_page_tables && !hidden {
        sources.lacks("content", FORGETFUL.to_owned());
    }
    explained.unavailable = std::mem::take(&mut sources.unavailable);
    Ok(explained)
}

/// The NUMA policy of a mapping.
fn policy_of(pid: i32, mapping: &Mapping, sources: &mut Sources) -> Option<String> {
    let lines = numa_mappings(pid).map_err(|error| sources.numa_unavailable(&error));
    let mut lines = lines.ok()?.into_iter();
    Some(lines.find(|line| line.start == mapping.start)?.policy)
}

/// The NUMA node of a page, or why it has none.
fn node_of(pid: i32, page: PageRange, sources: &mut Sources) -> Option<Result<u32, PageErrno>> {
    let nodes = nodes_of(pid, &[page.start()]);
    let nodes = nodes.map_err(|error| sources.lacks("numa-node", told(&error)));
    Some(nodes.ok()?.first().copied()?.map(|node| node.0))
}

/// What the page tables say of one page.
struct Entry {
    entry: PagemapEntry,
    /// `None` if the kernel cannot tell them.
    categories: Option<Categories>,
    /// Its mapping is registered for write protection.
    registered: bool,
}

impl Entry {
    fn read(page: PageRange, sources: &mut Sources) -> Result<Self, PageUsageError> {
        let entries = sources.pagemap.entries(page)?;
        let registered = is_registered(sources, page)?;
        let spans = spans(sources, page)?;
        let found = spans.first().and_then(|span| span.categories);
        let knows = !sources.categories.is_empty();
        Ok(Self {
            entry: entries.first().copied().unwrap_or(PagemapEntry(0)),
            categories: knows.then(|| found.unwrap_or(Categories::empty())),
            registered,
        })
    }

    /// Of what is in no page table of the process.
    fn none() -> Self {
        Self {
            entry: PagemapEntry(0),
            categories: None,
            registered: false,
        }
    }
}

/// Whether there is nothing at the page. A marker is no content.
fn is_empty(page: &ExplainedPage, nature: Nature) -> Option<bool> {
    let soft_dirty_bit = 1 << 55;
    match page.swap.map(|swap| swap.kind) {
        Some(SwapKind::Hidden) => return None,
        Some(SwapKind::Marker) => {}
        _ if page.entry.0 & !soft_dirty_bit != 0 => return Some(false),
        _ => {}
    }
    match page.object {
        Some(state) => Some(state == ObjectState::Hole),
        None if nature.forgets() => None,
        None => Some(true),
    }
}

fn told(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
