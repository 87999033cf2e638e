//! A live process put back to a snapshot: its layout, its memory, the advice and locks of its mappings, its registers. What the kernel keeps
//! for it (open files and their positions, sockets, pids) is not touched.
//!
//! Everything that can be known to fail is found before anything is changed: which threads there are,
//! which mappings would have to be made and cannot be, and whether every page that will be needed can
//! be read from the store. Only pages that differ are written: those the tracker reports as written
//! since the last snapshot and those the chain says changed between that one and the wanted one, or,
//! without tracking, all pages whose hash is not the wanted one.

mod advice;
mod contents;
mod error;
mod shape;

use crate::advice::{Advice, SEALED};
use crate::claim::checkpointed_by;
use crate::error::TrackingError;
use crate::files::{FileReport, Files};
use crate::manifest::{MEMORY_SPACE, PROCESS_ATTACHMENT, TREE_ATTACHMENT};
use crate::mark::Phase;
use crate::page_tables::PageTables;
use crate::probes::Process;
use crate::rings::{self, Depth};
use crate::tracking::Tracking;
use advice::Advised;
use contents::{Contents, LiveMemory};
pub use error::RollbackError;
use pagetide_kernel::maps::{self, Mapping};
use pagetide_kernel::memory::ProcessMemory;
use pagetide_kernel::pagemap_scan::Pagemap;
use pagetide_pages::{PageCount, PageSet};
use pagetide_process::{
    ProcessIdentity, ProcessState, RemoteCallError, StopOptions, StoppedProcess, SystemCall,
    ThreadId, examine,
};
use pagetide_snapshot::{Region, SnapshotId, Store, View};
use pagetide_tracker::Backend;
use shape::Shape;
use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

/// What a rollback did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RolledBack {
    /// Pages that were written.
    pub restored_pages: PageCount,
    /// Pages that were read to see whether they differ.
    pub compared_pages: PageCount,
    /// How long the process did not run.
    pub stop: Duration,
    /// Advice and locks of mappings that could not be put back, for people.
    pub notes: Vec<String>,
}

/// Puts process `pid` back to `view`, a snapshot in `store`.
pub fn roll_back(
    pid: i32,
    store: &Store,
    view: &View,
    options: StopOptions,
) -> Result<RolledBack, RollbackError> {
    let identity = examine(pid)?.identity;
    let (space, state) = found_in(view, &identity)?;
    let changed = changed_since_tracking(&identity, store, view)?;
    let memory = ProcessMemory::open(pid)?;
    let pagemap = Pagemap::of_process(pid)?;
    let mut files = Files::default();
    let before = maps::mappings(pid)?;
    memory.expect(&before);
    let behind = files.look([(pid, &before[..])]);

    let mut stopped = StoppedProcess::stop(&identity, options)?;
    same_threads(pid, view.id(), stopped.threads(), &state)?;
    let mappings = maps::mappings(pid)?;
    // Reads under way may have landed without a trace since the last snapshot: nothing is trusted.
    let by_threads = stopped.rings_of_threads();
    // What a thread has used once may be with another process by now.
    let io = rings::asynchronous_io(pid, &mappings, Depth::Shallow);
    let changed = changed.filter(|_| !io.any && !by_threads.used);
    let regions = &view.spaces()[space].regions;
    let shape = Shape::plan(&mappings, regions)?;
    shape.check_files(pid)?;
    let empty = holes_shown(&mappings, &files, &behind, &pagemap)?;
    let probes = Process {
        pid,
        memory: &memory,
        tables: PageTables {
            pagemap: &pagemap,
            knows_guards: false,
        },
        mappings: &mappings,
        files: &files,
    };
    let now = LiveMemory {
        memory: &memory,
        pagemap: &pagemap,
        mappings: &mappings,
        empty: &empty,
        instead: &probes.probes_now().instead,
    };
    let contents = Contents::plan(view, space, &now, &shape, changed.as_ref())?;
    let needed = shape.calls().chain(contents.calls()).collect();
    check_calls(pid, &mut stopped, needed)?;

    let advised = plan_advice(pid, &shape, &contents, regions)?;

    // From here on the process is being changed.
    let brk = state.outside.layout.start_brk;
    let put_back = shape
        .apply(pid, &mut stopped, brk)
        .and_then(|()| contents.apply(pid, &mut stopped, view, space, &now))
        .and_then(|()| advise(pid, &mut stopped, &advised, regions))
        .and_then(|()| Ok(stopped.set_thread_states(&state.threads)?));
    put_back.map_err(|source| left_partly(&mut stopped, source))?;
    let notes = advice::left(pid, regions)?;
    let since = stopped.since();
    stopped.resume()?;
    Ok(RolledBack {
        restored_pages: contents.restored(),
        compared_pages: contents.compared(),
        stop: since.elapsed(),
        notes,
    })
}

/// Leaves a process that is put back in part only stopped: it is not what it was, and not what it should be.
fn left_partly(stopped: &mut StoppedProcess, source: RollbackError) -> RollbackError {
    // It may have been killed, which is as good.
    let _ = stopped.signal(rustix::process::Signal::STOP);
    RollbackError::Partly {
        pid: stopped.identity().pid,
        source: Box::new(source),
    }
}

