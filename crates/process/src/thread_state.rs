//! What a thread is, apart from memory: registers, extended state, blocked signals.
//!
//! Not here: alternate signal stack, robust list, pending signals, scheduling. Those are asked of
//! the thread itself by remote calls, or read from `/proc`.

use crate::proc_files::comm_of;
use crate::restart;
use crate::rseq;
use crate::tracees::Tracees;
use pagetide_kernel::ptrace::{self, Registers, ThreadId, XSTATE_ROOM};
use std::collections::HashSet;
use std::fs::File;
use std::io;

/// A stopped thread as data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadState {
    /// Its number.
    pub thread: ThreadId,
    /// Its name, at most 15 bytes.
    pub comm: String,
    /// General registers, fs_base and gs_base included. Inside a system call `orig_rax` is its
    /// number, and `rax` may hold one of the kernel's internal "do it again" results.
    pub registers: Registers,
    /// x87, SSE, AVX and so on, in the standard XSAVE layout of this processor.
    pub xstate: Vec<u8>,
    /// Blocked signals, bit n-1 for signal n. Inside `ppoll` and the like: the mask after it.
    pub signal_mask: u64,
}

/// Why thread states could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ThreadStateError {
    /// The process was killed while it was stopped.
    #[error("process {pid} was killed while it was stopped")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// A state names a thread that the process does not have.
    #[error("process {pid} has no thread {thread}")]
    NoSuchThread {
        /// The process.
        pid: i32,
        /// The thread named.
        thread: ThreadId,
    },
    /// A thread runs 32-bit code.
    #[error("thread {thread} runs 32-bit code")]
    ThirtyTwoBit {
        /// The thread.
        thread: ThreadId,
    },
    /// The kernel refused. All threads are as they were.
    #[error("cannot {what} of thread {thread}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// The thread.
        thread: ThreadId,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A state as it is read inside the stop: numbers only, the name comes after.
pub(crate) fn read_all(tracees: &mut Tracees) -> Result<Vec<ThreadState>, ThreadStateError> {
    let threads = tracees.stopped();
    let mut states = Vec::with_capacity(threads.len());
    let mut buffer = vec![0; XSTATE_ROOM];
    for thread in threads {
        let state = read(tracees.pid(), thread, &mut buffer)?;
        // Workers of the kernel inside the process (io_uring) have no registers of their own.
        if state.registers.rip != 0 {
            states.push(state);
        }
    }
    Ok(states)
}

/// Reads the names that `read_all` leaves empty.
pub(crate) fn name_all(states: &mut [ThreadState]) {
    for state in states {
        state.comm = comm_of(state.thread.get());
    }
}

fn read(pid: i32, thread: ThreadId, buffer: &mut [u8]) -> Result<ThreadState, ThreadStateError> {
    let registers = ptrace::registers(thread)
        .map_err(failed(pid, "read the registers", thread))?
        .ok_or(ThreadStateError::ThirtyTwoBit { thread })?;
    let length =
        ptrace::xstate(thread, buffer).map_err(failed(pid, "read the extended state", thread))?;
    let signal_mask =
        ptrace::signal_mask(thread).map_err(failed(pid, "read the blocked signals", thread))?;
    Ok(ThreadState {
        thread,
        comm: String::new(),
        registers,
        xstate: buffer[..length].to_vec(),
        signal_mask,
    })
}

/// All or none: on a failure those already written are put back.
pub(crate) fn write_all(
    tracees: &mut Tracees,
    states: &[ThreadState],
    memory: Option<&File>,
) -> Result<(), ThreadStateError> {
    let pid = tracees.pid();
    let stopped: HashSet<ThreadId> = tracees.stopped().into_iter().collect();
    if let Some(state) = states.iter().find(|state| !stopped.contains(&state.thread)) {
        return Err(ThreadStateError::NoSuchThread {
            pid,
            thread: state.thread,
        });
    }
    let mut buffer = vec![0; XSTATE_ROOM];
    let mut before = Vec::with_capacity(states.len());
    for state in states {
        before.push(read(pid, state.thread, &mut buffer)?);
    }
    for (index, state) in states.iter().enumerate() {
        let registers = restart::for_another_time(&state.registers, memory);
        if let Err(error) = write(pid, state, &registers) {
            for old in &before[..=index] {
                // Its own registers of a moment ago; fails only if it was killed.
                write(pid, old, &old.registers).ok();
            }
            return Err(error);
        }
    }
    for state in states {
        tracees.waits.forget(state.thread);
    }
    Ok(())
}

fn write(pid: i32, state: &ThreadState, registers: &Registers) -> Result<(), ThreadStateError> {
    let thread = state.thread;
    ptrace::set_xstate(thread, &state.xstate).map_err(failed(
        pid,
        "write the extended state",
        thread,
    ))?;
    ptrace::set_signal_mask(thread, state.signal_mask).map_err(failed(
        pid,
        "write the blocked signals",
        thread,
    ))?;
    ptrace::set_registers(thread, registers).map_err(failed(pid, "write the registers", thread))
}

fn failed(
    pid: i32,
    what: &'static str,
    thread: ThreadId,
) -> impl FnOnce(io::Error) -> ThreadStateError {
    move |source| {
        if crate::seizing::is_gone(&source) {
            ThreadStateError::Gone { pid }
        } else {
            ThreadStateError::Kernel {
                what,
                thread,
                source,
            }
        }
    }
}

/// Sees to it that no thread takes our stop for an interruption of its system call (see
/// [`restart`] and [`waits`](crate::waits)) and none goes on in a restartable sequence (see [`rseq`]). Also finds 32-bit code.
pub(crate) fn hide_interruptions(
    tracees: &mut Tracees,
    memory: Option<&File>,
) -> Result<(), ThreadStateError> {
    let pid = tracees.pid();
    for thread in tracees.stopped() {
        let registers = ptrace::registers(thread)
            .map_err(failed(pid, "read the registers", thread))?
            .ok_or(ThreadStateError::ThirtyTwoBit { thread })?;
        let changed = tracees
            .waits
            .go_on(thread, &registers)
            .or_else(|| restart::without_plain_eintr(&registers))
            .or_else(|| rseq::aborted(thread, &registers, memory?));
        if let Some(changed) = changed {
            ptrace::set_registers(thread, &changed).map_err(failed(
                pid,
                "write the registers",
                thread,
            ))?;
        }
    }
    Ok(())
}
