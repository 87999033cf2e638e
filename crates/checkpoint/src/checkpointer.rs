//! Checkpoints of one process into one store: who is checkpointed, from where on, and what becomes of
//! tracking when a snapshot succeeds or fails. One snapshot itself is in `take`.

use crate::arena::Arena;
use crate::capture::SIZE;
use crate::files::Files;
use crate::mark::Phase;
use crate::memo::{self, Memo};
use crate::options::{Options, Request, Residence};
use crate::report::Report;
use crate::take::TakeError;
use crate::tracking::{Tracking, TrackingError};
use pagetide_kernel::memory::{MemoryError, ProcessMemory};
use pagetide_kernel::pagemap_scan::{Categories, OpenPagemapError, Pagemap};
use pagetide_kernel::probe::{self, Probe};
use pagetide_process::{
    Examined, ProcessIdentity, ProcessState, RefusalError, StopOptions, StoppedProcess, examine,
};
use pagetide_snapshot::{LockError, ReadError, Store, View, WriterLock};
use pagetide_tracker::Backend;

/// The space that holds the memory of a process, by virtual address.
pub const MEMORY_SPACE: &str = "mem";
/// The attachment that holds the state of a process: see [`ProcessState`].
pub const PROCESS_ATTACHMENT: &str = "process";

