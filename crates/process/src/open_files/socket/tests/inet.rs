//! TCP, UDP and netlink sockets.

use super::super::options::Shape;
use super::super::state::{SocketKind, SocketState, TcpRole, UdpSocket as UdpState};
use super::super::surroundings::events;
use super::{back, opener, options_of, read, read_whole, reopen, reopen_sockets};
use crate::open_files::socket::{SocketChoices, TcpChoice};
use pagetide_kernel::socket::{bytes_to_read, bytes_to_send, own_address, peer_address};
use pagetide_kernel::socket_option::SocketOption;
use rustix::event::PollFlags;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};

fn option(level: i32, number: i32) -> SocketOption {
    SocketOption::find(level, number).expect("an option")
}

/// Two ends of a connection over loopback, and who has accepted the second.
fn connection(address: &str) -> (TcpStream, TcpStream, TcpListener) {
    let listener = TcpListener::bind(address).expect("bind");
    let client = TcpStream::connect(listener.local_addr().expect("its address")).expect("connect");
    let (server, _) = listener.accept().expect("accept");
    (client, server, listener)
}

/// Closes a connection so that the peer does not notice, as if this machine had vanished.
fn vanish(socket: OwnedFd) {
    SocketOption::TCP_REPAIR
        .set_int(&socket, 1)
        .expect("repair mode");
    drop(socket);
}

fn same_options(now: &[(i32, i32, Vec<u8>)], before: &[(i32, i32, Vec<u8>)]) {
    // Binding to one address of IPv6 switches IPV6_V6ONLY on, which for a connection means nothing.
    let compared = |option: &&(i32, i32, Vec<u8>)| (option.0, option.1) != (41, 26);
    for (now, before) in now
        .iter()
        .filter(compared)
        .zip(before.iter().filter(compared))
    {
        assert_eq!(now, before);
    }
}

fn is_repaired(socket: impl AsFd) -> bool {
    SocketOption::TCP_REPAIR.read_int(socket).expect("ask") != 0
}

fn wait_for(socket: impl AsFd, wanted: PollFlags) {
    for _ in 0..3000 {
        if events(socket.as_fd()).intersects(wanted) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("nothing has come in 30 seconds");
}

fn say(from: &mut TcpStream, to: &mut TcpStream, text: &str) {
    from.write_all(text.as_bytes()).expect("write");
    let mut read = vec![0; text.len()];
    to.read_exact(&mut read).expect("read");
    assert_eq!(read, text.as_bytes());
}

#[test]
fn listening_sockets_listen_again_with_their_options() {
    for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"] {
        let listener = OwnedFd::from(TcpListener::bind(address).expect("bind"));
        rustix::net::listen(&listener, 77).expect("listen");
        for (level, number, value) in [(6, 9, 4), (6, 23, 5), (1, 9, 1), (6, 4, 99)] {
            option(level, number)
                .set_int(&listener, value)
                .expect("set");
        }
        SocketOption::REUSEADDR.set_int(&listener, 0).expect("set");
        let local = own_address(&listener).expect("its address");
        let states = read_whole(&[&listener]);
        let SocketKind::Tcp(tcp) = &states[0].kind else {
            panic!("TCP")
        };
        assert_eq!(tcp.role, TcpRole::Listening { backlog: 77 });
        let options = options_of(&listener);
        let error = reopen(&states, &SocketChoices::default()).expect_err("it is in use");
        assert!(error.to_string().contains("to port"), "{error}");
        // A connection that the ended process had is in TIME_WAIT on the port.
        drop(listener);
        let sockets = back(&states);
        assert_eq!(own_address(&sockets[0]).expect("its address"), local);
        assert_eq!(options_of(&sockets[0]), options);
        assert_eq!(read_whole(&[&sockets[0]])[0].kind, states[0].kind);
        let listener = TcpListener::from(sockets.into_iter().next().expect("one"));
        let mut target = listener.local_addr().expect("its address");
        if target.ip().is_unspecified() {
            target = match target {
                SocketAddr::V4(_) => SocketAddr::from(([127, 0, 0, 1], target.port())),
                SocketAddr::V6(_) => SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], target.port())),
            };
        }
        let mut client = TcpStream::connect(target).expect("connect");
        // TCP_DEFER_ACCEPT waits for it.
        client.write_all(b"x").expect("write");
        listener.accept().expect("accept");
    }
}

