//! The thread that runs remote calls, seen from the tracing thread: how it is chosen, led through a
//! call, and made what it was. What may be called, and for whom, is decided in `remote`.

pub(crate) mod call;

use crate::freezer::Freezer;
use crate::landing::{Landing, StackMapping};
use crate::proc_files::Status;
use crate::remote_error::RemoteCallError;
use crate::restart;
use crate::rseq::Whereabouts;
use crate::seizing::is_gone;
use crate::self_healing::{self, Frame, RED_ZONE, ThreadParts};
use crate::syscall_names::SystemCall;
use crate::tracees::{OpenSession, SessionReport, Tracees};
use nix::libc;
use pagetide_kernel::ptrace::{self, Event, Options, Registers, ThreadId, WaitReport, XSTATE_ROOM};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most bytes that `RemoteCalls::with_bytes` takes.
const BYTES_MAX: usize = 64 * 1024;
/// How long a call may take before it is interrupted.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an interrupted call may take to come back.
pub(crate) const INTERRUPT_TIMEOUT: Duration = Duration::from_secs(2);
/// Words of `struct clone_args` up to `cgroup`, and which of them is `set_tid`.
pub(crate) const CLONE_ARGUMENTS: usize = 11;
const CLONE_SET_TID: usize = 8;

/// The thread that runs the calls, seen from the tracing thread.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) thread: ThreadId,
    original: Registers,
    signal_mask: u64,
    /// Address of the `syscall` instruction.
    pub(crate) landing: u64,
    /// What lets the thread find back by itself; written before the first call.
    pub(crate) frame: Option<Frame>,
    memory: Arc<File>,
    /// What the kernel had told the thread of where it runs, before the first call.
    whereabouts: Option<Whereabouts>,
    /// What the target had where the frame is.
    under_frame: Option<Vec<u8>>,
    /// Where bytes of ours are, the oldest first.
    overwritten: Vec<Overwritten>,
    /// The next bytes go below this address, and not below `floor`.
    free_below: u64,
    floor: u64,
    /// The registers or the signal mask are not the thread's own, or it left the place in the
    /// kernel from which interrupted calls are continued.
    entered: bool,
    /// It would not stop, so nothing can be put back.
    pub(crate) lost: bool,
    /// The process is being built, and must not outlive its tracer.
    is_new: bool,
}

/// Bytes of ours in the target.
#[derive(Debug)]
struct Overwritten {
    address: u64,
    /// What the target had there, unless it has nothing to lose.
    before: Option<Vec<u8>>,
    /// Below where they were put.
    below: u64,
}

