//! One snapshot, from the first harvest to durable.
//!
//! While the processes run: tracking begins if it has not, and in pre-copy mode most pages are copied
//! and stored in rounds. While they are stopped: mappings, harvest, registers, and a copy of what is left
//! into memory that was allocated before. While they run again: hashing, compression, disk.
//!
//! Every harvest lives in [`Harvests`] until the snapshot is durable. On any error it is dropped, which
//! gives all of them back.

mod attach;
mod context;
mod describe;
mod droppable;
mod file_hashes;
mod instant;
mod leave;
mod looks;
mod precopy;
pub(crate) mod restorable;
mod second_look;
mod standstill;
mod store;
mod window;

use crate::arena::Arena;
use crate::capture::SIZE;
use crate::error::TakeError;
use crate::files::Files;
use crate::harvests::{Harvests, Sink, Writing, check_cancelled};
use crate::mark::Phase;
use crate::members::Members;
use crate::memo::Memos;
use crate::options::{Leave, Options, Request};
use crate::report::Report;
use crate::spaces::Spaces;
use crate::why_full::WhyFull;
use context::Context;
use describe::Description;
use leave::LeaveGuard;
use pagetide_pages::PageCount;
use pagetide_process::OutsideState;
use pagetide_snapshot::{SnapshotId, SnapshotKind, Store, View, WriteCounters, WriterLock};
use precopy::Precopied;
use standstill::{Instantaneous, ObjectPages};
use std::time::{Duration, Instant};
use window::WindowResult;

/// One snapshot to be taken: of whom, into which store, and how.
pub(crate) struct Take<'a> {
    pub members: &'a mut Members,
    pub store: &'a Store,
    pub lock: &'a WriterLock,
    pub options: &'a Options,
    pub files: &'a mut Files,
    pub arena: &'a mut Arena,
}

/// A snapshot that is durable.
struct Stored {
    view: View,
    memos: Memos,
    report: Report,
}

