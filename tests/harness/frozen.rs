//! A process that does not move: stopped by SIGSTOP, every thread seen to stand still, its children
//! seen to have ended. Nothing of the code under test takes part.

use crate::maps::maps;
use crate::target::Target;
use rustix::process::{Pid, Signal};
use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

/// So long a thread may take to stop; then something is badly wrong.
const PATIENCE: Duration = Duration::from_secs(60);

/// A stopped process; it runs on when this is dropped.
pub struct Frozen {
    pid: i32,
}

impl Target {
    /// Stops it until the result is dropped.
    pub fn freeze(&self) -> Frozen {
        Frozen::freeze(self.pid())
    }
}

impl Frozen {
    /// Stops any process, whatever its children do.
    pub fn freeze_alone(pid: i32) -> Self {
        let frozen = Self { pid };
        frozen.signal(Signal::STOP);
        frozen.wait_until_still();
        frozen
    }

    /// Stops any process and waits until its children have ended: they may share its memory.
    pub fn freeze(pid: i32) -> Self {
        let frozen = Self::freeze_alone(pid);
        wait(pid, "its children end", || {
            children(pid).iter().all(|&child| state(child).is_none())
        });
        write_back_files(pid);
        frozen
    }

    /// A process that somebody else has stopped by SIGSTOP.
    #[track_caller]
    pub fn found(pid: i32) -> Self {
        let frozen = Self { pid };
        frozen.wait_until_still();
        frozen
    }

    fn wait_until_still(&self) {
        wait(self.pid, "its threads stop", || {
            let states = thread_states(self.pid);
            !states.is_empty() && states.iter().all(|&state| state == 'T')
        });
    }

    /// The process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// A tracer that was here must have left the process stopped.
    pub fn assert_still_stopped(&self) {
        self.wait_until_still();
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid).expect("a process id");
        let _ = rustix::process::kill_process(pid, signal);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
    }
}

fn wait(pid: i32, what: &str, is_so: impl Fn() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(
            since.elapsed() < PATIENCE,
            "process {pid}: waited in vain until {what}: {:?}",
            thread_states(pid)
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Has the files that it maps shared written to the disk. When the kernel does that by itself, it clears what
/// was stored past the end of the file in its last page: memory of the process changes while it stands still.
fn write_back_files(pid: i32) {
    let mut done = HashSet::new();
    for mapped in maps(pid) {
        if !mapped.permissions.ends_with('s') || !done.insert(mapped.object) {
            continue;
        }
        let link = format!("/proc/{pid}/map_files/{:x}-{:x}", mapped.start, mapped.end);
        let is_file = fs::metadata(&link).is_ok_and(|metadata| metadata.is_file());
        if is_file && let Ok(file) = fs::File::open(&link) {
            let _ = file.sync_all();
        }
    }
}

/// The state letter in a `stat` file.
fn letter(stat: &str) -> Option<char> {
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The state letter of every thread.
pub fn thread_states(pid: i32) -> Vec<char> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    tasks
        .flatten()
        .filter_map(|task| letter(&fs::read_to_string(task.path().join("stat")).ok()?))
        .collect()
}

/// The state of a process that has not ended.
fn state(pid: i32) -> Option<char> {
    letter(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
        .filter(|state| !matches!(state, 'Z' | 'X'))
}

/// A process with all that descend from it and have not ended, itself first.
pub fn family(pid: i32) -> Vec<i32> {
    let mut found = vec![pid];
    let mut at = 0;
    while at < found.len() {
        let living = children(found[at])
            .into_iter()
            .filter(|&child| state(child).is_some());
        found.extend(living);
        at += 1;
    }
    found
}

/// The children of all threads of a process.
pub fn children(pid: i32) -> Vec<i32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            let numbers = text.split_whitespace().flat_map(str::parse);
            numbers.collect::<Vec<i32>>()
        })
        .collect()
}
