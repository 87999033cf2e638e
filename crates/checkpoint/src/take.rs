//! One snapshot, from the first harvest to durable.
//!
//! While the processes run: tracking begins if it has not, and in pre-copy mode most pages are copied
//! and stored in rounds. While they are stopped: mappings, harvest, registers, and a copy of what is left
//! into memory that was allocated before. While they run again: hashing, compression, disk.
//!
//! Every harvest lives in [`Harvests`] until the snapshot is durable. On any error it is dropped, which
//! gives all of them back.

use crate::arena::Arena;
use crate::capture::{CaptureError, Copied, SIZE};
use crate::checkpointer::{AttachError, Checkpointer};
use crate::file_pages::{FileHashes, file_page};
use crate::files::{self, FileReport};
use crate::layout::{self, Watch};
use crate::leave::LeaveGuard;
use crate::mark::Phase;
use crate::memo::Memo;
use crate::numa::NumaRecord;
use crate::objects::{Earlier, Objects, in_file};
use crate::options::{Options, Request};
use crate::precopy::{Precopied, Sink};
use crate::report::{NotCaptured, NotTracked, Report};
use crate::rings::{self, AsynchronousIo};
use crate::spaces::Spaces;
use crate::tracking::TrackingError;
use crate::tree::{self, AllStopped, TreeProcess};
use crate::window::{Stopped, Window};
use pagetide_kernel::maps::{self, Mapping, MapsError};
use pagetide_kernel::memory::MemoryError;
use pagetide_kernel::pagemap_scan::ScanError;
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};
use pagetide_process::{
    OutsideState, ProcessState, ResumeError, StateReadError, StopError, ThreadStateError,
};
use pagetide_snapshot::{PageHash, PageState, SnapshotKind, SnapshotWriter, View, WriteError};
use pagetide_tracker::{GivenBack, Harvest, TrackError};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// So often is a capture repeated because a file changed meanwhile; then files are compared.
const SETTLED_ATTEMPTS: usize = 2;

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
        source: std::io::Error,
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
struct Harvests {
    taken: Vec<(i32, Harvest)>,
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

/// What was found outside of one process before it was stopped.
#[derive(Default)]
struct Before {
    mappings: Vec<Mapping>,
    io: AsynchronousIo,
    again: PageSet,
}

/// Where the pages of one snapshot go.
struct Writing {
    spaces: Spaces,
    writer: SnapshotWriter,
}

/// What one stop of all processes gave.
struct Instantaneous {
    /// In the order of the members; `None` for one that had ended.
    members: Vec<Option<Stopped>>,
    objects: Objects,
    object_pages: Vec<ObjectPages>,
    report: FileReport,
    hashes: FileHashes,
    io: Vec<AsynchronousIo>,
    processes: Vec<TreeProcess>,
    stop: Duration,
    copy: Duration,
}

/// What was found of the pages of one object.
struct ObjectPages {
    number: usize,
    states: Vec<(PageRange, PageState)>,
    in_file: Vec<(PageIndex, PageHash)>,
    copied: PageCount,
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
                    SnapshotKind::Full => self.why_full.take(),
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
        let set = |member: &mut crate::member::Member| member.set_phase(phase);
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
            member.outside = known_outside(member.identity())?;
        }
        let mut leave = LeaveGuard::new(request.leave, self.options.stop_timeout);
        for member in &self.members {
            leave.stop(member.pid())?;
        }
        let mut found =
            self.stop_until_settled(parent, &mut precopied, &mut writing, harvests, &mut leave)?;
        check_cancelled(&self.options)?;

