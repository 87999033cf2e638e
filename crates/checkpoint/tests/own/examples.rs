//! Prevents that an example does not run, or does not do what it says: each has a check of its own.

use pagetide_testing::{needs, skipped};
use std::path::PathBuf;
use std::process::{Command, Output};

/// The example, built: as a part of the tests of all packages, for which it has been built already.
fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of the test binary");
    let profile = test.ancestors().nth(2).expect("it lies in PROFILE/deps");
    let built = Command::new(env!("CARGO"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--quiet", "--locked", "--workspace"])
        .args(if profile.ends_with("release") {
            &["--release"][..]
        } else {
            &[]
        })
        .args(["--example", name])
        .status();
    assert!(built.expect("run cargo").success(), "{name} is not built");
    profile.join("examples").join(name)
}

fn check(name: &str) -> Output {
    let output = Command::new(built(name)).arg("--check").output();
    let output = output.expect("run the example");
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
