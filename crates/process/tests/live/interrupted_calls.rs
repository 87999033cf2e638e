//! Prevents: a system call that a stop interrupts and that then fails, returns early, or sleeps
//! twice as long. The target has one thread, so the remote calls run in the very thread that waits.

use crate::harness::{Target, kill, stop_call_resume};
use nix::libc;
use std::thread::sleep;
use std::time::Duration;

#[derive(Debug)]
struct Outcome {
    result: i64,
    errno: i32,
    milliseconds: u64,
    handled: i32,
    blocked: i32,
}

fn outcome(line: &str) -> Outcome {
    let words: Vec<&str> = line.split(' ').collect();
    Outcome {
        result: words[0].parse().unwrap(),
        errno: words[1].parse().unwrap(),
        milliseconds: words[2].parse().unwrap(),
        handled: words[4].parse().unwrap(),
        blocked: words[6].parse().unwrap(),
    }
}

/// Starts a call, disturbs it six times, half of them without a remote call.
fn disturbed(kind: &str) -> Target {
    let target = Target::start("calls", &[kind]);
    for round in 0..6 {
        sleep(Duration::from_millis(20));
        if round % 2 == 0 {
            stop_call_resume(&target);
        } else {
            target.stop().resume().unwrap();
        }
    }
    target
}

fn assert_waited_700_ms(kind: &str, result: i64, errno: i32) {
    let outcome = outcome(&disturbed(kind).line());
    assert_eq!(
        (outcome.result, outcome.errno),
        (result, errno),
        "{kind} {outcome:?}"
    );
    // The upper bound is for a busy machine; a call begun anew six times would not exceed it, but
    // one that is begun anew at each stop of a loop would, and the lower bound is the point.
    assert!(
        (699..20_000).contains(&outcome.milliseconds),
        "{kind} {outcome:?}"
    );
}

#[test]
fn sleeps_and_waits_with_a_time_limit_last_as_long_as_they_should() {
    for kind in [
        "nanosleep",
        "clock_nanosleep",
        "clock_nanosleep_absolute",
        "poll",
        "select",
    ] {
        assert_waited_700_ms(kind, 0, 0);
    }
    assert_waited_700_ms("futex_timeout", -1, 110);
}

#[test]
fn a_sleep_does_not_begin_anew_at_each_stop() {
    let mut target = Target::start("calls", &["nanosleep"]);
    // Stops for far longer than the sleep; if each began it anew it would never end.
    let mut stops = 0;
    while target.lines_so_far().is_empty() {
        if target.has_ended() {
            return;
        }
        if let Ok(mut stopped) =
            pagetide_process::StoppedProcess::stop(&target.identity(), crate::harness::patient())
        {
            stopped
                .remote_calls()
                .unwrap()
                .call(libc::SYS_getpid, [0; 6])
                .unwrap();
        }
        stops += 1;
        assert!(stops < 2000, "it sleeps for ever");
        sleep(Duration::from_millis(10));
    }
}

#[test]
fn waits_for_input_get_the_input_and_no_eintr() {
    for (kind, result) in [
        ("read", 1),
        ("poll_input", 1),
        ("epoll_wait", 1),
        ("epoll_wait_forever", 1),
        ("epoll_pwait", 1),
    ] {
        let mut target = disturbed(kind);
        assert_eq!(target.lines_so_far(), Vec::<String>::new(), "{kind}");
        target.tell("x");
        let outcome = outcome(&target.line());
        assert_eq!(
            (outcome.result, outcome.errno),
            (result, 0),
            "{kind} {outcome:?}"
        );
        assert_eq!(outcome.handled, 0);
    }
}

#[test]
fn an_epoll_wait_whose_time_is_over_returns_nothing_and_no_eintr() {
    let outcome = outcome(&disturbed("epoll_timeout").line());
    assert_eq!((outcome.result, outcome.errno), (0, 0), "{outcome:?}");
    assert!(outcome.milliseconds >= 199, "{outcome:?}");
}

#[test]
fn a_receive_with_a_time_limit_gets_its_data_and_no_eintr() {
    let mut target = disturbed("recv_timeout");
    assert_eq!(target.lines_so_far(), Vec::<String>::new());
    // The other end of its socket pair, which it keeps open as number 100.
    let other_end = target.identity().take_fd(100).unwrap();
    rustix::io::write(&other_end, b"x").unwrap();
    let outcome = outcome(&target.line());
    assert_eq!((outcome.result, outcome.errno), (1, 0), "{outcome:?}");
}

#[test]
fn waits_for_signals_end_by_the_signal_alone() {
    // The signal is blocked outside the call: its handler runs exactly once, inside.
    for (kind, result, errno, handled) in [
        ("ppoll", -1, 4, 1),
        ("sigsuspend", -1, 4, 1),
        ("pause", -1, 4, 1),
        // A handler that runs must still be seen as EINTR here, or a loop that looks at what the
        // handler has done would sleep on.
        ("epoll_signal", -1, 4, 1),
        ("sigtimedwait", 10, 0, 0),
    ] {
        let mut target = disturbed(kind);
        assert_eq!(target.lines_so_far(), Vec::<String>::new(), "{kind}");
        kill(target.pid(), "USR1");
        let outcome = outcome(&target.line());
        assert_eq!(
            (outcome.result, outcome.errno),
            (result, errno),
            "{kind} {outcome:?}"
        );
        assert_eq!(outcome.handled, handled, "{kind} {outcome:?}");
        let blocked = i32::from(matches!(kind, "ppoll" | "sigsuspend" | "sigtimedwait"));
        assert_eq!(outcome.blocked, blocked, "{kind} {outcome:?}");
    }
}

#[test]
fn a_signal_sent_while_stopped_ends_the_wait_afterwards() {
    for kind in ["ppoll", "sigsuspend", "pause", "epoll_signal"] {
        let mut target = disturbed(kind);
        let mut stopped = target.stop();
        kill(target.pid(), "USR1");
        let mut calls = stopped.remote_calls().unwrap();
        calls.call(libc::SYS_getpid, [0; 6]).unwrap();
        calls.finish().unwrap();
        stopped.resume().unwrap();
        let outcome = outcome(&target.line());
        assert_eq!(
            (outcome.result, outcome.errno, outcome.handled),
            (-1, 4, 1),
            "{kind} {outcome:?}"
        );
    }
}

#[test]
fn semaphores_are_waited_for_without_eintr() {
    let mut target = disturbed("semop");
    assert_eq!(target.lines_so_far(), Vec::<String>::new());
    assert!(!target.has_ended());
    // Removing the set ends the wait with EIDRM; find it by its last user.
    let text = std::fs::read_to_string("/proc/sysvipc/sem").unwrap();
    let id = text
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .max()
        .unwrap();
    // semctl(id, 0, IPC_RMID), by the hand of another target.
    let helper = Target::start("count", &["1"]);
    helper
        .stop()
        .remote_calls()
        .unwrap()
        .call(libc::SYS_semctl, [id, 0, 0, 0, 0, 0])
        .unwrap();
    let outcome = outcome(&target.line());
    assert_eq!((outcome.result, outcome.errno), (-1, 43), "{outcome:?}");
}
