//! What every program goes through that is restored: killed where a snapshot was taken, restored, and compared before its first
//! instruction with what it was; killed in mid-work, and restored from the newest snapshot; another snapshot, which is a
//! delta, and restored from that; compared once more; restored from an old one, and from a delta of that.

use crate::json::{number, text};
use crate::subject::Subject;
use serde_json::Value;

/// What a program is asked for on the way.
pub trait Program {
    /// It works for a moment, and everything is as it must be. Panics if not.
    fn goes_on(&mut self, subject: &Subject);

    /// Something is done with the running program by which this moment can be told from others.
    fn mark(&mut self, subject: &Subject, mark: u32);

    /// Snapshot `id` has just been taken.
    fn taken(&mut self, _subject: &Subject, _id: u64) {}

    /// All of it stands still as it was in snapshot `id`.
    fn stands_still(&mut self, _subject: &Subject, _id: u64) {}

    /// It has been killed, and will be restored from snapshot `id`.
    fn killed(&mut self, _subject: &Subject, _id: u64) {}

    /// It runs again as it was when snapshot `id` was taken, some time after `mark` and before the next mark.
    fn restored(&mut self, subject: &Subject, id: u64, mark: u32);
}

/// All of it. `schedule` are words of a scheduled checkpoint: `--every 50ms --count 3`.
#[track_caller]
pub fn cycle(subject: &mut Subject, program: &mut dyn Program, schedule: &[&str]) {
    program.goes_on(subject);
    program.mark(subject, 1);
    let old = snapshot(subject, program, None);
    assert_eq!(text(&old, "kind"), "full");
    program.goes_on(subject);
    program.mark(subject, 2);
    let newest = exactly(subject, program, &old, 2);

    // From here on it is a chain of what was restored.
    program.mark(subject, 3);
    let mut parent = newest;
    for line in subject.checkpoint(schedule) {
        assert_follows(&line, &parent);
        program.taken(subject, number(&line, "id"));
        parent = line;
    }
    program.mark(subject, 4);
    program.goes_on(subject);
    back(subject, program, &parent, 3, true);

    program.mark(subject, 5);
    let newest = snapshot(subject, program, Some(&parent));
    program.mark(subject, 6);
    back(subject, program, &newest, 5, true);

    program.mark(subject, 7);
    exactly(subject, program, &newest, 7);

    back(subject, program, &old, 1, false);
    program.mark(subject, 8);
    let newest = snapshot(subject, program, Some(&old));
    back(subject, program, &newest, 8, true);
    subject.kill();
    subject.store().assert_sound();
}

/// For a program that is not as it was in everything that can be seen: killed after a full snapshot and after deltas, and restored.
#[track_caller]
pub fn comes_back(subject: &mut Subject, program: &mut dyn Program) {
    let mut parent: Option<Value> = None;
    for mark in 1..4 {
        program.goes_on(subject);
        program.mark(subject, mark);
        let report = snapshot(subject, program, parent.as_ref());
        program.goes_on(subject);
        back(subject, program, &report, mark, true);
        parent = Some(report);
    }
}

/// A snapshot with all standing still, after which it is killed and restored as it was.
#[track_caller]
fn exactly(subject: &mut Subject, program: &mut dyn Program, parent: &Value, mark: u32) -> Value {
    let (report, truth) = subject.stop_and_read();
    assert_follows(&report, parent);
    let id = number(&report, "id");
    program.stands_still(subject, id);
    subject.kill();
    program.killed(subject, id);
    subject.restore_and_compare(id, &truth);
    program.restored(subject, id, mark);
    program.goes_on(subject);
    report
}

fn snapshot(subject: &Subject, program: &mut dyn Program, parent: Option<&Value>) -> Value {
    let report = subject.checkpoint(&[]).remove(0);
    program.taken(subject, number(&report, "id"));
    if let Some(parent) = parent {
        assert_follows(&report, parent);
    }
    report
}

#[track_caller]
fn assert_follows(report: &Value, parent: &Value) {
    assert_eq!(text(report, "kind"), "delta", "{report}");
    assert_eq!(number(report, "parent"), number(parent, "id"), "{report}");
}

/// Kills it and restores it from a snapshot that was taken after `mark`.
#[track_caller]
fn back(subject: &mut Subject, program: &mut dyn Program, to: &Value, mark: u32, is_newest: bool) {
    let id = number(to, "id");
    subject.kill();
    program.killed(subject, id);
    let at = id.to_string();
    if is_newest {
        subject.restore(&[])
    } else {
        subject.restore(&["--at", &at])
    };
    program.restored(subject, id, mark);
    program.goes_on(subject);
}
