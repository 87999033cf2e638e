//! Whether two processes have something of the kernel in common: an address space, as vfork(2) and clone(2) with
//! CLONE_VM leave it, a table of descriptors, a current directory, or an open file description.
//!
//! kcmp(2), since Linux 3.5 (what an epoll watches: 4.13), with CONFIG_KCMP; needs PTRACE_MODE_READ_REALCREDS for both.

#![allow(unsafe_code)]

use nix::libc;
use std::cmp::Ordering;
use std::io;

/// The kinds of `linux/kcmp.h`.
const FILES: libc::c_int = 0;
const ADDRESS_SPACES: libc::c_int = 1;
const DESCRIPTOR_TABLES: libc::c_int = 2;
const DIRECTORIES: libc::c_int = 3;
const SEMAPHORE_UNDO: libc::c_int = 6;
const WATCHED_FILES: libc::c_int = 7;

/// One registration of an epoll: `struct kcmp_epoll_slot`.
#[repr(C)]
struct EpollSlot {
    epoll: u32,
    number: u32,
    offset: u32,
}

const _: () = assert!(size_of::<EpollSlot>() == 12);

/// True if both processes have the same address space. ESRCH if one of them is gone, ENOSYS if the
/// kernel cannot tell. One that has ended and was not reaped has none, as has a thread of the kernel.
pub fn share_address_space(one: i32, other: i32) -> io::Result<bool> {
    // SAFETY: the call takes numbers only, and touches no memory of the caller.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, ADDRESS_SPACES, 0, 0) };
    match order {
        0 => Ok(true),
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(false),
    }
}

/// True if two threads (of one process or of two) have the same table of descriptors: `CLONE_FILES`. Errors as
/// [`share_address_space`].
pub fn share_descriptors(one: i32, other: i32) -> io::Result<bool> {
    // SAFETY: the call takes numbers only, and touches no memory of the caller.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, DESCRIPTOR_TABLES, 0, 0) };
    Ok(ordering(order)? == Ordering::Equal)
}

/// True if two threads (of one process or of two) have one current directory, root and umask: `CLONE_FS`. Errors as
/// [`share_address_space`].
pub fn share_directories(one: i32, other: i32) -> io::Result<bool> {
    // SAFETY: the call takes numbers only, and touches no memory of the caller.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, DIRECTORIES, 0, 0) };
    Ok(ordering(order)? == Ordering::Equal)
}

/// True if two threads have one list of what SEM_UNDO has to take back (CLONE_SYSVSEM), or if neither has any. Errors as
/// [`share_address_space`].
pub fn share_semaphore_undo(one: i32, other: i32) -> io::Result<bool> {
    // SAFETY: the call takes numbers only, and touches no memory of the caller.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, SEMAPHORE_UNDO, 0, 0) };
    Ok(ordering(order)? == Ordering::Equal)
}

/// How the open file descriptions behind two descriptors (a process and a number each) stand to each other: equal if
/// they are one, else in an order that holds until the next boot, by which many can be sorted. EBADF if a number is not
/// open; else as [`share_address_space`].
pub fn compare_files(one: (i32, i32), other: (i32, i32)) -> io::Result<Ordering> {
    // SAFETY: the call takes numbers only, and touches no memory of the caller.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one.0, other.0, FILES, one.1, other.1) };
    ordering(order)
}

/// Whether the descriptor `file` (process, number) refers to the open file description that the epoll `epoll` (process,
/// number) watches under `number`; if it watches several under this number, the one at `offset` in the order of its
/// `/proc/PID/fdinfo`. ENOENT if there is no such registration.
pub fn is_watched_file(
    file: (i32, i32),
    epoll: (i32, i32),
    number: i32,
    offset: u32,
) -> io::Result<bool> {
    let slot = EpollSlot {
        epoll: epoll.1.cast_unsigned(),
        number: number.cast_unsigned(),
        offset,
    };
    // SAFETY: the kernel reads a struct kcmp_epoll_slot from the address, which is that of one, and keeps nothing.
    let order = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            file.0,
            epoll.0,
            WATCHED_FILES,
            file.1,
            &raw const slot,
        )
    };
    Ok(ordering(order)? == Ordering::Equal)
}

/// 3, not equal and without an order, is of no use for sorting: it cannot happen as the kernel is now.
fn ordering(result: libc::c_long) -> io::Result<Ordering> {
    match result {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(Ordering::Greater),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_shares_with_itself_and_not_with_a_child_that_runs_another_program() {
        let own = i32::try_from(std::process::id()).expect("a pid");
        let mut child = Command::new("sleep").arg("60").spawn().expect("run sleep");
        let pid = i32::try_from(child.id()).expect("a pid");
        let answers = (share_address_space(own, own), share_address_space(own, pid));
        child.kill().expect("end it");
        child.wait().expect("reap it");
        match answers {
            // A kernel without CONFIG_KCMP.
            (Err(error), _) if error.raw_os_error() == Some(libc::ENOSYS) => {}
            (own, other) => assert!(matches!((own, other), (Ok(true), Ok(false)))),
        }
        assert!(share_address_space(own, pid).is_err());
    }

    #[test]
    fn descriptions_are_told_apart_and_what_an_epoll_watches_is_found() {
        use rustix::event::{EventfdFlags, epoll, eventfd};
        use std::os::fd::AsRawFd;
        let own = i32::try_from(std::process::id()).expect("a pid");
        let one = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        let copy = one.try_clone().expect("a copy");
        let other = eventfd(0, EventfdFlags::CLOEXEC).expect("another");
        let number = |file: &dyn AsRawFd| (own, file.as_raw_fd());
        let same = match compare_files(number(&one), number(&copy)) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => return,
            same => same.expect("compare"),
        };
        assert_eq!(same, Ordering::Equal);
        let order = compare_files(number(&one), number(&other)).expect("compare");
        let back = compare_files(number(&other), number(&one)).expect("compare");
        assert_ne!(order, Ordering::Equal);
        assert_eq!(order, back.reverse());
        assert!(compare_files(number(&one), (own, 999_999)).is_err());

        let watcher = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
        let data = epoll::EventData::new_u64(0);
        epoll::add(&watcher, &one, data, epoll::EventFlags::IN).expect("watch it");
        let watched = |file: &dyn AsRawFd| {
            is_watched_file(number(file), number(&watcher), one.as_raw_fd(), 0).expect("ask")
        };
        assert!(watched(&one) && watched(&copy) && !watched(&other));
        let missing = is_watched_file(number(&one), number(&watcher), copy.as_raw_fd(), 0);
        assert_eq!(missing.unwrap_err().raw_os_error(), Some(libc::ENOENT));

        assert!(share_descriptors(own, own).expect("ask"));
        assert!(share_directories(own, own).expect("ask"));
        let parent = std::os::unix::process::parent_id().cast_signed();
        assert!(!share_descriptors(own, parent).expect("ask"));
        assert!(!share_directories(own, parent).expect("ask"));
    }
}
