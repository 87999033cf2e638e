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

mod address;
mod blockers;
mod choices;
mod diag;
mod error;
mod file;
mod foreign;
mod groups;
mod options;
mod place;
mod queue;
mod read;
mod reopen;
mod rooted;
mod state;
mod surroundings;
mod tcp;
mod tcp_reopen;
mod udp;
mod unix;
mod unix_reopen;

pub use choices::{SocketChoices, TcpChoice};
pub use error::SocketError;
pub(crate) use file::Files as SocketFiles;
pub(crate) use foreign::ForeignSocket;
pub(crate) use read::read_sockets;
pub(crate) use reopen::{let_go, reopen_sockets};
pub use state::SocketState;

#[cfg(test)]
mod tests;
