//! Control groups that freeze, made for a test and given up with it.

use pagetide_testing::skipped;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A control group of a test's own. Dropped, it is thawed, emptied and removed: so it must go before its target does.
pub struct ControlGroup {
    directory: PathBuf,
    outside: PathBuf,
    is_unified: bool,
}

impl ControlGroup {
    /// A group of version 2 or 1 with this process in it; `None`, and the test is skipped, if there is no such freezer.
    pub fn of(test: &str, is_unified: bool, pid: i32) -> Option<Self> {
        let text = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let mut lines = text.lines().filter_map(|line| line.split_once(" - "));
        let found = lines.find(|(_, source)| {
            if is_unified {
                source.starts_with("cgroup2 ")
            } else {
                source.starts_with("cgroup ") && source.ends_with(",freezer")
            }
        });
        let outside = found.and_then(|(mount, _)| mount.split(' ').nth(4).map(PathBuf::from));
        let directory = outside
            .as_ref()
            .map(|outside| outside.join(format!("pagetide-test-{pid}")));
        let (Some(outside), Some(directory)) = (outside, directory) else {
            skipped(test, "no such freezer");
            return None;
        };
        if let Err(error) = fs::create_dir(&directory) {
            skipped(test, &format!("{}: {error}", directory.display()));
            return None;
        }
        let group = Self {
            directory,
            outside,
            is_unified,
        };
        group.put("cgroup.procs", &pid.to_string());
        Some(group)
    }

    fn put(&self, file: &str, text: &str) {
        fs::write(self.directory.join(file), text)
            .unwrap_or_else(|error| panic!("{file}: {error}"));
    }

    /// Freezes it, and waits until all of it is.
    pub fn freeze(&self) {
        let (file, text, seen) = if self.is_unified {
            ("cgroup.freeze", "1", ("cgroup.events", "frozen 1"))
        } else {
            ("freezer.state", "FROZEN", ("freezer.state", "FROZEN"))
        };
        self.put(file, text);
        let since = Instant::now();
        let says = |(file, line)| {
            let text = fs::read_to_string(self.directory.join(file)).expect("a file of the group");
            text.lines().any(|found| found == line)
        };
        while !says(seen) {
            assert!(
                since.elapsed() < Duration::from_secs(60),
                "it does not freeze"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        if self.is_unified {
            self.put("cgroup.freeze", "0")
        } else {
            self.put("freezer.state", "THAWED")
        }
    }

    /// The command that does it, which every message must name.
    pub fn how_to_thaw(&self) -> String {
        if self.is_unified {
            format!("echo 0 > {}/cgroup.freeze", self.directory.display())
        } else {
            format!("echo THAWED > {}/freezer.state", self.directory.display())
        }
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        self.thaw();
        let inside = fs::read_to_string(self.directory.join("cgroup.procs")).unwrap_or_default();
        for pid in inside.lines() {
            fs::write(self.outside.join("cgroup.procs"), pid).ok();
        }
        fs::remove_dir(&self.directory).ok();
    }
}
