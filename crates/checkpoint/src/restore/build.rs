//! One new process built: its memory, its tracking, its threads.

use super::birth::{Newborns, owner_of};
use super::design::Design;
use super::error::RestoreError;
use super::inherit::{Inheritance, Share};
use super::lazy::{self, Chosen, Lazy};
use super::materials::Materials;
use super::options::RestoreOptions;
use super::plan::RestorePlan;
use super::policy::policies_of;
use super::segments::Attached;
use super::{fill, mappings};
use crate::apart;
use crate::backends::choose_backend;
use crate::capture::SIZE;
use crate::error::{AttachError, TakeError, TrackingError};
use crate::mark::Phase;
use crate::member::Member;
use crate::poison::{self, Poisoned};
use crate::tracking::Tracking;
use crate::watchers;
use pagetide_kernel::memory::ProcessMemory;
use pagetide_pages::{PageCount, PageSet};
use pagetide_process::{
    Late, NewProcess, Now, RebuildError, RemoteCalls, Reopened, StopOptions, ThreadId, ThreadState,
    ThreadsByNumber, examine_for_reading,
};
use pagetide_snapshot::{Store, View};
use pagetide_tracker::Backend;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};

/// What all processes of a restore have in common, and what came of it so far.
pub(super) struct Building<'a> {
    store: &'a Store,
    view: &'a View,
    design: &'a Design<'a>,
    poisoned: Vec<Poisoned>,
    /// Memory that cannot be poisoned again may be as it is.
    poison_accepted: bool,
    new_pid: bool,
    stop: StopOptions,
    pub lazy: Option<&'a Lazy>,
    pub built: Built,
}

/// What came of it.
#[derive(Default)]
pub(super) struct Built {
    pub restored_pages: PageCount,
    pub not_tracked: Option<String>,
    /// What is otherwise than it was, for people.
    pub notes: Vec<String>,
}

/// What it is built of.
pub(super) struct Parts<'a> {
    pub materials: &'a Materials,
    pub inheritance: &'a Inheritance,
    pub reopened: &'a Reopened,
    pub born: &'a Newborns,
}

/// Memory that a process has only while it is built.
const SCRATCH_BYTES: u64 = 128 << 10;

impl<'a> Building<'a> {
    /// Nothing is built yet.
    pub fn new(
        store: &'a Store,
        view: &'a View,
        design: &'a Design<'a>,
        options: &RestoreOptions,
    ) -> Self {
        let accepted = |name: &String| name.starts_with(poison::KIND);
        Building {
            store,
            view,
            design,
            poisoned: poison::poisoned_of(view),
            poison_accepted: options.accept.iter().any(accepted),
            new_pid: options.new_pid,
            stop: options.stop,
            lazy: None,
            built: Built::default(),
        }
    }

    /// The third step: maps and fills all of them, and gives them their open files.
    pub fn fill_all(&mut self, parts: &Parts<'_>) -> Result<Vec<NewProcess>, RestoreError> {
        let plans = self.design.plans.iter();
        let mut built = Vec::with_capacity(plans.len());
        for (plan, program) in plans.zip(&parts.materials.programs) {
            let mut new = NewProcess::take(parts.born.now(plan.pid), self.stop)?;
            self.fill(parts, plan, program, &mut new)?;
            built.push(new);
        }
        Ok(built)
    }

    /// The fourth step: begins tracking, and makes all of them ready for their first instruction. Returns what their threads are
    /// set to.
    pub fn make_all_ready(
        &mut self,
        parts: &Parts<'_>,
        built: &mut [NewProcess],
    ) -> Result<Vec<Vec<ThreadState>>, RestoreError> {
        let Design {
            plans,
            files,
            openers,
            numbers,
        } = self.design;
        files.finish(parts.reopened, openers, &|then| parts.born.who_was(then))?;
        apart::leave_numbers(numbers);
        let mut states = Vec::with_capacity(plans.len());
        let mut threads = Vec::with_capacity(plans.len());
        for (plan, new) in plans.iter().zip(&mut *built) {
            let mut of_plan = plan.state.threads.clone();
            threads.push(self.begin(parts, plan, new, &mut of_plan)?);
            states.push(of_plan);
        }
        let now: HashMap<i32, i32> = threads
            .iter()
            .flatten()
            .map(|(was, now)| (was.get(), now.get()))
            .collect();
        let ready = plans.iter().zip(built).zip(threads.iter().zip(&states));
        for ((plan, new), (threads, states)) in ready {
            self.complete(parts, plan, new, (threads, &now))?;
            new.free()?;
            new.set_thread_states(states)?;
        }
        Ok(states)
    }

