//! Prevents that a timer is late for ever, early, or not there, or that its signal comes before the process goes on.

use pagetide_tests::{Steps, Subject, cycle};

#[test]
fn timers() {
    let mut subject = Subject::target("clocks", &[]);
    cycle(
        &mut subject,
        &mut Steps::new(5),
        &["--every", "40ms", "--count", "3"],
    );
}
