//! Why memory is not in a snapshot.

use std::fmt;

/// Why a snapshot does not hold the contents of a mapping, or not all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NotCapturedBecause {
    /// The kernel maps it into each process.
    KernelData,
    /// A device, or the kernel, that does not let it be read.
    DeviceMemory,
    /// A device writes to memory of the process by itself.
    WrittenByDevice,
    /// The arena of a BPF program: to read pages that only the program has used would be to allocate them.
    BpfMemory,
}

impl NotCapturedBecause {
    /// The reason, for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KernelData => "data of the kernel, not of the process",
            Self::DeviceMemory => "memory of a device or of the kernel, which cannot be read",
            Self::WrittenByDevice => "what a device writes to memory by itself leaves no trace",
            Self::BpfMemory => {
                "pages of it that a BPF program may have used and the process has not are not seen"
            }
        }
    }
}

impl fmt::Display for NotCapturedBecause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