#[test]
fn sockets_that_share_a_port_and_such_of_one_family_only_come_back() {
    let shape = Shape {
        family: 10,
        form: 1,
        protocol: 6,
    };
    let mut address = vec![0; 28];
    address[..2].copy_from_slice(&10_u16.to_ne_bytes());
    let mut sockets = Vec::new();
    for _ in 0..2 {
        let socket = shape.open().expect("a socket");
        SocketOption::REUSEPORT.set_int(&socket, 1).expect("set");
        SocketOption::IPV6_V6ONLY.set_int(&socket, 1).expect("set");
        pagetide_kernel::socket::bind(&socket, &address).expect("bind");
        rustix::net::listen(&socket, 5).expect("listen");
        address = own_address(&socket).expect("its address");
        sockets.push(socket);
    }
    let port = u16::from_be_bytes([address[2], address[3]]);
    let other = TcpListener::bind(("0.0.0.0", port)).expect("the other family is free");
    sockets.push(other.into());
    // A fresh one, and one that is bound only.
    sockets.push(shape.open().expect("a socket"));
    let bound = shape.open().expect("a socket");
    address[2..4].copy_from_slice(&[0, 0]);
    pagetide_kernel::socket::bind(&bound, &address).expect("bind");
    sockets.push(bound);
    let references: Vec<&OwnedFd> = sockets.iter().collect();
    let states = read_whole(&references);
    let before: Vec<_> = sockets.iter().map(options_of).collect();
    let addresses: Vec<_> = sockets.iter().map(|s| own_address(s).ok()).collect();
    drop(sockets);
    let sockets = back(&states);
    assert_eq!(sockets.iter().map(options_of).collect::<Vec<_>>(), before);
    assert_eq!(
        sockets
            .iter()
            .map(|s| own_address(s).ok())
            .collect::<Vec<_>>(),
        addresses
    );
}

#[test]
fn a_connection_whose_end_vanished_goes_on() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (client, mut server, listener) = connection(address);
        (&client).write_all(b"not read yet").expect("write");
        server.write_all(b"neither").expect("write");
        client.set_nodelay(true).expect("set");
        SocketOption::REUSEADDR.set_int(&client, 1).expect("set");
        let client = OwnedFd::from(client);
        wait_for(&client, PollFlags::IN);
        let states = read_whole(&[&client]);
        // Reading has left repair mode, and what that would have switched off.
        assert!(!is_repaired(&client));
        let reuse = SocketOption::REUSEADDR.read_int(&client).expect("read");
        assert_eq!(reuse, 1);
        assert_eq!(bytes_to_read(&client).expect("ask"), 7);
        let options = options_of(&client);
        let names = (own_address(&client), peer_address(&client));
        vanish(client);
        // Of one that was opened and does not go on, as in a restore that fails, the peer hears nothing.
        let unheard: Vec<_> = states.iter().enumerate().collect();
        drop(reopen_sockets(&unheard, &SocketChoices::default(), &|_| opener()).expect("sockets"));
        let client = back(&states).remove(0);
        assert!(!is_repaired(&client));
        same_options(&options_of(&client), &options);
        assert_eq!(own_address(&client).ok(), names.0.ok());
        assert_eq!(peer_address(&client).ok(), names.1.ok());
        let mut client = TcpStream::from(client);
        let mut text = [0; 12];
        client.read_exact(&mut text[..7]).expect("read");
        assert_eq!(&text[..7], b"neither");
        server.read_exact(&mut text).expect("read");
        assert_eq!(&text, b"not read yet");
        for _ in 0..3 {
            say(&mut client, &mut server, "from the restored one");
            say(&mut server, &mut client, "to the restored one");
        }
        drop(client);
        assert_eq!(server.read(&mut text).expect("the end"), 0);
        drop(listener);
    }
}

#[test]
fn what_was_not_acknowledged_is_sent_again() {
    let (client, server, _listener) = connection("127.0.0.1:0");
    client.set_nonblocking(true).expect("set");
    let pattern: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut sent = 0;
    while let Ok(taken) = (&client).write(&pattern[sent..]) {
        sent += taken;
    }
    let client = OwnedFd::from(client);
    let waiting = bytes_to_send(&client).expect("ask");
    assert!(
        waiting > 100_000,
        "the peer reads nothing, so its window is full"
    );
    let states = [read(&[&client]).remove(0).expect("readable")];
    vanish(client);
    let client = TcpStream::from(back(&states).remove(0));
    let reader = std::thread::spawn(move || {
        let mut read = Vec::new();
        let mut server = server;
        server.read_to_end(&mut read).expect("read to the end");
        read
    });
    client.set_nonblocking(false).expect("set");
    (&client).write_all(b"and the rest").expect("write");
    client.shutdown(Shutdown::Write).expect("shut down");
    let read = reader.join().expect("the reader");
    assert_eq!(read.len(), sent + 12);
    assert!(read[..sent] == pattern[..sent]);
    assert_eq!(&read[sent..], b"and the rest");
}

