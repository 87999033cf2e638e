//! The members of a checkpoint: found, recalled from the last snapshot, stopped together, and let go. What is copied of
//! them while they stand is not known here.

use crate::address_space::AddressSpace;
use crate::claim::claim;
use crate::error::{AttachError, MembersError, TakeError, TrackingError};
use crate::family::{children, exit_status_of, has_ended, parent_of};
use crate::manifest::{MemberNames, TreeProcess, tree_of};
use crate::mark::Phase;
use crate::member::{Ending, Member};
use crate::tracking::TrackedBy;
use crate::watchers::{self, Watched};
use crate::why_full::WhyFull;
use pagetide_process::{
    ProcessIdentity, ProcessState, RefusalError, ResumeError, StopError, StopOptions,
    StoppedProcess, examine,
};
use pagetide_snapshot::View;
use pagetide_tracker::Backend;
use std::path::Path;
use std::time::{Duration, Instant};

/// True for what is found of a process that is about to end and holds nothing any more, or that is just
/// executing a program: its first thread may be seen to have ended then. Or we have just stopped its parent, and
/// trace it from its birth until that is noticed.
fn is_passing(error: &AttachError) -> bool {
    match error {
        AttachError::Refused(RefusalError::AlreadyTraced { tracer, .. }) => {
            Path::new(&format!("/proc/self/task/{tracer}")).exists()
        }
        AttachError::Refused(
            RefusalError::NoPrivilege { .. }
            | RefusalError::ThirtyTwoBit { .. }
            | RefusalError::Frozen { .. }
            | RefusalError::Itself { .. },
        )
        | AttachError::Busy { .. }
        | AttachError::Tracking(TrackingError::OwnedByAnother { .. }) => false,
        _ => true,
    }
}

/// Looks at a child until it is seen as it is; nothing if it has ended.
fn when_settled<T>(
    pid: i32,
    patience: Duration,
    mut look: impl FnMut() -> Result<T, AttachError>,
) -> Result<Option<T>, AttachError> {
    let deadline = Instant::now() + patience;
    loop {
        match look() {
            Ok(seen) => return Ok(Some(seen)),
            Err(_) if has_ended(pid) => return Ok(None),
            Err(error) if is_passing(&error) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_micros(100));
            }
            Err(error) => return Err(error),
        }
    }
}

/// The stopped processes, in the order of the members; `None` for one that has ended.
pub(crate) type AllStopped = Vec<Option<StoppedProcess>>;

/// So often a member that executes programs while it is stopped is stopped again.
const STOPS: usize = 20;
/// So many processes are stopped at a time.
const STOPPED_AT_ONCE: usize = 64;

/// A member about to be stopped, without what cannot go to another thread.
struct Stop<'a> {
    identity: &'a ProcessIdentity,
    end: Ending<'a>,
    /// Its end is no failure.
    may_be_lost: bool,
}

