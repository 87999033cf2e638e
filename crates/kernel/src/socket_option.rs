//! Socket options whose value is plain data: read and set as the bytes the kernel uses.
//!
//! getsockopt(2), setsockopt(2); socket(7), ip(7), ipv6(7), tcp(7), udp(7), unix(7), netlink(7). Only options of the
//! tables here can be named, since others hold pointers into the caller's memory or count in other units than bytes
//! (SO_ATTACH_FILTER, TCP_ZEROCOPY_RECEIVE). ENOPROTOOPT or EOPNOTSUPP for what the kernel or this kind of socket does not know. Reading
//! needs no privilege; SO_MARK, SO_PRIORITY above 6, IP_TRANSPARENT, TCP_REPAIR and the FORCE variants need CAP_NET_ADMIN.

#![allow(unsafe_code)]

use nix::libc;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

/// Longest value of an option here: `struct tcp_info` as far as it is looked at.
pub const VALUE_BYTES_MAX: usize = 104;

/// An option by level and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketOption {
    level: i32,
    number: i32,
}

const fn at(level: i32, number: i32) -> SocketOption {
    SocketOption { level, number }
}

#[allow(missing_docs)] // the names are those of the man pages
impl SocketOption {
    pub const TYPE: Self = at(1, 3);
    pub const ERROR: Self = at(1, 4);
    pub const SNDBUF: Self = at(1, 7);
    pub const RCVBUF: Self = at(1, 8);
    pub const SNDBUFFORCE: Self = at(1, 32);
    pub const RCVBUFFORCE: Self = at(1, 33);
    pub const BUF_LOCK: Self = at(1, 72);
    pub const LINGER: Self = at(1, 13);
    pub const REUSEADDR: Self = at(1, 2);
    pub const REUSEPORT: Self = at(1, 15);
    pub const PASSCRED: Self = at(1, 16);
    pub const PASSSEC: Self = at(1, 34);
    pub const PASSPIDFD: Self = at(1, 76);
    pub const ACCEPTCONN: Self = at(1, 30);
    pub const PROTOCOL: Self = at(1, 38);
    pub const DOMAIN: Self = at(1, 39);
    pub const PEEK_OFF: Self = at(1, 42);
    pub const NETNS_COOKIE: Self = at(1, 71);
    pub const BINDTODEVICE: Self = at(1, 25);
    pub const IP_TRANSPARENT: Self = at(0, 19);
    pub const IPV6_TRANSPARENT: Self = at(41, 75);
    pub const IPV6_V6ONLY: Self = at(41, 26);
    pub const TCP_MAXSEG: Self = at(6, 2);
    pub const TCP_WINDOW_CLAMP: Self = at(6, 10);
    pub const TCP_INFO: Self = at(6, 11);
    pub const TCP_REPAIR: Self = at(6, 19);
    pub const TCP_REPAIR_QUEUE: Self = at(6, 20);
    pub const TCP_QUEUE_SEQ: Self = at(6, 21);
    pub const TCP_REPAIR_OPTIONS: Self = at(6, 22);
    pub const TCP_TIMESTAMP: Self = at(6, 24);
    pub const TCP_REPAIR_WINDOW: Self = at(6, 29);
    pub const TCP_ULP: Self = at(6, 31);
    pub const TCP_CORK: Self = at(6, 3);
    pub const TCP_NODELAY: Self = at(6, 1);
    pub const UDP_CORK: Self = at(17, 1);
    pub const UDP_ENCAP: Self = at(17, 100);
    pub const NETLINK_LIST_MEMBERSHIPS: Self = at(270, 9);
}

