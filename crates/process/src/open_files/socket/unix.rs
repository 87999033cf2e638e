//! Unix sockets: who is connected to whom, and what waits.

use super::diag::UnixFacts;
use super::foreign::ForeignSocket;
use super::options::Shape;
use super::queue::{Kept, Waiting, look};
use super::state::{SocketFile, SocketKind, SocketState, UnixForm, UnixRole, UnixSocket};
use super::surroundings::{Surroundings, events};
use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use pagetide_kernel::socket::{PEEK_URGENT, bytes_to_read, own_address, peek, peer_address};
use pagetide_kernel::socket_option::SocketOption;
use rustix::event::PollFlags;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const TCP_ESTABLISHED: u8 = 1;
const TCP_LISTEN: u8 = 10;
const RECEIVE_SHUT: u8 = 1;
const BOTH_SHUT: u8 = 3;
/// CMSG_SPACE of one SCM_CREDENTIALS. What is left beside it is too little for a descriptor.
const CREDENTIALS_BYTES: usize = 32;

pub(super) fn read(
    socket: &ForeignSocket<'_>,
    shape: Shape,
    surroundings: &Surroundings,
    blockers: &mut Vec<Blocker>,
) -> io::Result<UnixSocket> {
    let diag = surroundings.diag.as_ref();
    let facts = diag
        .ok_or_else(|| io::Error::other("the kernel tells nothing of Unix sockets"))?
        .ask(socket.inode)?;
    let form = match shape.form {
        1 => UnixForm::Stream,
        2 => UnixForm::Datagram,
        _ => UnixForm::Packets,
    };
    let name = name_of(&own_address(socket.fd)?);
    let peer_name = peer_address(socket.fd)?
        .map(|address| name_of(&address))
        .unwrap_or_default();
    let role = role(socket, form, &facts, &peer_name, surroundings, blockers);
    let queue = if facts.state == TCP_LISTEN {
        Vec::new()
    } else {
        let waiting = look_and_tell(socket, form, &facts, blockers)?;
        waiting.messages
    };
    Ok(UnixSocket {
        form,
        file: file_of(socket, &name, &facts, blockers),
        name,
        role,
        peer_name,
        shutdown: facts.shutdown & BOTH_SHUT,
        queue,
    })
}

/// The name in an address, without the family; a path without the zero bytes behind it.
pub(super) fn name_of(address: &[u8]) -> Vec<u8> {
    let name = address.get(2..).unwrap_or(&[]);
    match name.first() {
        None => Vec::new(),
        Some(0) => name.to_vec(),
        Some(_) => {
            let end = name.iter().position(|byte| *byte == 0);
            name[..end.unwrap_or(name.len())].to_vec()
        }
    }
}

fn role(
    socket: &ForeignSocket<'_>,
    form: UnixForm,
    facts: &UnixFacts,
    peer_name: &[u8],
    surroundings: &Surroundings,
    blockers: &mut Vec<Blocker>,
) -> UnixRole {
    if facts.state == TCP_LISTEN {
        if facts.queues[0] > 0 {
            blockers.push(socket.blocker(
                BlockerKind::UnixBacklog,
                "is a Unix socket on which connections wait to be accepted",
                "take the checkpoint at another moment",
                "the connections that waited are closed",
            ));
        }
        return UnixRole::Listening {
            backlog: facts.queues[1],
        };
    }
    if facts.state != TCP_ESTABLISHED {
        return UnixRole::Alone;
    }
    let reset = events(socket.fd).contains(PollFlags::ERR);
    let outside = match facts.peer {
        Some(inode) if inode != 0 && surroundings.inside.contains(&inode) => {
            return UnixRole::PeerInside { inode };
        }
        // Being somebody's peer makes a datagram socket look connected.
        None if form == UnixForm::Datagram => return UnixRole::Alone,
        // It does not notice that its own peer was closed, until it sends.
        Some(0) if form == UnixForm::Datagram => return UnixRole::PeerGone { reset: false },
        None | Some(0) if facts.shutdown == BOTH_SHUT => return UnixRole::PeerGone { reset },
        None | Some(0) => "is connected to a Unix socket that has not accepted it yet",
        Some(_) if form == UnixForm::Datagram && matches!(peer_name, [0 | b'/', ..]) => {
            return UnixRole::PeerByName;
        }
        Some(_) => "is connected to a Unix socket of another process",
    };
    blockers.push(peer_blocker(socket, outside));
    UnixRole::PeerGone { reset: false }
}

fn peer_blocker(socket: &ForeignSocket<'_>, what: &str) -> Blocker {
    socket.blocker(
        BlockerKind::UnixPeer,
        what,
        "close it before the checkpoint, or checkpoint both processes together",
        "the connection is closed, as if the peer had closed it",
    )
}

