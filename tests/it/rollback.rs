//! Prevents that a process is put back to something it never was: memory, layout and registers after a
//! rollback are those of the snapshot, the process goes on from there, and what cannot be put back is
//! refused before anything is changed.

use pagetide_tests::{
    Frozen, Image, Scratch, Target, TestStore, compiled, number, pagetide, skipped, text,
};
use serde_json::Value;
use std::process::Command;

fn rollback(frozen: &Frozen, store: &TestStore, id: u64) -> Value {
    let words = ["rollback", &frozen.pid().to_string(), &store.text()];
    let at = ["--at", &id.to_string(), "--json"];
    pagetide(words.into_iter().chain(at)).done().json()
}

/// Threads that check their own work in memory and registers, and mappings that can be changed. No
/// pipes between the threads: what is in a pipe does not go back. And no restartable sequences: a thread
/// that makes system calls for us passes through user mode, and the kernel would then tell it in memory
/// which processor it is on.
fn worker(files: &Scratch) -> Target {
    let mut command = Command::new(compiled("worker"));
    command.args(["3", "2"]).arg(files.path());
    Target::start_by(command.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0"))
}

#[test]
fn memory_layout_and_registers_go_back() {
    let (files, store) = (Scratch::new(), TestStore::new());
    let mut target = worker(&files);
    let place = target.ask("where");
    let place = u64::from_str_radix(place.trim_start_matches("0x"), 16).expect("an address");
    target.ask("progress");
    let frozen = target.freeze();
    let (report, then) = store.checkpoint_exactly(&frozen, &[], false);
    drop(frozen);
    let id = number(&report, "id");

    for round in 0..3 {
        target.ask("reshape");
        target.ask("progress");
        let later = match round {
            // Written pages are known from tracking, or also from a later snapshot, or not at all.
            1 => Some(number(&store.checkpoint(target.pid(), &[]), "id")),
            2 => {
                pagetide(["detach", &target.pid_text()]).done();
                None
            }
            _ => None,
        };
        target.ask("progress");
        let frozen = target.freeze();
        let before = Image::of_process(&frozen);
        assert!(then.difference(&before).is_some(), "nothing has changed");
        let counter = |image: &Image| u64::from_le_bytes(image.bytes(place, 8).try_into().unwrap());
        assert!(counter(&before) > counter(&then));

        let done = rollback(&frozen, &store, id);
        frozen.assert_still_stopped();
        let now = Image::of_process(&frozen);
        if let Some(difference) = then.difference(&now) {
            panic!("round {round}, after {later:?}: not put back: {difference}; {done}");
        }
        assert_eq!(counter(&now), counter(&then));
        assert!(number(&done, "restored_pages") > 0, "{done}");
        drop(frozen);

        // It goes on from there: its threads would notice memory and registers of different times.
        for _ in 0..5 {
            target.ask("progress");
        }
        assert!(target.is_alive());
        // What is written from now on is not lost either.
        for before in [false, true] {
            let frozen = target.freeze();
            store.checkpoint_exactly(&frozen, &[], before);
            drop(frozen);
            target.ask("progress");
        }
    }
    store.assert_sound();
}

#[test]
fn back_and_forth_between_snapshots() {
    let store = TestStore::new();
    let mut target = Target::start("writer", ["8"]);
    let mut truths = Vec::new();
    for round in 0..4 {
        target.ask(&format!("write {} 200 {}", round * 150, round + 1));
        let frozen = target.freeze();
        let (report, truth) = store.checkpoint_exactly(&frozen, &[], false);
        truths.push((number(&report, "id"), truth));
    }
    for at in [0, 3, 1, 2, 0] {
        let (id, truth) = &truths[at];
        let frozen = target.freeze();
        let done = rollback(&frozen, &store, *id);
        assert_eq!(
            truth.difference(&Image::of_process(&frozen)),
            None,
            "{done}"
        );
        assert!(
            number(&done, "restored_pages") < 1000,
            "far more than differs: {done}"
        );
        store.checkpoint_exactly(&frozen, &[], true);
        drop(frozen);
        assert!(target.ask("write 9 1 9").starts_with("0x"));
    }
}

/// A refusal changes nothing.
#[track_caller]
fn assert_refused(target: &Target, store: &TestStore, id: u64, why: &str) {
    let frozen = target.freeze();
    let before = Image::of_process(&frozen);
    let (pid, at) = (target.pid_text(), id.to_string());
    pagetide(["rollback", &pid, &store.text(), "--at", &at]).refused(why);
    frozen.assert_still_stopped();
    assert_eq!(before.difference(&Image::of_process(&frozen)), None);
}

#[test]
fn refused_when_threads_came_or_went() {
    let (files, store) = (Scratch::new(), TestStore::new());
    let mut target = worker(&files);
    let without = number(&store.checkpoint(target.pid(), &[]), "id");
    target.ask("born");
    let with = number(&store.checkpoint(target.pid(), &[]), "id");
    assert_refused(&target, &store, without, "1 came and 0 went");
    target.ask("died");
    assert_refused(&target, &store, with, "0 came and 1 went");
    let frozen = target.freeze();
    rollback(&frozen, &store, without);
    drop(frozen);
    target.ask("progress");
}

#[test]
fn refused_for_another_process() {
    let (files, store) = (Scratch::new(), TestStore::new());
    let target = worker(&files);
    let id = number(&store.checkpoint(target.pid(), &[]), "id");
    let mut other = worker(&files);
    assert_refused(&other, &store, id, "another process");
    other.ask("progress");
}

#[test]
fn refused_when_a_shared_file_has_changed() {
    let (files, store) = (Scratch::new(), TestStore::new());
    let mut target = worker(&files);
    let id = number(&store.checkpoint(target.pid(), &[]), "id");
    target.ask("share");
    assert_refused(&target, &store, id, "changed since");
    assert!(target.is_alive());
    target.ask("progress");
    let next = store.checkpoint(target.pid(), &[]);
    assert_eq!(text(&next, "kind"), "delta", "{next}");
}

#[test]
fn t88_what_was_sealed_since_is_refused_before_anything_is_changed() {
    let (files, store) = (Scratch::new(), TestStore::new());
    let mut target = worker(&files);
    let as_it_was = number(&store.checkpoint(target.pid(), &[]), "id");
    target.ask("reshape");
    let told = target.ask("seal");
    if told != "sealed" {
        let test = "t88_what_was_sealed_since_is_refused_before_anything_is_changed";
        return skipped(test, &told);
    }
    // A part of it is protected otherwise now.
    assert_refused(&target, &store, as_it_was, "it is sealed (mseal(2))");
    assert!(target.is_alive());
    target.ask("progress");
    // What need not be changed is no obstacle, and stays sealed.
    let sealed = number(&store.checkpoint(target.pid(), &[]), "id");
    target.ask("progress");
    let frozen = target.freeze();
    let done = rollback(&frozen, &store, sealed);
    assert_eq!(done["notes"], serde_json::json!([]), "{done}");
    drop(frozen);
    target.ask("progress");
}
