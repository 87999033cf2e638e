//! docs/BLOCKERS.md lists each kind of blocker, and no others.

use crate::files::{text_of, top};
use pagetide::process::BlockerKind;
use std::collections::BTreeSet;

#[test]
fn each_kind_of_blocker_has_its_row_and_each_row_its_kind() {
    let page = text_of(&top().join("docs/BLOCKERS.md"));
    let rows = page.lines().filter_map(|line| {
        let (name, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
        let (what, advice) = rest.strip_suffix(" |")?.split_once(" | ")?;
        assert!(!what.is_empty() && !advice.is_empty(), "{line}");
        Some(name)
    });
    let rows: Vec<&str> = rows.collect();
    let listed: BTreeSet<&str> = rows.iter().copied().collect();
    assert_eq!(rows.len(), listed.len(), "a kind is listed twice");
    let known: BTreeSet<&str> = BlockerKind::ALL.iter().map(BlockerKind::name).collect();
    assert_eq!(listed, known);
}
