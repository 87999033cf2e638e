//! A stopped process as a snapshot describes it: the regions of its space, and what is missing from them.

use super::context::Context;
use super::standstill::Instantaneous;
use super::window::WindowResult;
use crate::capture::SIZE;
use crate::error::TakeError;
use crate::files::{FileReport, Files};
use crate::harvests::Writing;
use crate::layout::{self, ChangeDetection, FileDescription};
use crate::member::Member;
use crate::names::{self, Name};
use crate::not_captured::NotCapturedBecause;
use crate::objects;
use crate::poison::{Poisoned, pages_of, poisoned_of};
use crate::probes;
use crate::report::{NotCaptured, NotTracked};
use crate::rings::AsynchronousIo;
use crate::sparse;
use pagetide_kernel::maps::Mapping;
use pagetide_pages::{PageIndex, PageRange, PageSet};
use pagetide_snapshot::{Capture, PageState, Region, View};
use std::os::unix::ffi::OsStringExt;

/// What the snapshot does not hold as it was, or not without more ado.
pub(crate) struct Description {
    pub not_captured: Vec<NotCaptured>,
    pub not_tracked: Vec<NotTracked>,
    pub poisoned: Vec<Poisoned>,
}

/// Describes all spaces, names what is missing from them, and what a restore could not bring back.
#[tracing::instrument(level = "debug", skip_all, name = "describe")]
pub(crate) fn all(
    context: &mut Context<'_>,
    found: &mut Instantaneous,
) -> Result<Description, TakeError> {
    let Writing { spaces, writer } = &mut context.writing;
    let mut description = Description {
        not_captured: Vec::new(),
        not_tracked: Vec::new(),
        poisoned: Vec::new(),
    };
    let members = context.members.list();
    let io = found.io.iter();
    for ((member, stopped), io) in members.iter().zip(&mut found.members).zip(io) {
        let Some(stopped) = stopped else { continue };
        let (regions, missing) = describe(member, stopped, context.files, &found.report, io);
        spaces.describe(spaces.number_of(&member.names.space), regions);
        description.not_captured.extend(missing);
        description.not_tracked.append(&mut stopped.not_tracked);
    }
    let objects = &found.objects;
    objects.describe(context.files, &found.report, spaces);
    spaces.tell(writer)?;

    let restorable = &mut found.restorable;
    restorable.look_from_outside();
    for (index, (member, stopped)) in members.iter().zip(&found.members).enumerate() {
        let Some(stopped) = stopped else { continue };
        let (pid, mappings) = (member.pid(), &stopped.layout.mappings);
        restorable.look_at_mappings(pid, mappings);
        restorable.name(names::blockers(pid, mappings, context.files));
        let failed = objects.failed_in(index);
        let poisoned = poisoned(member, stopped, failed, &found.report, context.parent);
        let regions = spaces.regions_of(spaces.number_of(&member.names.space));
        restorable.name_poisoned(&poisoned, regions);
        description.poisoned.extend(poisoned);
        let (threads, breakpoints) = (&stopped.threads, &stopped.breakpoints);
        restorable.name(probes::blockers(pid, mappings, threads, breakpoints));
    }
    restorable.name_missing(&description.not_captured);
    Ok(description)
}

