//! The pure vocabulary of pagetide: page sizes, indices, counts, ranges and sets.
//!
//! Nothing here does I/O or knows what a page belongs to. A page index counts pages from the start
//! of some space (the virtual address space of a process, the offsets of a shared object, the
//! guest-physical addresses of a VM), so an index is not an address, a count is not an index, and
//! neither is a length in bytes: each is a type of its own.

mod range;
mod set;
mod size;

pub use range::{PageCount, PageIndex, PageRange};
pub use set::PageSet;
pub use size::{PageSize, PageSizeError};
