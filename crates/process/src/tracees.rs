//! The threads of the target and what each of them is doing, seen from the tracing thread: stopping
//! all of them, and letting all of them go. It writes no register and runs no call.

use pagetide_kernel::ptrace::{self, Event, Options, ThreadId, WaitReport};
use std::any::Any;
use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

mod ahead;
mod list;
mod pause;
mod sessions;

use crate::proc_files::{self, Stat, Status};
use crate::seizing::{Shared, is_gone, lock};
use crate::waits::Waits;
use list::{List, Now};
use pause::Pause;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Exited(i32),
    Killed(i32),
    Unknown,
}

/// Why not all threads could be stopped. Whoever gets this ends the tracing thread.
#[derive(Debug)]
pub(crate) enum StopFailure {
    Ended(Ending),
    FirstThreadEnded,
    Exec,
    AlreadyTraced {
        thread: ThreadId,
        tracer: i32,
    },
    NotPermitted {
        thread: ThreadId,
    },
    Timeout {
        thread: Option<ThreadId>,
    },
    Kernel {
        what: &'static str,
        thread: ThreadId,
        source: io::Error,
    },
    Proc(io::Error),
}

/// A remote call session, as far as letting go has to know it.
pub(crate) trait OpenSession: Any + Debug + Send {
    /// Makes its thread what it was, as well as that is still possible.
    fn give_back(self: Box<Self>, tracees: &mut Tracees);
}

/// The threads of the target, seen from the tracing thread.
#[derive(Debug)]
pub(crate) struct Tracees {
    pid: i32,
    own_number: i32,
    shared: Arc<Shared>,
    list: List,
    group_stop: Option<i32>,
    ending: Option<Ending>,
    /// How often seizing was denied for no reason that could be seen.
    denials: u32,
    /// Whether threads that a remote call makes stay, and stand with the others.
    keeps_newborns: bool,
    /// What its threads waited for before they were stopped.
    pub(crate) waits: Waits,
    /// Set while a remote call session holds a thread whose registers are not its own.
    session: Option<Box<dyn OpenSession>>,
}

/// Denials that may be due to a change under way.
const DENIALS_MAX: u32 = 20;

const SEIZE_OPTIONS: Options = Options {
    trace_clone: true,
    trace_fork: false,
    trace_exec: true,
    mark_syscall_stops: true,
    kill_with_tracer: false,
};

