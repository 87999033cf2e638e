//! Processes that do nothing: forked from this one, they wait until somebody makes something of them. A whole
//! tree of them at once, with the numbers, sessions and parents that are asked for.
//!
//! clone3(2) with `set_tid`, Linux 5.5: a number of one's choice needs CAP_CHECKPOINT_RESTORE (5.9) or
//! CAP_SYS_ADMIN in the user namespace that owns the pid namespace, and gives EEXIST if the number is taken.
//!
//! Between its birth and its wait a child runs the few lines below and nothing else: no allocation, no lock, system
//! calls only, for it is a copy of one thread of a process that may have many.

#![allow(unsafe_code)]

use nix::libc;
use std::ffi::c_long;
use std::fs::File;
use std::io::{self, Read};
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// What becomes of a new process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It waits, with all signals at their default action and none blocked, and is killed when the thread that made it ends.
    Waits,
    /// It ends with this status (0 to 255), and is left for its parent to reap.
    Exits(i32),
    /// It ends by this signal, and is left for its parent to reap. It dumps no core.
    Killed(i32),
}

/// A process to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// The number it is to have; `None` for any.
    pub pid: Option<i32>,
    /// It leads a session of its own: setsid(2). Otherwise it is in its parent's.
    pub leads_session: bool,
    /// What becomes of it.
    pub fate: Fate,
    /// Its children.
    pub children: Vec<Self>,
}

/// Why processes were not made. None is left of those that were.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// The number belongs to another process: EEXIST.
    #[error("pid {pid} belongs to another process")]
    Taken {
        /// The number.
        pid: i32,
    },
    /// No process with a number of our choice can be made: EPERM.
    #[error("no permission to choose pid {pid}: CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN is needed")]
    NotPermitted {
        /// The number.
        pid: i32,
    },
    /// A process could not be made.
    #[error("cannot {what}")]
    Failed {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Steps that may fail, by their number in a report.
const STEPS: [&str; 5] = [
    "",
    "make a process",
    "begin a session",
    "let a process be killed with its maker",
    "begin a session keyring",
];

/// `KEYCTL_JOIN_SESSION_KEYRING` of keyctl(2): a new one, if no name is given.
const JOIN_SESSION_KEYRING: libc::c_int = 1;

/// What a new process tells of itself, in one write to a pipe.
#[repr(C)]
#[derive(Clone, Copy)]
struct Report {
    /// The position of its seed, a parent before its children.
    seed: u32,
    pid: i32,
    /// 0, or the number of the step that failed.
    step: u32,
    errno: i32,
}

const REPORT_LENGTH: usize = size_of::<Report>();

impl Report {
    fn to_bytes(self) -> [u8; REPORT_LENGTH] {
        let mut bytes = [0; REPORT_LENGTH];
        bytes[..4].copy_from_slice(&self.seed.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.pid.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.step.to_le_bytes());
        bytes[12..].copy_from_slice(&self.errno.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; REPORT_LENGTH]) -> Self {
        let [a, b, c, d] = [0, 4, 8, 12].map(|at| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(word)
        });
        Self {
            seed: a,
            pid: b.cast_signed(),
            step: c,
            errno: d.cast_signed(),
        }
    }
}

fn count(seed: &Seed) -> usize {
    1 + seed.children.iter().map(count).sum::<usize>()
}

fn each<'a>(seed: &'a Seed, visit: &mut impl FnMut(&'a Seed)) {
    visit(seed);
    for child in &seed.children {
        each(child, visit);
    }
}

/// Makes the processes of a tree. Their numbers come back in the order of the seeds, a parent before its
/// children; those that end at once are among them. On a failure all are killed and the first is reaped.
///
/// The first begins a session keyring, which is that of the others, too: the keys of whoever made them are not theirs.
/// They are killed when the calling *thread* ends (prctl(2), PR_SET_PDEATHSIG), so whoever wants to keep one has to
/// take that from it. All descriptors of this process are theirs, too, close-on-exec or not.
pub fn spawn(seed: &Seed) -> Result<Vec<i32>, SpawnError> {
    let failed = |what| move |source| SpawnError::Failed { what, source };
    let mut ends = [0; 2];
    // SAFETY: the array has room for the two numbers that the call writes.
    let made = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) };
    if made != 0 {
        return Err(failed("make a pipe")(io::Error::last_os_error()));
    }
    // SAFETY: the call above gave us the number, and nobody else has it.
    let mut reports = File::from(unsafe { OwnedFd::from_raw_fd(ends[0]) });
    // SAFETY: as above.
    let tell = unsafe { OwnedFd::from_raw_fd(ends[1]) };
    let birth = Birth {
        tell: tell.as_raw_fd(),
        maker: std::process::id().cast_signed(),
    };
    let first = match birth.give(seed, 0) {
        Ok(first) => first,
        Err(errno) => return Err(explain(seed, io::Error::from_raw_os_error(errno))),
    };
    drop(tell);
    let mut numbers = vec![0; count(seed)];
    let mut missing = numbers.len();
    let mut outcome = Ok(());
    while missing > 0 {
        let mut bytes = [0; REPORT_LENGTH];
        if let Err(source) = reports.read_exact(&mut bytes) {
            // All that could write have ended.
            outcome = Err(failed("make a process")(source));
            break;
        }
        let report = Report::from_bytes(bytes);
        let at = report.seed as usize;
        if report.step != 0 {
            let source = io::Error::from_raw_os_error(report.errno);
            let mut seeds = Vec::new();
            each(seed, &mut |seed| seeds.push(seed));
            outcome = Err(match (report.step, seeds.get(at)) {
                (1, Some(seed)) => explain(seed, source),
                (step, _) => failed(STEPS.get(step as usize).copied().unwrap_or(""))(source),
            });
            break;
        }
        if let Some(number) = numbers.get_mut(at) {
            *number = report.pid;
            missing -= 1;
        }
    }
    if let Err(error) = outcome {
        kill_and_reap(first);
        return Err(error);
    }
    Ok(numbers)
}

