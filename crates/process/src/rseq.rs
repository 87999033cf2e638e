//! Restartable sequences: a thread stopped in the middle of one goes on at its abort handler.
//!
//! Such a sequence (`rseq(2)`) must not be continued once its thread has been away from the
//! processor; the kernel sees to that on the way back to user mode, by the instruction pointer.
//! With registers replaced meanwhile (a remote call, a roll-back, a copy that is restored
//! elsewhere) it would not notice. So the jump to the handler is made when the thread is stopped.
//! An abort is right at any time, it only costs the thread a retry.

use std::fs::File;
use std::os::unix::fs::FileExt;

use pagetide_kernel::ptrace::{self, Registers, ThreadId};

/// Offset of the pointer to the current sequence in `struct rseq`, in bytes.
const CURRENT_SEQUENCE: u64 = 8;

/// The registers with the sequence aborted, if the thread is in one.
pub(crate) fn aborted(thread: ThreadId, registers: &Registers, memory: &File) -> Option<Registers> {
    // System calls are not allowed inside a sequence.
    if registers.orig_rax.cast_signed() >= 0 {
        return None;
    }
    // Kernels before 5.13 cannot tell; the libc that registers sequences is younger.
    let area = ptrace::rseq_configuration(thread).ok()??.address;
    let sequence = word(memory, area.checked_add(CURRENT_SEQUENCE)?)?;
    if sequence == 0 {
        return None;
    }
    // `struct rseq_cs`: version and flags, start, length, abort handler.
    let start = word(memory, sequence.checked_add(8)?)?;
    let length = word(memory, sequence.checked_add(16)?)?;
    let abort = word(memory, sequence.checked_add(24)?)?;
    let inside = registers.rip.wrapping_sub(start) < length;
    inside.then_some(Registers {
        rip: abort,
        ..*registers
    })
}

fn word(memory: &File, address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    memory.read_exact_at(&mut bytes, address).ok()?;
    Some(u64::from_le_bytes(bytes))
}
