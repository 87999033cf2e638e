//! Pages that cannot be read any more, as after a failure of the machine's memory, made with
//! UFFDIO_POISON (since 6.6): a marker in the page table, no memory is harmed. See ioctl_userfaultfd(2).

use super::{PAGE, Region, skipped};
use linux_raw_sys::general::{UFFD_API, uffdio_api};
use nix::libc;
use pagetide_kernel::userfaultfd::WriteProtector;
use rustix::ioctl::{Opcode, Updater, opcode};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

#[repr(C)]
struct Poison {
    start: u64,
    length: u64,
    mode: u64,
    updated: i64,
}

#[repr(C)]
struct Move {
    to: u64,
    from: u64,
    length: u64,
    mode: u64,
    moved: i64,
}

const UFFDIO_API: Opcode = opcode::read_write::<uffdio_api>(0xAA, 0x3F);
const UFFDIO_POISON: Opcode = opcode::read_write::<Poison>(0xAA, 0x08);
const UFFDIO_MOVE: Opcode = opcode::read_write::<Move>(0xAA, 0x05);

/// Poisons a page whose slot is quite empty, through a userfaultfd that its mapping is registered with.
pub fn by_or_skip(test: &str, owner: &WriteProtector, region: &Region, page: usize) -> bool {
    let mut request = Poison {
        start: region.address(page),
        length: PAGE as u64,
        mode: 0,
        updated: 0,
    };
    // SAFETY: the request is the struct that the ioctl takes; it reads and fills in that struct only.
    let answer = unsafe { change::<UFFDIO_POISON, _>(owner.as_fd(), &mut request) };
    answer
        .map_err(|error| skipped(test, &format!("UFFDIO_POISON: {error}")))
        .is_ok()
}

/// Moves a page of this process to an empty slot of a region that is registered with `owner`; the slot
/// it leaves is empty then. Since 6.8.
pub fn move_or_skip(test: &str, owner: &WriteProtector, from: u64, to: u64) -> bool {
    let mut request = Move {
        to,
        from,
        length: PAGE as u64,
        mode: 0,
        moved: 0,
    };
    // SAFETY: as for poisoning; both pages are regions', to which no Rust reference exists.
    let answer = unsafe { change::<UFFDIO_MOVE, _>(owner.as_fd(), &mut request) };
    answer
        .map_err(|error| skipped(test, &format!("UFFDIO_MOVE: {error}")))
        .is_ok()
}

/// # Safety
/// `request` must be what the ioctl takes a pointer to.
unsafe fn change<const CODE: Opcode, T>(fd: BorrowedFd<'_>, request: &mut T) -> io::Result<()> {
    // SAFETY: by the caller.
    let ioctl = unsafe { Updater::<CODE, T>::new(request) };
    // SAFETY: by the caller; the pointer is to `request`, exclusively borrowed.
    Ok(unsafe { rustix::ioctl::ioctl(fd, ioctl) }?)
}

/// Poisons a page that was never touched in a mapping nobody has registered. The poison stays when the
/// userfaultfd that installed it is closed.
pub fn install_or_skip(test: &str, region: &Region, page: usize) -> bool {
    let flags = libc::c_long::from(pagetide_kernel::userfaultfd::CREATION_FLAGS);
    // SAFETY: userfaultfd takes flags only and gives a new fd or an error.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    assert!(fd >= 0, "userfaultfd: {}", io::Error::last_os_error());
    // SAFETY: the fd is new and owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut api = uffdio_api {
        api: u64::from(UFFD_API),
        features: 0,
        ioctls: 0,
    };
    // SAFETY: UFFDIO_API takes a pointer to `uffdio_api`.
    unsafe { change::<UFFDIO_API, _>(fd.as_fd(), &mut api) }.expect("UFFDIO_API");
    let owner = WriteProtector::already_enabled(fd);
    let length = region.end() - region.start();
    if let Err(error) = owner.register(region.start(), length) {
        skipped(test, &error.to_string());
        return false;
    }
    by_or_skip(test, &owner, region, page)
}

#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    length: u64,
    mode: u64,
    copied: i64,
}

const UFFDIO_COPY: Opcode = opcode::read_write::<Copy>(0xAA, 0x03);

/// Fills an empty slot of a region that is registered with `owner` with a copy of another page.
pub fn copy_or_skip(test: &str, owner: &WriteProtector, from: u64, to: u64) -> bool {
    let mut request = Copy {
        to,
        from,
        length: PAGE as u64,
        mode: 0,
        copied: 0,
    };
    // SAFETY: as for poisoning; both pages are regions', to which no Rust reference exists.
    let answer = unsafe { change::<UFFDIO_COPY, _>(owner.as_fd(), &mut request) };
    answer
        .map_err(|error| skipped(test, &format!("UFFDIO_COPY: {error}")))
        .is_ok()
}
