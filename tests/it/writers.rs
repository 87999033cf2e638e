//! Prevents that a page is missed that somebody writes to who has pinned it or mapped it from elsewhere: hidden rings of
//! io_uring, AF_XDP, a virtual processor, a call of another process. Each row of the table of writers in `docs/KERNEL.md`
//! that can be had on an ordinary machine, on a real process, compared byte for byte.

use pagetide_tests::{Frozen, Target, TestStore, list, pagetide, skipped, text};
use serde_json::Value;

/// Deltas of each way in which memory is written.
const DELTAS: usize = 20;

/// A process to whose memory somebody writes.
struct Written {
    test: &'static str,
    target: Target,
    store: TestStore,
    last: u64,
    /// More words for each checkpoint.
    words: &'static [&'static str],
}

impl Written {
    /// After a full snapshot; `None`, and said, if `way` cannot be had here.
    #[track_caller]
    fn by(test: &'static str, way: &str) -> Option<Self> {
        let target = Target::start("writers", [""; 0]);
        let mut written = Self {
            test,
            target,
            store: TestStore::new(),
            last: 0,
            words: &[],
        };
        written.snapshot(false);
        let answer = written.target.ask(&format!("make {way}"));
        if answer != "done" {
            skipped(test, &format!("{way}: {answer}"));
            return None;
        }
        Some(written)
    }

    /// A snapshot that equals the process, which is read before or after it.
    #[track_caller]
    fn snapshot(&mut self, before: bool) -> Value {
        let frozen = Frozen::freeze_alone(self.target.pid());
        let (report, truth) = self.store.checkpoint_exactly(&frozen, self.words, before);
        self.last = truth.digest();
        report
    }

    #[track_caller]
    fn write(&mut self, before: bool) -> Value {
        assert_eq!(self.target.ask("write"), "done", "{}", self.test);
        let last = self.last;
        let report = self.snapshot(before);
        assert_eq!(text(&report, "kind"), "delta", "{}: {report}", self.test);
        assert_ne!(self.last, last, "{}: nothing was written", self.test);
        report
    }

    /// The kernel writes before each of twenty deltas, which say why they compare all memory; `None` if they do not.
    #[track_caller]
    fn is_in_each_delta(&mut self, because: Option<&str>) {
        self.snapshot(true);
        for before in [false, true].repeat(DELTAS / 2) {
            let report = self.write(before);
            if text(&report, "backend") == "wp-async" {
                let why: Vec<&str> = reasons(&report);
                assert_eq!(why, because.into_iter().collect::<Vec<_>>(), "{report}");
            }
        }
        self.store.assert_sound();
    }
}

/// Why all memory was compared.
fn reasons(report: &Value) -> Vec<&str> {
    let all = list(report, "not_tracked").iter();
    all.filter(|one| text(one, "end") == text(one, "start"))
        .map(|one| text(one, "because"))
        .collect()
}

#[track_caller]
fn written_by(test: &'static str, way: &str, because: Option<&str>) {
    if let Some(mut written) = Written::by(test, way) {
        written.is_in_each_delta(because);
    }
}

#[test]
fn t29_what_is_mapped_of_the_ring_are_not_its_queues() {
    let test = "t29_what_is_mapped_of_the_ring_are_not_its_queues";
    written_by(test, "deceiving_ring", Some("unlisted-ring"));
}

/// A ring is closed before the next snapshot, and has written before that.
#[track_caller]
fn written_by_one_that_has_gone(test: &'static str, way: &str, because: Option<&str>) {
    let Some(mut written) = Written::by(test, way) else {
        return;
    };
    // What was written beside a ring is copied again with the next snapshot, and with no later one.
    for before in [true, false] {
        written.snapshot(before);
    }
    assert_eq!(written.target.ask("write"), "done");
    assert_eq!(written.target.ask("close"), "done");
    let last = written.last;
    let report = written.snapshot(false);
    assert_ne!(written.last, last, "nothing was written");
    if text(&report, "backend") == "wp-async" {
        let why: Vec<&str> = reasons(&report);
        assert_eq!(why, because.into_iter().collect::<Vec<_>>(), "{report}");
        let report = written.snapshot(true);
        assert_eq!(reasons(&report), [""; 0], "{report}");
    }
    written.store.assert_sound();
}

#[test]
fn t29_what_a_ring_wrote_that_has_gone() {
    let test = "t29_what_a_ring_wrote_that_has_gone";
    written_by_one_that_has_gone(test, "own_ring", Some("unlisted-ring-before"));
}

