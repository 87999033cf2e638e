//! Prevents that a program loses something that the kernel holds for it: one C program for each, which looks at it all the time.

use pagetide_tests::{Steps, Subject, cycle, skipped};

const SCHEDULE: [&str; 4] = ["--every", "40ms", "--count", "3"];

#[track_caller]
fn goes_through_it(name: &str) {
    let mut subject = Subject::target(name, &[]);
    cycle(&mut subject, &mut Steps::new(5), &SCHEDULE);
}

#[test]
fn vectors_in_registers() {
    let mut subject = Subject::target("vectors", &[]);
    subject.wait_until("its first line", || {
        std::fs::read_to_string(subject.path("log")).is_ok_and(|log| log.contains('\n'))
    });
    let log = std::fs::read_to_string(subject.path("log")).expect("read its log");
    if !log.starts_with("0 vectors of 512 bits") {
        skipped("vectors_in_registers", "this processor has no AVX-512");
    }
    cycle(&mut subject, &mut Steps::new(9), &SCHEDULE);
}

#[test]
fn signals_that_wait() {
    goes_through_it("pending");
}

#[test]
fn calls_that_wait() {
    goes_through_it("waits");
}

#[test]
fn restartable_sequences() {
    goes_through_it("sequences");
}

#[test]
fn locks() {
    goes_through_it("locks");
}

#[test]
fn stacks_and_heap() {
    goes_through_it("stacks");
}

#[test]
fn who_and_where_it_is() {
    goes_through_it("identity");
}
