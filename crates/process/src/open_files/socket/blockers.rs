//! What of sockets does not come back, in words.

use super::options::Shape;
use crate::blocker_kind::BlockerKind;

const AF_UNIX: i32 = 1;
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;
const AF_NETLINK: i32 = 16;
const SOCK_STREAM: i32 = 1;
const SOCK_DGRAM: i32 = 2;
const SOCK_RAW: i32 = 3;
const SOCK_SEQPACKET: i32 = 5;

/// The kinds of sockets that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Unix,
    Tcp,
    Udp,
    Netlink,
}

/// Which known kind it is, or the blocker's name and words for what is none.
pub(super) fn classify(shape: Shape) -> Result<Known, (BlockerKind, String)> {
    let named = |kind, what: &str| Err((kind, what.to_owned()));
    match (shape.family, shape.form, shape.protocol) {
        (AF_UNIX, SOCK_STREAM | SOCK_DGRAM | SOCK_SEQPACKET, _) => Ok(Known::Unix),
        (AF_INET | AF_INET6, SOCK_STREAM, 6) => Ok(Known::Tcp),
        (AF_INET | AF_INET6, SOCK_DGRAM, 17) => Ok(Known::Udp),
        (AF_NETLINK, SOCK_RAW | SOCK_DGRAM, _) => Ok(Known::Netlink),
        (AF_INET | AF_INET6, SOCK_RAW, _) => named(BlockerKind::RawSocket, "is a raw socket"),
        (AF_INET | AF_INET6, SOCK_DGRAM, 1 | 58) => {
            named(BlockerKind::PingSocket, "is a socket for ICMP echoes")
        }
        (AF_INET | AF_INET6, _, 262) => {
            named(BlockerKind::MptcpSocket, "is a multipath TCP socket")
        }
        (AF_INET | AF_INET6, _, 132) => named(BlockerKind::SctpSocket, "is an SCTP socket"),
        (AF_INET | AF_INET6, _, 136) => named(BlockerKind::UdpliteSocket, "is a UDP-Lite socket"),
        (AF_INET | AF_INET6, _, 33) => named(BlockerKind::DccpSocket, "is a DCCP socket"),
        (AF_INET | AF_INET6, _, 256) => named(BlockerKind::SmcSocket, "is an SMC socket"),
        (17, ..) => named(BlockerKind::PacketSocket, "is a packet socket"),
        (40, ..) => named(
            BlockerKind::VsockSocket,
            "is a socket to or from a virtual machine",
        ),
        (31, ..) => named(BlockerKind::BluetoothSocket, "is a Bluetooth socket"),
        (29, ..) => named(BlockerKind::CanSocket, "is a CAN bus socket"),
        (38, ..) => named(
            BlockerKind::AlgSocket,
            "is a socket of the kernel's cryptography",
        ),
        (41, ..) => named(
            BlockerKind::KcmSocket,
            "is a socket of the kernel connection multiplexer",
        ),
        (44, ..) => named(BlockerKind::XdpSocket, "is an AF_XDP socket"),
        (43, ..) => named(BlockerKind::SmcSocket, "is an SMC socket"),
        (30, ..) => named(BlockerKind::TipcSocket, "is a TIPC socket"),
        (42, ..) => named(BlockerKind::QrtrSocket, "is a Qualcomm router socket"),
        (45, ..) => named(BlockerKind::MctpSocket, "is an MCTP socket"),
        (15, ..) => named(BlockerKind::KeySocket, "is a socket for IPsec keys"),
        (24, ..) => named(BlockerKind::PppSocket, "is a PPP socket"),
        (family, form, protocol) => Err((
            BlockerKind::UnknownSocket,
            format!("is a socket of family {family}, type {form}, protocol {protocol}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_name() {
        let name = |family, form, protocol| {
            let shape = Shape {
                family,
                form,
                protocol,
            };
            classify(shape).map_err(|(kind, _)| kind)
        };
        assert_eq!(name(1, 5, 0), Ok(Known::Unix));
        assert_eq!(name(10, 1, 6), Ok(Known::Tcp));
        assert_eq!(name(2, 2, 17), Ok(Known::Udp));
        assert_eq!(name(16, 3, 0), Ok(Known::Netlink));
        assert_eq!(name(2, 3, 1), Err(BlockerKind::RawSocket));
        assert_eq!(name(2, 2, 1), Err(BlockerKind::PingSocket));
        assert_eq!(name(10, 1, 262), Err(BlockerKind::MptcpSocket));
        assert_eq!(name(2, 5, 132), Err(BlockerKind::SctpSocket));
        assert_eq!(name(17, 3, 768), Err(BlockerKind::PacketSocket));
        assert_eq!(name(99, 1, 0), Err(BlockerKind::UnknownSocket));
    }
}
