//! Prevents that a System V segment comes back as something else because a part of it, or all of it, was advised,
//! protected, locked, unmapped, moved or shown elsewhere; or that it cannot come back, which is known only when the process
//! is gone. The table of what is tried is in `targets/segments.c`.

#![allow(unsafe_code)]

use pagetide_tests::{Program, Steps, Subject, number, text};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs `test` where nobody else has segments: their numbers are chosen, and restores beside this one choose theirs.
fn with_own_segments(test: impl FnOnce() + Send) {
    let alone = || {
        // SAFETY: this thread keeps its descriptors and its memory; it only sees other segments from here on.
        let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWIPC) };
        unshared.expect("segments of its own");
        test();
    };
    std::thread::scope(|scope| scope.spawn(alone).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn t80_whatever_was_done_to_a_segment_in_whole_or_in_part_is_so_again() {
    with_own_segments(|| {
        let mut subject = Subject::target("segments", &[]);
        let mut steps = Steps::new(3);
        steps.goes_on(&subject);
        let mut number_of_last = 0;
        // Restored from a full snapshot and from deltas; half of the segments are there still, and half are made.
        for round in 0..3 {
            let (report, truth) = subject.stop_and_read();
            assert_eq!(report["blockers"], serde_json::json!([]), "{report}");
            let id = number(&report, "id");
            assert_eq!(
                text(&report, "kind"),
                if round == 0 { "full" } else { "delta" }
            );
            assert!(id > number_of_last);
            number_of_last = id;
            subject.kill();
            subject.restore_and_compare(id, &truth);
            steps.goes_on(&subject);
        }
        // One that is killed at once has told before that nothing of it is lost.
        let report = subject.checkpoint(&["--leave", "killed"]).remove(0);
        assert_eq!(report["blockers"], serde_json::json!([]), "{report}");
        subject.kill();
        subject.restore(&[]);
        steps.goes_on(&subject);
    });
}
