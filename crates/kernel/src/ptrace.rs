//! `ptrace(2)` and `wait4(2)` for a tracer that seizes threads: every request typed, no policy.
//!
//! All functions here act on one *thread*. All but [`seize`] must be called by the very thread of
//! ours that seized it, and all but [`seize`] and [`interrupt`] need the traced thread to be in a
//! ptrace-stop: otherwise the kernel answers ESRCH, which also means "gone". Which requests to
//! send in which order is decided in `pagetide-process`.
//!
//! `nix` has typed wrappers of many of these, but its `Signal` has no real-time signals, so a
//! tracer made of them cannot hand such a signal on. Hence the raw requests.

#![allow(unsafe_code)]

use nix::libc;
use std::io;
use std::mem::{offset_of, size_of};
use thread::check;

mod io_ports;
mod pending_signals;
mod syscall_entry;
mod thread;
mod wait;

pub use io_ports::may_use_io_ports;
pub use pending_signals::{SIGNAL_INFO_BYTES, SignalInfo, SignalQueue, pending_signals};
pub use syscall_entry::{SyscallEntry, syscall_entry};
pub use thread::ThreadId;
pub use wait::{
    Event, WaitReport, current_stop, reap_for_tracer, wait_any, wait_any_long, wait_thread,
};

/// General registers of an x86-64 thread: `struct user_regs_struct` of `<sys/user.h>`.
///
/// `orig_rax` is the number of the system call the thread is in, -1 (all ones) if in none.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)] // the names are the registers
pub struct Registers {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}

const _: () = {
    assert!(size_of::<Registers>() == size_of::<libc::user_regs_struct>());
    assert!(offset_of!(Registers, rax) == offset_of!(libc::user_regs_struct, rax));
    assert!(offset_of!(Registers, orig_rax) == offset_of!(libc::user_regs_struct, orig_rax));
    assert!(offset_of!(Registers, rip) == offset_of!(libc::user_regs_struct, rip));
    assert!(offset_of!(Registers, rsp) == offset_of!(libc::user_regs_struct, rsp));
    assert!(offset_of!(Registers, fs_base) == offset_of!(libc::user_regs_struct, fs_base));
    assert!(offset_of!(Registers, gs) == offset_of!(libc::user_regs_struct, gs));
};

/// Length of [`Registers`] as u64 words.
pub const REGISTER_COUNT: usize = size_of::<Registers>() / size_of::<u64>();

impl Registers {
    /// The registers in the order of their declaration, which is the kernel's.
    pub fn to_words(&self) -> [u64; REGISTER_COUNT] {
        [
            self.r15,
            self.r14,
            self.r13,
            self.r12,
            self.rbp,
            self.rbx,
            self.r11,
            self.r10,
            self.r9,
            self.r8,
            self.rax,
            self.rcx,
            self.rdx,
            self.rsi,
            self.rdi,
            self.orig_rax,
            self.rip,
            self.cs,
            self.eflags,
            self.rsp,
            self.ss,
            self.fs_base,
            self.gs_base,
            self.ds,
            self.es,
            self.fs,
            self.gs,
        ]
    }

    /// The inverse of [`Self::to_words`].
    pub fn from_words(words: [u64; REGISTER_COUNT]) -> Self {
        let [
            r15,
            r14,
            r13,
            r12,
            rbp,
            rbx,
            r11,
            r10,
            r9,
            r8,
            rax,
            rcx,
            rdx,
            rsi,
            rdi,
            orig_rax,
            rip,
            cs,
            eflags,
            rsp,
            ss,
            fs_base,
            gs_base,
            ds,
            es,
            fs,
            gs,
        ] = words;
        Self {
            r15,
            r14,
            r13,
            r12,
            rbp,
            rbx,
            r11,
            r10,
            r9,
            r8,
            rax,
            rcx,
            rdx,
            rsi,
            rdi,
            orig_rax,
            rip,
            cs,
            eflags,
            rsp,
            ss,
            fs_base,
            gs_base,
            ds,
            es,
            fs,
            gs,
        }
    }
}

