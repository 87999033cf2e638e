//! TCP sockets: what they are, and the state of connections by TCP_REPAIR.
//!
//! TCP_REPAIR, Linux 3.5 (TCP_REPAIR_WINDOW 4.8, TCP_REPAIR_OFF_NO_WP 4.20), needs CAP_NET_ADMIN. While it is on, the connection goes on
//! receiving and acknowledging. It is switched off by TCP_REPAIR_OFF_NO_WP, since the plain way sends a probe to the peer; and
//! either way clears SO_REUSEADDR, which is put back.

use super::foreign::ForeignSocket;
use super::options::{KeptOption, Shape};
use super::queue::{PeekOffset, QUEUE_BYTES_MAX};
use super::state::{TcpConnection, TcpRole, TcpSocket};
use super::surroundings::events;
use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use pagetide_kernel::socket::{
    PEEK_URGENT, bytes_to_read, bytes_to_send, own_address, peek, peer_address,
};
use pagetide_kernel::socket_option::SocketOption;
use rustix::event::PollFlags;
use std::io;
use std::os::fd::BorrowedFd;

const SYN_SENT: u8 = 2;
const SYN_RECV: u8 = 3;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const LISTEN: u8 = 10;
const CLOSING: u8 = 11;

pub(super) const REPAIR_ON: i32 = 1;
pub(super) const REPAIR_OFF: i32 = 0;
const REPAIR_OFF_SILENTLY: i32 = -1;
pub(super) const QUEUE_NONE: i32 = 0;
pub(super) const QUEUE_RECEIVE: i32 = 1;
pub(super) const QUEUE_SEND: i32 = 2;

/// Bits of `tcpi_options`.
const HAS_TIMESTAMPS: u8 = 1;
const HAS_SACK: u8 = 2;
const HAS_SCALES: u8 = 4;

/// Kinds of blockers that do not matter if connections are to be reset.
pub(super) static BLOCKERS: [BlockerKind; 6] = [
    BlockerKind::TcpBacklog,
    BlockerKind::TcpState,
    BlockerKind::TcpRepair,
    BlockerKind::TcpUrgent,
    BlockerKind::TcpUlp,
    BlockerKind::TlsSocket,
];

/// How often a connection is read again that changes while it is read.
const READS_MAX: usize = 100;

pub(super) fn read(
    socket: &ForeignSocket<'_>,
    shape: Shape,
    options: &mut Vec<KeptOption>,
    blockers: &mut Vec<Blocker>,
) -> io::Result<TcpSocket> {
    let info = Info::of(socket.fd)?;
    let role = match info.state {
        LISTEN => {
            if info.waiting > 0 {
                blockers.push(socket.blocker(
                    BlockerKind::TcpBacklog,
                    "is a TCP socket on which connections wait to be accepted",
                    "take the checkpoint at another moment, or restore with `--tcp reset`",
                    "the connections that waited are reset",
                ));
            }
            TcpRole::Listening {
                backlog: info.backlog,
            }
        }
        CLOSE => read_closed(socket.fd)?,
        _ => read_open(socket, info.state, blockers)?,
    };
    if matches!(role, TcpRole::Connected(_) | TcpRole::Over { .. }) {
        // Of a connection these tell what came out, not what the program wants.
        options.retain(|option| {
            !option.is(SocketOption::TCP_MAXSEG) && !option.is(SocketOption::TCP_WINDOW_CLAMP)
        });
    }
    Ok(TcpSocket {
        ipv6: shape.family == 10,
        address: own_address(socket.fd)?,
        role,
    })
}

/// The fields of `struct tcp_info` that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Info {
    state: u8,
    options: u8,
    scales: u8,
    /// Of a listening socket: how many wait to be accepted, and how many may.
    waiting: u32,
    backlog: u32,
}

impl Info {
    fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let bytes = SocketOption::TCP_INFO.read(socket)?;
        let byte = |at: usize| bytes.get(at).copied();
        let word = |at: usize| {
            let bytes = bytes.get(at..at + 4)?;
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        };
        let info = || {
            Some(Self {
                state: byte(0)?,
                options: byte(5)?,
                scales: byte(6)?,
                waiting: word(24)?,
                backlog: word(28)?,
            })
        };
        info().ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    }
}

/// One that was never connected, or is no longer.
fn read_closed(socket: BorrowedFd<'_>) -> io::Result<TcpRole> {
    let events = events(socket);
    if !events.contains(PollFlags::RDHUP) {
        return Ok(TcpRole::Alone);
    }
    Ok(TcpRole::Over {
        // It cannot be asked which error it is without taking it away: ECONNRESET nearly always.
        reset: events.contains(PollFlags::ERR),
        received: look_at_received(socket).unwrap_or_default(),
    })
}

