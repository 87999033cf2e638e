//! Process trees: finding all children, stopping them together, and which processes a snapshot holds.

use crate::checkpointer::{AttachError, Checkpointer};
use crate::member::{Ending, Member, MemberNames};
use crate::take::TakeError;
use crate::tracking::TrackingError;
use pagetide_kernel::pidfd::PidFd;
use pagetide_process::{
    ProcessIdentity, ProcessState, RefusalError, StopError, StopOptions, StoppedProcess, examine,
};
use pagetide_snapshot::View;
use std::path::Path;
use std::time::{Duration, Instant};

/// The attachment that names the processes of a tree.
pub const TREE_ATTACHMENT: &str = "tree";

const VERSION: u16 = 2;
/// More than this was never written by us.
const LIMIT_BYTES: usize = 16 << 20;

/// One process of a tree, as a snapshot names it.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct TreeProcess {
    /// Its number.
    pub pid: i32,
    /// Its parent's number.
    pub parent: i32,
    /// It has ended and waits to be reaped; there is nothing more of it in the snapshot.
    pub ended: bool,
    /// How it ended, as wait(2) tells; 0 if it has not, or if the kernel hides it.
    pub exit_status: i32,
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding()
        .with_limit::<LIMIT_BYTES>()
}

pub(crate) fn to_bytes(processes: &[TreeProcess]) -> Option<Vec<u8>> {
    bincode::encode_to_vec((VERSION, processes), config()).ok()
}

fn from_bytes(bytes: &[u8]) -> Option<Vec<TreeProcess>> {
    let (version, rest) = bytes.split_first_chunk::<2>()?;
    let (processes, used) = match u16::from_le_bytes(*version) {
        1 => {
            let (processes, used): (Vec<(i32, i32, bool)>, usize) =
                bincode::decode_from_slice(rest, config()).ok()?;
            let process = |(pid, parent, ended)| TreeProcess {
                pid,
                parent,
                ended,
                exit_status: 0,
            };
            (processes.into_iter().map(process).collect(), used)
        }
        VERSION => bincode::decode_from_slice(rest, config()).ok()?,
        _ => return None,
    };
    (used == rest.len()).then_some(processes)
}

/// The processes of a snapshot of a tree, the one that was named first; `None` if it is of one process
/// alone, or of none.
pub fn tree_of(view: &View) -> Option<Vec<TreeProcess>> {
    from_bytes(view.attachment(TREE_ATTACHMENT)?)
}

/// The processes of which a snapshot holds memory, with what their parts are called. The pid is `None` for
/// a process that was checkpointed alone. Empty if the snapshot holds no process.
pub fn members_of(view: &View) -> Vec<(Option<i32>, MemberNames)> {
    let alone = MemberNames::alone();
    match tree_of(view) {
        Some(processes) => processes
            .iter()
            .filter(|process| !process.ended)
            .map(|process| (Some(process.pid), MemberNames::in_tree(process.pid)))
            .collect(),
        None if view.space_index(&alone.space).is_some() => vec![(None, alone)],
        None => Vec::new(),
    }
}

/// The children of a process, ended ones that were not reaped among them. Complete only while nothing of
/// it runs.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    let mut listed = true;
    let mut found = Vec::new();
    for task in tasks.into_iter().flatten().flatten() {
        match std::fs::read_to_string(task.path().join("children")) {
            Ok(text) => found.extend(
                text.split_whitespace()
                    .filter_map(|n| n.parse::<i32>().ok()),
            ),
            Err(_) => listed = false,
        }
    }
    match listed {
        true => found,
        // A kernel without CONFIG_PROC_CHILDREN.
        false => everybody()
            .filter(|&child| parent_of(child).is_some_and(|(parent, _)| parent == pid))
            .collect(),
    }
}

fn everybody() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The parent of a process, and whether it has ended.
pub(crate) fn parent_of(pid: i32) -> Option<(i32, bool)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    Some((fields.next()?.parse().ok()?, ended))
}

