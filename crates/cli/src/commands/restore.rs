//! `pagetide restore`: a process started again from a snapshot.

use super::{open_store, stop_options, view_at};
use crate::args::{Restore, TcpName};
use crate::output;
use crate::signals::Signals;
use pagetide::RestoreOptions;
use pagetide_process::TcpChoice;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};
use serde::Serialize;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Serialize)]
struct Answer {
    pid: i32,
    at: u64,
    processes: usize,
    restored_pages: u64,
    first_instruction_us: u64,
    not_tracked: Option<String>,
}

pub fn run(arguments: &Restore) -> anyhow::Result<ExitCode> {
    let store = open_store(&arguments.store)?;
    let view = view_at(&store, arguments.at)?;
    let signals = Signals::catch()?;
    let mut options = RestoreOptions::default();
    options.new_pid = arguments.new_pid;
    options.stopped = arguments.stopped;
    options.accept.clone_from(&arguments.accept);
    options.tcp = match arguments.tcp {
        TcpName::Restore => TcpChoice::Restore,
        TcpName::Reset => TcpChoice::Reset,
    };
    // It would keep the streams of a command that has ended.
    options.without_streams = arguments.detach;
    options.stop = stop_options();
    let done = pagetide::restore(&store, &view, &options)?;
    let answer = Answer {
        pid: done.pid,
        at: view.id().0,
        processes: done.pids.len(),
        restored_pages: done.restored_pages.0,
        first_instruction_us: output::microseconds(done.first_instruction),
        not_tracked: done.not_tracked,
    };
    if arguments.json {
        output::json(&answer)?;
    } else {
        // Standard output is the process's now.
        eprintln!(
            "process {} is back as of snapshot {}: {} pages written, running after {}",
            answer.pid,
            answer.at,
            answer.restored_pages,
            output::duration(done.first_instruction)
        );
    }
    match arguments.detach {
        true => Ok(ExitCode::SUCCESS),
        false => follow(done.pid, &signals),
    }
}

/// Waits for the process and takes over its exit status. A signal to us is passed on to it.
fn follow(pid: i32, signals: &Signals) -> anyhow::Result<ExitCode> {
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
            if let Some(number) = number {
                let terminates = signals.exit_status() == Some(143);
                let signal = if terminates {
                    Signal::TERM
                } else {
                    Signal::INT
                };
                // It may have ended just now.
                kill_process(number, signal).ok();
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn exit_code(status: WaitStatus) -> ExitCode {
    let killed = status.terminating_signal().map(|signal| 128 + signal);
    let code = status.exit_status().or(killed).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
