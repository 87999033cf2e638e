//! All that is done while the processes stand still: what only their threads can tell, then the harvest, then the copies.

use super::context::Context;
use super::droppable::Asked;
use super::precopy::Precopied;
use super::restorable::Restorable;
use super::window::{Survey, Window, WindowResult};
use crate::arena::Arena;
use crate::capture::Copied;
use crate::error::TakeError;
use crate::file_pages::FileHashes;
use crate::files::{FileReport, Files};
use crate::harvests::Writing;
use crate::manifest::TreeProcess;
use crate::members::{AllStopped, Members};
use crate::objects::{Earlier, Objects};
use crate::probes::Code;
use crate::rings::AsynchronousIo;
use crate::watchers::Watched;
use pagetide_kernel::maps::Mapping;
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};
use pagetide_process::{RingsOfThreads, StoppedProcess};
use pagetide_snapshot::{PageHash, PageState, View};
use std::time::{Duration, Instant};

/// What was found outside of one process before it was stopped.
#[derive(Default)]
pub(crate) struct PriorFindings {
    pub mappings: Vec<Mapping>,
    pub io: AsynchronousIo,
    /// Pages that an earlier attempt copied, and that must be copied again.
    pub again: PageSet,
    pub code: Code,
}

/// What one stop of all processes gave.
pub(crate) struct Instantaneous {
    /// In the order of the members; `None` for one that had ended.
    pub members: Vec<Option<WindowResult>>,
    pub objects: Objects,
    pub object_pages: Vec<ObjectPages>,
    /// What is known of files, after the stop.
    pub report: FileReport,
    pub hashes: FileHashes,
    /// The asynchronous I/O of each member, after the stop.
    pub io: Vec<AsynchronousIo>,
    pub processes: Vec<TreeProcess>,
    pub restorable: Restorable,
    pub stop: Duration,
    pub copy: Duration,
}

/// What was found of the pages of one object.
pub(crate) struct ObjectPages {
    /// The index of its space.
    pub number: usize,
    pub states: Vec<(PageRange, PageState)>,
    pub in_file: Vec<(PageIndex, PageHash)>,
    pub copied: PageCount,
}

/// What the stop is entered with. Of each member there is one, also of those that were found in it.
pub(crate) struct Standstill<'a> {
    pub parent: Option<&'a View>,
    pub precopied: &'a [Precopied],
    pub before: &'a [PriorFindings],
    pub report: &'a FileReport,
    pub hashes: &'a FileHashes,
    pub watched: &'a Watched,
}

