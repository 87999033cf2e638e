//! TCP sockets opened again: listening ones, connections mended by TCP_REPAIR, and sockets whose connection is over.

use super::address::{check_address, port};
use super::error::SocketError;
use super::options::{Shape, widen};
use super::state::{SocketState, TcpConnection, TcpRole, TcpSocket};
use super::tcp::{QUEUE_NONE, QUEUE_RECEIVE, QUEUE_SEND, REPAIR_OFF, REPAIR_ON};
use pagetide_kernel::socket::{bind, bytes_to_send, connect, own_address, peer_address, send};
use pagetide_kernel::socket_option::SocketOption;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{Shutdown, SocketFlags, accept_with, listen, shutdown};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Codes of TCP options, in what TCP_REPAIR_OPTIONS takes.
const OPTION_SEGMENT: u32 = 2;
const OPTION_SCALES: u32 = 3;
const OPTION_SACK: u32 = 4;
const OPTION_TIMESTAMPS: u32 = 8;
/// Bytes put into a queue in one go.
const PART_BYTES: usize = 32 << 10;

fn shape(tcp: &TcpSocket) -> Shape {
    Shape {
        family: if tcp.ipv6 { 10 } else { 2 },
        form: 1,
        protocol: 6,
    }
}

/// Opens one that is not connected: fresh, bound, listening, or with a connection that is over.
pub(super) fn reopen(
    index: usize,
    state: &SocketState,
    tcp: &TcpSocket,
) -> Result<OwnedFd, SocketError> {
    if let TcpRole::Over { reset, received } = &tcp.role {
        return reopen_over(index, state, tcp, *reset, received);
    }
    let shape = shape(tcp);
    check_address(index, &tcp.address, shape.family)?;
    let socket = shape.open().map_err(SocketError::open(index, "create"))?;
    state.set_options(index, socket.as_fd(), |_| true)?;
    if port(&tcp.address) == 0 {
        return Ok(socket);
    }
    // What connections of the ended process have left behind on the port (TIME_WAIT) must not stand in the way.
    let reuse = |value| {
        SocketOption::REUSEADDR
            .set_int(&socket, value)
            .map_err(SocketError::open(index, "set SO_REUSEADDR of"))
    };
    reuse(1)?;
    let address = format!("bind to port {}", port(&tcp.address));
    bind(&socket, &tcp.address).map_err(SocketError::open(index, &address))?;
    if let TcpRole::Listening { backlog } = tcp.role {
        let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
        listen(&socket, backlog)
            .map_err(|error| SocketError::open(index, "listen on")(error.into()))?;
    }
    reuse(state.int_option(SocketOption::REUSEADDR))?;
    Ok(socket)
}

/// A connection made anew by TCP_REPAIR, and still in that mode: nothing has been sent, and closing it sends nothing.
pub(super) fn mend(
    index: usize,
    state: &SocketState,
    tcp: &TcpSocket,
    connection: &TcpConnection,
) -> Result<OwnedFd, SocketError> {
    let shape = shape(tcp);
    check_address(index, &tcp.address, shape.family)?;
    check_address(index, &connection.peer, shape.family)?;
    let failed = |what: &str| SocketError::open(index, what);
    let socket = shape.open().map_err(failed("create"))?;
    let set = |option: SocketOption, value: u32| option.set_int(&socket, value.cast_signed());
    // Repair mode needs SO_REUSEADDR for itself, and a corked socket holds back what is put into its queue.
    state.set_options(index, socket.as_fd(), |option| {
        !option.is(SocketOption::REUSEADDR) && !option.is(SocketOption::TCP_CORK)
    })?;
    let bytes = connection.to_send.len().max(connection.received.len());
    widen(socket.as_fd(), bytes).map_err(failed("make room in"))?;
    SocketOption::TCP_REPAIR
        .set_int(&socket, REPAIR_ON)
        .map_err(failed("repair"))?;
    let start = |queue: i32, sequence: u32| {
        SocketOption::TCP_REPAIR_QUEUE.set_int(&socket, queue)?;
        set(SocketOption::TCP_QUEUE_SEQ, sequence)
    };
    // The peer's FIN has a number behind the last byte and is not put into the queue, so the bytes move up by one. Nobody sees
    // their numbers any more.
    let received_from = connection
        .receive_sequence
        .wrapping_add(u32::from(connection.peer_ended));
    start(QUEUE_SEND, connection.send_sequence).map_err(failed("number the bytes to send of"))?;
    start(QUEUE_RECEIVE, received_from).map_err(failed("number the bytes received of"))?;
    bind(&socket, &tcp.address).map_err(failed("bind"))?;
    connect(&socket, &connection.peer).map_err(failed("connect"))?;
    SocketOption::TCP_REPAIR_OPTIONS
        .set(&socket, &repair_options(connection))
        .map_err(failed("set the agreed options of"))?;
    if let Some(timestamp) = connection.timestamp {
        set(SocketOption::TCP_TIMESTAMP, timestamp).map_err(failed("set the clock of"))?;
    }
    for (queue, bytes) in [
        (QUEUE_RECEIVE, &connection.received),
        (QUEUE_SEND, &connection.to_send),
    ] {
        fill(socket.as_fd(), queue, bytes).map_err(failed("fill the queues of"))?;
    }
    SocketOption::TCP_REPAIR_WINDOW
        .set(&socket, &connection.window)
        .map_err(failed("set the windows of"))?;
    end_parts(socket.as_fd(), connection).map_err(failed("shut down"))?;
    SocketOption::TCP_REPAIR_QUEUE
        .set_int(&socket, QUEUE_NONE)
        .map_err(failed("repair"))?;
    state.set_buffers(index, socket.as_fd())?;
    Ok(socket)
}

