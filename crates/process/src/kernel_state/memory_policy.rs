//! On which NUMA nodes a thread wants its memory: `set_mempolicy(2)`. A kernel without NUMA has no such thing.

use crate::kernel_state::ask::{Answer, Question};
use crate::kernel_state::calls::Caller;
use crate::kernel_state::error::KernelStateApplyError;
use bincode::{Decode, Encode};
use nix::libc;

/// As many nodes as any kernel for x86-64 is built for.
const NODES: usize = 1024;
const NODE_WORDS: usize = NODES / 64;
/// The mode, and room up to a multiple of 8.
const MODE_BYTES: u64 = 8;

/// What a thread asked for its memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct MemoryPolicy {
    /// MPOL_DEFAULT 0, MPOL_PREFERRED 1, MPOL_BIND 2, MPOL_INTERLEAVE 3, MPOL_LOCAL 4 and younger ones, with their
    /// flags.
    pub mode: u32,
    /// The nodes: bit n%64 of word n/64 for number n. Without words of 0 at the end.
    pub nodes: Vec<u64>,
}

pub(super) fn question() -> Question {
    let length = 8 + NODE_WORDS * 8;
    let nodes = u64::try_from(NODES).unwrap_or(0);
    Question::bytes(libc::SYS_get_mempolicy, [0, 0, nodes, 0, 0, 0], 0, length)
        .and_pointer(1, MODE_BYTES)
}

pub(super) fn answered(answer: &Answer) -> MemoryPolicy {
    let mut nodes: Vec<u64> = (1..=NODE_WORDS).map(|index| answer.word(index)).collect();
    while nodes.last() == Some(&0) {
        nodes.pop();
    }
    MemoryPolicy {
        mode: answer.half(0),
        nodes,
    }
}

pub(super) fn apply(
    policy: &MemoryPolicy,
    caller: &mut Caller<'_>,
) -> Result<(), KernelStateApplyError> {
    let what = "memory policy";
    let mode = u64::from(policy.mode);
    if policy.nodes.is_empty() {
        // Fails only on a kernel without NUMA, or for a mode that needs nodes.
        let set = caller.try_call(what, libc::SYS_set_mempolicy, [mode, 0, 0, 0, 0, 0])?;
        if set.is_some() || policy.mode == 0 {
            return Ok(());
        }
    }
    let mut bytes = vec![0; NODE_WORDS * 8];
    for (place, word) in bytes.chunks_exact_mut(8).zip(&policy.nodes) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    // The kernel takes one bit less than it is told.
    let nodes = u64::try_from(NODES).unwrap_or(0) + 1;
    caller.call_with(what, libc::SYS_set_mempolicy, &mut bytes, &|address| {
        [mode, address, nodes, 0, 0, 0]
    })?;
    Ok(())
}
