//! Prevents that `pages` misleads where the page table alone does: shared memory, the huge zero page, empty and poisoned
//! pages; and that a part of a process, or two processes, are told wrongly.

use super::ask::{HUGE, PAGE, smaps, start_of};
use super::kinds::{Kinds, assert_is, assert_pages};
use crate::bad::is_root;
use pagetide_tests::{list, number, pagetide, skipped, text};
use std::fs;

#[test]
fn the_huge_zero_page_is_not_resident() {
    let test = "the_huge_zero_page_is_not_resident";
    if !is_root(test) {
        return;
    }
    let mut kinds = Kinds::start();
    let mut page = kinds.page("huge_zero", 3);
    if page["zero"] != true {
        return skipped(test, "the kernel gave no huge zero page");
    }
    assert_is(&page, &["present", "huge"], &["exclusive", "empty"]);
    assert!(page["numa_node"].is_null(), "{page}");
    assert!(
        text(&page, "numa_node_error").contains("zero page"),
        "{page}"
    );
    let answer = kinds.pages();
    let region = kinds.region(&answer, "huge_zero");
    let start = start_of(&region);
    let smaps = smaps(kinds.target.pid());
    let rss = smaps[&start].1["Rss"];
    assert_eq!(number(&region, "zero_bytes"), HUGE, "{region}");
    assert_eq!(number(&region, "rss_bytes"), rss, "{region}");
    assert_pages(&region, &[("file", 0)]);
    assert!(rss < 2 * HUGE, "a store made memory of its own: {rss}");
    // Also for who is not shown page frames.
    page = kinds.page("huge_zero", HUGE / PAGE);
    assert_is(&page, &["present"], &["zero"]);
}

#[test]
fn what_became_of_shared_memory_is_told() {
    let test = "what_became_of_shared_memory_is_told";
    if !is_root(test) {
        return;
    }
    let mut kinds = Kinds::start();
    let answer = kinds.pages();
    let region = kinds.region(&answer, "shared_states");
    // Stored here; stored by another; dropped from the object; dropped from the page table only; untouched.
    assert_pages(
        &region,
        &[
            ("present", 1),
            ("object_resident", 3),
            ("object_swapped", 0),
            ("object_hole", 5),
        ],
    );
    for (page, object, empty) in [
        (0, "resident", false),
        (1, "resident", false),
        (2, "hole", true),
        (3, "resident", false),
        (4, "hole", true),
    ] {
        let told = kinds.page("shared_states", page);
        assert_eq!(text(&told, "object"), object, "{page}: {told}");
        assert_eq!(told["empty"].as_bool(), Some(empty), "{page}: {told}");
        assert_eq!(told["present"].as_bool(), Some(page == 0), "{page}: {told}");
    }
    let shown = pagetide(["pages", &kinds.target.pid_text()]).done().stdout;
    let line = shown
        .lines()
        .find(|line| line.starts_with(text(&region, "start")))
        .unwrap_or_else(|| panic!("no such line: {shown}"));
    let columns: Vec<&str> = line.split_whitespace().collect();
    // 32 KiB, of which the process has mapped 4, has not mapped 8, and 20 are nowhere.
    assert_eq!((columns[2], columns[3]), ("32", "4"), "{line}");
    assert_eq!((columns[10], columns[11]), ("8", "20"), "{line}");
}

#[test]
fn an_empty_page_and_a_poisoned_one_are_told() {
    let test = "an_empty_page_and_a_poisoned_one_are_told";
    let mut kinds = Kinds::start();
    assert_is(&kinds.page("anonymous", 12), &["empty"], &["present"]);
    assert_is(&kinds.page("anonymous", 0), &["present"], &["empty"]);
    let error = kinds.page("anonymous", 12)["numa_node_error"].clone();
    assert!(
        error.as_str().is_some_and(|error| error.contains("ENOENT")),
        "{error}"
    );
    // Of a file nobody can tell without reading it.
    let answer = kinds.target.ask("poison");
    if answer != "done" {
        return skipped(test, &answer);
    }
    let page = kinds.page("poisoned", 1);
    assert_is(&page, &["swapped", "empty"], &["present", "guard"]);
    if is_root(test) {
        let marks = list(&page["swap"], "marks");
        assert_eq!(marks.len(), 1, "{page}");
        assert!(
            marks[0]
                .as_str()
                .is_some_and(|mark| mark.contains("poisoned")),
            "{page}"
        );
    }
}

#[test]
fn a_range_is_counted_alone() {
    let mut kinds = Kinds::start();
    let start = kinds.address("anonymous");
    let ask = |from: u64, to: u64| {
        let range = format!("{:x}-{:x}", start + from * PAGE, start + to * PAGE);
        let pid = kinds.target.pid_text();
        pagetide(["pages", &pid, "--json", "--range", &range])
            .done()
            .json()
    };
    let answer = ask(3, 9);
    let regions = list(&answer, "regions");
    assert_eq!(regions.len(), 1, "{answer}");
    assert_eq!(start_of(&regions[0]), start + 3 * PAGE);
    assert_pages(
        &regions[0],
        &[("size", 6), ("present", 2), ("rss", 2), ("uss", 2)],
    );
    assert_pages(&answer["totals"], &[("size", 6), ("present", 2)]);
    // What the kernel counts by mapping is not told of a part.
    assert!(regions[0]["locked_bytes"].is_null(), "{answer}");
    assert!(regions[0]["numa_bytes"].is_null(), "{answer}");
    let whole = ask(0, 16);
    assert_pages(
        &list(&whole, "regions")[0],
        &[("present", 5), ("locked", 0)],
    );
    // The page after it is of the reservation around it.
    let after = ask(16, 17);
    assert_pages(&list(&after, "regions")[0], &[("size", 1), ("present", 0)]);
    assert_eq!(list(&after, "regions").len(), 1, "{after}");
}

#[test]
fn frames_that_two_processes_share_are_told() {
    let test = "frames_that_two_processes_share_are_told";
    if !is_root(test) {
        return;
    }
    let mut kinds = Kinds::start();
    assert_eq!(kinds.target.ask("fork"), "done");
    let pid = kinds.target.pid_text();
    let children = fs::read_to_string(kinds.target.proc(&format!("task/{pid}/children")));
    let child = children.expect("it has children").trim().to_owned();
    let answer = pagetide(["pages", &pid, &child, "--json"]).done().json();
    // Eight pages, of which the child has stored to two since.
    let family = kinds.region(&answer, "family");
    assert_eq!(number(&family, "shared_bytes"), 6 * PAGE, "{family}");
    let ranges = list(&family, "ranges");
    assert_eq!(ranges.len(), 1, "{family}");
    assert_eq!(text(&ranges[0], "start"), text(&ranges[0], "other_start"));
    let anonymous = kinds.region(&answer, "anonymous");
    assert_eq!(number(&anonymous, "shared_bytes"), 5 * PAGE, "{anonymous}");
    // The zero page is everybody's.
    let zero = kinds.region(&answer, "zero");
    assert_eq!(number(&zero, "shared_bytes"), PAGE, "{zero}");
    let (shared, of) = (number(&answer, "shared_bytes"), number(&answer, "of_bytes"));
    assert!(shared > 0 && shared < of, "{answer}");
    let other = Kinds::start();
    let answer = pagetide(["pages", &pid, &other.target.pid_text(), "--json"])
        .done()
        .json();
    let regions = list(&answer, "regions").iter();
    // A stranger has the program and libraries in common, and nothing that is its own.
    let own = regions.filter(|region| text(region, "name").is_empty());
    assert_eq!(own.count(), 0, "{answer}");
}
