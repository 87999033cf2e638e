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

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pagetide_kernel::ptrace::{
    self, Event, FilterInstruction, Options, Registers, ThreadId, WaitReport, XSTATE_ROOM,
};
use rustix::io::Errno;

use crate::landing::{Landing, StackMapping};
use crate::proc_files::Status;
use crate::restart;
use crate::seccomp::{self, CallData};
use crate::self_healing::{self, Frame, RED_ZONE, ThreadParts};
use crate::stop::StoppedProcess;
pub use crate::syscall_names::SystemCall;
use crate::tracer::{SessionReport, Tracees, is_gone};

/// Most bytes that [`RemoteCalls::with_bytes`] takes.
const BYTES_MAX: usize = 64 * 1024;
/// How long a call may take before it is interrupted.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an interrupted call may take to come back.
const INTERRUPT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a call is made again that a stop signal interrupted.
const RESTARTS_MAX: usize = 16;

/// Why a call could not be run in the target, or what it answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteCallError {
    /// The process was killed meanwhile.
    #[error("process {pid} was killed while it was stopped")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// The call was made and failed.
    #[error("{call} failed inside the process")]
    Failed {
        /// The call.
        call: SystemCall,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// A seccomp filter of the target does not let the call pass. It was not made.
    #[error("a seccomp filter of the process forbids {call}")]
    ForbiddenBySeccomp {
        /// The call.
        call: SystemCall,
    },
    /// The target has seccomp filters that we cannot read, so a call might kill it. Reading them
    /// needs CAP_SYS_ADMIN, a kernel with CONFIG_CHECKPOINT_RESTORE, and no filter on ourselves.
    #[error("process {pid} has seccomp filters that cannot be read")]
    SeccompUnknown {
        /// The process.
        pid: i32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The target is in seccomp's strict mode, in which nearly every call kills.
    #[error("process {pid} is in the strict mode of seccomp")]
    SeccompStrict {
        /// The process.
        pid: i32,
    },
    /// The thread diverts its own system calls (`PR_SET_SYSCALL_USER_DISPATCH`), as Wine does.
    #[error("thread {thread} diverts its system calls to itself")]
    DivertsSyscalls {
        /// The thread.
        thread: ThreadId,
    },
    /// No executable mapping has a `syscall` instruction.
    #[error("process {pid} has no system call instruction that could be used")]
    NoLanding {
        /// The process.
        pid: i32,
    },
    /// No thread is in a state in which it could run a call.
    #[error("process {pid} has no thread that could run a system call")]
    NoThread {
        /// The process.
        pid: i32,
    },
    /// There is no room for the bytes below the stack pointer of the thread.
    #[error("no room for {length_bytes} bytes on the stack of thread {thread}")]
    NoRoom {
        /// The thread.
        thread: ThreadId,
        /// How many bytes were to be put there.
        length_bytes: usize,
    },
    /// The target's memory could not be read or written.
    #[error("cannot access {length_bytes:#x} bytes at {address:#x} of the process")]
    Memory {
        /// Where.
        address: u64,
        /// How many bytes.
        length_bytes: usize,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The call did not return in time, and was interrupted.
    #[error("{call} did not return in time inside the process")]
    TimedOut {
        /// The call.
        call: SystemCall,
    },
    /// Something else than the call happened in the thread.
    #[error("thread {thread} did not run {call}: {what}")]
    Unexpected {
        /// The thread.
        thread: ThreadId,
        /// The call.
        call: SystemCall,
        /// What happened.
        what: String,
    },
    /// The session ended with an error before.
    #[error("the session of remote calls is over")]
    Over,
    /// The kernel refused a request.
    #[error("cannot {what} thread {thread}")]
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
}

impl<'a> RemoteCalls<'a> {
    pub(crate) fn begin(stopped: &'a mut StoppedProcess) -> Result<Self, RemoteCallError> {
        let pid = stopped.identity().pid;
        let landing = stopped
            .landing()
            .ok_or(RemoteCallError::NoLanding { pid })?;
        let memory = stopped
            .terrain
            .memory()
            .ok_or(RemoteCallError::NoLanding { pid })?;
        let stacks = stopped.terrain.stacks();
        let begun = stopped.tracer().run(move |tracees| {
            let session = Session::prepare(tracees, &landing, &stacks, memory)?;
            let seccomp = seccomp_state(tracees.pid(), session.thread);
            let summary = (
                session.thread,
                session.frame.is_some(),
                session.landing + 2,
                seccomp,
            );
            tracees.session = Some(session);
            Ok(summary)
        });
        let (thread, survives_our_death, behind_syscall, seccomp) = begun?;
        Ok(Self {
            stopped,
            thread,
            seccomp,
            survives_our_death,
            behind_syscall,
        })
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
    /// for those that may wait for long: after ten seconds a call is interrupted.
    pub fn call(&mut self, number: i64, args: [u64; 6]) -> Result<u64, RemoteCallError> {
        let call = SystemCall(number);
        if matches!(self.seccomp, SeccompState::Strict) {
            let pid = self.stopped.identity().pid;
            return Err(RemoteCallError::SeccompStrict { pid });
        }
        if !self.would_be_allowed(number, args)? {
            return Err(RemoteCallError::ForbiddenBySeccomp { call });
        }
        let result = self.in_session(move |session, tracees| session.call(tracees, call, args))?;
        match result.cast_signed() {
            error @ -4095..0 => Err(RemoteCallError::Failed {
                call,
                // In range by the pattern.
                errno: Errno::from_raw_os_error(i32::try_from(-error).unwrap_or(0)),
            }),
            _ => Ok(result),
        }
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
        let result = work(self, address);
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
            .run(|tracees| match tracees.session.take() {
                Some(session) => session.end(tracees),
                None => Ok(()),
            })
    }

    fn in_session<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Session, &mut Tracees) -> Result<R, RemoteCallError> + Send + 'static,
    ) -> Result<R, RemoteCallError> {
        self.stopped.tracer().run(move |tracees| {
            let mut session = tracees.session.take().ok_or(RemoteCallError::Over)?;
            let result = work(&mut session, tracees);
            match &result {
                Err(RemoteCallError::Gone { .. }) => {}
                _ if session.lost => {}
                _ => tracees.session = Some(session),
            }
            result
        })
    }
}

impl Drop for RemoteCalls<'_> {
    fn drop(&mut self) {
        // Nobody is left to hear of it; `finish` is for those who want to.
        self.end().ok();
    }
}

