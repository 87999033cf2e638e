//! Prevents that a store that cannot be used is written to, that damage is passed over in silence or
//! keeps the next snapshot from being right, and that a wrong word on the command line does anything.

use crate::bad::{Condition, Mounted, checkpoint_exactly, contents, fails, is_root};
use pagetide_tests::{
    Outcome, Scratch, Target, TestStore, background, list, pagetide, pagetide_by, pagetide_path,
    text,
};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

fn bad() -> Target {
    Target::start("bad_states", ["plain"])
}

/// A store with a full snapshot and a delta of the target.
fn filled(target: &mut Target) -> TestStore {
    let store = TestStore::new();
    store.checkpoint(target.pid(), &[]);
    target.ask("noise 1 3 5");
    store.checkpoint(target.pid(), &[]);
    store
}

/// All commands that read a store, on this path.
fn readers(store: &Path, target: &Target) -> Vec<Outcome> {
    let store = store.to_str().expect("a plain path");
    let out = format!("{store}-out");
    let pid = target.pid_text();
    let calls: [&[&str]; 7] = [
        &["log", store],
        &["show", store],
        &["verify", store],
        &["diff", store, "1", "2"],
        &["export", store, "--format", "raw", "-o", &out],
        &["export", store, "--format", "core", "-o", &out],
        &["rollback", &pid, store],
    ];
    let outcomes = calls.map(pagetide).into();
    assert!(!Path::new(&out).exists(), "an export was begun");
    outcomes
}

#[test]
fn a_store_that_is_missing_is_named_and_not_made() {
    let (target, scratch) = (bad(), Scratch::new());
    let path = scratch.join("missing");
    for outcome in readers(&path, &target) {
        fails(
            &outcome,
            3,
            &["missing: no such store", "`checkpoint --store`"],
        );
    }
    assert!(!path.exists());
}

#[test]
fn what_is_not_a_store_is_left_alone() {
    let (target, scratch) = (bad(), Scratch::new());
    let (directory, file) = (scratch.join("directory"), scratch.join("file"));
    fs::create_dir(&directory).expect("make a directory");
    fs::write(directory.join("precious"), "data").expect("write a file");
    fs::write(&file, "data").expect("write a file");
    let before = contents(scratch.path());
    for path in [&directory, &file] {
        for outcome in readers(path, &target) {
            fails(&outcome, 3, &["not a pagetide store", "name a store"]);
        }
        let store = path.to_str().expect("a plain path");
        let outcome = pagetide(["checkpoint", &target.pid_text(), "--store", store]);
        fails(&outcome, 3, &["not a", "pagetide store", "name a store"]);
    }
    assert_eq!(contents(scratch.path()), before);
    assert_eq!(fs::read_dir(&directory).expect("list").count(), 1);
}

/// CRC32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}

/// Raises the version in the header of a file, with the checksum that belongs to it.
fn make_future(path: &Path) {
    let mut bytes = fs::read(path).expect("read a file of the store");
    let number = |bytes: &[u8], at: usize| {
        let four = bytes[at..at + 4].try_into().expect("four bytes");
        u32::from_le_bytes(four)
    };
    let end = number(&bytes, 12) as usize - 4;
    assert_eq!(
        number(&bytes, end),
        crc32c(&bytes[..end]),
        "the checksum of a header"
    );
    bytes[8..12].copy_from_slice(&99u32.to_le_bytes());
    let checksum = crc32c(&bytes[..end]).to_le_bytes();
    bytes[end..end + 4].copy_from_slice(&checksum);
    fs::write(path, bytes).expect("write a file of the store");
}

#[test]
fn a_store_of_a_later_format_is_left_alone() {
    let mut target = bad();
    let store = filled(&mut target);
    make_future(&store.path().join("pagetide-store"));
    let before = contents(&store.path());
    let says = [
        "store format 99 was written by a newer pagetide",
        "the version of pagetide that",
    ];
    for outcome in readers(&store.path(), &target) {
        fails(&outcome, 3, &says);
    }
    fails(&store.try_checkpoint(target.pid(), &[]), 3, &says);
    assert_eq!(contents(&store.path()), before);
    assert!(target.is_alive());
}