/// The regions, and what the snapshot does not hold.
fn describe(
    member: &Member,
    stopped: &WindowResult,
    files: &mut Files,
    report: &FileReport,
    io: &AsynchronousIo,
) -> (Vec<Region>, Vec<NotCaptured>) {
    let pid = member.pid();
    let mut not_captured: Vec<NotCaptured> = io
        .devices
        .iter()
        .map(|name| NotCaptured {
            pid,
            start: 0,
            end: 0,
            name: name.clone(),
            reason: NotCapturedBecause::WrittenByDevice,
        })
        .collect();
    let mut regions = Vec::with_capacity(stopped.layout.mappings.len());
    for (mapping, watch) in stopped.layout.each() {
        let capture = match reason(mapping, watch, stopped) {
            None => Capture::Captured,
            Some(reason) => {
                not_captured.push(NotCaptured {
                    pid,
                    start: mapping.start,
                    end: mapping.end,
                    name: layout::display_name(mapping),
                    reason,
                });
                Capture::NotCaptured {
                    reason: reason.to_string(),
                }
            }
        };
        if sparse::is_bpf_memory(mapping) && !stopped.is_read_in_full(mapping.pages()) {
            not_captured.push(NotCaptured {
                pid,
                start: mapping.start,
                end: mapping.end,
                name: layout::display_name(mapping),
                reason: NotCapturedBecause::BpfMemory,
            });
        }
        let about = if mapping.has_file() {
            FileDescription {
                facts: report.facts(mapping),
                build_id: files.build_id(mapping, report),
                path: None,
            }
        } else {
            FileDescription::default()
        };
        let shows = (watch == ChangeDetection::Object).then(|| objects::shown(mapping));
        let mut advice = stopped.advice.of(mapping);
        let mut about = about;
        match names::name_of(pid, mapping, files) {
            Name::Literal => advice.push(names::LITERAL.to_owned()),
            Name::Other(path) => about.path = Some(path.into_os_string().into_vec()),
            Name::AsTold | Name::Lost(_) => {}
        }
        regions.push(layout::region(mapping, about, advice, capture, shows));
    }
    (regions, not_captured)
}

/// Why a mapping is not captured, if it is not.
fn reason(
    mapping: &Mapping,
    watch: ChangeDetection,
    stopped: &WindowResult,
) -> Option<NotCapturedBecause> {
    match watch {
        ChangeDetection::Leave(reason) => Some(reason),
        _ if layout::is_device_like(mapping)
            && stopped.unreadable.contains_range(mapping.pages()) =>
        {
            Some(NotCapturedBecause::DeviceMemory)
        }
        _ => None,
    }
}

/// The pages of `mapping` that can be read unless they are poisoned.
fn readable(mapping: &Mapping, report: &FileReport) -> PageRange {
    let pages = mapping.pages();
    let is_private_memory = !mapping.has_file() && !mapping.shared;
    if is_private_memory {
        return pages;
    }
    let nothing = PageRange::new(pages.start(), pages.start());
    let Some(facts) = report
        .facts(mapping)
        .filter(|_| !layout::is_device_like(mapping))
    else {
        return nothing;
    };
    let shown = facts.size_bytes.saturating_sub(mapping.offset_bytes);
    let end = PageIndex(pages.start().0 + shown.div_ceil(SIZE.bytes()));
    PageRange::new(pages.start(), end.min(pages.end()))
}

/// Which memory of the process was poisoned in the stop. What was not looked at is as it was in the parent. `failed` is what
/// its objects themselves could not read.
fn poisoned(
    member: &Member,
    stopped: &WindowResult,
    failed: PageSet,
    report: &FileReport,
    parent: Option<&View>,
) -> Vec<Poisoned> {
    let pid = member.pid();
    let parent = parent.filter(|_| member.memo.is_some());
    let mut unreadable = match parent {
        Some(view) => pages_of(&poisoned_of(view), pid).subtract(&stopped.copied),
        None => PageSet::new(),
    };
    for &(pages, state) in &stopped.states {
        match state {
            PageState::Unbacked => unreadable.insert(pages),
            _ => unreadable.remove(pages),
        }
    }
    unreadable = unreadable.union(&failed);
    let mut poisoned = Vec::new();
    if unreadable.is_empty() {
        return poisoned;
    }
    for (mapping, _) in stopped.layout.each() {
        for &pages in unreadable.within(readable(mapping, report)).ranges() {
            let (start, end) = SIZE.span_of(pages);
            poisoned.push(Poisoned { pid, start, end });
        }
    }
    poisoned
}
