//! Prevents that a change is missed that leaves no trace where a tracker looks first: each trap of
//! `docs/KERNEL.md` that a user can meet, on a real process, with the snapshot compared byte for byte.

use pagetide_tests::{
    Frozen, Image, Scratch, Target, TestStore, background, list, number, pagetide_by,
    pagetide_path, skipped, text,
};
use rustix::process::Signal;
use serde_json::Value;
use std::process::Command;

/// The target and its store after a full snapshot and a first delta.
struct Trap {
    name: &'static str,
    target: Target,
    store: TestStore,
    last: u64,
    _files: Scratch,
}

impl Trap {
    fn set(name: &'static str) -> Self {
        let files = Scratch::new();
        let target = Target::start("traps", [files.path()]);
        let mut trap = Self {
            name,
            target,
            store: TestStore::new(),
            last: 0,
            _files: files,
        };
        trap.snapshot("full", false);
        trap.snapshot("delta", true);
        trap
    }

    /// A snapshot of this kind that equals the process, which is read before or after it.
    #[track_caller]
    fn snapshot(&mut self, kind: &str, before: bool) -> (Value, Image) {
        let frozen = self.target.freeze();
        let (report, truth) = self.store.checkpoint_exactly(&frozen, &[], before);
        assert_eq!(text(&report, "kind"), kind, "{}: {report}", self.name);
        self.last = truth.digest();
        (report, truth)
    }

    /// Does something that changes memory; the next delta must hold it. False if it cannot be done here.
    #[track_caller]
    fn change(&mut self, command: &str) -> bool {
        for before in [false, true] {
            let answer = self.target.ask(command);
            if answer != "done" {
                skipped(self.name, &format!("{command}: {answer}"));
                return false;
            }
            let last = self.last;
            self.snapshot("delta", before);
            assert_ne!(self.last, last, "{command} has changed nothing");
        }
        true
    }

    /// As [`Trap::change`], for something that can be done only once.
    #[track_caller]
    fn change_once(&mut self, command: &str, before: bool) -> Option<Value> {
        let answer = self.target.ask(command);
        if answer != "done" {
            skipped(self.name, &format!("{command}: {answer}"));
            return None;
        }
        let last = self.last;
        let (report, _) = self.snapshot("delta", before);
        assert_ne!(self.last, last, "{command} has changed nothing");
        Some(report)
    }
}

#[test]
fn t03_mapped_again_at_the_same_address() {
    Trap::set("t03").change("map_again");
}

#[test]
fn t04_moved_by_mremap() {
    Trap::set("t04").change("move");
}

#[test]
fn t07_hole_punch() {
    for before in [false, true] {
        Trap::set("t07").change_once("punch", before);
    }
}

#[test]
fn t08_foreign_writer() {
    let mut trap = Trap::set("t08");
    trap.change("pwrite");
    trap.change("child_stores");
    trap.change_once("truncate", true);
    trap.change_once("extend", false);
    trap.change("pwrite");
}

#[test]
fn t09_io_uring_fixed_buffer() {
    let mut trap = Trap::set("t09");
    // Registering writes nothing, but the rings are new mappings.
    if trap.change_once("ring", false).is_some() {
        trap.change("ring_read");
        trap.change("write");
        trap.change("ring_read");
    }
}

#[test]
fn t10_discarded_pages_read_as_zero() {
    Trap::set("t10").change("discard_now");
}

#[test]
fn t13_pages_that_may_be_freed_later() {
    let mut trap = Trap::set("t13");
    assert_eq!(trap.target.ask("free"), "done");
    trap.snapshot("delta", false);
    trap.snapshot("delta", true);
    trap.change("write");
}

#[test]
fn t14_guard_pages_hold_nothing_and_stay_guarded() {
    let mut trap = Trap::set("t14");
    if trap.change_once("guard", false).is_some() {
        let frozen = trap.target.freeze();
        let truth = Image::of_process(&frozen);
        assert_eq!(truth.unreadable.len(), 3, "{:x?}", truth.unreadable);
    }
}

