//! What a checkpoint of a process would hold, and what of it a restore could not bring back. It takes one short stop.

use crate::error::{AttachError, InspectError, MembersError};
use crate::family::has_ended;
use crate::files::Files;
use crate::manifest::MemberNames;
use crate::member::Member;
use crate::members::{AllStopped, Members};
use crate::names;
use crate::probes;
use crate::report::NotTracked;
use crate::take::restorable::Restorable;
use crate::tracking;
use crate::watchers;
use pagetide_kernel::maps::{self, Mapping};
use pagetide_process::{Blocker, StopError, StopOptions, examine};

/// What was found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Inspection {
    /// The processes that a checkpoint would hold.
    pub processes: usize,
    /// Their threads.
    pub threads: usize,
    /// Their mappings.
    pub mappings: usize,
    /// Length of their mappings in bytes.
    pub mapped_bytes: u64,
    /// Their file descriptors.
    pub descriptors: usize,
    /// What a restore could not bring back.
    pub blockers: Vec<Blocker>,
    /// What a checkpoint would compare with its parent instead of tracking it, as far as it is known beforehand.
    pub not_tracked: Vec<NotTracked>,
    /// How many of the processes are tracked now. As long as one is, mremap(2) of several mappings at once, or of memory
    /// that would be one mapping otherwise, fails in it with EFAULT.
    pub tracked: usize,
}

/// The mappings of each process; `None` of one that is gone.
type Layouts = Vec<Option<Vec<Mapping>>>;

/// Looks at process `pid`, with its children if `tree`.
pub fn inspect(pid: i32, tree: bool, options: StopOptions) -> Result<Inspection, InspectError> {
    let mut members = members_of(pid, tree, options)?;
    let stopped = members.stop_all();
    let (mut stopped, _) = stopped.map_err(|error| told(pid, error))?;
    if stopped[0].is_none() {
        return Err(StopError::Gone { pid }.into());
    }
    let mut restorable = Restorable::read(&mut stopped, tree);
    let mut inspection = Inspection {
        processes: 0,
        threads: 0,
        mappings: 0,
        mapped_bytes: 0,
        descriptors: restorable.descriptors(),
        blockers: Vec::new(),
        not_tracked: Vec::new(),
        tracked: 0,
    };
    inspection.look_for_trackers(&stopped);
    let (layouts, mut killed) = inspection.look_at_mappings(pid, &stopped)?;
    killed.extend(members.resume(stopped)?);
    // In the order in which a checkpoint does it, so that it finds the same.
    restorable.look_from_outside();
    for (member, mappings) in members.list().iter().zip(&layouts) {
        let Some(mappings) = mappings else { continue };
        let pid = member.pid();
        restorable.look_at_mappings(pid, mappings);
        let mut files = Files::new(false);
        files.look([(pid, &mappings[..])]);
        restorable.name(names::blockers(pid, mappings, &files));
        let breakpoints = member.as_probed(mappings, &files).probes_now().kept;
        restorable.name(probes::blockers(pid, mappings, &[], &breakpoints));
    }
    inspection.processes = layouts.iter().flatten().count();
    inspection.blockers = restorable.blockers;
    // Nothing could be read of one that was killed, and nothing of it would be in a checkpoint.
    inspection
        .blockers
        .retain(|blocker| !killed.contains(&blocker.pid));
    Ok(inspection)
}

/// The processes, whatever programs they execute meanwhile.
fn members_of(pid: i32, tree: bool, options: StopOptions) -> Result<Members, InspectError> {
    let named = match Member::to_look_at(examine(pid)?, MemberNames::alone()) {
        Err(_) if has_ended(pid) => return Err(StopError::Gone { pid }.into()),
        other => other?,
    };
    Ok(Members::to_look_at(named, tree, options))
}

/// An error of a child is told as such.
fn told(named: i32, error: MembersError) -> InspectError {
    match error {
        MembersError::Member { pid, source } => InspectError::Member { pid, source },
        MembersError::Stop { pid, source } if pid == named => InspectError::Stop(source),
        MembersError::Stop { pid, source } => InspectError::Member {
            pid,
            source: Box::new(AttachError::Stop(source)),
        },
    }
}

impl Inspection {
    /// Who watches the memory of the processes, and whether we do.
    fn look_for_trackers(&mut self, stopped: &AllStopped) {
        let all = stopped.iter().flatten();
        let processes: Vec<(i32, Option<i32>)> =
            all.map(|process| (process.identity().pid, None)).collect();
        let watched = watchers::watched_among(&processes);
        for (pid, _) in processes {
            let reasons = watched.get(&pid).into_iter().flatten().cloned();
            let reasons = reasons.map(|reason| NotTracked::whole(pid, reason));
            self.not_tracked.extend(reasons);
            self.tracked += usize::from(tracking::is_tracked(pid));
        }
    }

    /// The mappings of each; and the pids of those that somebody killed while they stood, of which there are none. They are
    /// children of one that still stands.
    fn look_at_mappings(
        &mut self,
        named: i32,
        stopped: &AllStopped,
    ) -> Result<(Layouts, Vec<i32>), InspectError> {
        let mut layouts = Vec::with_capacity(stopped.len());
        let mut killed = Vec::new();
        for process in stopped {
            let Some(process) = process else {
                layouts.push(None);
                continue;
            };
            let found = process.identity();
            let mappings = match maps::mappings(found.pid) {
                Err(_) if found.pid != named && !found.is_alive_and_same() => {
                    killed.push(found.pid);
                    layouts.push(None);
                    continue;
                }
                other => other?,
            };
            self.threads += process.threads().len();
            self.mappings += mappings.len();
            let lengths = mappings.iter().map(Mapping::length_bytes);
            self.mapped_bytes += lengths.sum::<u64>();
            layouts.push(Some(mappings));
        }
        Ok((layouts, killed))
    }
}