        self.store_pages(&mut writing)?;
        self.store_states(&mut writing, &found)?;
        self.arena.clear();
        check_cancelled(&self.options)?;
        let (not_captured, not_tracked) = self.describe_all(&mut writing.spaces, &mut found);
        writing.spaces.tell(&mut writing.writer)?;
        let memos = self.attach_states(&mut writing.writer, &mut found)?;
        let counters = writing.writer.counters();
        let view = writing.writer.commit()?;
        leave.after_commit()?;
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
            not_tracked,
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
        for member in &mut self.members {
            let mut sink = Sink {
                number: writing.spaces.number_of(&member.names.space),
                arena: &mut self.arena,
                spaces: &writing.spaces,
                writer: &mut writing.writer,
            };
            let taken = &mut harvests.taken;
            let precopied = member.precopy(parent, &self.options, &mut sink, taken);
            let precopied = member.unless_lost(precopied)?;
            self.arena.clear();
            expected += precopied.expected;
            all.push(precopied);
        }
        self.arena.prepare(SIZE.bytes_of(expected + expected));
        Ok(all)
    }

    /// Stops the processes and copies, again if what was taken for unchanged before the stop is not so
    /// after it. In the last attempt nothing is taken for unchanged.
    fn stop_until_settled(
        &mut self,
        parent: Option<&View>,
        precopied: &mut [Precopied],
        writing: &mut Writing,
        harvests: &mut Harvests,
        leave: &mut LeaveGuard,
    ) -> Result<Instantaneous, TakeError> {
        let mut again: HashMap<i32, PageSet> = HashMap::new();
        let (mut stop, mut copy) = (Duration::ZERO, Duration::ZERO);
        for attempt in 0.. {
            check_cancelled(&self.options)?;
            let trust_files = attempt < SETTLED_ATTEMPTS;
            let mut before = Vec::with_capacity(self.members.len());
            for (number, member) in self.members.iter().enumerate() {
                let pid = member.pid();
                let mappings = member.unless_lost(maps::mappings(pid))?;
                let io = rings::asynchronous_io(pid, &mappings);
                let mut again = again.remove(&pid).unwrap_or_default();
                if let Some(precopied) = precopied.get(number)
                    && !precopied.covered.is_empty()
                    && (io.any || rings::reads_directly(pid))
                {
                    again = again.union(&precopied.covered);
                }
                before.push(Before {
                    mappings,
                    io,
                    again,
                });
            }
            let report = match trust_files {
                true => self.look_at_files(before.iter().map(|before| &before.mappings[..])),
                false => self.look_at_kinds(before.iter().map(|before| &before.mappings[..])),
            };
            let hashes = self.hash_files(parent, &before, &report)?;
            let mut ready = PageCount(0);
            for (member, before) in self.members.iter().zip(&before) {
                ready += member.unless_lost(member.written_now(&before.mappings))?;
            }
            self.arena.prepare(SIZE.bytes_of(ready));

            let (mut stopped, others) = self.stop_all()?;
            for number in others {
                // What was found before the stop was another program's.
                for found in precopied.iter_mut().skip(number).take(1) {
                    *found = Precopied::default();
                }
                for found in before.iter_mut().skip(number).take(1) {
                    *found = Before::default();
                }
            }
            for member in &mut self.members[before.len()..] {
                leave.stop_now(member.pid())?;
                member.set_phase(Phase::Harvesting)?;
            }
            before.resize_with(self.members.len(), Before::default);
            for (member, process) in self.members.iter_mut().zip(&stopped) {
                if process.is_some() && member.outside.is_none() {
                    // Once it runs again, it may end.
                    member.outside = Some(OutsideState::read(member.identity())?);
                }
            }
            let since = stopped
                .iter()
                .flatten()
                .map(|process| process.since())
                .min();
            let mut found = self
                .capture_all(
                    &mut stopped,
                    (parent, precopied),
                    (&before, &report, hashes),
                    writing,
                    harvests,
                )
                .map_err(|error| self.explain(error))?;
            copy += found.copy;
            for process in stopped.into_iter().flatten() {
                let pid = process.identity().pid;
                match process.resume() {
                    // Somebody killed this child, but all of it was copied.
                    Err(ResumeError::Gone { .. }) if pid != self.identity().pid => {}
                    other => other?,
                }
            }
            stop += since.map_or(Duration::ZERO, |since| since.elapsed());

            let mappings = found.members.iter().map(|stopped| match stopped {
                Some(stopped) => &stopped.layout.mappings[..],
                None => &[],
            });
            let after = self.look_at_files(mappings);
            let mut settled = !trust_files || after.agrees_with(&report);
            let mut io_after = Vec::with_capacity(found.members.len());
            for ((member, before), stopped) in self.members.iter().zip(&before).zip(&found.members)
            {
                let Some(stopped) = stopped else {
                    io_after.push(AsynchronousIo::default());
                    continue;
                };
                let io = rings::asynchronous_io(member.pid(), &stopped.layout.mappings);
                let new_buffers = io.buffers.subtract(&stopped.memo.buffers);
                settled &= (io.any, io.unlisted_ring) == (before.io.any, before.io.unlisted_ring)
                    && new_buffers.is_empty();
                again.insert(
                    member.pid(),
                    before.again.union(&stopped.read).union(&new_buffers),
                );
                io_after.push(io);
            }
            found.io = io_after;
            if settled {
                let stamps = match trust_files {
                    true => after.settled(),
                    false => Vec::new(),
                };
                for stopped in found.members.iter_mut().flatten() {
                    stopped.memo.settled.clone_from(&stamps);
                }
                found.report = after;
                (found.stop, found.copy) = (stop, copy);
                return Ok(found);
            }
            self.arena.clear();
        }
        unreachable!("the loop ends by returning")
    }

    fn look_at_files<'a>(&mut self, mappings: impl Iterator<Item = &'a [Mapping]>) -> FileReport {
        let pids = self.members.iter().map(|member| member.identity().pid);
        self.files.look(pids.zip(mappings))
    }

    /// What kinds of files there are, with none of them taken for settled.
    fn look_at_kinds<'a>(&mut self, mappings: impl Iterator<Item = &'a [Mapping]>) -> FileReport {
        self.look_at_files(mappings).without_settled()
    }

    /// Hashes what settled files have where mappings may show them and the parent does not say so.
    fn hash_files(
        &self,
        parent: Option<&View>,
        before: &[Before],
        report: &FileReport,
    ) -> Result<FileHashes, TakeError> {
        let mut wanted: HashMap<files::FileKey, PageSet> = HashMap::new();
        for (member, before) in self.members.iter().zip(before) {
            let standing = |mapping: &&Mapping| {
                mapping.has_file() && report.standing(files::key(mapping)).is_some()
            };
            let over_file = |mapping: &&Mapping| layout::watch(mapping) == Watch::OverFile;
            let all = before.mappings.iter().filter(standing);
            let private: PageSet = all.clone().filter(over_file).map(Mapping::pages).collect();
            let found = member.unless_lost(member.private_pages(&private))?;
            let mut needless = found.copies.union(&found.guards);
            if let Some(memo) = member.memo_of(parent)
                && let Some(view) = parent
                && let Some(space) = view.space_index(&member.names.space)
            {
                let unchanged = member.unchanged_files(view, &before.mappings, report, memo);
                needless = needless.union(&in_file(view, space, &unchanged));
            }
            let earlier = member.memo_of(parent).map(|memo| memo.settled.iter());
            let earlier: HashSet<_> = earlier.into_iter().flatten().collect();
            // What is shared is told by object, and was when its file was this already.
            let told =
                |mapping: &&Mapping| mapping.shared && report.unchanged_since(mapping, &earlier);
            for mapping in all.filter(|mapping| !told(mapping)) {
                let pages = PageSet::from(mapping.pages());
                let pages = pages.subtract(&needless.within(mapping.pages()));
                let first = file_page(mapping, mapping.pages().start());
                let shift = |range: &PageRange| {
                    let start = first.0 + (range.start().0 - mapping.pages().start().0);
                    PageRange::with_count(PageIndex(start), range.count())
                };
                let shown = wanted.entry(files::key(mapping)).or_default();
                shown.extend(pages.ranges().iter().map(shift));
            }
        }
        let mut hashes = FileHashes::default();
        for (key, pages) in &wanted {
            if let Some(stamps) = report.standing(*key) {
                hashes.add(&self.files, *key, pages, stamps.size_bytes);
            }
        }
        Ok(hashes)
    }

    /// All that is done while the processes are stopped.
    fn capture_all(
        &mut self,
        stopped: &mut AllStopped,
        (parent, precopied): (Option<&View>, &[Precopied]),
        (before, report, hashes): (&[Before], &FileReport, FileHashes),
        writing: &mut Writing,
        harvests: &mut Harvests,
    ) -> Result<Instantaneous, TakeError> {
        let nothing = Precopied::default();
        let window = |number: usize| Window {
            parent,
            precopied: precopied.get(number).unwrap_or(&nothing),
            again: &before[number].again,
            report,
            hashes: &hashes,
            io: &before[number].io,
        };
        for member in &self.members {
            writing.spaces.number(&member.names.space);
        }
        let mut objects = Objects::default();
        let mut looked = Vec::with_capacity(self.members.len());
        for (number, process) in stopped.iter_mut().enumerate() {
            let Some(process) = process else {
                looked.push(None);
                continue;
            };
            let member = &mut self.members[number];
            let (window, taken) = (window(number), &mut harvests.taken);
            let found = member.look(process, &window, &self.files, taken)?;
            for mapping in found.layout.each_object() {
                objects.add(number, mapping, &mut writing.spaces);
            }
            looked.push(Some(found));
        }
        let copy_started = Instant::now();
        let Writing { spaces, writer } = writing;
        let mut members = Vec::with_capacity(looked.len());
        for (number, looked) in looked.into_iter().enumerate() {
            let Some(looked) = looked else {
                members.push(None);
                continue;
            };
            let member = &self.members[number];
            self.arena.open_space(spaces.number_of(&member.names.space));
            let mut spill = |arena: &Arena| Ok(spaces.store(arena, writer)?);
            let copied = Copied::new(&mut self.arena, &mut spill);
            members.push(Some(member.copy(looked, &window(number), copied)?));
        }
        let memos = self.members.iter().filter_map(|m| m.memo_of(parent));
        let earlier = Earlier {
            parent,
            settled: memos
                .flat_map(|memo| memo.settled.iter().copied())
                .collect(),
            report,
            files: &self.files,
            hashes: &hashes,
        };
        let mut object_pages = Vec::with_capacity(objects.list().len());
        for object in objects.list() {
            self.arena.open_space(object.number);
            let mut spill = |arena: &Arena| Ok(spaces.store(arena, writer)?);
            let mut copied = Copied::new(&mut self.arena, &mut spill);
            object.capture(&self.members, &earlier, &mut copied)?;
            object_pages.push(ObjectPages {
                number: object.number,
                states: copied.states,
                in_file: copied.in_file,
                copied: copied.pages.count(),
            });
        }
        Ok(Instantaneous {
            members,
            objects,
            object_pages,
            report: FileReport::default(),
            hashes,
            io: Vec::new(),
            processes: match self.options.tree {
                true => self.processes(),
                false => Vec::new(),
            },
            stop: Duration::ZERO,
            copy: copy_started.elapsed(),
        })
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

    /// Describes all spaces, and names what is missing from them.
    fn describe_all(
        &mut self,
        spaces: &mut Spaces,
        found: &mut Instantaneous,
    ) -> (Vec<NotCaptured>, Vec<NotTracked>) {
        let (mut not_captured, mut not_tracked) = (Vec::new(), Vec::new());
        let nothing = AsynchronousIo::default();
        for (number, member) in self.members.iter_mut().enumerate() {
            let Some(stopped) = &mut found.members[number] else {
                continue;
            };
            let io = found.io.get(number).unwrap_or(&nothing);
            let (regions, missing) = member.describe(stopped, &mut self.files, &found.report, io);
            let number = spaces.number_of(&member.names.space);
            spaces.describe(number, regions);
            not_captured.extend(missing);
            not_tracked.append(&mut stopped.refused);
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
        if self.options.tree
            && let Some(bytes) = tree::to_bytes(&found.processes)
        {
            writer.attach(tree::TREE_ATTACHMENT, bytes)?;
        }
        Ok(memos)
    }

    /// An error in the stop window of a process that is gone is told as just that.
    fn explain(&self, error: TakeError) -> TakeError {
        match self.identity().is_alive_and_same() {
            true => error,
            false => TakeError::Ended {
                pid: self.identity().pid,
            },
        }
    }
}

/// What /proc says of a process; `None` if it has ended.
fn known_outside(
    identity: &pagetide_process::ProcessIdentity,
) -> Result<Option<OutsideState>, TakeError> {
    match OutsideState::read(identity) {
        Err(_) if !identity.is_alive_and_same() => Ok(None),
        other => Ok(Some(other?)),
    }
}
