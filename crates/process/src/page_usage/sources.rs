//! Where the numbers come from, opened once, and what of it this user is not given.

use super::error::PageUsageError;
use super::usage::Unavailable;
use pagetide_kernel::kpagecgroup::{CgroupPaths, KPageCgroup, OpenFramesError, ReadFramesError};
use pagetide_kernel::kpagecount::KPageCount;
use pagetide_kernel::kpageflags::{KPageFlags, PageFlags};
use pagetide_kernel::numa_maps::{NumaMapsError, numa_mappings};
use pagetide_kernel::pagemap::PagemapEntry;
use pagetide_kernel::pagemap_scan::{Categories, Pagemap};
use pagetide_kernel::probe::known_categories;
use pagetide_pages::{PageRange, PageSize};
use std::io::ErrorKind;
use std::path::Path;

/// Everything that is asked.
pub(super) struct Sources {
    pub(super) pagemap: Pagemap,
    /// The categories that PAGEMAP_SCAN knows; none where there is no PAGEMAP_SCAN.
    pub(super) categories: Categories,
    /// The kernel has soft-dirty bits.
    pub(super) soft_dirty: bool,
    /// Frame numbers and swap slots can be seen.
    pub(super) frames: bool,
    flags: Option<KPageFlags>,
    counts: Option<KPageCount>,
    cgroups: Option<(KPageCgroup, CgroupPaths)>,
    pub(super) unavailable: Vec<Unavailable>,
}

/// What the tables say of some frames, each in the order the frames were given.
#[derive(Default)]
pub(super) struct Frames {
    pub(super) flags: Option<Vec<PageFlags>>,
    pub(super) counts: Option<Vec<u64>>,
    pub(super) cgroups: Option<Vec<u64>>,
}

impl Sources {
    pub(super) fn open(pid: i32) -> Result<Self, PageUsageError> {
        let pagemap = Pagemap::of_process(pid)?;
        let (frames, soft_dirty) = shown_of_own_page();
        let mut sources = Self {
            pagemap,
            categories: known_categories(),
            soft_dirty,
            frames,
            flags: None,
            counts: None,
            cgroups: None,
            unavailable: Vec::new(),
        };
        if !soft_dirty {
            let reason = "this kernel has no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)";
            sources.lacks(SOFT_DIRTY, reason.to_owned());
        }
        if sources.categories.is_empty() {
            let reason = "zero pages are told by page flags only, and huge pages by smaps: this kernel \
                          has no PAGEMAP_SCAN (Linux 6.7)";
            sources.lacks(CATEGORIES, reason.to_owned());
        }
        if sources.frames {
            sources.open_tables();
        } else {
            let hidden = "the kernel shows page frames only to CAP_SYS_ADMIN";
            for what in [FRAMES, SLOTS, FLAGS, CGROUPS] {
                sources.lacks(what, hidden.to_owned());
            }
            let reason =
                format!("{hidden}; the proportional set is taken from smaps, in whole KiB");
            sources.lacks(COUNTS, reason);
        }
        Ok(sources)
    }

    fn open_tables(&mut self) {
        // The first frame of the machine is read to see whether it may be.
        let flags = KPageFlags::open().map(|table| (table.of(&[0]).map(drop), table));
        self.flags = self.opened(FLAGS, flags);
        let counts = KPageCount::open().map(|table| (table.of(&[0]).map(drop), table));
        self.counts = self.opened(COUNTS, counts);
        let cgroups = KPageCgroup::open().map(|table| (table.of(&[0]).map(drop), table));
        if let Some(cgroups) = self.opened(CGROUPS, cgroups) {
            let paths = CgroupPaths::of_this_machine().unwrap_or_else(|error| {
                self.lacks("cgroup-paths", format!("/proc/self/mountinfo: {error}"));
                CgroupPaths::default()
            });
            self.cgroups = Some((cgroups, paths));
        }
    }