/// The thread that runs the calls, seen from the tracing thread.
#[derive(Debug)]
pub(crate) struct Session {
    thread: ThreadId,
    original: Registers,
    signal_mask: u64,
    /// Address of the `syscall` instruction.
    landing: u64,
    /// What lets the thread find back by itself; written before the first call.
    frame: Option<Frame>,
    memory: Arc<File>,
    /// What the target had where the frame is.
    under_frame: Option<Vec<u8>>,
    /// What the target had where bytes of ours are, the oldest first.
    overwritten: Vec<(u64, Vec<u8>)>,
    /// The next bytes go below this address, and not below `floor`.
    free_below: u64,
    floor: u64,
    /// The registers or the signal mask are not the thread's own, or it left the place in the
    /// kernel from which interrupted calls are continued.
    entered: bool,
    /// It would not stop, so nothing can be put back.
    lost: bool,
}

struct Candidate {
    thread: ThreadId,
    registers: Registers,
    stack: Option<StackMapping>,
}

impl Candidate {
    /// The best has the highest: first of all it can find back by itself; then an interrupted call
    /// of it, if any, can be done again without the kernel.
    fn rank(&self) -> (bool, bool, bool) {
        (
            self.stack.is_some(),
            !restart::is_restart_block(&self.registers),
            !restart::will_restart(&self.registers),
        )
    }
}