#[test]
fn t32_private_mappings_of_files_are_never_registered() {
    let mut trap = Trap::set("t32");
    let mut trackers = 0;
    for round in 0..3 {
        // With copies of its own in such a mapping, new ones each time.
        let report = trap.change_once("private_copies", round % 2 == 0);
        let report = report.expect("stores into a mapping can be done anywhere");
        trackers += usize::from(text(&report, "backend") == "wp-async");
        let registered = registered_mappings(trap.target.pid());
        let of_files = registered.iter().filter(|(_, is_of_file)| *is_of_file);
        assert_eq!(of_files.count(), 0, "{registered:?}");
        // The question can be answered: other memory is.
        assert!(!registered.is_empty() || trackers == 0, "{registered:?}");
    }
    if trackers == 0 {
        skipped("t32", "no mapping is ever registered by this backend");
    }
}

/// The private mappings that a userfaultfd write-protects, as the kernel shows them, and whether each is of a file.
fn registered_mappings(pid: i32) -> Vec<(String, bool)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("smaps");
    let mut mapping = "";
    let mut registered = Vec::new();
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let fields: Vec<&str> = mapping.split_whitespace().collect();
            if flags.split_whitespace().any(|flag| flag == "uw") && fields[1].ends_with('p') {
                registered.push((mapping.to_owned(), fields[4] != "0"));
            }
        } else if !line
            .split(' ')
            .next()
            .is_some_and(|word| word.ends_with(':'))
        {
            mapping = line;
        }
    }
    registered
}

#[test]
fn a_poisoned_page_does_not_keep_the_rest_from_being_stored() {
    let name = "a_poisoned_page_does_not_keep_the_rest_from_being_stored";
    let mut trap = Trap::set(name);
    if trap.change_once("poison", false).is_some() {
        let frozen = trap.target.freeze();
        let truth = Image::of_process(&frozen);
        assert_eq!(truth.unreadable.len(), 1, "{:x?}", truth.unreadable);
        drop(frozen);
        trap.change("write");
        trap.snapshot("delta", false);
    }
}

#[test]
fn t24_foreign_userfaultfd() {
    let mut trap = Trap::set("t24");
    let files = Scratch::new();
    trap.target = Target::start("traps", [files.path()]);
    trap.store = TestStore::new();
    let answer = trap.target.ask("userfaultfd");
    if answer != "done" {
        return skipped("t24", &answer);
    }
    let (report, truth) = trap.snapshot("full", false);
    // What it registers after us it would be refused, so nothing of it is tracked.
    let refused = list(&report, "not_tracked");
    assert_eq!(refused.len(), 1, "{report}");
    assert_eq!(text(&refused[0], "because"), "own-userfaultfd");
    assert!(truth.page_count() > 0);
    trap.change("write");
    let report = trap.change_once("write", true).expect("it can write");
    assert_eq!(list(&report, "not_tracked").len(), 1, "{report}");
}

#[test]
fn t27_dropped_private_copy() {
    let mut trap = Trap::set("t27");
    for before in [false, true] {
        trap.change_once("copy", before);
        trap.change_once("drop_copy", !before);
        trap.change("write");
    }
}

#[test]
fn t05_fork_child_is_checkpointed_on_its_own() {
    let mut trap = Trap::set("t05");
    let answer = trap.target.ask("fork");
    let child: i32 = answer
        .strip_prefix("child ")
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("no child: {answer}"));
    let parent = trap.target.pid();
    // The child inherits all descriptors that pagetide left in its parent. They are not its own.
    let own = TestStore::new();
    {
        let frozen = Frozen::freeze_alone(child);
        let (report, _) = own.checkpoint_exactly(&frozen, &[], false);
        assert_eq!(text(&report, "kind"), "full", "{report}");
        let (report, _) = own.checkpoint_exactly(&frozen, &[], true);
        assert_eq!(text(&report, "kind"), "delta", "{report}");
    }
    for before in [true, false] {
        assert_eq!(trap.target.ask("write"), "done");
        let frozen = Frozen::freeze_alone(parent);
        let (report, _) = trap.store.checkpoint_exactly(&frozen, &[], before);
        assert_eq!(text(&report, "kind"), "delta", "{report}");
    }
    own.assert_sound();
    trap.store.assert_sound();
}

