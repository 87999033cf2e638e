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
            WhyFull::AskedFor => "it was asked for",
            WhyFull::First => "it is the first of this store",
            WhyFull::NotTracked => {
                "what the process has written since the last snapshot is not known: nothing tracked it"
            }
            WhyFull::NoneSinceTracking => "no snapshot was committed since tracking began",
            WhyFull::Interrupted => "an earlier snapshot was interrupted",
            WhyFull::ParentGone => "the snapshot that tracking counts from is gone",
            WhyFull::ParentUnreadable => "the newest snapshot cannot be read",
            WhyFull::NewProgram => "the process executed a new program",
        }
    }
}

impl fmt::Display for WhyFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
