//! One snapshot of a process, from the first harvest to durable.
//!
//! While the process runs: tracking begins if it has not, and in pre-copy mode most pages are copied
//! and stored in rounds. While it is stopped: mappings, harvest, registers, and a copy of what is left
//! into memory that was allocated before. While it runs again: hashing, compression, disk.
//!
//! Every harvest lives in [`Harvests`] until the snapshot is durable. On any error it is dropped, which
//! gives all of them back.

use crate::capture::CaptureError;
use crate::checkpointer::{Checkpointer, PROCESS_ATTACHMENT};
use crate::files::FileReport;
use crate::layout::{self, Watch};
use crate::mark::Phase;
use crate::memo::{self, Memo};
use crate::options::{Leave, Request};
use crate::report::{NotTracked, Report};
use crate::rings::{self, AsynchronousIo};
use crate::tracking::TrackingError;
use pagetide_kernel::maps::{self, Mapping, MapsError};
use pagetide_kernel::memory::MemoryError;
use pagetide_kernel::pagemap_scan::ScanError;
use pagetide_pages::{PageCount, PageRange, PageSet};
use pagetide_process::{
    OutsideState, ProcessState, ResumeError, StateReadError, StopError, StoppedProcess,
    ThreadState, ThreadStateError,
};
use pagetide_snapshot::{PageState, SnapshotKind, SnapshotWriter, View, WriteError};
use pagetide_tracker::{GivenBack, Harvest, TrackError};
use rustix::process::{Pid, Signal};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// So often is a capture repeated because a file changed meanwhile; then files are compared.
const SETTLED_ATTEMPTS: usize = 2;

