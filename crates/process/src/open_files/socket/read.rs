//! Sockets read, one after the other, with what they know of each other.

use super::blockers::{Known, classify};
use super::diag::UnixDiag;
use super::foreign::ForeignSocket;
use super::groups::Groups;
use super::options::{Buffers, Defaults, Shape};
use super::state::{NetlinkSocket, SocketKind, SocketState};
use super::surroundings::{Surroundings, events};
use super::{tcp, udp, unix};
use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use pagetide_kernel::socket::own_address;
use pagetide_kernel::socket_option::{SocketOption, has_filter};
use rustix::event::PollFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::io;
use std::os::fd::AsFd;

/// Reads sockets, in the given order. All of the tree have to be there, each open file description once. The processes
/// have to stand still. Nothing changes in them, but that TCP connections are in repair mode for a moment.
#[tracing::instrument(level = "debug", skip_all, name = "sockets", fields(count = sockets.len()))]
pub(crate) fn read_sockets(sockets: &[ForeignSocket<'_>]) -> Vec<Result<SocketState, Blocker>> {
    let mut surroundings = Surroundings {
        inside: sockets.iter().map(|socket| socket.inode).collect(),
        diag: UnixDiag::open().ok(),
        groups: Groups::default(),
        defaults: Defaults::default(),
        namespace: own_namespace(),
    };
    let mut read: Vec<_> = sockets
        .iter()
        .map(|socket| read_one(socket, &mut surroundings).map_err(|blocker| *blocker))
        .collect();
    unix::settle_datagrams(sockets, &mut read);
    read
}

fn own_namespace() -> Option<Vec<u8>> {
    let own = socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    );
    namespace_of(own.ok()?)
}

/// SO_NETNS_COOKIE, Linux 5.14.
fn namespace_of(socket: impl AsFd) -> Option<Vec<u8>> {
    SocketOption::NETNS_COOKIE.read_sized::<8>(socket).ok()
}

fn read_one(
    socket: &ForeignSocket<'_>,
    surroundings: &mut Surroundings,
) -> Result<SocketState, Box<Blocker>> {
    let unreadable = |error: io::Error| {
        Box::new(socket.closed(
            BlockerKind::UnreadableSocket,
            &format!("is a socket that cannot be read: {error}"),
        ))
    };
    let shape = Shape::of(socket.fd).map_err(unreadable)?;
    let known = classify(shape).map_err(|(kind, what)| Box::new(socket.closed(kind, &what)))?;
    if namespace_of(socket.fd) != surroundings.namespace {
        let what = "is a socket of another network namespace";
        return Err(Box::new(socket.closed(BlockerKind::SocketNamespace, what)));
    }
    let mut blockers = Vec::new();
    if has_filter(socket.fd).map_err(unreadable)? {
        blockers.push(socket.blocker(
            BlockerKind::SocketFilter,
            "is a socket with a filter",
            "detach the filter (SO_DETACH_FILTER) before the checkpoint",
            "the socket has no filter",
        ));
    }
    // Before anything of TCP is read, since repair mode shows other values.
    let mut options = surroundings
        .defaults
        .differing(socket.fd, shape)
        .map_err(unreadable)?;
    let buffers = Buffers::of(socket.fd).map_err(unreadable)?;
    let stat = rustix::fs::fstat(socket.fd).map_err(|error| unreadable(error.into()))?;
    let kind = match known {
        Known::Unix => unix::read(socket, shape, surroundings, &mut blockers).map(SocketKind::Unix),
        Known::Tcp => tcp::read(socket, shape, &mut options, &mut blockers).map(SocketKind::Tcp),
        Known::Udp => udp::read(socket, shape, surroundings, &mut blockers).map(SocketKind::Udp),
        Known::Netlink => read_netlink(socket, shape)?.map(SocketKind::Netlink),
    };
    Ok(SocketState {
        inode: socket.inode,
        owner: [stat.st_uid, stat.st_gid],
        options,
        buffers,
        kind: kind.map_err(unreadable)?,
        blockers,
    })
}

/// Protocols in which the kernel remembers nothing of a socket but its address and its groups: NETLINK_ROUTE, NETLINK_SOCK_DIAG and
/// NETLINK_GENERIC.
const PLAIN_PROTOCOLS: [i32; 3] = [0, 4, 16];

fn read_netlink(
    socket: &ForeignSocket<'_>,
    shape: Shape,
) -> Result<io::Result<NetlinkSocket>, Box<Blocker>> {
    let busy = |what: &str| {
        let what = format!("is a netlink socket {what}");
        Box::new(socket.closed(BlockerKind::Netlink, &what))
    };
    if !PLAIN_PROTOCOLS.contains(&shape.protocol) {
        return Err(busy(&format!("of protocol {}", shape.protocol)));
    }
    let groups = SocketOption::NETLINK_LIST_MEMBERSHIPS.read(socket.fd);
    if groups.is_ok_and(|groups| groups.iter().any(|byte| *byte != 0)) {
        return Err(busy("that listens to events"));
    }
    if events(socket.fd).contains(PollFlags::IN) {
        return Err(busy("in which messages wait"));
    }
    Ok(own_address(socket.fd).map(|address| NetlinkSocket {
        datagram: shape.form == 2,
        protocol: shape.protocol.cast_unsigned(),
        address,
    }))
}
