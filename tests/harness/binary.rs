//! The `pagetide` binary of the same profile as the tests, built once if it is missing or stale.
//! `PAGETIDE_BIN` names another one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The binary under test.
pub fn pagetide_path() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("PAGETIDE_BIN") {
        Some(path) => PathBuf::from(path),
        None => build(),
    })
}

/// Cargo knows best whether the binary is stale, and takes its own lock.
fn build() -> PathBuf {
    let test = std::env::current_exe().expect("the path of the test binary");
    // <target directory>/<profile>/deps/<test binary>, or without deps for a program
    let directory = test.parent().expect("a binary lies in a directory");
    let profile_directory = if directory.ends_with("deps") {
        directory.parent().expect("deps lies in <target>/<profile>")
    } else {
        directory
    };
    let target_directory = profile_directory.parent().expect("a target directory");
    let profile = match profile_directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "test",
        Some(name) => name,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // By a test of its package, for all packages: for some of them, or for no test, Cargo would choose other features of what
    // they depend on, and build that anew.
    let status = Command::new(cargo)
        .args([
            "test",
            "--quiet",
            "--no-run",
            "--workspace",
            "--test",
            "program",
        ])
        .args(["--profile", profile, "--target-dir"])
        .arg(target_directory)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("run cargo");
    assert!(status.success(), "pagetide does not build: {status}");
    let binary = profile_directory.join("pagetide");
    assert!(binary.exists(), "no binary at {}", binary.display());
    binary
}