#[test]
fn both_ends_and_their_listener_come_back_together() {
    let (client, server, listener) = connection("127.0.0.1:0");
    (&client).write_all(b"asked").expect("write");
    (&server).write_all(b"answered").expect("write");
    let sockets: [OwnedFd; 3] = [client.into(), server.into(), listener.into()];
    wait_for(&sockets[0], PollFlags::IN);
    wait_for(&sockets[1], PollFlags::IN);
    let references: Vec<&OwnedFd> = sockets.iter().collect();
    let states = read_whole(&references);
    for socket in sockets.into_iter().take(2) {
        vanish(socket);
    }
    let [client, server, listener] = <[OwnedFd; 3]>::try_from(back(&states)).expect("three");
    let (mut client, mut server) = (TcpStream::from(client), TcpStream::from(server));
    let mut text = [0; 8];
    server.read_exact(&mut text[..5]).expect("read");
    assert_eq!(&text[..5], b"asked");
    client.read_exact(&mut text).expect("read");
    assert_eq!(&text, b"answered");
    say(&mut client, &mut server, "and on");
    say(&mut server, &mut client, "and back");
    let listener = TcpListener::from(listener);
    TcpStream::connect(listener.local_addr().expect("its address")).expect("connect");
    listener.accept().expect("accept");
}

#[test]
fn connections_that_are_half_closed_stay_so() {
    // The program has said that it sends no more.
    let (client, mut server, _listener) = connection("127.0.0.1:0");
    (&client).write_all(b"all").expect("write");
    client.shutdown(Shutdown::Write).expect("shut down");
    let client = OwnedFd::from(client);
    let states = read_whole(&[&client]);
    vanish(client);
    let mut client = TcpStream::from(back(&states).remove(0));
    let mut text = String::new();
    server.read_to_string(&mut text).expect("read to the end");
    assert_eq!(text, "all");
    say(&mut server, &mut client, "received all the same");
    let error = client.write(b"x").expect_err("shut down");
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);

    // The peer has said so.
    let (mut client, server, _listener) = connection("127.0.0.1:0");
    client.write_all(b"the last").expect("write");
    client.shutdown(Shutdown::Write).expect("shut down");
    let server = OwnedFd::from(server);
    wait_for(&server, PollFlags::RDHUP);
    let states = read_whole(&[&server]);
    vanish(server);
    let mut server = TcpStream::from(back(&states).remove(0));
    text.clear();
    server.read_to_string(&mut text).expect("read to the end");
    assert_eq!(text, "the last");
    say(&mut server, &mut client, "answered all the same");
    drop(server);
    assert_eq!(client.read(&mut [0]).expect("the end"), 0);
}