/// Options of any socket that can be read and then set with what was read, beside the sizes of the buffers.
const OF_SOCKETS: &[SocketOption] = &[
    SocketOption::REUSEADDR,
    SocketOption::REUSEPORT,
    SocketOption::BINDTODEVICE,
    at(1, 5),  // SO_DONTROUTE
    at(1, 6),  // SO_BROADCAST
    at(1, 9),  // SO_KEEPALIVE
    at(1, 10), // SO_OOBINLINE
    at(1, 11), // SO_NO_CHECK
    at(1, 12), // SO_PRIORITY
    SocketOption::LINGER,
    SocketOption::PASSCRED,
    at(1, 18), // SO_RCVLOWAT
    at(1, 20), // SO_RCVTIMEO
    at(1, 21), // SO_SNDTIMEO
    at(1, 29), // SO_TIMESTAMP
    SocketOption::PASSSEC,
    at(1, 35), // SO_TIMESTAMPNS
    at(1, 36), // SO_MARK
    at(1, 37), // SO_TIMESTAMPING
    at(1, 40), // SO_RXQ_OVFL
    at(1, 41), // SO_WIFI_STATUS
    SocketOption::PEEK_OFF,
    at(1, 43), // SO_NOFCS
    at(1, 44), // SO_LOCK_FILTER
    at(1, 45), // SO_SELECT_ERR_QUEUE
    at(1, 46), // SO_BUSY_POLL
    at(1, 47), // SO_MAX_PACING_RATE
    at(1, 60), // SO_ZEROCOPY
    at(1, 61), // SO_TXTIME
    at(1, 63), // SO_TIMESTAMP_NEW
    at(1, 64), // SO_TIMESTAMPNS_NEW
    at(1, 65), // SO_TIMESTAMPING_NEW
    at(1, 69), // SO_PREFER_BUSY_POLL
    at(1, 70), // SO_BUSY_POLL_BUDGET
    at(1, 73), // SO_RESERVE_MEM
    at(1, 74), // SO_TXREHASH
    at(1, 75), // SO_RCVMARK
    SocketOption::PASSPIDFD,
    at(1, 82), // SO_RCVPRIORITY
    at(1, 83), // SO_PASSRIGHTS
];

/// The same of IPv4, which sockets of IPv6 have, too.
const OF_IP: &[SocketOption] = &[
    at(0, 1),  // IP_TOS
    at(0, 2),  // IP_TTL
    at(0, 6),  // IP_RECVOPTS
    at(0, 7),  // IP_RETOPTS
    at(0, 8),  // IP_PKTINFO
    at(0, 10), // IP_MTU_DISCOVER
    at(0, 11), // IP_RECVERR
    at(0, 12), // IP_RECVTTL
    at(0, 13), // IP_RECVTOS
    at(0, 15), // IP_FREEBIND
    at(0, 18), // IP_PASSSEC
    SocketOption::IP_TRANSPARENT,
    at(0, 20), // IP_RECVORIGDSTADDR
    at(0, 21), // IP_MINTTL
    at(0, 23), // IP_CHECKSUM
    at(0, 24), // IP_BIND_ADDRESS_NO_PORT
    at(0, 25), // IP_RECVFRAGSIZE
    at(0, 26), // IP_RECVERR_RFC4884
    at(0, 32), // IP_MULTICAST_IF
    at(0, 33), // IP_MULTICAST_TTL
    at(0, 34), // IP_MULTICAST_LOOP
    at(0, 49), // IP_MULTICAST_ALL
    at(0, 50), // IP_UNICAST_IF
    at(0, 51), // IP_LOCAL_PORT_RANGE
];

/// The same of IPv6.
const OF_IPV6: &[SocketOption] = &[
    at(41, 16), // IPV6_UNICAST_HOPS
    at(41, 17), // IPV6_MULTICAST_IF
    at(41, 18), // IPV6_MULTICAST_HOPS
    at(41, 19), // IPV6_MULTICAST_LOOP
    at(41, 23), // IPV6_MTU_DISCOVER
    at(41, 25), // IPV6_RECVERR
    SocketOption::IPV6_V6ONLY,
    at(41, 29), // IPV6_MULTICAST_ALL
    at(41, 31), // IPV6_RECVERR_RFC4884
    at(41, 33), // IPV6_FLOWINFO_SEND
    at(41, 49), // IPV6_RECVPKTINFO
    at(41, 51), // IPV6_RECVHOPLIMIT
    at(41, 53), // IPV6_RECVHOPOPTS
    at(41, 56), // IPV6_RECVRTHDR
    at(41, 58), // IPV6_RECVDSTOPTS
    at(41, 60), // IPV6_RECVPATHMTU
    at(41, 62), // IPV6_DONTFRAG
    at(41, 66), // IPV6_RECVTCLASS
    at(41, 67), // IPV6_TCLASS
    at(41, 70), // IPV6_AUTOFLOWLABEL
    at(41, 72), // IPV6_ADDR_PREFERENCES
    at(41, 73), // IPV6_MINHOPCOUNT
    at(41, 74), // IPV6_RECVORIGDSTADDR
    SocketOption::IPV6_TRANSPARENT,
    at(41, 76), // IPV6_UNICAST_IF
    at(41, 77), // IPV6_RECVFRAGSIZE
    at(41, 78), // IPV6_FREEBIND
];