/// Why checkpoints of a process cannot begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The process cannot be handled.
    #[error(transparent)]
    Refused(#[from] RefusalError),
    /// The backend that was asked for does not work here.
    #[error("the backend {backend} cannot be used: {reason}")]
    Backend {
        /// Which.
        backend: Backend,
        /// Why not.
        reason: String,
    },
    /// The store is not free.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] ReadError),
    /// Tracking could not be found.
    #[error(transparent)]
    Tracking(#[from] TrackingError),
    /// The memory could not be opened.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The pagemap could not be opened.
    #[error(transparent)]
    OpenPagemap(#[from] OpenPagemapError),
}

/// The backends, the preferred first, and for each why it cannot be used, if so.
pub fn backends(probe: &Probe) -> Vec<(Backend, Result<(), String>)> {
    let soft_dirty = probe.soft_dirty.clone().and_then(|()| {
        Err("the kernel has soft-dirty bits, but this version of pagetide does not use them".into())
    });
    vec![
        (Backend::WpAsync, probe.wp_async.clone()),
        (Backend::SoftDirty, soft_dirty),
        (Backend::Rehash, Ok(())),
    ]
}

fn choose_backend(wanted: Option<Backend>) -> Result<Backend, AttachError> {
    let usable = backends(&Probe::of_this_kernel());
    match wanted {
        None => Ok(usable
            .iter()
            .find(|(_, usable)| usable.is_ok())
            .map_or(Backend::Rehash, |(backend, _)| *backend)),
        Some(backend) => match usable.into_iter().find(|(found, _)| *found == backend) {
            Some((_, Err(reason))) => Err(AttachError::Backend { backend, reason }),
            _ => Ok(backend),
        },
    }
}

/// So many programs that are executed one after another are followed within one snapshot.
const PROGRAMS_FOLLOWED: usize = 3;

/// Takes snapshots of one process into one store. Holds the store's writer lock.
pub struct Checkpointer {
    pub(crate) examined: Examined,
    pub(crate) store: Store,
    pub(crate) lock: WriterLock,
    pub(crate) options: Options,
    pub(crate) backend: Backend,
    pub(crate) tracking: Option<Tracking>,
    pub(crate) space: AddressSpace,
    /// The snapshot from which the next delta counts.
    pub(crate) last: Option<(View, Memo)>,
    pub(crate) files: Files,
    pub(crate) arena: Arena,
    pub(crate) advice: crate::layout::AdviceCache,
    pub(crate) why_full: Option<&'static str>,
}

/// Open files that stay bound to one address space.
pub(crate) struct AddressSpace {
    pub memory: ProcessMemory,
    pub pagemap: Pagemap,
    pub knows_guards: bool,
}

impl AddressSpace {
    fn open(pid: i32) -> Result<AddressSpace, AttachError> {
        Ok(AddressSpace {
            memory: ProcessMemory::open(pid)?,
            pagemap: Pagemap::of_process(pid)?,
            knows_guards: probe::known_categories().contains(Categories::GUARD),
        })
    }
}

impl Checkpointer {
    /// Makes ready to take snapshots of process `pid` into `store`. The process is not touched yet.
    pub fn attach(pid: i32, store: Store, options: Options) -> Result<Checkpointer, AttachError> {
        let examined = examine(pid)?;
        let backend = choose_backend(options.backend)?;
        let lock = store.lock()?;
        let mut checkpointer = Checkpointer {
            space: AddressSpace::open(pid)?,
            tracking: None,
            last: None,
            files: Files::default(),
            arena: Arena::new(SIZE, options.buffer_bytes),
            advice: Default::default(),
            why_full: None,
            examined,
            store,
            lock,
            options,
            backend,
        };
        checkpointer.find_parent()?;
        Ok(checkpointer)
    }

    /// Who is checkpointed.
    pub fn identity(&self) -> &ProcessIdentity {
        &self.examined.identity
    }

    /// How written pages are found.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// True if a next snapshot can be a delta.
    pub fn has_snapshot(&self) -> bool {
        self.last.is_some()
    }

    fn find_parent(&mut self) -> Result<(), AttachError> {
        match self.backend {
            Backend::Rehash => {
                // Contents are compared, so any snapshot of this process will do as a parent.
                let newest = self.store.newest()?.map(|info| self.store.view(info.id));
                let view = match newest.transpose() {
                    Err(error @ ReadError::Io { .. }) => return Err(error.into()),
                    Err(_) => {
                        self.why_full = Some("the newest snapshot cannot be read");
                        None
                    }
                    Ok(view) => view,
                };
                self.last = view
                    .filter(|view| self.is_of_this_process(view))
                    .and_then(with_memo);
                Ok(())
            }
            _ => {
                self.tracking = Tracking::find(self.identity(), self.store.id())?;
                let mark = self
                    .tracking
                    .as_ref()
                    .and_then(|tracking| tracking.mark.as_ref());
                match mark.map(|mark| mark.content().phase) {
                    None => {}
                    Some(Phase::Armed) => {
                        self.why_full = Some("no snapshot was committed since tracking began");
                    }
                    Some(Phase::Harvesting) => {
                        self.why_full = Some("an earlier snapshot was interrupted");
                    }
                    Some(Phase::Committed(id, hash)) => {
                        let view = self.store.view(id).ok();
                        let same = view.filter(|view| view.info().content_hash == hash);
                        self.last = same.and_then(with_memo);
                        if self.last.is_none() {
                            self.why_full = Some("the snapshot that tracking counts from is gone");
                        }
                    }
                }
                Ok(())
            }
        }
    }

    fn is_of_this_process(&self, view: &View) -> bool {
        let state = view.attachment(PROCESS_ATTACHMENT);
        let state = state.and_then(|bytes| ProcessState::from_bytes(bytes).ok());
        state.is_some_and(|state| state.outside.identity == *self.identity())
    }

    /// Takes a snapshot: a delta if it is known what was written since the last one, else full.
    ///
    /// Whatever goes wrong, the process runs on, the store stays as it was, and what was harvested
    /// counts as written again.
    pub fn take(&mut self, request: Request) -> Result<Report, TakeError> {
        let started = std::time::Instant::now();
        for _ in 0..PROGRAMS_FOLLOWED {
            match self.try_take(request, started) {
                Err(error) if error.is_space_gone() => self.follow(error)?,
                outcome => return outcome,
            }
        }
        self.try_take(request, started)
    }

    /// Goes on with the new address space of a process whose old one is gone, because it executed another
    /// program; an error if it has ended. A process that is just ending has neither for a while.
    fn follow(&mut self, error: TakeError) -> Result<(), TakeError> {
        let pid = self.identity().pid;
        let deadline = std::time::Instant::now() + self.options.stop_timeout;
        while self.identity().is_alive_and_same() {
            if let Ok(space) = AddressSpace::open(pid)
                && space.pagemap.is_alive()
            {
                self.forget("the process executed a new program");
                self.space = space;
                return Ok(());
            }
            if std::time::Instant::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        Err(TakeError::Ended { pid })
    }

    fn forget(&mut self, why: &'static str) {
        self.tracking = None;
        self.last = None;
        self.why_full = Some(why);
        self.advice = Default::default();
    }

    /// Begins tracking if it has not begun: a short stop of its own.
    pub(crate) fn begin_tracking(&mut self) -> Result<std::time::Duration, TakeError> {
        if self.backend != Backend::WpAsync || self.tracking.is_some() {
            return Ok(std::time::Duration::ZERO);
        }
        let identity = self.identity().clone();
        let store = match self.options.residence {
            Residence::Target => Some(self.store.id()),
            Residence::Here => None,
        };
        let started = std::time::Instant::now();
        let mut stopped = StoppedProcess::stop(&identity, self.stop_options())?;
        let begun = Tracking::begin(&mut stopped, &identity, store);
        stopped.resume()?;
        self.tracking = Some(begun?);
        self.last = None;
        Ok(started.elapsed())
    }

    pub(crate) fn stop_options(&self) -> StopOptions {
        StopOptions::with_timeout(self.options.stop_timeout)
    }

    /// Says in the process how far we are, if its tracking lives there.
    pub(crate) fn set_phase(&mut self, phase: Phase) -> Result<(), TakeError> {
        let pid = self.identity().pid;
        let mark = self
            .tracking
            .as_mut()
            .and_then(|tracking| tracking.mark.as_mut());
        match mark.map(|mark| mark.set(phase)) {
            Some(Err(source)) => Err(TrackingError::Mark { pid, source }.into()),
            _ => Ok(()),
        }
    }
}

fn with_memo(view: View) -> Option<(View, Memo)> {
    let memo = Memo::from_bytes(view.attachment(memo::ATTACHMENT)?)?;
    Some((view, memo))
}
