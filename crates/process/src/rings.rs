//! The io_urings that threads have registered for themselves (IORING_REGISTER_RING_FDS). Such a ring needs no
//! descriptor and no mapping (IORING_SETUP_REGISTERED_FD_ONLY, 6.5), and then nothing in `/proc` shows it: the
//! thread itself has to ask. Source: io_uring_enter(2), io_uring_register(2).

use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use crate::remote::RemoteCalls;
use crate::remote_error::RemoteCallError;
use crate::stop::StoppedProcess;
use crate::system_calls::checked;
use nix::libc;
use pagetide_kernel::ptrace::ThreadId;
use rustix::io::Errno;

/// IORING_ENTER_REGISTERED_RING.
const REGISTERED_RING: u64 = 1 << 4;
/// IO_RINGFD_REG_MAX: so many a thread can register.
const SLOTS: u32 = 16;

/// What the threads of a process said when they were asked about io_uring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingsOfThreads {
    /// Rings that a thread has registered: the thread, and the number by which it uses the ring.
    pub registered: Vec<(ThreadId, u32)>,
    /// Some thread has used a ring at some time, or may have. What it had registered then may be in use still, if
    /// others have the ring.
    pub used: bool,
    /// What kept a thread from being asked, for people. It may have a ring registered then.
    pub not_asked: Option<String>,
}

impl RingsOfThreads {
    /// One for each registered ring: a restore would lack it.
    pub fn blockers(&self, pid: i32) -> Vec<Blocker> {
        let blocker = |(thread, number): &(ThreadId, u32)| Blocker {
            pid,
            kind: BlockerKind::IoUring,
            place: format!("thread:{thread}:{number}"),
            what: format!("thread {thread} has an io_uring registered, at index {number}"),
            advice: String::from("let the program close its rings before the checkpoint"),
            instead: Some(format!("thread {thread} has no such ring")),
        };
        self.registered.iter().map(blocker).collect()
    }

    /// A thread was not asked because of `error`: it may have anything. Not so one that has ended, and a worker of the
    /// kernel, which has no registers.
    fn not_asked(&mut self, error: RemoteCallError) {
        use RemoteCallError::{Gone, NoThread};
        if !matches!(error, Gone { .. } | NoThread { .. }) {
            self.used = true;
            self.not_asked = Some(error.to_string());
        }
    }
}

/// The question to a thread whether it has ever used io_uring. Those who may have are asked more.
pub(crate) fn first_question() -> (i64, [u64; 6]) {
    question(0)
}

/// True if this is the answer of one that never has.
fn has_none(result: Result<u64, Errno>) -> bool {
    matches!(result, Err(Errno::INVAL | Errno::NOSYS))
}

/// A call that submits nothing and waits for nothing. EINVAL: the thread has never used io_uring; EBADF: it has no
/// ring of that number.
fn question(number: u32) -> (i64, [u64; 6]) {
    let number = u64::from(number);
    (
        libc::SYS_io_uring_enter,
        [number, 0, 0, REGISTERED_RING, 0, 0],
    )
}

impl StoppedProcess {
    /// Asks all threads, at the same time. That one cannot be asked is told: its seccomp filters forbid
    /// io_uring_enter(2), it is frozen, or no system call can be made in it.
    pub fn rings_of_threads(&mut self) -> RingsOfThreads {
        let threads = self.threads().to_vec();
        let rooms = threads.iter().map(|thread| (*thread, 0)).collect();
        let mut found = RingsOfThreads::default();
        let answers = self.call_in_all(rooms, |_, _| vec![first_question()]);
        let answers = answers.unwrap_or_else(|error| {
            found.not_asked(error);
            Vec::new()
        });
        let mut users = Vec::new();
        for (thread, answer) in threads.into_iter().zip(answers) {
            match answer.map(|(results, _)| results.into_iter().next()) {
                // Its filters have to be asked.
                Err(RemoteCallError::UnderSeccomp { .. }) => users.push(thread),
                Err(error) => found.not_asked(error),
                Ok(None) => {}
                Ok(Some(result)) if has_none(result) => {}
                Ok(Some(_)) => users.push(thread),
            }
        }
        self.ask_users(users, &mut found);
        found
    }

    /// Asks these, one after the other, about all numbers.
    pub(crate) fn ask_users(&mut self, users: Vec<ThreadId>, found: &mut RingsOfThreads) {
        for thread in users {
            match self.remote_calls_by(thread) {
                Ok(mut calls) => ask(&mut calls, thread, found),
                Err(error) => found.not_asked(error),
            }
        }
    }
}

/// Asks one thread about all numbers.
fn ask(calls: &mut RemoteCalls<'_>, thread: ThreadId, found: &mut RingsOfThreads) {
    for slot in 0..SLOTS {
        let (number, args) = question(slot);
        match calls.call(number, args) {
            Err(RemoteCallError::Failed { errno, .. }) => match errno {
                Errno::INVAL | Errno::NOSYS => return,
                Errno::BADF => {}
                // It is there, and refuses to be entered.
                _ => found.registered.push((thread, slot)),
            },
            Ok(_) => found.registered.push((thread, slot)),
            Err(error) => return found.not_asked(error),
        }
        found.used = true;
    }
}

/// Whether the answer to [`first_question`], as the kernel gave it, is that of a thread which may have used io_uring.
pub(crate) fn may_have_used(result: u64) -> bool {
    !has_none(checked(result))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_registered_ring_is_named_once() {
        let rings = RingsOfThreads {
            registered: vec![(ThreadId::new(8), 0), (ThreadId::new(8), 3)],
            used: true,
            not_asked: None,
        };
        let names: Vec<String> = rings.blockers(7).iter().map(Blocker::name).collect();
        assert_eq!(names, ["io-uring:thread:8:0", "io-uring:thread:8:3"]);
    }
}
