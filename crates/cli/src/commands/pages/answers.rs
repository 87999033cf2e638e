//! What the answers of `pagetide pages` have in common.

use crate::output;
use pagetide_kernel::maps::Mapping;
use pagetide_process::Unavailable;
use serde::Serialize;

/// A mapping, as in the other commands.
#[derive(Serialize)]
pub struct MappingAnswer {
    pub start: String,
    pub end: String,
    pub protection: String,
    pub shared: bool,
    pub name: String,
    pub flags: Vec<String>,
}

#[derive(Serialize)]
pub struct UnavailableAnswer {
    pub what: &'static str,
    pub reason: String,
}

pub fn mapping(mapping: &Mapping, flags: &[String]) -> MappingAnswer {
    let flag = |on, letter| if on { letter } else { '-' };
    MappingAnswer {
        start: format!("{:016x}", mapping.start),
        end: format!("{:016x}", mapping.end),
        protection: [
            flag(mapping.read, 'r'),
            flag(mapping.write, 'w'),
            flag(mapping.execute, 'x'),
        ]
        .iter()
        .collect(),
        shared: mapping.shared,
        name: mapping.name.to_string(),
        flags: flags.to_vec(),
    }
}

pub fn unavailable(list: &[Unavailable]) -> Vec<UnavailableAnswer> {
    let answer = |one: &Unavailable| UnavailableAnswer {
        what: one.what,
        reason: one.reason.clone(),
    };
    list.iter().map(answer).collect()
}

/// Tells people what is missing. Machines find it in the answer.
pub fn note(unavailable: &[UnavailableAnswer]) {
    for one in unavailable {
        output::note!("pagetide: {} not told: {}", one.what, one.reason);
    }
}