/// Ends a process that [`spawn`] made. It has not been reaped, so its number is its own.
fn kill(pid: i32) {
    // SAFETY: the call takes numbers only.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// Ends a child of this process and takes its status away. Its own children are killed by its end.
pub fn kill_and_reap(pid: i32) {
    kill(pid);
    // SAFETY: a null pointer says that the status is not wanted.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) };
}

fn explain(seed: &Seed, source: io::Error) -> SpawnError {
    match (seed.pid, source.raw_os_error()) {
        (Some(pid), Some(libc::EEXIST)) => SpawnError::Taken { pid },
        (Some(pid), Some(libc::EPERM)) => SpawnError::NotPermitted { pid },
        _ => SpawnError::Failed {
            what: "make a process",
            source,
        },
    }
}

/// What a child knows of how it came to be.
#[derive(Clone, Copy)]
struct Birth {
    /// The writing end of the pipe for reports.
    tell: libc::c_int,
    /// Its parent.
    maker: i32,
}

impl Birth {
    /// Makes the process of `seed`, which has position `number`. Returns in the parent only: its number, or
    /// the error of the kernel.
    fn give(self, seed: &Seed, number: u32) -> Result<i32, i32> {
        let wanted = seed.pid.unwrap_or(0);
        // SAFETY: all fields are plain numbers, of which zero says "not used".
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.exit_signal = libc::SIGCHLD as u64;
        if seed.pid.is_some() {
            arguments.set_tid = (&raw const wanted) as u64;
            arguments.set_tid_size = 1;
        }
        // SAFETY: without CLONE_VM the child has a copy of all memory and goes on from here on a copy of the
        // stack; the structure has the size that is told, and `wanted` outlives the call.
        let pid: c_long = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw const arguments,
                size_of::<libc::clone_args>(),
            )
        };
        match pid {
            0 => self.live(seed, number),
            -1 => Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
            pid => Ok(i32::try_from(pid).unwrap_or(0)),
        }
    }

    /// What the child does, to its end.
    fn live(self, seed: &Seed, number: u32) -> ! {
        // SAFETY: the call takes numbers only.
        let bound = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        if bound != 0 {
            self.fail(number, 3);
        }
        // Whoever made it may have ended before it was bound to that; then somebody has adopted it.
        // SAFETY: the call takes nothing.
        if unsafe { libc::getppid() } != self.maker {
            end(1);
        }
        let own = Self {
            maker: own_number(),
            ..self
        };
        for signal in 1..=64 {
            forget_action(signal);
        }
        // Whoever started us may have blocked some. One that a child has ended would wait then, and one that ends a process
        // would not end it.
        block_nothing();
        // SAFETY: the call takes nothing.
        if seed.leads_session && unsafe { libc::setsid() } == -1 {
            self.fail(number, 2);
        }
        if number == 0 {
            self.begin_keyring();
        }
        let mut next = number + 1;
        for child in &seed.children {
            if let Err(errno) = own.give(child, next) {
                self.tell(next, 1, errno);
                end(1);
            }
            next += u32::try_from(count(child)).unwrap_or(0);
        }
        self.tell(number, 0, 0);
        match seed.fate {
            Fate::Waits => loop {
                // SAFETY: the call takes nothing.
                unsafe { libc::pause() };
            },
            Fate::Exits(status) => end(status),
            Fate::Killed(signal) => {
                // SAFETY: the call takes numbers only.
                unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
                // SAFETY: the call takes nothing.
                let own = unsafe { libc::getpid() };
                // SAFETY: the call takes numbers only.
                unsafe { libc::kill(own, signal) };
                // The signal is not one that kills.
                end(128 + signal)
            }
        }
    }

    /// Where keyrings are unknown (ENOSYS) or a filter forbids them (EPERM), nobody can look into ours either.
    fn begin_keyring(self) {
        // SAFETY: the call takes a number and a pointer that may be null.
        let begun = unsafe {
            libc::syscall(
                libc::SYS_keyctl,
                JOIN_SESSION_KEYRING,
                std::ptr::null::<libc::c_char>(),
            )
        };
        let errno = io::Error::last_os_error().raw_os_error();
        if begun == -1 && !matches!(errno, Some(libc::ENOSYS | libc::EPERM)) {
            self.fail(0, 4);
        }
    }

    fn fail(self, number: u32, step: u32) -> ! {
        let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
        self.tell(number, step, errno);
        end(1)
    }

    fn tell(self, seed: u32, step: u32, errno: i32) {
        let report = Report {
            seed,
            pid: own_number(),
            step,
            errno,
        };
        let bytes = report.to_bytes();
        // SAFETY: the pointer and the length are those of a live array.
        unsafe { libc::write(self.tell, bytes.as_ptr().cast(), bytes.len()) };
    }
}

