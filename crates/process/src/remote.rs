//! System calls run by a thread of the stopped target, as if it had made them.
//!
//! The thread is led from one system call stop to the next, never single-stepped: a step ends in a
//! SIGTRAP that the kernel forces on the thread, at the cost of its handler if it blocks SIGTRAP.
//! All signals are blocked meanwhile, so none is delivered on the way; SIGSTOP cannot be blocked
//! and is handed on, which puts the process into the group-stop it would be in anyway.
//!
//! At the end the thread gets its registers back and goes through the kernel's signal code once
//! more, where it is stopped again: from there the kernel continues a system call that had been
//! interrupted, whoever lets the thread go.
//!
//! What is not done here: no code is written into the target, and no call is retried or undone.

pub(crate) mod together;

use crate::proc_files::Status;
use crate::remote_error::RemoteCallError;
use crate::seccomp::{self, CallData};
use crate::session::{CLONE_ARGUMENTS, Session, place_below};
use crate::stop::StoppedProcess;
use crate::syscall_names::SystemCall;
use crate::system_calls::{Batch, SystemCalls, checked};
use crate::tracees::Tracees;
use pagetide_kernel::ptrace::{self, FilterInstruction, ThreadId};
use std::io;

/// What seccomp says of the thread that runs the calls.
#[derive(Debug)]
enum SeccompState {
    Off,
    Strict,
    Filters(Vec<Vec<FilterInstruction>>),
    Unknown(io::ErrorKind, Option<i32>),
}

/// A session of system calls run by one thread of the target. Its end (drop, or [`Self::finish`])
/// makes the thread what it was.
///
/// **If this program is killed during a session**: in most targets the thread finds back by itself,
/// at whatever moment it happens, see [`Self::survives_our_death`]. In others, a kill between the
/// begin and the end of a single call (some 20 us) leaves the thread with wrong registers.
#[derive(Debug)]
pub struct RemoteCalls<'a> {
    stopped: &'a mut StoppedProcess,
    thread: ThreadId,
    seccomp: SeccompState,
    survives_our_death: bool,
    behind_syscall: u64,
    /// The next bytes go below this address, as the session has it.
    free_below: u64,
}

impl StoppedProcess {
    /// Begins a session of system calls run inside the target.
    pub fn remote_calls(&mut self) -> Result<RemoteCalls<'_>, RemoteCallError> {
        RemoteCalls::begin(self, None)
    }

    /// Begins a session of system calls run by this very thread, for what the kernel keeps by thread.
    pub fn remote_calls_by(
        &mut self,
        thread: ThreadId,
    ) -> Result<RemoteCalls<'_>, RemoteCallError> {
        RemoteCalls::begin(self, Some(thread))
    }
}

impl<'a> RemoteCalls<'a> {
    /// By a thread that is asked for, or by the one that is fittest.
    pub(crate) fn begin(
        stopped: &'a mut StoppedProcess,
        by: Option<ThreadId>,
    ) -> Result<Self, RemoteCallError> {
        let pid = stopped.identity().pid;
        stopped.must_run()?;
        let landing = stopped
            .landing()
            .ok_or(RemoteCallError::NoLanding { pid })?;
        let memory = stopped
            .terrain
            .memory()
            .ok_or(RemoteCallError::NoLanding { pid })?;
        let stacks = stopped.terrain.stacks();
        let begun = stopped.tracer().run(move |tracees| {
            let (session, status) = Session::prepare(tracees, by, &landing, &stacks, memory)?;
            let seccomp = seccomp_state(session.thread, status);
            let summary = (
                session.thread,
                session.frame.is_some(),
                session.landing + 2,
                session.free_below(),
                seccomp,
            );
            tracees.hold_session(session);
            Ok(summary)
        });
        let (thread, survives_our_death, behind_syscall, free_below, seccomp) = begun?;
        Ok(Self {
            stopped,
            thread,
            seccomp,
            survives_our_death,
            behind_syscall,
            free_below,
        })
    }

    /// A session in a process that is being built: by this thread, at a `syscall` instruction in the vdso, with bytes
    /// put into memory of its own.
    pub(crate) fn begin_in_new(
        stopped: &'a mut StoppedProcess,
        thread: ThreadId,
        syscall: u64,
        scratch: (u64, u64),
    ) -> Result<Self, RemoteCallError> {
        let pid = stopped.identity().pid;
        let memory = stopped
            .terrain
            .memory()
            .ok_or(RemoteCallError::NoLanding { pid })?;
        stopped.tracer().run(move |tracees| {
            let session = Session::in_new(tracees.pid(), thread, syscall, scratch, memory)?;
            tracees.hold_session(session);
            Ok(())
        })?;
        Ok(Self {
            stopped,
            thread,
            seccomp: SeccompState::Off,
            survives_our_death: false,
            behind_syscall: syscall + 2,
            free_below: scratch.1,
        })
    }