impl Standstill<'_> {
    /// All that is done while the processes are stopped.
    pub fn capture_all(
        &self,
        context: &mut Context<'_>,
        stopped: &mut AllStopped,
    ) -> Result<Instantaneous, TakeError> {
        for member in context.members.list() {
            context.writing.spaces.number(&member.names.space);
        }
        // Before any page is copied: threads make system calls for it, on whose way the kernel writes the number of the
        // processor into their memory (rseq(2)).
        let mut restorable = if context.options.restorable {
            Restorable::read(stopped, context.options.tree)
        } else {
            Restorable::default()
        };
        let rings = if context.options.restorable {
            std::mem::take(&mut restorable.rings)
        } else {
            rings_of(context.members, stopped)
        };
        let (looked, mut objects) = self.look_at_all(context, stopped, &rings)?;
        let copy_started = Instant::now();
        let members = self.copy_members(context, looked, &rings)?;
        let object_pages = self.copy_objects(context, &mut objects)?;
        let copy = copy_started.elapsed();
        Ok(Instantaneous {
            members,
            restorable,
            objects,
            object_pages,
            report: FileReport::default(),
            hashes: FileHashes::default(),
            io: Vec::new(),
            processes: context.members.processes(),
            stop: Duration::ZERO,
            copy,
        })
    }

    fn window<'a>(
        &'a self,
        (index, pid): (usize, i32),
        files: &'a Files,
        rings: &'a [RingsOfThreads],
    ) -> Window<'a> {
        let before = &self.before[index];
        Window {
            parent: self.parent,
            precopied: &self.precopied[index],
            again: &before.again,
            report: self.report,
            files,
            hashes: self.hashes,
            io: &before.io,
            rings: &rings[index],
            code: &before.code,
            watchers: self.watched.get(&pid).map_or(&[], Vec::as_slice),
        }
    }

    /// The registers, mappings and written pages of all, and the objects that they map.
    #[tracing::instrument(level = "debug", skip_all, name = "layout and written pages")]
    fn look_at_all(
        &self,
        context: &mut Context<'_>,
        stopped: &mut AllStopped,
        rings: &[RingsOfThreads],
    ) -> Result<(Vec<Option<Survey>>, Objects), TakeError> {
        let mut objects = Objects::default();
        let mut looked = Vec::with_capacity(stopped.len());
        let members = context.members.list_mut().iter_mut();
        for (index, (member, process)) in members.zip(stopped).enumerate() {
            let Some(process) = process else {
                looked.push(None);
                continue;
            };
            let window = self.window((index, member.pid()), context.files, rings);
            let found = window.look(member, process, &mut context.harvests.taken)?;
            for mapping in found.layout.each_object() {
                objects.add(index, mapping, &mut context.writing.spaces);
            }
            looked.push(Some(found));
        }
        objects.look(context.files, self.report)?;
        Ok((looked, objects))
    }

    #[tracing::instrument(level = "debug", skip_all, name = "copy")]
    fn copy_members(
        &self,
        context: &mut Context<'_>,
        looked: Vec<Option<Survey>>,
        rings: &[RingsOfThreads],
    ) -> Result<Vec<Option<WindowResult>>, TakeError> {
        let standing = standing(context);
        let Writing { spaces, writer } = &mut context.writing;
        let mut droppable = Asked::default();
        let mut all = Vec::with_capacity(looked.len());
        for (index, (member, looked)) in context.members.list().iter().zip(looked).enumerate() {
            let Some(looked) = looked else {
                all.push(None);
                continue;
            };
            let window = self.window((index, member.pid()), context.files, rings);
            context
                .arena
                .open_space(spaces.number_of(&member.names.space));
            let mut spill = |arena: &Arena| {
                let left_out = droppable.of(&standing)?;
                Ok(spaces.store_without(left_out, arena, writer)?)
            };
            let copied = Copied::new(context.arena, &mut spill);
            all.push(Some(window.copy(member, looked, copied)?));
        }
        Ok(all)
    }

    #[tracing::instrument(level = "debug", skip_all, name = "copy shared objects")]
    fn copy_objects(
        &self,
        context: &mut Context<'_>,
        objects: &mut Objects,
    ) -> Result<Vec<ObjectPages>, TakeError> {
        let standing = standing(context);
        let mut droppable = Asked::default();
        let Writing { spaces, writer } = &mut context.writing;
        let members = context.members.list();
        let memos = members.iter().filter_map(|one| one.memo_of(self.parent));
        let settled = memos.flat_map(|memo| memo.settled.iter().copied());
        let earlier = Earlier {
            parent: self.parent,
            settled: settled.collect(),
            report: self.report,
            files: context.files,
            hashes: self.hashes,
        };
        let mut all = Vec::with_capacity(objects.list().len());
        for at in 0..objects.list().len() {
            let object = &objects.list()[at];
            context.arena.open_space(object.number);
            let mut spill = |arena: &Arena| {
                let left_out = droppable.of(&standing)?;
                Ok(spaces.store_without(left_out, arena, writer)?)
            };
            let mut copied = Copied::new(context.arena, &mut spill);
            object.capture(members, &earlier, &mut copied)?;
            let mut states = copied.states;
            let failed = copied.unreadable.ranges().iter();
            states.extend(failed.map(|&range| (range, PageState::Unbacked)));
            all.push(ObjectPages {
                number: object.number,
                states,
                in_file: copied.in_file,
                copied: copied.pages.count(),
            });
            objects.set_failed(at, copied.unreadable);
        }
        Ok(all)
    }
}

/// The processes, each with the number of its space.
fn standing(context: &Context<'_>) -> Vec<(i32, usize)> {
    let members = context.members.list().iter();
    let numbered = members.map(|member| {
        let number = context.writing.spaces.number_of(&member.names.space);
        (member.pid(), number)
    });
    numbered.collect()
}

/// What the threads of all processes say of their rings, where nothing else is asked of them.
#[tracing::instrument(level = "debug", skip_all, name = "io_uring of threads")]
fn rings_of(members: &Members, stopped: &mut AllStopped) -> Vec<RingsOfThreads> {
    let ask = |(index, process): (usize, &mut Option<StoppedProcess>)| {
        let member = members.list().get(index);
        let tracks = member.is_some_and(|one| one.tracking.is_some());
        let process = process.as_mut().filter(|_| tracks);
        process
            .map(StoppedProcess::rings_of_threads)
            .unwrap_or_default()
    };
    stopped.iter_mut().enumerate().map(ask).collect()
}
