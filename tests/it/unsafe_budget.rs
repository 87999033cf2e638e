//! Prevents that `unsafe` spreads: docs/SECURITY.md says how much of it each crate may have.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("list sources");
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.expect("list sources").path()) {
        match path.is_dir() {
            true => found.extend(sources(&path)),
            false if path.extension().is_some_and(|end| end == "rs") => found.push(path),
            false => {}
        }
    }
    found
}

/// Blocks, functions, implementations and traits.
fn uses(text: &str) -> usize {
    let lines = text.lines().map(str::trim_start);
    let code = lines.filter(|line| !line.starts_with("//"));
    let words = [
        "unsafe {",
        "unsafe fn",
        "unsafe impl",
        "unsafe trait",
        "unsafe extern",
    ];
    code.map(|line| {
        words
            .iter()
            .map(|word| line.matches(word).count())
            .sum::<usize>()
    })
    .sum()
}

#[test]
fn no_crate_has_more_than_its_budget() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the repository");
    let page = fs::read_to_string(top.join("docs/SECURITY.md")).expect("read the page");
    let mut crates = 0;
    for entry in fs::read_dir(top.join("crates")).expect("list crates") {
        let path = entry.expect("list crates").path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a plain name");
        let row = format!("| `{name}` | ");
        let budget = page
            .lines()
            .find_map(|line| line.strip_prefix(&*row)?.strip_suffix(" |"));
        let budget: usize = budget.and_then(|text| text.parse().ok()).expect(name);
        let read = |path: PathBuf| uses(&fs::read_to_string(path).expect("read a source"));
        let found: usize = sources(&path.join("src")).into_iter().map(read).sum();
        assert!(found <= budget, "{name} has {found} and may have {budget}");
        crates += 1;
    }
    assert!(crates >= 8, "{crates} crates were found");
    assert_eq!(
        uses("unsafe { a }\n// unsafe { b }\nlet c = unsafe { d };"),
        2
    );
}