/// Why a snapshot was not taken. The process runs on, the store is as it was before, and what was
/// harvested counts as written again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TakeError {
    /// The caller asked for it.
    #[error("the checkpoint was cancelled")]
    Cancelled,
    /// The process ended.
    #[error("process {pid} has ended")]
    Ended {
        /// The process.
        pid: i32,
    },
    /// The process could not be stopped.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// The process could not be let go.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// Tracking could not begin.
    #[error(transparent)]
    Tracking(#[from] TrackingError),
    /// Written pages could not be found.
    #[error(transparent)]
    Track(#[from] TrackError),
    /// The mappings could not be read.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// Registers could not be read.
    #[error(transparent)]
    Threads(#[from] ThreadStateError),
    /// Other state of the process could not be read.
    #[error(transparent)]
    State(#[from] StateReadError),
    /// Pages could not be copied.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The snapshot could not be stored.
    #[error(transparent)]
    Store(#[from] WriteError),
    /// The process could not be left stopped or be killed.
    #[error("signal process {pid}")]
    Signal {
        /// The process.
        pid: i32,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

impl TakeError {
    /// True if the address space that was tracked is gone: the process ended or executed a program.
    pub(crate) fn is_space_gone(&self) -> bool {
        matches!(
            self,
            TakeError::Track(TrackError::SpaceGone | TrackError::Scan(ScanError::SpaceGone { .. }))
                | TakeError::Capture(
                    CaptureError::Memory(MemoryError::SpaceGone { .. })
                        | CaptureError::Scan(ScanError::SpaceGone { .. })
                )
                | TakeError::Stop(StopError::Exec { .. })
        )
    }
}

/// Everything harvested for one snapshot, until it is durable.
#[derive(Default)]
pub(crate) struct Harvests {
    pub taken: Vec<Harvest>,
}

impl Harvests {
    fn commit(self) {
        self.taken.into_iter().for_each(Harvest::commit);
    }

    /// True if the kernel itself counts all of it as written again.
    fn give_back(self) -> bool {
        let given: Vec<GivenBack> = self.taken.into_iter().map(Harvest::give_back).collect();
        given.iter().all(|given| *given == GivenBack::InKernel)
    }
}

/// The mappings of a process, sorted by how they are watched.
pub(crate) struct Layout {
    pub mappings: Vec<Mapping>,
    pub watch: Vec<Watch>,
    /// Private mappings of which the tracker knows what is written, as the kernel lists them.
    pub tracked: Vec<PageRange>,
    /// Of these, private anonymous memory.
    pub anonymous: PageSet,
    pub reserved: PageSet,
}

impl Layout {
    /// `trackable` is false for a backend without a tracker: everything is compared.
    pub fn new(
        mappings: Vec<Mapping>,
        trackable: bool,
        holds: impl Fn(PageRange) -> bool,
    ) -> Layout {
        let mut layout = Layout {
            watch: Vec::with_capacity(mappings.len()),
            mappings,
            tracked: Vec::new(),
            anonymous: PageSet::new(),
            reserved: PageSet::new(),
        };
        for mapping in &layout.mappings {
            let mut watch = layout::watch(mapping);
            let pages = mapping.pages();
            if watch == Watch::Reserved && holds(pages) {
                watch = Watch::Track;
            }
            if matches!(watch, Watch::Track) {
                layout.anonymous.insert(pages);
            }
            match watch {
                Watch::Reserved => layout.reserved.insert(pages),
                Watch::Track | Watch::TrackOverFile if trackable => layout.tracked.push(pages),
                Watch::Track | Watch::TrackOverFile => watch = Watch::Compare,
                _ => {}
            }
            layout.watch.push(watch);
        }
        layout
    }

    pub fn each(&self) -> impl Iterator<Item = (&Mapping, Watch)> {
        self.mappings.iter().zip(self.watch.iter().copied())
    }

    pub fn set(&self, wanted: impl Fn(&Mapping, Watch) -> bool) -> PageSet {
        self.each()
            .filter(|(mapping, watch)| wanted(mapping, *watch))
            .map(|(mapping, _)| mapping.pages())
            .collect()
    }
}

/// What was copied while the process ran.
#[derive(Default)]
pub(crate) struct Precopied {
    /// Pages whose state or bytes the writer has.
    pub covered: PageSet,
    /// Of these, pages that were copied.
    pub copied: PageSet,
    /// Pages that could not be read then.
    pub postponed: PageSet,
}

/// What the stop window is entered with.
pub(crate) struct Window<'a> {
    pub parent: Option<&'a (View, Memo)>,
    pub precopied: &'a Precopied,
    /// Pages that an earlier attempt copied, and that must be copied again.
    pub again: &'a PageSet,
    pub files: &'a FileReport,
    pub io: &'a AsynchronousIo,
}

/// What came out of the stop window.
pub(crate) struct Stopped {
    pub layout: Layout,
    pub threads: Vec<ThreadState>,
    /// States of pages without bytes, in the order in which they hold.
    pub states: Vec<(PageRange, PageState)>,
    pub memo: Memo,
    pub refused: Vec<NotTracked>,
    /// Pages that were copied, or that have a state in `states`.
    pub read: PageSet,
    pub unreadable: PageSet,
    pub copied: PageCount,
    /// Pages copied in the window.
    pub window: PageCount,
    pub stop: Duration,
    pub scan: Duration,
    pub copy: Duration,
}

impl Checkpointer {
    pub(crate) fn try_take(
        &mut self,
        request: Request,
        started: Instant,
    ) -> Result<Report, TakeError> {
        self.check_cancelled()?;
        let begin = self.begin_tracking()?;
        let parent = match request.full {
            true => None,
            false => self.last.clone(),
        };
        let phase_before = self
            .tracking
            .as_ref()
            .and_then(|tracking| tracking.mark.as_ref())
            .map(|mark| mark.content().phase);
        let mut harvests = Harvests::default();
        let outcome = self.store_one(request, parent.as_ref(), &mut harvests);
        match outcome {
            Ok((view, memo, mut report)) => {
                harvests.commit();
                let (id, hash) = (view.id(), view.info().content_hash);
                // The bits count from this snapshot from now on, even if the mark cannot say so.
                self.last = Some((view, memo));
                report.why_full = match report.kind {
                    SnapshotKind::Full => self.why_full.take(),
                    SnapshotKind::Delta => None,
                };
                self.set_phase(Phase::Committed(id, hash))?;
                report.stop += begin;
                report.total = started.elapsed();
                Ok(report)
            }
            Err(error) => {
                // The mark may say again what it said before only if the kernel's bits do, too.
                if harvests.give_back()
                    && let Some(phase) = phase_before
                {
                    let _ = self.set_phase(phase);
                }
                Err(error)
            }
        }
    }

    pub(crate) fn check_cancelled(&self) -> Result<(), TakeError> {
        match self.options.cancel.load(Ordering::Relaxed) {
            true => Err(TakeError::Cancelled),
            false => Ok(()),
        }
    }

    fn store_one(
        &mut self,
        request: Request,
        parent: Option<&(View, Memo)>,
        harvests: &mut Harvests,
    ) -> Result<(View, Memo, Report), TakeError> {
        let pid = self.identity().pid;
        let parent_view = parent.map(|(view, _)| view);
        let options = self.options.write.clone();
        let mut writer = self.store.begin(&self.lock, parent_view, options)?;
        writer.set_spaces(vec![self.space_before()?])?;
        self.set_phase(Phase::Harvesting)?;
        self.arena.clear();

        let precopied = self.precopy(parent, &mut writer, harvests)?;
        let outside = OutsideState::read(self.identity())?;
        let guard = LeaveGuard::before_stop(pid, request.leave, self.options.stop_timeout)?;
        let (mut stopped, files) =
            self.stop_until_settled(parent, &precopied, &mut writer, harvests)?;
        self.check_cancelled()?;
        self.store_pages(&mut writer)?;
        for &(range, state) in &stopped.states {
            writer.put_state(0, range, state)?;
        }
        self.arena.clear();
        self.check_cancelled()?;
        let (space, not_captured) = self.describe(&stopped, &files);
        writer.set_spaces(vec![space])?;
        let state = ProcessState {
            outside,
            threads: std::mem::take(&mut stopped.threads),
        };
        writer.attach(PROCESS_ATTACHMENT, state.to_bytes())?;
        // Without a memo the next snapshot is full.
        if let Some(bytes) = stopped.memo.to_bytes() {
            writer.attach(memo::ATTACHMENT, bytes)?;
        }
        let counters = writer.counters();
        let view = writer.commit()?;
        guard.after_commit(pid)?;
        let info = view.info();
        let report = Report {
            id: info.id,
            parent: info.parent,
            kind: info.kind,
            backend: self.backend,
            written_pages: stopped.copied,
            window_pages: stopped.window,
            stored_pages: info.pages,
            zero_pages: counters.zero_pages,
            logical_bytes: info.logical_bytes,
            stored_bytes: info.stored_bytes,
            stop: stopped.stop,
            scan: stopped.scan,
            copy: stopped.copy,
            total: Duration::ZERO,
            not_captured,
            not_tracked: stopped.refused,
            why_full: None,
        };
        Ok((view, stopped.memo, report))
    }

    /// Stops the process and copies, again if what was taken for unchanged before the stop is not so
    /// after it. In the last attempt nothing is taken for unchanged.
    fn stop_until_settled(
        &mut self,
        parent: Option<&(View, Memo)>,
        precopied: &Precopied,
        writer: &mut SnapshotWriter,
        harvests: &mut Harvests,
    ) -> Result<(Stopped, FileReport), TakeError> {
        let pid = self.identity().pid;
        let mut again = PageSet::new();
        let mut stop = Duration::ZERO;
        for attempt in 0.. {
            self.check_cancelled()?;
            let trust_files = attempt < SETTLED_ATTEMPTS;
            let mappings = maps::mappings(pid)?;
            let before = match trust_files {
                true => self.files.look(pid, &mappings),
                false => FileReport::default(),
            };
            let io = rings::asynchronous_io(pid, &mappings);
            let was_precopied = !precopied.covered.is_empty();
            if io.any || was_precopied && rings::reads_directly(pid) {
                again = again.union(&precopied.covered);
            }
            let identity = self.examined.identity.clone();
            self.make_ready()?;
            let mut process = StoppedProcess::stop(&identity, self.stop_options())?;
            let window = Window {
                parent,
                precopied,
                again: &again,
                files: &before,
                io: &io,
            };
            let stopped = self.in_window(&mut process, &window, writer, harvests);
            let mut stopped = stopped.map_err(|error| self.explain(error))?;
            let since = process.since();
            process.resume()?;
            stop += since.elapsed();
            stopped.stop = stop;

            let after = self.files.look(pid, &stopped.layout.mappings);
            let settled = !trust_files || after.agrees_with(&before);
            let io_now = rings::asynchronous_io(pid, &stopped.layout.mappings);
            let new_buffers = io_now.buffers.subtract(&stopped.memo.buffers);
            let same_io = (io_now.any, io_now.unlisted_ring) == (io.any, io.unlisted_ring);
            if settled && same_io && new_buffers.is_empty() {
                stopped.memo.settled = match trust_files {
                    true => after.settled(),
                    false => Vec::new(),
                };
                return Ok((stopped, after));
            }
            again = again.union(&stopped.read).union(&new_buffers);
            self.arena.clear();
        }
        unreachable!("the loop ends by returning")
    }

    /// Stores what the arena holds, in batches, so that it can be cancelled and watched.
    fn store_pages(&self, writer: &mut SnapshotWriter) -> Result<(), TakeError> {
        const PIECES_AT_ONCE: usize = 4096;
        let pieces = self.arena.pieces();
        let total: u64 = pieces.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let mut done = 0;
        for batch in pieces.chunks(PIECES_AT_ONCE) {
            self.check_cancelled()?;
            writer.put_pages(0, batch)?;
            done += batch
                .iter()
                .map(|(_, bytes)| bytes.len() as u64)
                .sum::<u64>();
            if let Some(progress) = &self.options.progress {
                (progress.0)(done, total);
            }
        }
        Ok(())
    }

    /// An error in the stop window of a process that is gone is told as just that.
    fn explain(&self, error: TakeError) -> TakeError {
        match self.identity().is_alive_and_same() {
            true => error,
            false => TakeError::Ended {
                pid: self.identity().pid,
            },
        }
    }
}

/// The process as it is left after the snapshot: stopped, or killed once the snapshot is durable. A
/// snapshot that fails lets it run again.
struct LeaveGuard {
    pid: Option<Pid>,
    leave: Leave,
}

impl LeaveGuard {
    /// Stops the process by SIGSTOP before it is stopped by us, so that it does not run for a moment
    /// between the two. A process that was stopped already is not ours to let run.
    fn before_stop(pid: i32, leave: Leave, timeout: Duration) -> Result<LeaveGuard, TakeError> {
        let mut guard = LeaveGuard { pid: None, leave };
        if leave == Leave::Running {
            return Ok(guard);
        }
        if !is_stopped(pid) {
            guard.pid = Pid::from_raw(pid);
            guard.signal(Signal::STOP)?;
            let deadline = Instant::now() + timeout;
            while !is_stopped(pid) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        Ok(guard)
    }

    fn signal(&self, signal: Signal) -> Result<(), TakeError> {
        let Some(pid) = self.pid else { return Ok(()) };
        rustix::process::kill_process(pid, signal).map_err(|errno| TakeError::Signal {
            pid: pid.as_raw_nonzero().get(),
            source: errno.into(),
        })
    }

    fn after_commit(mut self, pid: i32) -> Result<(), TakeError> {
        let killed = match self.leave {
            Leave::Killed => {
                self.pid = Pid::from_raw(pid);
                self.signal(Signal::KILL)
            }
            Leave::Running | Leave::Stopped => Ok(()),
        };
        self.pid = None;
        killed
    }
}

impl Drop for LeaveGuard {
    fn drop(&mut self) {
        let _ = self.signal(Signal::CONT);
    }
}

/// True if every thread of the process is stopped by a signal.
fn is_stopped(pid: i32) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    tasks.flatten().all(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
        state.is_some_and(|rest| rest.starts_with('T'))
    })
}
