//! Checkpoints of a process, or of a tree of processes, into one store: who is checkpointed, from where on,
//! and what becomes of tracking when a snapshot succeeds or fails. One snapshot itself is in `take`.

use crate::arena::Arena;
use crate::capture::SIZE;
use crate::claim::Claim;
use crate::files::Files;
use crate::mark::Phase;
use crate::member::{AddressSpace, Member, MemberNames};
use crate::options::{Options, Request, Residence};
use crate::page_table_limit;
use crate::report::Report;
use crate::take::TakeError;
use crate::tracking::{Tracking, TrackingError};
use pagetide_kernel::memory::MemoryError;
use pagetide_kernel::pagemap_scan::OpenPagemapError;
use pagetide_kernel::probe::Probe;
use pagetide_process::{
    Freezer, ProcessIdentity, RefusalError, StopError, StopOptions, StoppedProcess, examine,
};
use pagetide_snapshot::{LockError, ReadError, SnapshotId, Store, View, WriterLock};
use pagetide_tracker::Backend;
use std::time::{Duration, Instant};

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
    /// Somebody else takes checkpoints of the process now.
    #[error("process {pid} is under checkpoints by {} already", by.map_or("another program".to_owned(), |by| format!("pagetide {by}")))]
    Busy {
        /// The process.
        pid: i32,
        /// Who does, if that is known.
        by: Option<i32>,
    },
    /// The store is not free.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] ReadError),
    /// It could not be stopped.
    #[error(transparent)]
    Stop(#[from] StopError),
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
    vec![
        (Backend::WpAsync, probe.wp_async.clone()),
        (Backend::SoftDirty, probe.soft_dirty.clone()),
        (Backend::Rehash, Ok(())),
    ]
}