fn read_open(
    socket: &ForeignSocket<'_>,
    state: u8,
    blockers: &mut Vec<Blocker>,
) -> io::Result<TcpRole> {
    let mut lost = |kind: BlockerKind, what: &str, advice: &str| {
        blockers.push(socket.blocker(kind, what, advice, "the connection is reset"));
        Ok(TcpRole::Over {
            reset: true,
            received: Vec::new(),
        })
    };
    let reset = "close it before the checkpoint, or restore with connections reset";
    if matches!(state, SYN_SENT | SYN_RECV) {
        return lost(
            BlockerKind::TcpState,
            "is a TCP connection that is being made",
            reset,
        );
    }
    let layer = SocketOption::TCP_ULP.read(socket.fd).unwrap_or_default();
    if layer.starts_with(b"tls") {
        return lost(
            BlockerKind::TlsSocket,
            "is a TCP connection encrypted by the kernel",
            reset,
        );
    }
    if layer.first().is_some_and(|first| *first != 0) {
        return lost(
            BlockerKind::TcpUlp,
            "is a TCP connection with another protocol of the kernel on it",
            reset,
        );
    }
    if peek(socket.fd, &mut [0], 0, PEEK_URGENT).is_ok_and(|byte| byte.is_some()) {
        return lost(
            BlockerKind::TcpUrgent,
            "is a TCP connection in which an urgent byte waits (MSG_OOB)",
            "let the program read it before the checkpoint, or restore with connections reset",
        );
    }
    match read_connection(socket.fd) {
        Ok(Some(connection)) => Ok(TcpRole::Connected(Box::new(connection))),
        // It has ended between the two looks.
        Ok(None) => read_closed(socket.fd),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => lost(
            BlockerKind::TcpRepair,
            "is a TCP connection, and looking into it needs CAP_NET_ADMIN",
            "checkpoint with that capability, or restore with connections reset",
        ),
        Err(error) => Err(error),
    }
}

/// Repair mode, which ends when this is dropped.
struct Repair<'a> {
    socket: BorrowedFd<'a>,
    reuse_address: i32,
}

impl<'a> Repair<'a> {
    fn start(socket: BorrowedFd<'a>) -> io::Result<Self> {
        let reuse_address = SocketOption::REUSEADDR.read_int(socket)?;
        SocketOption::TCP_REPAIR.set_int(socket, REPAIR_ON)?;
        Ok(Self {
            socket,
            reuse_address,
        })
    }

    fn queue(&self, queue: i32) -> io::Result<u32> {
        SocketOption::TCP_REPAIR_QUEUE.set_int(self.socket, queue)?;
        Ok(SocketOption::TCP_QUEUE_SEQ
            .read_int(self.socket)?
            .cast_unsigned())
    }
}

impl Drop for Repair<'_> {
    fn drop(&mut self) {
        // Who may switch it on may switch it off, and both calls only set a flag.
        let _ = SocketOption::TCP_REPAIR.set_int(self.socket, REPAIR_OFF_SILENTLY);
        let _ = SocketOption::REUSEADDR.set_int(self.socket, self.reuse_address);
    }
}

/// `None` if the connection has ended.
fn read_connection(socket: BorrowedFd<'_>) -> io::Result<Option<TcpConnection>> {
    let Some(peer) = peer_address(socket)? else {
        return Ok(None);
    };
    let repair = Repair::start(socket)?;
    for _ in 0..READS_MAX {
        let before = Info::of(socket)?;
        if before.state == CLOSE {
            return Ok(None);
        }
        let receive_end = repair.queue(QUEUE_RECEIVE)?;
        let received = look_at_received(socket)?;
        if repair.queue(QUEUE_RECEIVE)? != receive_end {
            continue;
        }
        let send_end = repair.queue(QUEUE_SEND)?;
        let to_send = look_at(socket, bytes_to_send(socket)?)?;
        let window = SocketOption::TCP_REPAIR_WINDOW.read_sized::<20>(socket)?;
        let timestamp = SocketOption::TCP_TIMESTAMP.read_int(socket)?;
        let segment_bytes = SocketOption::TCP_MAXSEG.read_int(socket)?;
        if repair.queue(QUEUE_RECEIVE)? != receive_end || Info::of(socket)? != before {
            continue;
        }
        let send_ended = matches!(before.state, FIN_WAIT1 | FIN_WAIT2 | CLOSING | LAST_ACK);
        let peer_ended = matches!(before.state, CLOSE_WAIT | CLOSING | LAST_ACK);
        let has = |bit: u8| before.options & bit != 0;
        return Ok(Some(TcpConnection {
            peer,
            send_sequence: send_end
                .wrapping_sub(u32::from(send_ended))
                .wrapping_sub(length_of(&to_send)),
            receive_sequence: receive_end
                .wrapping_sub(u32::from(peer_ended))
                .wrapping_sub(length_of(&received)),
            to_send,
            received,
            segment_bytes: segment_bytes.cast_unsigned(),
            window_scales: has(HAS_SCALES).then_some([before.scales & 15, before.scales >> 4]),
            selective_acks: has(HAS_SACK),
            timestamp: has(HAS_TIMESTAMPS).then_some(timestamp.cast_unsigned()),
            window: window.try_into().map_err(|_| io::ErrorKind::InvalidData)?,
            send_ended,
            receive_ended: peer_ended || events(socket).contains(PollFlags::RDHUP),
            peer_ended,
        }));
    }
    Err(io::Error::other("the connection does not come to rest"))
}

/// Queues are bounded by [`QUEUE_BYTES_MAX`].
fn length_of(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// What waits to be received, from its beginning whatever SO_PEEK_OFF says.
fn look_at_received(socket: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let _offset = PeekOffset::hold_at_start(socket)?;
    look_at(socket, bytes_to_read(socket)?)
}

/// At most `length` bytes of the queue that is chosen. The send queue is copied as a whole or not at all.
fn look_at(socket: BorrowedFd<'_>, length: usize) -> io::Result<Vec<u8>> {
    if length > QUEUE_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut bytes = vec![0; length];
    if length > 0 {
        let looked = peek(socket, &mut bytes, 0, 0)?;
        bytes.truncate(looked.map_or(0, |looked| looked.length_bytes));
    }
    Ok(bytes)
}
