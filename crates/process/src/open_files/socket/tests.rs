//! Sockets of this process read, closed, and opened again: what is lost or changed on the way would be found here.

mod inet;
mod refused;
mod unix;

use super::state::SocketState;
use super::{
    ForeignSocket, SocketChoices, SocketError, TcpChoice, let_go, read_sockets, reopen_sockets,
};
use crate::blocker::Blocker;
use crate::opener::Opener;
use pagetide_kernel::socket_option::SocketOption;
use std::os::fd::{AsFd, OwnedFd};

/// The sockets as those of this process, but numbered from 3.
fn read(sockets: &[&OwnedFd]) -> Vec<Result<SocketState, Blocker>> {
    let foreign: Vec<_> = sockets
        .iter()
        .zip(3..)
        .map(|(socket, number)| ForeignSocket {
            pid: std::process::id().cast_signed(),
            number,
            inode: rustix::fs::fstat(socket).expect("stat").st_ino,
            fd: socket.as_fd(),
        })
        .collect();
    read_sockets(&foreign)
}

/// The same, where all can be read and nothing is missing.
fn read_whole(sockets: &[&OwnedFd]) -> Vec<SocketState> {
    let states: Vec<_> = read(sockets)
        .into_iter()
        .map(|state| state.unwrap_or_else(|blocker| panic!("{blocker}")))
        .collect();
    for state in &states {
        assert_eq!(state.blockers(), []);
        let configuration = bincode::config::standard();
        let bytes = bincode::encode_to_vec(state, configuration).expect("encode");
        let (back, length): (SocketState, usize) =
            bincode::decode_from_slice(&bytes, configuration).expect("decode");
        assert_eq!((&back, length), (state, bytes.len()));
        for cut in (0..bytes.len()).step_by(7) {
            let back: Result<(SocketState, usize), _> =
                bincode::decode_from_slice(&bytes[..cut], configuration);
            assert!(back.is_err(), "cut to {cut} of {} bytes", bytes.len());
        }
    }
    // Reading has changed nothing that reading could see.
    let again: Vec<_> = read(sockets).into_iter().flatten().collect();
    assert_eq!(settled(again), settled(states.clone()));
    states
}

/// Without what changes by itself.
fn settled(mut states: Vec<SocketState>) -> Vec<SocketState> {
    use super::state::{SocketKind, TcpRole};
    for state in &mut states {
        if let SocketKind::Tcp(tcp) = &mut state.kind
            && let TcpRole::Connected(connection) = &mut tcp.role
        {
            connection.timestamp = connection.timestamp.map(|_| 0);
        }
    }
    states
}

fn opener() -> &'static Opener {
    static OWN: std::sync::OnceLock<Opener> = std::sync::OnceLock::new();
    OWN.get_or_init(Opener::default)
}

fn reopen(states: &[SocketState], choices: &SocketChoices) -> Result<Vec<OwnedFd>, SocketError> {
    let states: Vec<_> = states.iter().enumerate().collect();
    let (sockets, files) = reopen_sockets(&states, choices, &|_| opener())?;
    files.keep();
    if choices.tcp == TcpChoice::Restore {
        for ((index, state), socket) in states.iter().zip(&sockets) {
            let_go(*index, state, socket.as_fd())?;
        }
    }
    Ok(sockets)
}

/// Opens all again, which has to succeed.
fn back(states: &[SocketState]) -> Vec<OwnedFd> {
    reopen(states, &SocketChoices::default()).unwrap_or_else(|error| panic!("{error:?}"))
}

/// With all blockers accepted.
fn back_accepting(states: &[SocketState]) -> Vec<OwnedFd> {
    let accepted = states
        .iter()
        .flat_map(SocketState::blockers)
        .map(Blocker::name)
        .collect();
    let choices = SocketChoices {
        accepted,
        ..SocketChoices::default()
    };
    reopen(states, &choices).unwrap_or_else(|error| panic!("{error:?}"))
}

/// All options but those that a connection of TCP sets itself.
fn options_of(socket: &OwnedFd) -> Vec<(i32, i32, Vec<u8>)> {
    let buffers = [
        SocketOption::SNDBUF,
        SocketOption::RCVBUF,
        SocketOption::BUF_LOCK,
    ];
    SocketOption::settable()
        .filter(|option| {
            ![SocketOption::TCP_MAXSEG, SocketOption::TCP_WINDOW_CLAMP].contains(option)
        })
        .chain(buffers)
        .filter_map(|option| {
            let value = option.read(socket).ok()?;
            Some((option.level(), option.number(), value))
        })
        .collect()
}
