//! What the kernel tells of Unix sockets by NETLINK_SOCK_DIAG: peers, and how much waits.
//!
//! sock_diag(7), `linux/unix_diag.h`; since Linux 3.3, with CONFIG_UNIX_DIAG. It sees the sockets of the network
//! namespace of this process only. No privilege is needed.

use pagetide_kernel::socket;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

const NETLINK_SOCK_DIAG: u32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const HEADER_BYTES: usize = 16;
const MESSAGE_BYTES: usize = 16;

/// UDIAG_SHOW_VFS, UDIAG_SHOW_PEER and UDIAG_SHOW_RQLEN.
const SHOW: u32 = 2 | 4 | 16;
const ATTRIBUTE_VFS: u16 = 1;
const ATTRIBUTE_PEER: u16 = 2;
const ATTRIBUTE_QUEUES: u16 = 4;
const ATTRIBUTE_SHUTDOWN: u16 = 6;

/// A connection to ask by.
pub(super) struct UnixDiag {
    netlink: OwnedFd,
}

/// What the kernel told of one Unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct UnixFacts {
    /// TCP_ESTABLISHED (1), TCP_CLOSE (7) or TCP_LISTEN (10).
    pub state: u8,
    /// Inode of its peer; 0 if the peer is closed or not accepted yet, `None` if there is none.
    pub peer: Option<u64>,
    /// Inode (its low half) and device, in the kernel's encoding, of the file it is bound to.
    pub file: Option<[u32; 2]>,
    /// Of a listening one: how many wait to be accepted, and how many may.
    pub queues: [u32; 2],
    /// Bit 0: no more is received. Bit 1: no more is sent.
    pub shutdown: u8,
}

impl UnixDiag {
    pub(super) fn open() -> io::Result<Self> {
        let netlink = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            std::num::NonZeroU32::new(NETLINK_SOCK_DIAG).map(Protocol::from_raw),
        )?;
        Ok(Self { netlink })
    }

    /// Asks for the socket with this inode. ENOENT if there is none in this network namespace.
    pub(super) fn ask(&self, inode: u64) -> io::Result<UnixFacts> {
        let inode = u32::try_from(inode).map_err(|_| io::ErrorKind::NotFound)?;
        let mut request = Vec::with_capacity(40);
        request.extend_from_slice(&40_u32.to_ne_bytes());
        request.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        request.extend_from_slice(&1_u16.to_ne_bytes()); // NLM_F_REQUEST
        request.extend_from_slice(&[0; 8]);
        request.extend_from_slice(&[1, 0, 0, 0]); // AF_UNIX
        request.extend_from_slice(&u32::MAX.to_ne_bytes()); // whatever the state
        request.extend_from_slice(&inode.to_ne_bytes());
        request.extend_from_slice(&SHOW.to_ne_bytes());
        request.extend_from_slice(&[0xff; 8]); // whatever the cookie
        socket::send(self.netlink.as_fd(), &request, &[])?;
        let mut answer = [0; 8192];
        // The kernel answers within the sending call.
        let (length, _) = recv(&self.netlink, &mut answer[..], RecvFlags::DONTWAIT)?;
        parse(&answer[..length.min(8192)])
    }
}

fn parse(answer: &[u8]) -> io::Result<UnixFacts> {
    let damaged = || io::Error::from(io::ErrorKind::InvalidData);
    let length = usize::try_from(word(answer, 0).ok_or_else(damaged)?).map_err(|_| damaged())?;
    let kind = half(answer, 4).ok_or_else(damaged)?;
    let body = answer.get(HEADER_BYTES..length).ok_or_else(damaged)?;
    if kind == NLMSG_ERROR {
        let number = word(body, 0).ok_or_else(damaged)?.cast_signed();
        return Err(io::Error::from_raw_os_error(number.saturating_neg()));
    }
    let mut facts = UnixFacts {
        state: *body.get(2).ok_or_else(damaged)?,
        ..UnixFacts::default()
    };
    let mut rest = body.get(MESSAGE_BYTES..).ok_or_else(damaged)?;
    while rest.len() >= 4 {
        let length = usize::from(half(rest, 0).ok_or_else(damaged)?);
        let kind = half(rest, 2).ok_or_else(damaged)?;
        let value = rest.get(4..length).ok_or_else(damaged)?;
        match kind {
            ATTRIBUTE_VFS => facts.file = word(value, 0).zip(word(value, 4)).map(|(a, b)| [a, b]),
            ATTRIBUTE_PEER => facts.peer = word(value, 0).map(u64::from),
            ATTRIBUTE_QUEUES => {
                facts.queues = [word(value, 0).unwrap_or(0), word(value, 4).unwrap_or(0)];
            }
            ATTRIBUTE_SHUTDOWN => facts.shutdown = value.first().copied().unwrap_or(0),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(facts)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn inode(socket: impl AsFd) -> u64 {
        rustix::fs::fstat(socket).expect("stat").st_ino
    }

    #[test]
    fn peers_shutdowns_and_backlogs_are_told() {
        let diag = UnixDiag::open().expect("open");
        let (one, other) = UnixStream::pair().expect("a pair");
        assert_eq!(
            diag.ask(inode(&one)).expect("ask").peer,
            Some(inode(&other))
        );
        one.shutdown(std::net::Shutdown::Write).expect("shutdown");
        assert_eq!(diag.ask(inode(&one)).expect("ask").shutdown, 2);
        assert_eq!(diag.ask(inode(&other)).expect("ask").shutdown, 1);
        drop(other);
        assert_eq!(diag.ask(inode(&one)).expect("ask").peer, Some(0));
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).expect("bind");
        let _client = UnixStream::connect(&path).expect("connect");
        let facts = diag.ask(inode(&listener)).expect("ask");
        assert_eq!((facts.state, facts.queues[0]), (10, 1));
        assert!(facts.file.is_some());
    }

    #[test]
    fn cut_answers_and_unknown_sockets_are_errors() {
        for length in 0..40 {
            let mut answer = vec![0xff; length];
            if length >= 4 {
                answer[..4].copy_from_slice(&32_u32.to_ne_bytes());
            }
            assert!(parse(&answer).is_err() || length >= 32);
        }
        let diag = UnixDiag::open().expect("open");
        assert!(diag.ask(u64::from(u32::MAX)).is_err());
        assert!(diag.ask(u64::MAX).is_err());
    }
}

#[cfg(test)]
mod hostile_tests {
    use super::*;

    #[test]
    fn hostile_answers_about_sockets() {
        let mut sound = vec![0; HEADER_BYTES + MESSAGE_BYTES];
        sound.extend([12, 0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 0, 2, 0, 9, 9, 9, 9]);
        let length = u32::try_from(sound.len()).expect("a small number");
        sound[..4].copy_from_slice(&length.to_ne_bytes());
        sound[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        pagetide_testing::hostile::survives(&sound, |answer| parse(answer).is_ok());
    }
}
