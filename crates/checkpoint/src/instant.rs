//! One instant: all members stand still, what has changed of them is copied, and they run on. Again if what
//! was taken for unchanged before the stop, or for known, turns out not to be so after it.

use crate::advice::{self, Looks};
use crate::arena::Arena;
use crate::capture::{Copied, SIZE};
use crate::checkpointer::Checkpointer;
use crate::file_pages::{FileHashes, file_page};
use crate::files::{self, FileReport};
use crate::growth;
use crate::layout::{self, Watch};
use crate::leave::LeaveGuard;
use crate::mark::Phase;
use crate::member::Member;
use crate::objects::{Earlier, Objects, in_file};
use crate::precopy::Precopied;
use crate::probes::Code;
use crate::restorable::Restorable;
use crate::rings::{self, AsynchronousIo};
use crate::take::{Harvests, TakeError, Writing, check_cancelled};
use crate::tree::{AllStopped, TreeProcess};
use crate::watchers::{self, Watched};
use crate::window::{Stopped, Window};
use crate::writers;
use pagetide_kernel::maps::{self, Mapping};
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};
use pagetide_process::{OutsideState, ResumeError, RingsOfThreads, StoppedProcess};
use pagetide_snapshot::{PageHash, PageState, View};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// So often is a capture repeated because a file changed meanwhile; then files are compared.
const SETTLED_ATTEMPTS: usize = 2;
/// So often because I/O rings or their buffers came and went; then all memory is compared. Who watches a process is looked
/// for in the stop then, too.
const LISTED_ATTEMPTS: usize = 4;

/// What was found outside of one process before it was stopped.
#[derive(Default)]
struct Before {
    mappings: Vec<Mapping>,
    io: AsynchronousIo,
    again: PageSet,
    code: Code,
}

/// What one stop of all processes gave.
pub(crate) struct Instantaneous {
    /// In the order of the members; `None` for one that had ended.
    pub members: Vec<Option<Stopped>>,
    pub objects: Objects,
    pub object_pages: Vec<ObjectPages>,
    pub report: FileReport,
    pub hashes: FileHashes,
    pub io: Vec<AsynchronousIo>,
    pub processes: Vec<TreeProcess>,
    pub restorable: Restorable,
    pub stop: Duration,
    pub copy: Duration,
}

