//! One instant: all members stand still, what has changed of them is copied, and they run on. Again if what
//! was taken for unchanged before the stop, or for known, turns out not to be so after it.
//!
//! An attempt has four steps: *prepare* (look at all that can be known before), *stop*, *capture*, and *settle* (look at the
//! same again).

use super::context::Context;
use super::file_hashes::hash_files;
use super::leave::LeaveGuard;
use super::looks::{self, Looks};
use super::precopy::{self, Precopied};
use super::standstill::{Instantaneous, PriorFindings, Standstill};
use crate::capture::SIZE;
use crate::error::TakeError;
use crate::file_pages::FileHashes;
use crate::files::FileReport;
use crate::growth;
use crate::harvests::check_cancelled;
use crate::mark::Phase;
use crate::members::AllStopped;
use crate::probes::Code;
use crate::rings::{self, AsynchronousIo};
use crate::watchers::{self, Watched};
use crate::writers;
use pagetide_kernel::maps::{self, Mapping, MappingFlags};
use pagetide_pages::{PageCount, PageSet};
use pagetide_process::OutsideState;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// So often is a capture repeated because a file changed meanwhile; then files are compared.
const SETTLED_ATTEMPTS: usize = 2;
/// So often because I/O rings or their buffers came and went; then all memory is compared. Who watches a process is looked
/// for in the stop then, too.
const LISTED_ATTEMPTS: usize = 4;

/// How often the processes were stopped for this snapshot already.
#[derive(Clone, Copy)]
struct Attempt(usize);

impl Attempt {
    fn trusts_files(self) -> bool {
        self.0 < SETTLED_ATTEMPTS
    }

    fn trusts_io(self) -> bool {
        self.0 < LISTED_ATTEMPTS
    }
}

/// What was found before the stop.
struct Preparation {
    /// Of each member.
    before: Vec<PriorFindings>,
    report: FileReport,
    hashes: FileHashes,
    watched: Watched,
    looks: Looks,
}

/// All processes, standing still.
struct Standing {
    processes: AllStopped,
    /// When the first of them stood.
    since: Option<Instant>,
    /// So many members were known before.
    known: usize,
    /// Whose advice is read in the stop, by index and pid.
    advice_of: Vec<(usize, i32)>,
    /// Who watches their memory was asked in the stop.
    watchers_are_known: bool,
}

/// What was learnt in the stop besides what was captured.
struct Inside {
    /// The flags of mappings, by the index of the member.
    flags: HashMap<usize, MappingFlags>,
    watchers_are_known: bool,
}

/// Stops the processes and copies, again if what was taken for unchanged before the stop is not so
/// after it. In the last attempt nothing is taken for unchanged.
pub(crate) fn stop_until_settled(
    context: &mut Context<'_>,
    precopied: &mut Vec<Precopied>,
    leave: &mut LeaveGuard,
) -> Result<Instantaneous, TakeError> {
    let mut again: HashMap<i32, PageSet> = HashMap::new();
    let (mut stop_time, mut copy_time) = (Duration::ZERO, Duration::ZERO);
    for attempt in (0..).map(Attempt) {
        check_cancelled(context.options)?;
        let mut prepared = prepare(context, attempt, precopied, &mut again)?;
        let standing = stop(context, attempt, &mut prepared, precopied)?;
        let (mut found, inside) = capture(context, &prepared, precopied, standing, leave)?;
        stop_time += found.stop;
        copy_time += found.copy;
        if settle(context, attempt, &prepared, &inside, &mut found, &mut again) {
            found.hashes = prepared.hashes;
            (found.stop, found.copy) = (stop_time, copy_time);
            return Ok(found);
        }
        context.arena.clear();
    }
    unreachable!("the loop ends by returning")
}

