//! Prevents that docs/SOURCES.md, which says of each statement of the documents where it is honoured, names a file, a test or a
//! limit that is not there.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// How many statements each document makes.
const DOCUMENTS: [(char, usize); 5] = [('P', 66), ('S', 50), ('R', 11), ('A', 79), ('M', 39)];

fn top() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the repository")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = top().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("list sources") {
        let path = entry.expect("list sources").path();
        let is_output = path.file_name().is_some_and(|name| name == "target");
        if path.is_dir() && !is_output {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// The names of all tests: functions below `#[test]`.
fn tests_of(text: &str) -> impl Iterator<Item = String> + '_ {
    let mut lines = text.lines().map(str::trim);
    std::iter::from_fn(move || {
        lines.by_ref().find(|line| *line == "#[test]")?;
        let named = lines.by_ref().find_map(|line| line.strip_prefix("fn "))?;
        named.split('(').next().map(str::to_owned)
    })
}

struct Row {
    number: String,
    file: String,
    held_by: String,
}

fn rows(page: &str) -> Vec<Row> {
    let cells = |line: &str| -> Option<Row> {
        let cells: Vec<&str> = line
            .strip_prefix("| ")?
            .strip_suffix(" |")?
            .split(" | ")
            .collect();
        let [number, says, file, held_by] = cells[..] else {
            panic!("not four cells: {line}");
        };
        assert!(!says.is_empty());
        (number != "#").then(|| Row {
            number: number.to_owned(),
            file: file.trim_matches('`').to_owned(),
            held_by: held_by.to_owned(),
        })
    };
    page.lines().filter_map(cells).collect()
}

#[test]
fn every_statement_has_a_row_and_what_it_names_is_there() {
    let rows = rows(&read("docs/SOURCES.md"));
    let expected: Vec<String> = DOCUMENTS
        .iter()
        .flat_map(|(letter, count)| (1..=*count).map(move |number| format!("{letter}{number}")))
        .collect();
    let numbers: Vec<&str> = rows.iter().map(|row| &*row.number).collect();
    assert_eq!(numbers, expected);

    let mut files = Vec::new();
    for directory in ["crates", "tests"] {
        sources(&top().join(directory), &mut files);
    }
    let mut tests = HashSet::new();
    for file in &files {
        tests.extend(tests_of(&read(file)));
    }
    // A paragraph may be broken anywhere.
    let limits = read("docs/LIMITS.md");
    let limits = limits.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut missing = Vec::new();
    for row in &rows {
        if !top().join(&row.file).is_file() {
            missing.push(format!("{}: file {}", row.number, row.file));
        }
        let held = match row.held_by.strip_prefix("limit \"") {
            Some(limit) => limits.contains(limit.trim_end_matches('"')),
            None => tests.contains(row.held_by.trim_matches('`')),
        };
        if !held {
            missing.push(format!("{}: {}", row.number, row.held_by));
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn names_of_tests_are_read_below_their_attribute() {
    let text =
        "#[test]\nfn one() {\n}\nfn helper() {}\n    #[test]\n    #[cfg(x)]\n    fn two() {}";
    assert_eq!(tests_of(text).collect::<Vec<_>>(), ["one", "two"]);
}