/// The number of the calling process. Not what the libc remembers: that is the parent's.
fn own_number() -> i32 {
    // SAFETY: the call takes nothing.
    i32::try_from(unsafe { libc::syscall(libc::SYS_getpid) }).unwrap_or(0)
}

fn end(status: i32) -> ! {
    // SAFETY: the call takes a number and does not return; nothing of this copy has to be cleaned up.
    unsafe { libc::_exit(status) }
}

/// Sets the action of a signal to the default; SIGKILL and SIGSTOP, which refuse it, have no other. Not by the
/// libc, which keeps the signals that it uses itself from being set.
fn forget_action(signal: libc::c_int) {
    // struct sigaction of the kernel: handler (0: default), flags, restorer, mask.
    let action = [0u64; 4];
    // SAFETY: the array has the size and layout of the kernel's structure for a mask of 8 bytes, and a null pointer
    // says that the old action is not wanted.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            action.as_ptr(),
            std::ptr::null_mut::<u64>(),
            8usize,
        )
    };
}

/// Lets all signals through, those of the libc, too.
fn block_nothing() {
    let none = [0u64; 1];
    // SAFETY: the array has the size that is told, and a null pointer says that the old mask is not wanted.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            none.as_ptr(),
            std::ptr::null_mut::<u64>(),
            8usize,
        )
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn seed(fate: Fate, children: Vec<Seed>) -> Seed {
        Seed {
            pid: None,
            leads_session: false,
            fate,
            children,
        }
    }

    fn stat(pid: i32) -> Vec<String> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it is there");
        let (_, rest) = text.rsplit_once(") ").expect("a name");
        rest.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_tree_is_made_as_it_was_asked_for_and_ends_with_its_first_process() {
        let mut leader = seed(Fate::Waits, vec![seed(Fate::Exits(7), Vec::new())]);
        leader.leads_session = true;
        let tree = seed(
            Fate::Waits,
            vec![leader, seed(Fate::Killed(15), Vec::new())],
        );
        let pids = spawn(&tree).expect("a tree");
        let [first, leader, ended, killed] = pids[..] else {
            panic!("{pids:?}");
        };
        let own = std::process::id().to_string();
        assert_eq!(stat(first)[1], own);
        assert_eq!(stat(leader)[1], first.to_string());
        assert_eq!(stat(leader)[3], leader.to_string(), "its session");
        assert_eq!(stat(first)[3], stat(std::process::id().cast_signed())[3]);
        for (pid, parent, code) in [(ended, leader, 7 << 8), (killed, first, 15)] {
            // It told of itself before it ended.
            while stat(pid)[0] != "Z" {
                std::thread::yield_now();
            }
            assert_eq!(stat(pid)[1], parent.to_string());
            assert_eq!(
                stat(pid).last().map(|code| code.trim().to_owned()),
                Some(code.to_string())
            );
        }
        kill_and_reap(first);
        while fs::read_to_string(format!("/proc/{leader}/stat"))
            .is_ok_and(|text| !text.contains(") Z "))
        {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_number_can_be_chosen_unless_it_is_taken() {
        let pids = spawn(&seed(Fate::Waits, Vec::new())).expect("a process");
        let mut again = seed(Fate::Waits, Vec::new());
        again.pid = Some(pids[0]);
        let within = seed(Fate::Waits, vec![again.clone()]);
        match spawn(&within) {
            Err(SpawnError::Taken { pid }) => assert_eq!(pid, pids[0]),
            Err(SpawnError::NotPermitted { .. }) => {
                kill_and_reap(pids[0]);
                return;
            }
            other => panic!("{other:?}"),
        }
        kill_and_reap(pids[0]);
        assert_eq!(spawn(&again).expect("it is free"), pids);
        kill_and_reap(pids[0]);
    }
}
