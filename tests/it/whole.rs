//! Prevents that the comparison by which restores are judged passes over a change: it must find nothing between two readings of
//! a process that stands still, and must name each thing that a process changes of itself.

use pagetide_tests::{Frozen, Scratch, Target, Whole, thread_states};
use std::process::{Command, Stdio};

/// What the process does, and what must be named. An empty name: nothing beside memory and registers.
const CHANGES: [(&str, &str); 54] = [
    ("nothing", ""),
    ("umask", "Umask"),
    ("directory", "cwd"),
    ("mask", "mask"),
    ("queue", "process queued 0"),
    ("queue for a thread", "queued 0"),
    ("handler", "SigCgt"),
    ("ignore", "SigIgn"),
    ("position", "pos"),
    ("nonblocking", "flags"),
    ("close on exec", "flags"),
    ("owner", "owner"),
    ("lock", "list"),
    ("duplicate", "open file of"),
    ("own open file", "object of"),
    ("same open file", "fd 98 open file of"),
    ("deleted", "content"),
    ("pipe", "bytes queued"),
    ("pipe size", "pipe size"),
    ("socket", "bytes queued"),
    ("socket option", "receive buffer"),
    ("epoll", "list"),
    ("event", "eventfd-count"),
    ("timerfd", "armed"),
    ("seal", "seals"),
    ("timer", "timers"),
    ("limit", "limits"),
    ("nice", "nice"),
    ("batch", "policy"),
    ("affinity", "affinity"),
    ("I/O priority", "I/O priority"),
    ("name", "comm"),
    ("slack", "timer slack"),
    ("no new privileges", "NoNewPrivs"),
    ("capability", "CapBnd"),
    ("no huge pages", "THP_enabled"),
    ("groups", "Groups"),
    ("group", "Gid"),
    ("process group", "pgrp"),
    ("personality", "personality"),
    ("dump filter", "coredump_filter"),
    ("memory killer", "oom_score_adj"),
    ("words", "environ"),
    ("memory", "memory"),
    ("shared memory", "memory"),
    ("map", "mapping"),
    ("unmap", "mapping"),
    ("protect", "mapping"),
    ("advice", "mapping"),
    ("dump advice", "mapping"),
    ("locked", "VmLck"),
    ("break", "mapping"),
    ("rounding", "floating point"),
    ("closed", "fd"),
];

/// As before; each of these makes what was compared differ in more than one place or keeps others from being made.
const LAST_CHANGES: [(&str, &str); 4] = [
    ("thread", "Threads"),
    ("child", "ended child"),
    ("undumpable", "owner"),
    ("root", "root"),
];

fn start(scratch: &Scratch) -> Target {
    let mut command = Command::new(pagetide_tests::compiled("changes"));
    command.arg(scratch.path()).env("A_WORD", "one");
    // What the tests write themselves, if that goes to a file, would move it on.
    Target::start_by(command.stderr(Stdio::null()))
}

fn read(target: &Target) -> Whole {
    Whole::of(&[&Frozen::freeze_alone(target.pid())])
}

#[test]
fn a_process_that_stands_still_equals_itself() {
    let scratch = Scratch::new();
    let target = start(&scratch);
    let frozen = target.freeze();
    let first = Whole::of(&[&frozen]);
    assert!(first.fact_count() > 300, "{}", first.fact_count());
    assert!(
        first
            .image(target.pid())
            .is_some_and(|image| image.page_count() > 20)
    );
    for round in 0..5 {
        let difference = first.difference(&Whole::of(&[&frozen]));
        assert!(difference.is_empty(), "round {round}: {difference:#?}");
        frozen.assert_still_stopped();
    }
}

#[test]
fn every_change_is_named() {
    let scratch = Scratch::new();
    let mut target = start(&scratch);
    target.ask("nothing");
    while thread_states(target.pid())
        .iter()
        .any(|&state| state != 'S')
    {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let mut before = read(&target);
    // Its threads may still be on their way to where they wait.
    for _ in 0..100 {
        let again = read(&target);
        let settled = before.difference(&again).is_empty();
        before = again;
        if settled {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    for (change, name) in CHANGES.into_iter().chain(LAST_CHANGES) {
        assert_eq!(target.ask(change), "done", "{change}");
        let after = read(&target);
        let difference = before.difference(&after);
        // To read a command and to answer it leaves traces there, too.
        let traces = |line: &&String| {
            [" register ", " memory: ", " vectors: "]
                .iter()
                .any(|trace| line.contains(trace))
        };
        let (traces, told): (Vec<_>, Vec<_>) = difference.iter().partition(traces);
        match name {
            "" => assert!(told.is_empty(), "{change}: {told:#?}"),
            "memory" => assert!(
                traces.iter().any(|line| line.contains("memory: ")),
                "{change}: {difference:#?}"
            ),
            _ => {
                let named = |line: &&String| {
                    line.split_once(": was ")
                        .is_some_and(|(subject, _)| subject.contains(name))
                };
                assert!(
                    told.iter().any(named),
                    "{change} is not {name:?}: {told:#?}"
                );
            }
        }
        before = after;
    }
}
