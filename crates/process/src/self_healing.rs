//! A thread that finds back by itself, should we die in the middle of a remote call.
//!
//! While a thread runs a call of ours, its registers are not its own. If this program is killed at
//! that moment the kernel lets the thread go on with them, and the target would crash. So before
//! the first register is touched, all that the thread needs to become itself again is laid out in
//! memory that belongs to nobody (below its stack pointer and the red zone), in the very form the
//! kernel uses for signal handlers: a signal frame. Then the thread is set, in one request, to
//!
//! ```text
//!   syscall; ret            our call, at an address where the target's own code has these bytes
//!   mov $15, %eax; syscall  where `ret` leads: rt_sigreturn, which takes all registers, the
//!                           extended state and the signal mask from the frame
//! ```
//!
//! With us alive, the thread is stopped right behind the first `syscall`, and its registers are put
//! back in one request. With us gone, it runs the second line. At no moment in between is there a
//! state from which it would not get back.
//!
//! The difference between the two ways back: an interrupted system call is continued in the first,
//! and done again from its beginning in the second. A sleep may become longer, once.

use crate::landing::{StackMapping, WayBack};
use crate::restart;
use pagetide_kernel::ptrace::{Registers, xstate_size_without_tiles};
use std::fs::File;

/// Below the stack pointer, code may use this many bytes without moving it (System V ABI).
pub(crate) const RED_ZONE: u64 = 128;
/// Below that, the time of a wait may stand (see `waits`), which the thread needs when it has found back.
pub(crate) const ROOM: u64 = 128;

const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
/// Offset of `sw_reserved` in the legacy part of the extended state, in bytes.
const SOFTWARE_BYTES: usize = 464;
/// AMX tile configuration and data.
const TILE_FEATURES: u64 = 0b11 << 17;

// `struct rt_sigframe`: return address, `struct ucontext`, `siginfo_t`; in bytes.
const CONTEXT: usize = 8;
const STACK_FLAGS: usize = CONTEXT + 24;
const REGISTERS: usize = CONTEXT + 40;
const SEGMENTS: usize = REGISTERS + 18 * 8;
const EXTENDED_STATE: usize = SEGMENTS + 8 + 32;
const SIGNAL_MASK: usize = CONTEXT + 40 + 256;
const SIGNAL_INFO: usize = SIGNAL_MASK + 8;
const FRAME_LENGTH: usize = SIGNAL_INFO + 128;

/// UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
const CONTEXT_FLAGS: u64 = 0b111;
/// No valid mode of an alternate signal stack: rt_sigreturn then leaves it as it is.
const NO_STACK_MODE: u32 = 7;

/// A signal frame for one thread, ready to be written.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    /// Where the bytes belong; also the stack pointer with which the thread has to run.
    pub(crate) address: u64,
    pub(crate) bytes: Vec<u8>,
}

/// A thread as far as a frame holds it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ThreadParts<'a> {
    pub(crate) registers: &'a Registers,
    pub(crate) xstate: &'a [u8],
    pub(crate) signal_mask: u64,
}

/// The stack of a thread, if it is one whose lower part belongs to nobody.
pub(crate) fn own_stack(registers: &Registers, stacks: &[StackMapping]) -> Option<StackMapping> {
    let within = |stack: &StackMapping, address| (stack.start..stack.end).contains(&address);
    stacks
        .iter()
        .find(|stack| {
            within(stack, registers.rsp)
                && (stack.of_first_thread
                    || (within(stack, registers.fs_base) && registers.rsp < registers.fs_base))
        })
        .copied()
}

/// Lays out the frame. `None` if the stack has no room, or the extended state has a form that
/// `rt_sigreturn` would not take.
pub(crate) fn frame(
    thread: ThreadParts<'_>,
    stack: StackMapping,
    way_back: &WayBack,
    memory: &File,
) -> Option<Frame> {
    let extended = extended_state(thread.xstate)?;
    let top = thread.registers.rsp.checked_sub(RED_ZONE + ROOM)? & !63;
    let extended_address = top.checked_sub(u64::try_from(extended.len()).ok()?)? & !63;
    let frame_length = u64::try_from(FRAME_LENGTH).ok()?;
    let address = extended_address.checked_sub(frame_length)? & !15;
    if address < stack.start {
        return None;
    }
    let extended_offset = usize::try_from(extended_address - address).ok()?;
    let mut bytes = vec![0; extended_offset + extended.len()];
    bytes[extended_offset..].copy_from_slice(&extended);

    put_u64(&mut bytes, 0, way_back.sigreturn);
    put_u64(&mut bytes, CONTEXT, CONTEXT_FLAGS);
    put_u32(&mut bytes, STACK_FLAGS, NO_STACK_MODE);
    let registers = restart::entered_anew(thread.registers, Some(memory));
    for (index, value) in in_frame_order(&registers).into_iter().enumerate() {
        put_u64(&mut bytes, REGISTERS + index * 8, value);
    }
    for (index, value) in [registers.cs, registers.gs, registers.fs, registers.ss]
        .into_iter()
        .enumerate()
    {
        let selector = u16::try_from(value & 0xffff).ok()?;
        let offset = SEGMENTS + index * 2;
        bytes[offset..offset + 2].copy_from_slice(&selector.to_le_bytes());
    }
    put_u64(&mut bytes, EXTENDED_STATE, extended_address);
    put_u64(&mut bytes, SIGNAL_MASK, thread.signal_mask);
    Some(Frame { address, bytes })
}

/// The order of `struct sigcontext_64`.
fn in_frame_order(registers: &Registers) -> [u64; 18] {
    [
        registers.r8,
        registers.r9,
        registers.r10,
        registers.r11,
        registers.r12,
        registers.r13,
        registers.r14,
        registers.r15,
        registers.rdi,
        registers.rsi,
        registers.rbp,
        registers.rbx,
        registers.rdx,
        registers.rax,
        registers.rcx,
        registers.rsp,
        registers.rip,
        registers.eflags,
    ]
}

/// The extended state as a signal frame holds it: what ptrace gives, with the kernel's marks.
fn extended_state(xstate: &[u8]) -> Option<Vec<u8>> {
    let mut features = u64::from_le_bytes(
        xstate
            .get(SOFTWARE_BYTES..SOFTWARE_BYTES + 8)?
            .try_into()
            .ok()?,
    );
    if features == 0 {
        return None;
    }
    let mut length = xstate.len();
    let in_use = u64::from_le_bytes(xstate.get(512..520)?.try_into().ok()?);
    if features & TILE_FEATURES != 0 && in_use & TILE_FEATURES == 0 {
        // The frames of a thread that never used AMX have no room for it.
        features &= !TILE_FEATURES;
        length = xstate_size_without_tiles(features).min(length);
    }
    let length_word = u32::try_from(length).ok()?;
    let mut bytes = xstate[..length].to_vec();
    bytes[SOFTWARE_BYTES..512].fill(0);
    put_u32(&mut bytes, SOFTWARE_BYTES, MAGIC1);
    put_u32(&mut bytes, SOFTWARE_BYTES + 4, length_word + 4);
    put_u64(&mut bytes, SOFTWARE_BYTES + 8, features);
    put_u32(&mut bytes, SOFTWARE_BYTES + 16, length_word);
    bytes.extend_from_slice(&MAGIC2.to_le_bytes());
    Some(bytes)
}

fn put_u64(bytes: &mut [u8], offset: usize, value: u64) {
    bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
}

fn put_u32(bytes: &mut [u8], offset: usize, value: u32) {
    bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}
