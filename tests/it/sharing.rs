//! Prevents that memory which fork(2) left shared is doubled by who looks at it: a checkpoint by whatever backend, of one
//! process or of all, must leave the proportional set sizes of a family as they were.

use pagetide_tests::{Subject, anonymous_kib, family, maps, pagetide, text};

fn inheritors() -> Subject {
    let subject = Subject::target("inheritors", &[]);
    has_gone_on(&subject, 1);
    subject
}

fn lines_of(subject: &Subject) -> Vec<String> {
    let log = std::fs::read_to_string(subject.path("log")).unwrap_or_default();
    log.lines().map(str::to_owned).collect()
}

/// Waits until the program has seen its memory `more` times, and all was right.
fn has_gone_on(subject: &Subject, more: usize) {
    let wanted = lines_of(subject).len() + more;
    subject.wait_until("more steps", || lines_of(subject).len() >= wanted);
    let log = lines_of(subject);
    assert!(!log.iter().any(|line| line.starts_with("WRONG")), "{log:?}");
}

/// The family holds at most 2 % more after `look` than before.
#[track_caller]
fn stays_shared(subject: &Subject, look: impl FnOnce(&Subject)) {
    let family = family(subject.pid());
    assert_eq!(family.len(), 5, "{family:?}");
    let before = anonymous_kib(&family);
    // What is inherited counts once: the test would prove nothing.
    assert!((64 << 10..80 << 10).contains(&before), "{before} KiB");
    look(subject);
    has_gone_on(subject, 3);
    let after = anonymous_kib(&family);
    assert!(after * 100 <= before * 102, "{before} KiB became {after}");
}

#[test]
fn t36_a_checkpoint_of_one_leaves_shared_what_fork_left_shared() {
    stays_shared(&inheritors(), |subject| {
        subject.checkpoint(&[]);
        let delta = subject.checkpoint(&[]).remove(0);
        assert_eq!(text(&delta, "kind"), "delta", "{delta}");
    });
}

#[test]
fn t36_a_checkpoint_of_all_leaves_shared_what_fork_left_shared() {
    for mode in ["stop", "precopy"] {
        stays_shared(&inheritors(), |subject| {
            subject.checkpoint(&["--tree", "--mode", mode]);
            subject.checkpoint(&["--tree", "--mode", mode]);
        });
    }
}

#[test]
fn t36_comparing_everything_leaves_shared_what_fork_left_shared() {
    stays_shared(&inheritors(), |subject| {
        subject.checkpoint(&["--tree", "--backend", "rehash"]);
        subject.checkpoint(&["--tree", "--backend", "rehash"]);
    });
}

#[test]
fn t36_a_rollback_leaves_shared_what_fork_left_shared() {
    stays_shared(&inheritors(), |subject| {
        subject.checkpoint(&["--backend", "rehash"]);
        has_gone_on(subject, 3);
        let (pid, store) = (subject.pid().to_string(), subject.store().text());
        pagetide(["rollback", &pid, &store, "--at", "1"]).done();
    });
}

/// How many mappings each process of the family has.
fn mappings(subject: &Subject) -> Vec<usize> {
    let pids = family(subject.pid());
    pids.iter().map(|pid| maps(*pid).len()).collect()
}

#[test]
fn a_restored_tree_shares_again_what_fork_left_shared() {
    let mut subject = inheritors().checkpoint_with(&["--tree"]);
    let (before, mapped) = (anonymous_kib(&family(subject.pid())), mappings(&subject));
    // The second time it is what was restored that is checkpointed, as a delta.
    for kind in ["full", "delta"] {
        let (report, truth) = subject.stop_and_read();
        assert_eq!(text(&report, "kind"), kind, "{report}");
        let id = pagetide_tests::number(&report, "id");
        subject.kill();
        subject.restore_and_compare(id, &truth);
        has_gone_on(&subject, 3);
        let after = anonymous_kib(&family(subject.pid()));
        assert!(
            after * 100 <= before * 110,
            "{before} KiB became {after} when the {kind} snapshot was restored"
        );
        // Sharing must not be paid by cutting mappings into pieces.
        for (before, after) in mapped.iter().zip(mappings(&subject)) {
            assert!(after <= before + 3, "{before} mappings became {after}");
        }
    }
    stays_shared(&subject, |subject| {
        subject.checkpoint(&[]);
    });
}
