//! Prevents that memory which nobody ever touched is allocated by who looks at it: holes of files in memory and of shared
//! memory, memory of guests, arenas of BPF and huge pages must be holes after a snapshot, and be in it as zeros.

use pagetide_tests::{
    Frozen, Image, Machine, Target, TestStore, compiled, list, number, pagetide, resident_kib,
    skipped, text,
};
use std::process::Command;

/// What a snapshot may add to the memory of the program, and to that of what it maps. Each kind has 64 MiB of holes.
const MORE_KIB: u64 = 1024;

const KINDS: [&str; 8] = [
    "memfd-shared",
    "memfd-private",
    "tmpfs-private",
    "anonymous-shared",
    "anonymous-private",
    "system-v",
    "guest",
    "arena",
];
const HUGE_KINDS: [&str; 4] = [
    "huge-file-shared",
    "huge-file-private",
    "huge-shared",
    "huge-private",
];

/// The program with those of `kinds` that this machine has.
fn start(test: &str, kinds: &[&str]) -> Target {
    let mut target = Target::spawn(Command::new(compiled("sparse")).args(kinds));
    let mut found = 0;
    loop {
        let line = target.line();
        if line == "ready" {
            break;
        }
        match line.split_once(" - ") {
            Some((kind, reason)) => skipped(test, &format!("{kind}: {reason}")),
            None => found += 1,
        }
    }
    assert!(found * 2 > kinds.len(), "{found} of {kinds:?}");
    target
}

/// What the program has, what it maps has, and what its guest has, in KiB.
fn sizes(target: &mut Target) -> [u64; 3] {
    let guest: u64 = target.ask("resident").parse().expect("a number of pages");
    let (own, behind) = resident_kib(target.pid());
    [own, behind, guest * 4]
}

#[track_caller]
fn assert_sparse(before: [u64; 3], after: [u64; 3], what: &str) {
    for (before, after) in before.into_iter().zip(after) {
        assert!(
            after <= before + MORE_KIB,
            "{what}: {before} KiB became {after}"
        );
    }
}

fn stays_sparse(test: &str, kinds: &[&str], more: &[&str]) {
    let mut target = start(test, kinds);
    let store = TestStore::new();
    let before = sizes(&mut target);
    let full = store.checkpoint(target.pid(), more);
    assert_sparse(before, sizes(&mut target), "a full snapshot");

    assert_eq!(target.ask("touch"), "done");
    let touched = sizes(&mut target);
    // Nothing is compared before the delta: that reads everything.
    let frozen: Frozen = target.freeze();
    let delta = store.checkpoint(target.pid(), more);
    assert_eq!(text(&delta, "kind"), "delta", "{delta}");
    drop(frozen);
    assert_sparse(touched, sizes(&mut target), "a delta");

    // What a BPF program has put there would not be seen, and that is said.
    let named = list(&delta, "not_captured").iter();
    let named = named.filter(|missing| text(missing, "name").contains("bpf-map"));
    let has_arena = std::fs::read_to_string(target.proc("maps")).expect("read its maps");
    let has_arena = has_arena.contains("bpf-map");
    assert_eq!(named.count(), usize::from(has_arena), "{delta}");

    if !has_arena {
        let id = number(&full, "id").to_string();
        let pid = target.pid_text();
        pagetide(["rollback", &pid, &store.text(), "--at", &id]).done();
        assert_sparse(touched, sizes(&mut target), "a rollback");
        assert_eq!(target.ask("touch"), "done");
    }
    let frozen = target.freeze();
    let last = store.checkpoint(target.pid(), more);
    let truth = Image::of_process(&frozen);
    store.assert_equals(number(&last, "id"), &truth, test);
    drop(frozen);
    assert_eq!(target.ask("check"), "right");
}

#[test]
fn t37_what_was_never_touched_is_not_allocated() {
    let test = "t37_what_was_never_touched_is_not_allocated";
    stays_sparse(test, &KINDS, &[]);
}

#[test]
fn t37_what_was_never_touched_is_not_allocated_by_comparison() {
    let test = "t37_what_was_never_touched_is_not_allocated_by_comparison";
    stays_sparse(test, &KINDS, &["--backend", "rehash"]);
}

/// An arena is never put back, as what is behind it belongs to the kernel; all others are.
#[test]
fn t37_a_rollback_allocates_no_holes() {
    let test = "t37_a_rollback_allocates_no_holes";
    let kinds: Vec<&str> = KINDS
        .iter()
        .copied()
        .filter(|kind| !matches!(*kind, "arena" | "guest"))
        .collect();
    stays_sparse(test, &kinds, &[]);
}

#[test]
fn t37_huge_pages_that_were_never_touched_stay_in_the_pool() {
    let test = "t37_huge_pages_that_were_never_touched_stay_in_the_pool";
    let mut machine = Machine::lock();
    if let Err(reason) = machine.huge_pages(HUGE_KINDS.len() * 32 + 8) {
        return skipped(test, &reason);
    }
    for more in [&[][..], &["--backend", "rehash"]] {
        stays_sparse(test, &HUGE_KINDS, more);
    }
}