    fn opened<T>(
        &mut self,
        what: &'static str,
        table: Result<(Result<(), ReadFramesError>, T), OpenFramesError>,
    ) -> Option<T> {
        let (message, source) = match table {
            Ok((Ok(()), table)) => return Some(table),
            Ok((Err(error), _)) => (error.to_string(), error.source),
            Err(error) => (error.to_string(), error.source),
        };
        let reason = match source.kind() {
            ErrorKind::NotFound => format!("{message}: this kernel has no such table"),
            ErrorKind::PermissionDenied => format!("{message}: it is for root only"),
            _ => format!("{message}: {source}"),
        };
        self.lacks(what, reason);
        None
    }

    pub(super) fn numa_unavailable(&mut self, error: &NumaMapsError) {
        let reason = match error {
            NumaMapsError::Read { source, .. } if source.kind() == ErrorKind::NotFound => {
                "this kernel has no numa_maps (CONFIG_NUMA)".to_owned()
            }
            NumaMapsError::Read { source, .. } => format!("{error}: {source}"),
            _ => error.to_string(),
        };
        self.lacks(NODES, reason);
    }

    pub(super) fn lacks(&mut self, what: &'static str, reason: String) {
        self.unavailable.push(Unavailable { what, reason });
    }

    /// What the tables say of these frames, as far as they can be read.
    pub(super) fn look_up(&self, frames: &[u64]) -> Result<Frames, PageUsageError> {
        Ok(Frames {
            flags: self.flags.as_ref().map(|t| t.of(frames)).transpose()?,
            counts: self.counts.as_ref().map(|t| t.of(frames)).transpose()?,
            cgroups: (self.cgroups.as_ref())
                .map(|(table, _)| table.of(frames))
                .transpose()?,
        })
    }

    pub(super) fn has_flags(&self) -> bool {
        self.flags.is_some()
    }

    pub(super) fn has_counts(&self) -> bool {
        self.counts.is_some()
    }

    pub(super) fn has_cgroups(&self) -> bool {
        self.cgroups.is_some()
    }

    pub(super) fn cgroup_path(&self, inode: u64) -> Option<&Path> {
        self.cgroups.as_ref()?.1.path(inode)
    }
}

/// What can be told of pages besides their entries, by its name, and for what cannot be told the reason.
pub fn page_sources() -> Vec<(&'static str, Result<(), String>)> {
    let mut sources = match Sources::open(std::process::id().cast_signed()) {
        Ok(sources) => sources,
        Err(error) => return vec![("pagemap", Err(error.to_string()))],
    };
    if let Err(error) = numa_mappings(std::process::id().cast_signed()) {
        sources.numa_unavailable(&error);
    }
    let told = |what: &'static str| {
        let lacks = sources.unavailable.iter().find(|one| one.what == what);
        (what, lacks.map_or(Ok(()), |one| Err(one.reason.clone())))
    };
    [
        SOFT_DIRTY, CATEGORIES, FRAMES, SLOTS, FLAGS, COUNTS, CGROUPS, NODES,
    ]
    .map(told)
    .to_vec()
}

const SOFT_DIRTY: &str = "soft-dirty";
const CATEGORIES: &str = "page-categories";
const NODES: &str = "numa-nodes";
const FRAMES: &str = "frame-numbers";
const SLOTS: &str = "swap-slots";
const FLAGS: &str = "page-flags";
const COUNTS: &str = "page-counts";
const CGROUPS: &str = "memory-cgroups";

/// Whether the kernel shows frame numbers to this process, and whether it has soft-dirty bits: by a page
/// of the stack, which is in memory and was just written.
fn shown_of_own_page() -> (bool, bool) {
    let value = 1u8;
    let page = PageSize::KIB_4.index_of(std::ptr::from_ref(&value) as u64);
    let entries = Pagemap::of_self().map(|pagemap| pagemap.entries(PageRange::single(page)));
    let Ok(Ok(entries)) = entries else {
        return (false, false);
    };
    let any = |is: fn(&PagemapEntry) -> bool| entries.iter().any(is);
    (
        any(|entry| entry.frame_number().is_some()),
        any(|entry| entry.is_soft_dirty()),
    )
}