impl Session {
    /// Chooses a thread and reads it. Nothing is changed yet.
    fn prepare(
        tracees: &mut Tracees,
        landing: &Landing,
        stacks: &[StackMapping],
        memory: Arc<File>,
    ) -> Result<Self, RemoteCallError> {
        let pid = tracees.pid();
        let mut candidates = Vec::new();
        for thread in tracees.stopped() {
            let registers = ptrace::registers(thread).map_err(kernel(pid, "read", thread))?;
            // Workers of the kernel inside the process (io_uring) have no user registers.
            if let Some(registers) = registers.filter(|registers| registers.rip != 0) {
                let stack = self_healing::own_stack(&registers, stacks);
                candidates.push(Candidate {
                    thread,
                    registers,
                    stack,
                });
            }
        }
        let chosen = candidates
            .into_iter()
            .max_by_key(Candidate::rank)
            .ok_or(RemoteCallError::NoThread { pid })?;
        let thread = chosen.thread;
        if ptrace::diverts_syscalls(thread).unwrap_or(false) {
            return Err(RemoteCallError::DivertsSyscalls { thread });
        }
        let signal_mask = ptrace::signal_mask(thread).map_err(kernel(pid, "read", thread))?;
        let frame = frame_for(pid, &chosen, landing, signal_mask, &memory)?;
        let free_below = frame
            .as_ref()
            .map_or(chosen.registers.rsp, |frame| frame.address)
            .saturating_sub(RED_ZONE);
        Ok(Self {
            thread,
            original: chosen.registers,
            signal_mask,
            landing: match (&frame, &landing.way_back) {
                (Some(_), Some(way_back)) => way_back.syscall_ret,
                _ => landing.syscall,
            },
            frame,
            memory,
            under_frame: None,
            overwritten: Vec::new(),
            free_below,
            floor: chosen.stack.map_or(0, |stack| stack.start),
            entered: false,
            lost: false,
        })
    }

    fn call(
        &mut self,
        tracees: &mut Tracees,
        call: SystemCall,
        args: [u64; 6],
    ) -> Result<u64, RemoteCallError> {
        let pid = tracees.pid();
        self.enter(pid)?;
        let registers = Registers {
            rip: self.landing,
            rsp: self
                .frame
                .as_ref()
                .map_or(self.original.rsp, |frame| frame.address),
            rax: call.0.cast_unsigned(),
            orig_rax: u64::MAX,
            rdi: args[0],
            rsi: args[1],
            rdx: args[2],
            r10: args[3],
            r8: args[4],
            r9: args[5],
            ..self.original
        };
        let deadline = Instant::now() + CALL_TIMEOUT;
        let mut result = Err(RemoteCallError::TimedOut { call });
        for _ in 0..RESTARTS_MAX {
            // From here on the thread is not itself. With a frame, it would find back.
            ptrace::set_registers(self.thread, &registers).map_err(kernel(
                pid,
                "set the registers of",
                self.thread,
            ))?;
            self.block_signals(pid)?;
            result = self.run_to_exit(tracees, call, deadline);
            match &result {
                // A stop signal interrupted the call before it did anything.
                Ok(value) if (-516..=-512).contains(&value.cast_signed()) => {}
                _ => break,
            }
        }
        if self.frame.is_none() && !self.lost {
            // Nothing would put it right without us: do so after every single call.
            self.put_back(pid)?;
        }
        result
    }

    /// Before the first call: writes the frame.
    fn enter(&mut self, pid: i32) -> Result<(), RemoteCallError> {
        if self.entered {
            return Ok(());
        }
        // System call stops only; nobody wants to hear of threads that a call makes.
        let options = Options {
            mark_syscall_stops: true,
            ..Options::default()
        };
        ptrace::set_options(self.thread, options).map_err(kernel(
            pid,
            "set the options of",
            self.thread,
        ))?;
        if let Some(frame) = &self.frame {
            self.under_frame = Some(self.read(frame.address, frame.bytes.len())?);
            self.write(frame.address, &frame.bytes)?;
        }
        self.entered = true;
        Ok(())
    }

    /// All but SIGKILL and SIGSTOP. With a frame, this comes after the registers are set: should we
    /// die in between, it is the frame that knows the thread's own mask.
    fn block_signals(&self, pid: i32) -> Result<(), RemoteCallError> {
        ptrace::set_signal_mask(self.thread, u64::MAX).map_err(kernel(
            pid,
            "block the signals of",
            self.thread,
        ))
    }