/// Looks at mappings, files and I/O of the running processes, and makes room for what will be copied.
#[tracing::instrument(level = "debug", skip_all, name = "prepare")]
fn prepare(
    context: &mut Context<'_>,
    attempt: Attempt,
    precopied: &[Precopied],
    again: &mut HashMap<i32, PageSet>,
) -> Result<Preparation, TakeError> {
    let most_mappings = growth::most_mappings();
    for member in context.members.list_mut() {
        member.most_mappings = most_mappings;
    }
    let mut before = Vec::with_capacity(context.members.list().len());
    for (index, member) in context.members.list().iter().enumerate() {
        let pid = member.pid();
        let mappings = member.unless_lost(maps::mappings(pid))?;
        member.space.memory.expect(&mappings);
        let io = member.asynchronous_io(&mappings);
        let mut again = again.remove(&pid).unwrap_or_default();
        if let Some(precopied) = precopied.get(index)
            && !precopied.covered.is_empty()
            && (io.any || precopied.is_doubtful || rings::reads_directly(pid))
        {
            again = again.union(&precopied.covered);
        }
        before.push(PriorFindings {
            mappings,
            io,
            again,
            code: Code::default(),
        });
    }
    for before in before.iter_mut().filter(|_| !attempt.trusts_io()) {
        before.io = AsynchronousIo::distrusted();
    }
    let report = look_at_files(context, before.iter().map(|before| &before.mappings[..]));
    let report = if attempt.trusts_files() {
        report
    } else {
        report.without_settled()
    };
    for (member, before) in context.members.list().iter().zip(&mut before) {
        let process = member.as_probed(&before.mappings, context.files);
        before.code = process.code_never_written();
    }
    let hashes = hash_files(context, &before, &report)?;
    let mut ready = PageCount(0);
    for (member, before) in context.members.list_mut().iter_mut().zip(&before) {
        let written = precopy::written_now(member, &before.mappings);
        ready += member.unless_lost(written)?;
    }
    context.arena.prepare(SIZE.bytes_of(ready));
    let watched = context.members.watched();
    let counts: Vec<usize> = before.iter().map(|found| found.mappings.len()).collect();
    let looks = Looks::before(context.members.list_mut(), &counts, attempt.0);
    Ok(Preparation {
        before,
        report,
        hashes,
        watched,
        looks,
    })
}

/// Stops all members, and makes good what was prepared for others than those that stand now.
#[tracing::instrument(level = "debug", skip_all, name = "stop")]
fn stop(
    context: &mut Context<'_>,
    attempt: Attempt,
    prepared: &mut Preparation,
    precopied: &mut Vec<Precopied>,
) -> Result<Standing, TakeError> {
    let members = &mut *context.members;
    let (mut processes, others) = members.stop_all()?;
    members.begin_tracking_of(&mut processes)?;
    prepared.looks.stopped(members.list(), &others);
    let known = prepared.before.len();
    let count = members.list().len();
    prepared.before.resize_with(count, PriorFindings::default);
    precopied.resize_with(count, Precopied::default);
    for &index in &others {
        // What was found before the stop was another program's.
        prepared.before[index] = PriorFindings::default();
        precopied[index] = Precopied::default();
    }
    let watchers_are_known = !attempt.trusts_io() || !others.is_empty() || count > known;
    if watchers_are_known {
        prepared.watched = members.watched();
    }
    for member in &mut members.list_mut()[known..] {
        member.set_phase(Phase::Harvesting)?;
    }
    for (member, process) in members.list_mut().iter_mut().zip(&processes) {
        if process.is_some() && member.outside.is_none() {
            // Once it runs again, it may end.
            member.outside = Some(OutsideState::read(member.identity())?);
        }
    }
    let all = processes.iter().flatten();
    Ok(Standing {
        since: all.map(|process| process.since()).min(),
        known,
        advice_of: prepared.looks.inside(members.list()),
        watchers_are_known,
        processes,
    })
}

