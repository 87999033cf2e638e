//! Sockets of a process tree as data, and opened again.
//!
//! [`read_sockets`] looks at all sockets of a tree at once, since two of them may be the ends of one connection, and takes nothing
//! out of them. What cannot be kept at all is `Err`: if the user accepts that blocker, whoever restores closes the
//! descriptor, and hands no state to [`reopen_sockets`]. What can be kept in part is `Ok` with
//! [`SocketState::blockers`]: once those are accepted, [`reopen_sockets`] opens it as their `instead` says.
//!
//! What differs even without a blocker: the pid that SO_PEERCRED and SO_PEERPIDFD tell of a connection is that of the
//! restoring process; connections that waited to be accepted are gone, and their clients see a reset, as after any
//! end of the process; datagrams that waited in a UDP socket are lost, as datagrams may be.
//!
//! A TCP connection lives on only if its peer does not know that the process was gone. Ending a process ends its connections:
//! the kernel sends FIN, or a reset if something was unread. After that the peer answers what the restored connection
//! sends with a reset at the latest when the peer's program has closed its side, and the program reads ECONNRESET; what the two
//! exchanged between snapshot and end cannot be made undone either. Only a connection that was silenced before
//! the end (TCP_REPAIR, or a packet filter, as on a move to another machine) goes on as if nothing had happened.

mod blockers;
mod diag;
mod file;
mod groups;
mod options;
mod place;
mod queue;
mod read;
mod reopen;
mod state;
mod tcp;
mod tcp_reopen;
mod udp;
mod unix;
mod unix_reopen;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::BorrowedFd;

pub(crate) use file::Files as SocketFiles;
pub(crate) use read::read_sockets;
pub(crate) use reopen::{let_go, reopen_sockets};
pub use state::SocketState;

use crate::blocker::Blocker;

/// A socket of the target, held here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForeignSocket<'a> {
    /// The process that has it.
    pub pid: i32,
    /// Its number there.
    pub number: i32,
    /// The number in `socket:[...]`.
    pub inode: u64,
    /// A copy by pidfd_getfd(2), which shares the open file description.
    pub fd: BorrowedFd<'a>,
}

/// What the user wants to become of sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketChoices {
    /// Names of the blockers that are accepted, as [`Blocker::name`] tells them.
    pub accepted: BTreeSet<String>,
    /// What becomes of TCP connections.
    pub tcp: TcpChoice,
}

/// What becomes of TCP connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcpChoice {
    /// They go on, if the peer is there. Needs CAP_NET_ADMIN.
    #[default]
    Restore,
    /// They are reset: the program reads ECONNRESET.
    Reset,
}

impl SocketError {
    /// True if something that is here now is in the way.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            SocketError::Refused(_) => true,
            SocketError::Open { source, .. } => source.kind() == io::ErrorKind::AddrInUse,
            _ => false,
        }
    }
}

impl SocketChoices {
    /// Those of the socket's blockers that stand against opening it again.
    pub(crate) fn refused<'a>(
        &'a self,
        state: &'a SocketState,
    ) -> impl Iterator<Item = &'a Blocker> {
        state.blockers().iter().filter(|blocker| {
            let moot =
                self.tcp == TcpChoice::Reset && tcp::BLOCKERS.contains(&blocker.kind.as_str());
            !moot && !self.accepted.contains(&blocker.name())
        })
    }
}

/// Why sockets could not be opened again. None of them is open then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Something of a socket does not come back, and the user has not accepted that.
    #[error("{0}")]
    Refused(Box<Blocker>),
    /// A socket holds values that no socket can have.
    #[error("the state of open file {index} is damaged: {what}")]
    Damaged {
        /// Which one, as the caller counts.
        index: usize,
        /// Which value.
        what: &'static str,
    },
    /// A system call failed.
    #[error("cannot {what} the socket of open file {index}")]
    Open {
        /// Which one, as the caller counts.
        index: usize,
        /// What was done.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl SocketError {
    /// For `map_err`.
    fn open(index: usize, what: &str) -> impl FnOnce(io::Error) -> Self + use<> {
        let what = what.to_owned();
        move |source| Self::Open {
            index,
            what,
            source,
        }
    }
}

#[cfg(test)]
mod tests;
