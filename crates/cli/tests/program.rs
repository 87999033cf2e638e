//! Prevents that the program is built apart from the tests: Cargo builds it with this one, with the features that all packages of
//! the workspace ask for together, and so does not build its dependencies a second time. The end-to-end tests rely on that.

use std::process::Command;

#[test]
fn the_program_says_its_version() {
    let output = Command::new(env!("CARGO_BIN_EXE_pagetide"))
        .arg("--version")
        .output()
        .expect("run pagetide");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        said.trim(),
        format!("pagetide {}", env!("CARGO_PKG_VERSION"))
    );
}
