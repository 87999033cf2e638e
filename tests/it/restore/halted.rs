//! Prevents that a process that was stopped (SIGSTOP, Ctrl-Z) comes back running, or that its parent is told of the stop again, or never.

use pagetide_tests::{Program, Steps, Subject, comes_back};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

fn state(pid: i32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("its state");
    let (_, rest) = stat.rsplit_once(") ").expect("a state");
    rest.split(' ').next().unwrap_or_default().to_owned()
}

/// A family of which the child was stopped: in each of its steps it is as it was.
#[track_caller]
fn stays_halted(signal: Signal, told: &str) {
    let by = signal.as_raw().to_string();
    let words = [&*by, told];
    let mut subject = Subject::target("halted", &words).checkpoint_with(&["--tree"]);
    let mut steps = Steps::new(3);
    comes_back(&mut subject, &mut steps);
    subject.wait_until("a step", || {
        std::fs::read_to_string(subject.path("log")).is_ok_and(|log| log.ends_with("stands\n"))
    });
    std::fs::write(subject.path("go"), "").expect("tell it");
    let log = || std::fs::read_to_string(subject.path("log")).unwrap_or_default();
    subject.wait_until("the child", || log().contains("went on"));
}

#[test]
fn a_child_that_was_stopped_and_told() {
    stays_halted(Signal::STOP, "told");
}

#[test]
fn a_child_that_was_stopped_and_is_not_told_yet() {
    stays_halted(Signal::STOP, "untold");
}

#[test]
fn a_child_that_was_stopped_by_the_terminal() {
    stays_halted(Signal::TSTP, "told");
    stays_halted(Signal::TSTP, "untold");
}

#[test]
fn a_process_alone_that_was_stopped() {
    for threads in ["1", "3"] {
        for signal in [Signal::STOP, Signal::TSTP] {
            let mut subject = Subject::target("standing", &[threads]);
            let mut steps = Steps::new(3);
            steps.goes_on(&subject);
            let pid = Pid::from_raw(subject.pid()).expect("a number");
            kill_process(pid, signal).expect("stop it");
            subject.wait_until("it stands", || state(subject.pid()) == "T");
            let report = subject.checkpoint(&[]).remove(0);
            assert_eq!(report["restorable"], true, "{report}");
            steps.killed(&subject, 1);
            subject.kill();
            subject.restore(&[]);
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert_eq!(state(subject.pid()), "T", "{threads} threads, {signal:?}");
            let log = || std::fs::read(subject.path("log")).expect("its log").len();
            let before = log();
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert_eq!(log(), before);
            // Also a snapshot of what was restored is of one that stands.
            subject.checkpoint(&[]);
            subject.kill();
            subject.restore(&[]);
            subject.wait_until("it stands", || state(subject.pid()) == "T");
            kill_process(pid, Signal::CONT).expect("let it go on");
            steps.goes_on(&subject);
        }
    }
}

#[test]
fn what_was_only_stopped_for_the_snapshot_comes_back_running() {
    let mut subject = Subject::target("standing", &["2"]);
    let mut steps = Steps::new(3);
    steps.goes_on(&subject);
    subject.checkpoint(&["--leave", "stopped"]);
    steps.killed(&subject, 1);
    subject.kill();
    subject.restore(&[]);
    steps.goes_on(&subject);
}

#[test]
fn a_restore_right_after_a_kill_waits_for_the_pid() {
    let mut subject = Subject::target("standing", &["3"]);
    let mut steps = Steps::new(3);
    steps.goes_on(&subject);
    subject.checkpoint(&[]);
    let pid = Pid::from_raw(subject.pid()).expect("a number");
    kill_process(pid, Signal::KILL).expect("end it");
    // Its parent takes its time.
    let reaper = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(700));
        waitpid(Some(pid), WaitOptions::empty()).expect("it has ended");
    });
    subject.restore(&[]);
    reaper.join().expect("it was reaped");
    subject.wait_until("steps", || state(subject.pid()) != "Z");
    subject.assert_alive();
}
