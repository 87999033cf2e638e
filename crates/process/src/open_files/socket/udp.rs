//! UDP sockets.

use super::address::{check_address, port};
use super::error::SocketError;
use super::foreign::ForeignSocket;
use super::options::Shape;
use super::queue::{Kept, look};
use super::state::{SocketState, UdpSocket};
use super::surroundings::{Surroundings, events};
use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use pagetide_kernel::socket::{
    bind, bytes_to_read, bytes_to_send, connect, own_address, peer_address,
};
use pagetide_kernel::socket_option::SocketOption;
use rustix::event::PollFlags;
use rustix::net::{Shutdown, shutdown};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// So long a datagram may be on its way to a device.
const ON_ITS_WAY: Duration = Duration::from_micros(500);

pub(super) fn read(
    socket: &ForeignSocket<'_>,
    shape: Shape,
    surroundings: &Surroundings,
    blockers: &mut Vec<Blocker>,
) -> io::Result<UdpSocket> {
    if SocketOption::UDP_ENCAP.read_int(socket.fd).unwrap_or(0) != 0 {
        blockers.push(socket.blocker(
            BlockerKind::UdpEncapsulation,
            "is a UDP socket that unwraps packets for the kernel (UDP_ENCAP)",
            "end the tunnel before the checkpoint",
            "the socket receives the packets as they are",
        ));
    }
    if let Some(group) = surroundings.groups.one_of(socket.fd) {
        blockers.push(socket.blocker(
            BlockerKind::MulticastGroup,
            &format!("is a UDP socket in the multicast group {group}"),
            "leave the group before the checkpoint, and join it again afterwards",
            "the socket is in no group",
        ));
    }
    if is_corked(socket.fd)? {
        blockers.push(socket.blocker(
            BlockerKind::UdpCorked,
            "is a UDP socket in which a datagram is being put together (UDP_CORK, MSG_MORE)",
            "let the program send it before the checkpoint",
            "what was put together is not sent",
        ));
    }
    let events = events(socket.fd);
    let shut = if events.contains(PollFlags::HUP) {
        3
    } else {
        u8::from(events.contains(PollFlags::RDHUP))
    };
    // Receiving anything would take away an error that waits to be told.
    let lost = if events.contains(PollFlags::ERR) {
        usize::from(bytes_to_read(socket.fd)? > 0)
    } else {
        look(socket.fd, Kept::Messages, 0)?.messages.len()
    };
    Ok(UdpSocket {
        ipv6: shape.family == 10,
        address: own_address(socket.fd)?,
        peer: peer_address(socket.fd)?.unwrap_or_default(),
        shutdown: shut,
        lost: u32::try_from(lost).unwrap_or(u32::MAX),
    })
}

/// True if something waits to be sent that nothing keeps from being sent: what is on its way to a device is gone a moment
/// later.
fn is_corked(socket: BorrowedFd<'_>) -> io::Result<bool> {
    if bytes_to_send(socket)? == 0 {
        return Ok(false);
    }
    std::thread::sleep(ON_ITS_WAY);
    Ok(bytes_to_send(socket)? > 0)
}

/// Opens one again. The datagrams that waited do not come back.
pub(super) fn reopen(
    index: usize,
    state: &SocketState,
    udp: &UdpSocket,
) -> Result<OwnedFd, SocketError> {
    let family = if udp.ipv6 { 10 } else { 2 };
    check_address(index, &udp.address, family)?;
    let shape = Shape {
        family,
        form: 2,
        protocol: 17,
    };
    let socket = shape.open().map_err(SocketError::open(index, "create"))?;
    state.set_options(index, socket.as_fd(), |_| true)?;
    if port(&udp.address) != 0 {
        bind(&socket, &udp.address).map_err(SocketError::open(index, "bind"))?;
    }
    if !udp.peer.is_empty() {
        check_address(index, &udp.peer, family)?;
        connect(&socket, &udp.peer).map_err(SocketError::open(index, "connect"))?;
    }
    let ends = [
        (1, Shutdown::Read),
        (2, Shutdown::Write),
        (3, Shutdown::Both),
    ];
    for (bits, how) in ends {
        if udp.shutdown == bits {
            shutdown(&socket, how)
                .map_err(|error| SocketError::open(index, "shut down")(error.into()))?;
        }
    }
    Ok(socket)
}
