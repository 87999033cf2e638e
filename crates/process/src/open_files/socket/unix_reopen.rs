//! Unix sockets opened again: created, named, filled, connected and shut down, in this order, since each step could not be
//! done after the next one.

use super::address::address_of;
use super::choices::OpenerOf;
use super::error::SocketError;
use super::file::{Files, Nests, plain};
use super::options::{Shape, widen};
use super::place::SocketName;
use super::state::{Message, SocketKind, SocketState, UnixForm, UnixRole, UnixSocket};
use super::unix::name_of;
use crate::opener::Opener;
use pagetide_kernel::socket::{bind, connect, send};
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Shutdown, SocketFlags, SocketType, accept_with, listen, shutdown, socketpair,
};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

const SHUT_READ: u8 = 1;
const SHUT_WRITE: u8 = 2;

/// One Unix socket on its way.
struct Item<'a> {
    index: usize,
    state: &'a SocketState,
    unix: &'a UnixSocket,
    opener: &'a Opener,
    socket: Option<OwnedFd>,
    /// Where its name leads to it; `None` as long as it has none.
    place: Option<SocketName>,
    partner: Partner,
}

/// The other end of a connection.
enum Partner {
    None,
    /// Another item.
    Item(usize),
    /// A socket that will be closed.
    Ghost(OwnedFd),
}

impl Item<'_> {
    fn socket(&self) -> Result<BorrowedFd<'_>, SocketError> {
        let socket = self.socket.as_ref().map(AsFd::as_fd);
        socket.ok_or_else(|| self.damaged("whom it is connected to"))
    }

    fn damaged(&self, what: &'static str) -> SocketError {
        SocketError::Damaged {
            index: self.index,
            what,
        }
    }

    fn failed(&self, what: &str) -> impl FnOnce(io::Error) -> SocketError + use<> {
        SocketError::open(self.index, what)
    }

    fn address(&self) -> Result<Vec<u8>, SocketError> {
        address_of(&self.unix.name).ok_or_else(|| self.damaged("its name"))
    }

    fn shape(&self) -> Shape {
        shape(self.unix.form)
    }

    /// For messages: where it gets its name.
    fn binding(&self) -> String {
        let name = &self.unix.name;
        let shown = name.strip_prefix(&[0]).unwrap_or(name);
        format!("bind to \"{}\"", shown.escape_ascii())
    }
}

fn shape(form: UnixForm) -> Shape {
    let form = match form {
        UnixForm::Stream => 1,
        UnixForm::Datagram => 2,
        UnixForm::Packets => 5,
    };
    Shape {
        family: 1,
        form,
        protocol: 0,
    }
}

/// Opens the Unix sockets among `states` into their slots. The files made for them are removed when the result is dropped.
pub(super) fn reopen(
    states: &[(usize, &SocketState)],
    slots: &mut [Option<OwnedFd>],
    opener_of: &OpenerOf<'_>,
) -> Result<Files, SocketError> {
    let mut items = Vec::new();
    let mut positions = Vec::new();
    for (position, (index, state)) in states.iter().enumerate() {
        if let SocketKind::Unix(unix) = &state.kind {
            positions.push(position);
            items.push(Item {
                index: *index,
                state,
                unix,
                opener: opener_of(*index),
                socket: None,
                place: None,
                partner: Partner::None,
            });
        }
    }
    let mut files = Files::default();
    let inodes: HashMap<u64, usize> = items
        .iter()
        .enumerate()
        .map(|(at, item)| (item.state.inode, at))
        .collect();
    for at in 0..items.len() {
        create(&mut items, at, &inodes)?;
    }
    let mut nests = Nests::default();
    for item in &mut items {
        item.state
            .set_options(item.index, item.socket()?, |_| true)?;
        name(item, &mut nests)?;
    }
    let named = items.iter().enumerate().rev();
    let named = named.filter(|(_, item)| !item.unix.name.is_empty() && item.place.is_some());
    let senders: HashMap<&[u8], usize> = named
        .map(|(at, item)| (item.unix.name.as_slice(), at))
        .collect();
    for item in &items {
        fill(item, &items, &senders)?;
    }
    for item in &items {
        reach(item, &items, &inodes)?;
    }
    for item in &mut items {
        end(item)?;
    }
    // Last of all: from here on others can see them.
    for item in &items {
        if let Some(SocketName::Nest(egg)) = &item.place {
            let published = files.publish(egg, item.shape());
            published.map_err(item.failed(&item.binding()))?;
        }
    }
    for (position, item) in positions.into_iter().zip(items) {
        item.state.set_buffers(item.index, item.socket()?)?;
        if let Some(slot) = slots.get_mut(position) {
            *slot = item.socket;
        }
    }
    Ok(files)
}

