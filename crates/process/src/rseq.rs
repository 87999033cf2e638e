//! Restartable sequences: a thread stopped in the middle of one goes on at its abort handler.
//!
//! Such a sequence (`rseq(2)`) must not be continued once its thread has been away from the
//! processor; the kernel sees to that on the way back to user mode, by the instruction pointer.
//! With registers replaced meanwhile (a remote call, a roll-back, a copy that is restored
//! elsewhere) it would not notice. So the jump to the handler is made when the thread is stopped.
//! An abort is right at any time, it only costs the thread a retry.

use pagetide_kernel::ptrace::{self, Registers, ThreadId};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

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

/// Where a thread runs, as the kernel writes it into the thread's memory on each way to user mode: `cpu_id_start` and
/// `cpu_id`, `node_id` and `mm_cid` of `struct rseq`.
#[derive(Debug)]
pub(crate) struct Whereabouts {
    /// Address of the area.
    pub(crate) area: u64,
    bytes: [[u8; 8]; 2],
}

/// Offsets of these in `struct rseq`.
const WRITTEN_BY_KERNEL: [Range<u64>; 2] = [0..8, 20..28];

/// From this version on the kernel remembers what it wrote, and writes again only what has changed since: what was put
/// back would stay, and might be wrong when the thread runs.
const REMEMBERS: [u32; 2] = [6, 19];

/// True before that version. It is asked for each thread, in the stop.
static IS_WRITTEN_ANEW: OnceLock<bool> = OnceLock::new();

impl Whereabouts {
    /// `None` if there is no such area, or if it must not be put back on this kernel.
    pub(crate) fn of(thread: ThreadId, memory: &File) -> Option<Self> {
        if !IS_WRITTEN_ANEW.get_or_init(|| kernel_version().is_some_and(|own| own < REMEMBERS)) {
            return None;
        }
        let area = ptrace::rseq_configuration(thread).ok()??.address;
        let mut bytes = [[0; 8]; 2];
        for (bytes, place) in bytes.iter_mut().zip(WRITTEN_BY_KERNEL) {
            let address = area.checked_add(place.start)?;
            memory.read_exact_at(bytes, address).ok()?;
        }
        Some(Self { area, bytes })
    }

    /// To be called while the thread stands still. Because it does, the kernel writes anew before it runs.
    pub(crate) fn put_back(&self, memory: &File) -> io::Result<()> {
        for (bytes, place) in self.bytes.iter().zip(WRITTEN_BY_KERNEL) {
            let mut now = [0; 8];
            memory.read_exact_at(&mut now, self.area + place.start)?;
            if now != *bytes {
                memory.write_all_at(bytes, self.area + place.start)?;
            }
        }
        Ok(())
    }
}

fn kernel_version() -> Option<[u32; 2]> {
    let uname = rustix::system::uname();
    let release = uname.release().to_str().ok()?;
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    let mut number = || numbers.next()?.parse().ok();
    Some([number()?, number()?])
}

fn word(memory: &File, address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    memory.read_exact_at(&mut bytes, address).ok()?;
    Some(u64::from_le_bytes(bytes))
}
