//! A process that runs, but must not outlive this program: it and every process that it forks are killed by the kernel
//! when the guard's thread ends without having let them go, which is also when this program is killed.
//!
//! This is PTRACE_O_EXITKILL. PR_SET_PDEATHSIG would not do: a forked child does not have it, a change of credentials takes
//! it away, and it kills a child whose parent merely ends. The price: while it lasts each signal, fork and thread of the
//! process costs a few stops, and nobody else can trace it. A process that begins another program is let go at once.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::sleep;
use std::time::Duration;

use pagetide_kernel::ptrace::{self, Event, Options, ThreadId, WaitReport};

use crate::stop::StoppedProcess;
use crate::tracees::Tracees;

/// How long the guard sleeps when there is nothing to do. A signal or a fork waits for it.
const PAUSE: Duration = Duration::from_micros(100);

const OPTIONS: Options = Options {
    trace_clone: true,
    trace_fork: true,
    trace_exec: true,
    mark_syscall_stops: true,
    kill_with_tracer: true,
};

const GUARDING: u8 = 0;
const LETTING_GO: u8 = 1;
const KILLING: u8 = 2;
const OVER: u8 = 3;

/// See the head of this file. Dropping it kills what it still guards.
///
/// While it exists, no thread of this program may wait for the process, not even by number: it would take the guard's
/// reports.
#[derive(Debug)]
pub struct Guard {
    /// Its tracing thread is the guard's.
    _stopped: StoppedProcess,
    wish: Arc<AtomicU8>,
}

impl StoppedProcess {
    /// Lets the process run on under guard. `is_own_child` says that it is a child of this program, so that its end is
    /// to be left to whoever waits for it later.
    pub fn resume_guarded(self, is_own_child: bool) -> Guard {
        let wish = Arc::new(AtomicU8::new(GUARDING));
        let seen = Arc::clone(&wish);
        let kept = ThreadId::new(if is_own_child { self.identity().pid } else { 0 });
        self.tracer().begin(move |tracees| {
            Watch::over(tracees, kept).run(&seen);
            seen.store(OVER, Ordering::Release);
        });
        Guard {
            _stopped: self,
            wish,
        }
    }
}

impl Guard {
    /// Lets all go, and returns when it is done or they have ended. A thread that waits for a child it made by vfork(2) is let
    /// go when that one goes on.
    pub fn let_go(self) {
        self.wish(LETTING_GO);
        while !self.is_over() {
            sleep(PAUSE);
        }
    }

    /// True if nothing is left to guard: all have ended or run other programs.
    pub fn is_over(&self) -> bool {
        self.wish.load(Ordering::Acquire) == OVER
    }

    fn wish(&self, wish: u8) {
        let change = (Ordering::AcqRel, Ordering::Acquire);
        // It may be over.
        self.wish
            .compare_exchange(GUARDING, wish, change.0, change.1)
            .ok();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.wish(KILLING);
    }
}

/// What the guard's thread knows.
struct Watch {
    kept: ThreadId,
    kept_has_ended: bool,
    known: HashSet<ThreadId>,
    letting_go: bool,
}

impl Watch {
    /// Takes the threads over, and lets them run.
    fn over(tracees: &mut Tracees, kept: ThreadId) -> Watch {
        let known: HashSet<ThreadId> = tracees.give_away().into_iter().collect();
        for &thread in &known {
            // Whoever was killed meanwhile reports its end.
            ptrace::set_options(thread, OPTIONS).ok();
        }
        for &thread in &known {
            ptrace::resume(thread, 0).ok();
        }
        Watch {
            kept,
            kept_has_ended: false,
            known,
            letting_go: false,
        }
    }

    fn run(&mut self, wish: &AtomicU8) {
        loop {
            match wish.load(Ordering::Acquire) {
                KILLING => return self.kill(),
                LETTING_GO if !self.letting_go => {
                    self.letting_go = true;
                    for &thread in &self.known {
                        // One that has ended reports that.
                        ptrace::interrupt(thread).ok();
                    }
                }
                _ => {}
            }
            let mut any = false;
            while let Some((thread, report)) = self.next() {
                any = true;
                self.handle(thread, report);
            }
            if self.known.is_empty() {
                return;
            }
            if !any {
                sleep(PAUSE);
            }
        }
    }

    /// The next report, if there is one.
    fn next(&mut self) -> Option<(ThreadId, WaitReport)> {
        if !self.kept_has_ended {
            return match ptrace::wait_any(self.kept) {
                Ok(report) => report,
                Err(_) => {
                    // Nothing is traced any more.
                    self.known.clear();
                    None
                }
            };
        }
        // The end of the kept one, which is not reaped, hides what others report.
        let mut gone = Vec::new();
        let mut found = None;
        for &thread in &self.known {
            match ptrace::wait_thread(thread, self.kept) {
                Ok(Some(report)) => {
                    found = Some((thread, report));
                    break;
                }
                Ok(None) => {}
                Err(_) => gone.push(thread),
            }
        }
        self.known.retain(|thread| !gone.contains(thread));
        found
    }

    fn handle(&mut self, thread: ThreadId, report: WaitReport) {
        match report {
            WaitReport::Exited { .. } | WaitReport::Killed { .. } => {
                self.known.remove(&thread);
                self.kept_has_ended |= thread == self.kept;
                return;
            }
            // It has an address space of its own, and its other threads have ended.
            WaitReport::Event(Event::Exec) => {
                if let Ok(former) = ptrace::event_message(thread) {
                    let former = i32::try_from(former).unwrap_or(0);
                    self.known.remove(&ThreadId::new(former));
                }
                self.let_go(thread);
                return;
            }
            WaitReport::Event(Event::Clone | Event::Fork) => {
                if let Ok(newborn) = ptrace::event_message(thread)
                    && let Ok(newborn) = i32::try_from(newborn)
                {
                    self.known.insert(ThreadId::new(newborn));
                }
            }
            _ => {}
        }
        self.known.insert(thread);
        match report {
            WaitReport::Signal { signal } => {
                if self.letting_go {
                    // It is delivered on the way to the next stop.
                    ptrace::interrupt(thread).ok();
                }
                ptrace::resume(thread, signal).ok();
            }
            _ if self.letting_go => self.let_go(thread),
            WaitReport::Event(Event::Stop {
                group_stop: Some(_),
            }) => {
                ptrace::listen(thread).ok();
            }
            _ => {
                ptrace::resume(thread, 0).ok();
            }
        }
    }

    /// Kills all at once. One that was born just now is killed by the end of this thread.
    fn kill(&self) {
        for thread in &self.known {
            if let Some(thread) = rustix::process::Pid::from_raw(thread.get()) {
                // It may have ended.
                rustix::process::kill_process(thread, rustix::process::Signal::KILL).ok();
            }
        }
    }

    fn let_go(&mut self, thread: ThreadId) {
        // One that was killed meanwhile reports its end, and is reaped then.
        if ptrace::detach(thread).is_ok() {
            self.known.remove(&thread);
        }
    }
}
