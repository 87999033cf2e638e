//! Prevents: a target that crashes, hangs or computes wrong because *we* were killed, at whatever
//! moment of a stop or a remote call.

use crate::harness::Target;
use nix::libc;
use pagetide_process::{ProcessIdentity, StopOptions, StoppedProcess};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const TARGET: &str = "PAGETIDE_TEST_TARGET";

/// Stops the target and runs calls in it, again and again, for ever.
fn disturb(pid: i32, forever: bool) {
    let identity = ProcessIdentity::of(pid).unwrap();
    let mut rounds = 0;
    while forever || rounds < 100 {
        // The one before us may not have been let go entirely.
        let Ok(mut stopped) = StoppedProcess::stop(&identity, StopOptions::default()) else {
            continue;
        };
        let mut calls = stopped.remote_calls().unwrap();
        assert!(calls.survives_our_death());
        for _ in 0..4 {
            calls
                .with_bytes(b"some bytes\0", |calls, _| {
                    calls.call(libc::SYS_getpid, [0; 6])
                })
                .unwrap();
        }
        calls.finish().unwrap();
        rounds += 1;
    }
}

/// As a test of its own: a hundred rounds do no harm. With the variable set: the tracer that the
/// other tests kill.
#[test]
fn the_tracer() {
    if let Ok(pid) = std::env::var(TARGET) {
        disturb(pid.parse().unwrap(), true);
    }
    let mut target = Target::start("alone", &[]);
    disturb(target.pid(), false);
    target.lines_so_far();
    let line = target.line();
    assert!(line.parse::<u64>().is_ok(), "{line}");
}

fn kill_tracers_of(target: &mut Target, count: u32) {
    let pid = target.pid();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..count {
        let mut tracer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tracer_death::the_tracer"])
            .env(TARGET, pid.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // It has to be in its loop: wait until it was seen tracing, then a random while.
        let status = format!("/proc/{pid}/status");
        let begin = Instant::now();
        while std::fs::read_to_string(&status)
            .unwrap_or_default()
            .contains("TracerPid:\t0\n")
        {
            assert!(begin.elapsed() < Duration::from_secs(30), "no tracer comes");
            assert!(!target.has_ended(), "{:?}", target.lines_so_far());
        }
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_micros(random % 3000) {
            std::hint::spin_loop();
        }
        tracer.kill().unwrap();
        tracer.wait().unwrap();
        assert!(!target.has_ended(), "{:?}", target.lines_so_far());
    }
    sleep(Duration::from_millis(50));
    assert_ne!(target.state(), 't');
}

#[test]
fn a_single_thread_survives_the_death_of_its_tracer_at_any_moment() {
    let mut target = Target::start("alone", &[]);
    kill_tracers_of(&mut target, 300);
    target.lines_so_far();
    let line = target.line();
    assert!(line.parse::<u64>().is_ok(), "{line}");
}

#[test]
fn many_threads_survive_the_death_of_their_tracer_at_any_moment() {
    let mut target = Target::start("count", &["6"]);
    kill_tracers_of(&mut target, 150);
    let before = target.ask_number();
    let begin = Instant::now();
    while target.ask_number() <= before {
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
}