pub(crate) fn choose_backend(wanted: Option<Backend>) -> Result<Backend, AttachError> {
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

/// So many programs that the named process executes one after another are followed within one snapshot.
const PROGRAMS_FOLLOWED: usize = 3;
/// So often a snapshot is begun anew because a child of a tree ended or executed a program meanwhile.
const CHILDREN_PASSED: usize = 50;

/// Takes the right to take checkpoints of a process.
pub(crate) fn claim(pid: i32) -> Result<Option<Claim>, AttachError> {
    Claim::of(pid).map_err(|claimed| AttachError::Busy {
        pid,
        by: claimed.by,
    })
}

/// Takes snapshots of a process or a tree of processes into one store. Holds the store's writer lock.
pub struct Checkpointer {
    /// The process that was named, then its children if they belong to the checkpoint.
    pub(crate) members: Vec<Member>,
    pub(crate) store: Store,
    pub(crate) lock: WriterLock,
    pub(crate) options: Options,
    pub(crate) backend: Backend,
    /// The snapshot from which the next delta counts.
    pub(crate) last: Option<View>,
    pub(crate) files: Files,
    pub(crate) arena: Arena,
    pub(crate) why_full: Option<&'static str>,
}

impl Checkpointer {
    /// Makes ready to take snapshots of process `pid` into `store`. The process is not touched yet.
    pub fn attach(pid: i32, store: Store, options: Options) -> Result<Checkpointer, AttachError> {
        let examined = examine(pid)?;
        let backend = choose_backend(options.backend)?;
        let claim = claim(pid)?;
        let lock = store.lock()?;
        let names = match options.tree {
            true => MemberNames::in_tree(pid),
            false => MemberNames::alone(),
        };
        let mut named = Member::new(examined, names)?;
        named.claim = claim;
        let mut checkpointer = Checkpointer {
            members: vec![named],
            last: None,
            files: Files::new(!options.store_files),
            arena: Arena::new(SIZE, options.buffer_bytes),
            why_full: None,
            store,
            lock,
            options,
            backend,
        };
        checkpointer.find_parent()?;
        checkpointer.recall_members();
        Ok(checkpointer)
    }

    /// Who is checkpointed: the process that was named.
    pub fn identity(&self) -> &ProcessIdentity {
        self.members[0].identity()
    }

    /// All processes that are checkpointed, as far as they were found.
    pub fn identities(&self) -> impl Iterator<Item = &ProcessIdentity> {
        self.members.iter().map(Member::identity)
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

    /// Why the snapshot that was just taken is full.
    pub(crate) fn explain_full(&mut self, request: Request, id: SnapshotId) -> &'static str {
        match self.why_full.take() {
            _ if request.full => "it was asked for",
            Some(why) => why,
            None if id == SnapshotId(1) => "it is the first of this store",
            None => {
                "what the process has written since the last snapshot is not known: nothing tracked it"
            }
        }
    }

    /// Finds the snapshot to go on from, as the process that was named has it.
    fn find_parent(&mut self) -> Result<(), AttachError> {
        let named = &mut self.members[0];
        if self.backend == Backend::Rehash {
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
            named.memo = view.as_ref().and_then(|view| named.memo_in(view));
            self.last = view.filter(|_| named.memo.is_some());
            return Ok(());
        }
        let limit = page_table_limit::of(named.pid(), self.options.page_table_limit);
        let (store, backend) = (self.store.id(), self.backend);
        named.tracking = Tracking::find(named.identity(), store, backend, limit)?;
        if named.tracking.is_none()
            && self.options.backend.is_none()
            && Freezer::of_process(named.pid()).is_some()
        {
            // It runs no call by which tracking could begin.
            self.backend = Backend::Rehash;
            return self.find_parent();
        }
        match named.phase() {
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
                named.memo = same.as_ref().and_then(|view| named.memo_by_mark(view));
                self.last = same.filter(|_| named.memo.is_some());
                if self.last.is_none() {
                    self.why_full = Some("the snapshot that tracking counts from is gone");
                }
            }
        }
        Ok(())
    }

    /// What is known of a member that was just found, from the snapshot to go on from.
    pub(crate) fn recall(&self, member: &mut Member) -> Result<(), AttachError> {
        if self.backend == Backend::Rehash {
            member.memo = self.last.as_ref().and_then(|view| member.memo_in(view));
            return Ok(());
        }
        let limit = page_table_limit::of(member.pid(), self.options.page_table_limit);
        let (store, backend) = (self.store.id(), self.backend);
        member.tracking = Tracking::find(member.identity(), store, backend, limit)?;
        if let (Some(view), Some(Phase::Committed(id, hash))) = (&self.last, member.phase())
            && (view.id(), view.info().content_hash) == (id, hash)
        {
            member.memo = member.memo_by_mark(view);
        }
        Ok(())
    }

    /// Takes a snapshot: a delta if it is known what was written since the last one, else full.
    ///
    /// Whatever goes wrong, the processes run on, the store stays as it was, and what was harvested
    /// counts as written again.
    pub fn take(&mut self, request: Request) -> Result<Report, TakeError> {
        let started = Instant::now();
        let (mut followed, mut passed) = (0, 0);
        loop {
            match self.try_take(request, started) {
                Err(error) if error.is_space_gone() && followed < PROGRAMS_FOLLOWED => {
                    followed += usize::from(self.has_lost_the_named());
                    self.follow(error)?;
                }
                Err(error) if error.may_be_of_a_child() && self.lost_a_child() => {
                    tracing::debug!(%error, "a child has ended meanwhile, or runs another program");
                }
                outcome => return outcome,
            }
            passed += 1;
            if passed == CHILDREN_PASSED {
                return self.try_take(request, started);
            }
        }
    }

    /// True if the process that was named has left its address space.
    fn has_lost_the_named(&self) -> bool {
        !self.members[0].space.pagemap.is_alive()
    }

    /// Goes on with the new address spaces of processes whose old ones are gone, because they executed
    /// another program; an error if the one that was named has ended. A process that is just ending has
    /// neither for a while.
    fn follow(&mut self, error: TakeError) -> Result<(), TakeError> {
        let deadline = Instant::now() + self.options.stop_timeout;
        let lost = |member: &Member| !member.space.pagemap.is_alive();
        // An address space that others share lives on when one of them leaves it.
        let unsure = !self.members.iter().any(lost);
        for number in 0..self.members.len() {
            if !unsure && !lost(&self.members[number]) {
                continue;
            }
            loop {
                let member = &mut self.members[number];
                let pid = member.pid();
                if !member.identity().is_alive_and_same() {
                    match number {
                        0 => return Err(TakeError::Ended { pid }),
                        _ => break,
                    }
                }
                if let Ok(space) = AddressSpace::open(pid)
                    && space.pagemap.is_alive()
                {
                    member.forget();
                    member.space = space;
                    if number == 0 {
                        self.last = None;
                        self.why_full = Some("the process executed a new program");
                    }
                    break;
                }
                if Instant::now() > deadline {
                    return Err(error);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    /// Begins tracking where it has not begun: a short stop of its own.
    pub(crate) fn begin_tracking(&mut self) -> Result<Duration, TakeError> {
        let mut stopped_for = Duration::ZERO;
        let options = self.stop_options();
        for (number, member) in self.members.iter_mut().enumerate() {
            if self.backend == Backend::Rehash || member.tracking.is_some() {
                continue;
            }
            let mut stopped = match StoppedProcess::stop(member.identity(), options) {
                // It is found to have ended, or what it has become, when all are stopped.
                Err(_) if number > 0 => continue,
                other => other?,
            };
            let store = &self.store;
            let begun = member.begin_tracking(&mut stopped, self.backend, &self.options, store);
            let since = stopped.since();
            let resumed = stopped.resume();
            stopped_for += since.elapsed();
            member.unless_lost(begun)?;
            member.unless_lost(resumed)?;
            if number == 0 {
                self.last = None;
            }
        }
        Ok(stopped_for)
    }

    pub(crate) fn stop_options(&self) -> StopOptions {
        StopOptions::with_timeout(self.options.stop_timeout)
    }
}

impl Member {
    /// Begins tracking the stopped process if it has not begun. What was remembered of it counts no more. One that is
    /// frozen is compared, unless tracking was asked for by name.
    pub(crate) fn begin_tracking(
        &mut self,
        stopped: &mut StoppedProcess,
        backend: Backend,
        options: &Options,
        store: &Store,
    ) -> Result<(), TakeError> {
        let is_compared = options.backend.is_none() && stopped.freezer().is_some();
        if backend == Backend::Rehash || self.tracking.is_some() || is_compared {
            return Ok(());
        }
        let stays = options.residence == Residence::Target;
        let limit = page_table_limit::of(self.pid(), options.page_table_limit);
        let begun = Tracking::begin(stopped, self.identity(), backend, store.id(), stays, limit);
        let mut begun = begun?;
        begun.name_place(store);
        self.tracking = Some(begun);
        self.memo = None;
        Ok(())
    }
}
