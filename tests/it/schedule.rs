//! Prevents that a schedule ends because something fails, that it goes on anew instead of where it was, and that a second one
//! disturbs the first.

use crate::bad::{Condition, Mounted, checkpoint_exactly, fails, is_root};
use pagetide_tests::{
    Background, Outcome, Scratch, Target, TestStore, background, number, pagetide, pagetide_path,
    text,
};
use rustix::process::{Pid, Signal};
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Whatever takes so long never comes.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is to be told at once is told within a second, on a machine that has nothing else to do.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Waits until it is true; how long that took.
#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "it does not come: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    since.elapsed()
}

/// A running `pagetide` whose output and errors go to files. Killed when it is dropped.
struct Running {
    child: Child,
    lines: PathBuf,
    errors: PathBuf,
}

impl Running {
    fn start(words: &[String], lines: &Path, errors: &Path) -> Self {
        let file = |path: &Path| File::create(path).expect("make a file");
        let child = Command::new(pagetide_path())
            .args(words)
            .stdin(Stdio::null())
            .stdout(file(lines))
            .stderr(file(errors))
            .spawn();
        Self {
            child: child.expect("start pagetide"),
            lines: lines.to_owned(),
            errors: errors.to_owned(),
        }
    }

    fn errors(&self) -> String {
        fs::read_to_string(&self.errors).expect("read its errors")
    }