    /// Maps and fills the memory of `new` as `plan` says, and gives it its open files.
    fn fill(
        &mut self,
        parts: &Parts<'_>,
        plan: &RestorePlan<'_>,
        program: &OwnedFd,
        new: &mut NewProcess,
    ) -> Result<(), RestoreError> {
        let outside = &plan.state.outside;
        let segments = Attached::needed_bytes(plan.regions, &parts.materials.sources);
        let scratch = mappings::free_place(plan.regions, SCRATCH_BYTES + segments);
        let nothing = Share::default();
        let share = parts.inheritance.of(plan.pid).unwrap_or(&nothing);
        new.empty(&plan.kernel_mappings, scratch, &spans(&share.kept))?;
        let place = scratch + SCRATCH_BYTES;
        let policies = policies_of(self.view, plan);
        let (sources, kept) = (&parts.materials.sources, &share.kept);
        let refused = mappings::map_all(new, plan.regions, sources, kept, &policies, place)?;
        self.built.notes.extend(refused);
        mappings::drop_pages(new, &share.dropped)?;
        let program = Some(program.as_raw_fd());
        let layout = &outside.layout;
        mappings::set_layout(new, layout, plan.heap_end(), &outside.auxv, program)?;
        let memory = ProcessMemory::open(new.pid())?;
        let later = self.lazy.map(|lazy| (lazy, Chosen::of(self.view, plan)));
        let pages = later
            .as_ref()
            .map_or(&share.filled, |(_, chosen)| &chosen.pages);
        let filled = fill::fill(self.view, plan.space, pages, &memory)?;
        self.built.restored_pages += filled.pages + share.filled.count();
        let poisoned = poison::pages_of(&self.poisoned, plan.pid);
        super::poison::poison(new, plan.regions, &poisoned, self.poison_accepted)?;
        mappings::seal(new, plan.regions, &filled.guards)?;
        mappings::seal_for_good(new, plan.regions)?;
        let pid = new.pid();
        let mut calls = new.calls(ThreadId::new(pid))?;
        self.design
            .files
            .place(plan.pid, parts.reopened, &mut calls)?;
        end(calls, pid)?;
        match later {
            Some((lazy, chosen)) => lazy.arm(plan, &chosen, new),
            None => Ok(()),
        }
    }

    /// Begins to track `new`, whose memory is filled, and makes its threads, which `states` name then. Returns each as it was,
    /// and as it is now. All processes are there.
    fn begin(
        &mut self,
        parts: &Parts<'_>,
        plan: &RestorePlan<'_>,
        new: &mut NewProcess,
        states: &mut [ThreadState],
    ) -> Result<Vec<(ThreadId, ThreadId)>, RestoreError> {
        let pid = new.pid();
        let first = ThreadId::new(pid);
        let process = |then| parts.born.who_was(then);
        let now = Now {
            process: &process,
            thread: &|_| None,
        };
        let mut calls = new.calls(first)?;
        let files = &self.design.files;
        files.place_late(plan.pid, parts.reopened, Late::Processes, now, &mut calls)?;
        end(calls, pid)?;
        // Whatever is written from here on is not what the snapshot has, and is to be seen.
        if self.lazy.is_some() {
            self.built
                .not_tracked
                .get_or_insert(lazy::NOT_TRACKED.to_owned());
        } else if let Err(error) = self.track(plan, new) {
            tracing::debug!(%error, pid, "not tracked");
            self.built.not_tracked.get_or_insert(error.to_string());
        }
        let mut calls = new.calls(first)?;
        plan.kernel.apply_to_process(pid, &mut calls)?;
        end(calls, pid)?;
        let threads = add_threads(new, states, self.new_pid)?;
        renumber(&plan.kernel.by_number(), &threads, pid)?;
        Ok(threads)
    }

    /// Makes `new`, which has all its threads, ready for its first instruction. All threads of all processes are there: `now` has
    /// their numbers.
    fn complete(
        &self,
        parts: &Parts<'_>,
        plan: &RestorePlan<'_>,
        new: &mut NewProcess,
        (threads, now): (&[(ThreadId, ThreadId)], &HashMap<i32, i32>),
    ) -> Result<(), RestoreError> {
        let pid = new.pid();
        let first = ThreadId::new(pid);
        let late = Now {
            process: &|then| parts.born.who_was(then),
            thread: &|then| now.get(&then).copied(),
        };
        let mut calls = new.calls(first)?;
        let files = &self.design.files;
        files.place_late(plan.pid, parts.reopened, Late::Threads, late, &mut calls)?;
        end(calls, pid)?;
        let mut kernel = plan.kernel.clone();
        if parts.born.is_root(plan.pid) {
            // Its parent is this program now, which may end as soon as it runs.
            for thread in &mut kernel.threads {
                thread.parent_death_signal = 0;
            }
        }
        let by_number = kernel.by_number();
        for &(was, thread) in threads {
            let mut calls = new.calls(thread)?;
            kernel.apply_to_thread(by_number.of(was)?, thread, &mut calls)?;
            end(calls, pid)?;
        }
        for batch in kernel.timer_batches() {
            let maker = batch.maker.and_then(|was| now.get(&was.get()));
            let thread = maker.map_or(first, |thread| ThreadId::new(*thread));
            let mut calls = new.calls(thread)?;
            batch.create(thread, &mut calls)?;
            end(calls, pid)?;
        }
        join_group(parts.born, plan, new)?;
        // The first thread comes last: it sets the timers going.
        for &(was, thread) in threads.iter().rev() {
            let mut calls = new.calls(thread)?;
            kernel.apply_last(by_number.of(was)?, thread, thread == first, &mut calls)?;
            end(calls, pid)?;
        }
        Ok(())
    }

