//! System calls that a stop interrupts: how their thread goes on without noticing.
//!
//! A call that a stop wakes leaves the kernel with one of four internal results, none of which
//! user space may see. The kernel turns it into "do it again" on the way out of the stop, if the
//! registers still say so, or into EINTR if a signal handler is to run first. So a thread that is
//! stopped and goes on needs nothing. Two cases need help:
//!
//! - Some calls say a plain EINTR instead (the list in `signal(7)`, "Interruption of system calls
//!   and library functions by stop signals"). A stop of ours would be seen by the program. Such a
//!   result is replaced by ERESTARTNOHAND, which means: again, unless a handler runs. What has
//!   passed of a relative timeout is seen to in `waits`.
//! - Registers set back to a time when another call was under way: ERESTART_RESTARTBLOCK refers to
//!   a block in the kernel that belongs to the newer call. The call is entered anew instead.

use crate::syscall_names::SYS_IO_PGETEVENTS;
use nix::libc;
use pagetide_kernel::ptrace::Registers;
use std::fs::File;
use std::os::unix::fs::FileExt;

pub(crate) const EINTR: i64 = 4;
pub(crate) const ERESTARTSYS: i64 = 512;
pub(crate) const ERESTARTNOINTR: i64 = 513;
pub(crate) const ERESTARTNOHAND: i64 = 514;
pub(crate) const ERESTART_RESTARTBLOCK: i64 = 516;

/// Length of the `syscall` instruction, in bytes.
const SYSCALL_LENGTH: u64 = 2;

/// Calls that say EINTR when a stop wakes them, by number. Those on files do so only for sockets
/// with a timeout and for FUSE; either way EINTR says that nothing has been read or written.
const PLAIN_EINTR: [i64; 27] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_select, // if it cannot write what is left of its time
    libc::SYS_connect,
    libc::SYS_accept,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_semop,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_io_getevents,
    libc::SYS_semtimedop,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_pselect6, // likewise
    libc::SYS_ppoll,    // likewise
    libc::SYS_accept4,
    libc::SYS_recvmmsg,
    libc::SYS_sendmmsg,
    SYS_IO_PGETEVENTS,
    libc::SYS_io_uring_enter,
    libc::SYS_epoll_pwait2,
];

/// The error a system call left with, as a positive number; `None` outside calls and on success.
pub(crate) fn pending_error(registers: &Registers) -> Option<i64> {
    let result = registers.rax.cast_signed();
    let in_call = registers.orig_rax.cast_signed() >= 0;
    (in_call && (-4095..0).contains(&result)).then_some(-result)
}

/// Whether the thread is inside a call that the kernel will do again.
pub(crate) fn will_restart(registers: &Registers) -> bool {
    matches!(
        pending_error(registers),
        Some(ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK)
    )
}

pub(crate) fn is_restart_block(registers: &Registers) -> bool {
    pending_error(registers) == Some(ERESTART_RESTARTBLOCK)
}

/// The registers with which a stop of ours does not show as EINTR, if they need a change.
pub(crate) fn without_plain_eintr(registers: &Registers) -> Option<Registers> {
    let call = registers.orig_rax.cast_signed();
    (pending_error(registers) == Some(EINTR) && PLAIN_EINTR.contains(&call)).then(|| Registers {
        rax: (-ERESTARTNOHAND).cast_unsigned(),
        ..*registers
    })
}

/// Registers that do an interrupted call again by themselves, with no help of the kernel: the
/// instruction is to be executed once more. For a place from which the kernel restarts nothing.
///
/// A call that the kernel has continued once before has lost its number. `memory` is asked for it:
/// as a rule the instruction before loads it. If not, the call ends in EINTR.
pub(crate) fn entered_anew(registers: &Registers, memory: Option<&File>) -> Registers {
    if !will_restart(registers) {
        return *registers;
    }
    let number = match registers.orig_rax.cast_signed() {
        // The kernel itself puts it in place of another number.
        libc::SYS_restart_syscall => memory.and_then(|memory| loaded_number(registers, memory)),
        _ => Some(registers.orig_rax),
    };
    match number {
        Some(number) => Registers {
            rax: number,
            rip: registers.rip.wrapping_sub(SYSCALL_LENGTH),
            orig_rax: u64::MAX,
            ..*registers
        },
        None => Registers {
            rax: (-EINTR).cast_unsigned(),
            orig_rax: u64::MAX,
            ..*registers
        },
    }
}

/// The number in `mov $number, %eax; syscall`, if it is one of the calls that are continued by
/// `restart_syscall`.
fn loaded_number(registers: &Registers, memory: &File) -> Option<u64> {
    let mut code = [0; 7];
    let address = registers.rip.checked_sub(7)?;
    memory.read_exact_at(&mut code, address).ok()?;
    let [0xb8, a, b, c, d, 0x0f, 0x05] = code else {
        return None;
    };
    let number = u64::from(u32::from_le_bytes([a, b, c, d]));
    // poll, nanosleep, futex, clock_nanosleep
    [7, 35, 202, 230].contains(&number).then_some(number)
}

/// Registers of another time, made fit to be put into a thread that is stopped now.
pub(crate) fn for_another_time(registers: &Registers, memory: Option<&File>) -> Registers {
    if is_restart_block(registers) {
        entered_anew(registers, memory)
    } else {
        *registers
    }
}
