//! `pagetide checkpoint` and `pagetide run`: snapshots of one process, once or on a schedule.

use super::{STOP_TIMEOUT, show, stop_options, storage_to_act};
use crate::args::{BackendName, Checkpoint, LeaveName, ModeName, Run, Taking};
use crate::blockers::{self, Listed};
use crate::failure::{Signalled, Wrong, message};
use crate::output;
use crate::signals::Signals;
use crate::watch;
use anyhow::Context;
use pagetide::{
    Checkpointer, Leave, Mode, NotCaptured, NotTracked, Options, Poisoned, Progress, Report,
    Request, Residence, TakeError, TrackingError,
};
use pagetide_process::{Blocker, ProcessIdentity, StopError};
use pagetide_snapshot::{OpenError, SnapshotKind, Store};
use pagetide_tracker::Backend;
use serde::Serialize;
use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One snapshot for machines: these names are a contract.
#[derive(Serialize)]
struct Line<'a> {
    id: u64,
    parent: Option<u64>,
    kind: &'static str,
    backend: &'static str,
    written_pages: u64,
    stored_pages: u64,
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

pub fn run(arguments: &Checkpoint) -> anyhow::Result<ExitCode> {
    let signals = Signals::catch()?;
    watch::start(
        arguments.taking.stop_timeout.unwrap_or(STOP_TIMEOUT),
        &signals,
        true,
    )?;
    // The process is looked at first: a pid that cannot be handled leaves no store behind.
    pagetide_process::examine(arguments.pid)?;
    let store = open_or_create(&arguments.taking)?;
    let residence = match arguments.every {
        None => Residence::Target,
        Some(_) => Residence::Here,
    };
    let mut options = options(&arguments.taking, residence, &signals);
    options.accept.clone_from(&arguments.accept);
    let mut checkpointer = Checkpointer::attach(arguments.pid, store, options)?;
    let mut printer = Printer::new(arguments.taking.json);
    let mut schedule = Schedule::new(arguments.every, arguments.count);
    while schedule.wait(&signals) {
        let leave = match arguments.leave {
            _ if !schedule.is_last() => Leave::Running,
            LeaveName::Running => Leave::Running,
            LeaveName::Stopped => Leave::Stopped,
            LeaveName::Killed => Leave::Killed,
        };
        let request = Request {
            full: arguments.full && schedule.taken == 0,
            leave,
        };
        match checkpointer.take(request) {
            Ok(report) => {
                printer.print(&report)?;
                check_left(&report, leave, arguments)?;
            }
            Err(error) if schedule.repeats() && may_pass(&error) => {
                schedule.put_off(error);
                continue;
            }
            Err(error) => {
                tidy_up_after(&error, &checkpointer);
                return Err(told(error, &signals, schedule.taken));
            }
        }
        schedule.count_one();
    }
    match signals.exit_status() {
        // A signal that comes when all is done changes nothing.
        Some(status) if !schedule.is_over() => {
            let given_up = false;
            Err(Signalled { status, given_up }.into())
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// A first snapshot that fails leaves nothing in the process: there is nothing to go on from.
fn tidy_up_after(error: &TakeError, checkpointer: &Checkpointer) {
    // Without a tracker nothing was put there; what is there is another store's.
    let tracks = checkpointer.backend() != Backend::Rehash;
    if !tracks || checkpointer.has_snapshot() || matches!(error, TakeError::Ended { .. }) {
        return;
    }
    for identity in checkpointer.identities() {
        let _ = pagetide::detach(identity, stop_options());
    }
}

/// True if the same process may well be stopped a while later.
fn may_pass(error: &TakeError) -> bool {
    let stop = match error {
        TakeError::Stop(stop) | TakeError::Tracking(TrackingError::Stop(stop)) => stop,
        _ => return false,
    };
    matches!(
        stop,
        StopError::Timeout { .. } | StopError::TooManyThreads { .. } | StopError::Exec { .. }
    )
}

/// The error as the user should see it.
fn told(error: TakeError, signals: &Signals, taken: u64) -> anyhow::Error {
    match signals.exit_status() {
        Some(status) if matches!(error, TakeError::Cancelled) => {
            let given_up = true;
            Signalled { status, given_up }.into()
        }
        _ if taken == 1 => anyhow::Error::new(error).context("after 1 snapshot"),
        _ if taken > 1 => anyhow::Error::new(error).context(format!("after {taken} snapshots")),
        _ => error.into(),
    }
}

pub fn run_command(arguments: &Run) -> anyhow::Result<ExitCode> {
    let store = open_or_create(&arguments.taking)?;
    let (program, words) = arguments
        .command
        .split_first()
        .ok_or_else(|| Wrong::Usage("no command to run".to_owned()))?;
    let mut command = Command::new(program);
    command.args(words);
    let mut child = command
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    let signals = Signals::catch()?;
    watch::start(
        arguments.taking.stop_timeout.unwrap_or(STOP_TIMEOUT),
        &signals,
        false,
    )?;
    let outcome = follow(arguments, store, &signals, &mut child);
    let status = end(&mut child, &signals)?;
    outcome?;
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Snapshots of the command until it ends.
fn follow(
    arguments: &Run,
    store: Store,
    signals: &Signals,
    child: &mut Child,
) -> anyhow::Result<()> {
    let pid = i32::try_from(child.id())?;
    let options = options(&arguments.taking, Residence::Here, signals);
    let mut printer = Printer::new(arguments.taking.json);
    let mut checkpointer: Option<Checkpointer> = None;
    let mut schedule = Schedule::new(Some(arguments.every), None);
    schedule.next += arguments.every;
    while schedule.wait_for(signals, || matches!(child.try_wait(), Ok(None))) {
        let taken = match checkpointer.as_mut() {
            Some(checkpointer) => checkpointer.take(Request::default()),
            None => match Checkpointer::attach(pid, store.clone(), options.clone()) {
                Ok(attached) => checkpointer.insert(attached).take(Request::default()),
                Err(_) if !matches!(child.try_wait(), Ok(None)) => return Ok(()),
                Err(error) => return Err(error.into()),
            },
        };
        match taken {
            Ok(report) => printer.print(&report)?,
            // The command may end at any moment, also in the middle of a snapshot.
            Err(_) if has_ended(child, pid) => return Ok(()),
            Err(TakeError::Cancelled) => return Ok(()),
            Err(error) if may_pass(&error) => {
                schedule.put_off(error);
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        schedule.count_one();
    }
    Ok(())
}

fn has_ended(child: &mut Child, pid: i32) -> bool {
    !matches!(child.try_wait(), Ok(None))
        || !ProcessIdentity::of(pid).is_ok_and(|identity| identity.is_alive_and_same())
}

/// Waits for the command; a signal to us is passed on to it, unless it came from the terminal, which
/// has sent it to the command as well.
fn end(child: &mut Child, signals: &Signals) -> anyhow::Result<ExitStatus> {
    let mut passed_on = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if signals.came() && !passed_on {
            let signal = match signals.exit_status() {
                Some(143) => Some(rustix::process::Signal::TERM),
                _ if std::io::stdin().is_terminal() => None,
                _ => Some(rustix::process::Signal::INT),
            };
            if let Some(signal) = signal {
                rustix::process::kill_process(rustix::process::Pid::from_child(child), signal)?;
            }
            passed_on = true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The store in a directory; a new one if there is no directory, or an empty one.
fn open_or_create(taking: &Taking) -> anyhow::Result<Store> {
    let storage = storage_to_act(&taking.store, taking.trust_store);
    match Store::open(Arc::clone(&storage)) {
        // Creating looks whether there is anything, and takes over what an attempt that failed left.
        Err(OpenError::Missing { .. } | OpenError::NotAStore { .. }) => Ok(Store::create(storage)?),
        other => Ok(other?),
    }
}

fn options(taking: &Taking, residence: Residence, signals: &Signals) -> Options {
    let mut options = Options::default();
    options.backend = match taking.backend {
        BackendName::Auto => None,
        BackendName::WpAsync => Some(Backend::WpAsync),
        BackendName::SoftDirty => Some(Backend::SoftDirty),
        BackendName::Rehash => Some(Backend::Rehash),
    };
    options.mode = match taking.mode {
        None => Mode::Auto,
        Some(ModeName::Stop) => Mode::Stop,
        Some(ModeName::Precopy) => Mode::Precopy,
    };
    options.residence = residence;
    options.tree = taking.tree;
    options.store_files = taking.store_files;
    options.restorable = !taking.memory_only;
    if let Some(timeout) = taking.stop_timeout {
        options.stop_timeout = timeout;
    } else if residence == Residence::Here {
        // The threads that have stopped wait for those that have not, and there will be another try.
        options.stop_timeout = Duration::from_secs(2);
    }
    options.buffer_bytes = (taking.buffer << 20).min(pagetide_snapshot::memory_limit() / 2);
    options.page_table_limit = taking.page_table_limit;
    options.write.level = taking.level;
    options.cancel = signals.cancel();
    let bar = output::progress("storing");
    options.progress = Some(Progress(Arc::new(move |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        if done >= total {
            bar.reset();
        }
    })));
    options
}

/// When the next snapshot is due.
struct Schedule {
    every: Option<Duration>,
    count: Option<u64>,
    next: Instant,
    taken: u64,
    /// How many in a row could not be taken for now, and when the one now due was begun.
    put_off: u32,
    begun: Instant,
}

impl Schedule {
    fn new(every: Option<Duration>, count: Option<u64>) -> Schedule {
        Schedule {
            every,
            count: if every.is_some() { count } else { Some(1) },
            next: Instant::now(),
            taken: 0,
            put_off: 0,
            begun: Instant::now(),
        }
    }

    /// True if there may be another snapshot after one that failed.
    fn repeats(&self) -> bool {
        self.every.is_some()
    }

    /// One more was taken.
    fn count_one(&mut self) {
        self.taken += 1;
        self.put_off = 0;
    }

    /// Tells why there is no snapshot for now. The process stood still for some of the time that was
    /// tried, so the next try is the longer away the more of them were in vain.
    fn put_off(&mut self, error: TakeError) {
        output::note!(
            "pagetide: no snapshot for now: {}",
            message(&anyhow::Error::new(error))
        );
        self.put_off = (self.put_off + 1).min(20);
        let pause = self.begun.elapsed() * self.put_off;
        self.next = Instant::now() + pause.max(self.every.unwrap_or_default());
    }

    /// True if the snapshot now due is the last one.
    fn is_last(&self) -> bool {
        self.count == Some(self.taken + 1)
    }

    /// True if all snapshots that were asked for are taken.
    fn is_over(&self) -> bool {
        self.count == Some(self.taken)
    }

    fn wait(&mut self, signals: &Signals) -> bool {
        self.wait_for(signals, || true)
    }

    /// Waits until the next snapshot is due; false if there is none any more. A snapshot that took
    /// longer than the interval does not make the next ones come in a burst.
    fn wait_for(&mut self, signals: &Signals, mut goes_on: impl FnMut() -> bool) -> bool {
        if self.is_over() {
            return false;
        }
        loop {
            if signals.came() || !goes_on() {
                return false;
            }
            let now = Instant::now();
            if now >= self.next {
                self.next = (self.next + self.every.unwrap_or_default()).max(now);
                self.begun = now;
                return true;
            }
            std::thread::sleep((self.next - now).min(Duration::from_millis(20)));
        }
    }
}

/// So many mappings that are there because of tracking are told.
const MANY_ADDED: u64 = 16;

/// Prints a line for each snapshot.
struct Printer {
    json: bool,
    header_due: bool,
    told: Vec<NotCaptured>,
    told_compared: Vec<NotTracked>,
    told_blockers: Vec<Blocker>,
    told_poisoned: Vec<Poisoned>,
    /// How many mappings were told to be there because of tracking.
    added: u64,
}

impl Printer {
    fn new(json: bool) -> Printer {
        Printer {
            json,
            header_due: true,
            told: Vec::new(),
            told_compared: Vec::new(),
            told_blockers: Vec::new(),
            told_poisoned: Vec::new(),
            added: 0,
        }
    }

    fn print(&mut self, report: &Report) -> anyhow::Result<()> {
        if self.json {
            return output::json(&line(report));
        }
        if std::mem::take(&mut self.header_due) {
            output::line(format!(
                "{:>5} {:>6} {:<6} {:>10} {:>10} {:>12} {:>10} {:>10}",
                "id", "parent", "kind", "written", "stored", "size", "stopped", "total"
            ))?;
        }
        output::line(format!(
            "{:>5} {:>6} {:<6} {:>10} {:>10} {:>12} {:>10} {:>10}",
            report.id,
            report.parent.map_or("-".to_owned(), |id| id.to_string()),
            kind(report.kind),
            report.written_pages,
            report.stored_pages,
            output::bytes(report.stored_bytes),
            output::duration(report.stop),
            output::duration(report.total),
        ))?;
        self.tell(report);
        Ok(())
    }

    /// What is missing or could not be tracked, to stderr, when it changes.
    fn tell(&mut self, report: &Report) {
        if let Some(why) = report.why_full {
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
            let what = match missing.is_whole() {
                true => format!("all memory of process {}", missing.pid),
                false => format!("{:#x}-{:#x}", missing.start, missing.end),
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

/// Refuses a kill that did not come, because the process could not be restored.
fn check_left(report: &Report, wanted: Leave, arguments: &Checkpoint) -> Result<(), Wrong> {
    if report.left == wanted {
        return Ok(());
    }
    let stays = |blocker: &&Blocker| {
        blocker.instead.is_none() || !arguments.accept.contains(&blocker.name())
    };
    let blockers = report.blockers.iter().flatten().filter(stays);
    let names: Vec<String> = blockers.map(Blocker::name).collect();
    Err(Wrong::Refused(format!(
        "process {} was not killed and runs on: it could not be restored from snapshot {}, for {} (--accept NAME for each \
         that it may go without; --memory-only if it is not to be restored)",
        arguments.pid,
        report.id,
        names.join(", ")
    )))
}

fn kind(kind: SnapshotKind) -> &'static str {
    match kind {
        SnapshotKind::Full => "full",
        SnapshotKind::Delta => "delta",
    }
}

fn line(report: &Report) -> Line<'_> {
    Line {
        id: report.id.0,
        parent: report.parent.map(|id| id.0),
        kind: kind(report.kind),
        backend: report.backend.name(),
        written_pages: report.written_pages.0,
        stored_pages: report.stored_pages.0,
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
            .map(|missing| Missing {
                pid: missing.pid,
                start: address(missing.start),
                end: address(missing.end),
                name: &missing.name,
                reason: &missing.reason,
            })
            .collect(),
        poisoned: show::poisoned(&report.poisoned, None),
        not_tracked: compared(&report.not_tracked),
        mappings_added: report.mappings_added,
        restorable: report.blockers.as_ref().is_some_and(Vec::is_empty),
        blockers: blockers::listed(report.blockers.as_deref().unwrap_or_default()),
        why_full: report.why_full,
        left: left(report.left),
    }
}
