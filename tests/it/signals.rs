//! Prevents that SIGINT or SIGTERM at any moment of a checkpoint leaves the process stopped, something in
//! it, half a snapshot in the store, or a next snapshot that lacks what the interrupted one had taken.

use crate::bad::{self, Condition, checkpoint_exactly};
use pagetide_tests::{
    Background, Outcome, Target, TestStore, background, from_environment, pagetide, pagetide_path,
    seed, thread_states,
};
use rustix::process::{Pid, Signal};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: u64 = 10;

/// A number below `limit` that depends on the seed and the round.
fn draw(seed: u64, round: u64, limit: u64) -> u64 {
    let mixed = (seed ^ (round << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 20) % limit.max(1)
}

fn signal_of(round: u64) -> Signal {
    match round % 2 {
        0 => Signal::INT,
        _ => Signal::TERM,
    }
}

/// Ends it by a signal after some time. True if it was interrupted, false if it was done before.
#[track_caller]
fn interrupt(mut command: Background, signal: Signal, after: Duration) -> (bool, Outcome) {
    std::thread::sleep(after);
    command.signal_if_running(signal);
    let outcome = command.wait();
    let number = signal.as_raw();
    let interrupted = match (outcome.code, outcome.signal) {
        (Some(0), None) => false,
        (Some(code), None) => {
            assert_eq!(code, 128 + number, "{outcome:#?}");
            true
        }
        // It came before the program was ready to be told.
        (_, ended_by) => {
            assert_eq!(ended_by, Some(number), "{outcome:#?}");
            true
        }
    };
    (interrupted, outcome)
}

/// An interrupted checkpoint takes its file away, but for one whose disk did not answer for a second or two: it ends as by kill -9,
/// and the next one takes the file away.
#[track_caller]
fn assert_no_leftovers(store: &TestStore, outcome: &Outcome) {
    if !outcome.stderr.contains("what was under way does not end") {
        bad::assert_no_leftovers(store);
    }
}

/// How long such a checkpoint takes, in microseconds.
fn duration_of(target: &Target, more: &[&str]) -> u64 {
    let store = TestStore::new();
    // The first run of all may have to build it.
    pagetide_path();
    let since = Instant::now();
    store.checkpoint(target.pid(), more);
    let duration = since.elapsed();
    pagetide(["detach", &target.pid_text()]).done();
    u64::try_from(duration.as_micros()).expect("a short time")
}

fn a_first_snapshot(name: &str, more: &[&str]) {
    let seed = seed(name);
    let mut target = Target::start("bad_states", ["threads", "8"]);
    let mut longest = duration_of(&target, more);
    let mut interruptions = 0;
    for round in 0..ROUNDS {
        let before = Condition::of(&target);
        let store = TestStore::new();
        let command = background(store.checkpoint_words(target.pid(), more));
        let after = Duration::from_micros(draw(seed, round, longest));
        let (interrupted, outcome) = interrupt(command, signal_of(round), after);
        if interrupted {
            interruptions += 1;
            assert_eq!(outcome.stdout, "", "{outcome:#?}");
            if outcome.code.is_some() {
                assert!(
                    outcome.stderr.contains("the process runs on"),
                    "{outcome:#?}"
                );
            }
            before.assert_is_again(&target);
            assert_no_leftovers(&store, &outcome);
            if store.path().join("pagetide-store").exists() {
                assert!(store.log().is_empty(), "{outcome:#?}");
            }
        }
        if !interrupted {
            // It takes less time than it did.
            longest = longest / 2 + 1;
        }
        target.ask("noise 0 1000 3");
        checkpoint_exactly(&store, &target, more);
        store.assert_sound();
        pagetide(["detach", &target.pid_text()]).done();
        before.assert_is_again_after_work(&target);
    }
    assert!(
        interruptions > 0,
        "every one was done before its signal came"
    );
}

#[test]
fn a_first_snapshot_that_is_interrupted_leaves_nothing() {
    a_first_snapshot("first", &["--mode", "stop"]);
}

#[test]
fn a_first_snapshot_in_rounds_that_is_interrupted_leaves_nothing() {
    a_first_snapshot("first_precopy", &["--mode", "precopy"]);
}

#[test]
fn what_an_interrupted_delta_had_taken_is_in_the_next() {
    let name = "delta";
    let seed = seed(name);
    let mut target = Target::start("bad_states", ["threads", "3"]);
    let store = TestStore::new();
    let longest = duration_of(&target, &[]);
    store.checkpoint(target.pid(), &[]);
    let mut interruptions = 0;
    for round in 0..2 * ROUNDS {
        let (first, count) = (
            draw(seed, round + 1000, 400),
            draw(seed, round + 2000, 600) + 1,
        );
        target.ask(&format!("noise {first} {count} {round}"));
        let before = Condition::of(&target);
        let mode = ["stop", "precopy"][draw(seed, round + 3000, 2) as usize];
        let command = background(store.checkpoint_words(target.pid(), &["--mode", mode]));
        let after = Duration::from_micros(draw(seed, round, longest));
        let (interrupted, outcome) = interrupt(command, signal_of(round), after);
        interruptions += u64::from(interrupted);
        before.assert_is_again(&target);
        assert_no_leftovers(&store, &outcome);
        if round % 3 == 0 {
            checkpoint_exactly(&store, &target, &[]);
        }
    }
    checkpoint_exactly(&store, &target, &[]);
    store.assert_sound();
    assert!(
        interruptions > 0,
        "every one was done before its signal came"
    );
}

#[test]
fn an_interrupted_schedule_leaves_its_tracking_and_nothing_else() {
    let name = "schedule";
    let seed = seed(name);
    let mut target = Target::start("bad_states", ["threads", "8"]);
    let before = Condition::of(&target);
    let store = TestStore::new();
    for round in 0..ROUNDS {
        let words = store.checkpoint_words(target.pid(), &["--every", "2ms"]);
        let mut command = background(words);
        if round % 2 == 0 {
            command.next_id();
        }
        target.ask(&format!("noise 0 900 {round}"));
        let after = Duration::from_micros(draw(seed, round, 200_000));
        let (interrupted, outcome) = interrupt(command, signal_of(round), after);
        assert!(
            interrupted,
            "a schedule has no end of its own: {outcome:#?}"
        );
        assert_no_leftovers(&store, &outcome);
        if round % 3 == 0 {
            checkpoint_exactly(&store, &target, &[]);
        }
        pagetide(["detach", &target.pid_text()]).done();
        before.assert_is_again_after_work(&target);
    }
    checkpoint_exactly(&store, &target, &[]);
    store.assert_sound();
}

#[test]
fn a_process_that_is_interrupted_while_it_is_left_stopped_runs_on() {
    let seed = seed("leave");
    let mut target = Target::start("bad_states", ["plain"]);
    let before = Condition::of(&target);
    let more = ["--leave", "stopped"];
    let longest = duration_of(&target, &[]);
    for round in 0..ROUNDS {
        let store = TestStore::new();
        let command = background(store.checkpoint_words(target.pid(), &more));
        let after = Duration::from_micros(draw(seed, round, longest));
        let (interrupted, _) = interrupt(command, signal_of(round), after);
        if !interrupted {
            target.signal(Signal::CONT);
            pagetide(["detach", &target.pid_text()]).done();
        }
        target.ask("noise 1 1 1");
        before.assert_is_again_after_work(&target);
    }
}

/// A schedule in a process group of its own, of which a shell could let it go on.
fn schedule(store: &TestStore, target: &Target) -> Child {
    let words = store.checkpoint_words(target.pid(), &["--every", "50ms"]);
    let child = Command::new(pagetide_path())
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("start pagetide");
    let is_ready = || store.path().join("pagetide-store").exists() && !store.log().is_empty();
    wait_until("a snapshot", is_ready);
    child
}

#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(
            since.elapsed() < Duration::from_secs(60),
            "it does not come: {what}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// No thread of it stands because of a tracer.
fn is_let_go(target: &Target) -> bool {
    !thread_states(target.pid()).contains(&'t')
}

/// Sent to the schedule; whether that has ended then.
fn send(child: &mut Child, target: &Target, signal: Signal) -> bool {
    let pid = Pid::from_child(child);
    let kill = |signal| rustix::process::kill_process(pid, signal).expect("send a signal");
    kill(signal);
    let number = pid.as_raw_nonzero().get();
    let is_stopped = || thread_states(number).iter().all(|&state| state == 'T');
    match signal {
        Signal::TSTP | Signal::TTIN | Signal::TTOU => {
            wait_until("that it stops", is_stopped);
            for _ in 0..5 {
                assert!(
                    is_let_go(target),
                    "it stands, and {signal:?} has stopped pagetide"
                );
                std::thread::sleep(Duration::from_millis(2));
            }
            kill(Signal::CONT);
            false
        }
        // That cannot be held back, but does not last.
        Signal::STOP => {
            wait_until("that it is let go", || is_let_go(target));
            kill(Signal::CONT);
            false
        }
        Signal::PIPE => false,
        _ => {
            let status = child.wait().expect("wait for it");
            let expected = (signal != Signal::KILL).then_some(128 + signal.as_raw());
            assert_eq!(status.code(), expected, "{signal:?}: {status}");
            wait_until("that it is let go", || is_let_go(target));
            true
        }
    }
}

#[test]
fn no_signal_at_any_moment_leaves_the_process_standing() {
    const SIGNALS: [Signal; 12] = [
        Signal::TSTP,
        Signal::TTIN,
        Signal::PIPE,
        Signal::STOP,
        Signal::TTOU,
        Signal::TERM,
        Signal::TSTP,
        Signal::INT,
        Signal::STOP,
        Signal::HUP,
        Signal::TSTP,
        Signal::KILL,
    ];
    let seed = seed("no_signal");
    let moments: u64 = from_environment("PAGETIDE_SIGNALS", 48);
    let (mut target, mut store) = (Target::start("worker", ["2"]), TestStore::new());
    let mut child = schedule(&store, &target);
    for moment in 0..moments {
        std::thread::sleep(Duration::from_micros(draw(seed, moment, 60_000)));
        let signal = SIGNALS[moment as usize % SIGNALS.len()];
        if send(&mut child, &target, signal) {
            // It checks its own work and ends if anything is wrong with it.
            target.ask("progress");
            if store.log().len() > 100 {
                (target, store) = (Target::start("worker", ["2"]), TestStore::new());
            }
            child = schedule(&store, &target);
        }
    }
    assert!(send(&mut child, &target, Signal::TERM));
    target.ask("progress");
    store.assert_sound();
}
