//! Looking at what waits in a socket, all of it, without taking it.
//!
//! SO_PEEK_OFF, Linux 3.4 (of TCP 6.9), says how far into the queue MSG_PEEK looks. It belongs to the open file
//! description, so it is put back. Where it is set anew before each look, messages keep their boundaries.
//!
//! An empty datagram that was looked at once is passed over when looked at again from an offset, by design of the kernel. So a
//! second checkpoint sees of empty datagrams only one, and only if nothing else waits.

use super::state::Message;
use pagetide_kernel::socket::{PEEK_WHOLE_LENGTH, bytes_to_read, peek};
use pagetide_kernel::socket_option::SocketOption;
use std::io;
use std::os::fd::BorrowedFd;

/// Most bytes that are taken from one queue.
pub(super) const QUEUE_BYTES_MAX: usize = 256 << 20;
/// Longest part of a stream that is looked at in one go, and more than most messages.
const LOOK_BYTES: usize = 64 << 10;

/// What waits in a socket.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub messages: Vec<Message>,
    /// Something came beside the bytes for which there was no room: descriptors.
    pub control_cut: bool,
}

impl Waiting {
    /// Forgets the empty messages at the end: to the program they are no different from the end.
    fn drop_empty_ends(&mut self) {
        let mut messages = self.messages.iter();
        let last = messages.rposition(|message| !message.bytes.is_empty());
        self.messages.truncate(last.map_or(0, |last| last + 1));
    }
}

/// SO_PEEK_OFF as it was, which is put back when this is dropped.
pub(super) struct PeekOffset<'a> {
    socket: BorrowedFd<'a>,
    before: i32,
}

impl<'a> PeekOffset<'a> {
    fn hold(socket: BorrowedFd<'a>) -> io::Result<Self> {
        let before = SocketOption::PEEK_OFF.read_int(socket)?;
        Ok(Self { socket, before })
    }

    /// Makes MSG_PEEK look from the beginning; `None` if it does so anyway, as also where TCP knows no offset.
    pub(super) fn hold_at_start(socket: BorrowedFd<'a>) -> io::Result<Option<Self>> {
        let before = SocketOption::PEEK_OFF.read_int(socket)?;
        if before < 0 {
            return Ok(None);
        }
        let held = Self { socket, before };
        held.move_to(-1)?;
        Ok(Some(held))
    }

    fn move_to(&self, offset: i32) -> io::Result<()> {
        SocketOption::PEEK_OFF.set_int(self.socket, offset)
    }
}

impl Drop for PeekOffset<'_> {
    fn drop(&mut self) {
        // Nothing can be done about a failure, and none is known: the same call has succeeded before.
        let _ = self.move_to(self.before);
    }
}

/// How a socket keeps what waits in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// As one stream of bytes.
    Stream,
    /// As messages.
    Messages,
    /// As messages, behind which receiving tells the end by an empty one (SOCK_SEQPACKET whose peer has shut down).
    MessagesThatEnd,
}

/// Empty messages in a row that are believed to be messages, if others follow behind them.
const EMPTY_RUN_MAX: usize = 64;

/// All that waits in a socket. Not for messages where an error waits to be told (POLLERR), which this would take away. At most `control_bytes` are given to control messages.
pub(super) fn look(
    socket: BorrowedFd<'_>,
    kept: Kept,
    control_bytes: usize,
) -> io::Result<Waiting> {
    let offset = PeekOffset::hold(socket)?;
    let mut waiting = Waiting::default();
    let mut buffer = vec![0; LOOK_BYTES];
    let mut seen_bytes = 0_usize;
    let mut empty_run = 0;
    // Behind the last byte of a stream an error may wait, which an attempt to receive would take away.
    let end = match kept {
        Kept::Stream => bytes_to_read(socket)?,
        Kept::Messages | Kept::MessagesThatEnd => usize::MAX,
    };
    while seen_bytes < end {
        let place = i32::try_from(seen_bytes).map_err(|_| too_much())?;
        offset.move_to(place)?;
        let flags = match kept {
            Kept::Stream => 0,
            Kept::Messages | Kept::MessagesThatEnd => PEEK_WHOLE_LENGTH,
        };
        let Some(looked) = peek(socket, &mut buffer, control_bytes, flags)? else {
            break;
        };
        if looked.length_bytes > buffer.len() {
            if looked.length_bytes > QUEUE_BYTES_MAX {
                return Err(too_much());
            }
            buffer.resize(looked.length_bytes, 0);
            continue;
        }
        if looked.length_bytes == 0 {
            empty_run += 1;
            match kept {
                Kept::Stream => break,
                // An empty message is seen once, the end again and again.
                Kept::MessagesThatEnd if empty_run > EMPTY_RUN_MAX => break,
                Kept::Messages | Kept::MessagesThatEnd => {}
            }
        } else {
            empty_run = 0;
        }
        waiting.control_cut |= looked.control_cut;
        seen_bytes = seen_bytes.saturating_add(looked.length_bytes);
        if seen_bytes > QUEUE_BYTES_MAX || waiting.messages.len() > QUEUE_BYTES_MAX / 512 {
            return Err(too_much());
        }
        waiting.messages.push(Message {
            bytes: buffer[..looked.length_bytes].to_vec(),
            source: looked.source,
        });
    }
    if kept == Kept::MessagesThatEnd {
        waiting.drop_empty_ends();
    }
    if kept == Kept::Messages && waiting.messages.is_empty() {
        offset.move_to(-1)?;
        if let Some(looked) = peek(socket, &mut buffer, control_bytes, PEEK_WHOLE_LENGTH)? {
            waiting.control_cut |= looked.control_cut;
            waiting.messages.push(Message {
                bytes: Vec::new(),
                source: looked.source,
            });
        }
    }
    Ok(waiting)
}

fn too_much() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, "too much waits in the socket")
}
