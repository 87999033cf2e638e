//! userfaultfd(2) for asynchronous write-protection, on top of the `userfaultfd` crate.
//!
//! UFFD_FEATURE_WP_ASYNC exists since Linux 6.7. A userfaultfd belongs to the address space of the
//! process that created it, whoever holds it. Unprivileged users may create one with
//! UFFD_USER_MODE_ONLY; in asynchronous mode kernel-side writes are caught all the same, because no
//! handler is ever asked. Closing the last copy of the fd unregisters everything and lets the
//! process run on. Sources: userfaultfd(2), ioctl_userfaultfd(2), `admin-guide/mm/userfaultfd.rst`.
//!
//! What the crate lacks stands here: newer features, and UFFDIO_API on an fd that was fetched from
//! another process.

#![allow(unsafe_code)]

pub mod missing;

use linux_raw_sys::general::{
    UFFD_API, UFFD_FEATURE_WP_ASYNC, UFFD_FEATURE_WP_HUGETLBFS_SHMEM, UFFD_FEATURE_WP_UNPOPULATED,
    uffdio_api,
};
use rustix::ioctl::{Opcode, Updater, opcode};
use rustix::mm::UserfaultfdFlags;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use userfaultfd::{RegisterMode, Uffd};

/// What a tracker needs: asynchronous resolution, protection of slots that hold no page yet, and
/// huge pages of hugetlbfs and shared memory.
pub const TRACKING_FEATURES: u64 = UFFD_FEATURE_WP_ASYNC as u64
    | UFFD_FEATURE_WP_UNPOPULATED as u64
    | UFFD_FEATURE_WP_HUGETLBFS_SHMEM as u64;

/// The arguments of the userfaultfd(2) call that a remote process must make to give us an fd.
pub const CREATION_FLAGS: u32 =
    UserfaultfdFlags::CLOEXEC.bits() | UserfaultfdFlags::NONBLOCK.bits() | USER_MODE_ONLY;

const UFFDIO_API: Opcode = opcode::read_write::<uffdio_api>(0xAA, 0x3F);
const _: () = assert!(UFFDIO_API == 0xC018_AA3F);

const USER_MODE_ONLY: u32 = linux_raw_sys::general::UFFD_USER_MODE_ONLY;

