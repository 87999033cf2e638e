//! Sockets by their bare addresses: bind, connect, names, and messages that are looked at without being taken.
//!
//! socket(7), recvmsg(2), sendto(2). An address is the bytes of a `sockaddr` of whatever family, as the kernel gave
//! them: the name of a Unix socket may fill its field without an ending zero byte, which the address types of the common crates
//! take for impossible. Nothing here blocks: every message call is made with MSG_DONTWAIT. No privilege is needed.

#![allow(unsafe_code)]

use nix::libc;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

/// Size of `sockaddr_storage`, the longest address there is.
pub const ADDRESS_BYTES_MAX: usize = mem::size_of::<libc::sockaddr_storage>();

/// Flag of [`peek`], MSG_TRUNC: tell the length of the whole message. Not for streams, whose bytes it throws away.
pub const PEEK_WHOLE_LENGTH: i32 = libc::MSG_TRUNC;
/// Flag of [`peek`], MSG_OOB: look at the urgent byte. EINVAL if there is none.
pub const PEEK_URGENT: i32 = libc::MSG_OOB;

/// A message that was looked at, or the beginning of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peeked {
    /// How long the message is; of datagrams also if the buffer is shorter.
    pub length_bytes: usize,
    /// The buffer was too short for it: MSG_TRUNC.
    pub cut: bool,
    /// There was more beside the bytes than the space for control messages took: MSG_CTRUNC.
    pub control_cut: bool,
    /// The sender's address; empty if it has none or the protocol names none.
    pub source: Vec<u8>,
}

/// Gives the socket its address: bind(2).
pub fn bind(socket: impl AsFd, address: &[u8]) -> io::Result<()> {
    let (pointer, length) = address_parts(address)?;
    let socket = socket.as_fd();
    // SAFETY: the pointer leads to `length` readable bytes, which outlive the call; the kernel only reads them.
    check(unsafe { libc::bind(socket.as_raw_fd(), pointer, length) })
}

/// Sets the peer: connect(2). It blocks if the socket does and the protocol shakes hands.
pub fn connect(socket: impl AsFd, address: &[u8]) -> io::Result<()> {
    let (pointer, length) = address_parts(address)?;
    let socket = socket.as_fd();
    // SAFETY: as for bind(2).
    check(unsafe { libc::connect(socket.as_raw_fd(), pointer, length) })
}

/// The socket's own address: getsockname(2).
pub fn own_address(socket: impl AsFd) -> io::Result<Vec<u8>> {
    let socket = socket.as_fd();
    read_address(|address, length| {
        // SAFETY: both pointers lead to live memory of this function's caller, and `length` says how much there is.
        unsafe { libc::getsockname(socket.as_raw_fd(), address, length) }
    })
}

/// The peer's address: getpeername(2). `None` if the socket is not connected.
pub fn peer_address(socket: impl AsFd) -> io::Result<Option<Vec<u8>>> {
    let socket = socket.as_fd();
    let read = read_address(|address, length| {
        // SAFETY: as for getsockname(2).
        unsafe { libc::getpeername(socket.as_raw_fd(), address, length) }
    });
    match read {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Ok(None),
        other => other.map(Some),
    }
}

/// Looks at what would be received next, by MSG_PEEK, and leaves it there; SO_PEEK_OFF applies and moves. `flags` are
/// added to MSG_PEEK and MSG_DONTWAIT. Control messages are thrown away, and only `control_bytes` (at most 64) are there
/// for them: with fewer than 20 free bytes no descriptor can arrive here. `None` if nothing is there.
pub fn peek(
    socket: impl AsFd,
    buffer: &mut [u8],
    control_bytes: usize,
    flags: i32,
) -> io::Result<Option<Peeked>> {
    let mut source = [0_u64; ADDRESS_BYTES_MAX / 8];
    let mut control = [0_u64; 8];
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: a msghdr of zeroes is one without address, parts and control space.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_name = source.as_mut_ptr().cast();
    header.msg_namelen = libc::socklen_t::try_from(ADDRESS_BYTES_MAX).unwrap_or(0);
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = control_bytes.min(mem::size_of_val(&control));
    let flags = flags | libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    let socket = socket.as_fd();
    // SAFETY: all pointers of the header lead to memory that lives until the end of this function, of the lengths given.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let Ok(length_bytes) = usize::try_from(length) else {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::WouldBlock => Ok(None),
            _ => Err(error),
        };
    };
    let named = usize::try_from(header.msg_namelen)
        .unwrap_or(0)
        .min(ADDRESS_BYTES_MAX);
    Ok(Some(Peeked {
        length_bytes,
        cut: header.msg_flags & libc::MSG_TRUNC != 0,
        control_cut: header.msg_flags & libc::MSG_CTRUNC != 0,
        source: bytes_of(&source, named),
    }))
}

