//! Why open files could not be read, or not be brought back.

use super::file_path::FilePath;
use super::socket::SocketError;
use crate::blocker::Blocker;
use crate::opener::OpenError;
use crate::remote_error::RemoteCallError;
use pagetide_kernel::maps::MapsError;
use pagetide_kernel::pidfd::PidFdError;
use rustix::io::Errno;
use std::io;
use std::path::PathBuf;

/// Why open files were not brought back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReopenError {
    /// Something that cannot be brought back was not accepted.
    #[error("process {}: {blocker}", blocker.pid)]
    Blocked {
        /// It.
        blocker: Box<Blocker>,
    },
    /// A file could not be opened.
    #[error("cannot open {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// A file was found, and is not to be opened.
    #[error("{path} {source}")]
    NotOpened {
        /// The path in the snapshot.
        path: PathBuf,
        /// Why not.
        source: OpenError,
    },
    /// A file is not what it was.
    #[error(
        "{path} has changed since the snapshot: {what}; --accept file-changed:{path} uses it as it is"
    )]
    FileChanged {
        /// The file.
        path: PathBuf,
        /// What is otherwise.
        what: String,
    },
    /// Something that has no path could not be made.
    #[error("cannot make {what} again")]
    Make {
        /// What.
        what: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// Memory that processes share was to be handed over, and was not.
    #[error(
        "{what} (device {device:#x}, inode {inode}) is memory that was not made before the files"
    )]
    ObjectMissing {
        /// What.
        what: String,
        /// Its device at the time of the snapshot.
        device: u64,
        /// Its inode at the time of the snapshot.
        inode: u64,
    },
    /// A socket could not be opened.
    #[error("cannot open the sockets")]
    Socket(#[source] Box<SocketError>),
    /// A lock is held by somebody else now.
    #[error("cannot lock {what}: another program holds a lock on it")]
    Locked {
        /// What.
        what: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// There is no process of this number in the snapshot.
    #[error("the snapshot has no descriptors of process {pid}")]
    NoSuchTable {
        /// The number.
        pid: i32,
    },
    /// The limit of open files is too low.
    #[error("cannot have descriptor {number}: the limit of open files is too low")]
    TooMany {
        /// The number wanted.
        number: i32,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// A process could not put a descriptor or itself where it was.
    #[error("process {pid} (formerly) cannot {what}")]
    Place {
        /// Its number at the time of the snapshot.
        pid: i32,
        /// What it was to do.
        what: String,
        /// What went wrong.
        #[source]
        source: RemoteCallError,
    },
    /// Whom a file signals could not be set.
    #[error("cannot set whom {what} signals")]
    Owner {
        /// What.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Why the open files of processes could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenFilesError {
    /// A file of `/proc` could not be read.
    #[error("cannot read {path}")]
    Proc {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A process has ended.
    #[error("process {pid} has ended")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// A descriptor could not be copied.
    #[error("cannot copy a file descriptor of process {pid}")]
    Copy {
        /// The process.
        pid: i32,
        /// What the kernel said.
        #[source]
        source: PidFdError,
    },
    /// A copy could not be looked at.
    #[error("cannot look at file descriptor {number} of process {pid}")]
    Look {
        /// The process.
        pid: i32,
        /// The descriptor.
        number: i32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel does not tell which descriptors are the same; it needs CONFIG_KCMP.
    #[error("cannot compare file descriptors")]
    Compare(#[source] io::Error),
    /// The mappings of a process could not be read.
    #[error("cannot read the mappings of process {pid}")]
    Maps {
        /// The process.
        pid: i32,
        /// What went wrong.
        #[source]
        source: MapsError,
    },
}

impl ReopenError {
    /// True if something here is not as it has to be, as opposed to something that failed.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Blocked { .. } | Self::FileChanged { .. } | Self::Locked { .. } => true,
            Self::Open { source, .. } => matches!(*source, Errno::NOENT | Errno::NOTDIR),
            Self::NotOpened { source, .. } => source.is_refusal(),
            Self::Socket(error) => error.is_refusal(),
            _ => false,
        }
    }

    pub(crate) fn opening(path: &FilePath, error: OpenError) -> Self {
        let path = path.as_path().to_owned();
        match error {
            OpenError::Kernel(source) => Self::Open { path, source },
            source => Self::NotOpened { path, source },
        }
    }

    pub(crate) fn changed(path: &FilePath, what: &str) -> Self {
        Self::FileChanged {
            path: path.as_path().to_owned(),
            what: what.to_owned(),
        }
    }
}
