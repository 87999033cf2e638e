//! A process, or a tree of processes, started again from a snapshot: after it was killed, or after a reboot.
//!
//! Everything that can be known to fail is found before any process exists: what the snapshot says cannot be brought
//! back, files that are no longer what they were, a vdso of another kernel. Then the processes are made, all of them
//! waiting, and built by system calls that they make themselves (see `pagetide_process::NewProcess`). They belong to this
//! process until the end: a failure halfway, or the end of this process, ends them.
//!
//! A restored process can be checkpointed as a delta to the snapshot it came from: its tracking begins before its first
//! instruction.

mod birth;
mod build;
mod error;
mod fill;
mod inherit;
mod journal;
mod lazy;
mod limits;
mod made;
mod mappings;
mod nature;
mod object;
mod objects;
mod paths;
mod plan;
mod poison;
mod policy;
mod segments;
mod sources;

use crate::apart;
use crate::blockers::{blockers_of, stays};
use crate::manifest::members_of;
use crate::poison::poisoned_of;
use birth::{Born, claim_numbers};
use build::Building;
pub use error::{FillError, LazyError, RestoreError};
use inherit::Inheritance;
use lazy::Lazy;
pub use lazy::{FilledReport, Filling};
pub use limits::check as check_limits;
use made::Made;
use pagetide_pages::PageCount;
use pagetide_process::{
    Blocker, NewProcess, OPEN_FILES_ATTACHMENT, OpenFiles, Openers, RebuildError, ReopenChoices,
    StopOptions, StoppedProcess, TcpChoice, ThreadState, enter_control_groups, kernel_mappings_of,
};
use pagetide_snapshot::{Store, View};
pub use paths::paths_of;
use plan::Plan;
pub use sources::make_room_for_descriptors;
use sources::{OUT_OF_THE_WAY, Sources};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How to restore.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RestoreOptions {
    /// Let the kernel choose the numbers of processes and threads.
    pub new_pid: bool,
    /// Leave the processes stopped (SIGSTOP) before their first instruction.
    pub stopped: bool,
    /// Let them run as soon as the memory is there that they need first. All else comes meanwhile, see
    /// [`Restored::filling`].
    pub lazy: bool,
    /// The names of things that cannot be brought back and that the process may go without.
    pub accept: Vec<String>,
    /// Directories in which all paths that the snapshot names must lie, see [`paths_of`]; if there are none, all paths are
    /// allowed.
    pub allow: Vec<PathBuf>,
    /// What becomes of TCP connections.
    pub tcp: TcpChoice,
    /// Standard streams that led to a terminal, or to a process that is not restored, lead to `/dev/null`, and not where
    /// this program's own do.
    pub without_streams: bool,
    /// How long the new processes may take to stand still while they are built.
    pub stop: StopOptions,
}

/// What a restore did.
#[derive(Debug)]
#[non_exhaustive]
pub struct Restored {
    /// The process, or the first of the tree. It is a child of this process.
    pub pid: i32,
    /// All processes, the first one first.
    pub pids: Vec<i32>,
    /// Pages that were written before the first instruction.
    pub restored_pages: PageCount,
    /// From the beginning until the first instruction could run.
    pub first_instruction: Duration,
    /// Why what is written from now on is not tracked, if it is not: the next snapshot is full then.
    pub not_tracked: Option<String>,
    /// What is otherwise than it was, for people.
    pub notes: Vec<String>,
    /// With [`RestoreOptions::lazy`]: the memory that still comes. If this program ends before all is there, the processes are
    /// killed.
    pub filling: Option<Filling>,
}

/// Refuses what cannot be brought back and was not accepted.
fn check_blockers(view: &View, accepted: &[String]) -> Result<(), RestoreError> {
    let id = view.id();
    if members_of(view).is_empty() {
        return Err(RestoreError::NotAProcess { id });
    }
    let blockers = blockers_of(view).ok_or(RestoreError::MemoryOnly { id })?;
    let stays = |blocker: &Blocker| stays(blocker, accepted);
    let blockers: Vec<Blocker> = blockers.into_iter().filter(stays).collect();
    match blockers.is_empty() {
        true => Ok(()),
        false => Err(RestoreError::Blocked { id, blockers }),
    }
}

/// Puts a process into the group-stop of SIGSTOP at its very instruction: no signal that waits may be delivered before, so all
/// are blocked until it stands.
fn halt(
    mut process: StoppedProcess,
    states: &[ThreadState],
    options: StopOptions,
) -> Result<StoppedProcess, RestoreError> {
    let mut deaf = states.to_vec();
    deaf.iter_mut()
        .for_each(|state| state.signal_mask = u64::MAX);
    process
        .set_thread_states(&deaf)
        .map_err(RebuildError::from)?;
    process
        .enter_group_stop(options.timeout)
        .map_err(RebuildError::from)?;
    process
        .set_thread_states(states)
        .map_err(RebuildError::from)?;
    Ok(process)
}

