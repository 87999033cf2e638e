//! Prevents that the house grows untidy: what a reader may rely on everywhere is held here, and what is not so yet is listed in
//! `known.txt`, which has to shrink.

mod blockers;
mod circles;
mod classes;
mod files;
mod functions;
mod known;
mod messages;
mod modules;
mod traps;

use files::{name_of, sources, text_of};
use known::Known;

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