/// What [`seize`] or [`set_options`] asks to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// A new thread is traced from its first instruction, and the creator reports
    /// [`Event::Clone`] (PTRACE_O_TRACECLONE).
    pub trace_clone: bool,
    /// A new process is traced from its first instruction, and the creator reports [`Event::Fork`]
    /// (PTRACE_O_TRACEFORK, PTRACE_O_TRACEVFORK).
    pub trace_fork: bool,
    /// `execve` is reported as [`Event::Exec`] (PTRACE_O_TRACEEXEC).
    pub trace_exec: bool,
    /// System call stops are told apart from SIGTRAP (PTRACE_O_TRACESYSGOOD).
    pub mark_syscall_stops: bool,
    /// The thread is killed when its tracer ends (PTRACE_O_EXITKILL, Linux 3.8). Threads that it makes inherit this.
    pub kill_with_tracer: bool,
}

impl Options {
    fn bits(self) -> libc::c_ulong {
        let mut bits = 0;
        for (wanted, bit) in [
            (self.trace_clone, libc::PTRACE_O_TRACECLONE),
            (self.trace_fork, libc::PTRACE_O_TRACEFORK),
            (self.trace_fork, libc::PTRACE_O_TRACEVFORK),
            (self.trace_exec, libc::PTRACE_O_TRACEEXEC),
            (self.mark_syscall_stops, libc::PTRACE_O_TRACESYSGOOD),
            (self.kill_with_tracer, libc::PTRACE_O_EXITKILL),
        ] {
            if wanted {
                bits |= libc::c_ulong::from(bit.cast_unsigned());
            }
        }
        bits
    }
}

/// Seizes a thread without stopping it: PTRACE_SEIZE, Linux 3.4.
///
/// # Errors
/// ESRCH no such thread; EPERM no privilege, a kernel thread, a thread that has ended and is not
/// reaped, or one that already has a tracer.
pub fn seize(thread: ThreadId, options: Options) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, thread, 0, options.bits())
}

/// Asks a seized thread to stop: PTRACE_INTERRUPT. It reports [`Event::Stop`] when it does.
pub fn interrupt(thread: ThreadId) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, thread, 0, 0)
}

/// Changes what is reported of a stopped thread: PTRACE_SETOPTIONS.
pub fn set_options(thread: ThreadId, options: Options) -> io::Result<()> {
    request(libc::PTRACE_SETOPTIONS, thread, 0, options.bits())
}

/// Lets a stopped thread run: PTRACE_CONT. `signal` (0: none) is delivered if it stands in a
/// [`WaitReport::Signal`] stop.
pub fn resume(thread: ThreadId, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_CONT, thread, 0, signal_argument(signal))
}

/// As [`resume`], but to stop at the next entry to or exit from a system call: PTRACE_SYSCALL.
pub fn resume_to_syscall(thread: ThreadId, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, thread, 0, signal_argument(signal))
}

/// Leaves a thread in the group-stop that it reports ([`Event::Stop`] with a signal) until SIGCONT or [`interrupt`]:
/// PTRACE_LISTEN.
pub fn listen(thread: ThreadId) -> io::Result<()> {
    request(libc::PTRACE_LISTEN, thread, 0, 0)
}

/// Lets a stopped thread run and traces it no longer: PTRACE_DETACH. A thread of a process in
/// group-stop goes back into it.
pub fn detach(thread: ThreadId) -> io::Result<()> {
    request(libc::PTRACE_DETACH, thread, 0, 0)
}

/// The value that belongs to the last event: PTRACE_GETEVENTMSG.
pub fn event_message(thread: ThreadId) -> io::Result<u64> {
    let mut message: libc::c_ulong = 0;
    // SAFETY: PTRACE_GETEVENTMSG writes one unsigned long to `data`, which points to one that
    // lives until after the call.
    let result =
        unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, thread.0, 0usize, &raw mut message) };
    check(result).map(|_| message)
}

/// Reads the general registers: PTRACE_GETREGSET with NT_PRSTATUS.
///
/// `None` if the thread runs 32-bit code: its register set is a shorter one.
pub fn registers(thread: ThreadId) -> io::Result<Option<Registers>> {
    let mut registers = Registers::default();
    let mut vector = libc::iovec {
        iov_base: (&raw mut registers).cast(),
        iov_len: size_of::<Registers>(),
    };
    // SAFETY: `vector` describes exactly `registers`, which lives until after the call; the kernel
    // writes no more than `iov_len` bytes, and any bytes are valid u64 values.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_GETREGSET,
            thread.0,
            NT_PRSTATUS,
            &raw mut vector,
        )
    };
    check(result)?;
    Ok((vector.iov_len == size_of::<Registers>()).then_some(registers))
}

