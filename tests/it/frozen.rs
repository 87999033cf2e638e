//! Prevents that a process which a control group keeps frozen, as container engines do, is waited for in vain, is
//! changed, or is stored otherwise than it is: what can be taken is taken, what cannot is refused at once, and
//! each message says what to do.

use pagetide_tests::{
    ControlGroup, Image, Scratch, Target, TestStore, compiled, list, number, pagetide,
    pagetide_path, skipped, text,
};
use serde_json::Value;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Much longer than an answer at once, and shorter than what was waited for a call before.
const AT_ONCE: Duration = Duration::from_secs(9);

/// The file descriptors that pagetide left in a process.
fn left_in(pid: i32) -> usize {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its file descriptors");
    let links = entries
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let is_ours = |link: &std::path::PathBuf| {
        let link = link.to_string_lossy();
        link == "anon_inode:[userfaultfd]" || link.starts_with("/memfd:pagetide")
    };
    links.filter(is_ours).count()
}

/// Waits until the process reads the next command: read(2) of descriptor 0.
fn wait_until_it_waits(pid: i32) {
    let since = Instant::now();
    let call = || std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    while !call().starts_with("0 0x0 ") {
        assert!(since.elapsed() < Duration::from_secs(60), "{}", call());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn t43_version_1_is_refused_at_once_by_name() {
    let files = Scratch::new();
    let mut target = Target::start("traps", [files.path()]);
    let pid = target.pid();
    let Some(group) = ControlGroup::of("frozen::version_1", false, pid) else {
        return;
    };
    let store = TestStore::new();
    store.checkpoint(pid, &[]);
    target.ask("write");
    group.freeze();
    let since = Instant::now();
    let (name, number_of_it) = (group.how_to_thaw(), pid.to_string());
    store.try_checkpoint(pid, &[]).refused(&name);
    store
        .try_checkpoint(pid, &["--backend", "rehash"])
        .refused(&name);
    store.try_checkpoint(pid, &["--tree"]).refused(&name);
    pagetide(["inspect", &number_of_it]).refused(&name);
    pagetide(["detach", &number_of_it]).refused(&name);
    pagetide(["rollback", &number_of_it, &store.text()]).refused(&name);
    assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
    assert_eq!(left_in(pid), 2, "what was there before");
    group.thaw();
    let frozen = target.freeze();
    let (report, _) = store.checkpoint_exactly(&frozen, &[], true);
    assert_eq!(text(&report, "kind"), "delta", "{report}");
}

#[test]
fn t43_version_2_is_taken_without_a_call_inside() {
    pagetide_path();
    let files = Scratch::new();
    // Without restartable sequences: the kernel would tell a thread that goes on in memory which processor it is on.
    let mut command = Command::new(compiled("traps"));
    command.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0");
    let mut target = Target::start_by(command.arg(files.path()));
    let pid = target.pid();
    let Some(group) = ControlGroup::of("frozen::version_2", true, pid) else {
        return;
    };
    let name = group.how_to_thaw();
    // It runs nothing but what it is asked for, so it is the same when it was thawed.
    let exactly = |store: &TestStore, target: &Target, backend: &str, kind: &str| {
        wait_until_it_waits(pid);
        group.freeze();
        let since = Instant::now();
        let report = store.checkpoint(pid, &[]);
        assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
        assert_eq!(text(&report, "backend"), backend, "{report}");
        assert_eq!(text(&report, "kind"), kind, "{report}");
        group.thaw();
        let truth = Image::of_process(&target.freeze());
        store.assert_equals(number(&report, "id"), &truth, backend);
        report
    };
    let store = TestStore::new();
    let report = exactly(&store, &target, "rehash", "full");
    let blockers = list(&report, "blockers").iter();
    let said: Vec<String> = blockers.map(|blocker| blocker.to_string()).collect();
    assert!(said.iter().any(|text| text.contains(&name)), "{said:?}");
    target.ask("write");
    exactly(&store, &target, "rehash", "delta");
    assert_eq!(left_in(pid), 0);

    group.freeze();
    let inspected = pagetide(["inspect", &pid.to_string()]).done();
    assert!(inspected.stdout.contains(&name), "{inspected:?}");
    let tracked = TestStore::new();
    tracked
        .try_checkpoint(pid, &["--backend", "wp-async"])
        .refused(&name);
    group.thaw();
    assert_eq!(left_in(pid), 0);

    // What is tracked already is harvested from outside.
    let report = tracked.checkpoint(pid, &[]);
    target.ask("write");
    exactly(&tracked, &target, text(&report, "backend"), "delta");
    group.freeze();
    let detached = pagetide(["detach", &pid.to_string()]).refused(&name);
    let first = format!("pagetide: tracking cannot be removed from process {pid}: ");
    assert!(detached.stderr.starts_with(&first), "{detached:#?}");
    assert!(left_in(pid) > 0);
    group.thaw();
    pagetide(["detach", &pid.to_string()]).done();
    assert_eq!(left_in(pid), 0);
}

/// The reasons why all memory was compared: for machines, and for people.
fn compared(report: &Value) -> Vec<(&str, &str)> {
    let all = list(report, "not_tracked").iter();
    all.filter(|one| text(one, "end") == text(one, "start"))
        .map(|one| (text(one, "because"), text(one, "reason")))
        .collect()
}

/// Through a ring that nobody but its thread knows of the kernel writes with no trace, and who is frozen cannot be asked.
#[test]
fn t43_what_a_ring_of_a_frozen_thread_wrote_is_not_missed() {
    let test = "frozen::a_ring_of_a_frozen_thread";
    let mut command = Command::new(compiled("writers"));
    command.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0");
    let mut target = Target::start_by(&mut command);
    let pid = target.pid();
    let Some(group) = ControlGroup::of(test, true, pid) else {
        return;
    };
    let store = TestStore::new();
    let answer = target.ask("make registered_ring");
    let backend = text(&store.checkpoint(pid, &[]), "backend").to_owned();
    if answer != "done" || backend != "wp-async" {
        skipped(test, &format!("a hidden ring: {answer}, with {backend}"));
        return;
    }
    let mut reports = Vec::new();
    // Before the first one, the threads were asked; before the others, nobody told of the ring.
    for round in 0..3 {
        assert_eq!(target.ask("write"), "done");
        wait_until_it_waits(pid);
        group.freeze();
        let report = store.checkpoint(pid, &[]);
        group.thaw();
        assert_eq!(text(&report, "kind"), "delta", "{report}");
        let truth = Image::of_process(&target.freeze());
        store.assert_equals(number(&report, "id"), &truth, &format!("round {round}"));
        reports.push(report);
    }
    for report in &reports {
        let why = compared(report);
        assert_eq!(why.len(), 1, "{report}");
        assert_eq!(why[0].0, "not-asked", "{report}");
        assert!(why[0].1.contains(&group.how_to_thaw()), "{report}");
    }
    let report = store.checkpoint(pid, &[]);
    let why: Vec<&str> = compared(&report).iter().map(|(name, _)| *name).collect();
    assert_eq!(why, ["registered-ring"], "{report}");
}

/// Ends the other thread, also when a check fails and this one unwinds.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn t43_a_process_that_is_frozen_again_and_again_loses_nothing() {
    let files = Scratch::new();
    for is_unified in [false, true] {
        let mut target = Target::start("traps", [files.path()]);
        let pid = target.pid();
        let Some(group) = ControlGroup::of("frozen::again_and_again", is_unified, pid) else {
            continue;
        };
        let store = TestStore::new();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Also when a check fails: the other thread is waited for.
            let _end = End(&over);
            scope.spawn(|| {
                for round in 0_u64.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    group.freeze();
                    std::thread::sleep(Duration::from_millis(round % 7));
                    group.thaw();
                    std::thread::sleep(Duration::from_millis(round % 5));
                }
            });
            for _ in 0..12 {
                // Done, or refused by name: whatever it was, it can be taken back.
                let outcome = store.try_checkpoint(pid, &[]);
                if outcome.code != Some(0) {
                    outcome.refused(&group.how_to_thaw());
                    let is_there = store.path().join("pagetide-store").exists();
                    assert!(
                        is_there || left_in(pid) == 0,
                        "tracked for a store that is gone"
                    );
                }
            }
        });
        group.thaw();
        pagetide(["detach", &pid.to_string()]).done();
        assert_eq!(left_in(pid), 0);
        target.ask("write");
        let frozen = target.freeze();
        store.checkpoint_exactly(&frozen, &[], true);
        store.assert_sound();
    }
}
