//! Prevents that a chain that is made shorter cannot be listed, verified, exported, restored or gone on with as before, and that a
//! schedule that keeps so many snapshots keeps more, or ends because a prune fails.

use pagetide_tests::{
    Target, TestStore, background, number, pagetide, pagetide_path, skipped, text,
};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn ids(store: &TestStore) -> Vec<u64> {
    let log = pagetide(["log", &store.text(), "--json"]).done().json();
    let snapshots = log["snapshots"].as_array().expect("a list").clone();
    snapshots.iter().map(|row| number(row, "id")).collect()
}

fn verified(store: &TestStore) {
    let answer = pagetide(["verify", &store.text(), "--json"]).done().json();
    assert_eq!(answer["ok"], true, "{answer}");
}

/// All bytes of a snapshot as plain files, and what each is.
fn exported(store: &TestStore, at: u64) -> Vec<(PathBuf, Vec<u8>)> {
    let place = tempfile::tempdir().expect("a directory");
    let output = place.path().join("raw");
    let (at, to) = (at.to_string(), output.display().to_string());
    pagetide([
        "export",
        &store.text(),
        "--at",
        &at,
        "--format",
        "raw",
        "-o",
        &to,
    ])
    .done();
    let (mut left, mut files) = (vec![output.clone()], Vec::new());
    while let Some(path) = left.pop() {
        match fs::read_dir(&path) {
            Ok(entries) => left.extend(entries.map(|entry| entry.expect("an entry").path())),
            Err(_) => {
                let name = path.strip_prefix(&output).expect("below it").to_owned();
                files.push((name, fs::read(&path).expect("a file")));
            }
        }
    }
    assert!(files.len() > 3);
    files.sort();
    files
}

/// Snapshots of a process that writes other pages before each.
fn written(count: u64) -> (TestStore, Target) {
    let store = TestStore::new();
    let mut target = Target::start("writer", ["4"]);
    for epoch in 0..count {
        target.ask(&format!("write {} 20 {}", epoch * 7, epoch + 1));
        store.checkpoint(target.pid(), &[]);
    }
    (store, target)
}

#[test]
fn what_stays_is_what_it_was_and_the_next_is_a_delta() {
    let (store, mut target) = written(8);
    let before: Vec<_> = [6, 7, 8].map(|id| exported(&store, id)).into();
    let path = store.text();
    let said = pagetide(["prune", &path, "--keep-last", "3", "--dry-run"]).done();
    assert!(
        said.stdout.contains("5 snapshots would go (1-5), 3 stay"),
        "{}",
        said.stdout
    );
    assert_eq!(ids(&store).len(), 8);
    let done = pagetide(["prune", &path, "--keep-last", "3"]).done();
    assert!(
        done.stdout
            .starts_with("5 snapshots removed (1-5), 3 left; "),
        "{}",
        done.stdout
    );
    assert_eq!(ids(&store), [6, 7, 8]);
    verified(&store);
    let after: Vec<_> = [6, 7, 8].map(|id| exported(&store, id)).into();
    assert!(before == after);
    let gone = pagetide(["show", &path, "--at", "5"]).exits_with(3);
    assert!(
        gone.stderr.contains("snapshot 5 was pruned"),
        "{}",
        gone.stderr
    );
    // The process goes on from the newest, which is known by the same hash.
    target.ask("write 0 3 99");
    let report = store.checkpoint(target.pid(), &[]);
    assert_eq!(text(&report, "kind"), "delta", "{report}");
    let done = pagetide(["squash", &path, "6..9"]).done();
    assert!(
        done.stdout.starts_with("2 snapshots removed (7-8), 2 left"),
        "{}",
        done.stdout
    );
    target.ask("write 5 3 98");
    let report = store.checkpoint(target.pid(), &[]);
    assert_eq!(text(&report, "kind"), "delta", "{report}");
    assert_eq!(ids(&store), [6, 9, 10]);
    verified(&store);
    assert!(exported(&store, 6) == before[0]);
    pagetide(["rollback", &target.pid_text(), &path, "--at", "9"]).done();
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let (store, _target) = written(3);
    let path = store.text();
    let says = |words: &[&str], status, what: &str| {
        let outcome = pagetide(words.iter().copied()).exits_with(status);
        assert!(outcome.stderr.contains(what), "{}", outcome.stderr);
    };
    says(&["prune", &path], 2, "--keep-last");
    says(&["prune", &path, "--keep-last", "0"], 2, "keep-last");
    says(
        &["squash", &path, "3..1"],
        2,
        "the first one is to be the older one",
    );
    says(&["squash", &path, "1..9"], 3, "snapshot 9 does not exist");
    assert_eq!(ids(&store), [1, 2, 3]);
}

