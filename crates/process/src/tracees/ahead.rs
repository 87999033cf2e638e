//! Threads led into their system calls while the others of their process stand.
//!
//! A thread that is left between the two is woken by the end of the tracing and sees EINTR. So whoever is sent on its way
//! is waited for until it is in its call, and only then does anything end.

use super::{Now, Pause, SessionReport, Tracees};
use crate::restart;
use crate::waits::Ahead;
use pagetide_kernel::ptrace::{self, ThreadId, WaitReport};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long threads are led, one batch after another: the others wait for it. Each needs some 50 us.
const LEADING_MAX: Duration = Duration::from_millis(10);
/// So many go at the same time.
const BATCH_MAX: usize = 32;
/// How long a thread may take to begin its call: it needs only a processor.
const ENTRY_MAX: Duration = Duration::from_secs(2);
/// How long a thread may take to fall asleep in it.
const SLEEP_MAX: Duration = Duration::from_millis(20);

impl Tracees {
    /// Has the threads enter their calls with the timeouts of their sockets shortened to what is left, those with the least
    /// left first. Whether they get there or not, the timeouts are set back.
    pub(super) fn lead_all(&mut self, mut threads: Vec<Ahead>) {
        threads.sort_by_cached_key(|ahead| ahead.socket.left());
        let until = Instant::now() + LEADING_MAX;
        while !threads.is_empty() && Instant::now() < until {
            let mut batch: Vec<Ahead> = Vec::new();
            let mut later = Vec::new();
            for ahead in threads {
                let is_free = |other: &Ahead| !other.socket.is_same(&ahead.socket);
                if batch.len() < BATCH_MAX && batch.iter().all(is_free) {
                    batch.push(ahead)
                } else {
                    later.push(ahead)
                }
            }
            threads = later;
            batch.retain_mut(|ahead| ahead.socket.shorten());
            let asleep = self.lead(&batch);
            for ahead in &batch {
                ahead.socket.put_back();
            }
            for ahead in batch {
                if asleep.contains(&ahead.thread()) {
                    ahead.take_note();
                }
            }
        }
    }

    /// Those that sleep in their calls. From then on they are not stopped, and go with the end of the tracing thread.
    fn lead(&mut self, batch: &[Ahead]) -> Vec<ThreadId> {
        let mut under_way: VecDeque<ThreadId> = batch.iter().map(Ahead::thread).collect();
        under_way.retain(|thread| self.set_going(*thread));
        let mut begun = Vec::with_capacity(under_way.len());
        let deadline = Instant::now() + ENTRY_MAX;
        while !under_way.is_empty() {
            let (Some(thread), SessionReport::Report(report)) =
                self.wait_in_sessions(&mut under_way, deadline)
            else {
                return Vec::new();
            };
            match report {
                WaitReport::Syscall => begun.push(thread),
                report => self.leave_to(thread, report),
            }
        }
        begun.retain(|thread| self.set_going(*thread));
        let deadline = Instant::now() + SLEEP_MAX;
        let mut asleep = Vec::with_capacity(begun.len());
        let mut pause = Pause::new();
        while !begun.is_empty() && Instant::now() < deadline {
            begun.retain(|&thread| {
                let ahead = batch.iter().find(|ahead| ahead.thread() == thread);
                // A thread that is seen in a stop has its report ready, so the order matters.
                let is_in_call = ahead.is_some_and(Ahead::is_in_call);
                match ptrace::wait_thread(thread, ThreadId::new(self.pid)) {
                    Ok(None) if !is_in_call => return true,
                    Ok(None) => asleep.push(thread),
                    Ok(Some(report)) => self.leave_to(thread, report),
                    // It has ended.
                    Err(_) => {}
                }
                false
            });
            pause.wait();
        }
        asleep
    }

    /// On to the begin of a call, or to its end. False if it was killed.
    fn set_going(&mut self, thread: ThreadId) -> bool {
        let goes = ptrace::resume_to_syscall(thread, 0).is_ok();
        if goes {
            self.set(thread, Now::Running);
        }
        goes
    }

    /// It has come out of the call, or has not got there.
    fn leave_to(&mut self, thread: ThreadId, report: WaitReport) {
        match report {
            WaitReport::Signal { signal } => {
                // One that was killed just now needs no signal.
                ptrace::resume(thread, signal).ok();
            }
            WaitReport::Exited { .. } | WaitReport::Killed { .. } => self.remove(thread, report),
            WaitReport::Syscall | WaitReport::Event(_) => {
                self.set(thread, Now::Stopped);
                // A traced thread is woken by signals that it ignores, too.
                let registers = ptrace::registers(thread).ok().flatten();
                let changed = registers.and_then(|now| restart::without_plain_eintr(&now));
                if let Some(changed) = changed {
                    ptrace::set_registers(thread, &changed).ok();
                }
            }
        }
    }
}