/// What was found of the pages of one object.
pub(crate) struct ObjectPages {
    pub number: usize,
    pub states: Vec<(PageRange, PageState)>,
    pub in_file: Vec<(PageIndex, PageHash)>,
    pub copied: PageCount,
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

impl Checkpointer {
    /// Stops the processes and copies, again if what was taken for unchanged before the stop is not so
    /// after it. In the last attempt nothing is taken for unchanged.
    pub(crate) fn stop_until_settled(
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
            let most_mappings = growth::most_mappings();
            for member in &mut self.members {
                member.most_mappings = most_mappings;
            }
            let mut before = Vec::with_capacity(self.members.len());
            for (number, member) in self.members.iter().enumerate() {
                let pid = member.pid();
                let mappings = member.unless_lost(maps::mappings(pid))?;
                member.space.memory.expect(&mappings);
                let io = member.asynchronous_io(&mappings);
                let mut again = again.remove(&pid).unwrap_or_default();
                if let Some(precopied) = precopied.get(number)
                    && !precopied.covered.is_empty()
                    && (io.any || precopied.is_doubtful || rings::reads_directly(pid))
                {
                    again = again.union(&precopied.covered);
                }
                before.push(Before {
                    mappings,
                    io,
                    again,
                    code: Code::default(),
                });
            }
            let trust_io = attempt < LISTED_ATTEMPTS;
            for before in before.iter_mut().filter(|_| !trust_io) {
                before.io = AsynchronousIo::distrusted();
            }
            let report = match trust_files {
                true => self.look_at_files(before.iter().map(|before| &before.mappings[..])),
                false => self.look_at_kinds(before.iter().map(|before| &before.mappings[..])),
            };
            for (member, before) in self.members.iter().zip(&mut before) {
                let process = member.as_probed(&before.mappings, &self.files);
                before.code = process.code_never_written();
            }
            let hashes = self.hash_files(parent, &before, &report)?;
            let mut ready = PageCount(0);
            for (member, before) in self.members.iter_mut().zip(&before) {
                let written = member.written_now(&before.mappings);
                ready += member.unless_lost(written)?;
            }
            self.arena.prepare(SIZE.bytes_of(ready));
            let watched = self.watched();
            let counts: Vec<usize> = before.iter().map(|found| found.mappings.len()).collect();
            let mut looks = Looks::before(&mut self.members, &counts, attempt);

            let (mut stopped, others) = self.stop_all()?;
            looks.stopped(&self.members, &others);
            let others_are = !others.is_empty();
            for number in others {
                // What was found before the stop was another program's.
                for found in precopied.iter_mut().skip(number).take(1) {
                    *found = Precopied::default();
                }
                for found in before.iter_mut().skip(number).take(1) {
                    *found = Before::default();
                }
            }
            let known = before.len();
            let is_looked_at_inside =
                attempt >= LISTED_ATTEMPTS || others_are || self.members.len() > known;
            let watched = match is_looked_at_inside {
                true => self.watched(),
                false => watched,
            };
            for member in &mut self.members[known..] {
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
            let inside = looks.inside(&self.members);
            let capture = || {
                self.capture_all(
                    &mut stopped,
                    (parent, precopied),
                    (&before, &report, hashes, &watched),
                    writing,
                    harvests,
                )
            };
            let (captured, inside) = match inside.is_empty() {
                true => (capture(), HashMap::new()),
                false => beside(|| advice::read_all(&inside), capture),
            };
            let mut found = captured.map_err(|error| self.explain(error))?;
            copy += found.copy;
            for member in &self.members[known..] {
                // Not before: the signal must not be found waiting.
                leave.stop_now(member)?;
            }
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
                let io = member.asynchronous_io(&stopped.layout.mappings);
                let new_buffers = io.buffers.subtract(&stopped.memo.buffers);
                let same = (io.any, io.unlisted.is_empty())
                    == (before.io.any, before.io.unlisted.is_empty());
                settled &= !trust_io || same && new_buffers.is_empty();
                again.insert(
                    member.pid(),
                    before.again.union(&stopped.read).union(&new_buffers),
                );
                io_after.push(io);
            }
            found.io = io_after;
            settled &= is_looked_at_inside || !watchers::has_new(&watched, &self.watched());
            settled &= looks.after(&mut self.members, &inside, &mut found.members);
            if settled {
                let stamps = match trust_files {
                    true => after.settled(),
                    false => Vec::new(),
                };
                let is_call_under_way = writers::is_call_under_way();
                for stopped in found.members.iter_mut().flatten() {
                    stopped.memo.settled.clone_from(&stamps);
                    if is_call_under_way {
                        stopped.memo.in_flight = std::mem::take(&mut stopped.may_land);
                    }
                }
                found.report = after;
                (found.stop, found.copy) = (stop, copy);
                return Ok(found);
            }
            self.arena.clear();
        }
        unreachable!("the loop ends by returning")
    }

    /// What the threads of all processes say of their rings, where nothing else is asked of them.
    fn rings_of(&self, stopped: &mut AllStopped) -> Vec<RingsOfThreads> {
        let ask = |(number, process): (usize, &mut Option<StoppedProcess>)| {
            let tracks = self
                .members
                .get(number)
                .is_some_and(|one| one.tracking.is_some());
            let process = process.as_mut().filter(|_| tracks);
            process
                .map(StoppedProcess::rings_of_threads)
                .unwrap_or_default()
        };
        stopped.iter_mut().enumerate().map(ask).collect()
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
        (before, report, hashes, watched): (&[Before], &FileReport, FileHashes, &Watched),
        writing: &mut Writing,
        harvests: &mut Harvests,
    ) -> Result<Instantaneous, TakeError> {
        for member in &self.members {
            writing.spaces.number(&member.names.space);
        }
        // Before any page is copied: threads make system calls for it, on whose way the kernel writes the number of the
        // processor into their memory (rseq(2)).
        let mut restorable = match self.options.restorable {
            true => Restorable::read(stopped, self.options.tree),
            false => Restorable::default(),
        };
        let rings = match self.options.restorable {
            true => std::mem::take(&mut restorable.rings),
            false => self.rings_of(stopped),
        };
        let nothing = Precopied::default();
        let pids: Vec<i32> = self.members.iter().map(Member::pid).collect();
        let window = |number: usize| Window {
            parent,
            precopied: precopied.get(number).unwrap_or(&nothing),
            again: &before[number].again,
            report,
            files: &self.files,
            hashes: &hashes,
            io: &before[number].io,
            rings: &rings[number],
            code: &before[number].code,
            watchers: watched.get(&pids[number]).map_or(&[], Vec::as_slice),
        };
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
        objects.look(&self.files, report)?;
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
        let copy = copy_started.elapsed();
        Ok(Instantaneous {
            members,
            restorable,
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
            copy,
        })
    }
}