#[test]
fn t06_exec_between_snapshots() {
    let mut trap = Trap::set("t06");
    trap.target.tell("exec");
    assert_eq!(trap.target.line(), "ready");
    trap.snapshot("full", false);
    trap.change("write");
}

#[test]
fn t06_exec_under_a_schedule() {
    let files = Scratch::new();
    let store = TestStore::new();
    let mut target = Target::start("traps", [files.path()]);
    let mut checkpoints = background(store.checkpoint_words(target.pid(), &["--every", "30ms"]));
    checkpoints.next_id();
    let mut before_exec = 0;
    for round in 0..3 {
        assert_eq!(target.ask("write"), "done");
        let frozen = target.freeze();
        let id = store.taken_from_now_on(&mut checkpoints);
        store.assert_equals(
            id,
            &checkpoints.image_of(&frozen),
            &format!("round {round}"),
        );
        drop(frozen);
        before_exec = id;
        target.tell("exec");
        assert_eq!(target.line(), "ready");
    }
    let frozen = target.freeze();
    let id = store.taken_from_now_on(&mut checkpoints);
    store.assert_equals(id, &checkpoints.image_of(&frozen), "after the last exec");
    drop(frozen);
    checkpoints.signal(Signal::INT);
    checkpoints.wait().exits_with(130);
    let log = store.log();
    let full: Vec<u64> = log
        .iter()
        .filter(|line| text(line, "kind") == "full")
        .map(|line| number(line, "id"))
        .collect();
    assert_eq!(full.len(), 4, "one for each program: {full:?}");
    assert!(full[3] > before_exec, "{full:?}");
}

/// A checkpoint in a shell that has limited the size of files.
fn checkpoint_with_small_files(
    store: &TestStore,
    pid: i32,
    shell: &str,
) -> pagetide_tests::Outcome {
    let script = format!("{shell}; exec \"$0\" \"$@\"");
    pagetide_by(
        Command::new("sh")
            .args(["-c", &script])
            .arg(pagetide_path())
            .args(store.checkpoint_words(pid, &[])),
    )
}

#[test]
fn t15_crash_between_harvest_and_commit() {
    const SIGXFSZ: i32 = 25;
    let mut target = Target::start("writer", ["8"]);
    let store = TestStore::new();
    let frozen = target.freeze();
    store.checkpoint_exactly(&frozen, &[], false);
    drop(frozen);
    for round in 0..3 {
        target.ask(&format!("noise {} 1000 {round}", round * 300));
        // The first write past the limit is the end of it, after the harvest and before the commit.
        let killed = checkpoint_with_small_files(&store, target.pid(), "ulimit -f 64");
        assert_eq!(killed.signal, Some(SIGXFSZ), "{killed:#?}");
        assert_eq!(
            store.log().len() as u64,
            round + 1,
            "half a snapshot is listed"
        );
        let frozen = target.freeze();
        store.checkpoint_exactly(&frozen, &[], round % 2 == 0);
        drop(frozen);
        store.assert_sound();
    }
}

#[test]
fn t15_failure_between_harvest_and_commit() {
    let mut target = Target::start("writer", ["8"]);
    let store = TestStore::new();
    let frozen = target.freeze();
    store.checkpoint_exactly(&frozen, &[], false);
    drop(frozen);
    for round in 0..3 {
        target.ask(&format!("noise {} 1000 {round}", round * 300));
        let shell = "trap '' XFSZ; ulimit -f 64";
        let failed = checkpoint_with_small_files(&store, target.pid(), shell).exits_with(1);
        assert!(failed.stdout.is_empty(), "{failed:#?}");
        let frozen = target.freeze();
        let (report, _) = store.checkpoint_exactly(&frozen, &[], round % 2 == 0);
        assert!(number(&report, "stored_pages") >= 1000, "{report}");
        // T58: soft-dirty bits cannot be given back, and who owed the pages has ended.
        if text(&report, "backend") == "soft-dirty" {
            assert_eq!(text(&report, "kind"), "full", "{report}");
        } else {
            assert_eq!(
                text(&report, "kind"),
                "delta",
                "what was given back is enough: {report}"
            );
            assert!(number(&report, "stored_pages") < 1200, "{report}");
        }
        drop(frozen);
        store.assert_sound();
    }
}
