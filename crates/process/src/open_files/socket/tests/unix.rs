//! Unix sockets: pairs with what waits in them, names, listening ones, and ends that are gone.

use super::super::options::Shape;
use super::super::state::{SocketKind, UnixRole};
use super::{back, options_of, read, read_whole, reopen};
use crate::open_files::socket::SocketChoices;
use pagetide_kernel::socket::{own_address, peer_address};
use pagetide_kernel::socket_option::SocketOption;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::{fs, net};

fn packets() -> (OwnedFd, OwnedFd) {
    let form = SocketType::SEQPACKET;
    socketpair(AddressFamily::UNIX, form, SocketFlags::CLOEXEC, None).expect("a pair")
}

fn receive(socket: &OwnedFd) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 300_000];
    match recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
        Ok((length, _)) => Some(buffer[..length].to_vec()),
        Err(rustix::io::Errno::AGAIN) => None,
        Err(error) => panic!("receive: {error}"),
    }
}

fn post(socket: &OwnedFd, bytes: &[u8]) {
    let sent = send(socket, bytes, SendFlags::DONTWAIT).expect("send");
    assert_eq!(sent, bytes.len());
}

#[test]
fn a_pair_of_streams_keeps_what_waits_in_both_directions() {
    let (mut one, mut two) = UnixStream::pair().expect("a pair");
    let long: Vec<u8> = (0..150_000_u32).flat_map(|n| n.to_le_bytes()).collect();
    one.set_nonblocking(true).expect("set");
    let sent = one.write(&long).expect("write");
    assert!(sent > 100_000);
    two.write_all(b"to one").expect("write");
    let (one, two) = (OwnedFd::from(one), OwnedFd::from(two));
    SocketOption::PEEK_OFF.set_int(&one, 3).expect("set");
    let states = read_whole(&[&one, &two]);
    assert_eq!(SocketOption::PEEK_OFF.read_int(&one).expect("read"), 3);
    let options = [options_of(&one), options_of(&two)];
    drop((one, two));
    let sockets = back(&states);
    assert_eq!(sockets.iter().map(options_of).collect::<Vec<_>>(), options);
    let [one, two] = <[OwnedFd; 2]>::try_from(sockets).expect("two");
    SocketOption::PEEK_OFF.set_int(&one, -1).expect("set");
    let (mut one, mut two) = (UnixStream::from(one), UnixStream::from(two));
    let mut read = vec![0; sent];
    two.read_exact(&mut read).expect("read");
    assert!(read == long[..sent]);
    let mut short = [0; 6];
    one.read_exact(&mut short).expect("read");
    assert_eq!(&short, b"to one");
    one.write_all(b"on").expect("write");
    drop(one);
    let mut rest = String::new();
    two.read_to_string(&mut rest).expect("read");
    assert_eq!(rest, "on");
}

#[test]
fn messages_keep_their_boundaries_and_empty_ones_are_messages() {
    let (one, two) = packets();
    let (three, four) = UnixDatagram::pair().expect("a pair");
    let (three, four) = (OwnedFd::from(three), OwnedFd::from(four));
    let long = vec![7; 100_000];
    for sender in [&one, &three] {
        for message in [b"first".as_slice(), b"", b"third", &long, b"last"] {
            post(sender, message);
        }
    }
    let states: Vec<_> = read(&[&one, &two, &three, &four])
        .into_iter()
        .map(|state| state.expect("readable"))
        .collect();
    // The first look has shown the empty messages, and none is taken.
    for socket in [&two, &four] {
        let lengths: Vec<_> = std::iter::from_fn(|| receive(socket))
            .map(|message| message.len())
            .collect();
        assert_eq!(lengths, [5, 0, 5, 100_000, 4]);
    }
    drop((one, two, three, four));
    let sockets = back(&states);
    for socket in [&sockets[1], &sockets[3]] {
        let messages: Vec<_> = std::iter::from_fn(|| receive(socket)).collect();
        assert_eq!(messages.len(), 5);
        assert_eq!(messages[0], b"first");
        assert!(messages[1].is_empty());
        assert_eq!(messages[2], b"third");
        assert!(messages[3] == long);
        assert_eq!(messages[4], b"last");
    }
    post(&sockets[1], b"back");
    assert_eq!(receive(&sockets[0]).expect("a message"), b"back");
    post(&sockets[2], b"forth");
    assert_eq!(receive(&sockets[3]).expect("a message"), b"forth");
}

