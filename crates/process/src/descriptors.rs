//! The files a process has open: a list of them, and copies of single ones.

use crate::identity::ProcessIdentity;
use pagetide_kernel::pidfd::{PidFd, PidFdError};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// A file descriptor of another process.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileDescriptor {
    /// Its number there.
    pub number: i32,
    /// What it refers to, as `/proc/PID/fd` shows it: a path, or `memfd:name`, `socket:[inode]`, ...
    pub target: PathBuf,
}

/// Why the open files of a process could not be listed or copied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// `/proc/PID/fd` could not be read.
    #[error("cannot list the open files of process {pid}")]
    List {
        /// The process.
        pid: i32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The process could not be opened, or the descriptor not copied.
    #[error("cannot copy a file descriptor of process {pid}")]
    Take {
        /// The process.
        pid: i32,
        /// What the kernel said.
        #[source]
        source: PidFdError,
    },
    /// The process has ended.
    #[error("process {pid} has ended")]
    Gone {
        /// The process.
        pid: i32,
    },
}

pub(crate) fn list(pid: i32) -> Result<Vec<FileDescriptor>, DescriptorError> {
    let failed = |source| DescriptorError::List { pid, source };
    let mut descriptors = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Some(number) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        match fs::read_link(entry.path()) {
            Ok(target) => descriptors.push(FileDescriptor { number, target }),
            // Closed meanwhile, if the process runs.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    descriptors.sort_by_key(|descriptor| descriptor.number);
    Ok(descriptors)
}

pub(crate) fn take(identity: &ProcessIdentity, number: i32) -> Result<OwnedFd, DescriptorError> {
    let pid = identity.pid;
    let failed = |source| DescriptorError::Take { pid, source };
    let process = PidFd::open(pid).map_err(failed)?;
    // The pidfd is open: if the start time is still right now, it refers to the right process.
    if !identity.is_alive_and_same() {
        return Err(DescriptorError::Gone { pid });
    }
    process.get_fd(number).map_err(failed)
}

impl ProcessIdentity {
    /// The open files of the process, by number. Needs ptrace access to it; it need not be stopped.
    pub fn fds(&self) -> Result<Vec<FileDescriptor>, DescriptorError> {
        list(self.pid)
    }

    /// A copy of one of its file descriptors, close-on-exec: `pidfd_getfd(2)`. Needs ptrace access;
    /// it need not be stopped.
    pub fn take_fd(&self, number: i32) -> Result<OwnedFd, DescriptorError> {
        take(self, number)
    }
}
