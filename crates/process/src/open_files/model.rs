//! What processes have open, as data: descriptions, descriptors, and what they are open on.

use super::device::DeviceState;
use super::directory::DirectoryState;
use super::epoll::EpollState;
use super::eventfd::EventfdState;
use super::file_path::FilePath;
use super::inotify::InotifyState;
use super::locks::{DescriptionLock, PosixLock};
use super::memfd::ObjectOrigin;
use super::object::{ObjectUse, StoredObject};
use super::path::{PathIdentity, PathState};
use super::pipe_state::{PipeEnd, PipeOwner, PipeState};
use super::process_file::ProcessFile;
use super::regular::FileState;
use super::signalfd::SignalfdState;
use super::socket::SocketState;
use super::terminal::{StandardStream, TerminalState};
use super::timerfd::TimerfdState;
use crate::blocker::Blocker;
use bincode::{Decode, Encode};
use std::path::Path;

/// Name of the attachment of a snapshot that holds [`OpenFiles::to_bytes`].
pub const OPEN_FILES_ATTACHMENT: &str = "files";

/// What all processes of a snapshot have open.
#[derive(Debug, Clone, PartialEq, Default, Encode, Decode)]
pub struct OpenFiles {
    /// The open file descriptions, each once, whoever shares it.
    pub descriptions: Vec<Description>,
    /// The descriptors of each process.
    pub tables: Vec<DescriptorTable>,
    /// The pipes and FIFOs that descriptions are ends of.
    pub pipes: Vec<PipeState>,
    /// The files without a name that descriptions are of.
    pub objects: Vec<StoredObject>,
    /// To whom the pipes belong, in their order; none where it is not known, as before version 2 of the format.
    pub pipe_owners: Vec<PipeOwner>,
}

/// One open file description (`open(2)`): what dup(2) and fork(2) share.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Description {
    /// Access mode and status flags, as `F_GETFL` of fcntl(2) tells them; O_PATH included.
    pub status_flags: u32,
    /// Whom the kernel signals about it.
    pub owner: Option<Owner>,
    /// Locks that belong to it: flock(2), and record locks of open file descriptions.
    pub locks: Vec<DescriptionLock>,
    /// What it is open on.
    pub kind: Kind,
    /// What a restore does not bring back of it.
    pub blockers: Vec<Blocker>,
}

/// Whom the kernel signals when an open file description is ready: fcntl(2), F_SETOWN_EX and F_SETSIG.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Owner {
    /// What the number is of: 0 a thread, 1 a process, 2 a process group.
    pub kind: u8,
    /// The number, of the time of the snapshot; 0 if nobody is signalled.
    pub number: i32,
    /// The signal; 0 for SIGIO without details.
    pub signal: i32,
}

/// What an open file description is open on. The order of the kinds is part of the format.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[non_exhaustive]
pub enum Kind {
    /// Nothing that could be opened again: its descriptors are closed in a restore that accepts it.
    Closed,
    /// pagetide's own descriptor of the same number.
    StandardStream(StandardStream),
    /// A regular file that its path leads to.
    File(FileState),
    /// A directory.
    Directory(DirectoryState),
    /// A file of any kind, opened with O_PATH.
    Path(PathState),
    /// A regular file that no path leads to: deleted, or of memory.
    Object(ObjectUse),
    /// An end of a pipe or FIFO.
    Pipe(PipeEnd),
    /// A counter: eventfd(2).
    Eventfd(EventfdState),
    /// A set of files that are waited for: epoll(7).
    Epoll(EpollState),
    /// A timer: timerfd_create(2).
    Timerfd(TimerfdState),
    /// Signals: signalfd(2).
    Signalfd(SignalfdState),
    /// Watches of files: inotify(7).
    Inotify(InotifyState),
    /// A character device that has no state: null(4) and kin.
    Device(DeviceState),
    /// A terminal that is not a standard stream.
    Terminal(TerminalState),
    /// What refers to a process of the snapshot: pidfd, or a file of `/proc/PID`.
    Process(ProcessFile),
    /// A socket.
    Socket(SocketState),
}

/// The descriptors of one process, and where it stands in the file system.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct DescriptorTable {
    /// Its number at the time of the snapshot.
    pub pid: i32,
    /// Its descriptors, by number.
    pub entries: Vec<Descriptor>,
    /// Current directory; none if it could not be brought back.
    pub cwd: Option<PathIdentity>,
    /// Root directory; none if it could not be brought back.
    pub root: Option<PathIdentity>,
    /// Record locks of the process.
    pub posix_locks: Vec<PosixLock>,
    /// What a restore does not bring back of the table as such.
    pub blockers: Vec<Blocker>,
}

/// One descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Descriptor {
    /// Its number.
    pub number: i32,
    /// Whether execve(2) closes it.
    pub close_on_exec: bool,
    /// The description, by its place in [`OpenFiles::descriptions`].
    pub description: u32,
}

impl OpenFiles {
    /// All that a restore does not bring back of it.
    pub fn blockers(&self) -> impl Iterator<Item = &Blocker> {
        let of_sockets = self.descriptions.iter().flat_map(|one| match &one.kind {
            Kind::Socket(state) => state.blockers(),
            _ => &[],
        });
        self.blockers_without_sockets().chain(of_sockets)
    }

    pub(super) fn kind(&self, place: usize) -> Option<&Kind> {
        self.descriptions.get(place).map(|one| &one.kind)
    }

    pub(super) fn blockers_without_sockets(&self) -> impl Iterator<Item = &Blocker> {
        let of_descriptions = self.descriptions.iter().flat_map(|one| &one.blockers);
        of_descriptions.chain(self.tables.iter().flat_map(|one| &one.blockers))
    }

    /// All paths that a restore opens; those of sockets are not among them, nor the root directory as a place to stand in.
    pub fn paths(&self) -> impl Iterator<Item = &FilePath> {
        let descriptions = self.descriptions.iter().filter_map(|one| match &one.kind {
            Kind::File(state) => Some(&state.at.path),
            Kind::Directory(state) => Some(&state.at.path),
            Kind::Path(state) => Some(&state.at.path),
            Kind::Device(state) => Some(&state.path),
            Kind::Terminal(state) => Some(&state.path),
            _ => None,
        });
        let watches = self.descriptions.iter().flat_map(|one| match &one.kind {
            Kind::Inotify(state) => state.watches.as_slice(),
            _ => &[],
        });
        let tables = self.tables.iter();
        let directories = tables.flat_map(|table| [&table.cwd, &table.root]).flatten();
        // Every process stands somewhere in the root directory.
        let directories = directories.filter(|at| at.path.as_path() != Path::new("/"));
        let pipes = self.pipes.iter().filter_map(|pipe| pipe.at.as_ref());
        let objects = self
            .objects
            .iter()
            .filter_map(|object| match &object.origin {
                ObjectOrigin::Deleted { directory } => Some(directory),
                ObjectOrigin::Memfd { .. } => None,
            });
        descriptions
            .chain(watches.map(|watch| &watch.at.path))
            .chain(directories.chain(pipes).map(|at| &at.path))
            .chain(objects)
    }
}