/// The same of TCP.
const OF_TCP: &[SocketOption] = &[
    SocketOption::TCP_NODELAY,
    SocketOption::TCP_MAXSEG,
    SocketOption::TCP_CORK,
    at(6, 4), // TCP_KEEPIDLE
    at(6, 5), // TCP_KEEPINTVL
    at(6, 6), // TCP_KEEPCNT
    at(6, 7), // TCP_SYNCNT
    at(6, 8), // TCP_LINGER2
    at(6, 9), // TCP_DEFER_ACCEPT
    SocketOption::TCP_WINDOW_CLAMP,
    at(6, 13), // TCP_CONGESTION
    at(6, 16), // TCP_THIN_LINEAR_TIMEOUTS
    at(6, 18), // TCP_USER_TIMEOUT
    at(6, 23), // TCP_FASTOPEN
    at(6, 25), // TCP_NOTSENT_LOWAT
    at(6, 27), // TCP_SAVE_SYN
    at(6, 30), // TCP_FASTOPEN_CONNECT
    at(6, 34), // TCP_FASTOPEN_NO_COOKIE
    at(6, 36), // TCP_INQ
    at(6, 37), // TCP_TX_DELAY
];

/// The same of UDP.
const OF_UDP: &[SocketOption] = &[
    SocketOption::UDP_CORK,
    at(17, 101), // UDP_NO_CHECK6_TX
    at(17, 102), // UDP_NO_CHECK6_RX
    at(17, 103), // UDP_SEGMENT
    at(17, 104), // UDP_GRO
];

/// The same of netlink.
const OF_NETLINK: &[SocketOption] = &[
    at(270, 3),  // NETLINK_PKTINFO
    at(270, 4),  // NETLINK_BROADCAST_ERROR
    at(270, 5),  // NETLINK_NO_ENOBUFS
    at(270, 8),  // NETLINK_LISTEN_ALL_NSID
    at(270, 10), // NETLINK_CAP_ACK
    at(270, 11), // NETLINK_EXT_ACK
    at(270, 12), // NETLINK_GET_STRICT_CHK
];

impl SocketOption {
    /// All options that can be set with what was read, but the sizes of the buffers, which the kernel doubles.
    pub fn settable() -> impl Iterator<Item = Self> {
        [OF_SOCKETS, OF_IP, OF_IPV6, OF_TCP, OF_UDP, OF_NETLINK]
            .into_iter()
            .flatten()
            .copied()
    }

    /// The one of [`Self::settable`] with these numbers.
    pub fn find(level: i32, number: i32) -> Option<Self> {
        Self::settable().find(|option| option.level == level && option.number == number)
    }

    /// Whether it is about sending and receiving to groups. A TCP socket shows such options, and takes none.
    pub fn is_multicast(self) -> bool {
        matches!(
            (self.level, self.number),
            (0, 32..=34 | 49) | (41, 17..=19 | 29)
        )
    }

    /// The level: SOL_SOCKET and so on.
    pub fn level(self) -> i32 {
        self.level
    }

    /// The number within the level.
    pub fn number(self) -> i32 {
        self.number
    }

    /// Its value: getsockopt(2). At most [`VALUE_BYTES_MAX`] bytes, and the beginning of what is longer.
    pub fn read(self, socket: impl AsFd) -> io::Result<Vec<u8>> {
        self.read_with(socket, [0; VALUE_BYTES_MAX])
    }

    /// Its value, if the call wants to be given some of it, as TCP_REPAIR_WINDOW does with its exact length.
    pub fn read_sized<const BYTES: usize>(self, socket: impl AsFd) -> io::Result<Vec<u8>> {
        self.read_with(socket, [0; BYTES])
    }

    fn read_with<const BYTES: usize>(
        self,
        socket: impl AsFd,
        mut value: [u8; BYTES],
    ) -> io::Result<Vec<u8>> {
        let mut length = libc::socklen_t::try_from(BYTES).unwrap_or(0);
        let socket = socket.as_fd();
        // SAFETY: the kernel writes at most `length` bytes, which the array has; no option that can be named counts its
        // length in anything but bytes or holds a pointer.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                self.level,
                self.number,
                value.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let length = usize::try_from(length).unwrap_or(0).min(BYTES);
        Ok(value[..length].to_vec())
    }