/// Why an operation on a userfaultfd failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserfaultfdError {
    /// userfaultfd(2) itself failed.
    #[error("create a userfaultfd")]
    Create(#[source] std::io::Error),
    /// The kernel lacks a feature that tracking needs.
    #[error(
        "this kernel's userfaultfd has no asynchronous write-protection (Linux 6.7 or newer is needed)"
    )]
    FeaturesMissing(#[source] std::io::Error),
    /// Another userfaultfd owns a mapping of the range.
    #[error("register {start:#x}+{length:#x}: a mapping belongs to another userfaultfd")]
    OwnedByAnother {
        /// First address.
        start: u64,
        /// Length in bytes.
        length: u64,
    },
    /// A mapping of the range cannot be registered, such as `[vdso]` or device memory.
    #[error("register {start:#x}+{length:#x}: a mapping cannot be write-protected")]
    CannotRegister {
        /// First address.
        start: u64,
        /// Length in bytes.
        length: u64,
    },
    /// The address space that the fd belongs to is gone: the process exited or called execve(2).
    #[error("{operation} {start:#x}+{length:#x}: the address space no longer exists")]
    SpaceGone {
        /// What was tried.
        operation: &'static str,
        /// First address.
        start: u64,
        /// Length in bytes.
        length: u64,
    },
    /// Any other refusal.
    #[error("{operation} {start:#x}+{length:#x}")]
    Kernel {
        /// What was tried.
        operation: &'static str,
        /// First address.
        start: u64,
        /// Length in bytes.
        length: u64,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// A userfaultfd in asynchronous write-protect mode: of this process, or of another one that it was
/// fetched from.
#[derive(Debug)]
pub struct WriteProtector {
    uffd: Uffd,
}

impl WriteProtector {
    /// A new one for the address space of the calling process. Needs no privilege.
    pub fn of_self() -> Result<Self, UserfaultfdError> {
        let flags = UserfaultfdFlags::from_bits_retain(CREATION_FLAGS);
        // SAFETY: the fd is only ever registered in asynchronous write-protect mode, in which the
        // kernel resolves every fault itself: no access to memory can hang or change its result.
        let fd = unsafe { rustix::mm::userfaultfd(flags) }
            .map_err(|errno| UserfaultfdError::Create(errno.into()))?;
        Self::enable(fd)
    }

    /// Takes a userfaultfd on which UFFDIO_API was not called yet, and enables tracking on it.
    pub fn enable(fd: OwnedFd) -> Result<Self, UserfaultfdError> {
        let mut api = uffdio_api {
            api: u64::from(UFFD_API),
            features: TRACKING_FEATURES,
            ioctls: 0,
        };
        // SAFETY: UFFDIO_API takes a pointer to `uffdio_api`, which it reads and fills in.
        let request = unsafe { Updater::<UFFDIO_API, uffdio_api>::new(&mut api) };
        // SAFETY: as above; the pointer is to `api`, exclusively borrowed by the request.
        let enabled = unsafe { rustix::ioctl::ioctl(fd.as_fd(), request) };
        enabled.map_err(|errno| UserfaultfdError::FeaturesMissing(errno.into()))?;
        Ok(Self::already_enabled(fd))
    }

    /// Takes a userfaultfd on which tracking was enabled before, such as one left in a process.
    pub fn already_enabled(fd: OwnedFd) -> Self {
        // SAFETY: the fd is owned, and ownership passes to the `Uffd`, which closes it.
        let uffd = unsafe { Uffd::from_raw_fd(fd.into_raw_fd()) };
        Self { uffd }
    }

    /// Registers every mapping in `length` bytes from `start`. Registering what is registered with
    /// this fd changes nothing. Fails as a whole, having changed nothing, if one mapping refuses.
    pub fn register(&self, start: u64, length: u64) -> Result<(), UserfaultfdError> {
        self.uffd
            .register_with_mode(
                start as *mut _,
                length as usize,
                RegisterMode::WRITE_PROTECT,
            )
            .map(drop)
            .map_err(|error| match errno_of(&error) {
                Some(nix::libc::EBUSY) => UserfaultfdError::OwnedByAnother { start, length },
                Some(nix::libc::EINVAL) => UserfaultfdError::CannotRegister { start, length },
                Some(nix::libc::ENOMEM | nix::libc::ESRCH) => UserfaultfdError::SpaceGone {
                    operation: "register",
                    start,
                    length,
                },
                _ => other("register", start, length, error),
            })
    }

    /// Ends the registration of every mapping in the range.
    pub fn unregister(&self, start: u64, length: u64) -> Result<(), UserfaultfdError> {
        self.uffd
            .unregister(start as *mut _, length as usize)
            .map_err(|error| other("unregister", start, length, error))
    }

    /// Makes every page of the range count as written: the write protection is taken away, from
    /// pages in memory, in swap and from markers on empty slots alike. Every byte of the range must
    /// be mapped and registered.
    pub fn mark_written(&self, start: u64, length: u64) -> Result<(), UserfaultfdError> {
        self.uffd
            .remove_write_protection(start as *mut _, length as usize, true)
            .map_err(|error| match errno_of(&error) {
                Some(nix::libc::ESRCH) => UserfaultfdError::SpaceGone {
                    operation: "mark as written",
                    start,
                    length,
                },
                _ => other("mark as written", start, length, error),
            })
    }
}

impl AsFd for WriteProtector {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }
}

fn errno_of(error: &userfaultfd::Error) -> Option<i32> {
    match error {
        userfaultfd::Error::SystemError(errno) => Some(*errno as i32),
        _ => None,
    }
}

fn other(
    operation: &'static str,
    start: u64,
    length: u64,
    error: userfaultfd::Error,
) -> UserfaultfdError {
    let source = match errno_of(&error) {
        Some(errno) => std::io::Error::from_raw_os_error(errno),
        None => std::io::Error::other(error),
    };
    UserfaultfdError::Kernel {
        operation,
        start,
        length,
        source,
    }
}
