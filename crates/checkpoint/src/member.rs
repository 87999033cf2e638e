//! One process under checkpoint, with what is known of it from one snapshot to the next. A checkpoint of
//! a process tree has several.

use crate::address_space::AddressSpace;
use crate::advice::LastLook;
use crate::capture::CaptureError;
use crate::claim::Claim;
use crate::error::{AttachError, TakeError, TrackingError};
use crate::files::Files;
use crate::growth;
use crate::layout::{Layout, Tracked};
use crate::manifest::MemberNames;
use crate::mark::Phase;
use crate::memo::Memo;
use crate::page_table_limit;
use crate::page_tables::Private;
use crate::probes::Process;
use crate::rings::{self, AsynchronousIo, Depth};
use crate::tracking::{TrackedBy, Tracking};
use pagetide_kernel::kcmp;
use pagetide_kernel::maps::{self, Mapping};
use pagetide_kernel::pagemap_scan::Categories;
use pagetide_kernel::pidfd::PidFd;
use pagetide_pages::{PageRange, PageSet};
use pagetide_process::{
    Examined, OutsideState, ProcessIdentity, ProcessState, StoppedProcess, start_of_stack,
};
use pagetide_snapshot::View;
use pagetide_tracker::{Backend, Harvest, TrackError};
use std::sync::Arc;
use std::time::Duration;

/// By what the end of a process is seen.
pub(crate) struct Ending<'a> {
    pidfd: Option<&'a PidFd>,
    identity: &'a ProcessIdentity,
}

impl<'a> Ending<'a> {
    fn of(pidfd: Option<&'a PidFd>, identity: &'a ProcessIdentity) -> Self {
        Ending { pidfd, identity }
    }

    pub fn has_come(&self) -> bool {
        let ended = |pidfd: &PidFd| pidfd.wait_for_end(Duration::ZERO).ok();
        let ended = self.pidfd.and_then(ended);
        ended.unwrap_or_else(|| !self.identity.is_alive_and_same())
    }
}

/// See the head of this file.
pub(crate) struct Member {
    pub examined: Examined,
    /// Nobody else takes checkpoints of it as long as this is held.
    pub claim: Option<Claim>,
    pub names: MemberNames,
    pub space: AddressSpace,
    pub tracking: Option<Tracking>,
    /// What the last snapshot of the chain remembers of this process. Without it nothing is known, and
    /// all of it is copied.
    pub memo: Option<Memo>,
    /// What was read last of the advice of its mappings.
    pub last_look: LastLook,
    /// How many mappings a process may have, as was read before the last stop.
    pub most_mappings: u64,
    /// At the last stop a thread said that it has used io_uring.
    pub uses_rings: bool,
    /// What /proc says of it, read for the snapshot under way.
    pub outside: Option<OutsideState>,
    /// The process itself: its end is seen by this for sure, and signals reach no other. `None` if it ended before it could be
    /// held.
    pidfd: Option<Arc<PidFd>>,
    /// Its end is no failure: it was not named but found, or it is only looked at.
    may_be_lost: bool,
    /// Its address space was that of its parent when it was opened. Such a space outlives an execve(2) of
    /// the child, and then nothing tells that it is not the child's any more.
    shares_space: bool,
}

impl Member {
    /// The process that was named.
    pub fn new(examined: Examined, names: MemberNames) -> Result<Self, AttachError> {
        Ok(Self {
            space: AddressSpace::open(examined.identity.pid)?,
            pidfd: examined.identity.hold().ok().map(Arc::new),
            examined,
            claim: None,
            names,
            tracking: None,
            memo: None,
            last_look: LastLook::default(),
            most_mappings: growth::most_mappings(),
            uses_rings: false,
            outside: None,
            may_be_lost: false,
            shares_space: false,
        })
    }

    /// A process that was named, but is only looked at.
    pub fn to_look_at(examined: Examined, names: MemberNames) -> Result<Self, AttachError> {
        let mut member = Self::new(examined, names)?;
        member.may_be_lost = true;
        Ok(member)
    }

    /// A child of process `parent`.
    pub fn child(examined: Examined, parent: i32) -> Result<Self, AttachError> {
        let pid = examined.identity.pid;
        let mut child = Self::new(examined, MemberNames::in_tree(pid))?;
        child.may_be_lost = true;
        child.shares_space = kcmp::share_address_space(pid, parent).unwrap_or(false);
        Ok(child)
    }

