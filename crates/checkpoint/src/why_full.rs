//! Why a snapshot is full.

use std::fmt;

/// Why a snapshot holds all pages, and not those alone that were written since the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WhyFull {
    /// [`Request::full`](crate::Request::full) was set.
    AskedFor,
    /// The store has no other.
    First,
    /// Nothing tracked the process since the last one.
    NotTracked,
    /// Tracking had begun, and no snapshot was committed since.
    NoneSinceTracking,
    /// The last attempt ended between taking what was written and storing it.
    Interrupted,
    /// The snapshot that tracking counts from is not in the store any more.
    ParentGone,
    /// The newest snapshot, which pages would be compared with, is damaged.
    ParentUnreadable,
    /// All memory is that of another program (execve(2)).
    NewProgram,
}

impl WhyFull {
    /// The reason, for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AskedFor => "it was asked for",
            Self::First => "it is the first of this store",
            Self::NotTracked => {
                "what the process has written since the last snapshot is not known: nothing tracked it"
            }
            Self::NoneSinceTracking => "no snapshot was committed since tracking began",
            Self::Interrupted => "an earlier snapshot was interrupted",
            Self::ParentGone => "the snapshot that tracking counts from is gone",
            Self::ParentUnreadable => "the newest snapshot cannot be read",
            Self::NewProgram => "the process executed a new program",
        }
    }
}

impl fmt::Display for WhyFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
