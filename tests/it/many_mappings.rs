//! Prevents that a process with as many mappings as the kernel allows is refused, takes for ever, or is
//! stored with a mapping too few.

use pagetide_tests::{Scratch, Target, TestStore, number, skipped, text};

/// The kernel's own limit is 65,530 unless it is set otherwise.
const MANY: usize = 60_000;

/// A target with so many mappings of a kind; `None`, and the test is skipped, where fewer are allowed.
fn target(test: &str, kind: &str, mappings: usize, files: &Scratch) -> Option<Target> {
    let path = "/proc/sys/vm/max_map_count";
    let limit = std::fs::read_to_string(path).expect("the limit of mappings");
    let limit: usize = limit.trim().parse().expect("a number");
    if limit < mappings + 1000 {
        skipped(test, &format!("{path} is {limit}"));
        return None;
    }
    let words = [kind, &mappings.to_string()].map(std::ffi::OsString::from);
    let directory = files.path().as_os_str().to_owned();
    let mut target = Target::start("many", words.into_iter().chain([directory]));
    assert_eq!(target.ask("count"), mappings.to_string());
    Some(target)
}

/// A full snapshot and a delta equal the process.
fn full_and_delta(test: &str, kind: &str, mappings: usize) {
    let files = Scratch::new();
    let store = TestStore::new();
    let Some(mut target) = target(test, kind, mappings, &files) else {
        return;
    };
    let frozen = target.freeze();
    let (report, before) = store.checkpoint_exactly(&frozen, &[], false);
    assert_eq!(text(&report, "kind"), "full", "{report}");
    assert!(before.page_count() >= mappings);
    drop(frozen);
    assert_eq!(target.ask("write 7 500"), "done");
    let frozen = target.freeze();
    let (report, after) = store.checkpoint_exactly(&frozen, &[], true);
    assert_eq!(text(&report, "kind"), "delta", "{report}");
    assert_ne!(before.digest(), after.digest(), "nothing was written");
    let stored = number(&report, "stored_pages");
    assert!((490..1000).contains(&stored), "{report}");
    store.assert_sound();
}

#[test]
fn sixty_thousand_mappings_of_private_memory() {
    let test = "sixty_thousand_mappings_of_private_memory";
    full_and_delta(test, "protections", MANY);
}

#[test]
fn sixty_thousand_pages_of_a_file_shown_out_of_order() {
    let test = "sixty_thousand_pages_of_a_file_shown_out_of_order";
    full_and_delta(test, "nonlinear", MANY);
}

#[test]
fn ten_thousand_pages_of_a_file_by_turns_shared_and_private() {
    let test = "ten_thousand_pages_of_a_file_by_turns_shared_and_private";
    full_and_delta(test, "sharing", MANY / 6);
}
