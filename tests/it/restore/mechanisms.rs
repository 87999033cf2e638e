//! Prevents that a program loses something that the kernel holds for it: one C program for each, which looks at it all the time.

use pagetide_tests::{Steps, Subject, cycle, skipped};

const SCHEDULE: [&str; 4] = ["--every", "40ms", "--count", "3"];

#[track_caller]
fn goes_through_it(name: &str) {
    let mut subject = Subject::target(name, &[]);
    cycle(&mut subject, &mut Steps::new(5), &SCHEDULE);
}

/// What `registered.c` is told by `words` it has before and after; nothing if this kernel has no such thing.
#[track_caller]
fn stays_registered(test: &str, words: &[&str]) {
    let mut subject = Subject::target("registered", words);
    let log = subject.path("log");
    let log = || std::fs::read_to_string(&log).unwrap_or_default();
    subject.wait_until("its first line", || log().contains('\n'));
    if log().contains("0 no") {
        return skipped(test, log().lines().next().unwrap_or_default());
    }
    cycle(&mut subject, &mut Steps::new(5), &SCHEDULE);
}

#[test]
fn barriers_that_were_registered() {
    stays_registered("barriers_that_were_registered", &["barriers"]);
}

#[test]
fn a_table_of_futexes() {
    stays_registered("a_table_of_futexes", &["futexes"]);
}

#[test]
fn locked_memory() {
    stays_registered("locked_memory", &["locked", "future"]);
    stays_registered("locked_memory", &["locked", "onfault"]);
}

#[test]
fn sealed_memory() {
    stays_registered("sealed_memory", &["sealed", "locked"]);
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