/// The store's newest snapshot cannot be read: it is named, the other can be used, and the next
/// snapshot needs none of it.
#[track_caller]
fn goes_on_without_the_newest(mut target: Target, store: &TestStore, code: i32, says: &[&str]) {
    let text_path = store.text();
    let log = pagetide(["log", &text_path]).done();
    for what in says {
        assert!(log.stderr.contains(what), "{what:?} in {log:#?}");
    }
    let log = pagetide(["log", &text_path, "--json"]).done().json();
    assert_eq!(
        (list(&log, "snapshots").len(), list(&log, "damaged").len()),
        (1, 1),
        "{log}"
    );
    assert_eq!(log["damaged"][0]["id"], 2);
    let verified = pagetide(["verify", &text_path, "--json"])
        .exits_with(1)
        .json();
    assert_eq!(verified["ok"], false);
    assert_eq!(verified["damaged"][0]["snapshot"], 2, "{verified}");
    let out = store.scratch().join("out");
    for call in ["show", "export"] {
        let mut command = Command::new(pagetide_path());
        command.args([call, &text_path, "--at", "2"]);
        if call == "export" {
            command.args(["--format", "raw", "-o"]).arg(&out);
        }
        fails(&pagetide_by(&mut command), code, says);
        assert!(!out.exists());
    }
    let pid = target.pid_text();
    fails(
        &pagetide(["rollback", &pid, &text_path, "--at", "2"]),
        code,
        says,
    );
    store.image(1);
    target.ask("noise 700 3 9");
    for (backend, kind) in [("auto", "full"), ("auto", "delta"), ("rehash", "delta")] {
        let report = checkpoint_exactly(store, &target, &["--backend", backend]);
        assert_eq!(text(&report, "kind"), kind, "{report}");
        assert_ne!(report["parent"], 2, "{report}");
        target.ask("noise 1 3 2");
    }
    let verified = pagetide(["verify", &text_path, "--json"])
        .exits_with(1)
        .json();
    assert_eq!(list(&verified, "damaged").len(), 1, "{verified}");
}

#[test]
fn a_snapshot_of_a_later_format() {
    let mut target = bad();
    let store = filled(&mut target);
    make_future(&store.path().join("snapshots/0000000002.snap"));
    let says = ["snapshot 2 ", "was written by a newer pagetide"];
    goes_on_without_the_newest(target, &store, 3, &says);
}

#[test]
fn a_snapshot_that_was_cut_short() {
    for keep in [0, 100, 1000] {
        let mut target = bad();
        let store = filled(&mut target);
        let path = store.path().join("snapshots/0000000002.snap");
        let file = fs::File::options().write(true).open(&path);
        file.and_then(|file| file.set_len(keep))
            .expect("cut a file");
        goes_on_without_the_newest(target, &store, 1, &["snapshot 2 ", "is damaged"]);
    }
}

#[test]
fn a_store_that_somebody_writes_to_can_be_read_but_not_written() {
    let mut target = bad();
    let store = filled(&mut target);
    pagetide(["detach", &target.pid_text()]).done();
    let words = store.checkpoint_words(target.pid(), &["--every", "20ms"]);
    let mut snapshots = background(words);
    snapshots.next_id();
    let says = format!("locked by process {}", snapshots.pid());
    let other = bad();
    let before = Condition::of(&other);
    let says = [says.as_str(), "wait until the other command has ended"];
    fails(&store.try_checkpoint(other.pid(), &[]), 3, &says);
    before.assert_is_again(&other);
    pagetide(["log", &store.text()]).done();
    pagetide(["verify", &store.text()]).done();
    store.image(2);
    snapshots.signal(rustix::process::Signal::TERM);
    snapshots.wait().exits_with(143);
    let says = [
        "is another one",
        "--add",
        &format!("process {}", target.pid()),
    ];
    fails(&store.try_checkpoint(other.pid(), &[]), 3, &says);
    before.assert_is_again(&other);
    store.try_checkpoint(other.pid(), &["--add"]).done();
    let pids: Vec<_> = store.log().iter().map(|line| line["pid"].clone()).collect();
    let (first, last) = (&pids[0], pids.last().expect("a snapshot"));
    assert_eq!((first, last), (&target.pid().into(), &other.pid().into()));
    store.assert_sound();
}

#[test]
fn a_store_on_a_read_only_file_system_can_be_read_but_not_written() {
    if !is_root("read-only store") {
        return;
    }
    let mut target = bad();
    let store = TestStore::new();
    let mounted = Mounted::on(&store.scratch().join("mounted"), "size=64m");
    let inside = store.scratch().join("mounted/store");
    let inside = inside.to_str().expect("a plain path");
    let pid = target.pid_text();
    pagetide(["checkpoint", &pid, "--store", inside]).done();
    target.ask("noise 1 1 1");
    mounted.remount("ro");
    let says = [
        "cannot be written",
        "Read-only file system",
        "must be writable",
    ];
    fails(&pagetide(["checkpoint", &pid, "--store", inside]), 3, &says);
    let new = store.scratch().join("mounted/new");
    let new = new.to_str().expect("a plain path");
    fails(&pagetide(["checkpoint", &pid, "--store", new]), 3, &says);
    for call in ["log", "show", "verify"] {
        pagetide([call, inside]).done();
    }
    mounted.remount("rw");
    let next = pagetide(["checkpoint", &pid, "--store", inside, "--json"]).done();
    assert_eq!(text(&next.json(), "kind"), "delta", "{next:#?}");
    assert!(target.is_alive());
}

