//! The files that the processes of a snapshot have open, as data, and how they are opened again.
//!
//! Reading runs nothing in the processes and changes nothing in them: a copy of a descriptor (`pidfd_getfd(2)`) shares the open file
//! description, and what `/proc/PID/fdinfo` does not say, queries on the copy do. Nothing is ever read from it: what waits in a
//! pipe is duplicated with tee(2).
//!
//! A restore opens every description once, in the process that restores ([`OpenFiles::reopen`]); the processes are forked from that
//! one, inherit all of them, and put them at their numbers ([`OpenFiles::place`]). So what was shared is shared again. What can
//! only be opened once all processes are there comes last ([`OpenFiles::place_late`], [`OpenFiles::finish`]).
//!
//! What cannot be brought back is a [`Blocker`](crate::Blocker), which stands with the description it concerns, and which whoever restores
//! has to accept by its name.

#![allow(
    clippy::result_large_err,
    reason = "a blocker is a result like any other here, and as large as one"
)]

mod again;
mod bytes;
mod choices;
mod content;
mod descriptor_limit;
mod device;
mod directory;
mod epoll;
mod error;
mod eventfd;
mod fdinfo;
mod file_path;
mod finish;
mod foreign;
#[cfg(test)]
mod growth_tests;
mod inotify;
mod late;
mod locks;
mod memfd;
mod model;
mod object;
mod path;
mod pipe;
mod pipe_state;
mod place;
mod process_file;
mod read;
mod refused;
mod regular;
mod reopen;
mod served;
mod signalfd;
mod socket;
mod sorted;
mod tables;
mod terminal;
mod timerfd;

pub use bytes::OpenFilesDecodeError;
pub use choices::ReopenChoices;
pub use content::Run;
pub use device::DeviceState;
pub use directory::DirectoryState;
pub use epoll::{EpollEntry, EpollState};
pub use error::{OpenFilesError, ReopenError};
pub use eventfd::EventfdState;
pub use file_path::FilePath;
pub use inotify::{InotifyState, Watch};
pub use late::{Late, Now};
pub use locks::{DescriptionLock, LockRange, PosixLock};
pub use memfd::ObjectOrigin;
pub use model::{
    Description, Descriptor, DescriptorTable, Kind, OPEN_FILES_ATTACHMENT, OpenFiles, Owner,
};
pub use object::{ObjectUse, StoredObject};
pub use path::{PathIdentity, PathState};
pub use pipe_state::{PipeEnd, PipeOwner, PipeState};
pub use process_file::{ProcessFile, ProcessFileKind};
pub use regular::FileState;
pub use reopen::Reopened;
pub use signalfd::SignalfdState;
pub use socket::{SocketError, SocketState, TcpChoice};
pub use terminal::{StandardStream, TerminalState};
pub use timerfd::TimerfdState;
