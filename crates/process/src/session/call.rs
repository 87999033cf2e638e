//! One system call, made by the thread of a session: sent into it, and followed until it is out of it again.

use super::{CALL_TIMEOUT, INTERRUPT_TIMEOUT, SIGSTOP, Session, kernel};
use crate::freezer::Freezer;
use crate::remote_error::RemoteCallError;
use crate::syscall_names::SystemCall;
use crate::system_calls::checked;
use crate::tracees::{SessionReport, Tracees};
use pagetide_kernel::ptrace::{self, Event, Registers, ThreadId, WaitReport};
use std::time::{Duration, Instant};

/// How often a call is begun that a stop signal interrupts.
const BEGUN_MAX: u32 = 16;

/// A call that takes longer is looked after.
pub(crate) const LOOK_AFTER: Duration = Duration::from_millis(100);
/// How long a thread that was frozen in the middle of a call may take to be thawed.
const THAW_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a call is waited for, and what has become of the waiting.
#[derive(Debug)]
pub(crate) struct Patience {
    deadline: Instant,
    /// Where the wait for an interrupted call ends.
    interrupted: Option<Instant>,
    frozen: bool,
}

impl Patience {
    /// Waits until `deadline`, and a little longer for the call to be interrupted.
    pub(crate) fn until(deadline: Instant) -> Self {
        Self {
            deadline,
            interrupted: None,
            frozen: false,
        }
    }

    /// For a call that was interrupted already.
    pub(crate) fn interrupted_until(deadline: Instant) -> Self {
        Self {
            interrupted: Some(deadline),
            ..Self::until(deadline)
        }
    }

