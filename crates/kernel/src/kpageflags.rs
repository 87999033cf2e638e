//! `/proc/kpageflags`: what a page frame is used for, a bit a property.
//!
//! Since Linux 2.6.25, with CONFIG_PROC_PAGE_MONITOR. For root alone. The numbers are the kernel's
//! `include/uapi/linux/kernel-page-flags.h` and, from 32 on, `include/linux/kernel-page-flags.h`; their
//! meaning is told in `Documentation/admin-guide/mm/pagemap.rst`.
//!
//! Frames of a compound page show the flags of the whole but for COMPOUND_HEAD and COMPOUND_TAIL (and
//! HWPOISON, which is the frame's own). A kernel sets the flags it knows; the others read 0.

use crate::frame_file::FrameFile;
pub use crate::frame_file::{OpenFramesError, ReadFramesError};
use std::fmt;

/// The flags of one page frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PageFlags(pub u64);

/// A flag: its bit, its name in the kernel's header without `KPF_`, and what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFlag {
    /// The number of the bit.
    pub bit: u32,
    /// The kernel's name.
    pub name: &'static str,
    /// What it says of the frame, in a few words.
    pub meaning: &'static str,
}

const fn flag(bit: u32, name: &'static str, meaning: &'static str) -> PageFlag {
    PageFlag { bit, name, meaning }
}

/// All flags that are known, by ascending bit.
pub const PAGE_FLAGS: &[PageFlag] = &[
    flag(0, "LOCKED", "locked, as while it is read or written"),
    flag(
        1,
        "ERROR",
        "reading or writing it failed (unused since 6.9)",
    ),
    flag(2, "REFERENCED", "used since it was last put on a list"),
    flag(3, "UPTODATE", "holds valid data"),
    flag(4, "DIRTY", "holds data that is not on disk yet"),
    flag(5, "LRU", "on a list of the reclaim"),
    flag(6, "ACTIVE", "on an active list"),
    flag(7, "SLAB", "used by the kernel's allocator"),
    flag(8, "WRITEBACK", "being written to disk"),
    flag(9, "RECLAIM", "to be reclaimed as soon as it is written"),
    flag(10, "BUDDY", "free"),
    flag(11, "MMAP", "mapped by a process"),
    flag(12, "ANON", "mapped and not of a file"),
    flag(13, "SWAPCACHE", "has a place in swap"),
    flag(14, "SWAPBACKED", "goes to swap when it is reclaimed"),
    flag(15, "COMPOUND_HEAD", "the first frame of a compound page"),
    flag(16, "COMPOUND_TAIL", "a further frame of a compound page"),
    flag(17, "HUGE", "part of a hugetlb page"),
    flag(
        18,
        "UNEVICTABLE",
        "not to be reclaimed: locked, or in ramfs",
    ),
    flag(19, "HWPOISON", "damaged memory"),
    flag(20, "NOPAGE", "there is no such frame"),
    flag(21, "KSM", "merged with equal pages"),
    flag(22, "THP", "part of a large page, of any size"),
    flag(
        23,
        "OFFLINE",
        "logically offline, as in a balloon (until 5.0: BALLOON)",
    ),
    flag(24, "ZERO_PAGE", "the zero page, small or huge"),
    flag(
        25,
        "IDLE",
        "not used since it was marked idle; may be stale until /sys/kernel/mm/page_idle/bitmap is read",
    ),
    flag(26, "PGTABLE", "a page table"),
    flag(32, "RESERVED", "not managed by the kernel's allocators"),
    flag(33, "MLOCKED", "locked by mlock(2)"),
    flag(
        34,
        "OWNER_2",
        "its owner's second (before 6.14: MAPPEDTODISK)",
    ),
    flag(35, "PRIVATE", "its owner keeps private data for it"),
    flag(36, "PRIVATE_2", "its owner's second kind of private data"),
    flag(37, "OWNER_PRIVATE", "its owner's own"),
    flag(38, "ARCH", "the architecture's own"),
    flag(39, "UNCACHED", "mapped uncached"),
    flag(
        40,
        "SOFTDIRTY",
        "soft-dirty (set by tools, never by the kernel)",
    ),
    flag(41, "ARCH_2", "the architecture's second"),
    flag(42, "ARCH_3", "the architecture's third"),
];

impl PageFlags {
    /// Part of a hugetlb page.
    pub const HUGE: Self = Self(1 << 17);
    /// There is no such frame.
    pub const NOPAGE: Self = Self(1 << 20);
    /// The zero page, small or huge.
    pub const ZERO_PAGE: Self = Self(1 << 24);

