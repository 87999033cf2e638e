//! How snapshots that were taken are told: a line of a table for people, or of JSON for machines, and to standard error what
//! has changed of what people have to know.

use super::show;
use crate::blockers::{self, Listed};
use crate::output;
use crate::sink::Sink;
use pagetide::{Leave, NotCaptured, NotTracked, Poisoned, Report, WhyFull};
use pagetide_process::Blocker;
use pagetide_snapshot::SnapshotKind;
use serde::Serialize;
use std::path::Path;

/// One snapshot for machines: these names are a contract.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    pid: i32,
    store: &'a str,
    id: u64,
    parent: Option<u64>,
    kind: &'static str,
    backend: &'static str,
    written_pages: u64,
    stored_pages: u64,
    difference_pages: u64,
    zero_pages: u64,
    file_pages: u64,
    processes: usize,
    logical_bytes: u64,
    stored_bytes: u64,
    stop_us: u64,
    scan_us: u64,
    copy_us: u64,
    total_us: u64,
    not_captured: Vec<Missing<'a>>,
    poisoned: Vec<show::PoisonedAnswer>,
    not_tracked: Vec<Compared>,
    mappings_added: u64,
    restorable: bool,
    blockers: Vec<Listed<'a>>,
    why_full: Option<&'static str>,
    left: &'static str,
}

#[derive(Serialize)]
struct Missing<'a> {
    pid: i32,
    start: String,
    end: String,
    name: &'a str,
    reason: &'a str,
}

/// Memory that is compared. All memory of the process if `start` and `end` are 0.
#[derive(Serialize)]
pub(super) struct Compared {
    pid: i32,
    start: String,
    end: String,
    /// Empty; there since the first version.
    name: &'static str,
    /// The kind of reason, for machines.
    because: &'static str,
    reason: String,
}

fn address(address: u64) -> String {
    format!("{address:016x}")
}

/// What is compared, for machines.
pub(super) fn compared(not_tracked: &[NotTracked]) -> Vec<Compared> {
    let listed = |missing: &NotTracked| Compared {
        pid: missing.pid,
        start: address(missing.start),
        end: address(missing.end),
        name: "",
        because: missing.reason.name(),
        reason: missing.reason.to_string(),
    };
    not_tracked.iter().map(listed).collect()
}

/// So many mappings that are there because of tracking are told.
const MANY_ADDED: u64 = 16;

/// Prints a line for each snapshot.
pub struct Printer {
    json: bool,
    sink: Sink,
    pid: i32,
    store: String,
    /// What the kernel maps into every process was told.
    told_of_kernel: bool,
    header_due: bool,
    told: Vec<NotCaptured>,
    told_compared: Vec<NotTracked>,
    told_blockers: Vec<Blocker>,
    told_poisoned: Vec<Poisoned>,
    /// How many mappings were told to be there because of tracking.
    added: u64,
}

impl Printer {
    /// JSON or a table, to `sink`, of snapshots of process `pid` in the store at this place.
    pub fn new(json: bool, sink: Sink, pid: i32, store: &Path) -> Self {
        Self {
            json,
            sink,
            pid,
            store: store.display().to_string(),
            told_of_kernel: false,
            header_due: true,
            told: Vec::new(),
            told_compared: Vec::new(),
            told_blockers: Vec::new(),
            told_poisoned: Vec::new(),
            added: 0,
        }
    }

    /// One more was taken. With `goes_on`, a line that cannot be written is told and written later.
    pub fn print(&mut self, report: &Report, goes_on: bool) -> anyhow::Result<()> {
        let text = if self.json {
            output::json_line(&self.line(report))?
        } else {
            self.row(report).into_bytes()
        };
        if goes_on {
            self.sink.put(&text)
        } else {
            self.sink.put_now(&text)?
        }
        if !self.json {
            self.tell(report);
        }
        Ok(())
    }

    /// There are no more.
    pub fn end(&mut self) {
        self.sink.end();
    }

    /// A line of the table, with its header before the first.
    fn row(&mut self, report: &Report) -> String {
        let mut text = String::new();
        if std::mem::take(&mut self.header_due) {
            text += &format!(
                "{:>5} {:>6} {:<6} {:>10} {:>10} {:>12} {:>10} {:>10}\n",
                "id", "parent", "kind", "written", "stored", "size", "stopped", "total"
            );
        }
        text += &format!(
            "{:>5} {:>6} {:<6} {:>10} {:>10} {:>12} {:>10} {:>10}\n",
            report.id,
            report.parent.map_or("-".to_owned(), |id| id.to_string()),
            kind(report.kind),
            report.written_pages,
            report.stored_pages,
            output::bytes(report.stored_bytes),
            output::duration(report.stop),
            output::duration(report.total),
        );
        text
    }