#[test]
fn a_snapshot_that_does_not_exist() {
    let mut target = bad();
    let store = filled(&mut target);
    let (path, pid) = (store.text(), target.pid_text());
    let out = store.scratch().join("out");
    let out = out.to_str().expect("a plain path");
    let calls: [&[&str]; 4] = [
        &["show", &path, "--at", "9"],
        &["export", &path, "--at", "9", "--format", "raw", "-o", out],
        &["rollback", &pid, &path, "--at", "9"],
        &["diff", &path, "1", "9"],
    ];
    for call in calls {
        let says = ["snapshot 9 does not exist", "`pagetide log` lists"];
        fails(&pagetide(call), 3, &says);
    }
    assert!(!Path::new(out).exists());
    // What is made for a snapshot that is refused goes away again.
    let other = TestStore::new();
    let outcome = other.try_checkpoint(target.pid(), &[]);
    fails(&outcome, 3, &["is tracked for the store"]);
    assert!(!other.path().exists());
    // A store that holds none.
    fs::create_dir_all(other.path().join("snapshots")).expect("make a directory");
    let descriptor = "pagetide-store";
    fs::copy(store.path().join(descriptor), other.path().join(descriptor)).expect("copy a file");
    let path = other.text();
    assert!(other.log().is_empty());
    fails(&pagetide(["show", &path]), 3, &["there is no snapshot yet"]);
    fails(
        &pagetide(["rollback", &pid, &path]),
        3,
        &["there is no snapshot yet"],
    );
    assert!(target.is_alive());
}

#[test]
fn an_export_never_writes_over_anything() {
    let mut target = bad();
    let store = filled(&mut target);
    let directory = store.scratch().join("taken");
    let file = directory.join("file");
    fs::create_dir(&directory).expect("make a directory");
    fs::write(&file, "data").expect("write a file");
    let before = contents(&directory);
    for (format, path, says) in [
        ("raw", &directory, "is not empty"),
        ("raw", &file, "is not a directory"),
        ("core", &file, "exists already"),
        ("core", &directory, "exists already"),
    ] {
        let mut command = Command::new(pagetide_path());
        command
            .args(["export", &store.text(), "--format", format, "-o"])
            .arg(path);
        let path = path.to_str().expect("a plain path");
        fails(&pagetide_by(&mut command), 3, &[path, says, "name a new"]);
    }
    assert_eq!(contents(&directory), before);
}

#[test]
fn wrong_usage_does_nothing() {
    let target = bad();
    let store = TestStore::new();
    for (more, says) in [
        (&["--count", "2"][..], "--every"),
        (&["--every", "5"], "200ms, 1s, 5m"),
        (&["--every", "0s"], "200ms, 1s, 5m"),
        (&["--every", "-1s"], "-1"),
        (&["--every", "soon"], "200ms, 1s, 5m"),
        (&["--every", "18446744073709551615s"], "365days"),
        (&["--every", "1s", "--count", "0"], "--count"),
        (&["--every", "1s", "--count", "x"], "--count"),
        (&["--backend", "magic"], "wp-async"),
        (&["--mode", "fast"], "precopy"),
        (&["--leave", "alone"], "stopped"),
        (&["--level", "99"], "-7..=22"),
        (&["--compress", "zstd:20"], "from -7 to 19"),
        (&["--compress", "zip"], "none, lz4, zstd, or zstd:N"),
        (&["--shadow-limit", "some"], "--shadow-limit"),
        (&["--buffer", "0"], "--buffer"),
        (&["--at", "1"], "--at"),
    ] {
        fails(&store.try_checkpoint(target.pid(), more), 2, &[says]);
    }
    for words in [
        &["run", "--store", "s", "--every", "1s"][..],
        &["run", "--store", "s", "true"],
        &["checkpoint", "1"],
        &["export", "s"],
        &["diff", "s", "1"],
        &["no-such-command"],
    ] {
        fails(&pagetide(words), 2, &["Usage: "]);
    }
    assert!(!store.path().exists());
}

/// As when the output goes to `head` and that has seen enough.
fn with_closed_output<I>(words: I) -> Outcome
where
    I: IntoIterator,
    I::Item: AsRef<std::ffi::OsStr>,
{
    let (reader, writer) = std::io::pipe().expect("make a pipe");
    drop(reader);
    let child = Command::new(pagetide_path())
        .args(words)
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .expect("start pagetide");
    let output = child.wait_with_output().expect("wait for pagetide");
    Outcome {
        call: String::new(),
        code: output.status.code(),
        signal: None,
        stdout: String::new(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let mut target = bad();
    let store = filled(&mut target);
    let path = store.text();
    let calls: [&[&str]; 8] = [
        &["log", &path],
        &["show", &path],
        &["show", &path, "--json"],
        &["verify", &path],
        &["diff", &path, "1", "2"],
        &["probe"],
        &["man"],
        &["--help"],
    ];
    for call in calls {
        let outcome = with_closed_output(call).done();
        assert_eq!(outcome.stderr, "", "{call:?}");
    }
    // The snapshot was taken all the same.
    with_closed_output(store.checkpoint_words(target.pid(), &[])).done();
    assert_eq!(store.log().len(), 3);
    // And a schedule goes on.
    let more = ["--every", "1ms", "--count", "4"];
    with_closed_output(store.checkpoint_words(target.pid(), &more)).done();
    assert_eq!(store.log().len(), 7);
    let next = checkpoint_exactly(&store, &target, &[]);
    assert_eq!(text(&next, "kind"), "delta", "{next}");
    store.assert_sound();
}
