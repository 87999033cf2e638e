//! The stopped threads of the target while some of them run: remote calls, and the way into a group-stop.

use super::list::Now;
use super::pause::Pause;
use super::{Ending, SessionReport, StopFailure, Tracees};
use pagetide_kernel::pidfd::PidFd;
use pagetide_kernel::ptrace::{self, Event, ThreadId, WaitReport};
use rustix::process::Signal;
use std::collections::VecDeque;
use std::io;
use std::time::Instant;

/// Of threads that are under way together, those that were sent first are the first to report: so many of them are asked.
const ASKED_AT_ONCE: usize = 4;

impl Tracees {
    /// The first thread takes the signal; the others join when they are let go. What is sent is SIGSTOP, which nothing keeps away,
    /// and what the thread then takes is `wanted`. Where that would not stop it (SIGTSTP of a process group that nobody is
    /// there for to let go on), it is SIGSTOP after all.
    pub(crate) fn enter_group_stop(
        &mut self,
        wanted: i32,
        held: &PidFd,
        deadline: Instant,
    ) -> Result<(), StopFailure> {
        let stop = Signal::STOP.as_raw();
        for signal in [wanted, stop] {
            if self.take_stop_signal(signal, held, deadline)? {
                break;
            }
        }
        Ok(())
    }

    /// False if the thread took the signal and did not stop by it. Either way it does not come to run the program.
    fn take_stop_signal(
        &mut self,
        wanted: i32,
        held: &PidFd,
        deadline: Instant,
    ) -> Result<bool, StopFailure> {
        let first = ThreadId::new(self.pid);
        let kernel = |what| {
            move |source| StopFailure::Kernel {
                what,
                thread: first,
                source,
            }
        };
        held.send_signal(Signal::STOP)
            .map_err(|error| kernel("signal")(io::Error::other(error)))?;
        let (mut signal, mut was_given) = (0, false);
        loop {
            if was_given {
                // Any stop uses up an earlier request to stop.
                ptrace::interrupt(first).map_err(kernel("interrupt"))?;
            }
            ptrace::resume(first, signal).map_err(kernel("resume"))?;
            signal = match self.wait_in_session(first, deadline) {
                SessionReport::Report(WaitReport::Signal { signal })
                    if signal == Signal::STOP.as_raw() && !was_given =>
                {
                    was_given = true;
                    wanted
                }
                SessionReport::Report(WaitReport::Signal { signal }) => signal,
                SessionReport::Report(WaitReport::Event(Event::Stop { group_stop })) => {
                    if group_stop.is_some() || was_given {
                        self.group_stop = group_stop;
                        return Ok(group_stop.is_some());
                    }
                    0
                }
                SessionReport::Report(_) => 0,
                SessionReport::Gone => {
                    let ending = self.ending.unwrap_or(Ending::Unknown);
                    return Err(StopFailure::Ended(ending));
                }
                SessionReport::Timeout => {
                    return Err(StopFailure::Timeout {
                        thread: Some(first),
                    });
                }
            };
        }
    }

    /// The next report of `thread`.
    pub(crate) fn wait_in_session(&mut self, thread: ThreadId, deadline: Instant) -> SessionReport {
        self.wait_in_sessions(&mut VecDeque::from([thread]), deadline)
            .1
    }

    /// The next report of one of `ours`, and which it is: that one is taken out. Those that are expected first come first.
    /// Another thread can report only its end, and only because the whole process is being killed: then these are lost, too.
    pub(crate) fn wait_in_sessions(
        &mut self,
        ours: &mut VecDeque<ThreadId>,
        deadline: Instant,
    ) -> (Option<ThreadId>, SessionReport) {
        let mut pause = Pause::new();
        loop {
            match self.next_report(ours, pause.is_for_all()) {
                Ok(Some((reporter, report))) => {
                    let ended = matches!(
                        report,
                        WaitReport::Exited { .. } | WaitReport::Killed { .. }
                    );
                    if ended {
                        self.remove(reporter, report);
                        return (None, SessionReport::Gone);
                    }
                    if let Some(place) = ours.iter().position(|thread| *thread == reporter) {
                        ours.remove(place);
                        return (Some(reporter), SessionReport::Report(report));
                    }
                    if !self.list.knows(reporter) {
                        if self.keeps_newborns {
                            self.add(reporter, Now::Stopped);
                        } else {
                            // Made by a remote call, so nobody waits for it.
                            ptrace::detach(reporter).ok();
                        }
                    }
                    continue;
                }
                Ok(None) => {}
                Err(_) => return (None, SessionReport::Gone),
            }
            if pause.is_long() {
                let stolen = ours
                    .iter()
                    .find_map(|thread| Some((*thread, self.stolen_report(*thread)?)));
                if let Some((thread, report)) = stolen {
                    ours.retain(|other| *other != thread);
                    return (Some(thread), SessionReport::Report(report));
                }
            }
            if Instant::now() >= deadline {
                return (None, SessionReport::Timeout);
            }
            pause.wait();
        }
    }

    /// What one of the first of `ours` has to report, or any thread if `all` are asked: that costs the kernel a look at each
    /// that is traced, while one thread is found at once.
    fn next_report(
        &self,
        ours: &VecDeque<ThreadId>,
        all: bool,
    ) -> io::Result<Option<(ThreadId, WaitReport)>> {
        let kept = ThreadId::new(self.pid);
        for &thread in ours.iter().take(ASKED_AT_ONCE) {
            // One that is traced no more is for the question to all.
            if let Ok(Some(report)) = ptrace::wait_thread(thread, kept) {
                return Ok(Some((thread, report)));
            }
        }
        if all {
            ptrace::wait_any(kept)
        } else {
            Ok(None)
        }
    }

    /// From now on, what becomes of threads that remote calls make.
    pub(crate) fn keep_newborns(&mut self, keep: bool) {
        self.keeps_newborns = keep;
    }

    /// Waits until a thread that a remote call has made stands. False if it does not in time.
    pub(crate) fn wait_for_newborn(&mut self, newborn: ThreadId, deadline: Instant) -> bool {
        while !self.list.knows(newborn) {
            match self.wait_in_session(newborn, deadline) {
                SessionReport::Report(WaitReport::Event(Event::Stop { .. })) => {
                    self.add(newborn, Now::Stopped);
                }
                SessionReport::Report(_) => {}
                SessionReport::Gone | SessionReport::Timeout => return false,
            }
        }
        true
    }

    /// The registers of this thread could not be put back by us (it would not stop). It is left to
    /// the end of the tracing thread.
    pub(crate) fn abandon(&mut self, thread: ThreadId) {
        self.set(thread, Now::Running);
    }
}
