//! Options of a socket: those that differ from a new one's, and setting them on another.

use bincode::{Decode, Encode};
use pagetide_kernel::socket_option::SocketOption;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// An option, and the bytes of its value.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct KeptOption {
    pub level: i32,
    pub number: i32,
    pub value: Vec<u8>,
}

const SOCK_STREAM: i32 = 1;

/// Family, type and protocol, which decide what options a socket has and how they stand at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub family: i32,
    pub form: i32,
    pub protocol: i32,
}

impl Shape {
    pub(super) fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self {
            family: SocketOption::DOMAIN.read_int(socket)?,
            form: SocketOption::TYPE.read_int(socket)?,
            protocol: SocketOption::PROTOCOL.read_int(socket)?,
        })
    }

    /// A new socket of this shape, close-on-exec.
    pub(super) fn open(self) -> io::Result<OwnedFd> {
        let number = |value: i32| u32::try_from(value).ok();
        let small = |value: i32| u16::try_from(value).ok();
        let (Some(family), Some(form), Some(protocol)) =
            (small(self.family), number(self.form), number(self.protocol))
        else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let opened = socket_with(
            AddressFamily::from_raw(family),
            SocketType::from_raw(form),
            SocketFlags::CLOEXEC,
            std::num::NonZeroU32::new(protocol).map(Protocol::from_raw),
        )?;
        Ok(opened)
    }
}

type Values = Vec<(SocketOption, Vec<u8>)>;

/// How options stand on new sockets, asked once for each shape.
#[derive(Default)]
pub(super) struct Defaults {
    known: HashMap<Shape, Values>,
}

impl Defaults {
    /// The options of `socket` that do not stand as on a new one.
    pub(super) fn differing(
        &mut self,
        socket: BorrowedFd<'_>,
        shape: Shape,
    ) -> io::Result<Vec<KeptOption>> {
        let defaults = match self.known.entry(shape) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let new = shape.open()?;
                let mut values = values(new.as_fd());
                values.retain(|(option, _)| shape.form != SOCK_STREAM || !option.is_multicast());
                entry.insert(values)
            }
        };
        let mut differing = Vec::new();
        for (option, default) in defaults.iter() {
            let Ok(value) = option.read(socket) else {
                continue;
            };
            if value != *default {
                differing.push(KeptOption {
                    level: option.level(),
                    number: option.number(),
                    value,
                });
            }
        }
        Ok(differing)
    }
}

fn values(socket: BorrowedFd<'_>) -> Values {
    SocketOption::settable()
        .filter_map(|option| Some((option, option.read(socket).ok()?)))
        .collect()
}

impl KeptOption {
    /// Whether it is this one.
    pub(super) fn is(&self, option: SocketOption) -> bool {
        self.level == option.level() && self.number == option.number()
    }

    /// Sets it on `socket`.
    pub(super) fn set(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let Some(option) = SocketOption::find(self.level, self.number) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        option.set(socket, &self.value)
    }
}

impl Buffers {
    pub(super) fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self {
            send_bytes: SocketOption::SNDBUF.read_int(socket)?,
            receive_bytes: SocketOption::RCVBUF.read_int(socket)?,
            locked: SocketOption::BUF_LOCK.read_int(socket)?,
        })
    }

    /// Makes the buffers of `socket` as they were. Sizes above the limits of the system need CAP_NET_ADMIN, and are cut without it,
    /// as setsockopt(2) does. The kernel doubles what it is given, so half of what it told is set.
    pub(super) fn set(self, socket: BorrowedFd<'_>) -> io::Result<()> {
        set_either(
            socket,
            [SocketOption::SNDBUFFORCE, SocketOption::SNDBUF],
            self.send_bytes / 2,
        )?;
        set_either(
            socket,
            [SocketOption::RCVBUFFORCE, SocketOption::RCVBUF],
            self.receive_bytes / 2,
        )?;
        SocketOption::BUF_LOCK.set_int(socket, self.locked & 3)
    }
}

/// Makes room in both buffers for as much as may have to be put into them.
pub(super) fn widen(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    // What the kernel counts of a message is more than its bytes: some hundred bytes each, and whole pages.
    let room = i32::try_from(bytes.saturating_mul(4).saturating_add(4 << 20)).unwrap_or(i32::MAX);
    let room = room.min(i32::MAX / 2);
    set_either(
        socket,
        [SocketOption::SNDBUFFORCE, SocketOption::SNDBUF],
        room,
    )?;
    set_either(
        socket,
        [SocketOption::RCVBUFFORCE, SocketOption::RCVBUF],
        room,
    )
}

fn set_either(
    socket: BorrowedFd<'_>,
    [forced, plain]: [SocketOption; 2],
    value: i32,
) -> io::Result<()> {
    forced
        .set_int(socket, value)
        .or_else(|_| plain.set_int(socket, value))
}

/// Sizes of the buffers, as getsockopt(2) tells them: twice what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct Buffers {
    pub send_bytes: i32,
    pub receive_bytes: i32,
    /// SO_BUF_LOCK: which of the two the program has chosen, so that the kernel leaves it alone.
    pub locked: i32,
}