/// Writes the general registers: PTRACE_SETREGSET with NT_PRSTATUS. All at once: nobody, and no
/// end of ours, sees some of them changed and others not.
///
/// # Errors
/// EIO or EINVAL if a segment register or base address is not one a thread may have.
pub fn set_registers(thread: ThreadId, registers: &Registers) -> io::Result<()> {
    let mut copy = *registers;
    let mut vector = libc::iovec {
        iov_base: (&raw mut copy).cast(),
        iov_len: size_of::<Registers>(),
    };
    // SAFETY: `vector` describes exactly `copy`, which lives until after the call; the kernel reads.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_SETREGSET,
            thread.0,
            NT_PRSTATUS,
            &raw mut vector,
        )
    };
    check(result).map(|_| ())
}

/// Room that every extended state known today fits in (AMX tiles: 11,008 bytes), in bytes.
pub const XSTATE_ROOM: usize = 16 * 1024;

/// Reads the extended state (x87, SSE, AVX, ...) in the standard XSAVE layout into `buffer`, and
/// returns its length in bytes: PTRACE_GETREGSET with NT_X86_XSTATE.
///
/// # Errors
/// ENODEV on a processor without XSAVE; ENOBUFS if `buffer` may be too short.
pub fn xstate(thread: ThreadId, buffer: &mut [u8]) -> io::Result<usize> {
    let mut vector = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: `vector` describes exactly `buffer`, which is borrowed until after the call; the
    // kernel writes no more than `iov_len` bytes.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_GETREGSET,
            thread.0,
            NT_X86_XSTATE,
            &raw mut vector,
        )
    };
    check(result)?;
    if vector.iov_len >= buffer.len() {
        return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
    }
    Ok(vector.iov_len)
}

/// Writes the extended state: PTRACE_SETREGSET with NT_X86_XSTATE.
///
/// # Errors
/// EINVAL if it has features this processor lacks; EFAULT if its length is not this machine's.
pub fn set_xstate(thread: ThreadId, state: &[u8]) -> io::Result<()> {
    let mut vector = libc::iovec {
        iov_base: state.as_ptr().cast_mut().cast(),
        iov_len: state.len(),
    };
    // SAFETY: `vector` describes exactly `state`, borrowed until after the call; this request only
    // reads through `iov_base`, so the cast to a mutable pointer writes nothing.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_SETREGSET,
            thread.0,
            NT_X86_XSTATE,
            &raw mut vector,
        )
    };
    check(result).map(|_| ())
}

/// Length of an extended state that has these features (an XCR0 mask) and no AMX tiles, in bytes,
/// as the processor's CPUID leaf 13 lays them out.
pub fn xstate_size_without_tiles(features: u64) -> usize {
    let legacy_and_header = 576;
    let ends = (2..63u32)
        .filter(|feature| features & (1 << feature) != 0 && !(17..=18).contains(feature))
        .map(|feature| {
            // SAFETY: every x86-64 processor has CPUID. (Newer compilers know that it is safe.)
            #[allow(unused_unsafe)]
            let leaf = unsafe { std::arch::x86_64::__cpuid_count(13, feature) };
            u64::from(leaf.eax) + u64::from(leaf.ebx)
        });
    usize::try_from(ends.max().unwrap_or(0))
        .map_or(legacy_and_header, |end| end.max(legacy_and_header))
}

/// The set of blocked signals, bit n-1 for signal n: PTRACE_GETSIGMASK, Linux 3.11.
///
/// For a thread inside `ppoll`, `sigsuspend` and the like this is the mask it will have *after*
/// the call, not the one in force while it waits.
pub fn signal_mask(thread: ThreadId) -> io::Result<u64> {
    let mut mask: u64 = 0;
    // SAFETY: the request writes `addr` = 8 bytes to `data`, which points to 8 bytes that live
    // until after the call.
    let result =
        unsafe { libc::ptrace(PTRACE_GETSIGMASK, thread.0, size_of::<u64>(), &raw mut mask) };
    check(result).map(|_| mask)
}

/// Replaces the set of blocked signals: PTRACE_SETSIGMASK. SIGKILL and SIGSTOP stay unblocked.
/// The kernel forgets the mask it would have restored after a `ppoll`: this one is in force.
pub fn set_signal_mask(thread: ThreadId, mask: u64) -> io::Result<()> {
    let mut mask = mask;
    // SAFETY: the request reads `addr` = 8 bytes from `data`, which points to 8 bytes that live
    // until after the call.
    let result =
        unsafe { libc::ptrace(PTRACE_SETSIGMASK, thread.0, size_of::<u64>(), &raw mut mask) };
    check(result).map(|_| ())
}

