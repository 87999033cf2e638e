//! A process that runs before all its memory is there. Pages that it misses come when it touches them (see
//! `pagetide_kernel::userfaultfd::missing`), and all others meanwhile, what was written last first.
//!
//! Until all is there the processes are under guard (see `pagetide_process::Guard`): should this program end, they are
//! killed, and so is what they forked, for they would read zeros where their memory is missing. Some of their system
//! calls have to wait until the memory that they are about is there (see `gate`).
//!
//! A page that cannot be fetched, because the store is damaged, is poisoned: whoever touches it gets a SIGBUS. Where the
//! kernel has no poison, the processes are killed.
//!
//! Nothing is tracked meanwhile, because a mapping belongs to one userfaultfd at most: the next snapshot is full.

mod chosen;
mod gate;
mod missing;
mod serve;
mod spaces;

use super::error::{FillError, LazyError, RestoreError};
use super::plan::RestorePlan;
use super::poison;
use crate::capture::SIZE;
use pagetide_process::{Guard, NewProcess, StoppedProcess};
use pagetide_snapshot::{Store, View, WriterLock};
use serve::Shared;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

pub(super) use chosen::Chosen;
pub use serve::FilledReport;

/// Why tracking has not begun in a process that was restored this way.
pub(super) const NOT_TRACKED: &str = "its memory was still coming in";

/// The memory of running processes, coming in. Dropping this waits until all is there, as [`Filling::wait`] does.
///
/// Until then no thread of this program may wait for the processes by wait(2), not even by number.
#[derive(Debug)]
pub struct Filling {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    guards: Vec<Guard>,
    /// Nobody may remove snapshots meanwhile.
    lock: Option<WriterLock>,
}

impl Filling {
    /// True if all is there, or the processes have ended: [`Filling::wait`] does not wait any more.
    pub fn is_done(&self) -> bool {
        self.shared.is_over()
    }

    /// Waits until all is there, and lets the processes go.
    ///
    /// # Errors
    /// If pages are lost. All others are there.
    pub fn wait(mut self) -> Result<FilledReport, FillError> {
        self.finish();
        self.shared.outcome()
    }

    fn finish(&mut self) {
        for thread in self.threads.drain(..) {
            // A panic of one leaves pages missing; then nothing may run.
            if thread.join().is_err() {
                self.shared.must_die.store(true, Ordering::Release);
            }
        }
        if self.shared.must_die.load(Ordering::Acquire) {
            self.guards.clear();
        }
        self.shared.close();
        // Whoever sees that a process has no guard may take its next snapshot.
        self.lock = None;
        for guard in self.guards.drain(..) {
            guard.let_go();
        }
    }

    /// Lets a process run under guard.
    pub(super) fn resume_guarded(
        &self,
        process: StoppedProcess,
        is_own_child: bool,
    ) -> Result<Guard, LazyError> {
        let gate = Arc::clone(&self.shared);
        Ok(process.resume_guarded(is_own_child, gate)?)
    }

    /// The processes run, under guard.
    pub(super) fn guard(&mut self, guards: Vec<Guard>) {
        self.guards = guards;
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Processes in the making whose memory comes later. Dropping it serves nothing any more.
pub(super) struct Lazy {
    lock: Option<WriterLock>,
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
}

impl Lazy {
    pub fn new(store: &Store, view: &View) -> Result<Self, RestoreError> {
        // Where it cannot be locked, it cannot be written to either, or somebody else does and keeps what is needed or not:
        // what is no longer there is lost memory, and told.
        let lock = store.lock().ok();
        let shared = Arc::new(Shared::new(view.clone())?);
        let there = Arc::clone(&shared);
        let server = std::thread::Builder::new()
            .name("pagetide-serve".to_owned())
            .spawn(move || there.serve())
            .map_err(LazyError::Thread)?;
        Ok(Self {
            lock,
            shared,
            server: Some(server),
        })
    }

    /// From now on what was `chosen` is missing in `new`, and served.
    pub fn arm(
        &self,
        plan: &RestorePlan<'_>,
        chosen: &Chosen,
        new: &mut NewProcess,
    ) -> Result<(), RestoreError> {
        if chosen.pages.is_empty() {
            return Ok(());
        }
        let missing = poison::userfaultfd(new)?;
        for &region in &chosen.regions {
            let (start, end) = SIZE.span_of(region);
            let registered = missing.register(start, end - start);
            registered.map_err(LazyError::from)?;
        }
        self.shared.add(plan.space, missing, &chosen.pages);
        Ok(())
    }

    /// All are armed: begins to fill them.
    pub fn fill(mut self) -> Result<Filling, RestoreError> {
        let workers = Shared::fill(&self.shared).map_err(LazyError::Thread)?;
        let mut threads: Vec<JoinHandle<()>> = self.server.take().into_iter().collect();
        threads.extend(workers);
        Ok(Filling {
            shared: Arc::clone(&self.shared),
            threads,
            guards: Vec::new(),
            lock: self.lock.take(),
        })
    }
}

impl Drop for Lazy {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            self.shared.give_up();
            server.join().ok();
        }
    }
}
