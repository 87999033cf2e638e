//! Prevents that an example does not run, or does not do what it says: each has a check of its own.

use pagetide_testing::{needs, skipped};
use std::process::{Command, Output};

fn check(name: &str) -> Output {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args([
        "run",
        "--quiet",
        "--locked",
        "--example",
        name,
        "--",
        "--check",
    ]);
    let output = command.output().expect("run cargo");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {said}{errors}");
    output
}

#[test]
fn the_fuzzer_finds_memory_as_it_was() {
    needs!(wp_async);
    check("fuzzer");
}

#[test]
fn the_engine_that_is_killed_misses_nothing_that_it_acknowledged() {
    needs!(wp_async);
    check("kv");
}

#[test]
fn the_guest_outlives_its_monitor() {
    needs!(wp_async);
    let output = check("vmm");
    let said = String::from_utf8_lossy(&output.stdout);
    if said.contains("SKIPPED") {
        skipped("the_guest_outlives_its_monitor", said.trim())
    } else {
        assert!(said.contains("the result is right"), "{said}")
    }
}
