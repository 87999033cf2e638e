//! A directory for a test.

use crate::{failures, signals};
use std::path::{Path, PathBuf};

/// A directory for a test, removed when it is dropped.
pub struct Scratch {
    directory: tempfile::TempDir,
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Scratch {
    /// A new and empty directory on the disk that holds temporary files.
    pub fn new() -> Self {
        failures::tell_at_once();
        signals::leave_none_ignored();
        let directory = tempfile::Builder::new()
            .prefix("pagetide-it-")
            .tempdir()
            .expect("make a temporary directory");
        Self { directory }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A path in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::Scratch;
    use crate::signals::ignored;
    use std::process::Command;

    /// Starts this test program again with these signals ignored, and has it say what a child of it ignores.
    #[test]
    fn what_tests_start_ignores_nothing_though_they_do() {
        let scratch = || Scratch::new();
        if std::env::var_os("PAGETIDE_IGNORING").is_some() {
            let _scratch = scratch();
            let child = Command::new("cat").arg("/proc/self/status").output();
            let status = String::from_utf8(child.expect("run cat").stdout).expect("text");
            println!("of the child: {:#b}", ignored(&status) & 0b111);
            return;
        }
        let program = std::env::current_exe().expect("the path of this program");
        let name = "scratch::tests::what_tests_start_ignores_nothing_though_they_do";
        let output = Command::new("sh")
            .arg("-c")
            .arg("trap '' HUP INT QUIT; exec \"$0\" --exact \"$1\" --nocapture")
            .arg(program)
            .arg(name)
            .env("PAGETIDE_IGNORING", "1")
            .output();
        let output = output.expect("run it again");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("of the child: 0b0\n"), "{said}");
    }
}
