//! Prevents that output that goes to `head`, to `jq` or to a full disk is a failure where it is none, none where it is one, or
//! cannot be read by the next program; and that words by which people name a snapshot or a process are not understood.

use pagetide_tests::{Target, TestStore, number, pagetide, pagetide_path};
use std::fs::{self, OpenOptions};
use std::process::{Command, Output, Stdio};

/// A store of three snapshots, the third of them full.
fn three() -> (TestStore, Target) {
    let store = TestStore::new();
    let mut target = Target::start("writer", ["4"]);
    for (epoch, more) in [(1, &[][..]), (2, &[]), (3, &["--full"])] {
        target.ask(&format!("write {} 20 {epoch}", epoch * 7));
        store.checkpoint(target.pid(), more);
    }
    (store, target)
}

fn shell(script: &str, store: &TestStore) -> Output {
    Command::new("bash")
        .args(["-o", "pipefail", "-c", script, "sh", &store.text()])
        .env("P", pagetide_path())
        .output()
        .expect("start a shell")
}

#[test]
fn a_reader_of_the_first_lines_is_no_failure() {
    let (store, target) = three();
    let calls = [
        "log \"$1\"",
        "show \"$1\"",
        "diff \"$1\" 1 2",
        "verify \"$1\"",
        "--help",
    ];
    let pages = format!("pages {}", target.pid());
    for call in calls.into_iter().chain([pages.as_str()]) {
        for reader in ["head -1", "head -c 1", "true"] {
            let output = shell(&format!("$P {call} | {reader}"), &store);
            assert!(output.status.success(), "{call} | {reader}: {output:?}");
            // What a kernel without soft-dirty bits cannot tell is said there, and no more.
            let errors = String::from_utf8_lossy(&output.stderr);
            let told = |line: &str| line.contains("soft-dirty not told");
            assert!(errors.lines().all(told), "{call} | {reader}: {errors}");
        }
    }
}

#[test]
fn json_is_read_by_jq() {
    let (store, target) = three();
    let pid = target.pid();
    let calls = [
        ("log \"$1\" --json | jq -r '.snapshots[].id'", "1\n2\n3\n"),
        ("verify \"$1\" --json | jq .ok", "true\n"),
        ("show \"$1\" --at latest --json | jq .id", "3\n"),
        ("show \"$1\" --at -2 --json | jq .id", "2\n"),
        (
            "prune \"$1\" --keep-last 1 --dry-run --json | jq -c .removed",
            "[1,2]\n",
        ),
    ];
    for (call, says) in calls {
        let output = shell(&format!("$P {call}"), &store);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text, says, "{call}: {output:?}");
    }
    let every =
        format!("$P checkpoint {pid} --store \"$1\" --every 10ms --count 5 --json | jq .id");
    let output = shell(&every, &store);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "4\n5\n6\n7\n8\n");
}

#[test]
fn a_full_disk_is_named_and_is_a_failure() {
    let (store, _target) = three();
    let text = store.text();
    let calls: [&[&str]; 4] = [
        &["log", &text],
        &["show", &text],
        &["verify", &text, "--json"],
        &["diff", &text, "1", "2"],
    ];
    for call in calls {
        let full = OpenOptions::new().write(true).open("/dev/full");
        let output = Command::new(pagetide_path())
            .args(call)
            .stdout(Stdio::from(full.expect("a full device")))
            .output()
            .expect("start pagetide");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{call:?}: {errors}");
        assert!(
            errors.contains("cannot write to standard output: No space left"),
            "{errors}"
        );
    }
}

#[test]
fn a_program_named_for_its_number_is_told_it() {
    let (store, target) = three();
    let path = store.text();
    let calls: [&[&str]; 5] = [
        &["checkpoint", "writer", "--store", &path],
        &["rollback", "writer", &path],
        &["inspect", "writer"],
        &["pages", "writer"],
        &["detach", "writer"],
    ];
    for call in calls {
        let outcome = pagetide(call.iter().copied()).exits_with(2);
        let numbers = outcome.stderr.split("processes of this name have: ").nth(1);
        let numbers = numbers.unwrap_or_else(|| panic!("{outcome:#?}"));
        let numbers = numbers.lines().next().unwrap_or_default();
        let own = target.pid_text();
        assert!(
            numbers.split(", ").any(|number| number.trim() == own),
            "{numbers}"
        );
    }
}

#[test]
fn damage_is_told_with_what_needs_it() {
    let (store, _target) = three();
    let file = store.path().join("snapshots/0000000001.snap");
    let mut bytes = fs::read(&file).expect("a file");
    bytes[300] ^= 1;
    fs::write(&file, bytes).expect("written");
    let outcome = pagetide(["verify", &store.text(), "--json"]).exits_with(1);
    let answer = outcome.json();
    assert_eq!(answer["lost"], serde_json::json!([2]), "{answer}");
    assert_eq!(number(&answer, "newest_whole"), 3, "{answer}");
    let says = "snapshot 1 is damaged; 2 needs what is damaged. The newest that can be restored: 3";
    let outcome = pagetide(["verify", &store.text()]).exits_with(1);
    assert!(outcome.stdout.contains(says), "{outcome:#?}");
    // Nothing is taken away from it.
    let outcome = pagetide(["prune", &store.text(), "--keep-last", "1"]).done();
    assert!(
        outcome.stdout.contains("2 snapshots removed"),
        "{outcome:#?}"
    );
    pagetide(["verify", &store.text()]).done();
}
