//! `pagetide prune` and `pagetide squash`: chains made shorter.

use super::opening::open_store_to_act;
use crate::args::{Prune, Squash};
use crate::output::{self, Page};
use pagetide_snapshot::{Keep, Pruned, SnapshotId};
use serde::Serialize;

#[derive(Serialize)]
struct Answer {
    removed: Vec<u64>,
    kept: u64,
    in_use: Vec<u64>,
    freed_bytes: i64,
    base_files: u64,
    base_bytes: u64,
    dry_run: bool,
}

pub fn prune(options: &Prune) -> anyhow::Result<()> {
    let store = open_store_to_act(&options.store, options.trust_store)?;
    let keep = Keep {
        last: options.keep_last.unwrap_or(0),
        hourly: options.keep_hourly.unwrap_or(0),
        daily: options.keep_daily.unwrap_or(0),
    };
    let pruned = store.prune(&keep, options.dry_run)?;
    tell(&pruned, options.dry_run, options.json)
}

pub fn squash(options: &Squash) -> anyhow::Result<()> {
    let store = open_store_to_act(&options.store, options.trust_store)?;
    let (from, to) = options.range;
    let squashed = store.squash(SnapshotId(from), SnapshotId(to))?;
    tell(&squashed, false, options.json)
}

fn tell(pruned: &Pruned, dry_run: bool, json: bool) -> anyhow::Result<()> {
    let numbers = |ids: &[SnapshotId]| ids.iter().map(|id| id.0).collect::<Vec<u64>>();
    let answer = Answer {
        removed: numbers(&pruned.removed),
        kept: pruned.kept,
        in_use: numbers(&pruned.in_use),
        freed_bytes: pruned.freed_bytes,
        base_files: pruned.base_files,
        base_bytes: pruned.base_bytes,
        dry_run,
    };
    if json {
        return output::json(&answer);
    }
    let mut page = Page::new();
    let removed = output::counted(answer.removed.len() as u64, "snapshot", "snapshots");
    let which = match &answer.removed[..] {
        [] => String::new(),
        removed => format!(" ({})", ranges(removed)),
    };
    if dry_run {
        page.line(format!(
            "{removed} would go{which}, {} stay; nothing was done",
            answer.kept
        ));
        return page.print();
    }
    let freed = match u64::try_from(answer.freed_bytes) {
        Ok(bytes) => format!("{} freed", output::bytes(bytes)),
        Err(_) => {
            let more = answer.freed_bytes.unsigned_abs();
            format!("{} more taken for now", output::bytes(more))
        }
    };
    page.line(format!(
        "{removed} removed{which}, {} left; {freed}",
        answer.kept
    ));
    if answer.base_files > 0 {
        page.line(format!(
            "{} with {} of pages that these need",
            output::counted(answer.base_files, "file is left", "files are left"),
            output::bytes(answer.base_bytes)
        ));
    }
    if !answer.in_use.is_empty() {
        page.line(format!(
            "still being read, and gone with a later prune: {}",
            ranges(&answer.in_use)
        ));
    }
    page.print()
}

/// `1-5, 7`.
fn ranges(ids: &[u64]) -> String {
    let rows = ids.chunk_by(|a, b| a + 1 == *b);
    let texts: Vec<String> = rows
        .map(|row| match row {
            [first, .., last] => format!("{first}-{last}"),
            row => row.iter().map(u64::to_string).collect(),
        })
        .collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::ranges;

    #[test]
    fn numbers_in_a_row_are_told_by_their_ends() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[4]), "4");
        assert_eq!(ranges(&[1, 2, 3, 5, 7, 8]), "1-3, 5, 7-8");
    }
}