    /// Its value, of an option that is an int (or a byte).
    pub fn read_int(self, socket: impl AsFd) -> io::Result<i32> {
        let value = self.read_sized::<4>(socket)?;
        let mut bytes = [0; 4];
        bytes[..value.len()].copy_from_slice(&value);
        Ok(i32::from_ne_bytes(bytes))
    }

    /// Sets it: setsockopt(2).
    pub fn set(self, socket: impl AsFd, value: &[u8]) -> io::Result<()> {
        let length = libc::socklen_t::try_from(value.len())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let socket = socket.as_fd();
        // SAFETY: the kernel reads at most `length` bytes, which the slice has; no option that can be named holds a pointer.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                self.level,
                self.number,
                value.as_ptr().cast(),
                length,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Sets an option that is an int.
    pub fn set_int(self, socket: impl AsFd, value: i32) -> io::Result<()> {
        self.set(socket, &value.to_ne_bytes())
    }
}

/// Whether the socket has a filter, of either kind of BPF: SO_GET_FILTER, Linux 3.8. The filter of a group of sockets that
/// share a port (SO_ATTACH_REUSEPORT_EBPF) cannot be asked for.
pub fn has_filter(socket: impl AsFd) -> io::Result<bool> {
    let mut length: libc::socklen_t = 0;
    let socket = socket.as_fd();
    // SAFETY: with a length of 0 the kernel only counts instructions and writes nothing but the length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            ptr::null_mut(),
            &raw mut length,
        )
    };
    if result == 0 {
        return Ok(length > 0);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // One that was never classic BPF, so that there is nothing to give out.
        Some(libc::EACCES) => Ok(true),
        _ => Err(error),
    }
}

/// Whether the socket has joined a multicast group on the interface with this index: MCAST_MSFILTER, Linux 2.6. `group` is the
/// address of four bytes or of sixteen; any other length is in no group.
pub fn is_group_member(socket: impl AsFd, interface: u32, group: &[u8]) -> io::Result<bool> {
    // struct group_filter without sources: the interface, the group as a sockaddr_storage, mode and number of sources.
    let mut filter = [0_u8; 144];
    filter[..4].copy_from_slice(&interface.to_ne_bytes());
    let (level, family, place) = match group.len() {
        4 => (libc::IPPROTO_IP, libc::AF_INET, 12..16),
        16 => (libc::IPPROTO_IPV6, libc::AF_INET6, 16..32),
        _ => return Ok(false),
    };
    filter[8..10].copy_from_slice(&u16::try_from(family).unwrap_or(0).to_ne_bytes());
    filter[place].copy_from_slice(group);
    let mut length: libc::socklen_t = 144;
    let socket = socket.as_fd();
    // SAFETY: the kernel reads and writes at most `length` bytes, which the array has, since room for no source is asked for.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            MCAST_MSFILTER,
            filter.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EADDRNOTAVAIL) => Ok(false),
        _ => Err(error),
    }
}

/// `linux/in.h`.
const MCAST_MSFILTER: libc::c_int = 48;

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn options_are_read_and_set() {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        let broadcast = SocketOption::find(1, 6).expect("an option of the table");
        assert_eq!(broadcast.read_int(&socket).expect("read"), 0);
        broadcast.set_int(&socket, 1).expect("set");
        assert_eq!(broadcast.read(&socket).expect("read"), 1_i32.to_ne_bytes());
        assert!(!has_filter(&socket).expect("ask"));
    }

    #[test]
    fn a_filter_is_noticed() {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        // BPF_RET | BPF_K: takes all of each packet.
        let mut code = [libc::sock_filter {
            code: 6,
            jt: 0,
            jf: 0,
            k: u32::MAX,
        }];
        let program = libc::sock_fprog {
            len: 1,
            filter: code.as_mut_ptr(),
        };
        // SAFETY: the value is a sock_fprog of the length given, whose pointer leads to as many instructions as it says.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                16,
            )
        };
        assert_eq!(result, 0);
        assert!(has_filter(&socket).expect("ask"));
    }

    #[test]
    fn what_holds_pointers_cannot_be_named() {
        for (level, number) in [(1, 26), (1, 27), (6, 35), (1, 51), (6, 14), (0, 64)] {
            assert_eq!(SocketOption::find(level, number), None);
        }
    }
}