    fn lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.lines).expect("read its output");
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        whole.lines().map(parse).collect()
    }

    /// The first snapshot after so many.
    #[track_caller]
    fn line_after(&self, count: usize) -> Value {
        until("the next snapshot", || self.lines().len() > count);
        self.lines()[count].clone()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("send a signal");
    }

    #[track_caller]
    fn ends_with(&mut self, code: i32) {
        let status = self.child.wait().expect("wait for it");
        assert_eq!(status.code(), Some(code), "{status}: {}", self.errors());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Takes all room on the file system.
fn fill(path: &Path) {
    let mut ballast = File::create(path).expect("make a file");
    for piece in [1 << 20, 4096, 1] {
        let bytes = vec![1; piece];
        while ballast.write_all(&bytes).is_ok() {}
    }
}

/// Fills the store three times. Each time that is told at once, and when there is room again the next snapshot is a delta.
#[track_caller]
fn filled_three_times(running: &Running, store: &Path, mut work: impl FnMut(u64)) {
    running.line_after(0);
    let told = || running.errors().matches("no snapshot for now: ").count();
    for round in 0..3 {
        let before = told();
        let ballast = store.join(format!("ballast-{round}"));
        fill(&ballast);
        work(round);
        let took = until("that the disk is full", || told() > before);
        println!("told after {took:?}");
        assert!(took < AT_ONCE, "told after {took:?}");
        assert!(
            running.errors().contains("No space left on device"),
            "{}",
            running.errors()
        );
        let count = running.lines().len();
        fs::remove_file(&ballast).expect("free the space");
        let next = running.line_after(count);
        assert_eq!(text(&next, "kind"), "delta", "{next}");
        assert!(next["why_full"].is_null(), "{next}");
        until("that it goes on", || {
            running.errors().matches("snapshots go on").count() as u64 > round
        });
    }
}

#[test]
fn a_store_that_fills_and_is_freed_costs_a_schedule_nothing() {
    if !is_root("full disk, schedule") {
        return;
    }
    let mut target = Target::start("bad_states", ["plain"]);
    let store = TestStore::new();
    let _mounted = Mounted::on(&store.path(), "size=64m,mode=700");
    let words = store.checkpoint_words(target.pid(), &["--every", "20ms"]);
    let (lines, errors) = (
        store.scratch().join("lines"),
        store.scratch().join("errors"),
    );
    let mut running = Running::start(&words, &lines, &errors);
    filled_three_times(&running, &store.path(), |round| {
        target.ask(&format!("noise {} 300 {round}", round * 300));
    });
    running.signal(Signal::TERM);
    running.ends_with(143);
    let next = checkpoint_exactly(&store, &target, &[]);
    assert_eq!(text(&next, "kind"), "delta", "{next}");
    store.assert_sound();
}

#[test]
fn a_store_that_fills_and_is_freed_costs_a_command_nothing() {
    if !is_root("full disk, run") {
        return;
    }
    let store = TestStore::new();
    let _mounted = Mounted::on(&store.path(), "size=64m,mode=700");
    let scratch = store.scratch();
    let (report, stop) = (scratch.join("report"), scratch.join("stop"));
    let script = format!(
        "import os, time\nb = bytearray(1 << 20)\ni = 0\nprint('mine', flush=True)\n\
         while not os.path.exists({stop:?}):\n i += 1\n b[(i * 4096) % len(b)] = i % 256\n time.sleep(0.001)\n\
         os._exit(7)"
    );
    let words = [
        "run",
        "--store",
        &store.text(),
        "--every",
        "20ms",
        "--json",
        "--report",
    ];
    let words = words.into_iter().map(str::to_owned);
    let command = ["--", "python3", "-c", &script].map(str::to_owned);
    let report_text = report.to_str().expect("a plain path").to_owned();
    let words: Vec<String> = words.chain([report_text]).chain(command).collect();
    let (lines, errors) = (scratch.join("lines"), scratch.join("errors"));
    File::create(&report).expect("make a file");
    let mut running = Running::start(&words, &lines, &errors);
    running.lines.clone_from(&report);
    // It may have been started by another program, and is only then itself.
    until("that it runs", || {
        fs::read_to_string(&lines).expect("read its output") == "mine\n"
    });
    let count = running.lines().len();
    until("a delta of it", || {
        running
            .lines()
            .iter()
            .skip(count + 1)
            .any(|l| l["kind"] == "delta")
    });
    filled_three_times(&running, &store.path(), |_| {});
    File::create(stop).expect("make a file");
    running.ends_with(7);
    let printed = fs::read_to_string(lines).expect("read its output");
    assert_eq!(printed, "mine\n", "nothing of ours is among what it prints");
    store.assert_sound();
}

/// A store to be on a file system that is full already, and the file that fills it.
fn full_disk(store: &TestStore) -> (Mounted, PathBuf, PathBuf) {
    let disk = store.scratch().join("disk");
    let mounted = Mounted::on(&disk, "size=16m,mode=700");
    let ballast = disk.join("ballast");
    fill(&ballast);
    (mounted, disk.join("store"), ballast)
}

fn first_after_room(running: &Running, ballast: &Path) {
    until("that the disk is full", || {
        running.errors().contains("no snapshot for now: ")
    });
    assert!(
        running.errors().contains("o space left"),
        "{}",
        running.errors()
    );
    fs::remove_file(ballast).expect("free the space");
    assert_eq!(number(&running.line_after(0), "id"), 1);
}

#[test]
fn a_disk_that_is_full_from_the_start_is_waited_for() {
    if !is_root("full disk from the start, schedule") {
        return;
    }
    let target = Target::start("bad_states", ["plain"]);
    let scratch = TestStore::new();
    let (_mounted, store, ballast) = full_disk(&scratch);
    let lines = scratch.scratch().join("lines");
    let errors = scratch.scratch().join("errors");
    let words = ["checkpoint", &target.pid_text(), "--store"];
    let more = ["--every", "20ms", "--json"];
    let words: Vec<String> = words
        .into_iter()
        .chain([store.to_str().expect("plain")])
        .chain(more)
        .map(str::to_owned)
        .collect();
    let mut running = Running::start(&words, &lines, &errors);
    first_after_room(&running, &ballast);
    running.signal(Signal::TERM);
    running.ends_with(143);
    // One that is to be taken once fails at once.
    let other = Target::start("bad_states", ["plain"]);
    let scratch = TestStore::new();
    let (_mounted, store, _ballast) = full_disk(&scratch);
    let words = ["checkpoint", &other.pid_text(), "--store"];
    pagetide(words.into_iter().chain([store.to_str().expect("plain")])).exits_with(1);
}

#[test]
fn a_command_runs_though_the_disk_is_full_from_the_start() {
    if !is_root("full disk from the start, run") {
        return;
    }
    let scratch = TestStore::new();
    let (_mounted, store, ballast) = full_disk(&scratch);
    let (lines, errors) = (
        scratch.scratch().join("lines"),
        scratch.scratch().join("errors"),
    );
    let (report, stop) = (
        scratch.scratch().join("report"),
        scratch.scratch().join("stop"),
    );
    File::create(&report).expect("make a file");
    let script = format!(
        "while [ ! -e {} ]; do sleep 0.05; done; exit 7",
        stop.display()
    );
    let words = ["run", "--every", "20ms", "--json", "--report"].map(str::to_owned);
    let paths = [
        report.display().to_string(),
        "--store".to_owned(),
        store.display().to_string(),
    ];
    let command = ["--", "sh", "-c", &script].map(str::to_owned);
    let words: Vec<String> = words.into_iter().chain(paths).chain(command).collect();
    let mut running = Running::start(&words, &lines, &errors);
    running.lines.clone_from(&report);
    first_after_room(&running, &ballast);
    File::create(&stop).expect("make a file");
    running.ends_with(7);
    // The same when there never is room.
    let scratch = TestStore::new();
    let (_mounted, store, _ballast) = full_disk(&scratch);
    let text = store.display().to_string();
    let words = [
        "run",
        "--every",
        "20ms",
        "--store",
        &text,
        "--",
        "sh",
        "-c",
        "sleep 1; exit 9",
    ];
    let outcome = pagetide(words).exits_with(9);
    assert!(outcome.stderr.contains("o space left"), "{outcome:#?}");
}

#[test]
fn most_failures_end_a_schedule_and_no_command() {
    if !is_root("full disk, failures") {
        return;
    }
    let target = Target::start("bad_states", ["plain"]);
    let before = Condition::of(&target);
    let store = TestStore::new();
    let _mounted = Mounted::on(&store.path(), "size=1m,mode=700");
    let more = ["--every", "5ms", "--max-failures", "3"];
    let outcome = store.try_checkpoint(target.pid(), &more);
    fails(
        &outcome,
        1,
        &[
            "No space left on device",
            "free some space",
            "the next try is in",
        ],
    );
    before.assert_is_again_after_work(&target);
    let words = ["run", "--every", "5ms", "--max-failures", "2", "--store"];
    let script = "import os, time; time.sleep(3); os._exit(5)";
    let command = ["--", "python3", "-c", script];
    let outcome = pagetide([&words[..], &[&store.text()], &command].concat());
    let outcome = outcome.exits_with(5);
    assert!(
        outcome.stderr.contains("no more snapshots: "),
        "{outcome:#?}"
    );
}

/// A schedule whose standard output is this, and whose errors go to a file.
fn with_output(store: &TestStore, target: &Target, output: Stdio, errors: Stdio) -> Child {
    Command::new(pagetide_path())
        .args(store.checkpoint_words(target.pid(), &["--every", "10ms"]))
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .expect("start pagetide")
}

#[track_caller]
fn goes_on_and_ends(store: &TestStore, mut child: Child) {
    until("a store", || store.path().join("pagetide-store").exists());
    let count = || store.log().len();
    until("snapshots", || count() > 3);
    let now = count();
    until("more snapshots", || count() > now + 3);
    rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).expect("a signal");
    let status = child.wait().expect("wait for it");
    assert_eq!(status.code(), Some(143), "{status}");
    store.assert_sound();
}

