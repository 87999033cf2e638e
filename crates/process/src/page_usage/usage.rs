//! What is counted, of one mapping and of all.

use pagetide_kernel::kpageflags::FlagName;
use pagetide_kernel::maps::Mapping;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What can be counted of a mapping, or of all mappings. Sizes are in bytes of virtual memory: a frame that
/// is mapped at two places counts twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Address space.
    pub size_bytes: u64,
    /// In memory, whatever it is: also the zero page, and memory of the kernel or a device.
    pub present_bytes: u64,
    /// In swap, as the page table has it. Swapped pages of shared memory are not in the page table; see
    /// `object_swapped_bytes` and `swap_bytes`.
    pub swapped_bytes: u64,
    /// Written since it was last write-protected by userfaultfd; `None` if nothing is registered for that.
    pub written_bytes: Option<u64>,
    /// Soft-dirty; `None` if the kernel has no such bits.
    pub soft_dirty_bytes: Option<u64>,
    /// The zero page, small or huge; `None` if it cannot be told.
    pub zero_bytes: Option<u64>,
    /// Mapped as huge pages: transparent ones that are whole, and hugetlb.
    pub huge_bytes: u64,
    /// Pages of files and of shared memory.
    pub file_bytes: u64,
    /// What the object behind shared memory has of the range in memory, mapped in this process or not; `None` for anything
    /// else than shared memory, and without privilege.
    pub object_resident_bytes: Option<u64>,
    /// The part of that which this process has mapped.
    pub object_present_bytes: Option<u64>,
    /// What it has in swap.
    pub object_swapped_bytes: Option<u64>,
    /// What it does not have: nobody ever touched it, or it was dropped.
    pub object_hole_bytes: Option<u64>,
    /// Pages that are mapped once and nowhere else.
    pub exclusive_bytes: u64,
    /// Guard regions (MADV_GUARD_INSTALL).
    pub guard_bytes: u64,
    /// Pages of hugetlb. The kernel does not count them as resident, so neither do the next three.
    pub hugetlb_bytes: u64,
    /// Resident set: present pages that are counted, so not the zero page.
    pub rss_bytes: u64,
    /// Unique set: the part of it that is mapped once and nowhere else.
    pub uss_bytes: u64,
    /// Proportional set, in units of 1/4096 byte: each page divided by how often it is mapped.
    pub(super) pss_fixed: Option<u64>,
    /// In swap, swapped pages of shared memory included (`Swap` of smaps).
    pub swap_bytes: u64,
    /// The same, each page divided by its users (`SwapPss` of smaps); `None` for a part of a mapping.
    pub swap_pss_bytes: Option<u64>,
    /// Locked in memory, each page divided as for the proportional set (`Locked` of smaps); `None` for a part of a mapping.
    pub locked_bytes: Option<u64>,
    /// How many present pages have each flag; `None` without privilege.
    pub page_flags: Option<BTreeMap<FlagName, u64>>,
    /// Bytes on each NUMA node; `None` if the kernel knows none.
    pub numa_bytes: Option<BTreeMap<u32, u64>>,
    /// Present pages by the inode of the memory cgroup they are charged to, 0 for none; `None` without
    /// privilege.
    pub cgroup_pages: Option<BTreeMap<u64, u64>>,
}

/// The unit of the proportional set, as in the kernel: finer than bytes, so that rounding does not add up.
pub(super) const PSS_SHIFT: u32 = 12;

impl Usage {
    /// Proportional set in bytes: each page divided by how often it is mapped. `None` for a part of a mapping where the
    /// kernel does not show how often pages are mapped.
    pub fn pss_bytes(&self) -> Option<u64> {
        self.pss_fixed.map(|pss| pss >> PSS_SHIFT)
    }

    pub(super) fn add(&mut self, other: &Self) {
        fn both(a: Option<u64>, b: Option<u64>) -> Option<u64> {
            match (a, b) {
                (Some(a), Some(b)) => Some(a + b),
                (a, b) => a.or(b),
            }
        }
        fn merge<K: Copy + Ord>(
            into: &mut Option<BTreeMap<K, u64>>,
            from: &Option<BTreeMap<K, u64>>,
        ) {
            for (key, count) in from.iter().flatten() {
                *into.get_or_insert_default().entry(*key).or_default() += count;
            }
        }
        self.size_bytes += other.size_bytes;
        self.present_bytes += other.present_bytes;
        self.swapped_bytes += other.swapped_bytes;
        self.written_bytes = both(self.written_bytes, other.written_bytes);
        self.soft_dirty_bytes = both(self.soft_dirty_bytes, other.soft_dirty_bytes);
        self.zero_bytes = both(self.zero_bytes, other.zero_bytes);
        self.huge_bytes += other.huge_bytes;
        self.file_bytes += other.file_bytes;
        self.object_resident_bytes = both(self.object_resident_bytes, other.object_resident_bytes);
        self.object_present_bytes = both(self.object_present_bytes, other.object_present_bytes);
        self.object_swapped_bytes = both(self.object_swapped_bytes, other.object_swapped_bytes);
        self.object_hole_bytes = both(self.object_hole_bytes, other.object_hole_bytes);
        self.exclusive_bytes += other.exclusive_bytes;
        self.guard_bytes += other.guard_bytes;
        self.hugetlb_bytes += other.hugetlb_bytes;
        self.rss_bytes += other.rss_bytes;
        self.uss_bytes += other.uss_bytes;
        self.pss_fixed = both(self.pss_fixed, other.pss_fixed);
        self.swap_bytes += other.swap_bytes;
        self.swap_pss_bytes = both(self.swap_pss_bytes, other.swap_pss_bytes);
        self.locked_bytes = both(self.locked_bytes, other.locked_bytes);
        merge(&mut self.page_flags, &other.page_flags);
        merge(&mut self.numa_bytes, &other.numa_bytes);
        merge(&mut self.cgroup_pages, &other.cgroup_pages);
    }
}

/// A mapping and what is counted of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RegionUsage {
    /// The mapping.
    pub mapping: Mapping,
    /// VmFlags of proc_pid_smaps(5), as their two-letter names.
    pub flags: Vec<String>,
    /// Size of the pages the kernel uses for it: larger than 4096 only for hugetlb.
    pub page_bytes: u64,
    /// The NUMA policy, as the kernel prints it; `None` if the kernel knows no nodes.
    pub numa_policy: Option<String>,
    /// What is counted.
    pub usage: Usage,
}

/// Something that is not told, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unavailable {
    /// What.
    pub what: &'static str,
    /// Why, and what would help.
    pub reason: String,
}

/// The mappings of a process, counted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PageUsage {
    /// Each mapping, by ascending address.
    pub regions: Vec<RegionUsage>,
    /// All of them.
    pub totals: Usage,
    /// The paths of the memory cgroups that are named in the counts, as far as they can be seen from here.
    pub cgroup_paths: BTreeMap<u64, PathBuf>,
    /// What is not told.
    pub unavailable: Vec<Unavailable>,
}
