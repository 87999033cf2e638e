//! Prevents that the house grows untidy: what a reader may rely on everywhere is held here, and what is not so yet is listed in
//! `known.txt`, which has to shrink.

mod blockers;
mod circles;
mod classes;
mod functions;
mod known;
mod messages;
mod modules;
mod traps;

use known::Known;
use std::path::{Path, PathBuf};

/// The repository.
fn top() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests lie in the repository")
}

/// All Rust files below a directory of the repository, in the order of their names.
fn sources(directory: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![top().join(directory)];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(&directory).expect("list a directory") {
            let path = entry.expect("list a directory").path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .expect("a plain name");
            match path.is_dir() {
                true if name != "target" && !name.starts_with('.') => waiting.push(path),
                false if name.ends_with(".rs") => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// How a file is called in the repository.
fn name_of(path: &Path) -> String {
    let path = path.strip_prefix(top()).unwrap_or(path);
    path.to_str().expect("a plain name").to_owned()
}

fn text_of(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn parsed(path: &Path) -> syn::File {
    syn::parse_file(&text_of(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn each_file_says_first_what_it_is() {
    let all = [sources("crates"), sources("tests"), sources("fuzz")].concat();
    assert!(all.len() > 300, "only {} files are looked at", all.len());
    let silent = all.iter().filter(|path| !text_of(path).starts_with("//! "));
    let silent: Vec<String> = silent.map(|path| name_of(path)).collect();
    assert_eq!(silent, Vec::<String>::new(), "files without a head");
}

#[test]
fn no_file_borrows_modules_from_elsewhere() {
    let all = [sources("crates"), sources("tests")].concat();
    let borrowing = all.iter().filter(|path| {
        let text = text_of(path);
        text.lines()
            .any(|line| line.trim_start().starts_with("#[path"))
    });
    Known::read("borrows").is_exactly(borrowing.map(|path| (name_of(path), 1)));
}
