//! One at a time takes checkpoints of a process: a lock that the kernel takes away from whoever ends. It lies on a file of
//! `/proc/PID`, which outlives execve(2) and which only those can open who may trace the process, so that nobody else keeps us
//! out, and nothing of it is in the process.

use crate::error::AttachError;
use rustix::fs::{FlockOperation, flock, fstat, major, minor};
use rustix::io::Errno;
use std::fs::File;

/// The right to take checkpoints of a process, as long as this lives.
#[derive(Debug)]
pub(crate) struct Claim {
    _file: File,
}

/// Somebody else takes checkpoints of the process.
#[derive(Debug)]
pub(crate) struct Claimed {
    /// Who, if `/proc/locks` tells.
    pub by: Option<i32>,
}

fn file(pid: i32) -> Option<File> {
    File::open(format!("/proc/{pid}/maps")).ok()
}

impl Claim {
    /// Takes it. `None` where the file cannot be opened: whoever is handled without that is refused elsewhere, or has ended.
    pub fn of(pid: i32) -> Result<Option<Self>, Claimed> {
        let Some(file) = file(pid) else {
            return Ok(None);
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(Errno::WOULDBLOCK) => Err(Claimed { by: holder(&file) }),
            // No such locks here: then there is nobody to tell apart.
            Err(_) => Ok(None),
        }
    }
}

/// Takes the right to take checkpoints of a process.
pub(crate) fn claim(pid: i32) -> Result<Option<Claim>, AttachError> {
    Claim::of(pid).map_err(|claimed| AttachError::Busy {
        pid,
        by: claimed.by,
    })
}

/// The process that takes checkpoints of process `pid` now, if any does: its pid, if that is known.
pub fn checkpointed_by(pid: i32) -> Option<Option<i32>> {
    Claim::of(pid).err().map(|claimed| claimed.by)
}

/// Whose lock lies on this file, as proc_locks(5) lists them.
fn holder(file: &File) -> Option<i32> {
    let stat = fstat(file).ok()?;
    let device = stat.st_dev;
    let place = format!(
        "{:02x}:{:02x}:{}",
        major(device),
        minor(device),
        stat.st_ino
    );
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let pid: i32 = words.get(4)?.parse().ok()?;
        (words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&place.as_str()) && pid > 0)
            .then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_told_who_the_first_is() {
        let own = i32::try_from(std::process::id()).expect("a pid");
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("sleep");
        let pid = i32::try_from(child.id()).expect("a pid");
        assert!(checkpointed_by(pid).is_none());
        let first = Claim::of(pid).expect("it is free").expect("it can be read");
        let second = Claim::of(pid).expect_err("it is taken");
        assert_eq!(second.by, Some(own));
        drop(first);
        assert!(checkpointed_by(pid).is_none());
        child.kill().and_then(|()| child.wait()).expect("it ends");
        assert!(Claim::of(pid).expect("nobody has it").is_none());
    }
}
