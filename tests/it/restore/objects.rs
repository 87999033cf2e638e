//! Prevents that memory with an object behind it comes back as other memory: deleted files, memfd, System V, what is shared
//! with a child, private copies.

use pagetide_tests::{Steps, Subject, cycle};

const SCHEDULE: [&str; 4] = ["--every", "40ms", "--count", "3"];

#[track_caller]
fn goes_through_it(name: &str, more: &[&str], checkpoint: &[&'static str]) {
    let mut subject = Subject::target(name, more).checkpoint_with(checkpoint);
    cycle(&mut subject, &mut Steps::new(5), &SCHEDULE);
}

#[test]
fn memory_with_objects_behind_it() {
    goes_through_it("backed", &[], &[]);
}

#[test]
fn memory_of_a_deleted_file_that_nobody_has_open() {
    goes_through_it("backed", &["alone"], &[]);
}

#[test]
fn memory_that_a_family_shares() {
    goes_through_it("backed", &["family"], &["--tree"]);
}
