//! `pagetide checkpoint` and `pagetide run`: snapshots of one process, once or on a schedule.

use super::opening::{STOP_TIMEOUT, stop_options, storage_to_act};
use super::owner;
use super::snapshots::Printer;
use crate::args::{BackendName, Checkpoint, LeaveName, ModeName, Run, Taking};
use crate::failure;
use crate::keeping::Keeping;
use crate::output;
use crate::schedule::Schedule;
use crate::signals::Signals;
use crate::sink::Sink;
use crate::watch;
use crate::wrong::{Signalled, Wrong};
use anyhow::Context;
use pagetide::{
    Checkpointer, Leave, Mode, Options, Progress, Report, Request, Residence, TakeError,
};
use pagetide_process::{Blocker, Examined, ProcessIdentity};
use pagetide_snapshot::{Compression, DirectoryStorage, LockError, OpenError, Storage, Store};
use pagetide_tracker::Backend;
use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

/// The exit status of a schedule that ends because its process has ended.
const ENDED: u8 = 4;

pub fn run(arguments: &Checkpoint) -> anyhow::Result<ExitCode> {
    let taking = &arguments.taking;
    let signals = Signals::catch()?;
    watch::start(taking.stop_timeout.unwrap_or(STOP_TIMEOUT), &signals, true)?;
    super::opening::check_free(arguments.pid)?;
    // The process is looked at first: a pid that cannot be handled leaves no store behind.
    let examined = pagetide_process::examine(arguments.pid)?;
    let mut schedule = Schedule::new(arguments.every, arguments.count, arguments.max_failures);
    let Some(place) = open_with_patience(arguments, &examined, &mut schedule, &signals)? else {
        return ended_without_store(arguments.pid, &signals);
    };
    let taken = take_all(arguments, &place.store, &examined, &mut schedule, &signals);
    // What could not be taken back from a process that is frozen is gone on with later.
    let is_tracked = || pagetide::is_tracked_for(&examined.identity, place.store.id());
    place.unless_refused(taken, is_tracked)
}

/// The store, made if it is not there. A schedule waits for room for it; none if it ended meanwhile.
fn open_with_patience(
    arguments: &Checkpoint,
    examined: &Examined,
    schedule: &mut Schedule,
    signals: &Signals,
) -> anyhow::Result<Option<StoreInUse>> {
    let lives = || examined.identity.is_alive_and_same();
    loop {
        match StoreInUse::writable(&arguments.taking) {
            Err(error) if schedule.repeats() && failure::is_full(&error) => {
                schedule.put_off(error)?;
            }
            other => {
                schedule.at_once();
                return other.map(Some);
            }
        }
        if !schedule.wait(signals, lives) {
            return Ok(None);
        }
    }
}

fn ended_without_store(pid: i32, signals: &Signals) -> anyhow::Result<ExitCode> {
    if let Some(status) = signals.exit_status() {
        let given_up = false;
        return Err(Signalled { status, given_up }.into());
    }
    output::note!("pagetide: process {pid} has ended, before there was room for a store");
    Ok(ExitCode::from(ENDED))
}

fn take_all(
    arguments: &Checkpoint,
    store: &Store,
    examined: &Examined,
    schedule: &mut Schedule,
    signals: &Signals,
) -> anyhow::Result<ExitCode> {
    let taking = &arguments.taking;
    let mut options = options(taking, arguments.every.is_some(), signals);
    options.accept.clone_from(&arguments.accept);
    let mut checkpointer = Checkpointer::attach(arguments.pid, store.clone(), options)?;
    // What is tracked for this store is gone on with: it may have been restored from it.
    if !taking.add && !checkpointer.has_snapshot() {
        owner::check(store, Some(examined))?;
    }
    let mut printer = Printer::new(taking.json, Sink::stdout()?, arguments.pid, &taking.store);
    let outcome = follow_schedule(
        arguments,
        &mut checkpointer,
        schedule,
        &mut printer,
        signals,
    );
    printer.end();
    outcome?;
    match signals.exit_status() {
        _ if schedule.is_over() => Ok(ExitCode::SUCCESS),
        // A signal that comes when all is done changes nothing.
        Some(status) => {
            let given_up = false;
            Err(Signalled { status, given_up }.into())
        }
        None => Ok(say_end(&checkpointer, schedule)),
    }
}

