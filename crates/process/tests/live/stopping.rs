//! Prevents: a thread that runs on while the process counts as stopped, a thread left stopped for
//! ever, and a process that is not in the state it was in before.

use crate::harness::{Target, kill, state_of, wait_until};
use nix::libc;
use pagetide_process::{StopError, StopOptions, StoppedProcess};
use std::thread::sleep;
use std::time::{Duration, Instant};

fn tasks(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .count()
}

#[test]
fn a_thousand_stops_of_many_threads_lose_none() {
    let mut target = Target::start("count", &["12"]);
    let mut before = target.ask_number();
    for round in 0..1000 {
        let stopped = target.stop();
        assert_eq!(stopped.threads().len(), 13);
        stopped.resume().unwrap();
        if round % 100 == 99 {
            let now = target.ask_number();
            assert!(now > before);
            before = now;
        }
    }
    wait_until("all threads counting", || target.state() != 't');
}

#[test]
fn nothing_runs_while_it_is_stopped() {
    let target = Target::start("count", &["8"]);
    let times = |pid: i32| -> Vec<String> {
        let mut times = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let path = entry.unwrap().path().join("schedstat");
            let text = std::fs::read_to_string(path).unwrap();
            times.push(text.split(' ').next().unwrap().to_owned());
        }
        times
    };
    let stopped = target.stop();
    let before = times(target.pid());
    sleep(Duration::from_millis(100));
    assert_eq!(before, times(target.pid()));
    drop(stopped);
    wait_until("it runs again", || times(target.pid()) != before);
}

#[test]
fn dropping_lets_it_run_on() {
    let mut target = Target::start("count", &["3"]);
    drop(target.stop());
    let before = target.ask_number();
    wait_until("counting", || target.ask_number() > before);
}

#[test]
fn threads_born_during_the_stop_are_caught() {
    for kind in ["chain", "burst"] {
        let mut target = Target::start("storm", &[kind]);
        for _ in 0..200 {
            let stopped = target.stop();
            let pid = target.pid();
            assert_eq!(stopped.threads().len(), tasks(pid), "{kind}");
            for thread in stopped.threads() {
                assert_eq!(state_of(thread.get()), 't', "{kind}");
            }
            stopped.resume().unwrap();
        }
        let before = target.ask_number();
        wait_until("new threads", || target.ask_number() > before);
    }
}

#[test]
fn a_process_in_group_stop_stays_in_it_and_heeds_sigcont() {
    let mut target = Target::start("count", &["4"]);
    target.signal("STOP");
    target.wait_for_state('T');
    for _ in 0..20 {
        let mut stopped = target.stop();
        assert_eq!(stopped.group_stop(), Some(19));
        stopped
            .remote_calls()
            .unwrap()
            .call(libc::SYS_getpid, [0; 6])
            .unwrap();
        stopped.resume().unwrap();
        target.wait_for_state('T');
    }
    target.signal("CONT");
    wait_until("running", || target.state() != 'T');
    let before = target.ask_number();
    wait_until("counting", || target.ask_number() > before);
}

#[test]
fn sigstop_and_sigcont_during_a_stop_take_effect_after_it() {
    let mut target = Target::start("count", &["4"]);
    let stopped = target.stop();
    target.signal("STOP");
    stopped.resume().unwrap();
    target.wait_for_state('T');
    let stopped = target.stop();
    target.signal("CONT");
    stopped.resume().unwrap();
    wait_until("running", || target.state() != 'T');
    let before = target.ask_number();
    wait_until("counting", || target.ask_number() > before);
}

#[test]
fn the_parent_of_a_vfork_times_out_and_goes_on() {
    let mut target = Target::start("vfork", &[]);
    target.wait_for_state('D');
    let options = StopOptions::with_timeout(Duration::from_millis(50));
    for _ in 0..3 {
        let error = StoppedProcess::stop(&target.identity(), options).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, StopError::Timeout { state: 'D', thread, .. } if thread.get() == target.pid()),
            "{text}"
        );
    }
    target.tell("go\n");
    assert_eq!(target.line(), "back");
}

#[test]
fn a_process_that_is_killed_while_stopped_is_gone() {
    let mut target = Target::start("count", &["4"]);
    let mut stopped = target.stop();
    target.signal("KILL");
    // The kernel kills stopped threads, too, but not at once.
    wait_until("the error", || stopped.thread_states().is_err());
    assert!(stopped.thread_states().is_err());
    assert!(stopped.remote_calls().is_err());
    // One thread may be dead while another is not yet, and it is the first that tells.
    wait_until("the end of the first thread", || target.state() == 'Z');
    assert!(stopped.resume().is_err());
    wait_until("end", || target.has_ended());
}

#[test]
fn a_process_that_runs_another_program_over_and_over_survives_stops() {
    let mut target = Target::start("exec", &[]);
    let identity = target.identity();
    let (mut stops, mut refusals) = (0, 0);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(2)
        || (stops == 0 && begin.elapsed() < Duration::from_secs(30))
    {
        match StoppedProcess::stop(&identity, StopOptions::default()) {
            Ok(stopped) => {
                stops += 1;
                stopped.resume().unwrap();
            }
            Err(error) => {
                refusals += 1;
                assert!(
                    matches!(
                        error,
                        StopError::Exec { .. }
                            | StopError::Timeout { .. }
                            | StopError::FirstThreadEnded { .. }
                    ),
                    "{error}"
                );
            }
        }
    }
    assert!(stops > 0, "{stops} stops, {refusals} refusals");
    assert!(!target.has_ended());
    assert_ne!(target.state(), 't');
}

#[test]
fn an_ended_process_and_another_with_its_number_are_told_apart() {
    let target = Target::start("count", &["1"]);
    let mut identity = target.identity();
    assert!(identity.is_alive_and_same());
    identity.start_time_ticks += 1;
    assert!(!identity.is_alive_and_same());
    let error = StoppedProcess::stop(&identity, StopOptions::default()).unwrap_err();
    assert!(matches!(error, StopError::Gone { .. }), "{error}");
    let identity = target.identity();
    kill(target.pid(), "KILL");
    wait_until("end", || !identity.is_alive_and_same());
    let error = StoppedProcess::stop(&identity, StopOptions::default()).unwrap_err();
    assert!(matches!(error, StopError::Gone { .. }), "{error}");
}
