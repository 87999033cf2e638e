//! Prevents that what a tracing tool has put into a program comes back with it and ends it, and that a breakpoint which is the
//! program's own is taken for one.

use pagetide_tests::{Subject, Target, compiled, list, number, pagetide, skipped, text};
use serde_json::Value;
use std::process::Command;

/// The program, once it has gone round.
fn program(kind: &str) -> Subject {
    let subject = Subject::target("probed", &[kind]);
    goes_on(&subject);
    subject
}

/// It goes round again, all being as it should.
#[track_caller]
fn goes_on(subject: &Subject) {
    let log = || std::fs::read(subject.path("log")).map_or(0, |log| log.len());
    let before = log();
    subject.wait_until("it goes on", || log() > before + 40);
}

/// Probes in some of its functions, by number, which have been hit; `None`, and said, where there can be none.
#[track_caller]
fn probed(test: &str, subject: &Subject, functions: &[usize]) -> Option<Target> {
    let offsets = std::fs::read_to_string(subject.path("offsets")).expect("its offsets");
    let offsets: Vec<&str> = offsets.split(' ').collect();
    let mut command = Command::new(compiled("prober"));
    command
        .arg(subject.pid().to_string())
        .arg(compiled("probed"));
    command.args(functions.iter().map(|&number| offsets[number]));
    let mut prober = Target::spawn(&mut command);
    let said = prober.line();
    if said != "ready" {
        skipped(test, &said);
        return None;
    }
    goes_on(subject);
    assert!(hits(&mut prober) > 0);
    Some(prober)
}

fn hits(prober: &mut Target) -> u64 {
    prober.ask("count").parse().expect("a number")
}

/// The names of what a restore could not bring back.
fn blockers(report: &Value) -> Vec<String> {
    let blockers = list(report, "blockers").iter();
    blockers.map(|one| text(one, "name").to_owned()).collect()
}

fn inspected(subject: &Subject) -> Vec<String> {
    blockers(
        &pagetide(["inspect", &subject.pid().to_string(), "--json"])
            .exits_with(0)
            .json(),
    )
}

#[test]
fn t70_a_breakpoint_of_a_tracing_tool_is_stored_as_what_the_file_has() {
    let test = "t70_a_breakpoint_of_a_tracing_tool_is_stored_as_what_the_file_has";
    let mut subject = program("plain");
    let Some(mut prober) = probed(test, &subject, &[0]) else {
        return;
    };
    assert_eq!(inspected(&subject), [""; 0]);
    let mut last = 0;
    for _ in 0..3 {
        goes_on(&subject);
        let report = subject.checkpoint(&[]).remove(0);
        assert_eq!(blockers(&report), [""; 0], "{report}");
        last = number(&report, "id");
    }
    // A live process that is put back keeps its probes.
    let store = subject.store().text();
    let at = last.to_string();
    pagetide(["rollback", &subject.pid().to_string(), &store, "--at", &at]).done();
    let before = hits(&mut prober);
    goes_on(&subject);
    assert!(hits(&mut prober) > before);
    drop(prober);
    // And with the probe in place only for some of the snapshots.
    goes_on(&subject);
    subject.checkpoint(&[]);
    subject.kill();
    for id in 1..=last + 1 {
        subject.restore(&["--at", &id.to_string()]);
        goes_on(&subject);
        subject.kill();
    }
    subject.store().assert_sound();
}

#[test]
fn t71_a_call_in_place_of_an_instruction_is_stored_as_what_the_file_has() {
    let test = "t71_a_call_in_place_of_an_instruction_is_stored_as_what_the_file_has";
    let mut subject = program("plain");
    // Where the kernel does not do so, a breakpoint stays there.
    let Some(prober) = probed(test, &subject, &[0, 2]) else {
        return;
    };
    for _ in 0..2 {
        let report = subject.checkpoint(&[]).remove(0);
        assert_eq!(blockers(&report), [""; 0], "{report}");
    }
    drop(prober);
    subject.kill();
    subject.restore(&[]);
    goes_on(&subject);
}

#[test]
fn t71_what_the_kernel_has_mapped_for_probes_stays_and_is_named() {
    let test = "t71_what_the_kernel_has_mapped_for_probes_stays_and_is_named";
    let mut subject = program("plain");
    let Some(prober) = probed(test, &subject, &[0, 1, 2]) else {
        return;
    };
    subject.checkpoint(&[]);
    drop(prober);
    goes_on(&subject);
    let report = subject.checkpoint(&[]).remove(0);
    let names = blockers(&report);
    assert!(
        matches!(&names[..], [name] if name.starts_with("uprobes:mapping:")),
        "{report}"
    );
    assert_eq!(inspected(&subject), names);
    subject.kill();
    let refused = subject.try_restore(&[]).exits_with(3);
    assert!(refused.stderr.contains(&names[0]), "{refused:#?}");
    for id in ["1", "2"] {
        subject.restore(&["--at", id, "--accept", &names[0]]);
        goes_on(&subject);
        let report = subject.checkpoint(&[]).remove(0);
        assert_eq!(
            blockers(&report),
            [""; 0],
            "it is not there any more: {report}"
        );
        subject.kill();
    }
}

#[test]
fn t70_breakpoints_of_a_program_that_catches_them_are_kept_and_named() {
    let mut subject = program("own");
    let names = inspected(&subject);
    assert!(
        matches!(&names[..], [name] if name.starts_with("uprobes:mapping:")),
        "{names:?}"
    );
    let (report, truth) = subject.stop_and_read();
    assert_eq!(blockers(&report), names);
    subject.kill();
    subject.try_restore(&[]).exits_with(3);
    subject.restore(&["--stopped", "--accept", &names[0]]);
    let difference = subject.differences(&truth);
    assert!(difference.is_empty(), "{difference:#?}");
    goes_on(&subject);
}

#[test]
fn t70_what_a_program_has_stored_into_its_code_is_kept() {
    let mut subject = program("stored");
    assert_eq!(inspected(&subject), [""; 0]);
    let (report, truth) = subject.stop_and_read();
    assert_eq!(blockers(&report), [""; 0]);
    subject.kill();
    subject.restore_and_compare(number(&report, "id"), &truth);
    goes_on(&subject);
}
