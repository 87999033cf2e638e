//! Prevents: a thread that goes on with other registers than its own, and a roll-back of registers
//! that does not take the thread to where it was.

use crate::harness::{Target, stop_call_resume, wait_until};
use pagetide_process::{ThreadId, ThreadStateError};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

#[test]
fn vector_registers_are_unchanged_by_stops_and_calls() {
    let mut target = Target::start("vectors", &[]);
    for _ in 0..200 {
        stop_call_resume(&target);
    }
    target.tell("done\n");
    assert_eq!(target.line(), "same");
}

#[test]
fn vector_registers_are_read_and_set_back() {
    let mut target = Target::start("vectors", &[]);
    let mut stopped = target.stop();
    let states = stopped.thread_states().unwrap();
    let mut changed = states.clone();
    for state in &mut changed {
        // XMM0 to XMM15 of the legacy part.
        state.xstate[160..416].fill(0xa5);
        state.registers.r12 = 0;
    }
    stopped.set_thread_states(&changed).unwrap();
    assert_eq!(
        stopped.thread_states().unwrap()[0].xstate[160..416],
        [0xa5; 256]
    );
    stopped.set_thread_states(&states).unwrap();
    assert_eq!(stopped.thread_states().unwrap(), states);
    stopped.resume().unwrap();
    target.tell("done\n");
    assert_eq!(target.line(), "same");
}

#[test]
fn a_sleeping_thread_set_back_sleeps_again() {
    for kind in ["nanosleep", "poll", "futex_timeout", "clock_nanosleep"] {
        let mut target = Target::start("calls", &[kind]);
        sleep(Duration::from_millis(50));
        let stopped = target.stop();
        let states = stopped.thread_states().unwrap();
        // Where the time that is left may stand.
        let path = format!("/proc/{}/mem", target.pid());
        let memory = OpenOptions::new().read(true).write(true).open(path);
        let memory = memory.unwrap();
        let below_stack = states[0].registers.rsp - 512;
        let mut bytes = [0; 512];
        memory.read_exact_at(&mut bytes, below_stack).unwrap();
        stopped.resume().unwrap();
        let between = Instant::now();
        sleep(Duration::from_millis(400));
        let between_ms = u64::try_from(between.elapsed().as_millis()).unwrap();
        let mut stopped = target.stop();
        stopped.set_thread_states(&states).unwrap();
        memory.write_all_at(&bytes, below_stack).unwrap();
        stopped.resume().unwrap();
        let line = target.line();
        let words: Vec<&str> = line.split(' ').collect();
        let expected = if kind == "futex_timeout" {
            ["-1", "110"]
        } else {
            ["0", "0"]
        };
        assert_eq!(words[..2], expected, "{kind}: {line}");
        // What had passed between the two stops has not.
        let least_ms = 699 + between_ms;
        assert!(
            words[2].parse::<u64>().unwrap() >= least_ms,
            "{kind}: {line}, {least_ms} at least"
        );
    }
}

#[test]
fn a_thread_set_back_from_a_computation_into_a_sleep_restarts_it() {
    let mut target = Target::start("alone", &[]);
    let before = loop {
        let stopped = target.stop();
        let states = stopped.thread_states().unwrap();
        // In clock_nanosleep, and about to be told to continue.
        if states[0].registers.orig_rax == 230 {
            break states;
        }
    };
    // The stack of that moment is gone, so only the registers of the same frame can be set back:
    // wait until it is in the same place of its loop again.
    loop {
        let mut stopped = target.stop();
        let now = stopped.thread_states().unwrap();
        if now[0].registers.rsp == before[0].registers.rsp
            && now[0].registers.rip == before[0].registers.rip
        {
            let mut back = before.clone();
            // Its loop counter lives in registers and memory; only the call itself is set back.
            back[0].registers = now[0].registers;
            back[0].registers.rax = before[0].registers.rax;
            back[0].registers.orig_rax = before[0].registers.orig_rax;
            back[0].xstate.clone_from(&now[0].xstate);
            stopped.set_thread_states(&back).unwrap();
            break;
        }
    }
    target.lines_so_far();
    let line = target.line();
    assert!(line.parse::<u64>().is_ok(), "{line}");
}

#[test]
fn a_state_of_a_thread_that_is_not_there_changes_nothing() {
    let target = Target::start("count", &["1"]);
    let mut stopped = target.stop();
    let states = stopped.thread_states().unwrap();
    let mut wrong = states.clone();
    wrong[0].registers.rip = 1;
    wrong[1].thread = ThreadId::new(1);
    let error = stopped.set_thread_states(&wrong).unwrap_err();
    assert!(
        matches!(error, ThreadStateError::NoSuchThread { .. }),
        "{error}"
    );
    // A register set the kernel refuses, behind one that it takes.
    let mut wrong = states.clone();
    wrong[0].registers.r15 ^= 1;
    wrong[1].registers.fs_base = u64::MAX;
    let error = stopped.set_thread_states(&wrong).unwrap_err();
    assert!(matches!(error, ThreadStateError::Kernel { .. }), "{error}");
    assert_eq!(stopped.thread_states().unwrap(), states);
}

#[test]
fn a_computing_thread_set_back_goes_on_from_there() {
    let mut target = Target::start("count", &["2"]);
    let mut stopped = target.stop();
    let states = stopped.thread_states().unwrap();
    assert_eq!(states.len(), 3);
    assert!(states.iter().all(|state| state.comm == "count"));
    stopped.set_thread_states(&states).unwrap();
    stopped.resume().unwrap();
    let before = target.ask_number();
    wait_until("counting", || target.ask_number() > before);
}
