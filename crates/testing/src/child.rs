//! A child process with an address space of its own. It runs a closure after fork(2) in a process
//! that may have other threads, so the closure must not allocate, lock or panic.

use super::Region;
use nix::libc;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::os::fd::OwnedFd;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A child has copies of all file descriptors that were open when it was made, until it ends. Readers
/// wait for a waiting writer, so a test has one child at a time.
static CHILDREN: RwLock<()> = RwLock::new(());

/// While this is held, this program has no children: closing a file descriptor closes the last one.
pub fn without_children() -> RwLockWriteGuard<'static, ()> {
    CHILDREN.write().unwrap_or_else(PoisonError::into_inner)
}

fn with_children() -> RwLockReadGuard<'static, ()> {
    CHILDREN.read().unwrap_or_else(PoisonError::into_inner)
}

/// A running child. Dropping it kills and reaps it.
pub struct Child {
    pid: i32,
    _alive: RwLockReadGuard<'static, ()>,
    /// Shared with the child: words by which both sides tell each other how far they are.
    board: Region,
}

/// What a child sees of the board.
pub struct Board<'a>(&'a Region);

impl Board<'_> {
    /// Tells the other side a number, which must not be zero.
    pub fn tell(&self, word: usize, value: u32) {
        self.0.publish(word * 4, value);
    }

    /// Waits until the other side has told a number.
    pub fn wait(&self, word: usize) -> u32 {
        loop {
            match self.0.observe(word * 4) {
                0 => pause_a_little(),
                value => return value,
            }
        }
    }
}

fn pause_a_little() {
    let request = libc::timespec {
        tv_sec: 0,
        tv_nsec: 200_000,
    };
    // SAFETY: a valid timespec, and no place for the rest.
    unsafe { libc::nanosleep(&request, std::ptr::null_mut()) };
}

impl Child {
    /// Runs `body` in a child, which then sleeps until it is killed.
    pub fn run(body: impl FnOnce(&Board<'_>)) -> Self {
        let board = Region::shared(1);
        let alive = with_children();
        // SAFETY: the child only runs `body`, whose callers keep to what is safe after fork.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork");
        if pid == 0 {
            body(&Board(&board));
            loop {
                pause_a_little();
            }
        }
        Self {
            pid,
            _alive: alive,
            board,
        }
    }

    /// The process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Tells the child a number.
    pub fn tell(&self, word: usize, value: u32) {
        Board(&self.board).tell(word, value);
    }

    /// Waits until the child has told a number; panics if it dies before.
    pub fn wait(&self, word: usize) -> u32 {
        loop {
            match self.board.observe(word * 4) {
                0 => {
                    let mut status = 0;
                    // SAFETY: our own child and a place for its status; WNOWAIT is not needed, as a
                    // dead child ends the test.
                    let died = unsafe { libc::waitpid(self.pid, &mut status, libc::WNOHANG) };
                    assert_eq!(died, 0, "the child died with status {status:#x}");
                    pause_a_little();
                }
                value => return value,
            }
        }
    }

    /// What the child has told by now; zero if nothing.
    pub fn told(&self, word: usize) -> u32 {
        self.board.observe(word * 4)
    }

    /// Fetches a file descriptor of the child.
    pub fn fetch(&self, fd: u32) -> OwnedFd {
        let pid = Pid::from_raw(self.pid).expect("pid");
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("pidfd_open");
        let fd = i32::try_from(fd).expect("fd");
        pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty()).expect("pidfd_getfd")
    }

    /// Kills and reaps the child.
    pub fn kill(self) {}

    /// Waits until the child has executed another program.
    pub fn wait_for_program(&self, program: &str) {
        let link = format!("/proc/{}/exe", self.pid);
        let wanted = std::fs::canonicalize(program).expect("program");
        while std::fs::read_link(&link).expect("exe") != wanted {
            pause_a_little();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: our own child, not reaped yet.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        // SAFETY: as above; no status is wanted.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }
}

/// userfaultfd(2) with the flags a tracker asks of its target. For use in a child.
pub fn create_userfaultfd() -> u32 {
    let flags = libc::c_long::from(pagetide_kernel::userfaultfd::CREATION_FLAGS);
    // SAFETY: userfaultfd takes flags only.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    u32::try_from(fd).unwrap_or_else(|_| die())
}

/// Executes `/bin/sleep`, which must exist, for a long time. For use in a child.
pub fn execute_sleep() {
    let program = c"/bin/sleep";
    let arguments = [program.as_ptr(), c"100000".as_ptr(), std::ptr::null()];
    let environment = [std::ptr::null()];
    // SAFETY: all three are terminated, and live until the call replaces the process.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    die();
}

/// Executes the program of this process again without address space randomization, with arguments
/// that make the test harness run `test` only. For use in a child.
pub fn execute_self(test: &std::ffi::CStr) {
    let arguments = [
        c"test".as_ptr(),
        c"--exact".as_ptr(),
        c"--nocapture".as_ptr(),
        test.as_ptr(),
        std::ptr::null(),
    ];
    let environment = [c"PAGETIDE_TEST_IDLE=1".as_ptr(), std::ptr::null()];
    let program = c"/proc/self/exe";
    // SAFETY: as for `execute_sleep`.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    die();
}

/// Ends the calling process at once. For use in a child.
pub fn die() -> ! {
    // SAFETY: always.
    unsafe { libc::_exit(99) }
}

/// Runs `body` in a child and tells how it ended: `Ok(code)` of an exit, `Err(signal)`.
pub fn run_to_end(body: impl FnOnce() -> i32) -> Result<i32, i32> {
    let _alive = with_children();
    // SAFETY: as for `Child::run`.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        let code = body();
        // SAFETY: always.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: our own child and a place for its status.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    if libc::WIFSIGNALED(status) {
        Err(libc::WTERMSIG(status))
    } else {
        Ok(libc::WEXITSTATUS(status))
    }
}
