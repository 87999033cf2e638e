//! Prevents that the command line breaks its contract: fields of `--json`, exit codes, how a process is
//! left, and what `run` passes through.

use pagetide_tests::{
    Background, Target, TestStore, accepting, background, compiled, list, number, pagetide, text,
    thread_states,
};
use rustix::process::{Pid, Signal};
use serde_json::Value;

#[track_caller]
fn has(value: &Value, fields: &[&str]) {
    for field in fields {
        assert!(value.get(field).is_some(), "no field {field:?} in {value}");
    }
}

/// A store with a full snapshot and a delta of 10 written pages.
fn two_snapshots() -> (TestStore, Target) {
    let store = TestStore::new();
    let mut target = Target::start("writer", ["4"]);
    store.checkpoint(target.pid(), &[]);
    target.ask("write 100 10 7");
    store.checkpoint(target.pid(), &[]);
    (store, target)
}

#[test]
fn checkpoint_reports_all_fields() {
    let store = TestStore::new();
    let target = Target::start("writer", ["4"]);
    for backend in ["wp-async", "rehash", "rehash"] {
        let report = store.checkpoint(target.pid(), &["--backend", backend]);
        has(&report, &["parent", "not_captured"]);
        assert_eq!(text(&report, "backend"), backend);
        for field in [
            "id",
            "written_pages",
            "stored_pages",
            "difference_pages",
            "zero_pages",
            "logical_bytes",
            "stored_bytes",
            "stop_us",
            "scan_us",
            "copy_us",
            "total_us",
        ] {
            number(&report, field);
        }
        assert!(
            number(&report, "total_us") >= number(&report, "stop_us"),
            "{report}"
        );
    }
}

#[test]
fn pages_are_compressed_as_asked() {
    let target = Target::start("writer", ["4"]);
    let store = TestStore::new();
    let bytes = ["none", "zstd", "zstd:9"].map(|how| {
        let report = store.checkpoint(target.pid(), &["--full", "--compress", how]);
        let stored = number(&report, "stored_pages");
        assert!(stored > 100, "{report}");
        number(&report, "stored_bytes") / stored
    });
    assert!(bytes[0] >= 4096, "{bytes:?}");
    assert!(bytes[1] < 4096 && bytes[2] <= bytes[1], "{bytes:?}");
}

#[test]
fn full_on_demand() {
    let (store, target) = two_snapshots();
    let frozen = target.freeze();
    let (report, _) = store.checkpoint_exactly(&frozen, &["--full"], true);
    assert_eq!(text(&report, "kind"), "full");
    assert!(report["parent"].is_null(), "{report}");
    let (report, _) = store.checkpoint_exactly(&frozen, &[], true);
    assert_eq!(text(&report, "kind"), "delta");
}

#[test]
fn log_lists_snapshots_newest_last() {
    let (store, _target) = two_snapshots();
    let log = store.log();
    assert_eq!(log.len(), 2);
    for line in &log {
        has(
            line,
            &["id", "parent", "kind", "created", "stored_bytes", "pages"],
        );
    }
    assert_eq!(
        (&log[0]["kind"], &log[1]["kind"]),
        (&"full".into(), &"delta".into())
    );
    assert_eq!(log[1]["parent"], log[0]["id"]);
    assert!(number(&log[1], "stored_bytes") < number(&log[0], "stored_bytes"));
}

#[test]
fn show_gives_regions_and_attachments() {
    let (store, _target) = two_snapshots();
    let newest = pagetide(["show", &store.text(), "--json"]).done().json();
    let old = pagetide(["show", &store.text(), "--at", "1", "--json"])
        .done()
        .json();
    assert_eq!((number(&newest, "id"), number(&old, "id")), (2, 1));
    let space = &list(&newest, "spaces")[0];
    assert_eq!(text(space, "name"), "mem");
    let names: Vec<_> = list(space, "regions")
        .iter()
        .map(|r| text(r, "name"))
        .collect();
    assert!(
        names.contains(&"[stack]") && names.contains(&"[vdso]"),
        "{names:?}"
    );
    assert!(!list(&newest, "attachments").is_empty());
    pagetide(["show", &store.text(), "--at", "77"]).exits_with(3);
}

#[test]
fn diff_names_what_was_written() {
    let (store, mut target) = two_snapshots();
    let place = target.ask("write 0 0 0");
    let place = u64::from_str_radix(place.trim_start_matches("0x"), 16).expect("an address");
    let answer = pagetide(["diff", &store.text(), "1", "2", "--json"])
        .done()
        .json();
    let changed = number(&answer, "changed_pages");
    assert!((10..30).contains(&changed), "{answer}");
    let hex = |region: &Value, name| u64::from_str_radix(text(region, name), 16).expect("hex");
    let region = list(&answer, "regions")
        .iter()
        .find(|region| (hex(region, "start")..hex(region, "end")).contains(&place));
    assert!(region.is_some(), "{place:x} is not in {answer}");
    let same = pagetide(["diff", &store.text(), "2", "2", "--json"])
        .done()
        .json();
    assert_eq!(number(&same, "changed_pages"), 0, "{same}");
}

#[test]
fn verify_says_ok() {
    let (store, _target) = two_snapshots();
    let answer = pagetide(["verify", &store.text(), "--json"]).done().json();
    assert_eq!(answer["ok"], true);
    assert!(list(&answer, "damaged").is_empty());
}