/// How a process ended that waits to be reaped: the last field of proc_pid_stat(5).
fn exit_status_of(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let last = stat.split_whitespace().next_back();
    last.and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// True if there is no such process, or it waits to be reaped.
fn has_ended(pid: i32) -> bool {
    match PidFd::open(pid) {
        Ok(pidfd) => pidfd.wait_for_end(Duration::ZERO).unwrap_or(false),
        Err(_) => parent_of(pid).is_none_or(|(_, ended)| ended),
    }
}

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

/// Finds and stops a child for a look; nothing if it has ended.
pub(crate) fn stop_child(
    pid: i32,
    options: StopOptions,
) -> Result<Option<StoppedProcess>, AttachError> {
    match when_settled(pid, options.timeout, || Ok(examine(pid)?))? {
        Some(examined) => Ok(stop_for_a_look(&examined.identity, options)?),
        None => Ok(None),
    }
}

/// Stops a process for a look, whatever program it executes meanwhile; nothing if it has ended.
pub(crate) fn stop_for_a_look(
    identity: &ProcessIdentity,
    options: StopOptions,
) -> Result<Option<StoppedProcess>, StopError> {
    let pidfd = PidFd::open(identity.pid).ok();
    let stop = Stop {
        identity,
        end: Ending::of(pidfd.as_ref(), identity),
        is_child: true,
    };
    stop.run(options)
}

/// The stopped processes, in the order of the members; `None` for one that has ended.
pub(crate) type AllStopped = Vec<Option<StoppedProcess>>;

/// So often a child that executes programs while it is stopped is stopped again.
const STOPS: usize = 20;
/// So many processes are stopped at a time.
const STOPPED_AT_ONCE: usize = 64;

/// A member about to be stopped, without what cannot go to another thread.
struct Stop<'a> {
    identity: &'a ProcessIdentity,
    end: Ending<'a>,
    is_child: bool,
}

impl Member {
    fn stop(&self) -> Stop<'_> {
        Stop {
            identity: self.identity(),
            end: self.ending(),
            is_child: self.is_child(),
        }
    }
}

