//! `pagetide inspect`: what a checkpoint of a process would hold, and what would keep it from being restored.

use super::opening::{STOP_TIMEOUT, stop_options};
use crate::args::Inspect;
use crate::blockers::{self, Listed};
use crate::commands::snapshots::{Compared, compared};
use crate::output::{self, Page};
use crate::signals::Signals;
use crate::watch;
use serde::Serialize;

#[derive(Serialize)]
struct Answer<'a> {
    pid: i32,
    restorable: bool,
    processes: usize,
    threads: usize,
    mappings: usize,
    mapped_bytes: u64,
    descriptors: usize,
    blockers: Vec<Listed<'a>>,
    not_tracked: Vec<Compared>,
    tracked: usize,
}

pub fn run(options: &Inspect) -> anyhow::Result<()> {
    watch::start(STOP_TIMEOUT, &Signals::default(), false)?;
    let found = pagetide::inspect(options.pid, options.tree, stop_options())?;
    if options.json {
        return output::json(&Answer {
            pid: options.pid,
            restorable: found.blockers.is_empty(),
            processes: found.processes,
            threads: found.threads,
            mappings: found.mappings,
            mapped_bytes: found.mapped_bytes,
            descriptors: found.descriptors,
            blockers: blockers::listed(&found.blockers),
            not_tracked: compared(&found.not_tracked),
            tracked: found.tracked,
        });
    }
    let mut page = Page::new();
    page.line(format!(
        "{} processes, {} threads, {} mappings of {}, {} file descriptors",
        found.processes,
        found.threads,
        found.mappings,
        output::bytes(found.mapped_bytes),
        found.descriptors
    ));
    match &found.blockers[..] {
        [] => {
            page.line("a checkpoint can be restored");
        }
        all => {
            page.line("a checkpoint can not be restored as it is:");
            for blocker in all {
                page.line(format!("  {}", blockers::told(blocker)));
            }
        }
    }
    for found in &found.not_tracked {
        page.line(format!(
            "all memory of process {} is compared at each snapshot and not tracked: {}",
            found.pid, found.reason
        ));
    }
    if found.tracked > 0 {
        page.line(
            "tracked by pagetide: mremap(2) over several mappings fails with EFAULT ('pagetide detach PID' ends that, and \
             --backend rehash takes snapshots without)",
        );
    }
    page.print()
}