    /// Lets the thread enter the call and leave it again.
    fn run_to_exit(
        &mut self,
        tracees: &mut Tracees,
        call: SystemCall,
        deadline: Instant,
    ) -> Result<u64, RemoteCallError> {
        let pid = tracees.pid();
        let thread = self.thread;
        let mut stops = 0;
        let mut signal = 0;
        let mut deadline = deadline;
        let mut interrupted = false;
        while stops < 2 {
            ptrace::resume_to_syscall(thread, signal).map_err(kernel(pid, "run", thread))?;
            signal = 0;
            let report = loop {
                match tracees.wait_in_session(thread, deadline) {
                    SessionReport::Report(report) => break report,
                    SessionReport::Gone => return Err(RemoteCallError::Gone { pid }),
                    SessionReport::Timeout if interrupted => {
                        // It sleeps uninterruptibly. The end of the tracing thread lets it go,
                        // and the frame leads it back.
                        self.lost = true;
                        tracees.abandon(thread);
                        return Err(RemoteCallError::TimedOut { call });
                    }
                    SessionReport::Timeout => {
                        interrupted = true;
                        deadline = Instant::now() + INTERRUPT_TIMEOUT;
                        ptrace::interrupt(thread).map_err(kernel(pid, "interrupt", thread))?;
                    }
                }
            };
            match report {
                WaitReport::Syscall => stops += 1,
                // A group-stop begins or ends; it takes effect when the thread is let go.
                WaitReport::Event(_) => {}
                WaitReport::Signal { signal: number } if number == SIGSTOP => signal = number,
                WaitReport::Signal { signal: number } => {
                    return Err(RemoteCallError::Unexpected {
                        thread,
                        call,
                        what: format!("signal {number} came instead"),
                    });
                }
                WaitReport::Exited { .. } | WaitReport::Killed { .. } => {
                    return Err(RemoteCallError::Gone { pid });
                }
            }
        }
        if interrupted {
            return Err(RemoteCallError::TimedOut { call });
        }
        let registers = ptrace::registers(thread)
            .map_err(kernel(pid, "read the registers of", thread))?
            .ok_or(RemoteCallError::NoThread { pid })?;
        Ok(registers.rax)
    }

    /// The thread's own mask and registers, in this order: with a frame, it finds back until the
    /// very request that makes it unnecessary.
    fn put_back(&self, pid: i32) -> Result<(), RemoteCallError> {
        ptrace::set_signal_mask(self.thread, self.signal_mask).map_err(kernel(
            pid,
            "unblock the signals of",
            self.thread,
        ))?;
        ptrace::set_registers(self.thread, &self.original).map_err(kernel(
            pid,
            "set the registers of",
            self.thread,
        ))
    }

    /// Makes the thread what it was and stops it where it was stopped.
    pub(crate) fn end(mut self, tracees: &mut Tracees) -> Result<(), RemoteCallError> {
        if self.lost {
            return Ok(());
        }
        let pid = tracees.pid();
        if self.entered {
            self.put_back(pid)?;
        }
        // Only now: until here the thread might have needed the frame.
        let mut memory_error = match (&self.frame, self.under_frame.take()) {
            (Some(frame), Some(bytes)) => self.write(frame.address, &bytes).err(),
            _ => None,
        };
        while !self.overwritten.is_empty() {
            if let Err(error) = self.take_back_bytes() {
                memory_error = Some(error);
            }
        }
        if self.entered {
            self.stop_in_signal_code(tracees)?;
        }
        memory_error.map_or(Ok(()), Err)
    }

