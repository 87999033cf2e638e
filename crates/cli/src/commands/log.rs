//! `pagetide log`: the snapshots of a store, newest last.

use super::open_store;
use crate::args::StoreOnly;
use crate::output::{self, Page};
use pagetide_snapshot::{SnapshotInfo, SnapshotKind};
use serde::Serialize;

#[derive(Serialize)]
struct Answer {
    snapshots: Vec<Row>,
    damaged: Vec<Damaged>,
}

#[derive(Serialize)]
struct Row {
    id: u64,
    parent: Option<u64>,
    kind: &'static str,
    created: String,
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
        snapshots: snapshots.good.iter().map(row).collect(),
        damaged: snapshots
            .damaged
            .iter()
            .map(|damaged| Damaged {
                id: damaged.id.0,
                what: damaged.error.to_string(),
            })
            .collect(),
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
        ]
    };
    let rows = answer.snapshots.iter().map(cells).collect();
    let header = ["id", "parent", "kind", "created", "pages", "size"];
    Page::new().table(&header, &[0, 1, 4, 5], rows).print()?;
    for damaged in &answer.damaged {
        output::note!("pagetide: {}", damaged.what);
    }
    Ok(())
}

fn row(info: &SnapshotInfo) -> Row {
    Row {
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
