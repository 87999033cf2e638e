//! `pagetide inspect`: what a checkpoint of a process would hold, and what would keep it from being restored.

use super::stop_options;
use crate::args::Inspect;
use crate::blockers::{self, Listed};
use crate::output::{self, Page};
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
}

pub fn run(options: &Inspect) -> anyhow::Result<()> {
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
    page.print()
}
