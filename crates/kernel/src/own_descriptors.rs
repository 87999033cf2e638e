//! Descriptors of the calling process that a forked child must not have. Not those that a program hands on by
//! execve(2): that is what close-on-exec is for.
//!
//! A forked child has a copy of every descriptor, and a copy holds what the original holds: an flock(2) of a file
//! stays until the last copy is closed, also if the process that took it has been killed; a userfaultfd keeps its
//! mappings registered. So descriptors can be *withheld*: in each child that fork(3) makes, their numbers are made
//! to lead to nothing (`/dev/null`, opened by O_PATH) before fork returns there. The numbers stay taken, so that
//! who closes them in the child closes nothing else. Children that are made without the C library
//! (clone(2) itself) have the descriptors. Source: pthread_atfork(3), dup(2).

#![allow(unsafe_code)]

use nix::libc;
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, Ordering};

/// No descriptor.
const NONE: i32 = -1;

/// A place for the number of a descriptor, in a list that only grows. A forked child walks it, so it has no lock.
struct Slot {
    number: AtomicI32,
    next: Option<&'static Self>,
}

static PLACES: AtomicPtr<Slot> = AtomicPtr::new(std::ptr::null_mut());

/// What withheld numbers lead to in a child.
static NOTHING: AtomicI32 = AtomicI32::new(NONE);

/// True while a thread forks, or keeps others from it.
static FORKS: AtomicBool = AtomicBool::new(false);

/// Withholds a descriptor from children as long as it lives. When it is dropped the number leads to nothing in this
/// process, too: at no moment can a child get what it led to. So it must be dropped before the descriptor is
/// closed, and after its last use.
pub struct Withheld {
    place: &'static Slot,
    number: i32,
}

/// Does something while no other thread can fork: descriptors that are opened and withheld in it never come to a
/// child. It must not fork itself.
pub fn without_forks<T>(act: impl FnOnce() -> T) -> io::Result<T> {
    struct Held;
    impl Drop for Held {
        fn drop(&mut self) {
            forks_again();
        }
    }
    make_ready()?;
    wait_for_forks();
    let _held = Held;
    Ok(act())
}

/// Withholds `descriptor` from each child that is forked from now on.
pub fn withhold(descriptor: BorrowedFd<'_>) -> io::Result<Withheld> {
    make_ready()?;
    let number = descriptor.as_raw_fd();
    let free = places().find(|place| {
        let taken =
            place
                .number
                .compare_exchange(NONE, number, Ordering::AcqRel, Ordering::Relaxed);
        taken.is_ok()
    });
    let place = free.unwrap_or_else(|| add_place(number));
    Ok(Withheld { place, number })
}

impl Drop for Withheld {
    fn drop(&mut self) {
        if self.place.number.load(Ordering::Acquire) != self.number {
            // A child, which has let go of it.
            return;
        }
        lead_to_nothing(self.number);
        self.place.number.store(NONE, Ordering::Release);
    }
}

fn lead_to_nothing(number: i32) {
    let nothing = NOTHING.load(Ordering::Acquire);
    // SAFETY: both are numbers of open descriptors, the second one withheld, and not used any more. The call takes
    // numbers only.
    unsafe { libc::dup3(nothing, number, libc::O_CLOEXEC) };
}

extern "C" fn wait_for_forks() {
    while FORKS.swap(true, Ordering::Acquire) {
        std::thread::yield_now();
    }
}

extern "C" fn forks_again() {
    FORKS.store(false, Ordering::Release);
}

fn places() -> impl Iterator<Item = &'static Slot> {
    // SAFETY: the pointer is null or that of a place that was leaked, and so lives as long as the process.
    let first = unsafe { PLACES.load(Ordering::Acquire).as_ref() };
    std::iter::successors(first, |place| place.next)
}

fn add_place(number: i32) -> &'static Slot {
    let mut first = PLACES.load(Ordering::Acquire);
    let place = Box::leak(Box::new(Slot {
        number: AtomicI32::new(number),
        next: None,
    }));
    loop {
        // SAFETY: as in `places`.
        place.next = unsafe { first.as_ref() };
        let added = PLACES.compare_exchange(first, place, Ordering::AcqRel, Ordering::Acquire);
        match added {
            Ok(_) => return place,
            Err(other) => first = other,
        }
    }
}