#[test]
fn after_the_end_of_the_process_the_peer_knows_and_the_program_sees_a_reset() {
    let (client, mut server, _listener) = connection("127.0.0.1:0");
    let client = OwnedFd::from(client);
    let states = read_whole(&[&client]);
    // As at the end of a process: the kernel sends FIN, and the peer's program ends, too.
    drop(client);
    assert_eq!(server.read(&mut [0]).expect("the end"), 0);
    drop(server);
    let mut client = TcpStream::from(back(&states).remove(0));
    wait_for(&client, PollFlags::HUP);
    let error = client.read(&mut [0]).expect_err("reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_connection_that_is_to_be_reset_is_found_reset() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (client, _server, _listener) = connection(address);
        client.set_nodelay(true).expect("set");
        let client = OwnedFd::from(client);
        let states = read_whole(&[&client]);
        let choices = SocketChoices {
            tcp: TcpChoice::Reset,
            ..SocketChoices::default()
        };
        let client = reopen(&states, &choices).expect("open").remove(0);
        assert!(events(client.as_fd()).contains(PollFlags::ERR | PollFlags::HUP));
        let mut client = TcpStream::from(client);
        assert!(client.nodelay().expect("ask"));
        let error = client.read(&mut [0]).expect_err("reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let error = client.write(b"x").expect_err("reset");
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }
}

#[test]
fn connections_that_are_over_stay_so() {
    let (client, server, _listener) = connection("127.0.0.1:0");
    (&server).write_all(b"unread").expect("write");
    wait_for(&client, PollFlags::IN);
    let at_once: Vec<u8> = [1_i32, 0].iter().flat_map(|v| v.to_ne_bytes()).collect();
    SocketOption::LINGER.set(&server, &at_once).expect("set");
    drop(server);
    wait_for(&client, PollFlags::ERR);
    let client = OwnedFd::from(client);
    let states = read_whole(&[&client]);
    // Reading has not taken the error away.
    assert!(events(client.as_fd()).contains(PollFlags::ERR));
    drop(client);
    let mut client = TcpStream::from(back(&states).remove(0));
    let mut text = [0; 6];
    client.read_exact(&mut text).expect("read");
    assert_eq!(&text, b"unread");
    let error = client.read(&mut text).expect_err("reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn udp_sockets_come_back_and_datagrams_are_counted() {
    let server = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let client = UdpSocket::bind("127.0.0.1:0").expect("bind");
    client
        .connect(server.local_addr().expect("its address"))
        .expect("connect");
    let fresh = Shape {
        family: 10,
        form: 2,
        protocol: 17,
    };
    let fresh = fresh.open().expect("a socket");
    server.set_broadcast(true).expect("set");
    client.send(b"one").expect("send");
    client.send(b"two").expect("send");
    let sockets: [OwnedFd; 3] = [server.into(), client.into(), fresh];
    let references: Vec<&OwnedFd> = sockets.iter().collect();
    let states = read_whole(&references);
    assert!(matches!(
        states[0].kind,
        SocketKind::Udp(UdpState { lost: 2, .. })
    ));
    assert_eq!(bytes_to_read(&sockets[0]).expect("ask"), 3);
    let options: Vec<_> = sockets.iter().map(options_of).collect();
    drop(sockets);
    let sockets = back(&states);
    assert_eq!(sockets.iter().map(options_of).collect::<Vec<_>>(), options);
    let mut sockets = sockets.into_iter().map(UdpSocket::from);
    let (server, client) = (sockets.next().expect("one"), sockets.next().expect("two"));
    client.send(b"three").expect("send");
    let mut buffer = [0; 10];
    assert_eq!(server.recv(&mut buffer).expect("receive"), 5);
    server
        .send_to(b"back", client.local_addr().expect("its address"))
        .expect("send");
    assert_eq!(client.recv(&mut buffer).expect("receive"), 4);
}

#[test]
fn netlink_sockets_come_back() {
    let shape = Shape {
        family: 16,
        form: 3,
        protocol: 0,
    };
    let socket = shape.open().expect("a socket");
    let mut address = vec![0; 12];
    address[..2].copy_from_slice(&16_u16.to_ne_bytes());
    pagetide_kernel::socket::bind(&socket, &address).expect("bind");
    option(270, 11).set_int(&socket, 1).expect("set");
    let states = read_whole(&[&socket]);
    let before = (own_address(&socket).ok(), options_of(&socket));
    drop(socket);
    let socket = back(&states).remove(0);
    assert_eq!((own_address(&socket).ok(), options_of(&socket)), before);
}

#[test]
fn impossible_values_are_refused_and_nothing_is_left() {
    let (client, _server, _listener) = connection("127.0.0.1:0");
    let states = read_whole(&[&OwnedFd::from(client)]);
    type Damage = fn(&mut SocketState);
    let damages: [Damage; 5] = [
        |state| {
            if let SocketKind::Tcp(tcp) = &mut state.kind {
                tcp.address.truncate(3);
            }
        },
        |state| {
            if let SocketKind::Tcp(tcp) = &mut state.kind {
                tcp.address[0] = 1;
            }
        },
        |state| {
            if let SocketKind::Tcp(tcp) = &mut state.kind
                && let TcpRole::Connected(connection) = &mut tcp.role
            {
                connection.peer = vec![0; 200];
            }
        },
        |state| {
            state.options.push(super::super::options::KeptOption {
                level: 1,
                number: 26,
                value: vec![0; 16],
            });
        },
        |state| state.owner = [u32::MAX; 2],
    ];
    for damage in damages {
        let mut states = states.clone();
        damage(&mut states[0]);
        reopen(&states, &SocketChoices::default()).expect_err("damaged");
    }
}
