//! `pagetide log`: the snapshots of a store, newest last.

use super::opening::open_store;
use super::owner;
use crate::args::StoreOnly;
use crate::output::{self, Page};
use pagetide_snapshot::{SnapshotInfo, SnapshotKind, Store};
use serde::Serialize;

#[derive(Serialize)]
struct Answer {
    snapshots: Vec<Row>,
    damaged: Vec<Damaged>,
    /// Those that were pruned and of which something is left that others need.
    bases: Vec<u64>,
}

#[derive(Serialize)]
struct Row {
    id: u64,
    parent: Option<u64>,
    kind: &'static str,
    created: String,
    /// The process; null if that is not known.
    pid: Option<i32>,
    command: Option<String>,
    stored_bytes: u64,
    logical_bytes: u64,
    pages: u64,
    content_hash: String,
}

#[derive(Serialize)]
struct Damaged {
    id: u64,
    what: String,
}

pub fn run(options: &StoreOnly) -> anyhow::Result<()> {
    let store = open_store(&options.store)?;
    let snapshots = store.snapshots()?;
    let answer = Answer {
        snapshots: snapshots
            .good
            .iter()
            .map(|info| row(&store, info))
            .collect(),
        damaged: snapshots
            .damaged
            .iter()
            .map(|damaged| Damaged {
                id: damaged.id.0,
                what: damaged.error.to_string(),
            })
            .collect(),
        bases: snapshots.bases.iter().map(|id| id.0).collect(),
    };
    if options.json {
        return output::json(&answer);
    }
    let cells = |row: &Row| {
        vec![
            row.id.to_string(),
            row.parent.map_or("-".to_owned(), |id| id.to_string()),
            row.kind.to_owned(),
            row.created.clone(),
            row.pages.to_string(),
            output::bytes(row.stored_bytes),
            row.pid.map_or("-".to_owned(), |pid| pid.to_string()),
            row.command.clone().unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = answer.snapshots.iter().map(cells).collect();
    let header = [
        "id", "parent", "kind", "created", "pages", "size", "pid", "command",
    ];
    let rows_are_empty = rows.is_empty();
    if rows_are_empty && answer.damaged.is_empty() {
        output::line("no snapshots yet")?
    } else {
        Page::new().table(&header, &[0, 1, 4, 5, 6], rows).print()?
    }
    if !answer.bases.is_empty() && !rows_are_empty {
        let files = output::counted(answer.bases.len() as u64, "file", "files");
        output::line(format!(
            "{files} of pruned snapshots left, for pages that these need"
        ))?;
    }
    for damaged in &answer.damaged {
        output::note!("pagetide: {}", damaged.what);
    }
    Ok(())
}

fn row(store: &Store, info: &SnapshotInfo) -> Row {
    let owner = owner::owners(store, info.id).into_iter().next();
    Row {
        pid: owner.as_ref().map(|owner| owner.identity.pid),
        command: owner.map(|owner| owner.command),
        id: info.id.0,
        parent: info.parent.map(|id| id.0),
        kind: match info.kind {
            SnapshotKind::Full => "full",
            SnapshotKind::Delta => "delta",
        },
        created: output::utc(info.created_unix_ns),
        stored_bytes: info.stored_bytes,
        logical_bytes: info.logical_bytes,
        pages: info.pages.0,
        content_hash: info.content_hash.to_string(),
    }
}
