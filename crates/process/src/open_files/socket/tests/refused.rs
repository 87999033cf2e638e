//! Sockets that do not come back, each by its name, and what becomes of them once that is accepted.

use super::super::options::Shape;
use super::super::{SocketError, read_sockets};
use super::{back_accepting, read, reopen};
use crate::open_files::socket::{ForeignSocket, SocketChoices, TcpChoice};
use pagetide_kernel::socket::{PEEK_URGENT, peek};
use pagetide_kernel::socket_option::SocketOption;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, send, sendmsg,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};

fn open(family: i32, form: i32, protocol: i32) -> OwnedFd {
    let shape = Shape {
        family,
        form,
        protocol,
    };
    shape.open().expect("a socket")
}

/// The only blocker of a socket of which nothing comes back.
fn closed(socket: &OwnedFd) -> String {
    let blocker = read(&[socket]).remove(0).expect_err("a blocker");
    assert_eq!(blocker.instead.as_deref(), Some("descriptor 3 is closed"));
    assert_eq!(blocker.place, "fd:3");
    blocker.kind.to_string()
}

/// The blockers of a socket of which something comes back, and it, opened again with them accepted.
fn partly(sockets: &[&OwnedFd]) -> (Vec<String>, Vec<OwnedFd>) {
    let states: Vec<_> = read(sockets)
        .into_iter()
        .map(|state| state.expect("readable"))
        .collect();
    let kinds: Vec<_> = states
        .iter()
        .flat_map(|state| state.blockers())
        .map(|blocker| blocker.kind.to_string())
        .collect();
    let error = reopen(&states, &SocketChoices::default()).expect_err("not accepted");
    assert!(matches!(error, SocketError::Refused(_)), "{error}");
    (kinds, back_accepting(&states))
}

#[test]
fn kinds_that_are_not_known_are_named() {
    assert_eq!(closed(&open(2, 3, 1)), "raw-socket");
    assert_eq!(closed(&open(17, 3, 0)), "packet-socket");
    assert_eq!(closed(&open(2, 1, 262)), "mptcp-socket");
    assert_eq!(closed(&open(40, 1, 0)), "vsock-socket");
    assert_eq!(closed(&open(44, 3, 0)), "xdp-socket");
    assert_eq!(closed(&open(2, 2, 136)), "udplite-socket");
    assert_eq!(closed(&open(16, 3, 15)), "netlink");
}

#[test]
fn busy_netlink_sockets_are_named() {
    let listening = open(16, 3, 0);
    let mut address = vec![0; 12];
    address[..2].copy_from_slice(&16_u16.to_ne_bytes());
    address[8] = 1;
    pagetide_kernel::socket::bind(&listening, &address).expect("bind");
    assert_eq!(closed(&listening), "netlink");
    let asking = open(16, 3, 0);
    // RTM_GETLINK of all, whose answer waits.
    let mut request = 32_u32.to_ne_bytes().to_vec();
    request.extend_from_slice(&18_u16.to_ne_bytes());
    request.extend_from_slice(&0x301_u16.to_ne_bytes());
    request.extend_from_slice(&[0; 24]);
    pagetide_kernel::socket::send(&asking, &request, &[]).expect("send");
    assert_eq!(closed(&asking), "netlink");
}

#[test]
fn sockets_of_another_network_namespace_are_named() {
    // A program in another namespace, which waits for input and so ends with this test.
    let mut other = Command::new("unshare")
        .args(["--net", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run unshare");
    let mut input = other.stdin.take().expect("its input");
    input.write_all(b"x").expect("write");
    // What it echoes says that it is there.
    let mut output = other.stdout.take().expect("its output");
    output.read_exact(&mut [0]).expect("read");
    let namespace = File::open(format!("/proc/{}/ns/net", other.id())).expect("open");
    let socket = std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("enter it");
        open(1, 2, 0)
    })
    .join()
    .expect("the thread");
    drop(input);
    other.wait().expect("reap it");
    assert_eq!(closed(&socket), "socket-namespace");
}

#[test]
fn descriptors_in_a_message_are_named_and_not_received() {
    let (one, two) = UnixStream::pair().expect("a pair");
    let (one, two) = (OwnedFd::from(one), OwnedFd::from(two));
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let handed = [one.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&handed)));
    let bytes = [std::io::IoSlice::new(b"with it")];
    sendmsg(&one, &bytes, &mut control, SendFlags::empty()).expect("send");
    let descriptors = || std::fs::read_dir("/proc/self/fd").expect("list").count();
    for credentials in [0, 1] {
        SocketOption::PASSCRED
            .set_int(&two, credentials)
            .expect("set");
        let before = descriptors();
        let (kinds, sockets) = partly(&[&one, &two]);
        let expected = ["unix-rights", "unix-credentials"];
        assert_eq!(kinds, expected[..=usize::from(credentials == 1)]);
        let mut buffer = [0; 20];
        let (length, _) = recv(&sockets[1], &mut buffer[..], RecvFlags::DONTWAIT).expect("receive");
        assert_eq!(&buffer[..length], b"with it");
        drop(sockets);
        // Other tests open and close descriptors at the same time, so only much would tell.
        assert!(descriptors() < before + 200);
    }
}

#[test]
fn an_end_outside_is_named_and_counts_as_closed() {
    let (inside, outside) = UnixStream::pair().expect("a pair");
    (&outside).write_all(b"the last words").expect("write");
    let inside = OwnedFd::from(inside);
    let (kinds, mut sockets) = partly(&[&inside]);
    assert_eq!(kinds, ["unix-peer"]);
    let mut text = String::new();
    let mut stream = UnixStream::from(sockets.remove(0));
    stream.read_to_string(&mut text).expect("read to the end");
    assert_eq!(text, "the last words");
    // The live one is as it was.
    let mut inside = UnixStream::from(inside);
    let mut buffer = [0; 14];
    inside.read_exact(&mut buffer).expect("read");
    assert_eq!(&buffer, b"the last words");
}

