//! Prevents that `restore` says something else than what became of the process, or that it leaves something behind.

use pagetide_tests::{Scratch, Subject, background, number, thread_states};
use rustix::process::{Pid, Signal, kill_process};
use std::process::Command;

/// Ends with status 7 once there is a file `end`.
fn start() -> Subject {
    let scratch = Scratch::new();
    let mut command = Command::new("perl");
    command.args([
        "-e",
        "select(undef, undef, undef, 0.01) until -e $ARGV[0]; exit 7",
    ]);
    command.arg(scratch.join("end"));
    Subject::start(&command, scratch)
}

#[test]
fn it_exits_with_the_status_of_the_process() {
    let mut subject = start();
    subject.checkpoint(&[]);
    subject.kill();
    let restore = || background(["restore", &subject.store().text(), "--json"]);
    let mut first = restore();
    let report = first.next_line().expect("a report");
    assert_eq!(
        number(&report, "pid"),
        u64::from(subject.pid().unsigned_abs())
    );
    assert!(first.is_running());
    kill_process(Pid::from_raw(subject.pid()).expect("a pid"), Signal::TERM).expect("end it");
    first.wait().exits_with(128 + 15);

    let mut second = restore();
    second.next_line().expect("a report");
    std::fs::write(subject.path("end"), "").expect("tell it to end");
    second.wait().exits_with(7);
}

#[test]
fn a_process_that_is_left_stopped_goes_on_when_it_is_told() {
    let mut subject = start();
    subject.checkpoint(&[]);
    subject.kill();
    subject.restore(&["--stopped"]);
    assert_eq!(thread_states(subject.pid()), ['T']);
    std::fs::write(subject.path("end"), "").expect("tell it to end");
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(thread_states(subject.pid()), ['T']);
    kill_process(Pid::from_raw(subject.pid()).expect("a pid"), Signal::CONT).expect("let it go");
    let pid = Pid::from_raw(subject.pid());
    let ended = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty());
    let (_, status) = ended.expect("wait for it").expect("it has ended");
    assert_eq!(status.exit_status(), Some(7));
}

#[test]
fn a_number_that_is_taken_is_refused() {
    let mut subject = start();
    subject.checkpoint(&[]);
    subject.try_restore(&[]).refused(&subject.pid().to_string());
    subject.assert_alive();
    subject.kill();
    subject.restore(&[]);
    subject.assert_alive();
}