/// Sends, to `address` or (empty) to the peer: sendto(2) with MSG_DONTWAIT and MSG_NOSIGNAL. Says how much was taken.
pub fn send(socket: impl AsFd, bytes: &[u8], address: &[u8]) -> io::Result<usize> {
    let (pointer, length) = if address.is_empty() {
        (ptr::null(), 0)
    } else {
        address_parts(address)?
    };
    let socket = socket.as_fd();
    // SAFETY: both pointers lead to as many readable bytes as the lengths say, or are null with a length of 0.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            pointer,
            length,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// How many bytes wait to be received: FIONREAD. Of datagrams the length of the first one.
pub fn bytes_to_read(socket: impl AsFd) -> io::Result<usize> {
    amount(socket, libc::FIONREAD)
}

/// How many bytes were sent and not acknowledged, or not yet sent: TIOCOUTQ.
pub fn bytes_to_send(socket: impl AsFd) -> io::Result<usize> {
    amount(socket, libc::TIOCOUTQ)
}

fn amount(socket: impl AsFd, request: libc::c_ulong) -> io::Result<usize> {
    let mut amount: libc::c_int = 0;
    let socket = socket.as_fd();
    // SAFETY: both requests write one int to the pointer.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut amount) })?;
    Ok(usize::try_from(amount).unwrap_or(0))
}

fn address_parts(address: &[u8]) -> io::Result<(*const libc::sockaddr, libc::socklen_t)> {
    if address.len() > ADDRESS_BYTES_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let length = libc::socklen_t::try_from(address.len())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok((address.as_ptr().cast(), length))
}

fn read_address(
    call: impl FnOnce(*mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int,
) -> io::Result<Vec<u8>> {
    let mut storage = [0_u64; ADDRESS_BYTES_MAX / 8];
    let mut length = libc::socklen_t::try_from(ADDRESS_BYTES_MAX).unwrap_or(0);
    check(call(storage.as_mut_ptr().cast(), &raw mut length))?;
    let length = usize::try_from(length).unwrap_or(0).min(ADDRESS_BYTES_MAX);
    Ok(bytes_of(&storage, length))
}

fn bytes_of(words: &[u64], length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.truncate(length);
    bytes
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn a_name_without_an_ending_zero_comes_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut name = directory.path().to_str().expect("text").to_owned();
        name.push('/');
        while name.len() < 108 {
            name.push('x');
        }
        let mut address = 1_u16.to_ne_bytes().to_vec();
        address.extend_from_slice(name.as_bytes());
        let socket = UnixDatagram::unbound().expect("a socket");
        bind(&socket, &address).expect("bind it");
        let read = own_address(&socket).expect("its name");
        assert_eq!(read[..110], address[..]);
    }

    #[test]
    fn peeking_takes_nothing_and_sending_refuses_impossible_addresses() {
        let (one, other) = UnixDatagram::pair().expect("a pair");
        assert_eq!(send(&one, b"hello", &[]).expect("send"), 5);
        let mut buffer = [0; 3];
        for _ in 0..2 {
            let peeked = peek(&other, &mut buffer, 0, PEEK_WHOLE_LENGTH)
                .expect("peek")
                .expect("a message");
            assert_eq!((peeked.length_bytes, peeked.cut), (5, true));
            assert_eq!(&buffer, b"hel");
        }
        assert_eq!(bytes_to_read(&other).expect("ask"), 5);
        assert!(bytes_to_send(&one).expect("ask") > 0);
        assert!(send(&one, b"x", &[0; 200]).is_err());
        assert!(peek(&one, &mut buffer, 0, 0).expect("peek").is_none());
    }
}