#[test]
fn t09_what_a_ring_read_into_its_buffers_that_has_gone() {
    let test = "t09_what_a_ring_read_into_its_buffers_that_has_gone";
    written_by_one_that_has_gone(test, "fixed_buffers", None);
}

#[test]
fn t60_a_ring_that_only_its_thread_knows() {
    let test = "t60_a_ring_that_only_its_thread_knows";
    let Some(mut written) = Written::by(test, "registered_ring") else {
        return;
    };
    // Threads are asked for rings alone, or together with what a restore needs.
    for words in [&["--memory-only"][..], &[]] {
        written.words = words;
        written.is_in_each_delta(Some("registered-ring"));
    }
    // A restore would lack it, and says so; so do those who look before.
    let pid = written.target.pid();
    let name = format!("io-uring:thread:{pid}:0");
    let names = |report: &Value| -> Vec<String> {
        let blockers = list(report, "blockers").iter();
        blockers.map(|one| text(one, "name").to_owned()).collect()
    };
    let report = written.snapshot(false);
    assert!(names(&report).contains(&name), "{report}");
    let inspected = pagetide(["inspect", &pid.to_string(), "--json"]).exits_with(0);
    assert!(names(&inspected.json()).contains(&name), "{inspected:#?}");
    let store = written.store.text();
    drop(written.target);
    let refused = pagetide(["restore", &store]).exits_with(3);
    assert!(refused.stderr.contains(&name), "{refused:#?}");
}

/// Its ring is as hidden as that of t60, and it makes no system calls for anybody.
#[test]
fn t72_a_ring_of_a_thread_that_cannot_be_asked() {
    let test = "t72_a_ring_of_a_thread_that_cannot_be_asked";
    written_by(test, "filtered_ring", Some("not-asked"));
    written_by(test, "diverted_ring", Some("not-asked"));
}

#[test]
fn t61_a_ring_of_buffers_that_the_kernel_moves_on() {
    let test = "t61_a_ring_of_buffers_that_the_kernel_moves_on";
    written_by(test, "buffer_ring", Some("buffer-ring"));
}

#[test]
fn t61_a_ring_of_buffers_of_a_ring_that_answers_one_thread_alone() {
    let test = "t61_a_ring_of_buffers_of_a_ring_that_answers_one_thread_alone";
    written_by(test, "lone_buffer_ring", Some("buffer-ring"));
}

#[test]
fn t62_a_buffer_behind_an_empty_slot() {
    written_by("t62_a_buffer_behind_an_empty_slot", "sparse_buffers", None);
}

#[test]
fn t68_buffers_that_were_moved_after_they_were_registered() {
    let test = "t68_buffers_that_were_moved_after_they_were_registered";
    written_by(test, "moved_buffers", Some("moved-buffers"));
    written_by(test, "moved_and_replaced_buffers", Some("moved-buffers"));
}

#[test]
fn t62_buffers_that_one_ring_has_from_another() {
    let test = "t62_buffers_that_one_ring_has_from_another";
    written_by(test, "cloned_buffers", None);
}

#[test]
fn t63_buffers_of_a_ring_that_only_a_child_has() {
    let test = "t63_buffers_of_a_ring_that_only_a_child_has";
    written_by(test, "lent_buffers", Some("pinned"));
}

#[test]
fn t63_queues_of_a_ring_that_only_a_child_has() {
    let test = "t63_queues_of_a_ring_that_only_a_child_has";
    written_by(test, "lent_ring", Some("ring-elsewhere"));
}

#[test]
fn t64_packets_of_an_af_xdp_socket() {
    let test = "t64_packets_of_an_af_xdp_socket";
    written_by(test, "packets", Some("packet-buffers"));
}

#[test]
fn t66_registers_of_a_virtual_processor() {
    written_by("t66_registers_of_a_virtual_processor", "processor", None);
}

/// The page is pinned before the one snapshot, and written after it.
#[test]
fn t65_a_call_of_another_process_that_arrives_late() {
    let test = "t65_a_call_of_another_process_that_arrives_late";
    let Some(mut written) = Written::by(test, "late_call") else {
        return;
    };
    // Also if it waits over several of them.
    for deltas in [1, 2].repeat(DELTAS / 5) {
        for before in [true, false].into_iter().take(deltas) {
            written.snapshot(before);
        }
        written.write(deltas == 1);
        assert_eq!(written.target.ask("make late_call_again"), "done");
    }
    written.snapshot(false);
    written.write(true);
    written.store.assert_sound();
}