#[test]
fn an_empty_message_that_waits_alone_is_seen_again() {
    let (one, two) = UnixDatagram::pair().expect("a pair");
    one.send(b"").expect("send");
    let (one, two) = (OwnedFd::from(one), OwnedFd::from(two));
    for _ in 0..2 {
        let states = read(&[&one, &two]);
        let state = states[1].as_ref().expect("readable");
        assert!(matches!(&state.kind, SocketKind::Unix(unix) if unix.queue.len() == 1));
    }
}

#[test]
fn ends_that_are_shut_down_or_closed_stay_so() {
    let (one, two) = UnixStream::pair().expect("a pair");
    (&one).write_all(b"before the end").expect("write");
    one.shutdown(net::Shutdown::Write).expect("shut down");
    let (half, closed) = UnixStream::pair().expect("a pair");
    (&closed).write_all(b"left behind").expect("write");
    drop(closed);
    let (failed, unread) = UnixStream::pair().expect("a pair");
    (&failed).write_all(b"never read").expect("write");
    drop(unread);
    let (three, four) = packets();
    post(&three, b"packet");
    drop(three);
    let sockets = [one.into(), two.into(), half.into(), failed.into(), four];
    let references: Vec<&OwnedFd> = sockets.iter().collect();
    let states = read_whole(&references);
    // Reading has not taken the error away.
    assert_eq!(
        SocketOption::ERROR.read_int(&sockets[3]).expect("read"),
        104
    );
    drop(sockets);
    let sockets = back(&states);
    let [one, two, half, failed, four] = <[OwnedFd; 5]>::try_from(sockets).expect("five");
    let (mut one, mut two, mut half) = (
        UnixStream::from(one),
        UnixStream::from(two),
        UnixStream::from(half),
    );
    let mut text = String::new();
    two.read_to_string(&mut text).expect("read to the end");
    assert_eq!(text, "before the end");
    assert_eq!(
        one.write(b"x").expect_err("shut down").kind(),
        ErrorKind::BrokenPipe
    );
    two.write_all(b"other way").expect("write");
    let mut other = [0; 9];
    one.read_exact(&mut other).expect("read");
    text.clear();
    half.read_to_string(&mut text).expect("read to the end");
    assert_eq!(text, "left behind");
    assert_eq!(
        half.write(b"x").expect_err("closed").kind(),
        ErrorKind::BrokenPipe
    );
    let mut failed = UnixStream::from(failed);
    assert_eq!(
        failed.read(&mut [0]).expect_err("reset").kind(),
        ErrorKind::ConnectionReset
    );
    assert_eq!(receive(&four).expect("a packet"), b"packet");
    assert_eq!(receive(&four).expect("the end"), b"");
}

