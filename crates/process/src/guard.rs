//! A process that runs, but must not outlive this program: it and every process that it forks are killed by the kernel
//! when the guard's thread ends without having let them go, which is also when this program is killed.
//!
//! This is PTRACE_O_EXITKILL. PR_SET_PDEATHSIG would not do: a forked child does not have it, a change of credentials takes
//! it away, and it kills a child whose parent merely ends. When this program is killed, its descriptors stay open until that
//! has happened (see `pagetide_kernel::keeper`).
//!
//! Each system call is shown to a [`Gate`], which may have it wait. The price: while it lasts each system call, signal, fork
//! and thread of the process costs a few stops, and nobody else can trace it. A process that begins another program is let go
//! at once.

use crate::proc_files;
use crate::restart;
use crate::stop::StoppedProcess;
use crate::tracees::Tracees;
use pagetide_kernel::keeper::{Keeper, KeeperError};
use pagetide_kernel::pidfd::PidFd;
use pagetide_kernel::ptrace::{
    self, Event, Options, Registers, SyscallEntry, ThreadId, WaitReport,
};
use rustix::process::Signal;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long the guard sleeps where it cannot wait for whatever comes first.
const PAUSE: Duration = Duration::from_micros(100);
/// How long those that were killed may take to be gone.
const DYING: Duration = Duration::from_secs(2);

/// How long threads that stand wait for the others of their process before they are let go.
const LETTING_GO_PATIENCE: Duration = Duration::from_millis(200);

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

/// Decides when system calls of processes under guard may begin.
pub trait Gate: Send + Sync {
    /// False if `call`, which `thread` is about to make, has to wait; then it is asked again soon.
    fn lets_pass(&self, thread: ThreadId, call: &SyscallEntry) -> bool;
}

/// See the head of this file. Dropping it kills what it still guards.
///
/// While it exists, no thread of this program may wait for the process, not even by number: it would take the guard's
/// reports.
#[derive(Debug)]
pub struct Guard {
    /// Its tracing thread is the guard's.
    _stopped: StoppedProcess,
    wish: Arc<AtomicU8>,
    /// The guard's thread waits for the end of this process, too.
    alarm: Arc<PidFd>,
}

impl StoppedProcess {
    /// Lets the process run on under guard. `is_own_child` says that it is a child of this program, so that its end is
    /// to be left to whoever waits for it later.
    ///
    /// # Errors
    /// If no process can be made that keeps the descriptors of this program open. The process is killed then.
    pub fn resume_guarded(
        self,
        is_own_child: bool,
        gate: Arc<dyn Gate>,
    ) -> Result<Guard, KeeperError> {
        let wish = Arc::new(AtomicU8::new(GUARDING));
        let seen = Arc::clone(&wish);
        let kept = ThreadId::new(if is_own_child { self.identity().pid } else { 0 });
        let is_group_stopped = self.group_stop().is_some();
        let keeper = self.tracer().run(|_| Keeper::new()).inspect_err(|_| {
            // It may have ended.
            self.signal(Signal::KILL).ok();
        })?;
        let alarm = keeper.handle();
        self.tracer().begin(move |tracees| {
            GuardState::over(tracees, kept, is_group_stopped, keeper, gate).run(&seen);
            seen.store(OVER, Ordering::Release);
        });
        Ok(Guard {
            _stopped: self,
            wish,
            alarm,
        })
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
        self.alarm.send_signal(Signal::KILL).ok();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.wish(KILLING);
    }
}

/// What the guard's thread knows.
struct GuardState {
    kept: ThreadId,
    kept_has_ended: bool,
    known: HashSet<ThreadId>,
    /// Those that stand before a system call that has to wait.
    held: HashMap<ThreadId, SyscallEntry>,
    letting_go: bool,
    /// Those that stand and are let go with all of their process. A thread that runs while another is still traced could be
    /// woken by a signal that the program ignores.
    standing: HashSet<ThreadId>,
    /// When they are let go whatever the others do.
    patience_ends: Option<Instant>,
    keeper: Option<Keeper>,
    gate: Arc<dyn Gate>,
}

impl GuardState {
    /// Takes the threads over, and lets them run, or leaves them in their group-stop.
    fn over(
        tracees: &mut Tracees,
        kept: ThreadId,
        is_group_stopped: bool,
        keeper: Keeper,
        gate: Arc<dyn Gate>,
    ) -> Self {
        let known: HashSet<ThreadId> = tracees.give_away().into_iter().collect();
        for &thread in &known {
            // Whoever was killed meanwhile reports its end.
            ptrace::set_options(thread, OPTIONS).ok();
        }
        for &thread in &known {
            let gone_on = if is_group_stopped {
                ptrace::listen(thread)
            } else {
                ptrace::resume_to_syscall(thread, 0)
            };
            gone_on.ok();
        }
        Self {
            kept,
            kept_has_ended: false,
            known,
            held: HashMap::new(),
            letting_go: false,
            standing: HashSet::new(),
            patience_ends: None,
            keeper: Some(keeper),
            gate,
        }
    }

