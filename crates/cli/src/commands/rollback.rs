//! `pagetide rollback`: a live process's memory and registers put back to a snapshot.

use super::opening::{STOP_TIMEOUT, open_store_to_act, stop_options, view_at};
use crate::args::Rollback;
use crate::output;
use crate::signals::Signals;
use crate::watch;
use serde::Serialize;

#[derive(Serialize)]
struct Answer {
    pid: i32,
    at: u64,
    restored_pages: u64,
    compared_pages: u64,
    stop_us: u64,
    /// Advice and locks that could not be put back.
    notes: Vec<String>,
}

pub fn run(options: &Rollback) -> anyhow::Result<()> {
    watch::start(STOP_TIMEOUT, &Signals::default(), false)?;
    let store = open_store_to_act(&options.store, options.trust_store)?;
    let view = view_at(&store, options.at)?;
    let done = pagetide::roll_back(options.pid, &store, &view, stop_options())?;
    let answer = Answer {
        pid: options.pid,
        at: view.id().0,
        restored_pages: done.restored_pages.0,
        compared_pages: done.compared_pages.0,
        stop_us: output::microseconds(done.stop),
        notes: done.notes,
    };
    if options.json {
        return output::json(&answer);
    }
    for note in &answer.notes {
        output::note_line(note);
    }
    output::line(format!(
        "process {} is back at snapshot {}: {} pages written, stopped for {}",
        answer.pid,
        answer.at,
        answer.restored_pages,
        output::duration(done.stop)
    ))
}