/// Where a snapshot has the memory of the process `identity`, and what it says of it.
fn found_in(
    view: &View,
    identity: &ProcessIdentity,
) -> Result<(usize, ProcessState), RollbackError> {
    let id = view.id();
    if view.attachment(TREE_ATTACHMENT).is_some() {
        return Err(RollbackError::Tree { id });
    }
    let space = view.space_index(MEMORY_SPACE);
    let state = view.attachment(PROCESS_ATTACHMENT);
    let (Some(space), Some(state)) = (space, state) else {
        return Err(RollbackError::NotAProcess { id });
    };
    let state = ProcessState::from_bytes(state)?;
    if state.outside.identity != *identity {
        return Err(RollbackError::AnotherProcess {
            id,
            was: state.outside.identity.pid,
            comm: state.outside.comm,
            pid: identity.pid,
        });
    }
    Ok((space, state))
}

/// The pages that show holes of files.
fn holes_shown(
    mappings: &[Mapping],
    files: &Files,
    behind: &FileReport,
    pagemap: &Pagemap,
) -> Result<PageSet, RollbackError> {
    let mut empty = PageSet::new();
    for mapping in mappings.iter().filter(|mapping| mapping.has_file()) {
        let mut holes = files.holes_in(mapping, behind);
        if !mapping.shared {
            // Where it has copies of its own they show, and not the hole.
            holes = holes.subtract(&contents::holding(pagemap, &holes)?);
        }
        empty = empty.union(&holes);
    }
    Ok(empty)
}

/// What has to be done to advice and locks. Refuses to change what is sealed.
fn plan_advice(
    pid: i32,
    shape: &Shape,
    contents: &Contents,
    regions: &[Region],
) -> Result<Advised, RollbackError> {
    let (now, mappings) = Advice::read(pid)?;
    let sealed = now.pages_with(SEALED);
    shape.check_sealed(&sealed, &mappings)?;
    contents.check_sealed(&sealed, regions)?;
    let fresh = shape.new_pages();
    Ok(Advised::plan(&now, &mappings, regions, &fresh))
}

/// Puts advice and locks back, and looks a second time: some of it shows only then.
fn advise(
    pid: i32,
    stopped: &mut StoppedProcess,
    advised: &Advised,
    regions: &[Region],
) -> Result<(), RollbackError> {
    if advised.is_empty() {
        return Ok(());
    }
    let remote = |source| RollbackError::Remote { pid, source };
    let mut calls = stopped.remote_calls().map_err(remote)?;
    let done = advised.apply(&mut calls).map_err(remote).and_then(|()| {
        let (now, mappings) = Advice::read(pid)?;
        let left = Advised::plan(&now, &mappings, regions, &PageSet::new());
        left.apply(&mut calls).map_err(remote)
    });
    done.and(calls.finish().map_err(remote))
}

/// Whether the process may make these system calls, by number: a seccomp filter may forbid some.
fn check_calls(
    pid: i32,
    stopped: &mut StoppedProcess,
    numbers: BTreeSet<i64>,
) -> Result<(), RollbackError> {
    if numbers.is_empty() {
        return Ok(());
    }
    let remote = |source| RollbackError::Remote { pid, source };
    let calls = stopped.remote_calls().map_err(remote)?;
    for number in numbers {
        if !calls.would_be_allowed(number, [0; 6]).map_err(remote)? {
            let call = SystemCall(number);
            return Err(remote(RemoteCallError::ForbiddenBySeccomp { call }));
        }
    }
    calls.finish().map_err(remote)
}

/// The pages that differ between the snapshot that tracking counts from and `view`; `None` if nothing
/// is tracked, or not for this chain.
fn changed_since_tracking(
    identity: &ProcessIdentity,
    store: &Store,
    view: &View,
) -> Result<Option<PageSet>, RollbackError> {
    // The bits are those of whoever takes checkpoints of it now, and the mark says something else at any moment.
    if checkpointed_by(identity.pid).is_some() {
        return Ok(None);
    }
    // Only write-protection is asked here for what was written since.
    let tracking = match Tracking::find(identity, store.id(), Backend::WpAsync, u64::MAX) {
        // Tracked for another store: its bits count from a snapshot not known here.
        Err(TrackingError::OwnedByAnother { .. }) => None,
        other => other?,
    };
    let phase = tracking.and_then(|tracking| Some(tracking.mark?.content().phase));
    let Some(Phase::Committed(id, hash)) = phase else {
        return Ok(None);
    };
    let base = store
        .view(id)
        .ok()
        .filter(|base| base.info().content_hash == hash);
    Ok(base.map(|base| store.changed(&base, view, MEMORY_SPACE)))
}

fn same_threads(
    pid: i32,
    id: SnapshotId,
    now: &[ThreadId],
    state: &ProcessState,
) -> Result<(), RollbackError> {
    let now: HashSet<ThreadId> = now.iter().copied().collect();
    let then: HashSet<ThreadId> = state.threads.iter().map(|then| then.thread).collect();
    let (born, gone) = (now.difference(&then), then.difference(&now));
    match (born.count(), gone.count()) {
        (0, 0) => Ok(()),
        (born, gone) => Err(RollbackError::Threads {
            pid,
            id,
            born,
            gone,
        }),
    }
}