#[test]
fn probe_names_a_default_that_is_usable() {
    let answer = pagetide(["probe", "--json"]).done().json();
    let default = text(&answer, "default");
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the release");
    assert!(text(&answer, "kernel").contains(release.trim()), "{answer}");
    let backends = list(&answer, "backends");
    for backend in backends {
        let usable = backend["usable"].as_bool().expect("usable is a boolean");
        assert_eq!(usable, backend["reason"].is_null(), "{backend}");
        if text(backend, "name") == default {
            assert!(usable, "{answer}");
        }
    }
    let names: Vec<_> = backends
        .iter()
        .map(|backend| text(backend, "name"))
        .collect();
    for name in ["wp-async", "soft-dirty", "rehash"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let store = TestStore::new();
    let target = Target::start("writer", ["4"]);
    assert_eq!(
        text(&store.checkpoint(target.pid(), &[]), "backend"),
        default
    );
}

#[test]
fn export_refuses_to_overwrite() {
    let (store, _target) = two_snapshots();
    let core = store.scratch().join("core");
    let core = core.to_str().expect("a plain path");
    std::fs::write(core, "mine").expect("write a file");
    let words = ["export", &store.text(), "--format", "core", "-o", core];
    let outcome = pagetide(words);
    assert_ne!(outcome.code, Some(0), "{outcome:#?}");
    assert_eq!(std::fs::read_to_string(core).expect("read it"), "mine");
}

#[test]
fn completions_and_manual_name_every_command() {
    let commands = [
        "probe",
        "checkpoint",
        "run",
        "log",
        "show",
        "diff",
        "verify",
        "export",
        "rollback",
        "detach",
    ];
    for shell in ["bash", "zsh", "fish"] {
        let script = pagetide(["completions", shell]).done().stdout;
        for command in commands {
            assert!(script.contains(command), "{shell}: no {command}");
        }
    }
    let manual = pagetide(["man"]).done().stdout;
    assert!(manual.contains(".TH"), "{manual}");
    for command in commands {
        assert!(manual.contains(command), "man: no {command}");
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    pagetide(["checkpoint", "--store"]).exits_with(2);
    pagetide(["rollback"]).exits_with(2);
    pagetide(["nonsense"]).exits_with(2);
}

#[test]
fn left_stopped_at_the_instant_of_the_snapshot() {
    let store = TestStore::new();
    let mut target = Target::start("worker", ["2"]);
    let report = store.checkpoint(target.pid(), &["--leave", "stopped"]);
    let states = thread_states(target.pid());
    assert!(states.iter().all(|&state| state == 'T'), "{states:?}");
    let frozen = target.freeze();
    let truth = pagetide_tests::Image::of_process(&frozen);
    store.assert_equals(number(&report, "id"), &truth, "left stopped");
    drop(frozen);
    target.ask("progress");
}

#[test]
fn left_killed_once_the_snapshot_is_durable() {
    use std::os::unix::process::ExitStatusExt;
    let store = TestStore::new();
    let mut target = Target::start("worker", ["2"]);
    let accepted = accepting(target.pid());
    let words = ["--every", "20ms", "--count", "3", "--leave", "killed"];
    let words = words.into_iter().chain(accepted.iter().map(String::as_str));
    let words: Vec<&str> = words.collect();
    let lines = pagetide(store.checkpoint_words(target.pid(), &words))
        .done()
        .lines();
    assert_eq!(lines.len(), 3);
    assert_eq!(target.wait().signal(), Some(9));
    store.assert_sound();
    assert_eq!(store.log().len(), 3);
}

/// The words of `run` with a shell script.
fn run_words(store: &TestStore, script: &str) -> Vec<String> {
    let store = store.text();
    [
        "run",
        "--store",
        &store,
        "--every",
        "20ms",
        "--json",
        "--report",
        "/dev/stdout",
        "--",
        "sh",
        "-c",
        script,
    ]
    .map(str::to_owned)
    .to_vec()
}

#[test]
fn run_exits_with_the_status_of_the_command() {
    let cases = [
        ("sleep 0.3", 0),
        ("sleep 0.2; exit 3", 3),
        ("sleep 0.2; kill -9 $$", 137),
        ("exit 0", 0),
    ];
    for (script, code) in cases {
        let store = TestStore::new();
        pagetide(run_words(&store, script)).exits_with(code);
        store.assert_sound();
    }
    let store = TestStore::new();
    let writer = compiled("writer");
    let script = format!("(sleep 2; echo quit) | exec {}", writer.display());
    let outcome = pagetide(run_words(&store, &script)).done();
    // The command prints as well: its lines are not ours.
    let lines = outcome
        .stdout
        .lines()
        .filter(|line| line.starts_with('{'))
        .count();
    assert!(lines > 1, "{outcome:#?}");
    assert_eq!(store.log().len(), lines);
}

#[test]
fn run_passes_signals_on() {
    let store = TestStore::new();
    let script = "trap 'exit 7' TERM; while :; do sleep 0.02; done";
    let mut running: Background = background(run_words(&store, script));
    running.next_id();
    running.signal(Signal::TERM);
    running.wait().exits_with(7);

    let store = TestStore::new();
    let mut running = background(run_words(&store, "while :; do sleep 0.02; done"));
    running.next_id();
    let child = pagetide_tests::children(running.pid());
    assert_eq!(child.len(), 1, "{child:?}");
    running.signal(Signal::TERM);
    running.wait().exits_with(128 + 15);
    let child = Pid::from_raw(child[0]).expect("a process id");
    assert!(
        rustix::process::test_kill_process(child).is_err(),
        "it lives on"
    );
    store.assert_sound();
}
