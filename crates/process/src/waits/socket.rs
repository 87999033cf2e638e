//! Waits that an option of a socket limits (SO_RCVTIMEO, SO_SNDTIMEO of socket(7)).
//!
//! The kernel looks at the option when a call begins. So for what is left of a wait, the option is set to that, the thread
//! is led into its call while all others of its process stand, and when it sleeps there the option is set back. That takes
//! 50 us for up to 32 threads at a time, and 10 ms for all of a process at most: who has much left may have to begin anew. Only
//! another process that begins a call on the same socket in these microseconds would notice; and if this program is killed
//! just then, the option stays.
//!
//! What has passed of the wait before is not to be seen from outside afterwards, since the option says the whole time. It is
//! noted below the thread's stack, with the number of times the thread has slept: one more, and the note speaks of
//! another call.

use super::calls;
use nix::libc;
use pagetide_kernel::pidfd::PidFd;
use pagetide_kernel::ptrace::ThreadId;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_timeout};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The shortest time that is not "for ever".
const AT_ONCE: Duration = Duration::from_micros(1);

const MAGIC: [u8; 8] = *b"ptwait\0\x01";
const NOTE_BYTES: usize = 8 + 8 + 4 + 4 + 8 + 4;

/// The option that limits a call, by the call's number.
fn option_of(call: i64) -> Option<Timeout> {
    match call {
        libc::SYS_read
        | libc::SYS_readv
        | libc::SYS_accept
        | libc::SYS_accept4
        | libc::SYS_recvfrom
        | libc::SYS_recvmsg => Some(Timeout::Recv),
        libc::SYS_write
        | libc::SYS_writev
        | libc::SYS_connect
        | libc::SYS_sendto
        | libc::SYS_sendmsg
        | libc::SYS_sendmmsg => Some(Timeout::Send),
        _ => None,
    }
}

/// True if a socket may limit such a call.
pub(super) fn may_wait(call: i64) -> bool {
    option_of(call).is_some()
}

/// A wait that a socket limits.
#[derive(Debug)]
pub(crate) struct SocketWait {
    socket: OwnedFd,
    /// What the kernel calls it.
    name: PathBuf,
    option: Timeout,
    whole: Duration,
    /// What had passed before the sleep that is under way.
    spent: Duration,
    /// When the wait began, as if it had been one sleep.
    begun: Option<Instant>,
}

impl SocketWait {
    /// `None` if the descriptor is no socket, or it does not limit the call.
    pub(super) fn of(pid: i32, call: i64, arguments: &[u64; 6]) -> Option<Self> {
        let option = option_of(call)?;
        let number = i32::try_from(arguments[0] & 0xffff_ffff).ok()?;
        let link = fs::read_link(format!("/proc/{pid}/fd/{number}")).ok()?;
        if !link.to_str()?.starts_with("socket:") {
            return None;
        }
        let socket = PidFd::open(pid).ok()?.get_fd(number).ok()?;
        let whole = socket_timeout(&socket, option).ok()??;
        Some(Self {
            socket,
            name: link,
            option,
            whole,
            spent: Duration::ZERO,
            begun: None,
        })
    }

    /// Looks for a note of the same wait at `address`.
    pub(super) fn recall(
        &mut self,
        memory: &File,
        address: u64,
        thread: ThreadId,
        said: &[u8],
        switches: u64,
    ) {
        let Some(bytes) = calls::bytes::<NOTE_BYTES>(memory, address) else {
            return;
        };
        let spent = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
        let spent = Duration::from_nanos(spent);
        if bytes == note(spent, thread, said, switches) {
            self.spent = spent;
        }
    }

    /// Says since when the thread has been asleep.
    pub(super) fn asleep_since(&mut self, since: Instant) -> Option<()> {
        self.begun = Some(since.checked_sub(self.spent)?);
        Some(())
    }