fn repair_options(connection: &TcpConnection) -> Vec<u8> {
    let mut options = vec![(OPTION_SEGMENT, connection.segment_bytes)];
    if let Some([theirs, ours]) = connection.window_scales {
        options.push((OPTION_SCALES, u32::from(theirs) | u32::from(ours) << 16));
    }
    if connection.selective_acks {
        options.push((OPTION_SACK, 0));
    }
    if connection.timestamp.is_some() {
        options.push((OPTION_TIMESTAMPS, 0));
    }
    options
        .into_iter()
        .flat_map(|(code, value)| [code, value])
        .flat_map(u32::to_ne_bytes)
        .collect()
}

/// Puts bytes into a queue. All of the send queue counts as sent from then on, and is sent again when no answer comes.
fn fill(socket: BorrowedFd<'_>, queue: i32, mut bytes: &[u8]) -> io::Result<()> {
    SocketOption::TCP_REPAIR_QUEUE.set_int(socket, queue)?;
    while !bytes.is_empty() {
        let part = &bytes[..bytes.len().min(PART_BYTES)];
        match send(socket, part, &[])? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            taken => bytes = &bytes[taken.min(part.len())..],
        }
    }
    Ok(())
}

/// Ends what had ended. The FIN goes into the queue as something that was sent; the peer's is not there, so to the kernel the program
/// has said that it reads no more, which reads the same.
fn end_parts(socket: BorrowedFd<'_>, connection: &TcpConnection) -> io::Result<()> {
    SocketOption::TCP_REPAIR_QUEUE.set_int(socket, QUEUE_SEND)?;
    if connection.send_ended {
        shutdown(socket, Shutdown::Write)?;
    }
    if connection.receive_ended {
        shutdown(socket, Shutdown::Read)?;
    }
    Ok(())
}

/// Lets a mended connection live: leaves repair mode, which sends the peer a probe, so that it answers.
pub(super) fn let_go(
    index: usize,
    state: &SocketState,
    socket: BorrowedFd<'_>,
) -> Result<(), SocketError> {
    let set = |option: SocketOption, value| {
        option
            .set_int(socket, value)
            .map_err(SocketError::open(index, "let go"))
    };
    set(SocketOption::TCP_REPAIR, REPAIR_OFF)?;
    for option in [SocketOption::REUSEADDR, SocketOption::TCP_CORK] {
        set(option, state.int_option(option))?;
    }
    Ok(())
}

/// One whose connection is to be found reset.
pub(super) fn reopen_reset(
    index: usize,
    state: &SocketState,
    tcp: &TcpSocket,
) -> Result<OwnedFd, SocketError> {
    reopen_over(index, state, tcp, true, &[])
}

/// One whose connection is over: it was connected to a socket of our own, which has aborted the connection.
fn reopen_over(
    index: usize,
    state: &SocketState,
    tcp: &TcpSocket,
    reset: bool,
    received: &[u8],
) -> Result<OwnedFd, SocketError> {
    let socket = aborted(shape(tcp), received).map_err(SocketError::open(index, "reset"))?;
    if !reset {
        // Reading the error takes it away.
        SocketOption::ERROR
            .read_int(&socket)
            .map_err(SocketError::open(index, "reset"))?;
    }
    state.set_options(index, socket.as_fd(), |_| true)?;
    Ok(socket)
}

fn aborted(shape: Shape, received: &[u8]) -> io::Result<OwnedFd> {
    let mut loopback = vec![0; if shape.family == 10 { 28 } else { 16 }];
    loopback[..2].copy_from_slice(&u16::try_from(shape.family).unwrap_or(0).to_ne_bytes());
    if shape.family == 10 {
        loopback[23] = 1;
    } else {
        loopback[4..8].copy_from_slice(&[127, 0, 0, 1]);
    }
    let listener = shape.open()?;
    bind(&listener, &loopback)?;
    listen(&listener, 1)?;
    let address = own_address(&listener)?;
    let socket = shape.open()?;
    widen(socket.as_fd(), received.len())?;
    connect(&socket, &address)?;
    let other = accept_with(&listener, SocketFlags::CLOEXEC)?;
    if peer_address(&other)? != Some(own_address(&socket)?) {
        return Err(io::Error::other("somebody else has connected"));
    }
    widen(other.as_fd(), received.len())?;
    let mut rest = received;
    while !rest.is_empty() {
        match send(&other, rest, &[])? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            taken => rest = &rest[taken.min(rest.len())..],
        }
    }
    // Over loopback what was sent has arrived; only memory pressure defers it.
    for _ in 0..WAITS_MAX {
        if bytes_to_send(&other)? == 0 {
            break;
        }
        wait(socket.as_fd(), PollFlags::ERR, 10)?;
    }
    let at_once: Vec<u8> = [1_i32, 0].iter().flat_map(|v| v.to_ne_bytes()).collect();
    SocketOption::LINGER.set(&other, &at_once)?;
    drop(other);
    for _ in 0..WAITS_MAX {
        if wait(socket.as_fd(), PollFlags::RDHUP, 10)? {
            return Ok(socket);
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// How often is waited for ten milliseconds for what happens at once.
const WAITS_MAX: usize = 500;

fn wait(socket: BorrowedFd<'_>, events: PollFlags, milliseconds: i64) -> io::Result<bool> {
    let mut asked = [PollFd::new(&socket, events)];
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: milliseconds * 1_000_000,
    };
    match poll(&mut asked, Some(&timeout)) {
        Ok(_) => Ok(asked[0].revents().intersects(events)),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
