//! `pagetide detach`: remove what pagetide left in a process.

use super::opening::{STOP_TIMEOUT, check_free, stop_options};
use crate::args::Detach;
use crate::output;
use crate::signals::Signals;
use crate::watch;
use serde::Serialize;

#[derive(Serialize)]
struct Answer {
    pid: i32,
    closed_descriptors: usize,
}

pub fn run(options: &Detach) -> anyhow::Result<()> {
    watch::start(STOP_TIMEOUT, &Signals::default(), false)?;
    check_free(options.pid)?;
    let examined = pagetide_process::examine(options.pid)?;
    let detached = pagetide::detach(&examined.identity, stop_options())?;
    let answer = Answer {
        pid: options.pid,
        closed_descriptors: detached.descriptors,
    };
    if options.json {
        return output::json(&answer);
    }
    output::line(match answer.closed_descriptors {
        0 => format!("process {}: there was nothing to remove", answer.pid),
        _ => format!(
            "process {}: tracking removed; the next snapshot is full",
            answer.pid
        ),
    })
}