    /// By what its end is seen.
    pub fn ending(&self) -> Ending<'_> {
        Ending::of(self.pidfd.as_deref(), self.identity())
    }

    /// The process itself, to send it signals when time has passed.
    pub fn held(&self) -> Option<Arc<PidFd>> {
        self.pidfd.clone()
    }

    /// True if it has ended, reaped or not.
    pub fn has_ended(&self) -> bool {
        self.ending().has_come()
    }

    /// True if its end is no failure.
    pub fn may_be_lost(&self) -> bool {
        self.may_be_lost
    }

    /// True if its address space may be that of its parent.
    pub fn shares_space(&self) -> bool {
        self.shares_space
    }

    /// True if nothing is known of the address space that this child has now.
    pub fn has_lost_its_space(&self) -> bool {
        self.may_be_lost && (self.shares_space || !self.space.pagemap.is_alive())
    }

    /// Goes on with the address space that the stopped child has now.
    pub fn reopen(&mut self, parent: Option<i32>) -> Result<(), AttachError> {
        let pid = self.pid();
        self.forget();
        self.space = AddressSpace::open(pid)?;
        self.shares_space =
            parent.is_some_and(|parent| kcmp::share_address_space(pid, parent).unwrap_or(false));
        Ok(())
    }

    /// What was made ready for the stop; nothing if this child has ended meanwhile, or runs another program.
    pub fn unless_lost<T: Default, E>(&self, ready: Result<T, E>) -> Result<T, E> {
        let is_lost =
            || self.has_ended() || self.has_lost_its_space() || self.runs_another_program();
        match ready {
            Err(_) if self.may_be_lost && is_lost() => Ok(T::default()),
            other => other,
        }
    }

    /// The address space of a program that is over may live on for a moment, if somebody just looks at it.
    fn runs_another_program(&self) -> bool {
        start_of_stack(self.pid()) != self.space.start_of_stack
    }

    pub fn identity(&self) -> &ProcessIdentity {
        &self.examined.identity
    }

    pub fn pid(&self) -> i32 {
        self.examined.identity.pid
    }

    /// What `view` remembers of this process; `None` if it is not in there.
    pub fn memo_in(&self, view: &View) -> Option<Memo> {
        let state = view.attachment(&self.names.process)?;
        let state = ProcessState::from_bytes(state).ok()?;
        if state.outside.identity == *self.identity() {
            self.memo_by_mark(view)
        } else {
            None
        }
    }

    /// The same where the mark in the process says that its bits count from `view`: it may have been restored
    /// from it, and is another process then than the one that `view` speaks of.
    pub fn memo_by_mark(&self, view: &View) -> Option<Memo> {
        view.space_index(&self.names.space)?;
        Memo::from_bytes(view.attachment(&self.names.memo)?)
    }

    /// Nothing that was known of the address space holds any more.
    pub fn forget(&mut self) {
        self.tracking = None;
        self.memo = None;
        self.outside = None;
        self.last_look = LastLook::default();
        self.uses_rings = false;
    }

    /// True if what is written while a harvest is under way may be lost.
    pub fn needs_stop(&self) -> bool {
        let tracking = self.tracking.as_ref();
        tracking.is_some_and(|tracking| tracking.tracker.needs_stop())
    }

    /// The asynchronous I/O of this process, whose mappings are these.
    pub fn asynchronous_io(&self, mappings: &[Mapping]) -> AsynchronousIo {
        let depth = if self.uses_rings {
            Depth::Elsewhere
        } else {
            Depth::BufferRings
        };
        rings::asynchronous_io(self.pid(), mappings, depth)
    }

    /// How far the mark in the process says we are; `None` without one.
    pub fn phase(&self) -> Option<Phase> {
        let mark = self.tracking.as_ref()?.mark.as_ref()?;
        Some(mark.content().phase)
    }

    /// The descriptor of the userfaultfd by which it is tracked, if that stays in it.
    pub fn own_userfaultfd(&self) -> Option<i32> {
        let mark = self.tracking.as_ref()?.mark.as_ref()?;
        Some(mark.content().uffd_number)
    }

    /// Says in the process how far we are, if its tracking lives there.
    pub fn set_phase(&mut self, phase: Phase) -> Result<(), TakeError> {
        let pid = self.pid();
        let tracking = self.tracking.as_mut();
        match tracking.map(|tracking| tracking.set_phase(phase)) {
            Some(Err(source)) => Err(TrackingError::Mark { pid, source }.into()),
            _ => Ok(()),
        }
    }

    /// Finds the tracking that an earlier run left in the process.
    pub fn find_tracking(&mut self, by: &TrackedBy) -> Result<(), TrackingError> {
        let limit = page_table_limit::of(self.pid(), by.page_table_limit);
        self.tracking = Tracking::find(self.identity(), by.store.id(), by.backend, limit)?;
        Ok(())
    }

    /// Begins tracking the stopped process if it has not begun. What was remembered of it counts no more. One that is
    /// frozen is compared, unless tracking was asked for by name.
    pub fn begin_tracking(
        &mut self,
        stopped: &mut StoppedProcess,
        by: &TrackedBy,
    ) -> Result<(), TrackingError> {
        let is_compared = !by.is_asked_for && stopped.freezer().is_some();
        if self.tracking.is_some() || is_compared {
            return Ok(());
        }
        let limit = page_table_limit::of(self.pid(), by.page_table_limit);
        let (backend, store) = (by.backend, by.store.id());
        let begun = Tracking::begin(stopped, self.identity(), backend, store, by.stays, limit);
        let mut begun = begun?;
        begun.name_place(&by.store);
        self.tracking = Some(begun);
        self.memo = None;
        Ok(())
    }

    /// Ends what earlier snapshots have marked: the process is not to see it.
    pub fn take_marks_back(&mut self, mappings: &[Mapping]) -> Result<(), TrackError> {
        let Some(tracking) = self.tracking.as_mut() else {
            return Ok(());
        };
        let private = mappings.iter().filter(|mapping| !mapping.shared);
        let private: Vec<PageRange> = private.map(Mapping::pages).collect();
        tracking.tracker.release(&private)
    }

    /// Takes what was written of what is tracked. New memory is left to be compared where a mapping more would be too much for it.
    pub fn harvest(&mut self, layout: &Layout) -> Result<Option<Harvest>, TrackError> {
        let Some(tracking) = self.tracking.as_mut() else {
            return Ok(None);
        };
        let mappings = &layout.mappings;
        let are_many = growth::are_many(mappings.len(), self.most_mappings);
        let leave = |fresh: &PageSet| {
            if are_many {
                fresh.clone()
            } else {
                growth::not_worth_a_mapping(mappings, fresh)
            }
        };
        let harvest = tracking.tracker.harvest_but(&layout.tracked, &leave)?;
        Ok(Some(harvest))
    }

    /// The mappings as they are now. Without a tracker, or if its word is not enough, all are compared.
    pub fn layout(
        &self,
        trusts_tracker: bool,
        is_object: impl Fn(&Mapping) -> bool,
    ) -> Result<Layout, TakeError> {
        let pid = self.pid();
        let mappings = maps::mappings(pid)?;
        if mappings.is_empty() {
            // Ended, or just executing another program.
            return Err(TrackError::SpaceGone.into());
        }
        Ok(self.layout_of(mappings, trusts_tracker, is_object))
    }

    /// The same for mappings that were read already.
    pub fn layout_of(
        &self,
        mappings: Vec<Mapping>,
        trusts_tracker: bool,
        is_object: impl Fn(&Mapping) -> bool,
    ) -> Layout {
        let holds = |pages| {
            let mut holds = false;
            let any_of = Categories::PRESENT | Categories::SWAPPED;
            let tables = self.space.page_tables();
            let scanned = tables.scan(pages, any_of, Categories::empty(), |_, _| holds = true);
            holds || scanned.is_err()
        };
        let backend = self.tracking.as_ref().filter(|_| trusts_tracker);
        let tracked = match backend.map(|tracking| tracking.tracker.backend()) {
            None => Tracked::Nothing,
            Some(Backend::WpAsync) => Tracked::Reservations,
            Some(_) => Tracked::Content,
        };
        Layout::new(mappings, tracked, holds, is_object)
    }

    /// What is remembered from the parent.
    pub fn memo_of(&self, parent: Option<&View>) -> Option<&Memo> {
        self.memo.as_ref().filter(|_| parent.is_some())
    }

    /// What the page tables say of `over_file` (private mappings of files). A slot that is neither in memory
    /// nor a guard is taken for a copy: it may be one in swap.
    pub fn private_pages(&self, over_file: &PageSet) -> Result<Private, TakeError> {
        let tables = self.space.page_tables();
        Ok(tables
            .private_pages(over_file)
            .map_err(CaptureError::from)?)
    }

    /// As one that may have probes in it.
    pub fn as_probed<'a>(&'a self, mappings: &'a [Mapping], files: &'a Files) -> Process<'a> {
        Process {
            pid: self.pid(),
            memory: &self.space.memory,
            tables: self.space.page_tables(),
            mappings,
            files,
        }
    }
}