#[test]
fn a_listening_socket_is_there_again_with_its_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).expect("bind");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
    std::os::unix::fs::chown(&path, Some(12), Some(34)).expect("chown");
    let abstract_name = format!("pagetide-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&abstract_name).expect("a name");
    let hidden = UnixListener::bind_addr(&address).expect("bind");
    let sockets = [OwnedFd::from(listener), OwnedFd::from(hidden)];
    let states = read_whole(&[&sockets[0], &sockets[1]]);
    assert_eq!(states[0].paths(), [path.as_path()]);
    assert!(states[1].paths().is_empty());
    // Somebody listens there, and stays unharmed.
    let error = reopen(&states, &SocketChoices::default()).expect_err("in use");
    assert!(error.to_string().contains("bind to"), "{error}");
    UnixStream::connect(&path).expect("connect to the first one still");
    drop(sockets);
    let mut sockets = back(&states).into_iter();
    let file = fs::symlink_metadata(&path).expect("the file");
    assert!(file.file_type().is_socket());
    assert_eq!(
        (file.mode() & 0o7777, file.uid(), file.gid()),
        (0o640, 12, 34)
    );
    let listener = UnixListener::from(sockets.next().expect("one"));
    let hidden = UnixListener::from(sockets.next().expect("two"));
    let mut client = UnixStream::connect(&path).expect("connect");
    let (mut server, _) = listener.accept().expect("accept");
    client.write_all(b"x").expect("write");
    server.read_exact(&mut [0]).expect("read");
    UnixStream::connect_addr(&address).expect("connect");
    hidden.accept().expect("accept");
    // What is no socket is left alone, and what was made for a failed attempt is taken away.
    drop((listener, hidden));
    fs::remove_file(&path).expect("remove");
    fs::write(&path, "mine").expect("write");
    reopen(&states, &SocketChoices::default()).expect_err("a file is there");
    assert_eq!(fs::read(&path).expect("read"), b"mine");
    fs::remove_file(&path).expect("remove");
    let busy = UnixListener::bind_addr(&address).expect("bind");
    reopen(&states, &SocketChoices::default()).expect_err("the second name is in use");
    assert!(!path.exists());
    drop(busy);
}

#[test]
fn accepted_connections_have_their_names_and_the_listener_its_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).expect("bind");
    let client = UnixStream::connect(&path).expect("connect");
    let (server, _) = listener.accept().expect("accept");
    (&client).write_all(b"asked").expect("write");
    let address = SocketAddr::from_abstract_name(format!("pagetide-named-{}", std::process::id()));
    let other = UnixListener::bind_addr(&address.expect("a name")).expect("bind");
    let second = UnixStream::connect_addr(&other.local_addr().expect("its name")).expect("connect");
    let (accepted, _) = other.accept().expect("accept");
    let sockets: [OwnedFd; 6] = [
        client.into(),
        server.into(),
        listener.into(),
        other.into(),
        accepted.into(),
        second.into(),
    ];
    let references: Vec<&OwnedFd> = sockets.iter().collect();
    let states = read_whole(&references);
    let names = |sockets: &[OwnedFd]| {
        let names = sockets.iter().map(|socket| {
            let peer = peer_address(socket).expect("its peer");
            (own_address(socket).expect("its name"), peer)
        });
        names.collect::<Vec<_>>()
    };
    let before = names(&sockets);
    drop(sockets);
    let sockets = back(&states);
    assert_eq!(names(&sockets), before);
    let mut answer = [0; 5];
    let [client, server, listener, ..] = <[OwnedFd; 6]>::try_from(sockets).expect("six");
    let (mut client, mut server) = (UnixStream::from(client), UnixStream::from(server));
    server.read_exact(&mut answer).expect("read");
    assert_eq!(&answer, b"asked");
    server.write_all(b"reply").expect("write");
    client.read_exact(&mut answer).expect("read");
    UnixStream::connect(&path).expect("connect");
    UnixListener::from(listener).accept().expect("accept");
}

#[test]
fn datagrams_come_from_whom_they_came() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    let server = UnixDatagram::bind(path("server")).expect("bind");
    let client = UnixDatagram::bind(path("client")).expect("bind");
    client.connect(path("server")).expect("connect");
    let nameless = UnixDatagram::unbound().expect("a socket");
    client.send(b"named").expect("send");
    nameless.send_to(b"nameless", path("server")).expect("send");
    // A server outside, as syslog is.
    let outside = UnixDatagram::bind(path("outside")).expect("bind");
    let logging = UnixDatagram::unbound().expect("a socket");
    logging.connect(path("outside")).expect("connect");
    let sockets: [OwnedFd; 3] = [server.into(), client.into(), logging.into()];
    let references: Vec<&OwnedFd> = sockets.iter().collect();
    let states = read_whole(&references);
    drop((sockets, nameless));
    let mut sockets = back(&states).into_iter().map(UnixDatagram::from);
    let (server, client, logging) = (
        sockets.next().expect("one"),
        sockets.next().expect("two"),
        sockets.next().expect("three"),
    );
    let mut buffer = [0; 20];
    let (length, from) = server.recv_from(&mut buffer).expect("receive");
    assert_eq!(&buffer[..length], b"named");
    assert_eq!(from.as_pathname(), Some(path("client").as_path()));
    let (length, from) = server.recv_from(&mut buffer).expect("receive");
    assert_eq!(&buffer[..length], b"nameless");
    assert!(from.is_unnamed());
    client.send(b"more").expect("send");
    assert_eq!(server.recv(&mut buffer).expect("receive"), 4);
    server.send_to(b"answer", path("client")).expect("send");
    assert_eq!(client.recv(&mut buffer).expect("receive"), 6);
    logging.send(b"a line").expect("send");
    assert_eq!(outside.recv(&mut buffer).expect("receive"), 6);
}

