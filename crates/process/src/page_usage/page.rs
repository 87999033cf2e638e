//! All that is known of one page.

use super::count::{Nature, is_registered, spans};
use super::sources::Sources;
use super::{ObjectState, PageUsageError, Unavailable, object};
use pagetide_kernel::kpageflags::PageFlags;
use pagetide_kernel::maps::Mapping;
use pagetide_kernel::move_pages::{PageErrno, nodes_of};
use pagetide_kernel::numa_maps::numa_mappings;
use pagetide_kernel::pagemap::PagemapEntry;
use pagetide_kernel::pagemap_scan::Categories;
use pagetide_kernel::smaps::counted_mappings;
use pagetide_pages::{PageRange, PageSize};
use std::path::PathBuf;

/// What an entry that reads as swapped stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SwapKind {
    /// A place in a swap area.
    Area,
    /// A mark in an empty slot: write-protected, a guard, or poisoned. There is no content.
    Marker,
    /// A page on its way to another frame, in memory of a device, or damaged.
    Special,
    /// The kernel does not show it to this user.
    Hidden,
}

/// What an entry that is not in memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SwapEntry {
    /// What it stands for.
    pub kind: SwapKind,
    /// Number of the swap area; `None` if it is hidden.
    pub swap_type: Option<u8>,
    /// Place in the swap area, in pages; of a marker, its bits (1 write-protected, 2 poisoned, 4 guard).
    pub offset: Option<u64>,
}

impl SwapEntry {
    /// What a marker says of its empty slot; `None` for anything else.
    pub fn marks(&self) -> Option<Vec<&'static str>> {
        let bits = self.offset.filter(|_| self.kind == SwapKind::Marker)?;
        let marks = [
            (1, "write-protected"),
            (2, "poisoned: reading it is a SIGBUS"),
            (4, "guard region"),
        ];
        let set = marks.iter().filter(|(bit, _)| bits & bit != 0);
        Some(set.map(|(_, name)| *name).collect())
    }
}

/// The last swap type stands for markers (since 5.19), and those from here up to it for other things than
/// swap areas.
const FIRST_SPECIAL_TYPE: u8 = 23;
const MARKER_TYPE: u8 = 31;

/// The swap entry of a page that is not in memory; `shown` if the kernel shows it to this user.
pub(super) fn swap_entry(entry: PagemapEntry, shown: bool) -> Option<SwapEntry> {
    let (swap_type, offset) = entry.swap_slot()?;
    let kind = match swap_type {
        _ if !shown => {
            return Some(SwapEntry {
                kind: SwapKind::Hidden,
                swap_type: None,
                offset: None,
            });
        }
        ..FIRST_SPECIAL_TYPE => SwapKind::Area,
        MARKER_TYPE => SwapKind::Marker,
        _ => SwapKind::Special,
    };
    Some(SwapEntry {
        kind,
        swap_type: Some(swap_type),
        offset: Some(offset),
    })
}

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
    let mut entry = PagemapEntry(0);
    let mut categories = None;
    let mut registered = false;
    if in_page_tables {
        entry = sources
            .pagemap
            .entries(page)?
            .first()
            .copied()
            .unwrap_or(entry);
        registered = is_registered(sources, page)?;
        let span = spans(sources, page)?
            .first()
            .and_then(|span| span.categories);
        let knows = !sources.categories.is_empty();
        categories = knows.then(|| span.unwrap_or(Categories::empty()));
    }
    let frame = entry.frame_number();
    let frames = match frame {
        Some(frame) => sources.look_up(&[frame])?,
        None => Default::default(),
    };
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
    match numa_mappings(pid) {
        Ok(lines) => {
            let line = lines
                .into_iter()
                .find(|line| line.start == explained.mapping.start);
            if let Some(line) = line {
                explained.numa_policy = Some(line.policy);
            }
        }
        Err(error) => sources.numa_unavailable(&error),
    }
    if in_page_tables {
        match nodes_of(pid, &[page.start()]) {
            Ok(nodes) => match nodes.first() {
                Some(Ok(node)) => explained.numa_node = Some(node.0),
                Some(Err(errno)) => explained.no_numa_node = Some(*errno),
                None => {}
            },
            Err(error) => sources.lacks("numa-node", told(&error)),
        }
        explained.object = object::state(pid, sources, &explained.mapping, page);
    }
    explained.empty = is_empty(&explained, nature);
    let hidden = explained
        .swap
        .is_some_and(|swap| swap.kind == SwapKind::Hidden);
    if explained.empty.is_none() && in_page_tables && !hidden {
        let reason = "the page table forgets pages of files and shared memory that are swapped out or \
                      reclaimed: an empty entry does not tell whether there is content";
        sources.lacks("content", reason.to_owned());
    }
    explained.unavailable = std::mem::take(&mut sources.unavailable);
    Ok(explained)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(swap_type: u64, offset: u64) -> PagemapEntry {
        PagemapEntry(1 << 62 | offset << 5 | swap_type)
    }

    #[test]
    fn swap_areas_markers_and_others_are_told_apart() {
        let kind = |swap_type| swap_entry(entry(swap_type, 9), true).map(|swap| swap.kind);
        assert_eq!(kind(0), Some(SwapKind::Area));
        assert_eq!(kind(22), Some(SwapKind::Area));
        assert_eq!(kind(24), Some(SwapKind::Special));
        assert_eq!(kind(31), Some(SwapKind::Marker));
        let shown = swap_entry(entry(3, 9), true).expect("it is swapped");
        assert_eq!((shown.swap_type, shown.offset), (Some(3), Some(9)));
    }

    #[test]
    fn what_markers_say_is_told() {
        let marks = |offset| swap_entry(entry(31, offset), true).and_then(|swap| swap.marks());
        assert_eq!(marks(1), Some(vec!["write-protected"]));
        assert_eq!(marks(2), Some(vec!["poisoned: reading it is a SIGBUS"]));
        assert_eq!(marks(5), Some(vec!["write-protected", "guard region"]));
        let area = swap_entry(entry(0, 5), true).expect("it is swapped");
        assert_eq!(area.marks(), None);
    }

    #[test]
    fn what_is_hidden_is_not_taken_for_the_first_place_of_the_first_area() {
        let hidden = swap_entry(entry(0, 0), false).expect("it is swapped");
        assert_eq!(hidden.kind, SwapKind::Hidden);
        assert_eq!((hidden.swap_type, hidden.offset), (None, None));
        assert_eq!(swap_entry(PagemapEntry(1 << 63 | 5), true), None);
        assert_eq!(swap_entry(PagemapEntry(0), true), None);
    }
}
