//! Tests that this machine cannot run: they say so aloud, and under CI only those that are listed may.

use std::io::Write;

const LISTED: &str = include_str!("../../../tests/skips.txt");

/// Says that a test, or a part of it, could not be run here. Fails if the environment says `CI` and
/// `tests/skips.txt` does not list the test.
#[track_caller]
pub fn skipped(test: &str, reason: &str) {
    // Not by print!, whose output a test that passes keeps to itself.
    let _ = std::io::stderr().write_all(format!("SKIPPED {test}: {reason}\n").as_bytes());
    let name = test.split_whitespace().next();
    let listed = LISTED
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_whitespace().next())
        .any(|listed| match listed.strip_suffix('*') {
            Some(beginning) => name.is_some_and(|name| name.starts_with(beginning)),
            None => name == Some(listed),
        });
    assert!(
        listed || std::env::var_os("CI").is_none(),
        "{test} was skipped ({reason}) and is not listed in tests/skips.txt"
    );
}