/// Copies what has to be copied of those that stand, and lets them go.
#[tracing::instrument(level = "debug", skip_all, name = "capture")]
fn capture(
    context: &mut Context<'_>,
    prepared: &Preparation,
    precopied: &[Precopied],
    mut standing: Standing,
    leave: &mut LeaveGuard,
) -> Result<(Instantaneous, Inside), TakeError> {
    let standstill = Standstill {
        parent: context.parent,
        precopied,
        before: &prepared.before,
        report: &prepared.report,
        hashes: &prepared.hashes,
        watched: &prepared.watched,
    };
    let mut capture = || standstill.capture_all(context, &mut standing.processes);
    let (captured, flags) = if standing.advice_of.is_empty() {
        (capture(), HashMap::new())
    } else {
        beside(|| looks::read_all(&standing.advice_of), capture)
    };
    let mut found = captured.map_err(|error| context.members.explain(error))?;
    for member in &context.members.list()[standing.known..] {
        // Not before: the signal must not be found waiting.
        leave.stop_now(member)?;
    }
    // Somebody may have killed a child, but all of it was copied.
    context.members.resume(standing.processes)?;
    found.stop = standing
        .since
        .map_or(Duration::ZERO, |since| since.elapsed());
    let inside = Inside {
        flags,
        watchers_are_known: standing.watchers_are_known,
    };
    Ok((found, inside))
}

/// Looks again at all that was taken for unchanged, or for known. False if it was not: then `again` has what must be
/// copied again.
#[tracing::instrument(level = "debug", skip_all, name = "settle")]
fn settle(
    context: &mut Context<'_>,
    attempt: Attempt,
    prepared: &Preparation,
    inside: &Inside,
    found: &mut Instantaneous,
    again: &mut HashMap<i32, PageSet>,
) -> bool {
    let mappings = found.members.iter().map(|stopped| match stopped {
        Some(stopped) => &stopped.layout.mappings[..],
        None => &[],
    });
    let after = look_at_files(context, mappings);
    let mut settled = !attempt.trusts_files() || after.agrees_with(&prepared.report);
    let members = &mut *context.members;
    let all = members.list().iter().zip(&prepared.before);
    for ((member, before), stopped) in all.zip(&found.members) {
        let Some(stopped) = stopped else {
            found.io.push(AsynchronousIo::default());
            continue;
        };
        let io = member.asynchronous_io(&stopped.layout.mappings);
        let new_buffers = io.buffers.subtract(&stopped.memo.buffers);
        let same =
            (io.any, io.unlisted.is_empty()) == (before.io.any, before.io.unlisted.is_empty());
        settled &= !attempt.trusts_io() || same && new_buffers.is_empty();
        again.insert(
            member.pid(),
            before.again.union(&stopped.read).union(&new_buffers),
        );
        found.io.push(io);
    }
    settled &=
        inside.watchers_are_known || !watchers::has_new(&prepared.watched, &members.watched());
    let (looks, flags) = (&prepared.looks, &inside.flags);
    settled &= looks.after(members.list_mut(), flags, &mut found.members);
    if settled {
        let stamps = if attempt.trusts_files() {
            after.settled()
        } else {
            Vec::new()
        };
        let is_call_under_way = writers::is_call_under_way();
        for stopped in found.members.iter_mut().flatten() {
            stopped.forget_droppable();
            stopped.memo.settled.clone_from(&stamps);
            if is_call_under_way {
                stopped.memo.in_flight = std::mem::take(&mut stopped.may_land);
            }
        }
        found.report = after;
    }
    settled
}

fn look_at_files<'a>(
    context: &mut Context<'_>,
    mappings: impl Iterator<Item = &'a [Mapping]>,
) -> FileReport {
    let pids = context.members.list().iter().map(|member| member.pid());
    context.files.look(pids.zip(mappings))
}

/// Does `other` in a thread of its own while `work` is done here. The results of both, that of the work first.
fn beside<W, O: Send>(other: impl FnOnce() -> O + Send, work: impl FnOnce() -> W) -> (W, O) {
    std::thread::scope(|scope| {
        let other = scope.spawn(other);
        let done = work();
        match other.join() {
            Ok(result) => (done, result),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
