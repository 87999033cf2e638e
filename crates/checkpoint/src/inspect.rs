//! What a checkpoint of a process would hold, and what of it a restore could not bring back. It takes one short stop.

use crate::checkpointer::AttachError;
use crate::files::Files;
use crate::member::AddressSpace;
use crate::probes;
use crate::report::NotTracked;
use crate::restorable::Restorable;
use crate::tracking;
use crate::tree::{children, stop_child, stop_for_a_look};
use crate::watchers;
use pagetide_kernel::maps::{self, Mapping, MapsError};
use pagetide_process::{Blocker, RefusalError, ResumeError, StopError, StopOptions, examine};

/// Why a process could not be inspected. It runs on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// It cannot be handled.
    #[error(transparent)]
    Refused(#[from] RefusalError),
    /// A child cannot be handled.
    #[error("process {pid} of the tree")]
    Member {
        /// The child.
        pid: i32,
        /// Why not.
        #[source]
        source: Box<AttachError>,
    },
    /// It could not be stopped.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// Its mappings could not be read.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// It was killed while it stood still.
    #[error(transparent)]
    Resume(#[from] ResumeError),
}

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

/// Looks at process `pid`, with its children if `tree`.
pub fn inspect(pid: i32, tree: bool, options: StopOptions) -> Result<Inspection, InspectError> {
    let identity = examine(pid)?.identity;
    let named = stop_for_a_look(&identity, options)?.ok_or(StopError::Gone { pid })?;
    let mut stopped = vec![Some(named)];
    let mut at = 0;
    while tree && at < stopped.len() {
        let parent = stopped[at].as_ref().map_or(pid, |one| one.identity().pid);
        for child in children(parent) {
            let found = stop_child(child, options).map_err(|error| InspectError::Member {
                pid: child,
                source: Box::new(error),
            })?;
            stopped.extend(found.map(Some));
        }
        at += 1;
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
    let pids: Vec<i32> = stopped
        .iter()
        .flatten()
        .map(|process| process.identity().pid)
        .collect();
    let processes: Vec<(i32, Option<i32>)> = pids.iter().map(|&pid| (pid, None)).collect();
    let watched = watchers::watched_among(&processes);
    for &pid in &pids {
        let reasons = watched.get(&pid).into_iter().flatten().cloned();
        let reasons = reasons.map(|reason| NotTracked::whole(pid, reason));
        inspection.not_tracked.extend(reasons);
        let own = tracking::is_tracked(pid);
        inspection.tracked += usize::from(own);
    }
    let mut layouts = Vec::with_capacity(stopped.len());
    let mut killed = Vec::new();
    for process in stopped.iter().flatten() {
        let found = process.identity();
        let mappings = match maps::mappings(found.pid) {
            // Somebody killed it while it stood still. It is the child of one that still stands.
            Err(_) if found.pid != pid && !found.is_alive_and_same() => {
                killed.push(found.pid);
                continue;
            }
            other => other?,
        };
        inspection.threads += process.threads().len();
        inspection.mappings += mappings.len();
        let lengths = mappings.iter().map(Mapping::length_bytes);
        inspection.mapped_bytes += lengths.sum::<u64>();
        layouts.push((found.pid, mappings));
    }
    for process in stopped.into_iter().flatten() {
        let found = process.identity().pid;
        match process.resume() {
            Err(ResumeError::Gone { .. }) if found != pid => killed.push(found),
            other => other?,
        }
    }
    // In the order in which a checkpoint does it, so that it finds the same.
    restorable.look_from_outside();
    for (pid, mappings) in &layouts {
        restorable.look_at_mappings(*pid, mappings);
        let breakpoints = breakpoints(*pid, mappings);
        restorable.name(probes::blockers(*pid, mappings, &[], &breakpoints));
    }
    inspection.processes = layouts.len();
    inspection.blockers = restorable.blockers;
    // Nothing could be read of one that was killed, and nothing of it would be in a checkpoint.
    inspection
        .blockers
        .retain(|blocker| !killed.contains(&blocker.pid));
    Ok(inspection)
}

/// Addresses of breakpoints that a checkpoint would store as they are. None of a process that is gone.
fn breakpoints(pid: i32, mappings: &[Mapping]) -> Vec<u64> {
    let Ok(space) = AddressSpace::open(pid) else {
        return Vec::new();
    };
    let mut files = Files::new(false);
    files.look([(pid, mappings)]);
    let process = probes::Process {
        pid,
        memory: &space.memory,
        tables: space.page_tables(),
        mappings,
        files: &files,
    };
    process.probes_now().kept
}
