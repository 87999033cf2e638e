//! A process made anew, out of one that only waits: its address space emptied but for what the kernel maps into every
//! process, then mapped, filled and given threads by system calls that it makes itself. No code is put into it:
//! the calls are made at a `syscall` instruction of the vdso, which moves with the vdso.
//!
//! What is not done here: which mappings, files and states there should be is told by the caller.

mod kernel_mappings;

use crate::identity::{IdentityError, ProcessIdentity};
use crate::remote::RemoteCalls;
use crate::remote_error::RemoteCallError;
use crate::session::CLONE_ARGUMENTS;
use crate::stop::{StopError, StopOptions, StoppedProcess};
use crate::thread_state::{ThreadState, ThreadStateError};
use nix::libc;
use pagetide_kernel::maps::{self, Mapping, MappingName, MapsError};
use pagetide_kernel::ptrace::{self, ThreadId};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

pub use kernel_mappings::{KernelMapping, KernelMappingsError, kernel_mappings_of};

/// Why a process could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RebuildError {
    /// It is gone.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It could not be stopped.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// Its mappings could not be read.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// What the kernel maps into every process is not what it was.
    #[error(transparent)]
    KernelMappings(#[from] KernelMappingsError),
    /// A system call inside it failed.
    #[error("cannot {what} in the new process {pid}")]
    Remote {
        /// What was to be done.
        what: &'static str,
        /// The process.
        pid: i32,
        /// What went wrong.
        #[source]
        source: RemoteCallError,
    },
    /// A thread with the id that it had could not be made, because another thread or process has it.
    #[error("thread id {thread} belongs to another thread or process now")]
    ThreadTaken {
        /// The pid.
        thread: ThreadId,
    },
    /// The registers of the threads could not be set.
    #[error(transparent)]
    Threads(#[from] ThreadStateError),
    /// A thread could not be examined.
    #[error("cannot examine thread {thread}")]
    Kernel {
        /// The thread.
        thread: ThreadId,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Address and length of the memory that calls put their bytes into.
const SCRATCH_BYTES: u64 = 128 << 10;
/// `CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM`
const THREAD: u64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000;

/// How often a pid is asked for that nobody is seen to have: whoever had it may wait long for a processor to end on.
const TRIES_FOR_A_NUMBER: u32 = 2000;
const PAUSE_BETWEEN_TRIES: Duration = Duration::from_millis(5);

const PROT_READ_WRITE: u64 = 3;
const MAP_PRIVATE_ANONYMOUS_FIXED: u64 = 0x02 | 0x20 | 0x10_0000;
const MREMAP_MAYMOVE_FIXED: u64 = 3;
const RSEQ_FLAG_UNREGISTER: u64 = 1;
/// No address of a process is higher with four levels of page tables.
const ADDRESSES_END: u64 = 0x7fff_ffff_f000;

/// The arguments by which rseq(2) forgets an area.
fn unregister(area: &ptrace::RseqConfiguration) -> [u64; 6] {
    let size = u64::from(area.size_bytes);
    let signature = u64::from(area.signature);
    [area.address, size, RSEQ_FLAG_UNREGISTER, signature, 0, 0]
}

/// All ranges of addresses but those that stay.
fn between(stay: impl Iterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
    let mut stay: Vec<(u64, u64)> = stay.collect();
    stay.sort_unstable();
    stay.push((ADDRESSES_END, ADDRESSES_END));
    let mut from = 0;
    let mut gaps = Vec::new();
    for (start, end) in stay {
        if start > from {
            gaps.push((from, start));
        }
        from = end;
    }
    gaps
}

/// A process in the making. Dropping it kills it.
#[derive(Debug)]
pub struct NewProcess {
    stopped: Option<StoppedProcess>,
    /// A `syscall` instruction in the vdso.
    syscall: u64,
    scratch: (u64, u64),
}

impl NewProcess {
    /// Takes a process that waits (see [`pagetide_kernel::spawn`]), of one thread, and stops it. It is still a copy of
    /// whoever forked it. From now on it is killed when this program ends, by whatever means.
    pub fn take(pid: i32, options: StopOptions) -> Result<Self, RebuildError> {
        let identity = ProcessIdentity::of(pid)?;
        let stopped = StoppedProcess::stop_new(&identity, options)?;
        let first = ThreadId::new(pid);
        let bound = ptrace::Options {
            kill_with_tracer: true,
            ..ptrace::Options::default()
        };
        let bound = stopped
            .tracer()
            .run(move |_| ptrace::set_options(first, bound));
        bound.map_err(|source| RebuildError::Kernel {
            thread: first,
            source,
        })?;
        Ok(Self {
            stopped: Some(stopped),
            syscall: 0,
            scratch: (0, 0),
        })
    }

    fn stopped(&mut self) -> &mut StoppedProcess {
        self.stopped
            .as_mut()
            .expect("it is taken out only when the value ends")
    }

    /// Which process it is.
    pub fn identity(&self) -> Option<&ProcessIdentity> {
        self.stopped.as_ref().map(StoppedProcess::identity)
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.stopped
            .as_ref()
            .map_or(0, |stopped| stopped.identity().pid)
    }

    /// Its threads, the first one first.
    pub fn threads(&self) -> &[ThreadId] {
        self.stopped
            .as_ref()
            .map_or(&[], |stopped| stopped.threads())
    }

    /// Empties its address space, but for the ranges of addresses in `kept`, ascending. What the kernel maps into every process
    /// is moved to where `wanted` has it; calls get their bytes at `scratch`, where 128 KiB are not wanted for anything else.
    pub fn empty(
        &mut self,
        wanted: &[KernelMapping],
        scratch: u64,
        kept: &[(u64, u64)],
    ) -> Result<(), RebuildError> {
        let pid = self.pid();
        let mappings = maps::mappings(pid)?;
        let present = kernel_mappings::among(&mappings);
        let moves = kernel_mappings::moves(&present, wanted, kept)?;
        let memory = self.stopped().terrain.memory();
        let memory = memory.ok_or(KernelMappingsError::NoSystemCall)?;
        let vdso = vdso_of(&mappings).ok_or(KernelMappingsError::NoSystemCall)?;
        self.syscall = kernel_mappings::system_call(&memory, vdso)?;
        let first = ThreadId::new(pid);
        let tracer = self.stopped().tracer();
        let area = tracer.run(move |_| ptrace::rseq_configuration(first));
        let area = area.map_err(|source| RebuildError::Kernel {
            thread: first,
            source,
        })?;
        let remote = |what| move |source| RebuildError::Remote { what, pid, source };
        let mut syscall = self.syscall;
        let mut calls = self.calls(first)?;
        if let Some(area) = area {
            calls
                .call(libc::SYS_rseq, unregister(&area))
                .map_err(remote("end restartable sequences"))?;
        }
        let of_kernel = present.iter().map(|kept| (kept.start, kept.end));
        for (start, end) in between(of_kernel.chain(kept.iter().copied())) {
            calls
                .call(libc::SYS_munmap, [start, end - start, 0, 0, 0, 0])
                .map_err(remote("unmap memory"))?;
        }
        for step in moves {
            let length = step.end - step.start;
            calls
                .call(
                    libc::SYS_mremap,
                    [step.start, length, length, MREMAP_MAYMOVE_FIXED, step.to, 0],
                )
                .map_err(remote("move what the kernel maps"))?;
            if (step.start..step.end).contains(&syscall) {
                syscall = step.to + (syscall - step.start);
                calls.land_at(syscall).map_err(remote("go on"))?;
            }
        }
        let arguments = [
            scratch,
            SCRATCH_BYTES,
            PROT_READ_WRITE,
            MAP_PRIVATE_ANONYMOUS_FIXED,
            u64::MAX,
            0,
        ];
        calls
            .call(libc::SYS_mmap, arguments)
            .map_err(remote("map memory"))?;
        calls.finish().map_err(remote("go on"))?;
        self.syscall = syscall;
        self.scratch = (scratch, scratch + SCRATCH_BYTES);
        Ok(())
    }

    /// System calls made by one of its threads.
    pub fn calls(&mut self, thread: ThreadId) -> Result<RemoteCalls<'_>, RebuildError> {
        let (syscall, scratch, pid) = (self.syscall, self.scratch, self.pid());
        let begun = RemoteCalls::begin_in_new(self.stopped(), thread, syscall, scratch);
        begun.map_err(|source| RebuildError::Remote {
            what: "begin system calls",
            pid,
            source,
        })
    }

    /// Makes another thread, with the id `wanted` if there is one. It stands still, with the registers of the first.
    pub fn add_thread(&mut self, wanted: Option<i32>) -> Result<ThreadId, RebuildError> {
        let pid = self.pid();
        let mut arguments = [0; CLONE_ARGUMENTS];
        arguments[0] = THREAD;
        let mut calls = self.calls(ThreadId::new(pid))?;
        let mut tries = 0;
        let made = loop {
            match calls.make_thread(arguments, wanted) {
                // A pid is free only a moment after its owner has gone.
                Err(RemoteCallError::Failed { errno, .. })
                    if errno == rustix::io::Errno::EXIST
                        && tries < TRIES_FOR_A_NUMBER
                        && wanted.is_some_and(|number| !is_seen(number)) =>
                {
                    tries += 1;
                    sleep(PAUSE_BETWEEN_TRIES);
                }
                made => break made,
            }
        };
        let finished = calls.finish();
        let made = match (made, wanted) {
            (Err(RemoteCallError::Failed { errno, .. }), Some(number))
                if errno == rustix::io::Errno::EXIST =>
            {
                let thread = ThreadId::new(number);
                return Err(RebuildError::ThreadTaken { thread });
            }
            (made, _) => made.and_then(|thread| finished.map(|()| thread)),
        };
        let thread = made.map_err(|source| RebuildError::Remote {
            what: "make a thread",
            pid,
            source,
        })?;
        self.stopped().add_thread(thread);
        Ok(thread)
    }

    /// Takes away what it has only while it is built: the memory for the bytes of calls. No call that has bytes can be made
    /// after that.
    pub fn free(&mut self) -> Result<(), RebuildError> {
        let (pid, scratch) = (self.pid(), self.scratch);
        let mut calls = self.calls(ThreadId::new(pid))?;
        let length = scratch.1 - scratch.0;
        let done = calls.call(libc::SYS_munmap, [scratch.0, length, 0, 0, 0, 0]);
        let finished = calls.finish();
        let done = done.and(finished);
        done.map_err(|source| RebuildError::Remote {
            what: "unmap memory",
            pid,
            source,
        })
    }

    /// Gives its threads their registers: the last step.
    pub fn set_thread_states(&mut self, states: &[ThreadState]) -> Result<(), RebuildError> {
        Ok(self.stopped().set_thread_states(states)?)
    }

    /// It is built: a process like any other, which stands still. If this program ends from here on, it runs.
    pub fn finish(self) -> StoppedProcess {
        let stopped = self.finish_bound();
        for &thread in stopped.threads() {
            let unbound = ptrace::Options::default();
            // One that was killed just now tells that when it is resumed.
            stopped
                .tracer()
                .run(move |_| ptrace::set_options(thread, unbound))
                .ok();
        }
        stopped
    }

    /// The same, but if this program ends before it lets the process go, the kernel kills it.
    pub fn finish_bound(mut self) -> StoppedProcess {
        self.stopped
            .take()
            .expect("it is taken out only when the value ends")
    }

    /// The process, for what is asked of any that stands still.
    pub fn as_stopped(&mut self) -> &mut StoppedProcess {
        self.stopped()
    }

    /// `/proc/PID/mem` of it.
    pub fn memory(&mut self) -> Option<Arc<std::fs::File>> {
        self.stopped().terrain.memory()
    }
}

impl Drop for NewProcess {
    fn drop(&mut self) {
        if let Some(stopped) = self.stopped.take() {
            // Half a process must never run. It may have ended already.
            stopped.signal(rustix::process::Signal::KILL).ok();
        }
    }
}

/// True if a process or thread with this pid can be seen.
fn is_seen(number: i32) -> bool {
    Path::new(&format!("/proc/{number}")).exists()
}

fn vdso_of(mappings: &[Mapping]) -> Option<(u64, u64)> {
    let vdso = mappings
        .iter()
        .find(|mapping| mapping.name == MappingName::Vdso)?;
    Some((vdso.start, vdso.end))
}