    /// From now on calls are made at another `syscall` instruction.
    pub(crate) fn land_at(&mut self, syscall: u64) -> Result<(), RemoteCallError> {
        self.behind_syscall = syscall + 2;
        self.in_session(move |session, _| {
            session.landing = syscall;
            Ok(())
        })
    }

    /// Makes a thread of the process, with this number if one is asked for. It stands still like the others. `arguments`
    /// is the structure that clone3(2) takes, whose `set_tid` is filled in here.
    pub(crate) fn make_thread(
        &mut self,
        arguments: [u64; CLONE_ARGUMENTS],
        number: Option<i32>,
    ) -> Result<ThreadId, RemoteCallError> {
        self.in_session(move |session, tracees| session.make_thread(tracees, arguments, number))
    }

    /// The thread that runs the calls.
    pub fn thread(&self) -> ThreadId {
        self.thread
    }

    /// Whether the thread becomes itself again without us, should we be killed during a call.
    ///
    /// So it is for a thread that runs on a stack of its own (not on a coroutine's, whose lower
    /// neighbour may be live memory), in a program that has the usual instructions of a libc, on a
    /// processor without shadow stacks in use. Such a thread is taken if there is one.
    pub fn survives_our_death(&self) -> bool {
        self.survives_our_death
    }

    /// Whether the target's seccomp filters let this call pass. An error if that cannot be known.
    pub fn would_be_allowed(&self, number: i64, args: [u64; 6]) -> Result<bool, RemoteCallError> {
        let pid = self.stopped.identity().pid;
        match &self.seccomp {
            SeccompState::Off => Ok(true),
            SeccompState::Strict => Ok(false),
            SeccompState::Unknown(kind, raw) => Err(RemoteCallError::SeccompUnknown {
                pid,
                source: raw.map_or_else(|| (*kind).into(), io::Error::from_raw_os_error),
            }),
            SeccompState::Filters(filters) => Ok(i32::try_from(number).is_ok_and(|number| {
                let call = CallData {
                    number,
                    instruction_pointer: self.behind_syscall,
                    args,
                };
                seccomp::allows(filters, &call)
            })),
        }
    }

    /// Runs one system call and returns its result.
    ///
    /// Not for calls that do not return (`exit`, `rt_sigreturn`) or that replace the program, nor
    /// for those that may wait for long: after ten seconds a call is interrupted, and after one if a control
    /// group has frozen the thread meanwhile. One that was given up on may still be made, when the thread is
    /// thawed or wakes: what it then leaves in the process is for the caller to have marked beforehand.
    pub fn call(&mut self, number: i64, args: [u64; 6]) -> Result<u64, RemoteCallError> {
        self.check(number, args)?;
        let call = SystemCall(number);
        let result = self.in_session(move |session, tracees| session.call(tracees, call, args))?;
        checked(result).map_err(|errno| RemoteCallError::Failed { call, errno })
    }

    /// Runs calls one after the other, without going back and forth between our own threads for each. One that the
    /// kernel refuses has no result; whatever else goes wrong ends it. No call is made if one of them must not be.
    pub(crate) fn call_each(
        &mut self,
        calls: Vec<(i64, [u64; 6])>,
    ) -> Result<Vec<Option<u64>>, RemoteCallError> {
        for (number, args) in &calls {
            self.check(*number, *args)?;
        }
        self.in_session(move |session, tracees| {
            let mut results = Vec::with_capacity(calls.len());
            for (number, args) in calls {
                let call = SystemCall(number);
                let result = session.call(tracees, call, args)?;
                results.push(checked(result).ok());
            }
            Ok(results)
        })
    }

    /// An error if seccomp does not let the call pass.
    fn check(&self, number: i64, args: [u64; 6]) -> Result<(), RemoteCallError> {
        let call = SystemCall(number);
        if matches!(self.seccomp, SeccompState::Strict) {
            let pid = self.stopped.identity().pid;
            return Err(RemoteCallError::SeccompStrict { pid });
        }
        if !self.would_be_allowed(number, args)? {
            return Err(RemoteCallError::ForbiddenBySeccomp { call });
        }
        Ok(())
    }

    /// Puts `bytes` into the target's memory for the time of `work`, which gets their address
    /// there: below the stack pointer of the thread. What was there is put back afterwards.
    pub fn with_bytes<R, E: From<RemoteCallError>>(
        &mut self,
        bytes: &[u8],
        work: impl FnOnce(&mut Self, u64) -> Result<R, E>,
    ) -> Result<R, E> {
        let owned = bytes.to_vec();
        let address = self.in_session(move |session, _| session.put_bytes(&owned))?;
        let free_below = std::mem::replace(&mut self.free_below, address);
        let result = work(self, address);
        self.free_below = free_below;
        let taken_back = self.in_session(|session, _| session.take_back_bytes());
        let result = result?;
        taken_back?;
        Ok(result)
    }