#[test]
fn a_relative_name_leads_from_the_directory_it_was_given_in() {
    let name = format!("pagetide-relative-{}", std::process::id());
    let shape = Shape {
        family: 1,
        form: 1,
        protocol: 0,
    };
    let socket = shape.open().expect("a socket");
    let mut address = 1_u16.to_ne_bytes().to_vec();
    address.extend_from_slice(name.as_bytes());
    pagetide_kernel::socket::bind(&socket, &address).expect("bind");
    rustix::net::listen(&socket, 5).expect("listen");
    let states = read_whole(&[&socket]);
    let before = own_address(&socket).expect("its name");
    drop(socket);
    let sockets = back(&states);
    assert_eq!(own_address(&sockets[0]).expect("its name"), before);
    UnixStream::connect(&name).expect("connect");
    fs::remove_file(&name).expect("remove");
}

#[test]
fn a_name_whose_file_is_gone_is_given_without_a_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("deep").join("socket");
    fs::create_dir(directory.path().join("deep")).expect("make");
    let listener = UnixListener::bind(&path).expect("bind");
    fs::remove_file(&path).expect("remove");
    let listener = OwnedFd::from(listener);
    let states = read_whole(&[&listener]);
    let before = own_address(&listener).expect("its name");
    drop(listener);
    let sockets = back(&states);
    assert_eq!(own_address(&sockets[0]).expect("its name"), before);
    assert!(!path.exists());
}

#[test]
fn an_end_whose_other_end_is_not_given_counts_as_closed() {
    let (one, two) = UnixStream::pair().expect("a pair");
    (&two).write_all(b"said").expect("write");
    let (one, two) = (OwnedFd::from(one), OwnedFd::from(two));
    let mut states = read_whole(&[&one, &two]);
    drop((one, two));
    assert!(matches!(
        &states[0].kind,
        SocketKind::Unix(unix) if matches!(unix.role, UnixRole::PeerInside { .. })
    ));
    states.truncate(1);
    let mut one = UnixStream::from(back(&states).remove(0));
    let mut text = String::new();
    one.read_to_string(&mut text).expect("read to the end");
    assert_eq!(text, "said");
}

#[test]
fn options_and_owners_are_kept() {
    let (one, two) = packets();
    for (level, number, value) in [(1, 16, 1), (1, 18, 77), (1, 29, 1)] {
        let option = SocketOption::find(level, number).expect("an option");
        option.set_int(&one, value).expect("set");
    }
    SocketOption::SNDBUF.set_int(&one, 50_000).expect("set");
    SocketOption::RCVBUFFORCE
        .set_int(&two, 30 << 20)
        .expect("set");
    rustix::fs::fchown(&two, Some(rustix::fs::Uid::from_raw(77)), None).expect("chown");
    let states = read_whole(&[&one, &two]);
    let before = [options_of(&one), options_of(&two)];
    drop((one, two));
    let sockets = back(&states);
    assert_eq!(sockets.iter().map(options_of).collect::<Vec<_>>(), before);
    assert_eq!(rustix::fs::fstat(&sockets[1]).expect("stat").st_uid, 77);
}