impl Tracees {
    pub(crate) fn new(pid: i32, own_number: i32, shared: Arc<Shared>) -> Self {
        Self {
            pid,
            own_number,
            shared,
            list: List::new(ThreadId::new(pid)),
            group_stop: None,
            ending: None,
            denials: 0,
            keeps_newborns: false,
            waits: Waits::default(),
            session: None,
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// The stop signal of the group-stop the process is in, if it is in one.
    pub(crate) fn group_stop(&self) -> Option<i32> {
        self.group_stop
    }

    /// True if this thread is stopped.
    pub(crate) fn has_stopped(&self, thread: ThreadId) -> bool {
        self.list.of(thread) == Some(Now::Stopped)
    }

    /// The threads that are stopped, the first one first.
    pub(crate) fn stopped(&self) -> Vec<ThreadId> {
        self.list.doing(Now::Stopped).collect()
    }

    /// Stops every thread, those born meanwhile included.
    ///
    /// A thread can be made only by one that runs. So once all known ones are stopped, a list of
    /// `/proc/PID/task` that shows no other and is as long as the kernel's own count is complete.
    pub(crate) fn stop_all(&mut self, deadline: Instant) -> Result<(), StopFailure> {
        loop {
            let seized = self.seize_unknown()?;
            self.wait_until_all_stopped(deadline)?;
            if !seized && self.is_complete() {
                break;
            }
            if Instant::now() >= deadline {
                return Err(StopFailure::Timeout { thread: None });
            }
        }
        match self.list.of(ThreadId::new(self.pid)) {
            Some(Now::Stopped) => Ok(()),
            _ => Err(StopFailure::FirstThreadEnded),
        }
    }

    fn is_complete(&self) -> bool {
        Status::of_process(self.pid)
            .is_ok_and(|status| status.number("Threads") == self.list.len() as u64)
    }

    /// Seizes and interrupts what is listed and not known. True if there was any.
    fn seize_unknown(&mut self) -> Result<bool, StopFailure> {
        let listed = proc_files::threads(self.pid).map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                StopFailure::Ended(self.ending.unwrap_or(Ending::Unknown))
            } else {
                StopFailure::Proc(error)
            }
        })?;
        let mut any = false;
        for thread in listed {
            if !self.list.knows(thread) && self.seize(thread)? {
                any = true;
            }
        }
        Ok(any)
    }

    fn seize(&mut self, thread: ThreadId) -> Result<bool, StopFailure> {
        self.shared.seizing.fetch_add(1, Ordering::Release);
        let seized = ptrace::seize(thread, SEIZE_OPTIONS);
        self.shared.seizing.fetch_add(1, Ordering::Release);
        for reaped in lock(&self.shared.reaped).drain(..) {
            self.list.remove(reaped);
        }
        match seized {
            Ok(()) => {
                self.add(thread, Now::Running);
                self.waits.before_interruption(thread);
                interrupt(thread)?;
                self.waits.after_interruption(thread);
                Ok(true)
            }
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.seize_was_denied(thread)
            }
            Err(source) => Err(StopFailure::Kernel {
                what: "seize",
                thread,
                source,
            }),
        }
    }

    /// EPERM has four meanings, which `/proc` tells apart.
    fn seize_was_denied(&mut self, thread: ThreadId) -> Result<bool, StopFailure> {
        let status = Status::of_thread(self.pid, thread);
        let stat = Stat::of_thread(self.pid, thread);
        let (Ok(status), Ok(stat)) = (status, stat) else {
            return Ok(false);
        };
        match status.tracer() {
            // The kernel attached it to us at its birth; its report is still to come.
            Some(tracer) if tracer == self.own_number => {
                self.add(thread, Now::Running);
                Ok(true)
            }
            Some(tracer) => Err(StopFailure::AlreadyTraced { thread, tracer }),
            None if stat.has_ended() && thread.get() == self.pid => {
                self.add(thread, Now::Ended);
                Ok(false)
            }
            None if stat.has_ended() => Ok(false),
            // A first thread that has ended gives its number to one that runs another program:
            // denied before, and alive by the time we look.
            None if self.denials < DENIALS_MAX => {
                self.denials += 1;
                sleep(Duration::from_micros(100));
                Ok(true)
            }
            None => Err(StopFailure::NotPermitted { thread }),
        }
    }

    fn wait_until_all_stopped(&mut self, deadline: Instant) -> Result<(), StopFailure> {
        let mut pause = Pause::new();
        let kept = ThreadId::new(self.pid);
        while self.list.runs() {
            // One by one first: to ask for any costs the kernel a look at each that is traced.
            let running: Vec<ThreadId> = self.list.doing(Now::Running).collect();
            let mut reported = false;
            for thread in running {
                // One that is traced no more is for the question to all.
                if let Ok(Some(report)) = ptrace::wait_thread(thread, kept) {
                    self.handle_report(thread, report)?;
                    reported = true;
                }
            }
            if reported {
                pause = Pause::new();
                continue;
            }
            match ptrace::wait_any(kept) {
                Ok(Some((thread, report))) => {
                    self.handle_report(thread, report)?;
                    pause = Pause::new();
                    continue;
                }
                Ok(None) => {}
                // Nothing is traced any more.
                Err(_) => return Err(self.nothing_left()),
            }
            if Instant::now() >= deadline {
                let thread = self.first_running();
                return Err(StopFailure::Timeout { thread });
            }
            if pause.is_long() {
                self.find_ended_first_thread();
                self.find_stolen_reports()?;
            }
            pause.wait();
        }
        if self.list.len() == 0 {
            return Err(self.nothing_left());
        }
        Ok(())
    }

    fn handle_report(&mut self, thread: ThreadId, report: WaitReport) -> Result<(), StopFailure> {
        if !self.list.knows(thread) && !self.adopt_newborn(thread, report) {
            return Ok(());
        }
        match report {
            WaitReport::Event(Event::Stop { group_stop }) => {
                self.set(thread, Now::Stopped);
                self.group_stop = group_stop.or(self.group_stop);
                Ok(())
            }
            WaitReport::Event(Event::Exec) => {
                self.set(thread, Now::Stopped);
                Err(StopFailure::Exec)
            }
            WaitReport::Event(Event::Clone) => {
                if let Ok(newborn) = ptrace::event_message(thread)
                    && let Ok(newborn) = i32::try_from(newborn)
                {
                    let newborn = ThreadId::new(newborn);
                    if !self.list.knows(newborn) {
                        self.add(newborn, Now::Running);
                    }
                }
                go_on_to_stop(thread, 0)
            }
            // On its way into a handler, or to its default action: let it go there, then stop.
            WaitReport::Signal { signal } => go_on_to_stop(thread, signal),
            WaitReport::Syscall | WaitReport::Event(Event::Fork | Event::Other(_)) => {
                go_on_to_stop(thread, 0)
            }
            WaitReport::Exited { .. } | WaitReport::Killed { .. } => {
                self.remove(thread, report);
                if thread.get() == self.pid {
                    return Err(StopFailure::Ended(self.ending.unwrap_or(Ending::Unknown)));
                }
                Ok(())
            }
        }
    }

    /// A report of a thread we did not seize: the kernel attached it at its birth. False if it is
    /// not of this process (a `clone` without CLONE_THREAD) and was let go.
    fn adopt_newborn(&mut self, thread: ThreadId, report: WaitReport) -> bool {
        if matches!(
            report,
            WaitReport::Exited { .. } | WaitReport::Killed { .. }
        ) {
            return false;
        }
        if !self.is_of_process(thread) {
            // Gone meanwhile is as good.
            ptrace::detach(thread).ok();
            return false;
        }
        self.add(thread, Now::Running);
        true
    }

    fn is_of_process(&self, thread: ThreadId) -> bool {
        Path::new(&format!("/proc/{}/task/{thread}", self.pid)).exists()
    }

    /// All that was traced has ended. If the process lives, a thread that was not traced yet runs
    /// another program, for which all others die unreported.
    fn nothing_left(&self) -> StopFailure {
        match (self.ending, Stat::of_process(self.pid)) {
            (None, Ok(stat)) if !stat.has_ended() => StopFailure::Exec,
            (ending, _) => StopFailure::Ended(ending.unwrap_or(Ending::Unknown)),
        }
    }

    /// The first thread's end is not reported before that of the others, so it has to be seen.
    fn find_ended_first_thread(&mut self) {
        let first = ThreadId::new(self.pid);
        let ended = Stat::of_thread(self.pid, first).is_ok_and(|stat| stat.has_ended());
        if ended && self.list.len() > 1 {
            self.set(first, Now::Ended);
        }
    }

    /// A thread of this program that waits for a child of its own takes the child's reports even if
    /// it is traced by another thread. What was reported can still be seen.
    fn find_stolen_reports(&mut self) -> Result<(), StopFailure> {
        let running: Vec<ThreadId> = self.list.doing(Now::Running).collect();
        for thread in running {
            if let Some(report) = self.stolen_report(thread) {
                self.handle_report(thread, report)?;
            }
        }
        Ok(())
    }

    /// What the thread stopped for, unless that is still to be reported in the ordinary way. A
    /// thread that is seen in a stop has its report ready, so the order of the questions matters.
    fn stolen_report(&self, thread: ThreadId) -> Option<WaitReport> {
        let report = ptrace::current_stop(thread).ok()?;
        match ptrace::wait_thread(thread, ThreadId::new(self.pid)) {
            Ok(Some(ordinary)) => Some(ordinary),
            Ok(None) => Some(report),
            Err(_) => None,
        }
    }

    fn first_running(&self) -> Option<ThreadId> {
        self.list.doing(Now::Running).next()
    }

    /// Takes note of threads that were killed while all were stopped.
    pub(crate) fn reap(&mut self) {
        while let Ok(Some((thread, report))) = ptrace::wait_any(ThreadId::new(self.pid)) {
            if matches!(
                report,
                WaitReport::Exited { .. } | WaitReport::Killed { .. }
            ) {
                self.remove(thread, report);
            }
            if thread.get() == self.pid {
                // Its end is not reaped here, so it would be reported again and again.
                break;
            }
        }
    }

    pub(crate) fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// Keeps a session that holds a thread.
    pub(crate) fn hold_session(&mut self, session: impl OpenSession) {
        self.session = Some(Box::new(session));
    }

    /// The session that holds a thread.
    pub(crate) fn take_session<S: OpenSession>(&mut self) -> Option<S> {
        let session: Box<dyn Any> = self.session.take()?;
        // There is one kind of session.
        session.downcast().ok().map(|session| *session)
    }

    /// The threads that are stopped, which are somebody else's business from now on.
    pub(crate) fn give_away(&mut self) -> Vec<ThreadId> {
        let stopped = self.stopped();
        self.list.clear();
        stopped
    }

    /// Detaches all that are stopped. True if none is left to the end of this thread, and none had ended before the first
    /// one ran.
    pub(crate) fn let_all_go(&mut self) -> bool {
        if let Some(session) = self.session.take() {
            session.give_back(self);
        }
        // A newborn that has not reported, or a thread that has just stopped, can be let go in
        // the proper way, too.
        while let Ok(Some((thread, report))) = ptrace::wait_any(ThreadId::new(self.pid)) {
            match report {
                WaitReport::Exited { .. } | WaitReport::Killed { .. } => {
                    self.remove(thread, report);
                    if thread.get() == self.pid {
                        break;
                    }
                }
                WaitReport::Signal { signal } => {
                    if go_on_to_stop(thread, signal).is_err() {
                        self.reap();
                    }
                }
                WaitReport::Event(_) | WaitReport::Syscall => {
                    if !self.list.knows(thread) {
                        self.add(thread, Now::Stopped);
                    }
                    self.set(thread, Now::Stopped);
                }
            }
        }
        let stopped = self.stopped();
        let by_sockets = stopped.iter();
        let by_sockets = by_sockets.filter_map(|thread| self.waits.goes_ahead(*thread));
        let by_sockets: Vec<_> = by_sockets.collect();
        self.lead_all(by_sockets);
        for thread in stopped {
            self.waits.before_it_goes(thread);
        }
        let mut all = true;
        let mut runs = false;
        let list: Vec<(ThreadId, Now)> = self.list.iter().collect();
        self.list.clear();
        for (thread, now) in list {
            match now {
                Now::Stopped => {
                    if ptrace::detach(thread).is_ok() {
                        runs = true;
                    } else {
                        // Killed while stopped. Reap it, or its process cannot end.
                        ptrace::wait_thread(thread, ThreadId::new(self.pid)).ok();
                        // One that runs already may have ended all of them.
                        all &= runs;
                    }
                }
                Now::Running => all = false,
                Now::Ended => {}
            }
        }
        all
    }

    fn add(&mut self, thread: ThreadId, now: Now) {
        self.list.put(thread, now);
        lock(&self.shared.seized).push(thread);
    }

    /// Nothing if it is not known.
    fn set(&mut self, thread: ThreadId, now: Now) {
        if self.list.knows(thread) {
            self.list.put(thread, now);
        }
    }

    fn remove(&mut self, thread: ThreadId, report: WaitReport) {
        self.list.remove(thread);
        let ending = match report {
            WaitReport::Exited { code } => Ending::Exited(code),
            WaitReport::Killed { signal } => Ending::Killed(signal),
            _ => return,
        };
        let of_process = thread.get() == self.pid || matches!(ending, Ending::Killed(_));
        if of_process {
            self.ending = Some(ending);
        }
    }
}

impl Drop for Tracees {
    fn drop(&mut self) {
        // Reached with threads left only when a job panicked.
        self.let_all_go();
    }
}

/// Lets a thread finish what it reported and stop then. Any stop uses up an earlier request to
/// stop, hence the new one first.
fn go_on_to_stop(thread: ThreadId, signal: i32) -> Result<(), StopFailure> {
    interrupt(thread)?;
    match ptrace::resume(thread, signal) {
        Ok(()) => Ok(()),
        Err(error) if is_gone(&error) => Ok(()),
        Err(source) => Err(StopFailure::Kernel {
            what: "resume",
            thread,
            source,
        }),
    }
}

fn interrupt(thread: ThreadId) -> Result<(), StopFailure> {
    match ptrace::interrupt(thread) {
        Ok(()) => Ok(()),
        // It ended; its report is still to come.
        Err(error) if is_gone(&error) => Ok(()),
        Err(source) => Err(StopFailure::Kernel {
            what: "interrupt",
            thread,
            source,
        }),
    }
}

/// What a stopped target reports while one of its threads runs a remote call.
#[derive(Debug)]
pub(crate) enum SessionReport {
    Report(WaitReport),
    Gone,
    Timeout,
}
