//! Prevents that a trace of the steps is not JSON, lacks a step, or tells less time than a process stood still.

use crate::bad::fails;
use pagetide_tests::{Scratch, Target, TestStore, pagetide};
use serde_json::Value;
use std::collections::BTreeMap;

/// Begin and end of each span by its name, in microseconds and in the order of their ends.
fn spans(events: &[Value]) -> Vec<(String, f64, f64)> {
    let mut open: BTreeMap<i64, Vec<(String, f64)>> = BTreeMap::new();
    let mut spans = Vec::new();
    for event in events {
        let thread = open.entry(event["tid"].as_i64().expect("a thread"));
        let thread = thread.or_default();
        let name = event["name"].as_str().unwrap_or_default().to_owned();
        let at = || event["ts"].as_f64().expect("a moment");
        match event["ph"].as_str() {
            Some("B") => thread.push((name, at())),
            Some("E") => {
                let (begun, since) = thread.pop().expect("what ends has begun");
                assert_eq!(begun, name, "what begins last ends first");
                spans.push((name, since, at()));
            }
            _ => {}
        }
    }
    let still_open: Vec<_> = open.into_values().flatten().collect();
    assert!(still_open.is_empty(), "without an end: {still_open:?}");
    spans
}

#[test]
fn each_step_of_each_snapshot_is_in_the_trace() {
    const STEPS: [&str; 14] = [
        "snapshot",
        "pre-copy",
        "prepare",
        "stop",
        "stop threads",
        "capture",
        "what a restore needs",
        "open files",
        "kernel state",
        "layout and written pages",
        "copy",
        "resume",
        "settle",
        "commit",
    ];
    let store = TestStore::new();
    let target = Target::start("bad_states", ["plain"]);
    let file = store.scratch().join("trace.json");
    let file_name = file.to_str().expect("a plain name");
    let words = ["--every", "50ms", "--count", "3", "--trace", file_name];
    let reports = pagetide(store.checkpoint_words(target.pid(), &words)).done();
    let reports = reports.lines();
    assert_eq!(reports.len(), 3);
    let text = std::fs::read_to_string(&file).expect("read the trace");
    let events: Vec<Value> = serde_json::from_str(&text).expect("the trace is JSON");
    let spans = spans(&events);
    for step in STEPS {
        let count = spans.iter().filter(|(name, ..)| name == step).count();
        assert!(count >= 3, "{step}: {count}");
    }
    let time_of = |names: &[&str]| -> f64 {
        let of = spans.iter().filter(|(name, ..)| names.contains(&&**name));
        of.map(|(_, begin, end)| end - begin).sum()
    };
    let stood: u64 = reports
        .iter()
        .map(|line| line["stop_us"].as_u64().expect("a stop"))
        .sum();
    let traced = time_of(&["begin tracking", "stop", "capture"]);
    // Each report is cut to whole microseconds.
    assert!(traced + 3.0 >= stood as f64, "{traced} and {stood}");
    assert!(
        traced <= time_of(&["snapshot"]),
        "a part is no longer than the whole"
    );
}

#[test]
fn a_trace_that_cannot_be_written_is_said_before_anything_is_done() {
    let scratch = Scratch::new();
    let target = Target::start("bad_states", ["plain"]);
    let (pid, store) = (target.pid().to_string(), scratch.join("store"));
    let trace = scratch.join("none/trace.json");
    let words = [
        &pid,
        "--store",
        store.to_str().expect("a plain name"),
        "--trace",
    ];
    let trace = trace.to_str().expect("a plain name");
    let outcome = pagetide([&["checkpoint"], &words[..], &[trace]].concat());
    fails(
        &outcome,
        1,
        &["cannot write the trace to", trace, "No such file"],
    );
    assert!(!store.exists(), "no store was made");
}
