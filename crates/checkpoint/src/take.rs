//! One snapshot, from the first harvest to durable.
//!
//! While the processes run: tracking begins if it has not, and in pre-copy mode most pages are copied
//! and stored in rounds. While they are stopped: mappings, harvest, registers, and a copy of what is left
//! into memory that was allocated before. While they run again: hashing, compression, disk.
//!
//! Every harvest lives in [`Harvests`] until the snapshot is durable. On any error it is dropped, which
//! gives all of them back.

use crate::capture::{CaptureError, SIZE};
use crate::checkpointer::{AttachError, Checkpointer};
use crate::compared::ComparedBecause;
use crate::file_pages::file_page;
use crate::files::{self};
use crate::instant::{Instantaneous, ObjectPages};
use crate::leave::LeaveGuard;
use crate::mark::Phase;
use crate::member::{Member, MemberNames};
use crate::memo::Memo;
use crate::numa::NumaRecord;
use crate::object_records;
use crate::options::{Options, Request};
use crate::poison;
use crate::precopy::{Precopied, Sink};
use crate::probes;
use crate::report::{NotCaptured, NotTracked, Report};
use crate::rings::AsynchronousIo;
use crate::spaces::Spaces;
use crate::tracking::TrackingError;
use crate::tree::{self};
use crate::watchers::{self, Watched};
use crate::window::Stopped;
use pagetide_kernel::maps::MapsError;
use pagetide_kernel::memory::MemoryError;
use pagetide_kernel::pagemap_scan::ScanError;
use pagetide_kernel::pidfd::PidFdError;
use pagetide_pages::{PageCount, PageIndex, PageRange};
use pagetide_process::{
    OutsideState, ProcessState, RebuildError, ResumeError, StateReadError, StopError,
    ThreadStateError,
};
use pagetide_snapshot::{SnapshotKind, SnapshotWriter, View, WriteError};
use pagetide_tracker::{GivenBack, Harvest, TrackError};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Why a snapshot was not taken. The process runs on, the store is as it was before, and what was
/// harvested counts as written again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TakeError {
    /// The caller asked for it.
    #[error("the checkpoint was cancelled")]
    Cancelled,
    /// The process ended.
    #[error("process {pid} has ended")]
    Ended {
        /// The process.
        pid: i32,
    },
    /// A child cannot be handled.
    #[error("process {pid} of the tree")]
    Member {
        /// The child.
        pid: i32,
        /// Why not.
        #[source]
        source: Box<AttachError>,
    },
    /// A process that is being restored could not be tracked.
    #[error(transparent)]
    Build(Box<RebuildError>),
    /// The process could not be stopped.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// The process could not be let go.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// Tracking could not begin.
    #[error(transparent)]
    Tracking(#[from] TrackingError),
    /// Written pages could not be found.
    #[error(transparent)]
    Track(#[from] TrackError),
    /// The mappings could not be read.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// Registers could not be read.
    #[error(transparent)]
    Threads(#[from] ThreadStateError),
    /// Other state of the process could not be read.
    #[error(transparent)]
    State(#[from] StateReadError),
    /// Pages could not be copied.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The snapshot could not be stored.
    #[error(transparent)]
    Store(#[from] WriteError),
    /// The process could not be left stopped or be killed.
    #[error("signal process {pid}")]
    Signal {
        /// The process.
        pid: i32,
        /// What the kernel said.
        #[source]
        source: PidFdError,
    },
}

impl TakeError {
    /// True if the address space that was tracked is gone: the process ended or executed a program.
    pub(crate) fn is_space_gone(&self) -> bool {
        matches!(
            self,
            TakeError::Track(TrackError::SpaceGone | TrackError::Scan(ScanError::SpaceGone { .. }))
                | TakeError::Capture(
                    CaptureError::Memory(MemoryError::SpaceGone { .. })
                        | CaptureError::Scan(ScanError::SpaceGone { .. })
                )
                | TakeError::Stop(StopError::Exec { .. })
        )
    }
}

impl TakeError {
    /// True if the end of a child can be the reason.
    pub(crate) fn may_be_of_a_child(&self) -> bool {
        !matches!(self, TakeError::Cancelled | TakeError::Store(_))
    }
}

/// An error if the caller wants no more.
pub(crate) fn check_cancelled(options: &Options) -> Result<(), TakeError> {
    match options.cancel.load(Ordering::Relaxed) {
        true => Err(TakeError::Cancelled),
        false => Ok(()),
    }
}

/// Everything harvested for one snapshot, with the process it is of, until it is durable.
#[derive(Default)]
pub(crate) struct Harvests {
    pub taken: Vec<(i32, Harvest)>,
}

impl Harvests {
    fn commit(self) {
        self.taken
            .into_iter()
            .for_each(|(_, harvest)| harvest.commit());
    }

    /// The processes of which the kernel itself does not count all of it as written again.
    fn give_back(self) -> Vec<i32> {
        let given = self
            .taken
            .into_iter()
            .map(|(pid, harvest)| (pid, harvest.give_back()));
        given
            .filter(|(_, given)| *given != GivenBack::InKernel)
            .map(|(pid, _)| pid)
            .collect()
    }
}

/// Where the pages of one snapshot go.
pub(crate) struct Writing {
    pub spaces: Spaces,
    pub writer: SnapshotWriter,
}

/// What a snapshot leaves behind for the next one.
type Memos = HashMap<i32, Memo>;

impl Checkpointer {
    pub(crate) fn try_take(
        &mut self,
        request: Request,
        started: Instant,
    ) -> Result<Report, TakeError> {
        check_cancelled(&self.options)?;
        self.drop_ended();
        self.find_members()?;
        let begin = self.begin_tracking()?;
        let parent = match request.full {
            true => None,
            false => self.last.clone(),
        };
        let phases: Vec<(i32, Option<Phase>)> = self
            .members
            .iter()
            .map(|member| (member.pid(), member.phase()))
            .collect();
        let mut harvests = Harvests::default();
        let outcome = self.store_one(request, parent.as_ref(), &mut harvests);
        match outcome {
            Ok((view, mut memos, mut report)) => {
                harvests.commit();
                let (id, hash) = (view.id(), view.info().content_hash);
                // The bits count from this snapshot from now on, even if the mark cannot say so.
                for member in &mut self.members {
                    member.memo = memos.remove(&member.pid());
                }
                self.last = Some(view);
                report.why_full = match report.kind {
                    SnapshotKind::Full => Some(self.explain_full(request, id)),
                    SnapshotKind::Delta => None,
                };
                self.set_phases(Phase::Committed(id, hash))?;
                report.stop += begin;
                report.total = started.elapsed();
                Ok(report)
            }
            Err(error) => {
                // The mark may say again what it said before only if the kernel's bits do, too.
                let lost = harvests.give_back();
                for (pid, phase) in phases {
                    let member = self.members.iter_mut().find(|member| member.pid() == pid);
                    if let (Some(member), Some(phase)) = (member, phase)
                        && !lost.contains(&pid)
                    {
                        let _ = member.set_phase(phase);
                    }
                }
                Err(error)
            }
        }
    }

    fn set_phases(&mut self, phase: Phase) -> Result<(), TakeError> {
        let set = |member: &mut Member| member.set_phase(phase);
        self.members.iter_mut().try_for_each(set)
    }

    fn store_one(
        &mut self,
        request: Request,
        parent: Option<&View>,
        harvests: &mut Harvests,
    ) -> Result<(View, Memos, Report), TakeError> {
        let mut options = self.options.write.clone();
        // What fork(2) left the same in parent and child is stored once.
        options.deduplicate |= self.options.tree;
        let mut writing = Writing {
            spaces: Spaces::default(),
            writer: self.store.begin(&self.lock, parent, options)?,
        };
        for member in &self.members {
            writing.spaces.number(&member.names.space);
        }
        writing.spaces.tell(&mut writing.writer)?;
        self.set_phases(Phase::Harvesting)?;
        self.arena.clear();

        let mut precopied = self.precopy_all(parent, &mut writing, harvests)?;
        for member in &mut self.members {
            let read = OutsideState::read(member.identity()).map(Some);
            member.outside = member.unless_lost(read)?;
        }
        let mut leave = LeaveGuard::new(request.leave, self.options.stop_timeout);
        for member in &self.members {
            leave.stop(member)?;
        }
        let mut found =
            self.stop_until_settled(parent, &mut precopied, &mut writing, harvests, &mut leave)?;
        check_cancelled(&self.options)?;

        self.store_pages(&mut writing)?;
        self.store_states(&mut writing, &found)?;
        self.look_again(&writing.spaces, &mut found);
        self.arena.clear();
        check_cancelled(&self.options)?;
        let (not_captured, not_tracked) = self.describe_all(&mut writing.spaces, &mut found);
        writing.spaces.tell(&mut writing.writer)?;
        found.restorable.look_from_outside();
        let mut poisoned = Vec::new();
        for (member, stopped) in self.members.iter().zip(&found.members) {
            if let Some(stopped) = stopped {
                let mappings = &stopped.layout.mappings;
                found.restorable.look_at_mappings(member.pid(), mappings);
                let own = member.poisoned(stopped, &found.report, parent);
                let number = writing.spaces.number_of(&member.names.space);
                let regions = writing.spaces.regions_of(number);
                found.restorable.name_poisoned(&own, regions);
                poisoned.extend(own);
                let blockers = probes::blockers(
                    member.pid(),
                    mappings,
                    &stopped.threads,
                    &stopped.breakpoints,
                );
                found.restorable.name(blockers);
            }
        }
        found.restorable.name_missing(&not_captured);
        let memos = self.attach_states(&mut writing.writer, &mut found)?;
        if let Some(bytes) = poison::to_bytes(&poisoned) {
            writing.writer.attach(poison::ATTACHMENT, bytes)?;
        }
        let counters = writing.writer.counters();
        let view = writing.writer.commit()?;
        let info = view.info();
        let stopped = || found.members.iter().flatten();
        let of_objects = found.object_pages.iter();
        let in_objects: PageCount = of_objects.map(|pages| pages.copied).sum();
        let count = |set: fn(&Stopped) -> PageCount| stopped().map(set).sum::<PageCount>();
        let file_pages = |pages: &ObjectPages| PageCount(pages.in_file.len() as u64);
        let in_files = found.object_pages.iter().map(file_pages).sum::<PageCount>();
        let report = Report {
            id: info.id,
            parent: info.parent,
            kind: info.kind,
            backend: self.backend,
            processes: stopped().count(),
            written_pages: count(|stopped| stopped.copied.count()) + in_objects,
            window_pages: count(|stopped| stopped.window.count()) + in_objects,
            // Pages with the bytes of others are not stored again, and some are put more than once.
            stored_pages: info.pages.min(counters.stored_pages),
            zero_pages: counters.zero_pages,
            file_pages: count(|stopped| stopped.in_file.count()) + in_files,
            logical_bytes: info.logical_bytes,
            stored_bytes: info.stored_bytes,
            stop: found.stop,
            scan: stopped().map(|stopped| stopped.scan).sum(),
            copy: found.copy,
            total: Duration::ZERO,
            not_captured,
            poisoned,
            not_tracked,
            mappings_added: self.mappings_added(&found),
            left: leave.after_commit(found.restorable.is_blocked(&self.options.accept))?,
            blockers: match self.options.restorable {
                true => Some(std::mem::take(&mut found.restorable.blockers)),
                false => None,
            },
            why_full: None,
        };
        Ok((view, memos, report))
    }

    /// Copies and stores most pages of all members while they run, and makes room for the rest.
    fn precopy_all(
        &mut self,
        parent: Option<&View>,
        writing: &mut Writing,
        harvests: &mut Harvests,
    ) -> Result<Vec<Precopied>, TakeError> {
        let mut all = Vec::with_capacity(self.members.len());
        let mut expected = PageCount(0);
        let watched = self.watched();
        for member in &mut self.members {
            let watchers = watched.get(&member.pid()).map_or(&[][..], Vec::as_slice);
            let mut sink = Sink {
                number: writing.spaces.number_of(&member.names.space),
                arena: &mut self.arena,
                spaces: &writing.spaces,
                writer: &mut writing.writer,
            };
            let taken = &mut harvests.taken;
            let precopied = member.precopy(parent, &self.options, watchers, &mut sink, taken);
            let precopied = member.unless_lost(precopied)?;
            self.arena.clear();
            expected += precopied.expected;
            all.push(precopied);
        }
        self.arena.prepare(SIZE.bytes_of(expected + expected));
        Ok(all)
    }

    /// By process, why its memory must not be marked.
    pub(crate) fn watched(&self) -> Watched {
        let own = |member: &Member| (member.pid(), member.own_userfaultfd());
        let processes: Vec<(i32, Option<i32>)> = self.members.iter().map(own).collect();
        watchers::watched_among(&processes)
    }

    /// Stores what the arena holds, in batches, so that it can be cancelled and watched.
    fn store_pages(&self, writing: &mut Writing) -> Result<(), TakeError> {
        const PIECES_AT_ONCE: usize = 4096;
        writing.spaces.tell(&mut writing.writer)?;
        let all = self.arena.pieces();
        let length = |pieces: &[(PageIndex, &[u8])]| -> u64 {
            pieces.iter().map(|(_, bytes)| bytes.len() as u64).sum()
        };
        let total: u64 = all.iter().map(|(_, pieces)| length(pieces)).sum();
        let mut done = 0;
        for (space, pieces) in &all {
            for batch in pieces.chunks(PIECES_AT_ONCE) {
                check_cancelled(&self.options)?;
                writing.writer.put_pages(*space, batch)?;
                done += length(batch);
                if let Some(progress) = &self.options.progress {
                    (progress.0)(done, total);
                }
            }
        }
        Ok(())
    }

    /// Remembers for the next snapshot what arrived after it was copied.
    fn look_again(&self, spaces: &Spaces, found: &mut Instantaneous) {
        for (member, stopped) in self.members.iter().zip(&mut found.members) {
            let Some(stopped) = stopped else { continue };
            let number = spaces.number_of(&member.names.space);
            let late = member.second_look(&self.arena, number, stopped);
            // Of a process that does asynchronous I/O all of it is copied again.
            let late = late.subtract(&stopped.memo.in_flight);
            if !late.is_empty() {
                stopped.memo.in_flight = stopped.memo.in_flight.union(&late);
                let told = NotTracked::whole(member.pid(), ComparedBecause::WrittenUnseen);
                stopped.not_tracked.push(told);
            }
        }
    }

    /// Stores what is known of pages without bytes.
    fn store_states(&self, writing: &mut Writing, found: &Instantaneous) -> Result<(), TakeError> {
        let Writing { spaces, writer } = writing;
        for (member, stopped) in self.members.iter().zip(&found.members) {
            let Some(stopped) = stopped else { continue };
            let number = spaces.number_of(&member.names.space);
            for &(range, state) in &stopped.states {
                writer.put_state(number, range, state)?;
            }
            for (mapping, _) in stopped.layout.each() {
                let pages = stopped.in_file.within(mapping.pages());
                for &range in pages.ranges() {
                    let first = file_page(mapping, range.start());
                    let shown = PageRange::with_count(first, range.count());
                    for (part, hashes) in found.hashes.known(files::key(mapping), shown) {
                        let start = range.start().0 + (part.start().0 - first.0);
                        writer.put_file_pages(number, PageIndex(start), hashes)?;
                    }
                }
            }
        }
        for pages in &found.object_pages {
            for &(range, state) in &pages.states {
                writer.put_state(pages.number, range, state)?;
            }
            for &(page, hash) in &pages.in_file {
                writer.put_file_pages(pages.number, page, &[hash])?;
            }
        }
        Ok(())
    }

    /// How many mappings there are only because of tracking.
    fn mappings_added(&self, found: &Instantaneous) -> u64 {
        let members = self.members.iter().zip(&found.members);
        let added = members.filter_map(|(member, stopped)| {
            let tracking = member.tracking.as_ref()?;
            Some(tracking.mappings_added(&stopped.as_ref()?.layout.mappings))
        });
        added.sum()
    }

    /// Describes all spaces, and names what is missing from them.
    fn describe_all(
        &mut self,
        spaces: &mut Spaces,
        found: &mut Instantaneous,
    ) -> (Vec<NotCaptured>, Vec<NotTracked>) {
        let (mut not_captured, mut not_tracked) = (Vec::new(), Vec::new());
        let nothing = AsynchronousIo::default();
        for (number, member) in self.members.iter().enumerate() {
            let Some(stopped) = &mut found.members[number] else {
                continue;
            };
            let io = found.io.get(number).unwrap_or(&nothing);
            let (regions, missing) = member.describe(stopped, &mut self.files, &found.report, io);
            let number = spaces.number_of(&member.names.space);
            spaces.describe(number, regions);
            not_captured.extend(missing);
            not_tracked.append(&mut stopped.not_tracked);
        }
        found
            .objects
            .describe(&mut self.files, &found.report, spaces);
        (not_captured, not_tracked)
    }

    /// Attaches registers and the like, and what is to be remembered.
    fn attach_states(
        &self,
        writer: &mut SnapshotWriter,
        found: &mut Instantaneous,
    ) -> Result<Memos, TakeError> {
        let mut memos = Memos::new();
        for (member, stopped) in self.members.iter().zip(&mut found.members) {
            let Some(stopped) = stopped else { continue };
            let outside = match &member.outside {
                Some(outside) => outside.clone(),
                None => OutsideState::read(member.identity())?,
            };
            let state = ProcessState {
                outside,
                threads: std::mem::take(&mut stopped.threads),
            };
            writer.attach(member.names.process.as_str(), state.to_bytes())?;
            // Without a memo the next snapshot is full.
            let memo = std::mem::take(&mut stopped.memo);
            if let Some(bytes) = memo.to_bytes() {
                writer.attach(member.names.memo.as_str(), bytes)?;
            }
            let numa = NumaRecord::of_process(member.pid(), &stopped.layout.mappings);
            if let Some(bytes) = numa.to_bytes() {
                writer.attach(member.names.numa.as_str(), bytes)?;
            }
            memos.insert(member.pid(), memo);
        }
        let tree = self.options.tree;
        found.restorable.attach(writer, |pid| match tree {
            true => MemberNames::in_tree(pid).kernel,
            false => MemberNames::alone().kernel,
        })?;
        if let Some(bytes) = object_records::to_bytes(&found.objects.records()) {
            writer.attach(object_records::ATTACHMENT, bytes)?;
        }
        if self.options.tree
            && let Some(bytes) = tree::to_bytes(&found.processes)
        {
            writer.attach(tree::TREE_ATTACHMENT, bytes)?;
        }
        Ok(memos)
    }

    /// An error in the stop window of a process that is gone is told as just that.
    pub(crate) fn explain(&self, error: TakeError) -> TakeError {
        match self.identity().is_alive_and_same() {
            true => error,
            false => TakeError::Ended {
                pid: self.identity().pid,
            },
        }
    }
}
