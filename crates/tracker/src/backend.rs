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
    pub const ALL: [Backend; 3] = [Backend::WpAsync, Backend::SoftDirty, Backend::Rehash];

    /// The name by which users choose it.
    pub const fn name(self) -> &'static str {
        match self {
            Backend::WpAsync => "wp-async",
            Backend::SoftDirty => "soft-dirty",
            Backend::Rehash => "rehash",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