impl Stop<'_> {
    /// Stops it; nothing if it is a child that has ended.
    fn run(&self, options: StopOptions) -> Result<Option<StoppedProcess>, StopError> {
        for stop in 1.. {
            if self.is_child && self.end.has_come() {
                break;
            }
            match StoppedProcess::stop(self.identity, options) {
                Ok(process) => return Ok(Some(process)),
                Err(StopError::Exec { .. }) if self.is_child && stop < STOPS => {}
                Err(
                    StopError::Gone { .. } | StopError::Exited { .. } | StopError::Killed { .. },
                ) if self.is_child => break,
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

impl Checkpointer {
    /// Makes the children that are not known yet members. True if there were any.
    pub(crate) fn find_members(&mut self) -> Result<bool, TakeError> {
        if !self.options.tree {
            return Ok(false);
        }
        let before = self.members.len();
        let mut at = 0;
        while at < self.members.len() {
            let parent = self.members[at].pid();
            for pid in children(parent) {
                self.find_member(pid, parent)?;
            }
            at += 1;
        }
        Ok(self.members.len() > before)
    }

    fn find_member(&mut self, pid: i32, parent: i32) -> Result<(), TakeError> {
        if let Some(known) = self.members.iter().find(|member| member.pid() == pid) {
            let same = ProcessIdentity::of(pid).is_ok_and(|now| now == *known.identity());
            return match same {
                true => Ok(()),
                // Its number belongs to another already; the next try finds that one.
                false => Err(StopError::Gone { pid }.into()),
            };
        }
        let patience = self.options.stop_timeout;
        let found = when_settled(pid, patience, || self.child(pid, parent));
        let member = found.map_err(|error| TakeError::Member {
            pid,
            source: Box::new(error),
        })?;
        self.members.extend(member);
        Ok(())
    }

    fn child(&self, pid: i32, parent: i32) -> Result<Member, AttachError> {
        let mut member = Member::child(examine(pid)?, parent)?;
        self.recall(&mut member)?;
        Ok(member)
    }

    /// Makes those processes of the snapshot to go on from members that are children of others now,
    /// because their parents have ended.
    pub(crate) fn recall_members(&mut self) {
        let Some(view) = self.last.clone().filter(|_| self.options.tree) else {
            return;
        };
        for process in tree_of(&view).unwrap_or_default() {
            let names = MemberNames::in_tree(process.pid);
            let state = view.attachment(&names.process);
            let state = state.and_then(|bytes| ProcessState::from_bytes(bytes).ok());
            let identity = state.map(|state| state.outside.identity);
            let known = |member: &Member| member.pid() == process.pid;
            if !process.ended
                && !self.members.iter().any(known)
                && identity.is_some_and(|identity| identity.is_alive_and_same())
                && let Ok(member) = self.child(process.pid, process.parent)
            {
                self.members.push(member);
            }
        }
    }

    /// Lets go of the members that have ended, but for the one that was named.
    pub(crate) fn drop_ended(&mut self) {
        let mut first = true;
        self.members.retain(|member| {
            let named = std::mem::take(&mut first);
            named || !member.has_ended()
        });
    }

    /// True if a child has ended since those that have were let go, or runs another program than it did then.
    pub(crate) fn lost_a_child(&self) -> bool {
        let lost = |child: &Member| child.has_ended() || child.has_lost_its_space();
        self.members[1..].iter().any(lost)
    }

    /// Stops all members, parents before their children, and children that were born meanwhile. Also
    /// tells the numbers of those that run another program than before.
    pub(crate) fn stop_all(&mut self) -> Result<(AllStopped, Vec<usize>), TakeError> {
        let mut stopped: AllStopped = Vec::with_capacity(self.members.len());
        let mut others = Vec::new();
        loop {
            let known = stopped.len();
            stopped.extend(self.stop_from(known)?);
            let members = self.members.iter_mut().zip(&stopped).enumerate();
            for (number, (member, process)) in members.skip(known) {
                if process.is_some() && member.has_lost_its_space() {
                    let pid = member.pid();
                    let parent = parent_of(pid).map(|(parent, _)| parent);
                    let wrong = |source| TakeError::Member {
                        pid,
                        source: Box::new(source),
                    };
                    member.reopen(parent).map_err(wrong)?;
                    others.push(number);
                }
            }
            if !self.find_members()? {
                break;
            }
        }
        for (member, process) in self.members.iter_mut().zip(&mut stopped) {
            if let Some(process) = process {
                let store = &self.store;
                member.begin_tracking(process, self.backend, &self.options, store)?;
            }
        }
        Ok((stopped, others))
    }

    /// Stops the members from number `first` on, many at a time: each has to be run by the kernel until it
    /// stands, and those that do wait for the others. A process in vfork(2) stands when its child has
    /// ended or runs a program, so children that may be its own are stopped last.
    fn stop_from(&self, first: usize) -> Result<AllStopped, TakeError> {
        let options = self.stop_options();
        let members = &self.members[first..];
        let mut stopped: AllStopped = members.iter().map(|_| None).collect();
        let (last, others): (Vec<usize>, Vec<usize>) =
            (0..members.len()).partition(|&at| members[at].shares_space());
        let last = last.iter().map(std::slice::from_ref);
        for batch in others.chunks(STOPPED_AT_ONCE).chain(last) {
            if let &[alone] = batch {
                stopped[alone] = members[alone].stop().run(options)?;
                continue;
            }
            let outcomes = std::thread::scope(|scope| {
                let stops: Vec<_> = batch
                    .iter()
                    .map(|&at| members[at].stop())
                    .map(|stop| scope.spawn(move || stop.run(options)))
                    .collect();
                let join = |stop: std::thread::ScopedJoinHandle<'_, _>| match stop.join() {
                    Ok(outcome) => outcome,
                    Err(panic) => std::panic::resume_unwind(panic),
                };
                stops.into_iter().map(join).collect::<Vec<_>>()
            });
            for (&at, outcome) in batch.iter().zip(outcomes) {
                stopped[at] = outcome?;
            }
        }
        Ok(stopped)
    }

    /// What the attachment says of the tree.
    pub(crate) fn processes(&self) -> Vec<TreeProcess> {
        let mut processes = Vec::new();
        for member in &self.members {
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
                if !self.members.iter().any(|member| member.pid() == child)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_it_was_written_and_refused_when_cut() {
        let process = |pid, parent, exit_status: Option<i32>| TreeProcess {
            pid,
            parent,
            ended: exit_status.is_some(),
            exit_status: exit_status.unwrap_or(0),
        };
        let processes = vec![process(7, 1, None), process(8, 7, Some(0x300))];
        let bytes = to_bytes(&processes).expect("a short list fits");
        assert_eq!(from_bytes(&bytes), Some(processes));
        for length in 0..bytes.len() {
            assert_eq!(from_bytes(&bytes[..length]), None);
        }
        let before = bincode::encode_to_vec((1u16, vec![(7i32, 1i32, false)]), config());
        let before = from_bytes(&before.expect("a short list fits"));
        assert_eq!(before, Some(vec![process(7, 1, None)]), "the first version");
    }

    #[test]
    fn a_child_is_found_until_it_is_reaped() {
        let mut child = std::process::Command::new("true")
            .spawn()
            .expect("run true");
        let own = i32::try_from(std::process::id()).expect("a pid");
        let pid = i32::try_from(child.id()).expect("a pid");
        assert!(children(own).contains(&pid));
        assert_eq!(parent_of(pid).map(|(parent, _)| parent), Some(own));
        child.wait().expect("it ends");
        assert!(!children(own).contains(&pid));
    }
}