    /// Reads what a call left at an address that [`Self::with_bytes`] gave, or anywhere else.
    pub fn read(&mut self, address: u64, buffer: &mut [u8]) -> Result<(), RemoteCallError> {
        let length = buffer.len();
        let bytes = self.in_session(move |session, _| session.read(address, length))?;
        buffer.copy_from_slice(&bytes);
        Ok(())
    }

    /// Ends the session and reports whether the thread is what it was.
    pub fn finish(self) -> Result<(), RemoteCallError> {
        self.end()
    }

    fn end(&self) -> Result<(), RemoteCallError> {
        self.stopped
            .tracer()
            .run(|tracees| match tracees.take_session::<Session>() {
                Some(session) => session.end(tracees),
                None => Ok(()),
            })
    }

    fn in_session<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Session, &mut Tracees) -> Result<R, RemoteCallError> + Send + 'static,
    ) -> Result<R, RemoteCallError> {
        self.stopped.tracer().run(move |tracees| {
            let session = tracees.take_session::<Session>();
            let mut session = session.ok_or(RemoteCallError::Over)?;
            let result = work(&mut session, tracees);
            match &result {
                Err(RemoteCallError::Gone { .. }) => {}
                _ if session.lost => {}
                _ => tracees.hold_session(session),
            }
            result
        })
    }
}

impl SystemCalls for RemoteCalls<'_> {
    fn call(&mut self, number: i64, args: [u64; 6]) -> Result<u64, RemoteCallError> {
        RemoteCalls::call(self, number, args)
    }

    fn call_with(
        &mut self,
        number: i64,
        bytes: &mut [u8],
        args: &dyn Fn(u64) -> [u64; 6],
    ) -> Result<u64, RemoteCallError> {
        // Known beforehand, so that one question to the tracing thread does.
        let address = place_below(self.free_below, bytes.len());
        let args = args(address);
        self.check(number, args)?;
        let (call, given) = (SystemCall(number), bytes.to_vec());
        let done = self.in_session(move |session, tracees| {
            let put = session.put_bytes(&given)?;
            let called = if put == address {
                session.call(tracees, call, args)
            } else {
                Err(RemoteCallError::Over)
            };
            let after = called.and_then(|result| match checked(result) {
                Ok(result) => Ok(Ok((result, session.read(put, given.len())?))),
                Err(errno) => Ok(Err(errno)),
            });
            let taken_back = session.take_back_bytes();
            let after = after?;
            taken_back?;
            Ok(after)
        });
        let (result, after) = done?.map_err(|errno| RemoteCallError::Failed { call, errno })?;
        bytes.copy_from_slice(&after);
        Ok(result)
    }

    fn call_all(&mut self, batch: Batch) -> Result<(), (usize, RemoteCallError)> {
        if batch.is_empty() {
            return Ok(());
        }
        let address = place_below(self.free_below, batch.bytes.len());
        let calls: Vec<_> = batch.calls.iter().map(|one| one.at(address)).collect();
        for (index, (number, args)) in calls.iter().enumerate() {
            self.check(*number, *args).map_err(|error| (index, error))?;
        }
        let bytes = batch.bytes;
        let done = self.in_session(move |session, tracees| {
            if session.put_bytes(&bytes)? != address {
                session.take_back_bytes()?;
                return Err(RemoteCallError::Over);
            }
            let done = session.call_all(tracees, &calls);
            session.take_back_bytes()?;
            Ok(done)
        });
        done.map_err(|error| (0, error))?
    }
}

impl Drop for RemoteCalls<'_> {
    fn drop(&mut self) {
        // Nobody is left to hear of it; `finish` is for those who want to.
        self.end().ok();
    }
}

fn seccomp_state(thread: ThreadId, status: io::Result<Status>) -> SeccompState {
    match status.map(|status| status.number("Seccomp")) {
        Ok(0) => SeccompState::Off,
        Ok(1) => SeccompState::Strict,
        Ok(_) => match all_filters(thread) {
            Ok(filters) => SeccompState::Filters(filters),
            Err(error) => SeccompState::Unknown(error.kind(), error.raw_os_error()),
        },
        Err(error) => SeccompState::Unknown(error.kind(), error.raw_os_error()),
    }
}

fn all_filters(thread: ThreadId) -> io::Result<Vec<Vec<FilterInstruction>>> {
    let mut filters = Vec::new();
    while let Some(filter) = ptrace::seccomp_filter(thread, filters.len())? {
        filters.push(filter);
    }
    Ok(filters)
}
