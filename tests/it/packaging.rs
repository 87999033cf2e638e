//! Prevents that a newcomer's first command fails without saying all that is missing, and that what is installed is not all, or
//! not all removed.

use pagetide_tests::{Scratch, pagetide_path};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn script(name: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(name));
    command
}

/// What setup says with a cargo that tells this of itself.
fn setup_with(directory: &Path, version: &str) -> Output {
    let cargo = directory.join("cargo");
    std::fs::write(&cargo, format!("#!/bin/sh\necho '{version}'\n")).unwrap();
    std::fs::set_permissions(&cargo, PermissionsExt::from_mode(0o755)).unwrap();
    let mut setup = script("setup.sh");
    setup.arg("build").env("CARGO", cargo).output().unwrap()
}

#[test]
fn a_rust_that_is_too_old_or_missing_is_named_first_with_where_a_newer_one_is() {
    let scratch = Scratch::new();
    for old in ["cargo 1.63.0", "cargo 1.85.0 (d73d2caf9 2024-12-31)"] {
        let output = setup_with(scratch.path(), old);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{old}: {said}");
        let version = old.split(' ').nth(1).unwrap();
        assert!(
            said.contains(&format!("Rust {version} is too old")),
            "{said}"
        );
        for place in ["rustup", "trixie-backports", "cargo-1.89"] {
            assert!(said.contains(place), "{said}");
        }
    }
    for new in [
        "cargo 1.88.0",
        "cargo 1.100.1-nightly (0 2030-01-01)",
        "cargo 2.0.0",
    ] {
        let output = setup_with(scratch.path(), new);
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{new}: {output:?}"
        );
    }
    let mut setup = script("setup.sh");
    let output = setup
        .arg("build")
        .env("CARGO", "/nonexistent/cargo")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("is missing (/nonexistent/cargo"), "{said}");
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .flat_map(|path| {
            if path.is_dir() {
                files_below(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

#[test]
fn what_is_installed_is_complete_and_is_removed_again() {
    let scratch = Scratch::new();
    let prefix = scratch.path().join("usr");
    let mut install = script("install.sh");
    assert!(
        install
            .arg(pagetide_path())
            .arg(&prefix)
            .status()
            .unwrap()
            .success()
    );
    let files = files_below(&prefix);
    let is_there = |end: &str| files.iter().any(|file| file.ends_with(end));
    for end in [
        "bin/pagetide",
        "share/man/man1/pagetide.1",
        "share/man/man1/pagetide-checkpoint.1",
        "share/man/man1/pagetide-restore.1",
        "share/bash-completion/completions/pagetide",
        "share/zsh/site-functions/_pagetide",
        "share/fish/vendor_completions.d/pagetide.fish",
    ] {
        assert!(is_there(end), "no {end}: {files:?}");
    }
    for file in &files {
        assert!(
            file.metadata().unwrap().len() > 100,
            "{} is empty",
            file.display()
        );
    }
    let installed = Command::new(prefix.join("bin/pagetide"))
        .arg("--version")
        .output()
        .unwrap();
    assert!(installed.status.success());
    let mut remove = script("install.sh");
    assert!(
        remove
            .arg("--remove")
            .arg(&prefix)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(files_below(&prefix), Vec::<PathBuf>::new());
}