    fn stop_in_signal_code(&mut self, tracees: &mut Tracees) -> Result<(), RemoteCallError> {
        let pid = tracees.pid();
        let thread = self.thread;
        let deadline = Instant::now() + INTERRUPT_TIMEOUT;
        let mut signal = 0;
        loop {
            ptrace::interrupt(thread).map_err(kernel(pid, "interrupt", thread))?;
            ptrace::resume(thread, signal).map_err(kernel(pid, "run", thread))?;
            match tracees.wait_in_session(thread, deadline) {
                SessionReport::Report(WaitReport::Event(Event::Stop { .. })) => return Ok(()),
                SessionReport::Report(WaitReport::Signal { signal: number }) => signal = number,
                SessionReport::Report(_) => signal = 0,
                SessionReport::Gone => return Err(RemoteCallError::Gone { pid }),
                SessionReport::Timeout => {
                    tracees.abandon(thread);
                    return Err(RemoteCallError::Over);
                }
            }
        }
    }

    fn put_bytes(&mut self, bytes: &[u8]) -> Result<u64, RemoteCallError> {
        let length_bytes = bytes.len();
        let no_room = RemoteCallError::NoRoom {
            thread: self.thread,
            length_bytes,
        };
        let length = u64::try_from(length_bytes).unwrap_or(u64::MAX);
        let address = self.free_below.saturating_sub(length) & !15;
        if length_bytes > BYTES_MAX || address < self.floor {
            return Err(no_room);
        }
        self.overwrite(address, bytes)?;
        self.free_below = address;
        Ok(address)
    }

    fn take_back_bytes(&mut self) -> Result<(), RemoteCallError> {
        let Some((address, bytes)) = self.overwritten.pop() else {
            return Ok(());
        };
        let end = address + u64::try_from(bytes.len()).unwrap_or(0);
        self.free_below = self.free_below.max(end);
        self.write(address, &bytes)
    }

    fn overwrite(&mut self, address: u64, bytes: &[u8]) -> Result<(), RemoteCallError> {
        let before = self.read(address, bytes.len())?;
        self.overwritten.push((address, before));
        self.write(address, bytes)
    }

    fn read(&self, address: u64, length: usize) -> Result<Vec<u8>, RemoteCallError> {
        let mut bytes = vec![0; length];
        self.memory
            .read_exact_at(&mut bytes, address)
            .map_err(memory(address, length))?;
        Ok(bytes)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), RemoteCallError> {
        self.memory
            .write_all_at(bytes, address)
            .map_err(memory(address, bytes.len()))
    }
}

const SIGSTOP: i32 = 19;

/// The frame for the chosen thread; `None` if it cannot find back by itself.
fn frame_for(
    pid: i32,
    chosen: &Candidate,
    landing: &Landing,
    signal_mask: u64,
    memory: &File,
) -> Result<Option<Frame>, RemoteCallError> {
    let (Some(stack), Some(way_back)) = (chosen.stack, &landing.way_back) else {
        return Ok(None);
    };
    let thread = chosen.thread;
    let features = Status::of_thread(pid, thread)
        .ok()
        .and_then(|status| status.value("x86_Thread_features").map(str::to_owned));
    if features.is_some_and(|features| features.contains("shstk")) {
        return Ok(None);
    }
    let mut xstate = vec![0; XSTATE_ROOM];
    let length = ptrace::xstate(thread, &mut xstate).map_err(kernel(pid, "read", thread))?;
    let parts = ThreadParts {
        registers: &chosen.registers,
        xstate: &xstate[..length],
        signal_mask,
    };
    Ok(self_healing::frame(parts, stack, way_back, memory))
}

fn seccomp_state(pid: i32, thread: ThreadId) -> SeccompState {
    match Status::of_thread(pid, thread).map(|status| status.number("Seccomp")) {
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

fn kernel(
    pid: i32,
    what: &'static str,
    thread: ThreadId,
) -> impl FnOnce(io::Error) -> RemoteCallError {
    move |source| {
        if is_gone(&source) {
            RemoteCallError::Gone { pid }
        } else {
            RemoteCallError::Kernel {
                what,
                thread,
                source,
            }
        }
    }
}

fn memory(address: u64, length_bytes: usize) -> impl FnOnce(io::Error) -> RemoteCallError {
    move |source| RemoteCallError::Memory {
        address,
        length_bytes,
        source,
    }
}
