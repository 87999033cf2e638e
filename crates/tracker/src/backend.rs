//! The ways in which written pages are found.

use std::fmt;

/// How written pages are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// userfaultfd in asynchronous write-protect mode, harvested with PAGEMAP_SCAN (Linux 6.7).
    WpAsync,
    /// Soft-dirty bits, cleared through `/proc/PID/clear_refs`.
    SoftDirty,
    /// No help from the kernel: every page is read and compared with what is stored.
    Rehash,
}

impl Backend {
    /// All backends, the preferred first.
    pub const ALL: [Self; 3] = [Self::WpAsync, Self::SoftDirty, Self::Rehash];

    /// The name by which users choose it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WpAsync => "wp-async",
            Self::SoftDirty => "soft-dirty",
            Self::Rehash => "rehash",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
