//! Whether a process is frozen, and by which control group. Not the thawing, which is for whoever froze it.
//!
//! What the two versions of control groups mean by it differs. In version 1 a frozen thread is left out of
//! scheduling wherever it waits: it cannot be stopped by ptrace(2), and a thread that was stopped before can be read
//! and set, but runs only when it is thawed. In version 2 it waits as a stopped thread does, so ptrace(2) can stop
//! it; again it runs nothing. Memory can be read in both.
//!
//! Sources: `Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst`, `Documentation/admin-guide/cgroup-v2.rst`.

use crate::proc_files;
use pagetide_kernel::cgroups::CgroupMount;
use pagetide_kernel::ptrace::ThreadId;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// A control group that keeps threads of a process frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Freezer {
    /// Its directory: the outermost one that is frozen, as far as can be seen from here.
    pub directory: PathBuf,
    /// True for version 2 of control groups.
    pub is_unified: bool,
}

impl Freezer {
    /// What keeps a thread of the process frozen, or is just freezing it; `None` also for a process that is
    /// gone, and where the hierarchies cannot be seen. Some 10 us a thread.
    pub fn of_process(pid: i32) -> Option<Self> {
        let mounts = freezing_mounts();
        let mut seen: Vec<Vec<u8>> = Vec::new();
        for thread in proc_files::threads(pid).unwrap_or_default() {
            let Some(membership) = membership(pid, thread) else {
                continue;
            };
            if !seen.contains(&membership) {
                if let Some(freezer) = find(&mounts, &membership) {
                    return Some(freezer);
                }
                seen.push(membership);
            }
        }
        None
    }

    /// The same for one thread.
    pub(crate) fn of_thread(pid: i32, thread: ThreadId) -> Option<Self> {
        find(&freezing_mounts(), &membership(pid, thread)?)
    }

    /// The same for the first thread, which is frozen if the process is as a whole.
    pub(crate) fn of_first_thread(pid: i32) -> Option<Self> {
        Self::of_thread(pid, ThreadId::new(pid))
    }

    /// The command by which it is thawed.
    pub fn how_to_thaw(&self) -> String {
        let (value, file) = if self.is_unified {
            ("0", UNIFIED_SWITCH)
        } else {
            ("THAWED", STATE)
        };
        format!("echo {value} > {}", self.directory.join(file).display())
    }

    /// Whether a thread that it keeps can be stopped by ptrace(2).
    pub(crate) fn lets_threads_stop(&self) -> bool {
        self.is_unified
    }
}

impl fmt::Display for Freezer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "the control group {}: thaw it first ({})",
            self.directory.display(),
            self.how_to_thaw()
        )
    }
}

/// Version 1: THAWED, FREEZING or FROZEN.
const STATE: &str = "freezer.state";
/// Version 1: 1 where it was asked for, and not in a group above.
const OWN_SWITCH: &str = "freezer.self_freezing";
/// Version 2: 1 where it was asked for.
const UNIFIED_SWITCH: &str = "cgroup.freeze";
/// Version 2: `frozen 1` if all of it is frozen, whoever asked for it.
const EVENTS: &str = "cgroup.events";

fn freezing_mounts() -> Vec<CgroupMount> {
    let mut mounts = CgroupMount::all().unwrap_or_default();
    mounts.retain(|mount| mount.is_unified || mount.controls("freezer"));
    mounts
}

fn membership(pid: i32, thread: ThreadId) -> Option<Vec<u8>> {
    fs::read(format!("/proc/{pid}/task/{thread}/cgroup")).ok()
}

fn find(mounts: &[CgroupMount], membership: &[u8]) -> Option<Freezer> {
    mounts.iter().find_map(|mount| {
        let leaf = mount.directory_of(membership)?;
        let groups = leaf
            .ancestors()
            .take_while(|at| at.starts_with(&mount.point));
        let (switch, is_frozen) = if mount.is_unified {
            (UNIFIED_SWITCH, says(&leaf, EVENTS, "frozen 1"))
        } else {
            let state = fs::read_to_string(leaf.join(STATE)).unwrap_or_default();
            (OWN_SWITCH, !matches!(state.trim(), "" | "THAWED"))
        };
        let by = groups.filter(|at| says(at, switch, "1")).last();
        let directory = by.map(Path::to_path_buf);
        Some(Freezer {
            directory: directory.or_else(|| is_frozen.then_some(leaf))?,
            is_unified: mount.is_unified,
        })
    })
}

fn says(directory: &Path, file: &str, line: &str) -> bool {
    let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
    text.lines().any(|found| found.trim() == line)
}
