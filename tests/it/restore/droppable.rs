//! Prevents that the state of random numbers is in a snapshot, from which two processes would draw the same: what the kernel may
//! take away at any time (MAP_DROPPABLE) is never stored, and comes back empty, and as such memory.

use pagetide_tests::{Program, Steps, Subject, comes_back, list, pagetide, skipped};
use std::path::Path;

/// The first bytes that `droppable.c` writes into each page.
fn secret() -> Vec<u8> {
    let byte = |i: u32| (((i * 131 + (i >> 5) * 17 + 91) ^ 0xa5) | 1).to_le_bytes()[0];
    (0..64).map(byte).collect()
}

fn holds(file: &Path, secret: &[u8]) -> bool {
    let bytes = std::fs::read(file).expect("read an export");
    bytes.windows(secret.len()).any(|found| found == secret)
}

/// True if an export of the snapshot, in which all of its memory is, has the secret.
fn has_secret(subject: &Subject, id: u64) -> bool {
    let store = subject.store().text();
    let out = subject.store().scratch().join(&format!("raw-{id}"));
    let text = out.to_str().expect("a plain path").to_owned();
    let at = id.to_string();
    pagetide([
        "export", &store, "--at", &at, "--format", "raw", "-o", &text,
    ])
    .done();
    let files = std::fs::read_dir(out.join("mem"))
        .expect("its memory")
        .flatten();
    let files: Vec<_> = files.map(|entry| entry.path()).collect();
    assert!(files.len() > 5, "{files:?}");
    let found = files.iter().any(|file| holds(file, &secret()));
    std::fs::remove_dir_all(&out).expect("remove the export");
    found
}

struct Droppable {
    steps: Steps,
    /// So often it had found it empty before it was killed.
    empty: usize,
}

/// How often it has found the memory empty.
fn times_empty(subject: &Subject) -> usize {
    let log = std::fs::read_to_string(subject.path("log")).unwrap_or_default();
    log.lines()
        .filter(|line| line.ends_with("was empty"))
        .count()
}

impl Program for Droppable {
    fn goes_on(&mut self, subject: &Subject) {
        self.steps.goes_on(subject);
    }

    fn mark(&mut self, subject: &Subject, mark: u32) {
        self.steps.mark(subject, mark);
    }

    fn taken(&mut self, subject: &Subject, id: u64) {
        assert!(!has_secret(subject, id), "snapshot {id}");
    }

    fn stands_still(&mut self, subject: &Subject, id: u64) {
        self.steps.stands_still(subject, id);
    }

    fn killed(&mut self, subject: &Subject, id: u64) {
        self.steps.killed(subject, id);
        self.empty = times_empty(subject);
    }

    fn restored(&mut self, subject: &Subject, id: u64, mark: u32) {
        self.steps.restored(subject, id, mark);
        subject.wait_until("an empty page", || times_empty(subject) > self.empty);
    }
}

/// The program, if this kernel has such memory.
fn start(test: &str) -> Option<Subject> {
    let subject = Subject::target("droppable", &[]);
    let log = || std::fs::read_to_string(subject.path("log")).unwrap_or_default();
    subject.wait_until("its first line", || log().contains('\n'));
    if log().starts_with("0 none") {
        skipped(test, "this kernel has no MAP_DROPPABLE");
        return None;
    }
    Some(subject)
}

#[test]
fn t87_what_may_be_dropped_is_not_stored_and_comes_back_empty() {
    let Some(mut subject) = start("t87_what_may_be_dropped_is_not_stored_and_comes_back_empty")
    else {
        return;
    };
    let mut program = Droppable {
        steps: Steps::new(5),
        empty: 0,
    };
    comes_back(&mut subject, &mut program);
}

#[test]
fn t87_that_it_cannot_be_tracked_is_nothing_to_tell() {
    let Some(subject) = start("t87_that_it_cannot_be_tracked_is_nothing_to_tell") else {
        return;
    };
    for _ in 0..2 {
        let report = subject.checkpoint(&["--mode", "stop"]).remove(0);
        assert_eq!(
            list(&report, "not_tracked"),
            &[] as &[serde_json::Value],
            "{report}"
        );
    }
}

#[test]
fn t87_nor_is_it_stored_where_the_buffer_is_full_or_nothing_is_tracked() {
    let test = "t87_nor_is_it_stored_where_the_buffer_is_full_or_nothing_is_tracked";
    for words in [
        &["--backend", "rehash"][..],
        &["--backend", "rehash", "--buffer", "4M"],
    ] {
        let Some(subject) = start(test) else { return };
        // So much besides that the buffer is full before it.
        let (full, delta) = (subject.checkpoint(words), subject.checkpoint(words));
        for report in full.into_iter().chain(delta) {
            let id = pagetide_tests::number(&report, "id");
            assert!(!has_secret(&subject, id), "{words:?}: {report}");
        }
    }
}

#[test]
fn t87_a_rollback_leaves_it_empty() {
    let Some(subject) = start("t87_a_rollback_leaves_it_empty") else {
        return;
    };
    let mut steps = Steps::new(5);
    steps.goes_on(&subject);
    subject.checkpoint(&[]);
    steps.goes_on(&subject);
    let before = times_empty(&subject);
    let pid = subject.pid().to_string();
    pagetide(["rollback", &pid, &subject.store().text()]).done();
    subject.wait_until("an empty page", || times_empty(&subject) > before);
    subject.assert_alive();
}
