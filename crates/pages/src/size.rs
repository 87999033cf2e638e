//! The size of a page, and the arithmetic between bytes and pages. Not the set of pages itself.

use crate::range::{PageCount, PageIndex, PageRange};
use std::fmt;

/// The size of a page in bytes: a power of two of at least 512 bytes and at most 1 GiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize {
    shift: u32,
}

/// Why a number of bytes is not a page size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSizeError {
    /// The number that was refused.
    pub bytes: u64,
}

impl fmt::Display for PageSizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bytes is not a page size: a power of two from 512 to 1073741824 is needed",
            self.bytes
        )
    }
}

impl std::error::Error for PageSizeError {}

impl PageSize {
    /// 4 KiB, the base page of x86-64.
    pub const KIB_4: Self = Self { shift: 12 };

    /// The page size of `bytes` bytes.
    pub const fn new(bytes: u64) -> Result<Self, PageSizeError> {
        if bytes.is_power_of_two() && bytes >= 512 && bytes <= 1 << 30 {
            Ok(Self {
                shift: bytes.trailing_zeros(),
            })
        } else {
            Err(PageSizeError { bytes })
        }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.shift
    }

    /// The size in bytes, as a length in memory.
    #[expect(clippy::len_without_is_empty, reason = "no page is empty")]
    pub const fn len(self) -> usize {
        1 << self.shift
    }

    /// The page that holds the byte at `address`.
    pub const fn index_of(self, address: u64) -> PageIndex {
        PageIndex(address >> self.shift)
    }

    /// The address of the first byte of `page`. Page indices of real spaces keep this below 2^64.
    pub const fn address_of(self, page: PageIndex) -> u64 {
        page.0 << self.shift
    }

    /// The length of `count` pages in bytes.
    pub const fn bytes_of(self, count: PageCount) -> u64 {
        count.0 << self.shift
    }

    /// True if `address` is the first byte of a page.
    pub const fn is_aligned(self, address: u64) -> bool {
        address & (self.bytes() - 1) == 0
    }

    /// The smallest range of pages that holds every byte of `start..end` (addresses). Empty when
    /// `end <= start`.
    pub const fn covering(self, start: u64, end: u64) -> PageRange {
        if end <= start {
            let at = self.index_of(start);
            return PageRange::new(at, at);
        }
        PageRange::new(
            self.index_of(start),
            PageIndex(((end - 1) >> self.shift) + 1),
        )
    }

    /// The first address of `range` and the first address past it.
    pub const fn span_of(self, range: PageRange) -> (u64, u64) {
        (self.address_of(range.start()), self.address_of(range.end()))
    }
}

impl fmt::Debug for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageSize({})", self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_are_not_powers_of_two_are_refused() {
        for bytes in [0, 1, 256, 4095, 4097, 3 << 12, 1 << 31] {
            assert_eq!(PageSize::new(bytes), Err(PageSizeError { bytes }));
        }
        assert_eq!(PageSize::new(4096), Ok(PageSize::KIB_4));
    }

    #[test]
    fn covering_takes_in_every_byte() {
        let size = PageSize::KIB_4;
        let pages = |a, b| PageRange::new(PageIndex(a), PageIndex(b));
        assert_eq!(size.covering(0, 1), pages(0, 1));
        assert_eq!(size.covering(4095, 4097), pages(0, 2));
        assert_eq!(size.covering(4096, 8192), pages(1, 2));
        assert!(size.covering(4096, 4096).is_empty());
        assert_eq!(size.span_of(pages(1, 3)), (4096, 12288));
    }
}
