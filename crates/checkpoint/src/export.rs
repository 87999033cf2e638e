//! A snapshot of a process as plain files: the bytes of each region, or an ELF core.
//!
//! Nothing here needs the process, and nothing is interpreted: whoever reads the files sees what the
//! process would have seen at the instant of the snapshot. Pages that the snapshot left in files are fetched
//! from there, and refused if they are not what they were.

mod core;
mod region;

pub use core::{CoreError, CoreExtent, write_core};
pub use region::{ExportError, write_region};