impl Stop<'_> {
    fn of(member: &Member) -> Stop<'_> {
        Stop {
            identity: member.identity(),
            end: member.ending(),
            may_be_lost: member.may_be_lost(),
        }
    }

    /// Stops it; nothing if it has ended and may be lost.
    fn run(&self, options: StopOptions) -> Result<Option<StoppedProcess>, StopError> {
        for stop in 1.. {
            if self.may_be_lost && self.end.has_come() {
                break;
            }
            match StoppedProcess::stop(self.identity, options) {
                Ok(process) => return Ok(Some(process)),
                Err(StopError::Exec { .. }) if self.may_be_lost && stop < STOPS => {}
                Err(
                    StopError::Gone { .. } | StopError::Exited { .. } | StopError::Killed { .. },
                ) if self.may_be_lost => break,
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// All processes of one checkpoint: the one that was named, then its children if they belong to the checkpoint.
pub(crate) struct Members {
    list: Vec<Member>,
    tree: bool,
    /// Nobody else takes checkpoints of them meanwhile; not needed for a look.
    claims: bool,
    stop: StopOptions,
    /// How written pages of them are found; `None` if what they have is compared.
    pub tracked_by: Option<TrackedBy>,
    /// The snapshot from which the next delta counts.
    pub last: Option<View>,
    /// Why there is none, if there could have been.
    pub why_full: Option<WhyFull>,
}

impl Members {
    /// The process that was named, and nothing known of it yet. With `tree` its children are members, too.
    pub fn new(
        named: Member,
        tree: bool,
        stop: StopOptions,
        tracked_by: Option<TrackedBy>,
    ) -> Self {
        Self {
            list: vec![named],
            tree,
            claims: true,
            stop,
            tracked_by,
            last: None,
            why_full: None,
        }
    }

    /// The same processes, which are only looked at.
    pub fn to_look_at(named: Member, tree: bool, stop: StopOptions) -> Self {
        Self {
            claims: false,
            ..Self::new(named, tree, stop, None)
        }
    }

    /// How written pages of them are found.
    pub fn backend(&self) -> Backend {
        let tracked_by = self.tracked_by.as_ref();
        tracked_by.map_or(Backend::Rehash, |by| by.backend)
    }

    /// The process that was named.
    pub fn named(&self) -> &Member {
        &self.list[0]
    }

    pub fn named_mut(&mut self) -> &mut Member {
        &mut self.list[0]
    }

    /// All of them, in the order in which they were found.
    pub fn list(&self) -> &[Member] {
        &self.list
    }

    pub fn list_mut(&mut self) -> &mut [Member] {
        &mut self.list
    }

    /// What is known of a member that was just found, from the snapshot to go on from.
    fn recall(&self, member: &mut Member) -> Result<(), AttachError> {
        let Some(tracked_by) = &self.tracked_by else {
            member.memo = self.last.as_ref().and_then(|view| member.memo_in(view));
            return Ok(());
        };
        member.find_tracking(tracked_by)?;
        if let (Some(view), Some(Phase::Committed(id, hash))) = (&self.last, member.phase())
            && (view.id(), view.info().content_hash) == (id, hash)
        {
            member.memo = member.memo_by_mark(view);
        }
        Ok(())
    }

    /// Makes the children that are not known yet members. True if there were any.
    pub fn find(&mut self) -> Result<bool, MembersError> {
        if !self.tree {
            return Ok(false);
        }
        let before = self.list.len();
        let mut at = 0;
        while at < self.list.len() {
            let parent = self.list[at].pid();
            for pid in children(parent) {
                self.find_member(pid, parent)?;
            }
            at += 1;
        }
        Ok(self.list.len() > before)
    }

    fn find_member(&mut self, pid: i32, parent: i32) -> Result<(), MembersError> {
        if let Some(known) = self.list.iter().find(|member| member.pid() == pid) {
            let same = ProcessIdentity::of(pid).is_ok_and(|now| now == *known.identity());
            return if same {
                Ok(())
            } else {
                Err(MembersError::Stop {
                    pid,
                    source: StopError::Gone { pid },
                })
            };
        }
        let found = when_settled(pid, self.stop.timeout, || self.child(pid, parent));
        let member = found.map_err(|error| MembersError::of(pid, error))?;
        self.list.extend(member);
        Ok(())
    }

    fn child(&self, pid: i32, parent: i32) -> Result<Member, AttachError> {
        let mut member = Member::child(examine(pid)?, parent)?;
        if self.claims {
            member.claim = claim(pid)?;
        }
        self.recall(&mut member)?;
        Ok(member)
    }

    /// Makes those processes of the snapshot to go on from members that are children of others now,
    /// because their parents have ended.
    pub fn recall_adopted(&mut self) {
        let Some(view) = self.last.clone().filter(|_| self.tree) else {
            return;
        };
        for process in tree_of(&view).unwrap_or_default() {
            let names = MemberNames::in_tree(process.pid);
            let state = view.attachment(&names.process);
            let state = state.and_then(|bytes| ProcessState::from_bytes(bytes).ok());
            let identity = state.map(|state| state.outside.identity);
            let known = |member: &Member| member.pid() == process.pid;
            if !process.ended
                && !self.list.iter().any(known)
                && identity.is_some_and(|identity| identity.is_alive_and_same())
                && let Ok(member) = self.child(process.pid, process.parent)
            {
                self.list.push(member);
            }
        }
    }

    /// Lets go of the members that have ended, but for the one that was named.
    pub fn drop_ended(&mut self) {
        let mut first = true;
        self.list.retain(|member| {
            let named = std::mem::take(&mut first);
            named || !member.has_ended()
        });
    }

    /// True if a child has ended since those that have were let go, or runs another program than it did then.
    pub fn lost_a_child(&self) -> bool {
        let lost = |child: &Member| child.has_ended() || child.has_lost_its_space();
        self.list[1..].iter().any(lost)
    }

    /// True if the process that was named has left its address space.
    pub fn has_lost_the_named(&self) -> bool {
        !self.named().space.pagemap.is_alive()
    }

    /// Goes on with the new address spaces of processes whose old ones are gone, because they executed
    /// another program: `error` tells of that. An error if the one that was named has ended. A process that is just
    /// ending has neither for a while.
    pub fn follow(&mut self, error: TakeError) -> Result<(), TakeError> {
        let deadline = Instant::now() + self.stop.timeout;
        let lost = |member: &Member| !member.space.pagemap.is_alive();
        // An address space that others share lives on when one of them leaves it.
        let unsure = !self.list.iter().any(lost);
        for index in 0..self.list.len() {
            if !unsure && !lost(&self.list[index]) {
                continue;
            }
            loop {
                let member = &mut self.list[index];
                let pid = member.pid();
                if !member.identity().is_alive_and_same() {
                    match index {
                        0 => return Err(TakeError::Ended { pid }),
                        _ => break,
                    }
                }
                if let Ok(space) = AddressSpace::open(pid)
                    && space.pagemap.is_alive()
                {
                    member.forget();
                    member.space = space;
                    if index == 0 {
                        self.last = None;
                        self.why_full = Some(WhyFull::NewProgram);
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

    /// Begins tracking where it has not begun: a short stop of its own for each. Returns how long they stood.
    #[tracing::instrument(level = "debug", skip_all, name = "begin tracking")]
    pub fn begin_tracking(&mut self) -> Result<Duration, TakeError> {
        let mut stopped_for = Duration::ZERO;
        let Some(tracked_by) = &self.tracked_by else {
            return Ok(stopped_for);
        };
        for (index, member) in self.list.iter_mut().enumerate() {
            if member.tracking.is_some() {
                continue;
            }
            let mut stopped = match StoppedProcess::stop(member.identity(), self.stop) {
                // It is found to have ended, or what it has become, when all are stopped.
                Err(_) if index > 0 => continue,
                other => other?,
            };
            let begun = member.begin_tracking(&mut stopped, tracked_by);
            let since = stopped.since();
            let resumed = stopped.resume();
            stopped_for += since.elapsed();
            member.unless_lost(begun)?;
            member.unless_lost(resumed)?;
            if index == 0 {
                self.last = None;
            }
        }
        Ok(stopped_for)
    }

    /// Begins tracking of those among the stopped of which it has not begun.
    pub fn begin_tracking_of(&mut self, stopped: &mut AllStopped) -> Result<(), TrackingError> {
        let Some(tracked_by) = &self.tracked_by else {
            return Ok(());
        };
        for (member, process) in self.list.iter_mut().zip(stopped) {
            if let Some(process) = process {
                member.begin_tracking(process, tracked_by)?;
            }
        }
        Ok(())
    }

    /// Stops all members, parents before their children, and children that were born meanwhile. Also
    /// tells the indices of those that run another program than before.
    #[tracing::instrument(level = "debug", skip_all, name = "stop threads")]
    pub fn stop_all(&mut self) -> Result<(AllStopped, Vec<usize>), MembersError> {
        let mut stopped: AllStopped = Vec::with_capacity(self.list.len());
        let mut others = Vec::new();
        loop {
            let known = stopped.len();
            stopped.extend(self.stop_from(known)?);
            let members = self.list.iter_mut().zip(&stopped).enumerate();
            for (index, (member, process)) in members.skip(known) {
                if process.is_some() && member.has_lost_its_space() {
                    let pid = member.pid();
                    let parent = parent_of(pid).map(|(parent, _)| parent);
                    let reopened = member.reopen(parent);
                    reopened.map_err(|error| MembersError::of(pid, error))?;
                    others.push(index);
                }
            }
            if !self.find()? {
                return Ok((stopped, others));
            }
        }
    }

    /// Stops the members from index `first` on, many at a time: each has to be run by the kernel until it
    /// stands, and those that do wait for the others. A process in vfork(2) stands when its child has
    /// ended or runs a program, so children that may be its own are stopped last.
    fn stop_from(&self, first: usize) -> Result<AllStopped, MembersError> {
        let options = self.stop;
        let members = &self.list[first..];
        let mut stopped: AllStopped = members.iter().map(|_| None).collect();
        let (last, others): (Vec<usize>, Vec<usize>) =
            (0..members.len()).partition(|&at| members[at].shares_space());
        let last = last.iter().map(std::slice::from_ref);
        let failed = |at: usize, source| MembersError::Stop {
            pid: members[at].pid(),
            source,
        };
        for batch in others.chunks(STOPPED_AT_ONCE).chain(last) {
            if let &[alone] = batch {
                let outcome = Stop::of(&members[alone]).run(options);
                stopped[alone] = outcome.map_err(|source| failed(alone, source))?;
                continue;
            }
            let outcomes = std::thread::scope(|scope| {
                let stops: Vec<_> = batch
                    .iter()
                    .map(|&at| Stop::of(&members[at]))
                    .map(|stop| scope.spawn(move || stop.run(options)))
                    .collect();
                let join = |stop: std::thread::ScopedJoinHandle<'_, _>| match stop.join() {
                    Ok(outcome) => outcome,
                    Err(panic) => std::panic::resume_unwind(panic),
                };
                stops.into_iter().map(join).collect::<Vec<_>>()
            });
            for (&at, outcome) in batch.iter().zip(outcomes) {
                stopped[at] = outcome.map_err(|source| failed(at, source))?;
            }
        }
        Ok(stopped)
    }

    /// Lets all run again. Returns the pids of those that somebody killed while they stood; an error if it was the named one.
    #[tracing::instrument(level = "debug", skip_all, name = "resume")]
    pub fn resume(&self, stopped: AllStopped) -> Result<Vec<i32>, ResumeError> {
        let named = self.named().pid();
        let mut killed = Vec::new();
        for process in stopped.into_iter().flatten() {
            let pid = process.identity().pid;
            match process.resume() {
                Err(ResumeError::Gone { .. }) if pid != named => killed.push(pid),
                other => other?,
            }
        }
        Ok(killed)
    }

    /// Says in all of them how far we are.
    pub fn set_phases(&mut self, phase: Phase) -> Result<(), TakeError> {
        let set = |member: &mut Member| member.set_phase(phase);
        self.list.iter_mut().try_for_each(set)
    }

    /// By process, why its memory must not be marked.
    pub fn watched(&self) -> Watched {
        let own = |member: &Member| (member.pid(), member.own_userfaultfd());
        let processes: Vec<(i32, Option<i32>)> = self.list.iter().map(own).collect();
        watchers::watched_among(&processes)
    }

    /// An error in the stop window of a process that is gone is told as just that.
    pub fn explain(&self, error: TakeError) -> TakeError {
        let named = self.named().identity();
        if named.is_alive_and_same() {
            error
        } else {
            TakeError::Ended { pid: named.pid }
        }
    }

    /// What the attachment says of the tree; nothing if there is none.
    pub fn processes(&self) -> Vec<TreeProcess> {
        if !self.tree {
            return Vec::new();
        }
        let mut processes = Vec::new();
        for member in &self.list {
            let pid = member.pid();
            let Some((parent, ended)) = parent_of(pid) else {
                continue;
            };
            processes.push(TreeProcess {
                pid,
                parent,
                ended,
                exit_status: 0,
            });
            for child in children(pid) {
                if !self.list.iter().any(|member| member.pid() == child)
                    && let Some((parent, true)) = parent_of(child)
                {
                    processes.push(TreeProcess {
                        pid: child,
                        parent,
                        ended: true,
                        exit_status: exit_status_of(child),
                    });
                }
            }
        }
        processes
    }
}