/// All snapshots that were asked for, until the process ends or a signal comes.
fn follow_schedule(
    arguments: &Checkpoint,
    checkpointer: &mut Checkpointer,
    schedule: &mut Schedule,
    printer: &mut Printer,
    signals: &Signals,
) -> anyhow::Result<()> {
    let identity = checkpointer.identity().clone();
    let repeats = schedule.repeats();
    let mut keeping = Keeping::new(arguments.taking.keep_last);
    // What a single one finds is told by itself.
    let lives = || !repeats || identity.is_alive_and_same();
    while schedule.wait(signals, lives) {
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
                schedule.count_one();
                printer.print(&report, repeats)?;
                check_left(&report, leave, arguments)?;
                keeping.one_more(|keep| checkpointer.prune(keep));
            }
            Err(_) if !lives() => {}
            Err(error) => {
                let first = schedule.taken == 0;
                let told = told(error, signals, schedule.taken);
                let is_final = told.is::<Signalled>() || first && failure::is_refused(&told);
                let ends = if repeats && !is_final {
                    schedule.put_off(told).err()
                } else {
                    Some(told)
                };
                if let Some(error) = ends {
                    tidy_up(checkpointer);
                    return Err(error);
                }
            }
        }
    }
    keeping.end(|keep| checkpointer.prune(keep));
    Ok(())
}