fn look_and_tell(
    socket: &ForeignSocket<'_>,
    form: UnixForm,
    facts: &UnixFacts,
    blockers: &mut Vec<Blocker>,
) -> io::Result<Waiting> {
    let is_on = |option: SocketOption| option.read_int(socket.fd).unwrap_or(0) != 0;
    let credentials = is_on(SocketOption::PASSCRED);
    let more = is_on(SocketOption::PASSPIDFD) || is_on(SocketOption::PASSSEC);
    let kept = match form {
        UnixForm::Stream => Kept::Stream,
        UnixForm::Packets if facts.shutdown & RECEIVE_SHUT != 0 => Kept::MessagesThatEnd,
        UnixForm::Packets | UnixForm::Datagram => Kept::Messages,
    };
    if form == UnixForm::Stream
        && peek(socket.fd, &mut [0], 0, PEEK_URGENT).is_ok_and(|byte| byte.is_some())
    {
        blockers.push(socket.blocker(
            BlockerKind::UnixUrgent,
            "is a Unix socket in which an urgent byte waits (MSG_OOB)",
            "let the program read it before the checkpoint",
            "the byte is lost, with what stands behind it",
        ));
    }
    // Any attempt to receive messages would take away an error that waits to be told.
    if form != UnixForm::Stream && events(socket.fd).contains(PollFlags::ERR) {
        if form == UnixForm::Datagram || bytes_to_read(socket.fd)? > 0 {
            blockers.push(socket.blocker(
                BlockerKind::UnixError,
                "is a Unix socket with an error that the program has not been told yet",
                "let the program receive or send before the checkpoint",
                "the error is forgotten, and what waits in the socket is lost",
            ));
        }
        return Ok(Waiting::default());
    }
    let space = if credentials { CREDENTIALS_BYTES } else { 0 };
    let waiting = look(socket.fd, kept, space)?;
    if waiting.control_cut {
        blockers.push(socket.blocker(
            BlockerKind::UnixRights,
            "is a Unix socket in which descriptors wait to be received (SCM_RIGHTS)",
            "let the program receive them before the checkpoint",
            "the messages arrive without descriptors",
        ));
    }
    if (credentials || more) && !waiting.messages.is_empty() {
        blockers.push(socket.blocker(
            BlockerKind::UnixCredentials,
            "is a Unix socket in which messages wait that tell who sent them (SO_PASSCRED)",
            "let the program receive them before the checkpoint",
            "they tell that the restoring process sent them",
        ));
    }
    Ok(waiting)
}

/// The file that a path leads to, if it is this socket's.
fn file_of(
    socket: &ForeignSocket<'_>,
    name: &[u8],
    facts: &UnixFacts,
    blockers: &mut Vec<Blocker>,
) -> Option<SocketFile> {
    let [inode, device] = facts.file?;
    if name.first().is_none_or(|first| *first == 0) {
        return None;
    }
    let name = Path::new(std::ffi::OsStr::from_bytes(name));
    let directory = if name.is_absolute() {
        PathBuf::from("/")
    } else {
        fs::read_link(format!("/proc/{}/cwd", socket.pid)).ok()?
    };
    let found = fs::symlink_metadata(directory.join(name)).ok();
    let found = found.filter(|file| {
        let [major, minor] = [rustix::fs::major(file.dev()), rustix::fs::minor(file.dev())];
        // The kernel tells the low half of the inode's number, and the device in its own encoding.
        file.ino() & u64::from(u32::MAX) == u64::from(inode) && (major << 20 | minor) == device
    });
    match found {
        Some(file) => Some(SocketFile {
            directory: directory.into_os_string().into_encoded_bytes(),
            mode: file.mode() & 0o7777,
            owner: [file.uid(), file.gid()],
        }),
        None if facts.state == TCP_LISTEN && has_other_root(socket.pid) => {
            blockers.push(socket.blocker(
                BlockerKind::UnixPath,
                "is a Unix socket bound to a path in another root directory",
                "close it before the checkpoint",
                "nobody can connect to it",
            ));
            None
        }
        // Somebody has removed or replaced the file, so nobody can connect to the socket as it is.
        None => None,
    }
}

fn has_other_root(pid: i32) -> bool {
    let identity = |path: &str| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    identity(&format!("/proc/{pid}/root")) != identity("/")
}

/// Looks at datagram sockets a second time, when all are known: a peer inside can be connected to if the two are each other's peer, or
/// if it has a name. And a datagram of somebody outside cannot be sent in his name.
pub(super) fn settle_datagrams(
    sockets: &[ForeignSocket<'_>],
    read: &mut [Result<SocketState, Blocker>],
) {
    let mut peers = HashMap::new();
    let mut names = HashMap::new();
    for state in read.iter().flatten() {
        if let SocketKind::Unix(unix) = &state.kind {
            if let UnixRole::PeerInside { inode } = unix.role {
                peers.insert(state.inode, inode);
            }
            names.insert(state.inode, unix.name.clone());
        }
    }
    for (socket, state) in sockets.iter().zip(read) {
        let Ok(state) = state else { continue };
        let own = state.inode;
        let SocketKind::Unix(unix) = &mut state.kind else {
            continue;
        };
        if unix.form != UnixForm::Datagram {
            continue;
        }
        if let UnixRole::PeerInside { inode } = unix.role {
            let named = names.get(&inode).is_some_and(|name| !name.is_empty());
            if peers.get(&inode) != Some(&own) && !named {
                state.blockers.push(peer_blocker(
                    socket,
                    "is connected to a Unix socket that has no name and is not connected to it",
                ));
                unix.role = UnixRole::PeerGone { reset: false };
            }
        }
        let foreign = |source: &[u8]| {
            let source = name_of(source);
            !source.is_empty() && !names.values().any(|name| *name == source)
        };
        if unix.queue.iter().any(|message| foreign(&message.source)) {
            state.blockers.push(socket.blocker(
                BlockerKind::UnixSender,
                "is a Unix socket in which messages of another process wait that tell its address",
                "let the program receive them before the checkpoint",
                "they arrive without an address",
            ));
        }
    }
}
