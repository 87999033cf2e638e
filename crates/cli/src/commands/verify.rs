//! `pagetide verify`: every byte of every snapshot is read and checked.

use super::opening::open_store;
use crate::args::StoreOnly;
use crate::output::{self, Page};
use serde::Serialize;
use std::collections::BTreeSet;
use std::process::ExitCode;

#[derive(Serialize)]
struct Answer {
    ok: bool,
    snapshots: u64,
    checked_bytes: u64,
    damaged: Vec<DamageAnswer>,
    /// Snapshots that are whole themselves, and need one that is damaged.
    lost: Vec<u64>,
    /// The newest snapshot that is whole with all that it needs.
    newest_whole: Option<u64>,
}

#[derive(Serialize)]
struct DamageAnswer {
    snapshot: u64,
    space: Option<String>,
    address: Option<String>,
    length_bytes: u64,
    what: String,
}

pub fn run(options: &StoreOnly) -> anyhow::Result<ExitCode> {
    let store = open_store(&options.store)?;
    let bar = output::progress("verifying");
    let report = store.verify(&|progress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes);
    });
    bar.finish_and_clear();
    let report = report?;
    let code = if report.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    };
    let damaged: BTreeSet<u64> = report
        .damaged
        .iter()
        .map(|damage| damage.snapshot.0)
        .collect();
    let answer = Answer {
        lost: report.lost.iter().map(|id| id.0).collect(),
        newest_whole: report.newest_whole.map(|id| id.0),
        ok: report.ok,
        snapshots: report.snapshots,
        checked_bytes: report.checked_bytes,
        damaged: report
            .damaged
            .into_iter()
            .map(|damage| DamageAnswer {
                snapshot: damage.snapshot.0,
                space: damage.space,
                address: damage.address.map(|address| format!("{address:016x}")),
                length_bytes: damage.length_bytes,
                what: damage.what,
            })
            .collect(),
    };
    if options.json {
        output::json(&answer)?;
        return Ok(code);
    }
    let mut page = Page::new();
    for damage in &answer.damaged {
        let mut line = format!("snapshot {}", damage.snapshot);
        if let (Some(space), Some(address)) = (&damage.space, &damage.address) {
            line += &format!(", space {space}, {address}+{:#x}", damage.length_bytes);
        }
        page.line(line + ": " + &damage.what);
    }
    let size = output::bytes(answer.checked_bytes);
    page.line(if answer.ok {
        format!("ok: {} snapshots, {size} checked", answer.snapshots)
    } else {
        told(&damaged, &answer.lost, answer.newest_whole)
    });
    page.print()?;
    Ok(code)
}

fn told(damaged: &BTreeSet<u64>, lost: &[u64], newest_whole: Option<u64>) -> String {
    let list = |ids: &[u64]| {
        let shown: Vec<String> = ids.iter().take(8).map(u64::to_string).collect();
        let more = match ids.len().saturating_sub(8) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        shown.join(", ") + &more
    };
    let of = |count: usize| if count == 1 { "snapshot" } else { "snapshots" };
    let are = |count: usize| if count == 1 { "is" } else { "are" };
    let ids: Vec<u64> = damaged.iter().copied().collect();
    let mut text = format!(
        "{} {} {} damaged",
        of(ids.len()),
        list(&ids),
        are(ids.len())
    );
    if !lost.is_empty() {
        let need = if lost.len() == 1 { "needs" } else { "need" };
        text += &format!("; {} {need} what is damaged", list(lost));
    }
    text + &match newest_whole {
        Some(id) => format!(". The newest that can be restored: {id}"),
        None => ". None can be restored".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_told_with_what_it_costs() {
        let damaged = BTreeSet::from([1]);
        let says = "snapshot 1 is damaged; 2, 3, 4 need what is damaged. The newest that can be restored: 5";
        assert_eq!(told(&damaged, &[2, 3, 4], Some(5)), says);
        let all = BTreeSet::from([1, 2]);
        assert_eq!(
            told(&all, &[], None),
            "snapshots 1, 2 are damaged. None can be restored"
        );
    }
}
