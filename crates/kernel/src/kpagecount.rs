//! `/proc/kpagecount`: how many times a page frame is mapped.
//!
//! Since Linux 2.6.25, with CONFIG_PROC_PAGE_MONITOR. For root alone. Kernels built with
//! CONFIG_NO_PAGE_MAPCOUNT (6.15) do not count for each frame of a large page: there the value is the
//! average of the large page, and at least 1 if any of it is mapped. The zero page, and frames that are
//! mapped without being counted (`[vvar]`, device memory), read 0.
//! Source: `Documentation/admin-guide/mm/pagemap.rst`.

use crate::frame_file::FrameFile;
pub use crate::frame_file::{OpenFramesError, ReadFramesError};

/// The open table.
#[derive(Debug)]
pub struct KPageCount(FrameFile);

impl KPageCount {
    /// Opens `/proc/kpagecount`.
    pub fn open() -> Result<Self, OpenFramesError> {
        FrameFile::open("/proc/kpagecount").map(KPageCount)
    }

    /// How often each frame is mapped, in the order given; 0 for a frame that the kernel has no table for.
    pub fn of(&self, frames: &[u64]) -> Result<Vec<u64>, ReadFramesError> {
        self.0.entries(frames, 0)
    }
}
