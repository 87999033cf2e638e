//! The thread of ours that traces, and the threads it has stopped.
//!
//! The kernel ties tracing to one thread of the tracer, and takes a thread out of tracing for
//! certain in one way only: the tracing thread ends. (PTRACE_DETACH works on stopped threads only;
//! one that sleeps uninterruptibly would stop minutes later, with nobody to let it go.) So every
//! stop has a tracing thread of its own, which runs the jobs it is given and whose end, in
//! whatever way, lets the target run on.
//!
//! It has no children, so it may ask `wait4` for all that concerns it without taking reports that
//! belong to the rest of the program. (A thread of the program that waits for *any* child without
//! `__WNOTHREAD` would take ours; programs that embed this crate must wait for children by number.)

use crate::seizing::{Shared, lock};
use crate::tracees::Tracees;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

/// How long seizing a single thread may take before the waiting side suspects that it is held up.
const HELD_UP: Duration = Duration::from_millis(10);

type Job = Box<dyn FnOnce(&mut Tracees) + Send>;

/// The way to each tracing thread, by its number, for when the one that gave it work waits for ever.
static TRACERS: Mutex<BTreeMap<i32, Sender<Job>>> = Mutex::new(BTreeMap::new());

/// Has all tracing threads let go what they have stopped, and waits for that.
pub(crate) fn let_everybody_go(patience: Duration) {
    let (done, told) = channel();
    let tracers: Vec<Sender<Job>> = lock(&TRACERS).values().cloned().collect();
    for tracer in tracers {
        let done = done.clone();
        let job: Job = Box::new(move |tracees| {
            tracees.let_all_go();
            // Fails only if nobody waits any more.
            done.send(()).ok();
        });
        // One that has ended has let go.
        tracer.send(job).ok();
    }
    drop(done);
    let deadline = Instant::now() + patience;
    let left = || deadline.saturating_duration_since(Instant::now());
    while told.recv_timeout(left()).is_ok() {}
}

/// The handle on a tracing thread.
#[derive(Debug)]
pub(crate) struct Tracer {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<bool>>,
    thread_number: i32,
    pid: i32,
    shared: Arc<Shared>,
}

impl Tracer {
    pub(crate) fn start(pid: i32) -> io::Result<Self> {
        let (jobs, received) = channel::<Job>();
        let (number_sender, number) = sync_channel(1);
        let shared = Arc::new(Shared::default());
        let shared_there = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(String::from("pagetide-tracer"))
            .spawn(move || {
                let own_number = rustix::thread::gettid().as_raw_nonzero().get();
                // The receiver waits for it, unless it is gone and with it the need.
                number_sender.send(own_number).ok();
                run_jobs(&received, Tracees::new(pid, own_number, shared_there))
            })?;
        let thread_number = number.recv().map_err(io::Error::other)?;
        lock(&TRACERS).insert(thread_number, jobs.clone());
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            thread_number,
            pid,
            shared,
        })
    }

    /// Runs `job` in the tracing thread and waits for its result.
    ///
    /// # Panics
    /// If the job panics. The target has been let go then.
    pub(crate) fn run<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Tracees) -> R + Send + 'static,
    ) -> R {
        let (sender, receiver) = sync_channel(1);
        let job: Job = Box::new(move |tracees| {
            // Fails only if nobody wants the result any more.
            sender.send(job(tracees)).ok();
        });
        pagetide_kernel::progress::step();
        self.jobs
            .as_ref()
            .and_then(|jobs| jobs.send(job).ok())
            .and_then(|()| self.wait_for(&receiver))
            .expect("the tracing thread ends before its handle only if a job panicked")
    }
}

impl Tracer {
    /// Has `job` run in the tracing thread and does not wait.
    pub(crate) fn begin(&self, job: impl FnOnce(&mut Tracees) + Send + 'static) {
        let job: Job = Box::new(job);
        // Fails only if an earlier job panicked, and all has been let go then.
        if let Some(jobs) = &self.jobs {
            jobs.send(job).ok();
        }
    }

    /// The result of a job, or `None` if it panicked.
    fn wait_for<R>(&self, result: &Receiver<R>) -> Option<R> {
        let mut seen = None;
        loop {
            match result.recv_timeout(HELD_UP) {
                Ok(result) => return Some(result),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = self.shared.is_seizing();
            if now.is_some() && now == seen {
                self.shared.reap(self.pid);
            }
            seen = now;
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        lock(&TRACERS).remove(&self.thread_number);
        drop(self.jobs.take());
        let Some(thread) = self.thread.take() else {
            return;
        };
        // A panic in the thread has been reported by the job that panicked.
        let all_let_go = thread.join().unwrap_or(false);
        if !all_let_go {
            // The kernel detaches what is left when the thread is really gone, shortly after the
            // join. Whoever stops the same process next should not meet our own remains.
            let path = format!("/proc/self/task/{}", self.thread_number);
            let deadline = Instant::now() + Duration::from_secs(1);
            while Path::new(&path).exists() && Instant::now() < deadline {
                sleep(Duration::from_micros(50));
            }
        }
    }
}

/// True if every thread was let go by request, none left to the end of this thread.
fn run_jobs(jobs: &Receiver<Job>, mut tracees: Tracees) -> bool {
    while let Ok(job) = jobs.recv() {
        job(&mut tracees);
    }
    tracees.let_all_go()
}
