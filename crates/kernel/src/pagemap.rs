//! The entries of `/proc/PID/pagemap`: 64 bits a page. Not the scan ioctl on the same file.
//!
//! Since Linux 2.6.25. Reading needs `PTRACE_MODE_READ_FSCREDS`; without CAP_SYS_ADMIN the frame
//! number reads as zero (since 4.2). Source: `Documentation/admin-guide/mm/pagemap.rst`.

use crate::pagemap_scan::Pagemap;
use pagetide_pages::{PageIndex, PageRange};
use std::os::unix::fs::FileExt;

const ENTRY_BYTES: u64 = 8;

/// One entry: what the page table says of one page of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagemapEntry(pub u64);

impl PagemapEntry {
    const fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 == 1
    }

    /// The page is in memory (bit 63).
    pub const fn is_present(self) -> bool {
        self.bit(63)
    }

    /// The page is in swap (bit 62). A write-protect marker on an empty slot reads so too.
    pub const fn is_swapped(self) -> bool {
        self.bit(62)
    }

    /// A file page or shared anonymous page (bit 61, since 3.5).
    pub const fn is_file_or_shared(self) -> bool {
        self.bit(61)
    }

    /// A guard region (bit 58, since 6.14).
    pub const fn is_guard(self) -> bool {
        self.bit(58)
    }

    /// Write-protected through userfaultfd (bit 57, since 5.13).
    pub const fn is_write_protected(self) -> bool {
        self.bit(57)
    }

    /// Mapped exactly once (bit 56, since 4.2).
    pub const fn is_exclusive(self) -> bool {
        self.bit(56)
    }

    /// Soft-dirty (bit 55). Always 0 where the kernel has no CONFIG_MEM_SOFT_DIRTY.
    pub const fn is_soft_dirty(self) -> bool {
        self.bit(55)
    }

    /// The page frame number of a page in memory; `None` if it is not in memory or if the reader
    /// lacks CAP_SYS_ADMIN.
    pub const fn frame_number(self) -> Option<u64> {
        let number = self.0 & ((1 << 55) - 1);
        if self.is_present() && number != 0 {
            Some(number)
        } else {
            None
        }
    }

    /// Swap type and offset of a page that is in swap and not in memory.
    pub const fn swap_slot(self) -> Option<(u8, u64)> {
        if self.is_swapped() && !self.is_present() {
            Some(((self.0 & 0x1f) as u8, self.0 >> 5 & ((1 << 50) - 1)))
        } else {
            None
        }
    }
}

/// Why entries could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadEntriesError {
    /// The read ended before the last entry: the address is outside of the address space, or the
    /// process is gone.
    #[error("pagemap ends at page {page:#x}, before the range does")]
    Ended {
        /// The first page without an entry.
        page: u64,
    },
    /// The kernel refused the read.
    #[error("read pagemap at page {page:#x}")]
    Kernel {
        /// The page at which the read started.
        page: u64,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

impl Pagemap {
    /// Whether the address space this was opened on still exists. Some kernels scan a dead one as
    /// empty, without an error; the file itself has an entry for page 0 of every living space. An address
    /// space that another process shares (CLONE_VM) lives on.
    pub fn is_alive(&self) -> bool {
        !matches!(
            self.file().read_at(&mut [0u8; ENTRY_BYTES as usize], 0),
            Ok(0)
        )
    }

    /// The entries of `range` (base pages of 4 KiB), one for each page, in order.
    pub fn entries(&self, range: PageRange) -> Result<Vec<PagemapEntry>, ReadEntriesError> {
        let mut entries = Vec::new();
        self.each_entry(range, |_, entry| entries.push(entry))?;
        Ok(entries)
    }

    /// Hands each page of `range` (base pages of 4 KiB) and its entry to `each`, in order. Costs 20 to
    /// 60 ns a page, whether it is mapped or not.
    pub fn each_entry(
        &self,
        range: PageRange,
        mut each: impl FnMut(PageIndex, PagemapEntry),
    ) -> Result<(), ReadEntriesError> {
        const AT_ONCE: u64 = 4096;
        let at_once = range.count().0.min(AT_ONCE);
        let mut bytes = vec![0u8; (at_once * ENTRY_BYTES) as usize];
        let mut at = range.start();
        while at < range.end() {
            let left = (range.end().0 - at.0).min(at_once);
            let wanted = &mut bytes[..(left * ENTRY_BYTES) as usize];
            let read = match self.file().read_at(wanted, at.0 * ENTRY_BYTES) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                other => other.map_err(|source| ReadEntriesError::Kernel { page: at.0, source })?,
            };
            let (whole, _) = bytes[..read].as_chunks::<{ ENTRY_BYTES as usize }>();
            if whole.is_empty() {
                return Err(ReadEntriesError::Ended { page: at.0 });
            }
            for entry in whole {
                each(at, PagemapEntry(u64::from_ne_bytes(*entry)));
                at = PageIndex(at.0 + 1);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swapped_entry_has_a_slot_and_no_frame() {
        let entry = PagemapEntry(1 << 62 | 7 << 5 | 3);
        assert!(entry.is_swapped() && !entry.is_present());
        assert_eq!(entry.swap_slot(), Some((3, 7)));
        assert_eq!(entry.frame_number(), None);
    }

    #[test]
    fn a_frame_number_of_zero_means_hidden() {
        assert_eq!(PagemapEntry(1 << 63).frame_number(), None);
        assert_eq!(PagemapEntry(1 << 63 | 42).frame_number(), Some(42));
    }
}