/// A session that ends.
#[derive(Debug)]
pub(crate) struct Ending {
    /// The thread is stopped where it was stopped before.
    pub(crate) stands: bool,
    memory_error: Option<RemoteCallError>,
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

impl OpenSession for Session {
    fn give_back(self: Box<Self>, tracees: &mut Tracees) {
        // All else is let go whether or not this thread can be made what it was.
        self.end(tracees).ok();
    }
}

impl Session {
    /// Chooses a thread, unless one is asked for, and reads it. Nothing is changed yet. What `/proc` says of the thread comes
    /// with it.
    pub(crate) fn prepare(
        tracees: &mut Tracees,
        by: Option<ThreadId>,
        landing: &Landing,
        stacks: &[StackMapping],
        memory: Arc<File>,
    ) -> Result<(Self, io::Result<Status>), RemoteCallError> {
        let pid = tracees.pid();
        let mut candidates = Vec::new();
        let stopped = match by {
            Some(thread) => Vec::from_iter(Some(thread).filter(|one| tracees.has_stopped(*one))),
            None => tracees.stopped(),
        };
        for thread in stopped {
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
        let status = Status::of_thread(pid, thread);
        let of_status = status.as_ref().ok();
        let frame = frame_for(pid, &chosen, landing, (signal_mask, of_status), &memory)?;
        let free_below = frame
            .as_ref()
            .map_or(chosen.registers.rsp, |frame| frame.address)
            .saturating_sub(RED_ZONE);
        let session = Self {
            thread,
            original: chosen.registers,
            signal_mask,
            landing: match (&frame, &landing.way_back) {
                (Some(_), Some(way_back)) => way_back.syscall_ret,
                _ => landing.syscall,
            },
            frame,
            memory,
            whereabouts: None,
            under_frame: None,
            overwritten: Vec::new(),
            free_below,
            floor: chosen.stack.map_or(0, |stack| stack.start),
            entered: false,
            lost: false,
            is_new: false,
        };
        Ok((session, status))
    }

    /// A session by a thread of a process that is being built: it has nothing that must be kept.
    pub(crate) fn in_new(
        pid: i32,
        thread: ThreadId,
        landing: u64,
        scratch: (u64, u64),
        memory: Arc<File>,
    ) -> Result<Self, RemoteCallError> {
        let original = ptrace::registers(thread)
            .map_err(kernel(pid, "read", thread))?
            .ok_or(RemoteCallError::NoThread { pid })?;
        Ok(Self {
            thread,
            original,
            signal_mask: u64::MAX,
            landing,
            frame: None,
            memory,
            whereabouts: None,
            under_frame: None,
            overwritten: Vec::new(),
            free_below: scratch.1,
            floor: scratch.0,
            entered: false,
            lost: false,
            is_new: true,
        })
    }

    /// Makes a thread by clone3(2) and waits until it stands. It is traced from its birth on.
    pub(crate) fn make_thread(
        &mut self,
        tracees: &mut Tracees,
        mut arguments: [u64; CLONE_ARGUMENTS],
        number: Option<i32>,
    ) -> Result<ThreadId, RemoteCallError> {
        let pid = tracees.pid();
        let call = SystemCall(libc::SYS_clone3);
        self.enter(pid)?;
        let options = Options {
            trace_clone: true,
            ..self.options()
        };
        let thread = self.thread;
        let set = |options| {
            ptrace::set_options(thread, options).map_err(kernel(pid, "set the options of", thread))
        };
        set(options)?;
        if let Some(number) = number {
            let address = self.put_bytes(&number.to_le_bytes())?;
            arguments[CLONE_SET_TID] = address;
            arguments[CLONE_SET_TID + 1] = 1;
        }
        let bytes: Vec<u8> = arguments
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let address = self.put_bytes(&bytes)?;
        tracees.keep_newborns(true);
        let result = self.call(tracees, call, [address, bytes.len() as u64, 0, 0, 0, 0]);
        let stands = match result {
            Ok(newborn) if newborn.cast_signed() > 0 => {
                let newborn = ThreadId::new(i32::try_from(newborn).unwrap_or(0));
                let deadline = Instant::now() + CALL_TIMEOUT;
                if tracees.wait_for_newborn(newborn, deadline) {
                    Ok(newborn)
                } else {
                    Err(RemoteCallError::TimedOut { call })
                }
            }
            Ok(error) => Err(RemoteCallError::Failed {
                call,
                errno: Errno::from_raw_os_error(i32::try_from(-error.cast_signed()).unwrap_or(0)),
            }),
            Err(error) => Err(error),
        };
        tracees.keep_newborns(false);
        while !self.overwritten.is_empty() {
            self.take_back_bytes()?;
        }
        set(self.options())?;
        stands
    }

    /// System call stops only; nobody wants to hear of threads that a call makes.
    fn options(&self) -> Options {
        Options {
            mark_syscall_stops: true,
            kill_with_tracer: self.is_new,
            ..Options::default()
        }
    }

    /// Before the first call: writes the frame.
    pub(crate) fn enter(&mut self, pid: i32) -> Result<(), RemoteCallError> {
        if self.entered {
            return Ok(());
        }
        ptrace::set_options(self.thread, self.options()).map_err(kernel(
            pid,
            "set the options of",
            self.thread,
        ))?;
        if self.is_new {
            self.block_signals(pid)?
        } else {
            self.whereabouts = Whereabouts::of(self.thread, &self.memory)
        }
        if let Some(frame) = &self.frame {
            self.under_frame = Some(self.read(frame.address, frame.bytes.len())?);
            self.write(frame.address, &frame.bytes)?;
        }
        self.entered = true;
        Ok(())
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
        let ending = self.begin_end(tracees.pid())?;
        self.end_now(tracees, ending, Instant::now() + INTERRUPT_TIMEOUT)
    }

    /// Waits until the end that has begun is complete. A thread that does not stand by then is itself already, and is
    /// let go by the end of the tracing thread.
    pub(crate) fn end_now(
        &mut self,
        tracees: &mut Tracees,
        mut ending: Ending,
        deadline: Instant,
    ) -> Result<(), RemoteCallError> {
        let pid = tracees.pid();
        while !ending.stands {
            match tracees.wait_in_session(self.thread, deadline) {
                SessionReport::Report(report) => self.step_to_end(&mut ending, report, pid)?,
                SessionReport::Gone => return Err(RemoteCallError::Gone { pid }),
                SessionReport::Timeout => {
                    tracees.abandon(self.thread);
                    return Err(match Freezer::of_thread(pid, self.thread) {
                        Some(freezer) => RemoteCallError::Frozen { pid, freezer },
                        None => RemoteCallError::Over,
                    });
                }
            }
        }
        self.complete_end(ending)
    }

    /// Gives the thread its registers and its memory back, and sends it through the kernel's signal code, where it will
    /// stop again.
    pub(crate) fn begin_end(&mut self, pid: i32) -> Result<Ending, RemoteCallError> {
        let mut ending = Ending {
            stands: self.lost || !self.entered,
            memory_error: None,
        };
        if self.lost {
            return Ok(ending);
        }
        if self.entered {
            self.put_back(pid)?;
        }
        // Only now: until here the thread might have needed the frame.
        if let (Some(frame), Some(bytes)) = (&self.frame, self.under_frame.take()) {
            ending.memory_error = self.write(frame.address, &bytes).err();
        }
        while !self.overwritten.is_empty() {
            if let Err(error) = self.take_back_bytes() {
                ending.memory_error = Some(error);
            }
        }
        if self.entered {
            self.on_to_stop(0, pid)?;
        }
        Ok(ending)
    }

    /// Goes on to the end by what the thread reported.
    pub(crate) fn step_to_end(
        &self,
        ending: &mut Ending,
        report: WaitReport,
        pid: i32,
    ) -> Result<(), RemoteCallError> {
        match report {
            WaitReport::Event(Event::Stop { .. }) => ending.stands = true,
            WaitReport::Exited { .. } | WaitReport::Killed { .. } => {
                return Err(RemoteCallError::Gone { pid });
            }
            WaitReport::Signal { signal } => self.on_to_stop(signal, pid)?,
            WaitReport::Syscall | WaitReport::Event(_) => self.on_to_stop(0, pid)?,
        }
        Ok(())
    }

    /// When the thread stands again.
    pub(crate) fn complete_end(&mut self, ending: Ending) -> Result<(), RemoteCallError> {
        let mut error = ending.memory_error;
        if let Some(whereabouts) = self.whereabouts.take().filter(|_| !self.lost)
            && let Err(source) = whereabouts.put_back(&self.memory)
        {
            error = Some(memory(whereabouts.area, 8)(source));
        }
        error.map_or(Ok(()), Err)
    }

    fn on_to_stop(&self, signal: i32, pid: i32) -> Result<(), RemoteCallError> {
        let thread = self.thread;
        ptrace::interrupt(thread).map_err(kernel(pid, "interrupt", thread))?;
        ptrace::resume(thread, signal).map_err(kernel(pid, "run", thread))
    }

    pub(crate) fn put_bytes(&mut self, bytes: &[u8]) -> Result<u64, RemoteCallError> {
        let length_bytes = bytes.len();
        let no_room = RemoteCallError::NoRoom {
            thread: self.thread,
            length_bytes,
        };
        let address = place_below(self.free_below, length_bytes);
        if length_bytes > BYTES_MAX || address < self.floor {
            return Err(no_room);
        }
        let before = if self.is_new {
            None
        } else {
            Some(self.read(address, length_bytes)?)
        };
        self.overwritten.push(Overwritten {
            address,
            before,
            below: self.free_below,
        });
        self.free_below = address;
        self.write(address, bytes)?;
        Ok(address)
    }

    /// Nothing if a call was given up on: it may be made later, and needs what it is told.
    pub(crate) fn take_back_bytes(&mut self) -> Result<(), RemoteCallError> {
        let Some(last) = self.overwritten.pop().filter(|_| !self.lost) else {
            return Ok(());
        };
        self.free_below = last.below;
        let before = last.before;
        before.map_or(Ok(()), |before| self.write(last.address, &before))
    }

    /// The next bytes go below this address, see [`place_below`].
    pub(crate) fn free_below(&self) -> u64 {
        self.free_below
    }

    pub(crate) fn read(&self, address: u64, length: usize) -> Result<Vec<u8>, RemoteCallError> {
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

/// Where so many bytes of ours go if they are to lie below `free_below`.
pub(crate) fn place_below(free_below: u64, length_bytes: usize) -> u64 {
    let length = u64::try_from(length_bytes).unwrap_or(u64::MAX);
    free_below.saturating_sub(length) & !15
}

/// The frame for the chosen thread; `None` if it cannot find back by itself.
fn frame_for(
    pid: i32,
    chosen: &Candidate,
    landing: &Landing,
    (signal_mask, status): (u64, Option<&Status>),
    memory: &File,
) -> Result<Option<Frame>, RemoteCallError> {
    let (Some(stack), Some(way_back)) = (chosen.stack, &landing.way_back) else {
        return Ok(None);
    };
    let thread = chosen.thread;
    let features = status.and_then(|status| status.value("x86_Thread_features"));
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
