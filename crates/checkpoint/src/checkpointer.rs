//! Checkpoints of a process, or of a tree of processes, into one store: which snapshot is gone on from, and when one that failed
//! is tried again. What takes a snapshot is in `take`, who is checkpointed in `members`.

use crate::arena::Arena;
use crate::backends::choose_backend;
use crate::capture::SIZE;
use crate::claim::claim;
use crate::error::{AttachError, TakeError};
use crate::files::Files;
use crate::manifest::MemberNames;
use crate::mark::Phase;
use crate::member::Member;
use crate::members::Members;
use crate::options::{Options, Request, Residence};
use crate::report::Report;
use crate::shadowing;
use crate::take::Take;
use crate::tracking::TrackedBy;
use crate::why_full::WhyFull;
use pagetide_process::{Freezer, ProcessIdentity, StopOptions, examine};
use pagetide_snapshot::{Keep, PruneError, Pruned, ReadError, Store, WriterLock};
use pagetide_tracker::Backend;
use std::time::Instant;

/// So many programs that the named process executes one after another are followed within one snapshot.
const PROGRAMS_FOLLOWED: usize = 3;
/// So often a snapshot is begun anew because a child of a tree ended or executed a program meanwhile.
const CHILDREN_PASSED: usize = 50;

/// Takes snapshots of a process or a tree of processes into one store. Holds the store's writer lock.
pub struct Checkpointer {
    members: Members,
    store: Store,
    lock: WriterLock,
    options: Options,
    files: Files,
    arena: Arena,
}

impl Checkpointer {
    /// Makes ready to take snapshots of process `pid` into `store`. The process is not touched yet.
    pub fn attach(pid: i32, store: Store, mut options: Options) -> Result<Self, AttachError> {
        shadowing::begin(&mut options);
        let examined = examine(pid)?;
        let backend = choose_backend(options.backend)?;
        let claim = claim(pid)?;
        let lock = store.lock()?;
        let names = if options.tree {
            MemberNames::in_tree(pid)
        } else {
            MemberNames::alone()
        };
        let tracked_by = (backend != Backend::Rehash).then(|| TrackedBy {
            backend,
            store: store.clone(),
            stays: options.residence == Residence::Target,
            is_asked_for: options.backend.is_some(),
            page_table_limit: options.page_table_limit,
        });
        let mut named = Member::new(examined, names)?;
        named.claim = claim;
        let stop = StopOptions::with_timeout(options.stop_timeout);
        let mut checkpointer = Self {
            members: Members::new(named, options.tree, stop, tracked_by),
            files: Files::new(!options.store_files),
            arena: Arena::new(SIZE, options.buffer_bytes),
            store,
            lock,
            options,
        };
        checkpointer.find_parent()?;
        checkpointer.members.recall_adopted();
        Ok(checkpointer)
    }

    /// Who is checkpointed: the process that was named.
    pub fn identity(&self) -> &ProcessIdentity {
        self.members.named().identity()
    }

    /// All processes that are checkpointed, as far as they were found.
    pub fn identities(&self) -> impl Iterator<Item = &ProcessIdentity> {
        self.members.list().iter().map(Member::identity)
    }

    /// How written pages are found.
    pub fn backend(&self) -> Backend {
        self.members.backend()
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// True if a next snapshot can be a delta.
    pub fn has_snapshot(&self) -> bool {
        self.members.last.is_some()
    }

    /// Finds the snapshot to go on from, as the process that was named has it.
    fn find_parent(&mut self) -> Result<(), AttachError> {
        let Some(tracked_by) = self.members.tracked_by.clone() else {
            return self.find_parent_to_compare_with();
        };
        let named = self.members.named_mut();
        named.find_tracking(&tracked_by)?;
        if named.tracking.is_none()
            && !tracked_by.is_asked_for
            && Freezer::of_process(named.pid()).is_some()
        {
            // It runs no call by which tracking could begin.
            self.members.tracked_by = None;
            return self.find_parent_to_compare_with();
        }
        match named.phase() {
            None => {}
            Some(Phase::Armed) => {
                self.members.why_full = Some(WhyFull::NoneSinceTracking);
            }
            Some(Phase::Harvesting) => {
                self.members.why_full = Some(WhyFull::Interrupted);
            }
            Some(Phase::Committed(id, hash)) => {
                let view = self.store.view(id).ok();
                let same = view.filter(|view| view.info().content_hash == hash);
                named.memo = same.as_ref().and_then(|view| named.memo_by_mark(view));
                let is_known = named.memo.is_some();
                self.members.last = same.filter(|_| is_known);
                if !is_known {
                    self.members.why_full = Some(WhyFull::ParentGone);
                }
            }
        }
        Ok(())
    }

    /// Where contents are compared, any snapshot of this process will do as a parent.
    fn find_parent_to_compare_with(&mut self) -> Result<(), AttachError> {
        let newest = self.store.newest()?.map(|info| self.store.view(info.id));
        let view = match newest.transpose() {
            Err(error @ ReadError::Io { .. }) => return Err(error.into()),
            Err(_) => {
                self.members.why_full = Some(WhyFull::ParentUnreadable);
                None
            }
            Ok(view) => view,
        };
        let named = self.members.named_mut();
        named.memo = view.as_ref().and_then(|view| named.memo_in(view));
        let is_known = named.memo.is_some();
        self.members.last = view.filter(|_| is_known);
        Ok(())
    }

    /// Takes a snapshot: a delta if it is known what was written since the last one, else full.
    ///
    /// Whatever goes wrong, the processes run on, the store stays as it was, and what was harvested
    /// counts as written again.
    pub fn take(&mut self, request: Request) -> Result<Report, TakeError> {
        let started = Instant::now();
        let (mut followed, mut passed) = (0, 0);
        let members = self.members.list().iter();
        shadowing::fit(&self.options, members.map(Member::pid));
        loop {
            match self.try_take(request, started) {
                Err(error) if error.is_space_gone() && followed < PROGRAMS_FOLLOWED => {
                    followed += usize::from(self.members.has_lost_the_named());
                    self.members.follow(error)?;
                }
                Err(error) if error.may_be_of_a_child() && self.members.lost_a_child() => {
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

    /// Prunes the store, between two snapshots. The next one is a delta all the same.
    ///
    /// # Errors
    /// As [`Store::prune`]: then what was to stay is there, and more.
    pub fn prune(&mut self, keep: &Keep) -> Result<Pruned, PruneError> {
        let pruned = self.store.prune(keep, false)?;
        // Found anew it comes from fewer files. If that fails, the old one still knows all pages.
        let last = self.members.last.as_ref();
        if let Some(Ok(last)) = last.map(|last| self.store.view(last.id())) {
            self.members.last = Some(last);
        }
        Ok(pruned)
    }

    fn try_take(&mut self, request: Request, started: Instant) -> Result<Report, TakeError> {
        let take = Take {
            members: &mut self.members,
            store: &self.store,
            lock: &self.lock,
            options: &self.options,
            files: &mut self.files,
            arena: &mut self.arena,
        };
        take.run(request, started)
    }
}