impl Take<'_> {
    /// Takes the snapshot. If it fails, what was harvested counts as written again.
    #[tracing::instrument(level = "debug", skip_all, name = "snapshot")]
    pub fn run(mut self, request: Request, started: Instant) -> Result<Report, TakeError> {
        check_cancelled(self.options)?;
        self.members.drop_ended();
        self.members.find()?;
        let begin = self.members.begin_tracking()?;
        let parent = if request.full {
            None
        } else {
            self.members.last.clone()
        };
        let members = self.members.list().iter();
        let phases: Vec<(i32, Option<Phase>)> = members
            .map(|member| (member.pid(), member.phase()))
            .collect();
        let mut harvests = Harvests::default();
        match self.store_one(request, parent.as_ref(), &mut harvests) {
            Ok(stored) => {
                harvests.commit();
                let mut report = self.remember(request, stored)?;
                report.stop += begin;
                report.total = started.elapsed();
                Ok(report)
            }
            Err(error) => {
                // The mark may say again what it said before only if the kernel's bits do, too.
                let lost = harvests.give_back();
                for (pid, phase) in phases {
                    let mut members = self.members.list_mut().iter_mut();
                    let member = members.find(|member| member.pid() == pid);
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

    /// The next delta counts from what was stored. The bits count from it from now on, even if the mark cannot say so.
    fn remember(&mut self, request: Request, stored: Stored) -> Result<Report, TakeError> {
        let Stored {
            view,
            mut memos,
            mut report,
        } = stored;
        let (id, hash) = (view.id(), view.info().content_hash);
        for member in self.members.list_mut() {
            member.memo = memos.remove(&member.pid());
        }
        self.members.last = Some(view);
        report.why_full = match report.kind {
            SnapshotKind::Full => Some(self.explain_full(request, id)),
            SnapshotKind::Delta => None,
        };
        self.members.set_phases(Phase::Committed(id, hash))?;
        Ok(report)
    }

    /// Why the snapshot that was just taken is full.
    fn explain_full(&mut self, request: Request, id: SnapshotId) -> WhyFull {
        match self.members.why_full.take() {
            _ if request.full => WhyFull::AskedFor,
            Some(why) => why,
            None if id == SnapshotId(1) => WhyFull::First,
            None => WhyFull::NotTracked,
        }
    }

    fn store_one(
        &mut self,
        request: Request,
        parent: Option<&View>,
        harvests: &mut Harvests,
    ) -> Result<Stored, TakeError> {
        let mut context = self.begin(parent, harvests)?;
        let mut precopied = precopy_all(&mut context)?;
        for member in context.members.list_mut() {
            let read = OutsideState::read(member.identity()).map(Some);
            member.outside = member.unless_lost(read)?;
        }
        let mut leave = LeaveGuard::new(request.leave, context.options.stop_timeout);
        for member in context.members.list() {
            leave.stop(member)?;
        }
        let mut found = instant::stop_until_settled(&mut context, &mut precopied, &mut leave)?;
        check_cancelled(context.options)?;

        store::pages(&mut context, &found)?;
        store::states(&mut context, &found)?;
        store::look_again(&context, &mut found);
        context.arena.clear();
        check_cancelled(context.options)?;
        found.restorable.forget_stops(&leave.stopped_here());
        let description = describe::all(&mut context, &mut found)?;
        let memos = attach::all(&mut context, &mut found, &description.poisoned)?;
        let Context {
            members,
            options,
            writing,
            ..
        } = context;
        let counters = writing.writer.counters();
        let view = writing.writer.commit()?;
        let left = leave.after_commit(found.restorable.is_blocked(&options.accept))?;
        let mut report = report(members, (&view, &counters), &found, description, left);
        report.blockers = options.restorable.then_some(found.restorable.blockers);
        Ok(Stored {
            view,
            memos,
            report,
        })
    }

    /// Begins the file, and says in the processes that a harvest is under way.
    fn begin<'a>(
        &'a mut self,
        parent: Option<&'a View>,
        harvests: &'a mut Harvests,
    ) -> Result<Context<'a>, TakeError> {
        let mut options = self.options.write.clone();
        // What fork(2) left the same in parent and child is stored once.
        options.deduplicate |= self.options.tree;
        let mut writing = Writing {
            spaces: Spaces::told(self.options.progress.clone()),
            writer: self.store.begin(self.lock, parent, options)?,
        };
        for member in self.members.list() {
            writing.spaces.number(&member.names.space);
        }
        writing.spaces.tell(&mut writing.writer)?;
        self.members.set_phases(Phase::Harvesting)?;
        self.arena.clear();
        Ok(Context {
            members: self.members,
            options: self.options,
            files: self.files,
            arena: self.arena,
            parent,
            writing,
            harvests,
        })
    }
}

/// Copies and stores most pages of all members while they run, and makes room for the rest.
#[tracing::instrument(level = "debug", skip_all, name = "pre-copy")]
fn precopy_all(context: &mut Context<'_>) -> Result<Vec<Precopied>, TakeError> {
    let mut all = Vec::with_capacity(context.members.list().len());
    let mut expected = PageCount(0);
    let watched = context.members.watched();
    for member in context.members.list_mut() {
        let watchers = watched.get(&member.pid()).map_or(&[][..], Vec::as_slice);
        let Writing { spaces, writer } = &mut context.writing;
        let mut sink = Sink {
            number: spaces.number_of(&member.names.space),
            arena: context.arena,
            spaces,
            writer,
        };
        let taken = &mut context.harvests.taken;
        let (parent, options) = (context.parent, context.options);
        let precopied = precopy::precopy(member, parent, options, watchers, &mut sink, taken);
        let precopied = member.unless_lost(precopied)?;
        context.arena.clear();
        expected += precopied.expected;
        all.push(precopied);
    }
    context.arena.prepare(SIZE.bytes_of(expected + expected));
    Ok(all)
}

/// What the snapshot was, but for what is known only to who asked for it.
fn report(
    members: &Members,
    (view, counters): (&View, &WriteCounters),
    found: &Instantaneous,
    description: Description,
    left: Leave,
) -> Report {
    let info = view.info();
    let stopped = || found.members.iter().flatten();
    let count = |set: fn(&WindowResult) -> PageCount| stopped().map(set).sum::<PageCount>();
    let objects = || found.object_pages.iter();
    let in_objects: PageCount = objects().map(|pages| pages.copied).sum();
    let file_pages = |pages: &ObjectPages| PageCount(pages.in_file.len() as u64);
    let in_files: PageCount = objects().map(file_pages).sum();
    Report {
        id: info.id,
        parent: info.parent,
        kind: info.kind,
        backend: members.backend(),
        processes: stopped().count(),
        written_pages: count(|stopped| stopped.copied.count()) + in_objects,
        window_pages: count(|stopped| stopped.window.count()) + in_objects,
        // Pages with the bytes of others are not stored again, and some are put more than once.
        stored_pages: info.pages.min(counters.stored_pages),
        difference_pages: info.pages.min(counters.difference_pages),
        zero_pages: counters.zero_pages,
        file_pages: count(|stopped| stopped.in_file.count()) + in_files,
        logical_bytes: info.logical_bytes,
        stored_bytes: info.stored_bytes,
        stop: found.stop,
        scan: stopped().map(|stopped| stopped.scan).sum(),
        copy: found.copy,
        total: Duration::ZERO,
        not_captured: description.not_captured,
        poisoned: description.poisoned,
        not_tracked: description.not_tracked,
        mappings_added: mappings_added(members, found),
        blockers: None,
        why_full: None,
        left,
    }
}

/// How many mappings there are only because of tracking.
fn mappings_added(members: &Members, found: &Instantaneous) -> u64 {
    let members = members.list().iter().zip(&found.members);
    let added = members.filter_map(|(member, stopped)| {
        let tracking = member.tracking.as_ref()?;
        Some(tracking.mappings_added(&stopped.as_ref()?.layout.mappings))
    });
    added.sum()
}