/// Creates a socket, and with it the one it is connected to.
fn create(
    items: &mut [Item<'_>],
    at: usize,
    inodes: &HashMap<u64, usize>,
) -> Result<(), SocketError> {
    let item = &items[at];
    if item.socket.is_some() {
        return Ok(());
    }
    let failed = item.failed("create");
    let unix = item.unix;
    let alone = match unix.role {
        UnixRole::Alone | UnixRole::PeerByName => {
            // Nobody can send to a socket without a name and peer, so for what waits in it, it needs one for a while.
            unix.queue.is_empty() || unix.form != UnixForm::Datagram || !unix.name.is_empty()
        }
        UnixRole::Listening { .. } => true,
        UnixRole::PeerGone { .. } => false,
        UnixRole::PeerInside { inode } => match inodes.get(&inode) {
            None => false,
            Some(&other) => {
                let partner = &items[other];
                let mutual = partner.unix.role
                    == UnixRole::PeerInside {
                        inode: item.state.inode,
                    }
                    && other != at
                    && partner.unix.form == unix.form;
                if mutual {
                    let names = [&unix.name, &partner.unix.name];
                    let [one, two] = pair(unix.form, names, item.opener).map_err(failed)?;
                    items[at].socket = Some(one);
                    items[at].partner = Partner::Item(other);
                    items[other].socket = Some(two);
                    items[other].partner = Partner::Item(at);
                    return Ok(());
                }
                if unix.form != UnixForm::Datagram {
                    return Err(item.damaged("whom it is connected to"));
                }
                true
            }
        },
    };
    if alone {
        let socket = item.shape().open().map_err(failed)?;
        items[at].socket = Some(socket);
        return Ok(());
    }
    let names = [&unix.name, &unix.peer_name];
    let [socket, ghost] = pair(unix.form, names, item.opener).map_err(failed)?;
    items[at].socket = Some(socket);
    items[at].partner = Partner::Ghost(ghost);
    Ok(())
}

/// Two connected sockets; of streams and packets with these names.
fn pair(form: UnixForm, [one, two]: [&Vec<u8>; 2], opener: &Opener) -> io::Result<[OwnedFd; 2]> {
    if form == UnixForm::Datagram || (one.is_empty() && two.is_empty()) {
        let form = SocketType::from_raw(shape(form).form.cast_unsigned());
        // Each tells the other who made them.
        let make = move || socketpair(AddressFamily::UNIX, form, SocketFlags::CLOEXEC, None);
        let (one, two) = opener.run(make).map_err(plain)??;
        return Ok([one, two]);
    }
    // The side with a name was accepted by a listening socket with that name.
    if one.is_empty() {
        let [two, one] = connection(form, [two, one], opener)?;
        Ok([one, two])
    } else {
        connection(form, [one, two], opener)
    }
}

/// A connection whose accepted side is the first.
fn connection(
    form: UnixForm,
    [accepted, other]: [&Vec<u8>; 2],
    opener: &Opener,
) -> io::Result<[OwnedFd; 2]> {
    let address = address_of(accepted).ok_or(io::ErrorKind::InvalidData)?;
    let listener = shape(form).open()?;
    let client = shape(form).open()?;
    if !other.is_empty() {
        let address = address_of(other).ok_or(io::ErrorKind::InvalidData)?;
        SocketName::apart(other, opener)?.enter(|| bind(&client, &address))?;
    }
    SocketName::apart(accepted, opener)?.enter(|| {
        bind(&listener, &address)?;
        listen(&listener, 1)?;
        connect(&client, &address)
    })?;
    let server = accept_with(&listener, SocketFlags::CLOEXEC)?;
    Ok([server, client])
}

/// Gives it its name, and lets it listen.
fn name(item: &mut Item<'_>, nests: &mut Nests) -> Result<(), SocketError> {
    let unix = item.unix;
    let connected = !matches!(item.partner, Partner::None) && unix.form != UnixForm::Datagram;
    if !unix.name.is_empty() && !connected {
        let address = item.address()?;
        let failed = item.failed(&item.binding());
        let place = match &unix.file {
            Some(file) => nests
                .bind(item.socket()?, &unix.name, file, item.opener)
                .map(|egg| SocketName::Nest(Rc::new(egg))),
            None => SocketName::apart(&unix.name, item.opener).and_then(|place| {
                let socket = item.socket.as_ref();
                let socket = socket.ok_or(io::ErrorKind::InvalidData)?;
                place.enter(|| bind(socket, &address))?;
                Ok(place)
            }),
        };
        item.place = Some(place.map_err(failed)?);
    }
    if let UnixRole::Listening { backlog } = unix.role {
        let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
        // Whoever connects is told who listens.
        let listened = || {
            let socket = item.socket.as_ref().ok_or(io::ErrorKind::InvalidData)?;
            let socket = socket.try_clone()?;
            let listen = move || listen(&socket, backlog);
            Ok(item.opener.run(listen).map_err(plain)??)
        };
        listened().map_err(item.failed("listen on"))?;
    }
    Ok(())
}

/// Sends it what waited in it.
fn fill(
    item: &Item<'_>,
    items: &[Item<'_>],
    senders: &HashMap<&[u8], usize>,
) -> Result<(), SocketError> {
    let queue = &item.unix.queue;
    if queue.is_empty() {
        return Ok(());
    }
    let failed = || item.failed("fill the queue of");
    let partner = match &item.partner {
        Partner::None => None,
        Partner::Item(other) => Some(items[*other].socket()?),
        Partner::Ghost(ghost) => Some(ghost.as_fd()),
    };
    let bytes: usize = queue.iter().map(|message| message.bytes.len() + 1024).sum();
    if let Some(partner) = partner {
        widen(partner, bytes).map_err(failed())?;
        for message in queue {
            send_all(partner, message, item.unix.form, &[]).map_err(failed())?;
        }
        return Ok(());
    }
    let (Some(place), UnixForm::Datagram) = (&item.place, item.unix.form) else {
        return Err(item.damaged("what waits in it"));
    };
    let address = item.address()?;
    let nobody = item.shape().open().map_err(failed())?;
    for message in queue {
        let name = name_of(&message.source);
        let sender = match senders.get(&name[..]) {
            Some(sender) => items[*sender].socket()?,
            None => nobody.as_fd(),
        };
        widen(sender, bytes).map_err(failed())?;
        place
            .enter(|| send_all(sender, message, UnixForm::Datagram, &address))
            .map_err(failed())?;
    }
    Ok(())
}

fn send_all(
    sender: BorrowedFd<'_>,
    message: &Message,
    form: UnixForm,
    address: &[u8],
) -> io::Result<()> {
    let mut rest = message.bytes.as_slice();
    loop {
        let sent = send(sender, rest, address)?;
        rest = &rest[sent.min(rest.len())..];
        if rest.is_empty() {
            return Ok(());
        }
        if form != UnixForm::Stream || sent == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
}

/// Connects a datagram socket to a peer that does not know of it.
fn reach(
    item: &Item<'_>,
    items: &[Item<'_>],
    inodes: &HashMap<u64, usize>,
) -> Result<(), SocketError> {
    if item.unix.form != UnixForm::Datagram || matches!(item.partner, Partner::Item(_)) {
        return Ok(());
    }
    let (place, name) = match item.unix.role {
        UnixRole::PeerByName => (&SocketName::Anywhere, &item.unix.peer_name),
        UnixRole::PeerInside { inode } => {
            let Some(other) = inodes.get(&inode).and_then(|at| items.get(*at)) else {
                return Ok(());
            };
            let Some(place) = &other.place else {
                return Err(item.damaged("whom it is connected to"));
            };
            (place, &other.unix.name)
        }
        _ => return Ok(()),
    };
    let address = address_of(name)
        .filter(|address| address.len() > 2)
        .ok_or_else(|| item.damaged("its peer's name"))?;
    let shown = name.strip_prefix(&[0]).unwrap_or(name);
    let failed = item.failed(&format!("connect to \"{}\"", shown.escape_ascii()));
    let socket = item.socket()?;
    if item.unix.role == UnixRole::PeerByName && name.first() != Some(&0) {
        return reach_outside(socket, name, item.opener).map_err(failed);
    }
    place.enter(|| connect(socket, &address)).map_err(failed)
}

/// Connects to the socket that a path leads to, as the process would.
fn reach_outside(socket: BorrowedFd<'_>, name: &[u8], opener: &Opener) -> io::Result<()> {
    let path = Path::new(OsStr::from_bytes(name));
    let found = opener.find(path, None).map_err(plain)?;
    if found.kind() != FileType::Socket {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    let socket = Arc::new(socket.try_clone_to_owned()?);
    let connected = found.by_link(move |link| {
        let address = address_of(link.as_bytes()).ok_or(Errno::INVAL)?;
        let connected = connect(&*socket, &address);
        connected.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    });
    connected.map_err(plain)
}

/// Shuts down what was, and closes the other end if it was closed.
fn end(item: &mut Item<'_>) -> Result<(), SocketError> {
    let stream = item.unix.form != UnixForm::Datagram;
    if let (true, Partner::Ghost(_), UnixRole::PeerGone { reset: true }) =
        (stream, &item.partner, item.unix.role)
    {
        // A peer that is closed with something unread leaves ECONNRESET.
        send(item.socket()?, b"x", &[]).map_err(item.failed("reset"))?;
    }
    if let Partner::Ghost(_) = item.partner {
        item.partner = Partner::None;
    }
    let how = match item.unix.shutdown & (SHUT_READ | SHUT_WRITE) {
        SHUT_READ => Shutdown::Read,
        SHUT_WRITE => Shutdown::Write,
        3 => Shutdown::Both,
        _ => return Ok(()),
    };
    shutdown(item.socket()?, how).map_err(|error| item.failed("shut down")(error.into()))
}
