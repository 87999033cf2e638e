//! Sockets opened again in this process.

use super::choices::{OpenerOf, SocketChoices, TcpChoice};
use super::error::SocketError;
use super::file::Files;
use super::options::{KeptOption, Shape};
use super::state::{NetlinkSocket, SocketKind, SocketState, TcpRole};
use super::{tcp_reopen, udp, unix_reopen};
use pagetide_kernel::socket::bind;
use pagetide_kernel::socket_option::SocketOption;
use rustix::fs::{Gid, Uid, fchown, fstat};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Opens sockets in this process, close-on-exec, in the given order; each comes with the number by which the caller
/// knows it. All that [`super::read_sockets`] gave for the tree have to be there but those the caller closes: a connection to one
/// that is missing counts as closed by it.
///
/// Sockets with blockers that were accepted are opened as the blockers' `instead` says. Status flags (O_NONBLOCK, O_ASYNC) and the
/// owner for signals are the caller's business.
///
/// The files of Unix sockets are removed again unless the caller keeps them; a stale one where one is made may be gone.
/// Connections of TCP say nothing until [`let_go`]. If it fails, nothing is open. Needs CAP_NET_ADMIN for TCP connections,
/// and the privileges of the options set.
pub(crate) fn reopen_sockets(
    states: &[(usize, &SocketState)],
    choices: &SocketChoices,
    opener_of: &OpenerOf<'_>,
) -> Result<(Vec<OwnedFd>, Files), SocketError> {
    for (_, state) in states {
        if let Some(blocker) = choices.refused(state).next() {
            return Err(SocketError::Refused(Box::new(blocker.clone())));
        }
    }
    let mut slots: Vec<Option<OwnedFd>> = states.iter().map(|_| None).collect();
    let files = unix_reopen::reopen(states, &mut slots, opener_of)?;
    // Whoever listens comes first: a connection that uses the same port can be added to it, but not the other way round.
    for (slot, (index, state)) in slots.iter_mut().zip(states) {
        match &state.kind {
            SocketKind::Unix(_) => {}
            SocketKind::Tcp(tcp) if matches!(tcp.role, TcpRole::Connected(_)) => {}
            SocketKind::Tcp(tcp) => *slot = Some(tcp_reopen::reopen(*index, state, tcp)?),
            SocketKind::Udp(udp) => *slot = Some(udp::reopen(*index, state, udp)?),
            SocketKind::Netlink(netlink) => {
                *slot = Some(reopen_netlink(*index, state, netlink)?);
            }
        }
    }
    for (slot, (index, state)) in slots.iter_mut().zip(states) {
        let SocketKind::Tcp(tcp) = &state.kind else {
            continue;
        };
        if let TcpRole::Connected(connection) = &tcp.role {
            *slot = Some(match choices.tcp {
                TcpChoice::Restore => tcp_reopen::mend(*index, state, tcp, connection)?,
                TcpChoice::Reset => tcp_reopen::reopen_reset(*index, state, tcp)?,
            });
        }
    }
    for (slot, (index, state)) in slots.iter().zip(states) {
        if let Some(socket) = slot {
            own(*index, state, socket.as_fd())?;
        }
    }
    Ok((slots.into_iter().flatten().collect(), files))
}

/// A connection of TCP that was mended goes on. Nothing is done about other sockets.
pub(crate) fn let_go(
    index: usize,
    state: &SocketState,
    socket: BorrowedFd<'_>,
) -> Result<(), SocketError> {
    let SocketKind::Tcp(tcp) = &state.kind else {
        return Ok(());
    };
    match tcp.role {
        TcpRole::Connected(_) => tcp_reopen::let_go(index, state, socket),
        _ => Ok(()),
    }
}

/// Gives the socket the user and group it had.
fn own(index: usize, state: &SocketState, socket: BorrowedFd<'_>) -> Result<(), SocketError> {
    let failed =
        |error: rustix::io::Errno| SocketError::open(index, "set the owner of")(error.into());
    let [user, group] = state.owner;
    let now = fstat(socket).map_err(failed)?;
    if [now.st_uid, now.st_gid] == [user, group] {
        return Ok(());
    }
    if user == u32::MAX || group == u32::MAX {
        return Err(SocketError::Damaged {
            index,
            what: "its owner",
        });
    }
    fchown(
        socket,
        Some(Uid::from_raw(user)),
        Some(Gid::from_raw(group)),
    )
    .map_err(failed)
}

impl SocketState {
    /// Sets those options for which `chosen` holds, and the sizes of the buffers.
    pub(super) fn set_options(
        &self,
        index: usize,
        socket: BorrowedFd<'_>,
        chosen: impl Fn(&KeptOption) -> bool,
    ) -> Result<(), SocketError> {
        for option in self.options.iter().filter(|option| chosen(option)) {
            option.set(socket).map_err(SocketError::open(
                index,
                &format!("set option {} of level {} of", option.number, option.level),
            ))?;
        }
        self.set_buffers(index, socket)
    }

    pub(super) fn set_buffers(
        &self,
        index: usize,
        socket: BorrowedFd<'_>,
    ) -> Result<(), SocketError> {
        self.buffers
            .set(socket)
            .map_err(SocketError::open(index, "set the buffers of"))
    }

    /// An option that is an int, as it was: 0 if it is not kept, since it then was as on a new socket.
    pub(super) fn int_option(&self, option: SocketOption) -> i32 {
        let kept = self.options.iter().find(|kept| kept.is(option));
        kept.and_then(|kept| kept.value.as_slice().try_into().ok())
            .map_or(0, i32::from_ne_bytes)
    }
}

fn reopen_netlink(
    index: usize,
    state: &SocketState,
    netlink: &NetlinkSocket,
) -> Result<OwnedFd, SocketError> {
    let shape = Shape {
        family: 16,
        form: if netlink.datagram { 2 } else { 3 },
        protocol: i32::try_from(netlink.protocol).unwrap_or(i32::MAX),
    };
    let address = <[u8; 12]>::try_from(netlink.address.as_slice())
        .ok()
        .filter(|address| address[..2] == 16_u16.to_ne_bytes() && address[8..] == [0; 4]);
    let Some(address) = address else {
        return Err(SocketError::Damaged {
            index,
            what: "its address",
        });
    };
    let socket = shape.open().map_err(SocketError::open(index, "create"))?;
    state.set_options(index, socket.as_fd(), |_| true)?;
    if address[4..8] != [0; 4] {
        bind(&socket, &address).map_err(SocketError::open(index, "bind"))?;
    }
    Ok(socket)
}
