//! What the tests of failures share: how a failure must look, and what must be as before after it.

use pagetide_tests::{Outcome, Target, TestStore};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// So long a process may take to get back to where it was; then it will never be.
const PATIENCE: Duration = Duration::from_secs(30);

/// A failure: the exit code, nothing on standard output, and all of `says` on standard error.
#[track_caller]
pub fn fails(outcome: &Outcome, code: i32, says: &[&str]) {
    assert_eq!(outcome.code, Some(code), "{outcome:#?}");
    assert_eq!(outcome.stdout, "", "{outcome:#?}");
    for what in says {
        assert!(outcome.stderr.contains(what), "{what:?} in {outcome:#?}");
    }
}

/// What must be the same of a process before and after.
#[derive(Debug, PartialEq, Eq)]
pub struct Condition {
    /// What `/proc/PID/status` says of signals, tracing, threads and seccomp.
    status: Vec<String>,
    /// Its file descriptors and what they are of.
    descriptors: BTreeMap<String, PathBuf>,
    /// For each thread the system call it is in, with arguments, stack pointer and program counter.
    calls: Vec<String>,
}

impl Condition {
    fn now(pid: i32) -> Self {
        const KEYS: [&str; 9] = [
            "TracerPid",
            "Threads",
            "SigPnd",
            "ShdPnd",
            "SigBlk",
            "SigIgn",
            "SigCgt",
            "NoNewPrivs",
            "Seccomp",
        ];
        let path = |name: &str| format!("/proc/{pid}/{name}");
        let status = fs::read_to_string(path("status")).expect("read its status");
        let entries = |name| fs::read_dir(path(name)).expect("list").flatten();
        let mut calls: Vec<String> = entries("task")
            .map(|task| fs::read_to_string(task.path().join("syscall")).unwrap_or_default())
            .collect();
        calls.sort();
        Self {
            status: status
                .lines()
                .filter(|line| KEYS.iter().any(|key| line.starts_with(key)))
                .map(str::to_owned)
                .collect(),
            descriptors: entries("fd")
                .map(|entry| {
                    let link = fs::read_link(entry.path()).unwrap_or_default();
                    (entry.file_name().to_string_lossy().into_owned(), link)
                })
                .collect(),
            calls,
        }
    }

    /// Of a process all of whose threads are waiting in a system call.
    pub fn of(target: &Target) -> Self {
        let waits = |condition: &Self| {
            let running = |call: &String| call.is_empty() || call.starts_with("running");
            !condition.calls.iter().any(running)
        };
        let since = Instant::now();
        let mut last = Self::now(target.pid());
        loop {
            std::thread::sleep(Duration::from_millis(4));
            let condition = Self::now(target.pid());
            if waits(&condition) && condition == last {
                return condition;
            }
            assert!(
                since.elapsed() < PATIENCE,
                "it does not wait: {condition:#?}"
            );
            last = condition;
        }
    }

    /// The process is, or soon gets, as it was. It must not have done anything meanwhile.
    #[track_caller]
    pub fn assert_is_again(&self, target: &Target) {
        self.assert_same(target, |now| now == self);
    }

    /// As `assert_is_again`, but for registers: the process has worked meanwhile.
    #[track_caller]
    pub fn assert_is_again_after_work(&self, target: &Target) {
        self.assert_same(target, |now| {
            (&now.status, &now.descriptors) == (&self.status, &self.descriptors)
        });
    }

    #[track_caller]
    fn assert_same(&self, target: &Target, is_same: impl Fn(&Self) -> bool) {
        let since = Instant::now();
        loop {
            let now = Self::of(target);
            if is_same(&now) {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "was {self:#?}, is {now:#?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// All files of a directory with their contents.
pub fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else if path.file_name().is_some_and(|name| name != "lock") {
            found.insert(
                path.clone(),
                fs::read(path).expect("read a file of the store"),
            );
        }
    }
    found
}

/// Nothing unfinished lies in the store.
#[track_caller]
pub fn assert_no_leftovers(store: &TestStore) {
    let files = contents(&store.path());
    let left = |path: &&PathBuf| path.extension().is_some_and(|e| e == "partial");
    assert_eq!(files.keys().find(left), None);
}

/// A checkpoint of the target as it is now, compared with it byte for byte.
#[track_caller]
pub fn checkpoint_exactly(store: &TestStore, target: &Target, more: &[&str]) -> serde_json::Value {
    let frozen = target.freeze();
    store.checkpoint_exactly(&frozen, more, false).0
}

/// True if tests may mount, change users and make devices; says so otherwise.
pub fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        pagetide_tests::skipped(test, "only root can prepare it");
    }
    root
}

/// A tmpfs, mounted as long as this exists. Declare it after the directory it is mounted on.
pub struct Mounted {
    path: PathBuf,
}

impl Mounted {
    /// Mounts one with these options on a directory, which is made.
    pub fn on(path: &Path, options: &str) -> Self {
        fs::create_dir_all(path).expect("make the directory to mount on");
        let words = ["-t", "tmpfs", "-o", options, "pagetide-test"];
        mount(Command::new("mount").args(words).arg(path));
        Self {
            path: path.to_owned(),
        }
    }

    /// Changes its options.
    pub fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        mount(Command::new("mount").args(["-o", &options]).arg(&self.path));
    }
}

fn mount(command: &mut Command) {
    let output = command.output().expect("run mount");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.path).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}