    /// One snapshot for machines. What the kernel maps into every process does not change, and is told with the first.
    fn line<'a>(&'a mut self, report: &'a Report) -> Line<'a> {
        let of_kernel = !std::mem::replace(&mut self.told_of_kernel, true);
        Line {
            time: output::now(),
            pid: self.pid,
            store: &self.store,
            id: report.id.0,
            parent: report.parent.map(|id| id.0),
            kind: kind(report.kind),
            backend: report.backend.name(),
            written_pages: report.written_pages.0,
            stored_pages: report.stored_pages.0,
            difference_pages: report.difference_pages.0,
            zero_pages: report.zero_pages.0,
            file_pages: report.file_pages.0,
            processes: report.processes,
            logical_bytes: report.logical_bytes,
            stored_bytes: report.stored_bytes,
            stop_us: output::microseconds(report.stop),
            scan_us: output::microseconds(report.scan),
            copy_us: output::microseconds(report.copy),
            total_us: output::microseconds(report.total),
            not_captured: report
                .not_captured
                .iter()
                .filter(|missing| of_kernel || !missing.is_of_kernel())
                .map(|missing| Missing {
                    pid: missing.pid,
                    start: address(missing.start),
                    end: address(missing.end),
                    name: &missing.name,
                    reason: missing.reason.as_str(),
                })
                .collect(),
            poisoned: show::poisoned(&report.poisoned, None),
            not_tracked: compared(&report.not_tracked),
            mappings_added: report.mappings_added,
            restorable: report.blockers.as_ref().is_some_and(Vec::is_empty),
            blockers: blockers::listed(report.blockers.as_deref().unwrap_or_default()),
            why_full: report.why_full.map(WhyFull::as_str),
            left: left(report.left),
        }
    }

    /// What is missing or could not be tracked, to stderr, when it changes.
    fn tell(&mut self, report: &Report) {
        // The first of all is full, and nobody wonders.
        if let Some(why) = report.why_full.filter(|_| report.id.0 > 1) {
            output::note!("pagetide: snapshot {} is full: {why}", report.id);
        }
        if report.mappings_added >= MANY_ADDED.max(self.added * 2) {
            self.added = report.mappings_added;
            output::note!(
                "pagetide: {} mappings of the process are there only because it is tracked: memory that grew is not joined \
                 with it any more, and mremap(2) over several mappings fails (--backend rehash does without)",
                report.mappings_added
            );
        }
        let is_new = |missing: &&NotTracked| !self.told_compared.contains(missing);
        for missing in report.not_tracked.iter().filter(is_new) {
            let what = if missing.is_whole() {
                format!("all memory of process {}", missing.pid)
            } else {
                format!("{:#x}-{:#x}", missing.start, missing.end)
            };
            let reason = &missing.reason;
            output::note!("pagetide: {what} cannot be tracked and is compared each time: {reason}");
        }
        self.told_compared.clone_from(&report.not_tracked);
        let kernel_data = |missing: &&NotCaptured| !missing.is_of_kernel();
        if self.told != report.not_captured {
            for missing in report.not_captured.iter().filter(kernel_data) {
                let place = match missing.end {
                    0 => format!("process {}", missing.pid),
                    end => format!("{:#x}-{end:#x}", missing.start),
                };
                output::note!(
                    "pagetide: not captured: {place} {}: {}",
                    missing.name,
                    missing.reason
                );
            }
            self.told.clone_from(&report.not_captured);
        }
        if self.told_poisoned != report.poisoned {
            for one in &report.poisoned {
                let Poisoned {
                    pid, start, end, ..
                } = one;
                output::note!(
                    "pagetide: poisoned: {start:#x}-{end:#x} of process {pid} cannot be read"
                );
            }
            self.told_poisoned.clone_from(&report.poisoned);
        }
        let blockers = report.blockers.as_deref().unwrap_or_default();
        if self.told_blockers != blockers {
            for blocker in blockers {
                output::note!("pagetide: cannot be restored: {}", blockers::told(blocker));
            }
            self.told_blockers = blockers.to_vec();
        }
    }
}

fn left(left: Leave) -> &'static str {
    match left {
        Leave::Running => "running",
        Leave::Stopped => "stopped",
        Leave::Killed => "killed",
    }
}

fn kind(kind: SnapshotKind) -> &'static str {
    match kind {
        SnapshotKind::Full => "full",
        SnapshotKind::Delta => "delta",
    }
}
