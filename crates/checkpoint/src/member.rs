//! One process under checkpoint, with what is known of it from one snapshot to the next. A checkpoint of
//! a process tree has several.

use crate::advice::LastLook;
use crate::checkpointer::{self, AttachError};
use crate::claim::Claim;
use crate::growth;
use crate::mark::Phase;
use crate::memo::{self, Memo};
use crate::numa;
use crate::page_tables::PageTables;
use crate::rings::{self, AsynchronousIo, Depth};
use crate::take::TakeError;
use crate::tracking::{Tracking, TrackingError};
use pagetide_kernel::kcmp;
use pagetide_kernel::maps::Mapping;
use pagetide_kernel::memory::ProcessMemory;
use pagetide_kernel::pagemap_scan::{Categories, Pagemap};
use pagetide_kernel::pidfd::PidFd;
use pagetide_kernel::probe;
use pagetide_process::{
    Examined, KERNEL_STATE_ATTACHMENT, OutsideState, ProcessIdentity, ProcessState, start_of_stack,
};
use pagetide_snapshot::View;
use std::sync::Arc;
use std::time::Duration;

/// The name of the space that holds a process's memory by virtual address, if it is checkpointed alone.
pub const MEMORY_SPACE: &str = "mem";
/// The name of the attachment that holds its registers and the like, if it is checkpointed alone.
pub const PROCESS_ATTACHMENT: &str = "process";

/// What the parts of one process are called in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberNames {
    /// The space with its memory.
    pub space: String,
    /// The attachment with its registers and the like.
    pub process: String,
    /// The attachment that says on which NUMA nodes its memory lay.
    pub numa: String,
    /// The attachment with what the kernel keeps for it.
    pub kernel: String,
    pub(crate) memo: String,
}

impl MemberNames {
    /// The names for a process that is checkpointed alone.
    pub fn alone() -> MemberNames {
        MemberNames {
            space: MEMORY_SPACE.to_owned(),
            process: PROCESS_ATTACHMENT.to_owned(),
            numa: numa::ATTACHMENT.to_owned(),
            kernel: KERNEL_STATE_ATTACHMENT.to_owned(),
            memo: memo::ATTACHMENT.to_owned(),
        }
    }

    /// The names for process `pid` of a tree.
    pub fn in_tree(pid: i32) -> MemberNames {
        let alone = MemberNames::alone();
        MemberNames {
            space: format!("{}:{pid}", alone.space),
            process: format!("{}:{pid}", alone.process),
            numa: format!("{}:{pid}", alone.numa),
            kernel: format!("{}:{pid}", alone.kernel),
            memo: format!("{}:{pid}", alone.memo),
        }
    }
}

/// Open files that stay bound to one address space.
pub(crate) struct AddressSpace {
    pub memory: ProcessMemory,
    pub pagemap: Pagemap,
    pub knows_guards: bool,
    /// Of the program that ran when it was opened.
    start_of_stack: Option<u64>,
}

impl AddressSpace {
    /// What its page tables say.
    pub fn page_tables(&self) -> PageTables<'_> {
        PageTables {
            pagemap: &self.pagemap,
            knows_guards: self.knows_guards,
        }
    }

    pub fn open(pid: i32) -> Result<AddressSpace, AttachError> {
        Ok(AddressSpace {
            start_of_stack: start_of_stack(pid),
            memory: ProcessMemory::open(pid)?,
            pagemap: Pagemap::of_process(pid)?,
            knows_guards: probe::known_categories().contains(Categories::GUARD),
        })
    }
}

/// By what the end of a process is seen.
pub(crate) struct Ending<'a> {
    pidfd: Option<&'a PidFd>,
    identity: &'a ProcessIdentity,
}

impl<'a> Ending<'a> {
    pub fn of(pidfd: Option<&'a PidFd>, identity: &'a ProcessIdentity) -> Ending<'a> {
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
    /// It was not named but found, so it may be lost.
    is_child: bool,
    /// Its address space was that of its parent when it was opened. Such a space outlives an execve(2) of
    /// the child, and then nothing tells that it is not the child's any more.
    shares_space: bool,
}

impl Member {
    /// The process that was named.
    pub fn new(examined: Examined, names: MemberNames) -> Result<Member, AttachError> {
        Ok(Member {
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
            is_child: false,
            shares_space: false,
        })
    }

    /// A child of process `parent`.
    pub fn child(examined: Examined, parent: i32) -> Result<Member, AttachError> {
        let pid = examined.identity.pid;
        let mut child = Member::new(examined, MemberNames::in_tree(pid))?;
        child.claim = checkpointer::claim(pid)?;
        child.is_child = true;
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

    /// True if it was not named but found.
    pub fn is_child(&self) -> bool {
        self.is_child
    }

    /// True if its address space may be that of its parent.
    pub fn shares_space(&self) -> bool {
        self.shares_space
    }

    /// True if nothing is known of the address space that this child has now.
    pub fn has_lost_its_space(&self) -> bool {
        self.is_child && (self.shares_space || !self.space.pagemap.is_alive())
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
            Err(_) if self.is_child && is_lost() => Ok(T::default()),
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
        match state.outside.identity == *self.identity() {
            true => self.memo_by_mark(view),
            false => None,
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
        let depth = match self.uses_rings {
            true => Depth::Elsewhere,
            false => Depth::BufferRings,
        };
        rings::asynchronous_io(self.pid(), mappings, depth)
    }

    /// How far the mark in the process says we are; `None` without one.
    pub fn phase(&self) -> Option<Phase> {
        let mark = self.tracking.as_ref()?.mark.as_ref()?;
        Some(mark.content().phase)
    }

    /// The number of the userfaultfd by which it is tracked, if that stays in it.
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
}