fn files(store: &Path) -> usize {
    let snapshots = fs::read_dir(store.join("snapshots")).expect("a directory");
    snapshots.count()
}

#[test]
fn a_schedule_keeps_so_many_and_is_gone_on_with() {
    let store = TestStore::new();
    let mut target = Target::start("writer", ["4"]);
    let words = ["--every", "10ms", "--count", "60", "--keep-last", "8"];
    let mut running = background(store.checkpoint_words(target.pid(), &words));
    let mut written = 0;
    while running.is_running() {
        written += 1;
        target.ask(&format!("write {} 9 {written}", written * 11 % 900));
    }
    let lines = running.wait().done().lines();
    assert_eq!(lines.len(), 60);
    let full = |line: &&Value| text(line, "kind") == "full";
    assert_eq!(lines.iter().filter(full).count(), 1);
    assert_eq!(ids(&store), (53..=60).collect::<Vec<u64>>());
    let count = files(&store.path());
    assert!(count <= 8 + 12, "{count} files");
    verified(&store);
    let next = store.checkpoint(target.pid(), &["--keep-last", "2"]);
    assert_eq!(text(&next, "kind"), "delta", "{next}");
    assert_eq!(ids(&store), [60, 61]);
    verified(&store);
}

/// A slice of `make soak`: the script does what it says, with a redis-server and a Python program.
#[test]
fn sixty_snapshots_of_a_soak() {
    if Command::new("redis-server")
        .arg("--version")
        .output()
        .is_err()
    {
        return skipped("soak", "there is no redis-server");
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/soak.sh");
    let output = Command::new("bash")
        .arg(script)
        .arg(pagetide_path())
        .arg("60")
        .env("PAGETIDE_SOAK_MOST", "2")
        .output()
        .expect("start a shell");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text} {output:?}");
    assert_eq!(text.matches(" snapshots are left").count(), 2, "{text}");
    assert_eq!(text.matches("ok: ").count(), 2, "{text}");
}

/// Whoever prunes needs no right to write, and neither notices the other.
#[test]
fn a_prune_and_a_schedule_do_not_stand_in_each_others_way() {
    let store = TestStore::new();
    let mut target = Target::start("writer", ["4"]);
    let words = store.checkpoint_words(target.pid(), &["--every", "20ms"]);
    let mut running = background(words);
    for round in 1..=5 {
        while !running.next_id().is_multiple_of(6) {
            target.ask(&format!("write {} 9 {round}", round * 11));
        }
        pagetide(["prune", &store.text(), "--keep-last", "3"]).done();
        verified(&store);
    }
    running.signal(Signal::INT);
    let outcome = running.wait().exits_with(130);
    let full = |line: &&Value| text(line, "kind") == "full";
    assert_eq!(outcome.lines().iter().filter(full).count(), 0);
    assert!(
        !outcome.stderr.contains("no snapshot for now"),
        "{}",
        outcome.stderr
    );
    pagetide(["prune", &store.text(), "--keep-last", "1"]).done();
    let newest = ids(&store)[0];
    assert!(files(&store.path()) <= 6);
    verified(&store);
    let frozen = target.freeze();
    let (report, _) = store.checkpoint_exactly(&frozen, &[], true);
    assert_eq!(text(&report, "kind"), "delta", "{report}");
    assert_eq!(number(&report, "id"), newest + 1);
}
