//! `pagetide restore`: a process started again from a snapshot.

mod behind;

use super::opening::{open_store_to_act, stop_options, view_at};
use crate::args::{ClockName, Restore, TcpName};
use crate::blockers::{self, Listed};
use crate::output::{self, Page};
use crate::signals::Signals;
use crate::wrong::Wrong;
use behind::Behind;
use pagetide::{ClockChoice, Filling, RestoreOptions, Restored};
use pagetide_kernel::pidfd::PidFd;
use pagetide_process::TcpChoice;
use pagetide_snapshot::View;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, waitpid};
use serde::Serialize;
use std::borrow::Cow;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Serialize)]
struct Answer {
    pid: i32,
    at: u64,
    processes: usize,
    lazy: bool,
    restored_pages: u64,
    first_instruction_us: u64,
    not_tracked: Option<String>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Listing<'a> {
    at: u64,
    restorable: bool,
    paths: Vec<Cow<'a, str>>,
    blockers: Vec<Listed<'a>>,
    /// What this machine would have to allow.
    limits: Vec<String>,
}

/// An error if a restore cannot be done by whoever asks for it.
pub fn check_rights(arguments: &Restore) -> anyhow::Result<()> {
    if arguments.dry_run || rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let what =
        "restore needs root, for pids of one's choice and files of /proc (--dry-run does not)";
    Err(Wrong::Refused(what.to_owned()).into())
}

pub fn run(arguments: &Restore) -> anyhow::Result<ExitCode> {
    let is_served_later = arguments.lazy && arguments.detach && !arguments.dry_run;
    if is_served_later && !arguments.behind {
        return behind::start();
    }
    let behind = is_served_later.then(Behind::new).transpose()?;
    // What is in the store is run, with the rights of root if root asks for it.
    let store = open_store_to_act(&arguments.store, arguments.trust_store)?;
    let view = view_at(&store, arguments.at)?;
    if arguments.dry_run {
        return list(&view, tcp_of(arguments), arguments.json);
    }
    pagetide::make_room_for_descriptors();
    let signals = Signals::catch()?;
    let done = pagetide::restore(&store, &view, &options_of(arguments))?;
    // It is our child; it may have ended.
    let process = PidFd::open(done.pid).ok();
    tell(arguments, view.id().0, &done)?;
    if let Some(behind) = behind {
        behind.done()?;
    }
    let filled = done
        .filling
        .map(|filling| fill(filling, process.as_ref(), &signals));
    let filled = filled.unwrap_or(Ok(()));
    if let Err(error) = &filled {
        // It may run on for long.
        crate::failure::report(error);
    }
    pagetide::rest_decompressing();
    match (arguments.detach, filled) {
        (true, Ok(())) => Ok(ExitCode::SUCCESS),
        (true, Err(_)) => Ok(ExitCode::FAILURE),
        (false, filled) => {
            let code = follow(done.pid, process.as_ref(), &signals)?;
            Ok(filled.map_or(ExitCode::FAILURE, |()| code))
        }
    }
}

fn options_of(arguments: &Restore) -> RestoreOptions {
    let mut options = RestoreOptions::default();
    options.new_pid = arguments.new_pid;
    options.stopped = arguments.stopped;
    options.lazy = arguments.lazy;
    options.accept.clone_from(&arguments.accept);
    options.allow.clone_from(&arguments.allow);
    options.tcp = tcp_of(arguments);
    options.clock = match arguments.clock {
        ClockName::GoOn => ClockChoice::GoOn,
        ClockName::Host => ClockChoice::Host,
    };
    // It would keep the streams of a command that has ended.
    options.without_streams = arguments.detach;
    options.stop = stop_options();
    options
}

fn tcp_of(arguments: &Restore) -> TcpChoice {
    match arguments.tcp {
        TcpName::Restore => TcpChoice::Restore,
        TcpName::Reset => TcpChoice::Reset,
    }
}

/// Tells what a restore has done.
fn tell(arguments: &Restore, at: u64, done: &Restored) -> anyhow::Result<()> {
    if arguments.json {
        return output::json(&Answer {
            pid: done.pid,
            at,
            processes: done.pids.len(),
            lazy: arguments.lazy,
            restored_pages: done.restored_pages.0,
            first_instruction_us: output::microseconds(done.first_instruction),
            not_tracked: done.not_tracked.clone(),
            notes: done.notes.clone(),
        });
    }
    // Standard output is the process's now.
    output::note!(
        "process {} is back as of snapshot {at}: {} pages written, running after {}",
        done.pid,
        done.restored_pages.0,
        output::duration(done.first_instruction)
    );
    for note in &done.notes {
        output::note_line(note);
    }
    Ok(())
}

/// Waits until all memory is there. A signal to us is passed on to the process, but for one that is left to itself.
fn fill(filling: Filling, process: Option<&PidFd>, signals: &Signals) -> anyhow::Result<()> {
    let mut passed_on = false;
    while !filling.is_done() {
        if signals.came() && !passed_on {
            passed_on = true;
            pass_on(process, signals);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let report = filling.wait()?;
    tracing::debug!(?report, "all memory is there");
    Ok(())
}

/// Sends the signal that came to the process. It may have ended just now.
fn pass_on(process: Option<&PidFd>, signals: &Signals) {
    let signal = match signals.exit_status() {
        Some(143) => Signal::TERM,
        Some(129) => Signal::HUP,
        _ => Signal::INT,
    };
    if let Some(process) = process {
        process.send_signal(signal).ok();
    }
}

/// Lists what a restore would open, and what it could not bring back.
fn list(view: &View, tcp: TcpChoice, json: bool) -> anyhow::Result<ExitCode> {
    let paths = pagetide::paths_of(view)?;
    let mut blockers = pagetide::blockers_of(view).unwrap_or_default();
    blockers.retain(|blocker| !tcp.settles(blocker));
    let limits: Vec<String> = pagetide::check_limits(view)
        .err()
        .iter()
        .map(ToString::to_string)
        .collect();
    let restorable = blockers.is_empty() && limits.is_empty();
    if json {
        let paths = paths.iter().map(|path| path.to_string_lossy()).collect();
        output::json(&Listing {
            at: view.id().0,
            restorable,
            paths,
            blockers: blockers::listed(&blockers),
            limits,
        })?;
    } else {
        let mut page = Page::new();
        for path in &paths {
            page.path(path);
        }
        for blocker in &blockers {
            page.line(format!(
                "cannot be brought back: {}",
                blockers::told(blocker)
            ));
        }
        for limit in &limits {
            page.line(format!("cannot be restored here: {limit}"));
        }
        page.print()?;
    }
    Ok(if restorable {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}

/// Waits for the process and takes over its exit status. A signal to us is passed on to it.
fn follow(pid: i32, process: Option<&PidFd>, signals: &Signals) -> anyhow::Result<ExitCode> {
    let number = Pid::from_raw(pid);
    let mut passed_on = false;
    loop {
        match waitpid(number, WaitOptions::NOHANG) {
            Ok(Some((_, status))) => return Ok(exit_code(status)),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if signals.came() && !passed_on {
            passed_on = true;
            pass_on(process, signals);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn exit_code(status: WaitStatus) -> ExitCode {
    let killed = status.terminating_signal().map(|signal| 128 + signal);
    let code = status.exit_status().or(killed).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
