//! Prevents that a program sees wrong memory while its memory is still coming in, that it outlives whoever serves it, and that a
//! damaged store keeps it waiting or goes unsaid.

use pagetide_tests::{
    Background, Program, Scratch, Steps, Subject, background, compiled, number, pagetide, text,
};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// `targets/late.c`, with 256 MiB of memory that is in a store, killed, and such that it begins when it is restored.
fn late(what: &str) -> Subject {
    let scratch = Scratch::new();
    let mut command = Command::new(compiled("late"));
    command.arg(scratch.path()).arg(what).stdin(Stdio::null());
    let mut subject = Subject::start(&command, scratch);
    subject.wait_until("its memory", || subject.output().contains("ready"));
    subject.checkpoint(&[]);
    subject.kill();
    fs::write(subject.path("go"), "").expect("let it begin");
    subject
}

/// How a child ends, or one that was adopted.
fn ending(pid: i32) -> WaitStatus {
    let since = Instant::now();
    loop {
        // Whoever serves it is its parent until all is there.
        if let Ok(Some((_, status))) = waitpid(Pid::from_raw(pid), WaitOptions::NOHANG) {
            return status;
        }
        assert!(since.elapsed() < PATIENCE, "{pid} does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn kill(pid: i32) {
    let pid = Pid::from_raw(pid).expect("a process id");
    kill_process(pid, Signal::KILL).expect("it lives");
}

/// True if somebody traces it: it is under guard until all of its memory is there.
fn is_guarded(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    status.is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
}

/// Restores it such that whoever serves its memory stands still in the middle.
fn in_the_middle(subject: &Subject) -> Background {
    let store = subject.store().text();
    for _ in 0..20 {
        let mut restore = background(["restore", &store, "--lazy", "--json"]);
        restore.next_line().expect("its report");
        restore.signal(Signal::STOP);
        if is_guarded(subject.pid()) {
            return restore;
        }
        // All was there before.
        restore.signal(Signal::KILL);
        restore.wait();
        kill(subject.pid());
        ending(subject.pid());
    }
    panic!("all was there each time");
}

fn children(pid: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    children
        .split_whitespace()
        .filter_map(|number| number.parse().ok())
        .collect()
}

#[test]
fn results_are_right_while_memory_comes_in() {
    let subject = late("use");
    let store = subject.store().text();
    for _ in 0..3 {
        let outcome = pagetide(["restore", &store, "--lazy", "--json"]);
        let report = outcome.stdout.lines().next().unwrap_or_default();
        let report: serde_json::Value =
            serde_json::from_str(report).unwrap_or_else(|e| panic!("{e}: {outcome:#?}"));
        assert_eq!(outcome.code, Some(0), "{outcome:#?} {}", subject.output());
        assert_eq!(report["lazy"], true);
        assert!(text(&report, "not_tracked").contains("coming in"));
        // 256 MiB are 65536 pages.
        assert!(number(&report, "restored_pages") < 10_000, "{report}");
        let microseconds = number(&report, "first_instruction_us");
        eprintln!("256 MiB: first instruction after {microseconds} us");
    }
}

#[test]
fn left_alone_it_goes_on_and_belongs_to_nobody_when_all_is_there() {
    let subject = late("use");
    let report = subject.try_restore(&["--lazy"]).done().json();
    assert_eq!(
        number(&report, "pid"),
        u64::from(subject.pid().unsigned_abs())
    );
    let status = ending(subject.pid());
    assert_eq!(status.exit_status(), Some(0), "{}", subject.output());
    assert!(subject.output().ends_with("right\n"));
}

#[test]
fn it_and_its_child_are_killed_with_whoever_serves_them() {
    let subject = late("sleep");
    let store = subject.store().text();
    let mut in_the_middle = false;
    // All may be there before the kill; then they live.
    for _ in 0..20 {
        let mut restore = background(["restore", &store, "--lazy", "--json"]);
        restore.next_line().expect("its report");
        let mut born = Vec::new();
        let since = Instant::now();
        while born.is_empty() && restore.is_running() && since.elapsed() < PATIENCE {
            born = children(subject.pid());
        }
        let is_served = is_guarded(born[0]);
        restore.signal(Signal::KILL);
        restore.wait();
        if !is_served {
            [subject.pid(), born[0]].into_iter().for_each(kill);
        }
        let mut killed = 0;
        for pid in [subject.pid(), born[0]] {
            killed += i32::from(ending(pid).terminating_signal() == Some(Signal::KILL.as_raw()));
        }
        assert_eq!(killed, 2);
        in_the_middle |= is_served;
        if in_the_middle {
            break;
        }
    }
    assert!(in_the_middle, "all was there each time");
}

/// The largest file of a store, which is damaged in the middle.
fn damage(subject: &Subject) {
    let mut files: Vec<PathBuf> = vec![subject.store().path()];
    let mut largest = (0, PathBuf::new());
    while let Some(path) = files.pop() {
        let metadata = fs::metadata(&path).expect("look at a file");
        if metadata.is_dir() {
            let entries = fs::read_dir(&path).expect("list a directory");
            files.extend(entries.flatten().map(|entry| entry.path()));
        } else if metadata.len() > largest.0 {
            largest = (metadata.len(), path);
        }
    }
    let file = fs::File::options().write(true).open(&largest.1);
    let file = file.expect("open the largest file");
    file.write_all_at(&[0xff; 64], largest.0 / 2)
        .expect("damage it");
}

#[test]
fn a_damaged_store_is_a_sigbus_and_is_told() {
    let subject = late("touch");
    damage(&subject);
    let outcome = pagetide(["restore", &subject.store().text(), "--lazy", "--json"]).exits_with(1);
    assert!(
        outcome
            .stderr
            .contains("pages of memory are lost: touching them is a SIGBUS"),
        "{outcome:#?}"
    );
    assert!(!subject.output().contains("right"), "{}", subject.output());

    subject.try_restore(&["--lazy"]).done();
    let status = ending(subject.pid());
    assert_eq!(
        status.terminating_signal(),
        Some(Signal::BUS.as_raw()),
        "{status:?}"
    );
}

#[test]
fn who_is_killed_with_its_server_has_seen_nothing_wrong() {
    let subject = late("touch");
    for _ in 0..10 {
        let mut restore = in_the_middle(&subject);
        restore.signal(Signal::CONT);
        restore.signal(Signal::KILL);
        restore.wait();
        let signal = ending(subject.pid()).terminating_signal();
        assert_eq!(signal, Some(Signal::KILL.as_raw()));
        assert!(!subject.output().contains("wrong"), "{}", subject.output());
    }
}

#[test]
fn it_is_checkpointed_when_all_is_there_and_not_before() {
    let subject = late("stay");
    let mut restore = in_the_middle(&subject);
    let more = pagetide_tests::TestStore::new();
    more.try_checkpoint(subject.pid(), &[])
        .refused("its memory is still coming in");
    restore.signal(Signal::CONT);
    subject.wait_until("its memory", || subject.output().contains("right so far"));
    subject.wait_until("the end of the guard", || !is_guarded(subject.pid()));
    let report = subject.checkpoint(&[]).remove(0);
    assert_eq!(text(&report, "kind"), "full", "{report}");
    let report = subject.checkpoint(&[]).remove(0);
    assert_eq!(text(&report, "kind"), "delta", "{report}");
    kill(subject.pid());
    restore.wait();
    fs::write(subject.path("again"), "").expect("let it go on");
    let outcome = pagetide(["restore", &subject.store().text(), "--lazy"]);
    assert_eq!(outcome.code, Some(0), "{outcome:#?} {}", subject.output());
    assert!(subject.output().ends_with("right\n"));
}

/// A program that is restored twice, and is each time before its first instruction what it was; the second time from a
/// snapshot that was taken after the first.
#[track_caller]
fn goes_through_it(subject: Subject, checkpoint: &[&'static str]) {
    let mut subject = subject
        .checkpoint_with(checkpoint)
        .restore_with(&["--lazy"]);
    let mut program = Steps::new(5);
    program.goes_on(&subject);
    for mark in 1..3 {
        program.mark(&subject, mark);
        let (report, truth) = subject.stop_and_read();
        let id = number(&report, "id");
        assert_eq!(text(&report, "kind"), "full");
        program.stands_still(&subject, id);
        subject.kill();
        program.killed(&subject, id);
        subject.restore_and_compare(id, &truth);
        program.restored(&subject, id, mark);
        program.goes_on(&subject);
        subject.wait_until("the end of the guard", || !is_guarded(subject.pid()));
    }
}

#[test]
fn memory_with_objects_behind_it() {
    goes_through_it(Subject::target("backed", &[]), &[]);
}

#[test]
fn memory_that_a_family_shares() {
    goes_through_it(Subject::target("backed", &["family"]), &["--tree"]);
}

#[test]
fn stacks_and_heap() {
    goes_through_it(Subject::target("stacks", &[]), &[]);
}

#[test]
fn locks() {
    goes_through_it(Subject::target("locks", &[]), &[]);
}

#[test]
fn restartable_sequences() {
    goes_through_it(Subject::target("sequences", &[]), &[]);
}