    /// True if both wait on one socket.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.name == other.name
    }

    /// How long it may wait from now on.
    pub(crate) fn left(&self) -> Duration {
        let spent = self.begun.map_or(self.spent, |begun| begun.elapsed());
        self.whole.saturating_sub(spent)
    }

    /// Shortens the option to what is left.
    pub(crate) fn shorten(&mut self) -> bool {
        let left = self.left();
        self.spent = self.whole.saturating_sub(left);
        set_socket_timeout(&self.socket, self.option, Some(left.max(AT_ONCE))).is_ok()
    }

    /// Sets the option to what the program had set it.
    pub(crate) fn put_back(&self) {
        if let Err(error) = set_socket_timeout(&self.socket, self.option, Some(self.whole)) {
            tracing::warn!(%error, "a socket's timeout could not be set back");
        }
    }

    /// Writes the note.
    pub(super) fn take_note(
        &self,
        memory: &File,
        address: u64,
        thread: ThreadId,
        said: &[u8],
        switches: u64,
    ) {
        // Without it, the next stop counts from the sleep that has just begun.
        memory
            .write_all_at(&note(self.spent, thread, said, switches), address)
            .ok();
    }
}

/// Magic, what has passed, the thread, a checksum of the call, how often the thread has slept, a checksum of all.
fn note(spent: Duration, thread: ThreadId, said: &[u8], switches: u64) -> [u8; NOTE_BYTES] {
    let spent = u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX);
    let mut bytes = Vec::with_capacity(NOTE_BYTES);
    bytes.extend(MAGIC);
    bytes.extend(spent.to_le_bytes());
    bytes.extend(thread.get().to_le_bytes());
    bytes.extend(crc32c::crc32c(said).to_le_bytes());
    bytes.extend(switches.to_le_bytes());
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes.try_into().expect("the fields have NOTE_BYTES bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn a_socket() -> SocketWait {
        let (socket, _) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("a pair of sockets");
        SocketWait {
            socket,
            name: PathBuf::from("socket:[1]"),
            option: Timeout::Recv,
            whole: Duration::from_secs(20),
            spent: Duration::ZERO,
            begun: None,
        }
    }

    #[test]
    fn a_note_speaks_of_one_sleep_of_one_call_of_one_thread() {
        let memory = tempfile::tempfile().expect("a file");
        let mut socket = a_socket();
        socket.spent = Duration::from_millis(1234);
        let (thread, said) = (ThreadId::new(77), b"45 0x3");
        socket.take_note(&memory, 4096, thread, said, 9);
        let recalled = |address, thread, said: &[u8], switches| {
            let mut socket = a_socket();
            socket.recall(&memory, address, thread, said, switches);
            socket.spent
        };
        assert_eq!(recalled(4096, thread, said, 9), socket.spent);
        assert_eq!(recalled(4096, thread, said, 10), Duration::ZERO);
        assert_eq!(recalled(4096, thread, b"45 0x4", 9), Duration::ZERO);
        assert_eq!(recalled(4096, ThreadId::new(78), said, 9), Duration::ZERO);
        assert_eq!(recalled(4032, thread, said, 9), Duration::ZERO);
        memory.write_all_at(&[1], 4096 + 9).expect("room");
        assert_eq!(recalled(4096, thread, said, 9), Duration::ZERO, "damaged");
    }

    #[test]
    fn the_option_is_what_is_left_and_then_what_it_was() {
        let mut socket = a_socket();
        let now = |socket: &SocketWait| {
            socket_timeout(&socket.socket, Timeout::Recv).expect("it can be asked for")
        };
        let half = Duration::from_secs(10);
        socket
            .asleep_since(Instant::now().checked_sub(half).expect("long ago"))
            .expect("as long ago");
        assert!(socket.shorten());
        let left = now(&socket).expect("a time");
        assert!(left <= half && left > Duration::from_secs(1), "{left:?}");
        socket.put_back();
        assert_eq!(now(&socket), Some(socket.whole));
        let long_ago = Instant::now().checked_sub(Duration::from_secs(30));
        socket
            .asleep_since(long_ago.expect("long ago"))
            .expect("as long ago");
        assert!(socket.shorten());
        // Not "for ever".
        assert!(now(&socket).is_some_and(|left| left <= Duration::from_millis(100)));
    }
}