/// A first snapshot that fails leaves nothing in the process: there is nothing to go on from.
fn tidy_up(checkpointer: &Checkpointer) {
    // Without a tracker nothing was put there; what is there is another store's.
    let tracks = checkpointer.backend() != Backend::Rehash;
    if !tracks || checkpointer.has_snapshot() {
        return;
    }
    for identity in checkpointer.identities() {
        let _ = pagetide::detach(identity, stop_options());
    }
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

/// Says that the process has ended, and what there is of it.
fn say_end(checkpointer: &Checkpointer, schedule: &Schedule) -> ExitCode {
    let store = checkpointer.store();
    let newest = store.newest().ok().flatten();
    let newest = newest.map_or("none".to_owned(), |info| info.id.to_string());
    output::note!(
        "pagetide: process {} has ended; {} in {}, the newest is {newest}",
        checkpointer.identity().pid,
        output::counted(schedule.taken, "snapshot", "snapshots"),
        store.location()
    );
    ExitCode::from(ENDED)
}

pub fn run_command(arguments: &Run) -> anyhow::Result<ExitCode> {
    let taking = &arguments.taking;
    let sink = match &arguments.report {
        None => Sink::stderr()?,
        Some(path) => Sink::file(path).with_context(|| format!("open {}", path.display()))?,
    };
    let mut place = match for_command(taking) {
        // The command runs all the same, and there may be room later.
        Err(error) if failure::is_full(&error) => None,
        other => Some(other?),
    };
    let (program, words) = arguments
        .command
        .split_first()
        .ok_or_else(|| Wrong::Usage("no command to run".to_owned()))?;
    let started = Command::new(program).args(words).spawn();
    if let Some(place) = place
        .as_ref()
        .filter(|place| started.is_err() && place.is_new)
    {
        place.remove_if_empty();
    }
    let mut child = started.with_context(|| format!("start {}", program.display()))?;
    let signals = Signals::catch()?;
    watch::start(taking.stop_timeout.unwrap_or(STOP_TIMEOUT), &signals, false)?;
    follow(arguments, &mut place, &signals, &mut child, sink);
    let status = end(&mut child, &signals)?;
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// A store that a command can be run under.
fn for_command(taking: &Taking) -> anyhow::Result<StoreInUse> {
    let place = StoreInUse::open_or_create(taking)?;
    // Whoever has it now would have it when the command runs.
    place.store.lock()?;
    if !taking.add {
        owner::check(&place.store, None)?;
    }
    Ok(place)
}

/// Snapshots of the command until it ends. Whatever fails, the command goes on.
fn follow(
    arguments: &Run,
    place: &mut Option<StoreInUse>,
    signals: &Signals,
    child: &mut Child,
    sink: Sink,
) {
    let pid = child.id().cast_signed();
    let taking = &arguments.taking;
    let options = options(taking, true, signals);
    let mut printer = Printer::new(taking.json, sink, pid, &taking.store);
    let mut checkpointer: Option<Checkpointer> = None;
    let mut schedule = Schedule::new(Some(arguments.every), None, arguments.max_failures);
    let mut keeping = Keeping::new(arguments.taking.keep_last);
    while schedule.wait(signals, || matches!(child.try_wait(), Ok(None))) {
        let taken = match checkpointer.as_mut() {
            Some(checkpointer) => checkpointer.take(Request::default()).map_err(Into::into),
            None => match attach_to(pid, taking, place, &options) {
                Ok(attached) => checkpointer
                    .insert(attached)
                    .take(Request::default())
                    .map_err(Into::into),
                Err(error) => Err(error),
            },
        };
        match taken {
            Ok(report) => {
                schedule.count_one();
                printer.print(&report, true).ok();
                if let Some(checkpointer) = &mut checkpointer {
                    keeping.one_more(|keep| checkpointer.prune(keep));
                }
            }
            // The command may end at any moment, also in the middle of a snapshot.
            Err(_) if has_ended(child, pid) => break,
            Err(error) if matches!(error.downcast_ref(), Some(TakeError::Cancelled)) => break,
            Err(error) => {
                if let Err(error) = schedule.put_off(error) {
                    let message = failure::message(&error);
                    output::note!("pagetide: no more snapshots: {message}; the command goes on");
                    break;
                }
            }
        }
    }
    if let Some(checkpointer) = &mut checkpointer {
        keeping.end(|keep| checkpointer.prune(keep));
    }
    printer.end();
    if schedule.taken == 0 && !signals.came() && has_ended(child, pid) {
        output::note!(
            "pagetide: the command ended before its first snapshot was taken: there is none in {}",
            taking.store.display()
        );
    }
}

/// Makes ready to take snapshots of the command, and the store if there was no room for it before.
fn attach_to(
    pid: i32,
    taking: &Taking,
    place: &mut Option<StoreInUse>,
    options: &Options,
) -> anyhow::Result<Checkpointer> {
    let place = match place {
        Some(place) => place,
        none => none.insert(for_command(taking)?),
    };
    let attached = Checkpointer::attach(pid, place.store.clone(), options.clone());
    Ok(attached?)
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
                Some(129) => Some(rustix::process::Signal::HUP),
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

/// A store, and whether this command has made it.
struct StoreInUse {
    store: Store,
    storage: Arc<DirectoryStorage>,
    is_new: bool,
}

impl StoreInUse {
    /// The store in a directory; a new one if there is no directory, or an empty one.
    fn open_or_create(taking: &Taking) -> anyhow::Result<Self> {
        let storage = storage_to_act(&taking.store, taking.trust_store);
        let (store, is_new) = match Store::open(storage.clone()) {
            // Creating looks whether there is anything, and takes over what an attempt that failed left.
            Err(OpenError::Missing { .. } | OpenError::NotAStore { .. }) => {
                check_parent(&taking.store)?;
                (Store::create(storage.clone())?, true)
            }
            other => (other?, false),
        };
        Ok(Self {
            store,
            storage,
            is_new,
        })
    }

    /// The same, where there is room for what a writer leaves there.
    fn writable(taking: &Taking) -> anyhow::Result<Self> {
        let place = Self::open_or_create(taking)?;
        match place.store.lock() {
            Err(error @ LockError::Io { .. }) => Err(error.into()),
            // Whatever else is wrong with it is told by whoever needs it.
            _ => Ok(place),
        }
    }

    /// What came of it. If that was refused, the store that was made for it and holds nothing goes away again, unless the process
    /// is tracked for it.
    fn unless_refused<T>(
        &self,
        came: anyhow::Result<T>,
        is_tracked: impl FnOnce() -> bool,
    ) -> anyhow::Result<T> {
        if self.is_new && came.as_ref().is_err_and(failure::is_refused) && !is_tracked() {
            self.remove_if_empty();
        }
        came
    }

    fn remove_if_empty(&self) {
        let Ok(lock) = self.store.lock() else { return };
        let names = self.storage.list().unwrap_or_default();
        let is_ours = |name: &String| ["pagetide-store", "lock"].contains(&name.as_str());
        if !names.iter().all(is_ours) {
            return;
        }
        for name in &names {
            let _ = self.storage.remove(name);
        }
        drop(lock);
        // Whatever else is there stays.
        let _ = self.storage.remove_directories();
    }
}

/// Of a store that is to be made only the last directory is.
fn check_parent(directory: &Path) -> Result<(), Wrong> {
    let parent = directory.parent().filter(|parent| *parent != Path::new(""));
    match parent {
        Some(parent) if !parent.exists() => Err(Wrong::Refused(format!(
            "cannot create the store {}: there is no directory {}",
            directory.display(),
            parent.display()
        ))),
        _ => Ok(()),
    }
}

fn options(taking: &Taking, repeats: bool, signals: &Signals) -> Options {
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
    // It stays when we end, however that comes about: whoever is next goes on with a delta.
    options.residence = Residence::Target;
    options.tree = taking.tree;
    options.store_files = taking.store_files;
    options.restorable = !taking.memory_only;
    if let Some(timeout) = taking.stop_timeout {
        options.stop_timeout = timeout;
    } else if repeats {
        // The threads that have stopped wait for those that have not, and there will be another try.
        options.stop_timeout = Duration::from_secs(2);
    }
    options.buffer_bytes = taking.buffer.min(pagetide_snapshot::memory_limit() / 2);
    options.page_table_limit = taking.page_table_limit;
    let level = taking.level.map(Compression::Zstd);
    options.write.compression = level.unwrap_or(taking.compress);
    // Who takes one has no pages of the last.
    options.shadow_limit = if repeats {
        taking.shadow_limit
    } else {
        Some(0)
    };
    options.cancel = signals.cancel();
    let bar = output::progress("storing");
    options.progress = Some(Progress(Arc::new(move |done, total| {
        if bar.is_finished() {
            bar.reset();
        }
        bar.set_length(total);
        bar.set_position(done);
        if done >= total {
            bar.finish_and_clear();
        }
    })));
    options
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
