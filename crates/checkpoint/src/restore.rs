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
mod fill;
mod inherit;
mod journal;
mod lazy;
mod limits;
mod made;
mod mappings;
mod nature;
mod objects;
mod paths;
mod plan;
mod poison;
mod policy;
mod segments;
mod sources;

use crate::apart;
use crate::file_pages::FilePagesError;
use crate::poison::poisoned_of;
use crate::restorable::{blockers_of, stays};
use crate::tree::members_of;
use birth::{Born, claim_numbers};
use build::Building;
use inherit::Inheritance;
use lazy::Lazy;
pub use lazy::{FillError, FilledReport, Filling, LazyError};
pub use limits::check as check_limits;
use made::Made;
pub(crate) use nature::device_of_memory;
use pagetide_kernel::memory::MemoryError;
use pagetide_kernel::pidfd::PidFdError;
use pagetide_kernel::spawn::SpawnError;
use pagetide_pages::PageCount;
use pagetide_process::{
    Blocker, KernelStateApplyError, NewProcess, OPEN_FILES_ATTACHMENT, OpenFiles,
    OpenFilesDecodeError, Openers, RebuildError, RemoteCallError, ReopenChoices, ReopenError,
    ResumeError, StateDecodeError, StopOptions, StoppedProcess, TcpChoice, ThreadState,
    enter_control_groups, kernel_mappings_of,
};
use pagetide_snapshot::{ReadError, SnapshotId, Store, View};
pub use paths::paths_of;
use plan::Plan;
use sources::Sources;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Descriptors of ours have numbers from here on, so that they are not in the way of those of the new processes.
const OUT_OF_THE_WAY: i32 = 4096;