    /// True if all flags of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The names of the flags that are set, by ascending bit. A flag that is not known here reads `BIT_n`.
    pub fn names(self) -> impl Iterator<Item = FlagName> {
        (0..u64::BITS)
            .filter(move |bit| self.0 >> bit & 1 == 1)
            .map(FlagName)
    }
}

/// The name of a flag by its bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlagName(pub u32);

impl FlagName {
    /// What is known of it.
    pub fn known(self) -> Option<&'static PageFlag> {
        PAGE_FLAGS.iter().find(|flag| flag.bit == self.0)
    }
}

impl fmt::Display for FlagName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.known() {
            Some(flag) => f.write_str(flag.name),
            None => write!(f, "BIT_{}", self.0),
        }
    }
}

/// The open table.
#[derive(Debug)]
pub struct KPageFlags(FrameFile);

impl KPageFlags {
    /// Opens `/proc/kpageflags`.
    pub fn open() -> Result<Self, OpenFramesError> {
        FrameFile::open("/proc/kpageflags").map(KPageFlags)
    }

    /// The flags of each frame, in the order given. A frame that the kernel has no table for, as of a
    /// device's memory, reads NOPAGE.
    pub fn of(&self, frames: &[u64]) -> Result<Vec<PageFlags>, ReadFramesError> {
        let entries = self.0.entries(frames, PageFlags::NOPAGE.0)?;
        Ok(entries.into_iter().map(PageFlags).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(bits: &[u32]) -> Vec<String> {
        let flags = bits.iter().fold(0, |all, bit| all | 1 << bit);
        PageFlags(flags).names().map(|n| n.to_string()).collect()
    }

    #[test]
    fn every_flag_of_the_header_has_its_bit() {
        let stable = [
            "LOCKED",
            "ERROR",
            "REFERENCED",
            "UPTODATE",
            "DIRTY",
            "LRU",
            "ACTIVE",
            "SLAB",
            "WRITEBACK",
            "RECLAIM",
            "BUDDY",
            "MMAP",
            "ANON",
            "SWAPCACHE",
            "SWAPBACKED",
            "COMPOUND_HEAD",
            "COMPOUND_TAIL",
            "HUGE",
            "UNEVICTABLE",
            "HWPOISON",
            "NOPAGE",
            "KSM",
            "THP",
            "OFFLINE",
            "ZERO_PAGE",
            "IDLE",
            "PGTABLE",
        ];
        let all: Vec<u32> = (0..stable.len() as u32).collect();
        assert_eq!(names(&all), stable);
        let hacking = [
            "RESERVED",
            "MLOCKED",
            "OWNER_2",
            "PRIVATE",
            "PRIVATE_2",
            "OWNER_PRIVATE",
            "ARCH",
            "UNCACHED",
            "SOFTDIRTY",
            "ARCH_2",
            "ARCH_3",
        ];
        let all: Vec<u32> = (32..32 + hacking.len() as u32).collect();
        assert_eq!(names(&all), hacking);
        assert_eq!(PAGE_FLAGS.len(), stable.len() + hacking.len());
    }

    #[test]
    fn idle_is_said_to_be_stale() {
        let idle = PAGE_FLAGS.iter().find(|flag| flag.name == "IDLE");
        let meaning = idle.expect("it is known").meaning;
        assert!(meaning.contains("may be stale until /sys/kernel/mm/page_idle/bitmap is read"));
    }

    #[test]
    fn bits_ascend_and_no_name_stands_twice() {
        assert!(PAGE_FLAGS.is_sorted_by(|a, b| a.bit < b.bit));
        let mut names: Vec<_> = PAGE_FLAGS.iter().map(|flag| flag.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), PAGE_FLAGS.len());
    }

    #[test]
    fn a_flag_that_is_not_known_is_not_lost() {
        assert_eq!(
            names(&[4, 31, 43, 63]),
            ["DIRTY", "BIT_31", "BIT_43", "BIT_63"]
        );
    }

    #[test]
    fn the_constants_are_those_of_the_table() {
        for (flags, name) in [
            (PageFlags::HUGE, "HUGE"),
            (PageFlags::NOPAGE, "NOPAGE"),
            (PageFlags::ZERO_PAGE, "ZERO_PAGE"),
        ] {
            assert_eq!(
                flags.names().map(|n| n.to_string()).collect::<Vec<_>>(),
                [name]
            );
            assert!(PageFlags(u64::MAX).contains(flags));
            assert!(!PageFlags(!flags.0).contains(flags));
        }
    }
}
