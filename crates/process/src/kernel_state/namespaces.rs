//! Whether a process lives in other namespaces than we do: what it is restored in are ours.

use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use crate::kernel_state::clocks;
use crate::kernel_state::error::KernelStateError;
use pagetide_kernel::ptrace::ThreadId;
use std::fs;
use std::io;
use std::path::PathBuf;

/// A kind of namespaces, by its name in `/proc/PID/ns`.
struct Kind {
    file: &'static str,
    blocker: BlockerKind,
    name: &'static str,
    /// What a restore does without it.
    instead: Option<&'static str>,
}

static KINDS: [Kind; 7] = [
    Kind {
        file: "pid",
        blocker: BlockerKind::NamespacePid,
        name: "PID",
        instead: None,
    },
    Kind {
        file: "user",
        blocker: BlockerKind::NamespaceUser,
        name: "user",
        instead: None,
    },
    Kind {
        file: "mnt",
        blocker: BlockerKind::NamespaceMnt,
        name: "mount",
        instead: Some("its paths are those of the mounts that pagetide sees"),
    },
    Kind {
        file: "net",
        blocker: BlockerKind::NamespaceNet,
        name: "network",
        instead: Some("it has the network that pagetide has"),
    },
    Kind {
        file: "ipc",
        blocker: BlockerKind::NamespaceIpc,
        name: "IPC",
        instead: Some("it has the System V objects and message queues that pagetide has"),
    },
    Kind {
        file: "uts",
        blocker: BlockerKind::NamespaceUts,
        name: "UTS",
        instead: Some("it sees the host name that pagetide sees"),
    },
    Kind {
        file: "cgroup",
        blocker: BlockerKind::NamespaceCgroup,
        name: "control group",
        instead: Some("it sees the control groups that pagetide sees"),
    },
];

/// What names a namespace. `None` if the kernel has no such kind.
fn namespace(of: &str, file: &str) -> Result<Option<PathBuf>, KernelStateError> {
    let path = PathBuf::from(format!("/proc/{of}/ns/{file}"));
    match fs::read_link(&path) {
        Ok(name) => Ok(Some(name)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(KernelStateError::Proc { path, source }),
    }
}

/// One blocker a kind, of the first thread that lives elsewhere.
pub(super) fn blockers(pid: i32, threads: &[ThreadId]) -> Result<Vec<Blocker>, KernelStateError> {
    let mut blockers = Vec::new();
    for kind in &KINDS {
        let own = namespace("self", kind.file)?;
        for thread in threads {
            // Nobody waits for the threads that end meanwhile.
            let its = namespace(&format!("{pid}/task/{thread}"), kind.file)?;
            if its.is_some() && its != own {
                blockers.push(blocker(pid, kind));
                break;
            }
        }
    }
    if !has_clocks_of_its_children(pid)? {
        blockers.push(other_clocks(pid, "its children"));
    }
    Ok(blockers)
}

/// True if the process has the clocks that its children have, and their offsets can be read: a restore sets them again.
fn has_clocks_of_its_children(pid: i32) -> Result<bool, KernelStateError> {
    let of_process = namespace(&pid.to_string(), "time")?;
    let of_children = namespace(&pid.to_string(), "time_for_children")?;
    Ok(of_process == of_children && clocks::read(pid).is_some())
}

/// Clocks that a restore, in which all processes have the same, does not bring back.
pub fn other_clocks(pid: i32, whose: &str) -> Blocker {
    Blocker {
        pid,
        kind: BlockerKind::NamespaceTime,
        place: String::from("process"),
        what: format!("the process has other clocks than {whose} (time_namespaces(7))"),
        advice: String::from("let all of them be in one time namespace"),
        instead: Some(String::from("all have the clocks of the first process")),
    }
}

fn blocker(pid: i32, kind: &Kind) -> Blocker {
    let Kind { blocker, name, .. } = kind;
    Blocker {
        pid,
        kind: blocker.clone(),
        place: String::from("process"),
        what: format!("the process lives in another {name} namespace than pagetide"),
        advice: String::from("run pagetide inside that namespace, or the process outside of it"),
        instead: kind.instead.map(str::to_owned),
    }
}