/// Why a process was not restored. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The snapshot is not one of a process.
    #[error("snapshot {id} holds no process")]
    NotAProcess {
        /// Its id.
        id: SnapshotId,
    },
    /// Things that cannot be brought back, and that were not accepted.
    #[error("snapshot {id} holds what cannot be brought back and was not accepted")]
    Blocked {
        /// Its id.
        id: SnapshotId,
        /// What.
        blockers: Vec<Blocker>,
    },
    /// The state in the snapshot cannot be read.
    #[error("the process state in the snapshot")]
    State(#[from] StateDecodeError),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] ReadError),
    /// A file that is needed is not what it was.
    #[error("{path}, which the process had mapped, {reason}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it, for people.
        reason: String,
    },
    /// The code that the kernel maps into every process is another.
    #[error(
        "the vdso of this kernel is not that of snapshot {id}, and the program may call into it"
    )]
    Vdso {
        /// The snapshot.
        id: SnapshotId,
    },
    /// It says something of a process that is true of none.
    #[error("snapshot {id} is of no process that there can be: {what}")]
    Impossible {
        /// The snapshot.
        id: SnapshotId,
        /// What.
        what: String,
    },
    /// It has more mappings than this machine allows.
    #[error(
        "process {pid} of the snapshot needs {needed} mappings, and this machine allows {allowed}: sysctl -w vm.max_map_count={needed}"
    )]
    TooManyMappings {
        /// The process.
        pid: i32,
        /// How many it needs while it is made.
        needed: u64,
        /// How many a process may have.
        allowed: u64,
    },
    /// A number that the process had belongs to another.
    #[error("the number {pid} that a process or thread of the snapshot had belongs to {owner} now")]
    Taken {
        /// The number.
        pid: i32,
        /// Who has it.
        owner: String,
    },
    /// A process that was made cannot be held.
    #[error("cannot hold the new process {pid}")]
    Held {
        /// The process.
        pid: i32,
        /// What the kernel said.
        #[source]
        source: PidFdError,
    },
    /// Its parent began another session when it was born already.
    #[error(
        "process {pid} is in session {session}, and its parent {parent} is in another: such a child cannot be made again"
    )]
    Session {
        /// The child.
        pid: i32,
        /// Its session.
        session: i32,
        /// Its parent.
        parent: i32,
    },
    /// The processes could not be made.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// A process could not be built.
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
    /// A mapping could not be made.
    #[error("cannot map {start:#x}-{end:#x} {name}")]
    Map {
        /// First address.
        start: u64,
        /// Address past the last byte.
        end: u64,
        /// Its name.
        name: String,
        /// What went wrong.
        #[source]
        source: RemoteCallError,
    },
    /// What was made could not be looked at.
    #[error(transparent)]
    Maps(#[from] pagetide_kernel::maps::MapsError),
    /// Its memory could not be written.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Shared memory could not be made again.
    #[error("cannot make {name} again")]
    Object {
        /// Its name.
        name: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The snapshot was taken without what a restore needs.
    #[error("snapshot {id} holds memory and registers only: it was taken with --memory-only")]
    MemoryOnly {
        /// Its id.
        id: SnapshotId,
    },
    /// A path of the snapshot is none that the user allows.
    #[error("the snapshot names {path}, which is not allowed")]
    NotAllowed {
        /// The path.
        path: PathBuf,
    },
    /// The list of open files cannot be read.
    #[error("the open files in the snapshot")]
    FilesDecode(#[from] OpenFilesDecodeError),
    /// An open file could not be brought back.
    #[error(transparent)]
    Reopen(#[from] ReopenError),
    /// What the kernel keeps for a process could not be brought back.
    #[error(transparent)]
    Kernel(#[from] KernelStateApplyError),
    /// Pages that were left in a file are no longer there.
    #[error(transparent)]
    FilePages(#[from] FilePagesError),
    /// No descriptor could be made.
    #[error("cannot have another file descriptor: the limit of open files is too low")]
    Descriptors(#[source] std::io::Error),
    /// This process could not be examined.
    #[error("cannot read what /proc says of this process")]
    Own(#[source] std::io::Error),
    /// Its memory could not be made to come later.
    #[error(transparent)]
    Lazy(#[from] LazyError),
    /// Memory could not be made such that reading it is a SIGBUS, as it was.
    #[error("poison {start:#x}-{end:#x}, which was so: {why:?} (UFFDIO_POISON needs Linux 6.6)")]
    Poison {
        /// First address.
        start: u64,
        /// Address past the last byte.
        end: u64,
        /// What the kernel said.
        why: pagetide_kernel::userfaultfd::missing::NotPut,
    },
    /// It was killed before it ran.
    #[error(transparent)]
    Resume(#[from] ResumeError),
}

impl RestoreError {
    /// True if the snapshot cannot be restored here, as opposed to something that failed.
    pub fn is_refusal(&self) -> bool {
        matches!(self, RestoreError::Reopen(error) if error.is_refusal())
            || matches!(
                self,
                RestoreError::NotAProcess { .. }
                    | RestoreError::Blocked { .. }
                    | RestoreError::File { .. }
                    | RestoreError::Vdso { .. }
                    | RestoreError::Impossible { .. }
                    | RestoreError::TooManyMappings { .. }
                    | RestoreError::Taken { .. }
                    | RestoreError::Session { .. }
                    | RestoreError::MemoryOnly { .. }
                    | RestoreError::NotAllowed { .. }
                    | RestoreError::Spawn(SpawnError::NotPermitted { .. })
                    | RestoreError::Rebuild(RebuildError::KernelMappings(_))
            )
    }
}

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

/// Makes the table of descriptors of this program as large as a restore needs it. A program that is to restore soon had better call
/// this before it has other threads: to replace the table of a process of several takes the kernel some ten milliseconds (it waits
/// for an RCU grace period), and of a process of one thread nothing.
/// If it fails, the restore will tell.
pub fn make_room_for_descriptors() {
    sources::raise_limit(OUT_OF_THE_WAY);
    rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), OUT_OF_THE_WAY).ok();
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
