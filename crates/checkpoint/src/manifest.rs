//! Which processes a snapshot holds, and what the parts of each are called in it.

use crate::memo;
use crate::numa;
use pagetide_process::{Encoding, KERNEL_STATE_ATTACHMENT};
use pagetide_snapshot::View;

/// The name of the space that holds a process's memory by virtual address, if it is checkpointed alone.
pub const MEMORY_SPACE: &str = "mem";

/// The name of the attachment that holds its registers and the like, if it is checkpointed alone.
pub const PROCESS_ATTACHMENT: &str = "process";

/// The attachment that names the processes of a tree.
pub const TREE_ATTACHMENT: &str = "tree";

/// Nothing longer was ever written by us.
type ListEncoding = Encoding<{ 16 << 20 }>;

const ENCODING: ListEncoding = Encoding::new(2);

/// What the parts of one process are called in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberNames {
    /// The space with its memory.
    pub space: String,
    /// The attachment with its registers and the like.
    pub process: String,
    /// The attachment that says on which NUMA nodes its memory lay.
    pub numa: String,
    /// The attachment with what the kernel keeps for it.
    pub kernel: String,
    pub(crate) memo: String,
}

impl MemberNames {
    /// The names for a process that is checkpointed alone.
    pub fn alone() -> Self {
        Self {
            space: MEMORY_SPACE.to_owned(),
            process: PROCESS_ATTACHMENT.to_owned(),
            numa: numa::ATTACHMENT.to_owned(),
            kernel: KERNEL_STATE_ATTACHMENT.to_owned(),
            memo: memo::ATTACHMENT.to_owned(),
        }
    }

    /// The names for process `pid` of a tree.
    pub fn in_tree(pid: i32) -> Self {
        let alone = Self::alone();
        Self {
            space: format!("{}:{pid}", alone.space),
            process: format!("{}:{pid}", alone.process),
            numa: format!("{}:{pid}", alone.numa),
            kernel: format!("{}:{pid}", alone.kernel),
            memo: format!("{}:{pid}", alone.memo),
        }
    }
}

/// One process of a tree, as a snapshot names it.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct TreeProcess {
    /// Its pid.
    pub pid: i32,
    /// Its parent's pid.
    pub parent: i32,
    /// It has ended and waits to be reaped; there is nothing more of it in the snapshot.
    pub ended: bool,
    /// How it ended, as wait(2) tells; 0 if it has not, or if the kernel hides it.
    pub exit_status: i32,
}

pub(crate) fn to_bytes(processes: &[TreeProcess]) -> Option<Vec<u8>> {
    ENCODING.encode(&processes)
}

fn from_bytes(bytes: &[u8]) -> Option<Vec<TreeProcess>> {
    let (version, body) = ENCODING.split(bytes).ok()?;
    if version > 1 {
        return ListEncoding::decode_body(body).ok();
    }
    let processes: Vec<(i32, i32, bool)> = ListEncoding::decode_body(body).ok()?;
    let process = |(pid, parent, ended)| TreeProcess {
        pid,
        parent,
        ended,
        exit_status: 0,
    };
    Some(processes.into_iter().map(process).collect())
}

/// The processes of a snapshot of a tree, the one that was named first; `None` if it is of one process
/// alone, or of none.
pub fn tree_of(view: &View) -> Option<Vec<TreeProcess>> {
    from_bytes(view.attachment(TREE_ATTACHMENT)?)
}

/// The processes of which a snapshot holds memory, with what their parts are called. The pid is `None` for
/// a process that was checkpointed alone. Empty if the snapshot holds no process.
pub fn members_of(view: &View) -> Vec<(Option<i32>, MemberNames)> {
    let alone = MemberNames::alone();
    match tree_of(view) {
        Some(processes) => processes
            .iter()
            .filter(|process| !process.ended)
            .map(|process| (Some(process.pid), MemberNames::in_tree(process.pid)))
            .collect(),
        None if view.space_index(&alone.space).is_some() => vec![(None, alone)],
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_it_was_written_and_refused_when_cut() {
        let process = |pid, parent, exit_status: Option<i32>| TreeProcess {
            pid,
            parent,
            ended: exit_status.is_some(),
            exit_status: exit_status.unwrap_or(0),
        };
        let processes = vec![process(7, 1, None), process(8, 7, Some(0x300))];
        let bytes = to_bytes(&processes).expect("a short list fits");
        assert_eq!(from_bytes(&bytes), Some(processes));
        for length in 0..bytes.len() {
            assert_eq!(from_bytes(&bytes[..length]), None);
        }
        let before = Encoding::<100>::new(1).encode(&vec![(7i32, 1i32, false)]);
        let before = from_bytes(&before.expect("a short list fits"));
        assert_eq!(before, Some(vec![process(7, 1, None)]), "the first version");
    }
}