#[test]
fn a_reader_that_goes_away_or_a_full_log_ends_no_schedule() {
    let store = TestStore::new();
    let target = Target::start("bad_states", ["plain"]);
    let errors = store.scratch().join("errors");
    let file = |path: &str| File::options().append(true).open(path).expect("open it");
    let to_file = || Stdio::from(File::create(&errors).expect("make a file"));
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    goes_on_and_ends(
        &store,
        with_output(&store, &target, writer.into(), to_file()),
    );
    let text = fs::read_to_string(&errors).expect("read its errors");
    let says = "cannot write to standard output: Broken pipe (os error 32); snapshots go on";
    assert_eq!(text.matches(says).count(), 1, "{text}");

    let full = || Stdio::from(file("/dev/full"));
    goes_on_and_ends(&store, with_output(&store, &target, full(), to_file()));
    let text = fs::read_to_string(&errors).expect("read its errors");
    let says = "cannot write to standard output: No space left on device";
    assert_eq!(text.matches(says).count(), 1, "{text}");
    goes_on_and_ends(&store, with_output(&store, &target, full(), full()));

    // Nobody reads, and nobody goes away.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    goes_on_and_ends(
        &store,
        with_output(&store, &target, writer.into(), to_file()),
    );
    drop(reader);
}

fn every(store: &TestStore, target: &Target) -> Background {
    background(store.checkpoint_words(target.pid(), &["--every", "20ms"]))
}

#[test]
fn a_schedule_goes_on_where_another_ended() {
    let store = TestStore::new();
    let mut target = Target::start("bad_states", ["plain"]);
    let mut first = every(&store, &target);
    first.next_id();
    for (round, signal) in [Signal::TERM, Signal::INT, Signal::HUP]
        .into_iter()
        .enumerate()
    {
        first.next_id();
        first.signal(signal);
        first.wait().exits_with(128 + signal.as_raw());
        target.ask(&format!("noise 0 100 {round}"));
        first = every(&store, &target);
        let line = first.next_line().expect("a snapshot");
        assert_eq!(text(&line, "kind"), "delta", "{line}");
    }
    first.signal(Signal::TERM);
    first.wait().exits_with(143);
    let next = checkpoint_exactly(&store, &target, &[]);
    assert_eq!(text(&next, "kind"), "delta", "{next}");
    store.assert_sound();
}