    /// Begins tracking as of the snapshot, so that the next one is a delta to it.
    fn track(&self, plan: &RestorePlan<'_>, new: &mut NewProcess) -> Result<(), TakeError> {
        let attach = |source: AttachError| TakeError::Member {
            pid: plan.pid,
            source: Box::new(source),
        };
        let backend = choose_backend(None).map_err(attach)?;
        if backend == Backend::Rehash {
            return Ok(());
        }
        let pid = new.pid();
        let examined = examine_for_reading(pid).map_err(|error| attach(error.into()))?;
        let identity = examined.identity.clone();
        let mut member = Member::new(examined, plan.names.clone()).map_err(attach)?;
        let calls = new.calls(ThreadId::new(pid));
        let mut calls = calls.map_err(|error| TakeError::Build(Box::new(error)))?;
        let tracking = Tracking::begin_in_new(&mut calls, &identity, backend, self.store.id());
        let finished = calls.finish();
        let mut tracking = tracking?;
        tracking.name_place(self.store);
        member.tracking = Some(tracking);
        finished.map_err(|source| TrackingError::Remote { pid, source })?;
        let layout = member.layout(true, |_| false)?;
        // A process that watches itself is compared each time.
        let is_watched = !watchers::watched(pid, member.own_userfaultfd()).is_empty();
        if let Some(tracking) = member.tracking.as_mut()
            && !is_watched
        {
            // The first harvest takes all that there is: nothing has been written since.
            tracking.tracker.harvest(&layout.tracked)?.commit();
        }
        let phase = Phase::Committed(self.view.id(), self.view.info().content_hash);
        member.set_phase(phase)
    }
}

/// Makes all threads but the first, which is there, and has `states` name them. Each as it was, and as it is now.
fn add_threads(
    new: &mut NewProcess,
    states: &mut [ThreadState],
    new_pid: bool,
) -> Result<Vec<(ThreadId, ThreadId)>, RestoreError> {
    let mut threads = Vec::with_capacity(states.len());
    for (index, state) in states.iter_mut().enumerate() {
        let was = state.thread;
        state.thread = match index {
            0 => ThreadId::new(new.pid()),
            _ => {
                let wanted = (!new_pid).then_some(was.get());
                new.add_thread(wanted).map_err(taken)?
            }
        };
        threads.push((was, state.thread));
    }
    Ok(threads)
}

/// Puts a process into the process group that it was in, if that is one of the tree.
fn join_group(
    born: &Newborns,
    plan: &RestorePlan<'_>,
    new: &mut NewProcess,
) -> Result<(), RestoreError> {
    let outside = &plan.state.outside;
    let group = born.now(outside.pgid);
    let leads_session = outside.sid == plan.pid;
    // Whoever leads a session leads its group, too.
    let leads_session = leads_session || born.is_apart(plan.pid);
    if leads_session || !born.has(outside.pgid) {
        return Ok(());
    }
    let pid = new.pid();
    let remote = |source| RebuildError::Remote {
        what: "join a process group",
        pid,
        source,
    };
    let mut calls = new.calls(ThreadId::new(pid))?;
    let group = u64::from(group.unsigned_abs());
    let joined = calls.call(nix::libc::SYS_setpgid, [0, group, 0, 0, 0, 0]);
    joined.map_err(remote)?;
    end(calls, pid)
}

/// Where the libc keeps the ids of threads (the word that the kernel clears when a thread ends), puts the new ones.
/// What else a program holds of its pids nobody can know.
fn renumber(
    states: &ThreadsByNumber<'_>,
    threads: &[(ThreadId, ThreadId)],
    pid: i32,
) -> Result<(), RestoreError> {
    let changed = threads.iter().filter(|(was, now)| was != now);
    let memory = ProcessMemory::open(pid)?;
    for &(was, now) in changed {
        let address = states.of(was).map_or(0, |state| state.tid_address);
        if address == 0 {
            continue;
        }
        let mut word = [0; 4];
        memory.read(address, &mut word)?;
        if i32::from_le_bytes(word) == was.get() {
            memory.write(address, &now.get().to_le_bytes())?;
        }
    }
    Ok(())
}

/// First address and address past the last byte of each range.
fn spans(pages: &PageSet) -> Vec<(u64, u64)> {
    let ranges = pages.ranges().iter();
    ranges.map(|&range| SIZE.span_of(range)).collect()
}

/// With who has the pid.
fn taken(error: RebuildError) -> RestoreError {
    match error {
        RebuildError::ThreadTaken { thread } => RestoreError::Taken {
            pid: thread.get(),
            owner: owner_of(thread.get()),
        },
        other => other.into(),
    }
}

fn end(calls: RemoteCalls<'_>, pid: i32) -> Result<(), RestoreError> {
    let ended = calls.finish().map_err(|source| RebuildError::Remote {
        what: "end system calls",
        pid,
        source,
    });
    Ok(ended?)
}
