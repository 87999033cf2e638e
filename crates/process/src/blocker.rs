//! What keeps a process from being restored, each thing by a name.

use crate::blocker_kind::BlockerKind;
use std::fmt;

/// One thing of a process that a restore cannot bring back.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Blocker {
    /// The process.
    pub pid: i32,
    /// The kind.
    pub kind: BlockerKind,
    /// Which one of the process: `fd:7`, `mapping:7f1200000000`, `thread:4712`, `process`.
    pub place: String,
    /// What it is, for people: `descriptor 7 is a raw socket`.
    pub what: String,
    /// What to do about it, for people: `close it before the checkpoint`.
    pub advice: String,
    /// What a restore does without it once the user has accepted it, for people: `descriptor 7 is closed`. `None` if no
    /// restore is possible whatever the user accepts.
    pub instead: Option<String>,
}

impl Blocker {
    /// The name by which the user accepts it: name of the kind, and place, `raw-socket:fd:7`. Within one process no two blockers have
    /// the same.
    pub fn name(&self) -> String {
        format!("{}:{}", self.kind, self.place)
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.name(), self.what, self.advice)
    }
}