#[test]
fn a_schedule_that_was_killed_is_gone_on_with_or_it_is_said_why_not() {
    let store = TestStore::new();
    let mut target = Target::start("bad_states", ["plain"]);
    let mut was_idle = false;
    for round in 0..12 {
        // Killed between two snapshots, or at any moment.
        let interval = ["1h", "20ms"][round as usize % 2];
        let mut first = background(store.checkpoint_words(target.pid(), &["--every", interval]));
        let line = first.next_line().expect("a snapshot");
        match text(&line, "kind") {
            "delta" => assert!(line["why_full"].is_null(), "{line}"),
            _ => assert!(!was_idle && !text(&line, "why_full").is_empty(), "{line}"),
        }
        target.ask(&format!("noise 0 100 {round}"));
        std::thread::sleep(Duration::from_millis(round * 3));
        first.signal(Signal::KILL);
        drop(first.wait());
        was_idle = interval == "1h";
    }
    checkpoint_exactly(&store, &target, &[]);
    store.assert_sound();
}

#[test]
fn each_full_snapshot_says_why_it_is_full() {
    let store = TestStore::new();
    let target = Target::start("bad_states", ["plain"]);
    let why = |more: &[&str]| {
        let report = store.checkpoint(target.pid(), more);
        assert_eq!(text(&report, "kind"), "full", "{report}");
        text(&report, "why_full").to_owned()
    };
    assert!(why(&[]).contains("the first of this store"));
    assert!(why(&["--full"]).contains("it was asked for"));
    pagetide(["detach", &target.pid_text()]).done();
    assert!(why(&[]).contains("nothing tracked it"));
    assert!(store.checkpoint(target.pid(), &[])["why_full"].is_null());
}

#[test]
fn a_second_pagetide_is_refused_in_one_line_and_leaves_nothing() {
    let target = Target::start("bad_states", ["plain"]);
    for (backend, second) in [("auto", "auto"), ("rehash", "auto"), ("auto", "rehash")] {
        let (store, other) = (TestStore::new(), TestStore::new());
        let words = ["--every", "20ms", "--backend", backend];
        let mut first = background(store.checkpoint_words(target.pid(), &words));
        first.next_id();
        let says = format!(
            "process {} is under checkpoints by pagetide {} already",
            target.pid(),
            first.pid()
        );
        for more in [
            &["--backend", second][..],
            &["--backend", second, "--every", "1s"],
        ] {
            let outcome = other.try_checkpoint(target.pid(), more);
            fails(&outcome, 3, &[&says]);
            assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:#?}");
            assert!(!other.path().exists(), "a store that holds nothing is left");
        }
        let outcome: Outcome = pagetide(["detach", &target.pid_text()]);
        fails(&outcome, 3, &[&says]);
        first.next_id();
        first.signal(Signal::TERM);
        first.wait().exits_with(143);
        pagetide(["detach", &target.pid_text()]).done();
    }
}

#[test]
fn the_other_store_is_named_by_its_path() {
    let (store, other) = (TestStore::new(), TestStore::new());
    let target = Target::start("bad_states", ["plain"]);
    store.checkpoint(target.pid(), &[]);
    let outcome = other.try_checkpoint(target.pid(), &[]);
    let path = store.text();
    fails(
        &outcome,
        3,
        &["is tracked for the store ", &path, "pagetide detach"],
    );
    assert!(!other.path().exists(), "a store that holds nothing is left");
}

#[test]
fn the_end_of_the_process_has_an_exit_status_of_its_own() {
    let store = TestStore::new();
    let mut target = Target::start("bad_states", ["plain"]);
    let mut running = every(&store, &target);
    running.next_id();
    let newest = running.next_id();
    target.tell("exit 0");
    target.wait();
    let outcome = running.wait().exits_with(4);
    let says = format!("process {} has ended; ", target.pid());
    assert!(outcome.stderr.contains(&says), "{outcome:#?}");
    let log = store.log();
    let last = number(log.last().expect("a snapshot"), "id");
    assert!(
        last >= newest && outcome.stderr.contains(&format!("the newest is {last}")),
        "{outcome:#?}"
    );
}

#[test]
fn a_command_that_ends_at_once_is_told_and_its_output_is_its_own() {
    let store = TestStore::new();
    let words = [
        "run",
        "--every",
        "10s",
        "--store",
        &store.text(),
        "--",
        "sh",
        "-c",
        "echo hello; sleep 1",
    ];
    let outcome = pagetide(words).done();
    assert_eq!(outcome.stdout, "hello\n", "{outcome:#?}");
    assert_eq!(store.log().len(), 1, "one is taken at once");
    assert!(
        outcome.stderr.contains("stopped"),
        "the table: {outcome:#?}"
    );
    let scratch = Scratch::new();
    let missing = scratch.join("none");
    let words = [
        "run",
        "--every",
        "10s",
        "--store",
        missing.to_str().expect("plain"),
        "--",
        "/nonexistent/x",
    ];
    pagetide(words).exits_with(1);
    assert!(!missing.exists(), "a store that holds nothing is left");
}