/// Starts the process or the processes of `view`, a snapshot in `store`, again. They are children of this process,
/// which may leave them alone by ending once this has returned.
///
/// Everything is built by the calling thread; it must live until this returns. No other thread of this process may open
/// files meanwhile without O_CLOEXEC, nor wait for children that it does not name.
pub fn restore(
    store: &Store,
    view: &View,
    options: &RestoreOptions,
) -> Result<Restored, RestoreError> {
    let started = Instant::now();
    check_blockers(view, &options.accept)?;
    let plans = members_of(view);
    let plans = plans.iter().map(|(_, names)| Plan::of(view, names));
    let plans = plans.collect::<Result<Vec<_>, _>>()?;
    let files = match view.attachment(OPEN_FILES_ATTACHMENT) {
        Some(bytes) => OpenFiles::from_bytes(bytes)?,
        None => return Err(RestoreError::MemoryOnly { id: view.id() }),
    };
    paths::check_allowed(&paths::paths(&plans, &files), &options.allow)?;
    let numbers = claim_numbers(view, &plans, options.new_pid)?;
    limits::check(view)?;
    let own = kernel_mappings_of(std::process::id().cast_signed());
    let own = own.map_err(RebuildError::from)?;
    let mut openers = Openers::new(&options.allow);
    for plan in &plans {
        if let Some(first) = plan.kernel.threads.first() {
            openers.add(plan.pid, &first.credentials);
        }
    }
    let mut sources = Sources::new(OUT_OF_THE_WAY);
    let mut programs = Vec::with_capacity(plans.len());
    for plan in &plans {
        plan.check_vdso(view, &own)?;
        let opener = openers.of(plan.pid);
        sources.open_all(plan.regions, opener)?;
        programs.push(sources.program(plan, opener)?);
    }
    let regions = plans.iter().flat_map(|plan| {
        let opener = openers.of(plan.pid);
        plan.regions.iter().map(move |region| (region, opener))
    });
    let mut made = Made::default();
    objects::make_all(view, regions, &mut sources, &mut made, &options.accept)?;

    let choices = ReopenChoices {
        accepted: options.accept.clone(),
        at_least: OUT_OF_THE_WAY,
        objects: sources.objects()?,
        tcp: options.tcp,
        openers: openers.clone(),
        without_streams: options.without_streams,
    };
    let mut reopened = files.reopen(&choices)?;

    // Memory that comes later cannot be inherited.
    let (inheritance, inherited) = match options.lazy || plans.len() < 2 {
        true => Default::default(),
        false => Inheritance::prepare(view, &plans, &sources)?,
    };
    apart::leave_numbers(&numbers);
    let born = Born::bear(view, &plans, options.new_pid)?;
    drop(inherited);
    let mut notes = std::mem::take(&mut reopened.notes);
    notes.extend(born.notes());
    for plan in &plans {
        notes.extend(enter_control_groups(
            born.now(plan.pid),
            &plan.kernel.cgroups,
        ));
    }
    let lazy = options.lazy.then(|| Lazy::new(store, view)).transpose()?;
    let poisoned = poisoned_of(view);
    let accepted = |name: &String| name.starts_with(crate::poison::KIND);
    let mut building = Building {
        poisoned: &poisoned,
        poison_accepted: options.accept.iter().any(accepted),
        lazy: lazy.as_ref(),
        store,
        view,
        sources: &sources,
        inheritance: &inheritance,
        files: &files,
        reopened: &reopened,
        born: &born,
        new_pid: options.new_pid,
        restored_pages: PageCount(0),
        not_tracked: None,
        notes: Vec::new(),
    };
    let mut built = Vec::with_capacity(plans.len());
    for (plan, program) in plans.iter().zip(&programs) {
        let mut new = NewProcess::take(born.now(plan.pid), options.stop)?;
        building.fill(plan, program, &mut new)?;
        built.push(new);
    }
    files.finish(&reopened, &openers, &|then| {
        born.has(then).then(|| born.now(then))
    })?;
    apart::leave_numbers(&numbers);
    let mut states = Vec::with_capacity(plans.len());
    for (plan, new) in plans.iter().zip(&mut built) {
        states.push(building.make_ready(plan, new)?);
    }
    made.put_back()?;
    files.connect(&reopened)?;
    notes.append(&mut building.notes);
    let (restored_pages, not_tracked) = (building.restored_pages, building.not_tracked);
    // One whose memory is not there must never run without whoever serves it.
    let finish = match lazy {
        Some(_) => NewProcess::finish_bound,
        None => NewProcess::finish,
    };
    let mut built: Vec<StoppedProcess> = built.into_iter().map(finish).collect();
    if options.stopped {
        built = built
            .into_iter()
            .zip(&states)
            .map(|(process, states)| {
                // Those that are let go by a failure must not run.
                halt(process, states, options.stop).inspect_err(|_| born.kill())
            })
            .collect::<Result<_, _>>()?;
    }
    // Those that are let go by a failure must not run.
    let mut filling = lazy
        .map(Lazy::fill)
        .transpose()
        .inspect_err(|_| born.kill())?;
    let first_instruction = started.elapsed();
    let mut guards = Vec::new();
    for (plan, process) in plans.iter().zip(built) {
        let resumed = match filling {
            Some(ref filling) => filling
                .resume_guarded(process, born.is_root(plan.pid))
                .map(|guard| guards.push(guard))
                .map_err(RestoreError::from),
            None => process.resume().map_err(RestoreError::from),
        };
        resumed.inspect_err(|_| born.kill())?;
    }
    if let Some(filling) = &mut filling {
        filling.guard(guards);
    }
    let pids: Vec<i32> = plans.iter().map(|plan| born.now(plan.pid)).collect();
    born.live();
    made.keep();
    reopened.keep();
    Ok(Restored {
        pid: pids[0],
        pids,
        restored_pages,
        first_instruction,
        not_tracked,
        notes,
        filling,
    })
}
