//! Prevents: a signal lost, delivered twice, or delivered in the middle of a remote call; and a
//! SIGTRAP of ours that the target sees.

use crate::harness::{Target, kill, stop_call_resume, wait_until};
use nix::libc;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

/// Queues `count` real-time signals to a process with sigqueue(3), from a process of its own.
fn storm(pid: i32, count: u32) -> std::process::Child {
    let script = "import ctypes,sys\n\
        libc=ctypes.CDLL(None,use_errno=True)\n\
        import time\n\
        n=0\n\
        while n<int(sys.argv[2]):\n\
        \x20if libc.sigqueue(int(sys.argv[1]),34+n%8,ctypes.c_void_p(n))==0: n+=1\n\
        \x20else: time.sleep(0.001)\n";
    Command::new("python3")
        .args(["-c", script, &pid.to_string(), &count.to_string()])
        .spawn()
        .unwrap()
}

fn counts_are_exact(threads: &str) {
    const SENT: u32 = 20_000;
    let mut target = Target::start("signals", &[threads]);
    let mut sender = storm(target.pid(), SENT);
    let mut rounds = 0;
    while sender.try_wait().unwrap().is_none() {
        let mut stopped = target.stop();
        let mut calls = stopped.remote_calls().unwrap();
        for _ in 0..3 {
            calls.call(libc::SYS_getpid, [0; 6]).unwrap();
        }
        calls.finish().unwrap();
        stopped.resume().unwrap();
        rounds += 1;
    }
    assert!(rounds > 10, "{rounds} rounds only");
    wait_until("all signals", || target.ask_number() >= u64::from(SENT));
    sleep(Duration::from_millis(100));
    assert_eq!(target.ask_number(), u64::from(SENT));
}

#[test]
fn a_storm_of_queued_signals_is_counted_exactly_with_one_thread() {
    counts_are_exact("0");
}

#[test]
fn a_storm_of_queued_signals_is_counted_exactly_with_many_threads() {
    counts_are_exact("6");
}

#[test]
fn signals_that_come_during_a_session_are_delivered_once_after_it() {
    for threads in ["0", "3"] {
        let mut target = Target::start("signals", &[threads]);
        for round in 1..=20 {
            let mut stopped = target.stop();
            let mut calls = stopped.remote_calls().unwrap();
            calls.call(libc::SYS_getpid, [0; 6]).unwrap();
            assert!(storm(target.pid(), 5).wait().unwrap().success());
            calls.call(libc::SYS_getpid, [0; 6]).unwrap();
            calls.finish().unwrap();
            stopped.resume().unwrap();
            wait_until("signals", || target.ask_number() >= round * 5);
            assert_eq!(target.ask_number(), round * 5);
        }
    }
}

#[test]
fn a_sigstop_during_a_session_stops_the_process_after_it() {
    for threads in ["0", "3"] {
        let mut target = Target::start("signals", &[threads]);
        let mut stopped = target.stop();
        let mut calls = stopped.remote_calls().unwrap();
        calls.call(libc::SYS_getpid, [0; 6]).unwrap();
        kill(target.pid(), "STOP");
        for _ in 0..5 {
            calls.call(libc::SYS_getpid, [0; 6]).unwrap();
        }
        calls.finish().unwrap();
        stopped.resume().unwrap();
        target.wait_for_state('T');
        stop_call_resume(&target);
        target.wait_for_state('T');
        kill(target.pid(), "CONT");
        assert_eq!(target.ask_number(), 0);
    }
}

#[test]
fn sigstop_and_sigcont_during_a_session_leave_the_process_running() {
    for threads in ["0", "3"] {
        let mut target = Target::start("signals", &[threads]);
        for _ in 0..10 {
            let mut stopped = target.stop();
            let mut calls = stopped.remote_calls().unwrap();
            calls.call(libc::SYS_getpid, [0; 6]).unwrap();
            kill(target.pid(), "STOP");
            calls.call(libc::SYS_getpid, [0; 6]).unwrap();
            kill(target.pid(), "CONT");
            calls.call(libc::SYS_getpid, [0; 6]).unwrap();
            calls.finish().unwrap();
            stopped.resume().unwrap();
            assert_eq!(target.ask_number(), 0);
        }
    }
}

#[test]
fn a_sigkill_during_a_session_is_an_error_and_no_hang() {
    for threads in ["0", "3"] {
        let mut target = Target::start("signals", &[threads]);
        let mut stopped = target.stop();
        let mut calls = stopped.remote_calls().unwrap();
        calls.call(libc::SYS_getpid, [0; 6]).unwrap();
        kill(target.pid(), "KILL");
        wait_until("the error", || {
            calls.call(libc::SYS_getpid, [0; 6]).is_err()
        });
        let error = calls.call(libc::SYS_getpid, [0; 6]).unwrap_err();
        assert!(
            matches!(
                error,
                pagetide_process::RemoteCallError::Gone { .. }
                    | pagetide_process::RemoteCallError::Over
            ),
            "{error}"
        );
        drop(calls);
        assert!(stopped.resume().is_err());
        wait_until("end", || target.has_ended());
    }
}

#[test]
fn sigtrap_is_not_seen_whatever_the_target_does_with_it() {
    for how in [
        "handled",
        "ignored",
        "blocked",
        "blocked-handled",
        "default",
    ] {
        let mut target = Target::start("traps", &[how]);
        for _ in 0..50 {
            stop_call_resume(&target);
        }
        assert_eq!(target.ask(), "handled 0 pending 0 same 1", "{how}");
        kill(target.pid(), "TRAP");
        if how == "handled" {
            wait_until("the handler", || {
                target.ask() == "handled 1 pending 0 same 1"
            });
        }
        if how.starts_with("blocked") {
            assert_eq!(target.ask(), "handled 0 pending 1 same 1", "{how}");
        }
    }
}
