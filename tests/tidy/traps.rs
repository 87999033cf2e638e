//! docs/KERNEL.md and the tests agree: each row says which test holds it, and each test of a trap has its row.

use crate::files::{parsed, sources, text_of, top};
use std::collections::{BTreeMap, BTreeSet};
use syn::visit::Visit;

#[derive(Default)]
struct Names(BTreeSet<String>);

impl<'a> Visit<'a> for Names {
    fn visit_item_fn(&mut self, function: &'a syn::ItemFn) {
        self.0.insert(function.sig.ident.to_string());
        syn::visit::visit_item_fn(self, function);
    }
}

/// The number of a trap that a test is named after, as `t07_...` is.
fn number_of(test: &str) -> Option<u32> {
    let (number, _) = test.strip_prefix('t')?.split_once('_')?;
    number.parse().ok()
}

#[test]
fn each_row_names_its_test_and_each_test_of_a_trap_has_its_row() {
    let mut names = Names::default();
    for path in [sources("crates"), sources("tests")].concat() {
        names.visit_file(&parsed(&path));
    }
    let page = text_of(&top().join("docs/KERNEL.md"));
    let rows = page.lines().filter_map(|line| {
        let (number, row) = line.strip_prefix("| T")?.split_once(" | ")?;
        Some((number.parse::<u32>().ok()?, row))
    });
    let rows: BTreeMap<u32, &str> = rows.collect();
    assert!(rows.len() > 60, "only {} rows are found", rows.len());
    let mut wrong = Vec::new();
    for (number, row) in &rows {
        // A name may stand with its module, or stand for all that begin as it does: `t34_*`.
        let quoted = row.split('`').skip(1).step_by(2);
        let words = quoted.map(|name| name.rsplit("::").next().unwrap_or(name));
        let is_test = |word: &str| match word.trim_end_matches('*') {
            start if start == word => names.0.contains(word),
            start => !start.is_empty() && names.0.iter().any(|name| name.starts_with(start)),
        };
        let by_number = names.0.iter().any(|name| number_of(name) == Some(*number));
        if !by_number && !words.into_iter().any(is_test) {
            wrong.push(format!("T{number} names no test that is there"));
        }
    }
    let numbers = names
        .0
        .iter()
        .filter_map(|name| Some((name, number_of(name)?)));
    // Those that concern us alone, and no target, stand in a table without numbers.
    let words = page.split(|letter: char| !letter.is_ascii_alphanumeric());
    let told: BTreeSet<&str> = words.collect();
    for (name, number) in numbers.filter(|(_, number)| !told.contains(&*format!("T{number}"))) {
        wrong.push(format!("{name}: docs/KERNEL.md has no T{number}"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
