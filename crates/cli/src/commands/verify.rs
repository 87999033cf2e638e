//! `pagetide verify`: every byte of every snapshot is read and checked.

use super::open_store;
use crate::args::StoreOnly;
use crate::output::{self, Page};
use serde::Serialize;
use std::process::ExitCode;

#[derive(Serialize)]
struct Answer {
    ok: bool,
    snapshots: u64,
    checked_bytes: u64,
    damaged: Vec<DamageAnswer>,
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
    let code = match report.ok {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    };
    let answer = Answer {
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
    page.line(match answer.ok {
        true => format!("ok: {} snapshots, {size} checked", answer.snapshots),
        false => format!("damaged: {} of {size} checked", answer.damaged.len()),
    });
    page.print()?;
    Ok(code)
}