    fn run(&mut self, wish: &AtomicU8) {
        loop {
            match wish.load(Ordering::Acquire) {
                KILLING => return self.kill(),
                LETTING_GO if !self.letting_go => {
                    self.letting_go = true;
                    self.patience_ends = Some(Instant::now() + LETTING_GO_PATIENCE);
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
            self.let_go_processes();
            self.ask_again();
            if self.known.is_empty() {
                return;
            }
            if !any {
                self.wait();
            }
        }
    }

    /// Waits for a report or a wish, or at least a little.
    fn wait(&mut self) {
        let is_told_all = self.keeper.is_some() && !self.kept_has_ended;
        if !is_told_all || !self.held.is_empty() {
            sleep(PAUSE);
            return;
        }
        if let Ok(Some((thread, report))) = ptrace::wait_any_long(self.kept) {
            self.handle(thread, report);
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
        for thread in gone {
            self.known.remove(&thread);
        }
        found
    }

    /// Lets go on whoever does not have to wait any more.
    fn ask_again(&mut self) {
        let gate = &self.gate;
        self.held.retain(|&thread, call| {
            let has_to_wait = !gate.lets_pass(thread, call);
            if !has_to_wait {
                ptrace::resume_to_syscall(thread, 0).ok();
            }
            has_to_wait
        });
    }

    fn handle(&mut self, thread: ThreadId, report: WaitReport) {
        match report {
            WaitReport::Exited { .. } | WaitReport::Killed { .. } => {
                self.known.remove(&thread);
                self.held.remove(&thread);
                self.standing.remove(&thread);
                self.kept_has_ended |= thread == self.kept;
                let ended = self.keeper.take_if(|keeper| keeper.pid() == thread.get());
                if let Some(keeper) = ended {
                    keeper.was_reaped();
                }
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
        if matches!(
            report,
            WaitReport::Signal { .. } | WaitReport::Event(Event::Stop { .. })
        ) {
            hide_interruption(thread);
        }
        match report {
            // It is delivered, and the call made or ended, on the way to the next stop: only from there a thread goes on
            // without noticing.
            WaitReport::Signal { .. } | WaitReport::Syscall if self.letting_go => {
                ptrace::interrupt(thread).ok();
                ptrace::resume(thread, signal_of(report)).ok();
            }
            _ if self.letting_go => {
                self.standing.insert(thread);
            }
            WaitReport::Syscall => match ptrace::syscall_entry(thread) {
                Ok(Some(call)) if !self.gate.lets_pass(thread, &call) => {
                    self.held.insert(thread, call);
                }
                Ok(None) if without_interruption(thread).is_some() => {
                    // From the stop that comes next it is hidden.
                    ptrace::interrupt(thread).ok();
                    go_on(thread, report);
                }
                _ => go_on(thread, report),
            },
            _ => go_on(thread, report),
        }
    }

    /// Kills all at once, and those that were being born; and waits until they are gone.
    fn kill(&mut self) {
        let since = Instant::now();
        while !self.known.is_empty() && since.elapsed() < DYING {
            for thread in &self.known {
                if let Some(thread) = rustix::process::Pid::from_raw(thread.get()) {
                    // It may have ended. Its number is nobody else's before its end is reported to us, its tracer.
                    rustix::process::kill_process(thread, Signal::KILL).ok();
                }
            }
            while let Some((thread, report)) = self.next() {
                self.handle(thread, report);
            }
            sleep(PAUSE);
        }
    }

    /// Lets go each process all of whose threads stand.
    fn let_go_processes(&mut self) {
        let is_late = self.patience_ends.is_some_and(|end| Instant::now() >= end);
        let mut looked_at = HashSet::new();
        for thread in self.standing.iter().copied().collect::<Vec<_>>() {
            if looked_at.contains(&thread) {
                continue;
            }
            let mut all = proc_files::threads(thread.get()).unwrap_or_default();
            all.push(thread);
            let runs = |one| self.known.contains(one) && !self.standing.contains(one);
            let has_to_wait = all.iter().any(runs) && !is_late;
            for one in all {
                if !has_to_wait && self.standing.remove(&one) {
                    self.let_go(one);
                }
                looked_at.insert(one);
            }
        }
    }

    fn let_go(&mut self, thread: ThreadId) {
        self.held.remove(&thread);
        // One that was killed meanwhile reports its end, and is reaped then.
        if ptrace::detach(thread).is_ok() {
            self.known.remove(&thread);
        }
    }
}

/// Lets a thread go on after this report, to its next system call. One that was killed meanwhile reports its end.
fn go_on(thread: ThreadId, report: WaitReport) {
    let gone_on = match report {
        WaitReport::Event(Event::Stop {
            group_stop: Some(_),
        }) => ptrace::listen(thread),
        _ => ptrace::resume_to_syscall(thread, signal_of(report)),
    };
    gone_on.ok();
}

/// The registers with which a thread does its system call again that was interrupted. Not by a handler of the program: that would
/// run later. By a stop, or a signal that the program ignores, which wakes its threads only because they are traced.
fn without_interruption(thread: ThreadId) -> Option<Registers> {
    let registers = ptrace::registers(thread).ok().flatten()?;
    restart::without_plain_eintr(&registers)
}

/// Sees to it that the program does not notice.
fn hide_interruption(thread: ThreadId) {
    if let Some(changed) = without_interruption(thread) {
        // One that was killed meanwhile has no use for it.
        ptrace::set_registers(thread, &changed).ok();
    }
}

/// The signal that is about to be delivered, or 0.
fn signal_of(report: WaitReport) -> i32 {
    match report {
        WaitReport::Signal { signal } => signal,
        _ => 0,
    }
}
