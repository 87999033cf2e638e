//! Why memory is read in full and compared with the parent snapshot instead of being tracked. A reason
//! concerns one mapping or a whole process. It is found where the memory is looked at, and told in the report.

use std::fmt;

/// Why a mapping, or all memory of a process, is compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ComparedBecause {
    /// The tracker cannot watch the mapping; what it said.
    Refused(String),
    /// A ring (io_uring) may write to memory of the process that nothing lists.
    UnlistedRing,
    /// There was such a ring at the last snapshot.
    UnlistedRingBefore,
    /// Reads of the kernel may be under way, and this backend would miss what they write.
    ReadsUnderWay,
}

impl ComparedBecause {
    /// The name by which machines know it.
    pub fn name(&self) -> &'static str {
        match self {
            ComparedBecause::Refused(_) => "refused",
            ComparedBecause::UnlistedRing => "unlisted-ring",
            ComparedBecause::UnlistedRingBefore => "unlisted-ring-before",
            ComparedBecause::ReadsUnderWay => "reads-under-way",
        }
    }
}

impl fmt::Display for ComparedBecause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ComparedBecause::Refused(said) => said,
            ComparedBecause::UnlistedRing => {
                "an io_uring or a device may write to memory of it that nothing lists"
            }
            ComparedBecause::UnlistedRingBefore => {
                "at the last snapshot an io_uring or a device might write to memory of it that nothing lists"
            }
            ComparedBecause::ReadsUnderWay => {
                "it does asynchronous I/O, and this backend misses what arrives during a snapshot"
            }
        })
    }
}