/// Has children let go of what is withheld. Once a process.
fn make_ready() -> io::Result<()> {
    static READY: OnceLock<Result<(), i32>> = OnceLock::new();
    let ready = READY.get_or_init(|| {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let nothing = rustix::fs::open(c"/dev/null", flags, Mode::empty());
        let nothing = nothing.map_err(|errno| errno.raw_os_error())?;
        NOTHING.store(nothing.into_raw_fd(), Ordering::Release);
        let handlers = (
            Some(wait_for_forks as _),
            Some(forks_again as _),
            Some(in_child as _),
        );
        // SAFETY: the handlers live as long as the program. That of the child calls only dup3(2), which may be called
        // in a forked child of a program with several threads.
        match unsafe { libc::pthread_atfork(handlers.0, handlers.1, handlers.2) } {
            0 => Ok(()),
            error => Err(error),
        }
    });
    ready.map_err(io::Error::from_raw_os_error)
}

extern "C" fn in_child() {
    for place in places() {
        let number = place.number.swap(NONE, Ordering::AcqRel);
        if number != NONE {
            lead_to_nothing(number);
        }
    }
    forks_again();
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};
    use std::fs::File;
    use std::os::fd::AsFd;

    /// What a child says by its exit code.
    fn in_a_child(says: impl FnOnce() -> i32) -> i32 {
        // SAFETY: the child makes system calls only.
        match unsafe { fork() }.expect("fork") {
            // SAFETY: ends at once, without running what the parent has set up for its own end.
            ForkResult::Child => unsafe { libc::_exit(says()) },
            ForkResult::Parent { child } => match waitpid(child, None).expect("a child") {
                WaitStatus::Exited(_, code) => code,
                other => panic!("{other:?}"),
            },
        }
    }

    fn is_readable(file: &File) -> i32 {
        let mut byte = [0u8; 1];
        i32::from(rustix::io::pread(file, &mut byte, 0).is_ok())
    }

    #[test]
    fn what_is_withheld_leads_to_nothing_in_a_child_and_only_there() {
        let (kept, shared) = (
            File::open("/proc/self/exe").expect("open"),
            File::open("/proc/self/exe").expect("open"),
        );
        let withheld = withhold(kept.as_fd()).expect("withheld");
        assert_eq!(in_a_child(|| is_readable(&kept)), 0);
        assert_eq!(in_a_child(|| is_readable(&shared)), 1);
        assert_eq!(is_readable(&kept), 1, "the parent keeps it");
        drop(withheld);
        assert_eq!(is_readable(&kept), 0, "it is not used any more");
    }

    #[test]
    fn a_lock_ends_with_the_process_that_took_it_though_a_child_lives() {
        use rustix::fs::{FlockOperation, flock};
        let file = tempfile::NamedTempFile::new().expect("a file");
        let again = File::open(file.path()).expect("open");
        let (_locked, withheld) = without_forks(|| {
            let locked = File::open(file.path()).expect("open");
            flock(&locked, FlockOperation::NonBlockingLockExclusive).expect("free");
            let withheld = withhold(locked.as_fd()).expect("withheld");
            (locked, withheld)
        })
        .expect("ready");
        let (ready, wait) = rustix::pipe::pipe().expect("a pipe");
        // SAFETY: the child makes system calls only.
        match unsafe { fork() }.expect("fork") {
            ForkResult::Child => {
                drop(wait);
                let _ = rustix::io::read(&ready, &mut [0u8; 1]);
                // SAFETY: ends at once.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => {
                assert!(flock(&again, FlockOperation::NonBlockingLockExclusive).is_err());
                drop(withheld);
                // Tests beside make children by clone3(2), which have it until they execute a program.
                let take = || flock(&again, FlockOperation::NonBlockingLockExclusive);
                let waits = |_: &u32| {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                    take().is_ok()
                };
                let free = (0..10_000).find(waits);
                drop(wait);
                waitpid(child, None).expect("a child");
                free.expect("no copy is left");
            }
        }
    }
}
