//! What of sockets does not come back, in words.

use super::options::Shape;

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
pub(super) fn classify(shape: Shape) -> Result<Known, (&'static str, String)> {
    let named = |kind, what: &str| Err((kind, what.to_owned()));
    match (shape.family, shape.form, shape.protocol) {
        (AF_UNIX, SOCK_STREAM | SOCK_DGRAM | SOCK_SEQPACKET, _) => Ok(Known::Unix),
        (AF_INET | AF_INET6, SOCK_STREAM, 6) => Ok(Known::Tcp),
        (AF_INET | AF_INET6, SOCK_DGRAM, 17) => Ok(Known::Udp),
        (AF_NETLINK, SOCK_RAW | SOCK_DGRAM, _) => Ok(Known::Netlink),
        (AF_INET | AF_INET6, SOCK_RAW, _) => named("raw-socket", "is a raw socket"),
        (AF_INET | AF_INET6, SOCK_DGRAM, 1 | 58) => {
            named("ping-socket", "is a socket for ICMP echoes")
        }
        (AF_INET | AF_INET6, _, 262) => named("mptcp-socket", "is a multipath TCP socket"),
        (AF_INET | AF_INET6, _, 132) => named("sctp-socket", "is an SCTP socket"),
        (AF_INET | AF_INET6, _, 136) => named("udplite-socket", "is a UDP-Lite socket"),
        (AF_INET | AF_INET6, _, 33) => named("dccp-socket", "is a DCCP socket"),
        (AF_INET | AF_INET6, _, 256) => named("smc-socket", "is an SMC socket"),
        (17, ..) => named("packet-socket", "is a packet socket"),
        (40, ..) => named("vsock-socket", "is a socket to or from a virtual machine"),
        (31, ..) => named("bluetooth-socket", "is a Bluetooth socket"),
        (29, ..) => named("can-socket", "is a CAN bus socket"),
        (38, ..) => named("alg-socket", "is a socket of the kernel's cryptography"),
        (41, ..) => named(
            "kcm-socket",
            "is a socket of the kernel connection multiplexer",
        ),
        (44, ..) => named("xdp-socket", "is an AF_XDP socket"),
        (43, ..) => named("smc-socket", "is an SMC socket"),
        (30, ..) => named("tipc-socket", "is a TIPC socket"),
        (42, ..) => named("qrtr-socket", "is a Qualcomm router socket"),
        (45, ..) => named("mctp-socket", "is an MCTP socket"),
        (15, ..) => named("key-socket", "is a socket for IPsec keys"),
        (24, ..) => named("ppp-socket", "is a PPP socket"),
        (family, form, protocol) => Err((
            "unknown-socket",
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
        assert_eq!(name(2, 3, 1), Err("raw-socket"));
        assert_eq!(name(2, 2, 1), Err("ping-socket"));
        assert_eq!(name(10, 1, 262), Err("mptcp-socket"));
        assert_eq!(name(2, 5, 132), Err("sctp-socket"));
        assert_eq!(name(17, 3, 768), Err("packet-socket"));
        assert_eq!(name(99, 1, 0), Err("unknown-socket"));
    }
}