#[test]
fn a_connection_that_is_not_accepted_and_a_nameless_peer_are_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let _listener = UnixListener::bind(&path).expect("bind");
    let waiting = OwnedFd::from(UnixStream::connect(&path).expect("connect"));
    assert_eq!(partly(&[&waiting]).0, ["unix-peer"]);
    let (one, _two) = UnixDatagram::pair().expect("a pair");
    assert_eq!(partly(&[&one.into()]).0, ["unix-peer"]);
}

#[test]
fn an_address_of_a_sender_outside_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = UnixDatagram::bind(directory.path().join("server")).expect("bind");
    let client = UnixDatagram::bind(directory.path().join("client")).expect("bind");
    client
        .send_to(b"hello", directory.path().join("server"))
        .expect("send");
    let server = OwnedFd::from(server);
    let states = read(&[&server]);
    drop(server);
    let states: Vec<_> = states.into_iter().flatten().collect();
    assert_eq!(states[0].blockers()[0].kind, "unix-sender");
    let server = UnixDatagram::from(back_accepting(&states).remove(0));
    let (length, from) = server.recv_from(&mut [0; 9]).expect("receive");
    assert_eq!(length, 5);
    assert!(from.is_unnamed());
}

#[test]
fn an_urgent_byte_is_named() {
    let (one, two) = UnixStream::pair().expect("a pair");
    let (one, two) = (OwnedFd::from(one), OwnedFd::from(two));
    send(&one, b"!", SendFlags::OOB).expect("send");
    assert_eq!(partly(&[&one, &two]).0, ["unix-urgent"]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (server, _) = listener.accept().expect("accept");
    send(&client, b"!", SendFlags::OOB).expect("send");
    // It arrives at once over loopback, if not in the same instant.
    while peek(&server, &mut [0], 0, PEEK_URGENT).is_err() {
        std::thread::yield_now();
    }
    let (kinds, mut sockets) = partly(&[&server.into()]);
    assert_eq!(kinds, ["tcp-urgent"]);
    let error = TcpStream::from(sockets.remove(0))
        .read(&mut [0])
        .expect_err("reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn an_error_that_was_not_told_stays() {
    let (one, two) = UnixDatagram::pair().expect("a pair");
    one.send(b"never read").expect("send");
    rustix::net::connect_unspec(&two).expect("disconnect");
    let one = OwnedFd::from(one);
    assert_eq!(partly(&[&one]).0.last().expect("a blocker"), "unix-error");
    assert_eq!(SocketOption::ERROR.read_int(&one).expect("read"), 104);
}

#[test]
fn a_connection_being_made_is_named_unless_it_is_to_be_reset() {
    // A listener whose queue is full does not answer.
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    rustix::net::listen(&listener, 0).expect("listen");
    let address = pagetide_kernel::socket::own_address(&listener).expect("its address");
    let mut clients = Vec::new();
    let waiting = loop {
        let socket = open(2, 1, 6);
        rustix::io::ioctl_fionbio(&socket, true).expect("set");
        let _ = pagetide_kernel::socket::connect(&socket, &address);
        let info = SocketOption::TCP_INFO.read(&socket).expect("read");
        if info[0] == 2 {
            break socket;
        }
        clients.push(socket);
        assert!(clients.len() < 100);
    };
    let states = [read(&[&waiting]).remove(0).expect("readable")];
    assert_eq!(states[0].blockers()[0].kind, "tcp-state");
    let choices = SocketChoices {
        tcp: TcpChoice::Reset,
        ..SocketChoices::default()
    };
    assert_eq!(reopen(&states, &choices).expect("open").len(), 1);
    assert_eq!(partly(&[&waiting]).0, ["tcp-state"]);
}

#[test]
fn multicast_groups_are_named() {
    let member = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let lonely = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let group = Ipv4Addr::new(239, 71, 82, 93);
    member
        .join_multicast_v4(&group, &Ipv4Addr::LOCALHOST)
        .expect("join");
    let states = read(&[&lonely.into()]);
    assert_eq!(states[0].as_ref().expect("readable").blockers(), []);
    let member = OwnedFd::from(member);
    let states = read(&[&member]);
    let blocker = &states[0].as_ref().expect("readable").blockers()[0];
    assert!(blocker.what.ends_with("group 239.71.82.93"), "{blocker}");
    assert_eq!(blocker.kind, "multicast-group");
    drop(member);
    let states: Vec<_> = states.into_iter().flatten().collect();
    let member = back_accepting(&states).remove(0);
    let again = read(&[&member]).remove(0).expect("readable");
    assert_eq!(again.blockers(), []);
    let member = UdpSocket::bind("[::1]:0").expect("bind");
    let group = "ff02::7182".parse().expect("an address");
    member.join_multicast_v6(&group, 1).expect("join");
    let state = read(&[&member.into()]).remove(0).expect("readable");
    assert_eq!(state.blockers()[0].kind, "multicast-group");
}

#[test]
fn an_inode_that_is_not_the_sockets_is_an_error_and_no_panic() {
    let (one, _two) = UnixStream::pair().expect("a pair");
    let foreign = ForeignSocket {
        pid: 1,
        number: 9,
        inode: 1,
        fd: one.as_fd(),
    };
    let blocker = read_sockets(&[foreign]).remove(0).expect_err("unreadable");
    assert_eq!(blocker.name(), "unreadable-socket:fd:9");
}
