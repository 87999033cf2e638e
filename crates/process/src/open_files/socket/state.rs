//! A socket as data: what a store holds of one.
//!
//! Addresses are the bytes of a `sockaddr`. A socket knows its peer by the peer's inode, the number that
//! `/proc/PID/fd` shows: within one snapshot it is unique.

use super::options::{Buffers, KeptOption};
use crate::blocker::Blocker;
use bincode::{Decode, Encode};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// One socket (one open file description) as it was at the stop.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct SocketState {
    /// Its inode then.
    pub(super) inode: u64,
    /// User and group that own it: what the kernel takes its messages to come from.
    pub(super) owner: [u32; 2],
    /// Options that were not as they are on a new socket.
    pub(super) options: Vec<KeptOption>,
    /// Sizes of its buffers.
    pub(super) buffers: Buffers,
    /// What it is.
    pub(super) kind: SocketKind,
    /// What of it does not come back.
    pub(super) blockers: Vec<Blocker>,
}

impl SocketState {
    /// What of it does not come back although it can be opened again.
    pub fn blockers(&self) -> &[Blocker] {
        &self.blockers
    }

    /// The paths that opening it again touches: a Unix socket's own, at which a file is made, and its peer's outside, to
    /// which it connects.
    pub fn paths(&self) -> Vec<PathBuf> {
        let SocketKind::Unix(unix) = &self.kind else {
            return Vec::new();
        };
        let path = |name: &[u8]| PathBuf::from(OsStr::from_bytes(name));
        let own = unix.file.as_ref();
        let own = own.map(|file| path(&file.directory).join(path(&unix.name)));
        let outside = unix.role == UnixRole::PeerByName && unix.peer_name.first() != Some(&0);
        let peer = outside.then(|| path(&unix.peer_name));
        own.into_iter().chain(peer).collect()
    }
}

/// What a socket is.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) enum SocketKind {
    Unix(UnixSocket),
    Tcp(TcpSocket),
    Udp(UdpSocket),
    Netlink(NetlinkSocket),
}

/// A Unix socket.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct UnixSocket {
    pub form: UnixForm,
    /// Its name without the family: empty, a path, or a zero byte and an abstract name.
    pub name: Vec<u8>,
    /// The file of the name, if the path led to this very socket.
    pub file: Option<SocketFile>,
    pub role: UnixRole,
    /// Name of the peer, as getpeername(2) gives it.
    pub peer_name: Vec<u8>,
    /// Bit 0: no more is received. Bit 1: no more is sent.
    pub shutdown: u8,
    /// What waits to be received, the oldest first; of a stream in parts of any length.
    pub queue: Vec<Message>,
}

/// Type of a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) enum UnixForm {
    Stream,
    Datagram,
    Packets,
}

/// The file a Unix socket is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct SocketFile {
    /// The directory from which a relative name leads to it.
    pub directory: Vec<u8>,
    pub mode: u32,
    pub owner: [u32; 2],
}

/// What a Unix socket is to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) enum UnixRole {
    /// Nobody's peer, as far as it knows.
    Alone,
    /// Takes connections. Those that wait to be accepted are not kept.
    Listening { backlog: u32 },
    /// Its peer is the socket of the tree with this inode.
    PeerInside { inode: u64 },
    /// Its peer is a datagram socket outside the tree, and has a name.
    PeerByName,
    /// Its peer was closed, or counts as closed; `reset` if that left an error (ECONNRESET) to be read.
    PeerGone { reset: bool },
}

/// A message that waits to be received.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct Message {
    pub bytes: Vec<u8>,
    /// Who sent it: the bytes of an address, empty if it has none.
    pub source: Vec<u8>,
}

/// A TCP socket, of IPv4 or IPv6.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct TcpSocket {
    pub ipv6: bool,
    /// Its own address; port 0 if it is not bound.
    pub address: Vec<u8>,
    pub role: TcpRole,
}

/// What a TCP socket is to others.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) enum TcpRole {
    /// Bound or not, not connected.
    Alone,
    /// Takes connections. Those that wait to be accepted are not kept.
    Listening { backlog: u32 },
    /// Connected, and can be connected again by TCP_REPAIR.
    Connected(Box<TcpConnection>),
    /// Was connected. `reset`: an error is left to be read. Or the connection cannot be brought back and counts as reset.
    Over { reset: bool, received: Vec<u8> },
}

/// A connection, as TCP_REPAIR tells it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct TcpConnection {
    pub peer: Vec<u8>,
    /// Sequence number of the first byte of `to_send`.
    pub send_sequence: u32,
    /// Sent and not acknowledged, or not sent yet.
    pub to_send: Vec<u8>,
    /// Sequence number of the first byte of `received`.
    pub receive_sequence: u32,
    /// Received and not read yet.
    pub received: Vec<u8>,
    pub segment_bytes: u32,
    /// Shifts of the windows, of the peer's and of ours, if both sides agreed to scale.
    pub window_scales: Option<[u8; 2]>,
    pub selective_acks: bool,
    /// The clock of the connection, if it has time stamps.
    pub timestamp: Option<u32>,
    /// `struct tcp_repair_window`.
    pub window: [u8; 20],
    /// We have said that we send no more.
    pub send_ended: bool,
    /// Nothing more will be received: the peer has said so (and its FIN is counted in), or the program.
    pub receive_ended: bool,
    /// The peer's FIN takes a sequence number behind `received`.
    pub peer_ended: bool,
}

/// A UDP socket, of IPv4 or IPv6.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct UdpSocket {
    pub ipv6: bool,
    /// Its own address; port 0 if it is not bound.
    pub address: Vec<u8>,
    /// The peer it is connected to; empty if it is not.
    pub peer: Vec<u8>,
    /// Bit 0: no more is received. Bit 1: no more is sent.
    pub shutdown: u8,
    /// How many datagrams waited, or, if an error did, too, whether any did. They are lost, as datagrams may be.
    pub lost: u32,
}

/// A netlink socket without groups and messages.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct NetlinkSocket {
    /// SOCK_RAW or SOCK_DGRAM, between which netlink makes no difference.
    pub datagram: bool,
    /// NETLINK_ROUTE and so on.
    pub protocol: u32,
    /// Its own address; port 0 if it has none yet.
    pub address: Vec<u8>,
}
