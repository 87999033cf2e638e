//! Prevents that pagetide leaves more in a process than it says, needs something of its own to run
//! between two snapshots, or stores more than was written.

use pagetide_tests::{Image, Target, TestStore, maps, number, pagetide, pagetide_path, text};
use std::collections::BTreeMap;
use std::fs;

/// The open files of a process and what they refer to.
fn descriptors(target: &Target) -> BTreeMap<i32, String> {
    let entries = fs::read_dir(target.proc("fd")).expect("list its descriptors");
    entries
        .flatten()
        .map(|entry| {
            let number = entry
                .file_name()
                .to_string_lossy()
                .parse()
                .expect("a number");
            let link = fs::read_link(entry.path()).expect("a link");
            (number, link.to_string_lossy().into_owned())
        })
        .collect()
}

/// Mappings that are registered for tracking.
fn registered(target: &Target) -> usize {
    let smaps = fs::read_to_string(target.proc("smaps")).expect("read smaps");
    let flags = smaps
        .lines()
        .filter_map(|line| line.strip_prefix("VmFlags:"));
    flags
        .filter(|flags| flags.split_whitespace().any(|flag| flag == "uw"))
        .count()
}

/// Processes that run the binary under test on this target.
fn ours_running(pid: &str) -> Vec<String> {
    let us = fs::canonicalize(pagetide_path()).expect("the binary");
    let processes = fs::read_dir("/proc").expect("list processes").flatten();
    processes
        .filter(|entry| fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == us))
        .filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok())
        .filter(|words| words.split('\0').any(|word| word == pid))
        .collect()
}

#[test]
fn two_commands_give_a_full_snapshot_and_a_delta_and_nothing_runs_between() {
    let store = TestStore::new();
    let mut target = Target::start("writer", ["8"]);
    let first = store.checkpoint(target.pid(), &[]);
    assert_eq!(text(&first, "kind"), "full");
    assert!(number(&first, "stored_pages") >= 2048, "{first}");
    assert_eq!(ours_running(&target.pid_text()), Vec::<String>::new());
    let threads = fs::read_dir(target.proc("task"))
        .expect("its threads")
        .count();
    assert_eq!(threads, 1);
    target.ask("write 100 10 7");
    let second = store.checkpoint(target.pid(), &[]);
    assert_eq!(text(&second, "kind"), "delta", "{second}");
    assert_eq!(second["parent"], first["id"]);
    assert!(target.is_alive());
}

#[test]
fn a_delta_holds_as_much_as_was_written() {
    let store = TestStore::new();
    let mut target = Target::start("writer", ["16"]);
    store.checkpoint(target.pid(), &[]);
    for (round, pages) in [1, 10, 100, 1000, 4000].into_iter().enumerate() {
        target.ask(&format!("write 5 {pages} {}", round + 1));
        let delta = store.checkpoint(target.pid(), &[]);
        // The stack and the buffers of the answer are written, too.
        let stored = number(&delta, "stored_pages");
        assert!(
            (pages..pages + 20).contains(&stored),
            "{pages} pages: {delta}"
        );
    }
}

#[test]
fn detach_leaves_nothing_behind() {
    let store = TestStore::new();
    let mut target = Target::start("writer", ["8"]);
    let (files_before, maps_before) = (descriptors(&target), maps(target.pid()));
    assert_eq!(registered(&target), 0);
    store.checkpoint(target.pid(), &[]);
    assert!(
        registered(&target) > 3,
        "tracking that leaves no trace: this test sees nothing"
    );
    assert_eq!(descriptors(&target).len(), files_before.len() + 2);
    assert_eq!(maps(target.pid()), maps_before, "a mapping was left");

    pagetide(["detach", &target.pid_text()]).done();
    assert_eq!(descriptors(&target), files_before);
    assert_eq!(registered(&target), 0);
    assert_eq!(maps(target.pid()), maps_before);
    // Nothing to remove is no error.
    pagetide(["detach", &target.pid_text()]).done();

    target.ask("write 100 10 7");
    let frozen = target.freeze();
    let (again, _) = store.checkpoint_exactly(&frozen, &[], false);
    assert_eq!(text(&again, "kind"), "full", "{again}");
}

#[test]
fn a_schedule_leaves_what_a_single_checkpoint_leaves() {
    let store = TestStore::new();
    let target = Target::start("writer", ["8"]);
    let (files_before, maps_before) = (descriptors(&target), maps(target.pid()));
    let words = store.checkpoint_words(target.pid(), &["--every", "10ms", "--count", "3"]);
    assert_eq!(pagetide(words).done().lines().len(), 3);
    let next = store.checkpoint(target.pid(), &[]);
    assert_eq!(text(&next, "kind"), "delta", "{next}");
    pagetide(["detach", &target.pid_text()]).done();
    assert_eq!(descriptors(&target), files_before);
    assert_eq!(registered(&target), 0);
    assert_eq!(maps(target.pid()), maps_before);
}

#[test]
fn a_second_store_is_refused_until_the_first_lets_go() {
    let (store, other) = (TestStore::new(), TestStore::new());
    let target = Target::start("writer", ["4"]);
    store.checkpoint(target.pid(), &[]);
    other
        .try_checkpoint(target.pid(), &[])
        .refused("is tracked for the store");
    let next = store.checkpoint(target.pid(), &[]);
    assert_eq!(text(&next, "kind"), "delta", "{next}");
    pagetide(["detach", &target.pid_text()]).done();
    let frozen = target.freeze();
    other.checkpoint_exactly(&frozen, &[], false);
}

#[test]
fn a_stopped_process_is_read_as_it_is_and_stays_stopped() {
    let store = TestStore::new();
    let target = Target::start("worker", ["2"]);
    let frozen = target.freeze();
    store.checkpoint_exactly(&frozen, &[], false);
    let first = Image::of_process(&frozen).digest();
    let (second, truth) = store.checkpoint_exactly(&frozen, &[], true);
    assert_eq!(truth.digest(), first, "a stopped process has changed");
    assert_eq!(number(&second, "stored_pages"), 0, "{second}");
}