/// One instruction of a classic BPF program: `struct sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FilterInstruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if a comparison holds.
    pub jump_true: u8,
    /// Instructions to skip if it does not.
    pub jump_false: u8,
    /// Operand.
    pub operand: u32,
}

const _: () = assert!(size_of::<FilterInstruction>() == size_of::<libc::sock_filter>());

/// Most instructions the kernel lets one filter have (BPF_MAXINSNS).
const FILTER_LENGTH_MAX: usize = 4096;

/// One of the seccomp filters of a stopped thread: PTRACE_SECCOMP_GET_FILTER, Linux 4.4.
/// `None` behind the last.
///
/// # Errors
/// EACCES without CAP_SYS_ADMIN, or if the caller is under seccomp itself; EIO if the kernel was
/// built without CONFIG_CHECKPOINT_RESTORE; EMEDIUMTYPE for a filter that is no classic BPF.
pub fn seccomp_filter(
    thread: ThreadId,
    index: usize,
) -> io::Result<Option<Vec<FilterInstruction>>> {
    let mut program = vec![FilterInstruction::default(); FILTER_LENGTH_MAX];
    // SAFETY: the request writes at most BPF_MAXINSNS instructions of 8 bytes to `data`, and
    // `program` has that many; any bytes are valid values of its fields.
    let result = unsafe {
        libc::ptrace(
            PTRACE_SECCOMP_GET_FILTER,
            thread.0,
            index,
            program.as_mut_ptr(),
        )
    };
    match check(result) {
        Ok(length) => {
            program.truncate(usize::try_from(length).unwrap_or(0));
            Ok(Some(program))
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A restartable-sequence area, as it was registered with rseq(2).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RseqConfiguration {
    /// Address of the area.
    pub address: u64,
    /// Its size in bytes.
    pub size_bytes: u32,
    /// What stands before every abort handler.
    pub signature: u32,
    /// Flags of the registration; 0 so far.
    pub flags: u32,
    padding: u32,
}

/// The restartable-sequence area of a stopped thread: PTRACE_GET_RSEQ_CONFIGURATION, Linux 5.13.
/// `None` if it registered none.
pub fn rseq_configuration(thread: ThreadId) -> io::Result<Option<RseqConfiguration>> {
    let mut configuration = RseqConfiguration::default();
    // SAFETY: the request writes at most `addr` bytes to `data`, which points to a structure of
    // exactly that many; any bytes are valid values of its fields.
    let result = unsafe {
        libc::ptrace(
            PTRACE_GET_RSEQ_CONFIGURATION,
            thread.0,
            size_of::<RseqConfiguration>(),
            &raw mut configuration,
        )
    };
    check(result)?;
    Ok((configuration.address != 0).then_some(configuration))
}

/// Whether the thread diverts its own system calls (`PR_SET_SYSCALL_USER_DISPATCH`):
/// PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, Linux 6.4; EIO before.
pub fn diverts_syscalls(thread: ThreadId) -> io::Result<bool> {
    // struct ptrace_sud_config: mode, selector, offset, len.
    let mut configuration = [0u64; 4];
    // SAFETY: the request writes exactly `addr` = 32 bytes to `data`, which points to as many.
    let result = unsafe {
        libc::ptrace(
            PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG,
            thread.0,
            size_of_val(&configuration),
            configuration.as_mut_ptr(),
        )
    };
    check(result).map(|_| configuration[0] != 0)
}

fn signal_argument(signal: i32) -> libc::c_ulong {
    libc::c_ulong::try_from(signal).unwrap_or(0)
}

/// A request whose `data` is a number, or not used.
fn request(
    request: libc::c_uint,
    thread: ThreadId,
    address: libc::c_ulong,
    data: libc::c_ulong,
) -> io::Result<()> {
    // SAFETY: callers pass only requests whose `data` is a plain number (options, a signal, 0), so
    // the kernel reads and writes none of our memory.
    let result = unsafe { libc::ptrace(request, thread.0, address, data) };
    check(result).map(|_| ())
}

const NT_PRSTATUS: usize = 1;
const NT_X86_XSTATE: usize = 0x202;
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4211;
