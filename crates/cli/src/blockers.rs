//! What keeps a process from being restored, as commands tell it.

use pagetide_process::Blocker;
use serde::Serialize;

/// One of them, for machines.
#[derive(Serialize)]
pub struct Listed<'a> {
    pid: i32,
    name: String,
    what: &'a str,
    advice: &'a str,
    instead: Option<&'a str>,
}

/// All of them, for machines.
pub fn listed(blockers: &[Blocker]) -> Vec<Listed<'_>> {
    let all = blockers.iter();
    all.map(|blocker| Listed {
        pid: blocker.pid,
        name: blocker.name(),
        what: &blocker.what,
        advice: &blocker.advice,
        instead: blocker.instead.as_deref(),
    })
    .collect()
}

/// One of them, for people: a line of its own each.
pub fn told(blocker: &Blocker) -> String {
    let instead = match &blocker.instead {
        Some(instead) => format!("; with --accept of this name: {instead}"),
        None => String::new(),
    };
    format!("process {}: {blocker}{instead}", blocker.pid)
}