    /// Notes that a thread is frozen, if it is. What is not thawed soon is not waited for.
    pub(crate) fn look_after(&mut self, pid: i32, thread: ThreadId) {
        if !self.frozen
            && let Some(freezer) = Freezer::of_thread(pid, thread)
        {
            self.frozen = true;
            // One that can be stopped is made what it was at once.
            let more = if freezer.lets_threads_stop() {
                Duration::ZERO
            } else {
                THAW_TIMEOUT
            };
            self.deadline = self.deadline.min(Instant::now() + more);
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

/// A call that the thread is in.
#[derive(Debug)]
pub(crate) struct UnderWay {
    call: SystemCall,
    args: [u64; 6],
    /// How often it was begun.
    begun: u32,
    /// System call stops since: one on the way in, one on the way out.
    stops: u32,
}

impl UnderWay {
    pub(crate) fn new(call: SystemCall, args: [u64; 6]) -> Self {
        Self {
            call,
            args,
            begun: 0,
            stops: 0,
        }
    }

    pub(crate) fn call(&self) -> SystemCall {
        self.call
    }
}

/// What a report means for a call.
#[derive(Debug)]
pub(crate) enum Step {
    Goes,
    /// It has to be begun again.
    Again,
    Done(u64),
}

impl Session {
    pub(crate) fn call(
        &mut self,
        tracees: &mut Tracees,
        call: SystemCall,
        args: [u64; 6],
    ) -> Result<u64, RemoteCallError> {
        let pid = tracees.pid();
        self.enter(pid)?;
        let mut patience = Patience::until(Instant::now() + CALL_TIMEOUT);
        let mut under_way = UnderWay::new(call, args);
        let result = loop {
            let begun = self.begin(&mut under_way, pid);
            match begun.and_then(|()| self.follow(tracees, &mut under_way, &mut patience)) {
                Ok(None) => {}
                Ok(Some(result)) => break Ok(result),
                Err(error) => break Err(error),
            }
        };
        self.after_call(pid)?;
        result
    }

    /// Calls one after the other, up to the first that fails: its place among them, and why.
    pub(crate) fn call_all(
        &mut self,
        tracees: &mut Tracees,
        calls: &[(i64, [u64; 6])],
    ) -> Result<(), (usize, RemoteCallError)> {
        for (index, (number, args)) in calls.iter().enumerate() {
            let call = SystemCall(*number);
            pagetide_kernel::progress::step();
            let result = self.call(tracees, call, *args);
            let checked = result.map(checked).map_err(|error| (index, error))?;
            checked.map_err(|errno| (index, RemoteCallError::Failed { call, errno }))?;
        }
        Ok(())
    }

    /// Sets the thread going into a call.
    pub(crate) fn begin(
        &mut self,
        under_way: &mut UnderWay,
        pid: i32,
    ) -> Result<(), RemoteCallError> {
        let UnderWay { call, args, .. } = *under_way;
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
        under_way.stops = 0;
        under_way.begun += 1;
        // From here on the thread is not itself. With a frame, it would find back.
        ptrace::set_registers(self.thread, &registers).map_err(kernel(
            pid,
            "set the registers of",
            self.thread,
        ))?;
        if !self.is_new {
            self.block_signals(pid)?;
        }
        self.run_on(0, pid)
    }

    /// Where there is no frame, nothing would put the thread right without us: it is done after every single call. A process that
    /// is being built ends with us.
    pub(crate) fn after_call(&self, pid: i32) -> Result<(), RemoteCallError> {
        if self.frame.is_none() && !self.is_new && !self.lost {
            self.put_back(pid)
        } else {
            Ok(())
        }
    }

    /// Waits until the thread has come out of the call. `None`: it has to be begun again.
    pub(crate) fn follow(
        &mut self,
        tracees: &mut Tracees,
        under_way: &mut UnderWay,
        patience: &mut Patience,
    ) -> Result<Option<u64>, RemoteCallError> {
        let pid = tracees.pid();
        let (thread, call) = (self.thread, under_way.call);
        loop {
            let until = patience.interrupted.unwrap_or(patience.deadline);
            let until = until.min(Instant::now() + LOOK_AFTER);
            let report = match tracees.wait_in_session(thread, until) {
                SessionReport::Report(report) => report,
                SessionReport::Gone => return Err(RemoteCallError::Gone { pid }),
                SessionReport::Timeout => {
                    self.overdue(tracees, under_way, patience)?;
                    continue;
                }
            };
            let is_interrupted = patience.interrupted.is_some();
            let stands = matches!(report, WaitReport::Event(Event::Stop { .. }));
            if is_interrupted && stands && under_way.stops == 0 {
                // It was stopped before it came to the call, and will not make it.
                return Err(given_up(pid, thread, call));
            }
            match self.step(under_way, report, pid)? {
                Step::Goes => {}
                Step::Again if is_interrupted => return Err(given_up(pid, thread, call)),
                Step::Done(result) if is_interrupted && result.cast_signed() < 0 => {
                    return Err(given_up(pid, thread, call));
                }
                Step::Again => return Ok(None),
                Step::Done(result) => return Ok(Some(result)),
            }
        }
    }

    /// The call takes long: it is interrupted when its time is over, and given up on when that does not help.
    fn overdue(
        &mut self,
        tracees: &mut Tracees,
        under_way: &UnderWay,
        patience: &mut Patience,
    ) -> Result<(), RemoteCallError> {
        let (pid, thread) = (tracees.pid(), self.thread);
        match patience.interrupted {
            None => {
                patience.look_after(pid, thread);
                if patience.is_over() {
                    ptrace::interrupt(thread).map_err(kernel(pid, "interrupt", thread))?;
                    patience.interrupted = Some(Instant::now() + INTERRUPT_TIMEOUT);
                }
                Ok(())
            }
            // It sleeps uninterruptibly, or is frozen. The end of the tracing thread lets it go, and the frame
            // leads it back. Without one it would be lost, so there it is waited for as long as it takes.
            Some(until) if Instant::now() >= until && self.finds_back() => {
                self.lost = true;
                tracees.abandon(thread);
                Err(given_up(pid, thread, under_way.call))
            }
            Some(_) => Ok(()),
        }
    }

    /// True if the thread becomes itself again without us, or need not.
    fn finds_back(&self) -> bool {
        self.frame.is_some() || self.is_new
    }

    /// Goes on with a call by what the thread reported.
    pub(crate) fn step(
        &mut self,
        under_way: &mut UnderWay,
        report: WaitReport,
        pid: i32,
    ) -> Result<Step, RemoteCallError> {
        let (thread, call) = (self.thread, under_way.call);
        let mut signal = 0;
        match report {
            WaitReport::Syscall => under_way.stops += 1,
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
        if under_way.stops < 2 {
            return self.run_on(signal, pid).map(|()| Step::Goes);
        }
        let registers = ptrace::registers(thread)
            .map_err(kernel(pid, "read the registers of", thread))?
            .ok_or(RemoteCallError::NoThread { pid })?;
        // A stop signal interrupted the call before it did anything.
        let unheard = (-516..=-512).contains(&registers.rax.cast_signed());
        Ok(if unheard && under_way.begun < BEGUN_MAX {
            Step::Again
        } else {
            Step::Done(registers.rax)
        })
    }

    fn run_on(&self, signal: i32, pid: i32) -> Result<(), RemoteCallError> {
        let thread = self.thread;
        ptrace::resume_to_syscall(thread, signal).map_err(kernel(pid, "run", thread))
    }

    /// All but SIGKILL and SIGSTOP. With a frame, this comes after the registers are set: should we
    /// die in between, it is the frame that knows the thread's own mask.
    pub(super) fn block_signals(&self, pid: i32) -> Result<(), RemoteCallError> {
        ptrace::set_signal_mask(self.thread, u64::MAX).map_err(kernel(
            pid,
            "block the signals of",
            self.thread,
        ))
    }
}

/// Why a call was given up on: its process is frozen, or it takes too long.
pub(crate) fn given_up(pid: i32, thread: ThreadId, call: SystemCall) -> RemoteCallError {
    match Freezer::of_thread(pid, thread) {
        Some(freezer) => RemoteCallError::Frozen { pid, freezer },
        None => RemoteCallError::TimedOut { call },
    }
}
