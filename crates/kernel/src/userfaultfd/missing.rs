//! userfaultfd(2) for pages that are not there yet: whoever touches one waits until it is put there.
//!
//! The descriptor belongs to the address space of the process that created it, whoever holds it. It also tells how the
//! process changes its mappings, and hands over a descriptor for each child that it forks: *events*. Whoever causes one
//! waits until it was read, and meanwhile no page can be put: EAGAIN. So somebody who reads the events and puts pages
//! under one lock always knows where pages are to go. Sources: userfaultfd(2), ioctl_userfaultfd(2),
//! `admin-guide/mm/userfaultfd.rst`.
//!
//! Faults inside system calls are served, too, for which a process needs CAP_SYS_PTRACE or
//! `vm.unprivileged_userfaultfd`; to be told of forks needs CAP_SYS_PTRACE. UFFDIO_POISON exists since Linux 6.6, all
//! else since 4.14.
//!
//! Closing the last copy of the descriptor ends it all: pages that are still missing are zeros from then on.

use super::{TRACKING_FEATURES, UserfaultfdError, WriteProtector};
use linux_raw_sys::general::{
    UFFD_API, UFFD_EVENT_FORK, UFFD_EVENT_PAGEFAULT, UFFD_EVENT_REMAP, UFFD_EVENT_REMOVE,
    UFFD_EVENT_UNMAP, UFFD_FEATURE_EVENT_FORK, UFFD_FEATURE_EVENT_REMAP, UFFD_FEATURE_EVENT_REMOVE,
    UFFD_FEATURE_EVENT_UNMAP, UFFD_FEATURE_POISON, uffd_msg, uffdio_api, uffdio_copy,
    uffdio_poison, uffdio_range, uffdio_register, uffdio_zeropage,
};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, Updater, opcode};
use rustix::mm::UserfaultfdFlags;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// The arguments of the userfaultfd(2) call that a remote process must make.
pub const MISSING_CREATION_FLAGS: u32 =
    UserfaultfdFlags::CLOEXEC.bits() | UserfaultfdFlags::NONBLOCK.bits();

const FEATURES: u64 = UFFD_FEATURE_EVENT_FORK as u64
    | UFFD_FEATURE_EVENT_REMAP as u64
    | UFFD_FEATURE_EVENT_REMOVE as u64
    | UFFD_FEATURE_EVENT_UNMAP as u64;
/// UFFDIO_REGISTER_MODE_MISSING and UFFDIO_REGISTER_MODE_WP
const MODE_MISSING: u64 = 1;
const MODE_WRITE_PROTECT: u64 = 2;
/// UFFDIO_COPY_MODE_WP
const COPY_PROTECTED: u64 = 2;

const UFFDIO_API: Opcode = opcode::read_write::<uffdio_api>(0xAA, 0x3F);
const UFFDIO_REGISTER: Opcode = opcode::read_write::<uffdio_register>(0xAA, 0x00);
const UFFDIO_WAKE: Opcode = opcode::read::<uffdio_range>(0xAA, 0x02);
const UFFDIO_COPY: Opcode = opcode::read_write::<uffdio_copy>(0xAA, 0x03);
const UFFDIO_ZEROPAGE: Opcode = opcode::read_write::<uffdio_zeropage>(0xAA, 0x04);
const UFFDIO_POISON: Opcode = opcode::read_write::<uffdio_poison>(0xAA, 0x08);
const _: () = assert!(UFFDIO_COPY == 0xC028_AA03);
const _: () = assert!(UFFDIO_ZEROPAGE == 0xC020_AA04);
const _: () = assert!(UFFDIO_WAKE == 0x8010_AA02);
const _: () = assert!(size_of::<uffd_msg>() == MESSAGE_BYTES);

const MESSAGE_BYTES: usize = 32;
/// Messages read at once.
const MESSAGES: usize = 32;

/// Missing pages of one address space. Close-on-exec.
#[derive(Debug)]
pub struct MissingPages {
    fd: OwnedFd,
    can_poison: bool,
}

/// True if this kernel can poison pages, [`MissingPages::poison`]: Linux 6.6. False, too, where this process may not have a
/// userfaultfd.
pub fn kernel_can_poison() -> bool {
    let flags =
        UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::from_bits_retain(super::USER_MODE_ONLY);
    // SAFETY: nothing is registered with it.
    let Ok(fd) = (unsafe { rustix::mm::userfaultfd(flags) }) else {
        return false;
    };
    enable(&fd, u64::from(UFFD_FEATURE_POISON)).is_ok()
}

/// What an address space tells.
#[derive(Debug)]
pub enum MissingEvent {
    /// Somebody waits for the page at this address.
    Touched {
        /// An address in the page.
        address: u64,
    },
    /// It was forked. What was missing is missing in the child.
    Forked {
        /// The missing pages of the child.
        child: MissingPages,
    },
    /// Pages moved: mremap(2).
    Moved {
        /// The first address where they were.
        from: u64,
        /// The first address where they are.
        to: u64,
        /// Length in bytes.
        length: u64,
    },
    /// Pages are no longer there, or are zeros from now on: munmap(2), MADV_DONTNEED, MADV_REMOVE.
    Dropped {
        /// First address.
        start: u64,
        /// Address past the last byte.
        end: u64,
    },
}

/// Why pages were not put, or not all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotPut {
    /// There are events to be read first, or whoever caused one has not gone on yet: EAGAIN.
    Changing,
    /// There is something already: EEXIST.
    Present,
    /// It is not within one mapping that is registered: ENOENT.
    NotThere,
    /// The address space is gone: ESRCH.
    SpaceGone,
    /// Any other reason, such as no memory.
    Kernel(Errno),
}

/// What was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutReport {
    /// Bytes from the first address on that were put.
    pub done_bytes: u64,
    /// Why it was not all.
    pub stopped: Option<NotPut>,
}

impl MissingPages {
    /// Takes a userfaultfd on which UFFDIO_API was not called yet.
    ///
    /// # Errors
    /// [`UserfaultfdError::Kernel`] with EPERM if this process lacks CAP_SYS_PTRACE.
    pub fn enable(fd: OwnedFd) -> Result<Self, UserfaultfdError> {
        let with_poison = enable(&fd, FEATURES | u64::from(UFFD_FEATURE_POISON));
        let can_poison = with_poison.is_ok();
        if let Err(errno) = with_poison.or_else(|_| enable(&fd, FEATURES)) {
            return Err(failed("enable a userfaultfd for", 0, 0, errno));
        }
        Ok(Self { fd, can_poison })
    }

    /// A new one for the calling process itself, whose pages are tracked from when they come, see
    /// [`Self::register_tracked`]. It tells of dropped pages only. System calls that touch missing pages wait, too.
    ///
    /// # Errors
    /// [`UserfaultfdError::Create`] with EPERM if this process has neither CAP_SYS_PTRACE nor
    /// `vm.unprivileged_userfaultfd`; [`UserfaultfdError::FeaturesMissing`] before Linux 6.7.
    pub fn of_self_tracked() -> Result<Self, UserfaultfdError> {
        let flags = UserfaultfdFlags::from_bits_retain(MISSING_CREATION_FLAGS);
        // SAFETY: whoever registers memory with it serves it; write faults are resolved by the kernel.
        let fd = unsafe { rustix::mm::userfaultfd(flags) };
        let fd = fd.map_err(|errno| UserfaultfdError::Create(errno.into()))?;
        let features = TRACKING_FEATURES | u64::from(UFFD_FEATURE_EVENT_REMOVE);
        let with_poison = enable(&fd, features | u64::from(UFFD_FEATURE_POISON));
        let can_poison = with_poison.is_ok();
        with_poison
            .or_else(|_| enable(&fd, features))
            .map_err(|errno| UserfaultfdError::FeaturesMissing(errno.into()))?;
        Ok(Self { fd, can_poison })
    }

    /// The same descriptor, for tracking what is written.
    ///
    /// # Errors
    /// [`UserfaultfdError::Create`] if there are no more descriptors.
    pub fn protector(&self) -> Result<WriteProtector, UserfaultfdError> {
        let fd = self.fd.try_clone().map_err(UserfaultfdError::Create)?;
        Ok(WriteProtector::already_enabled(fd))
    }

    /// Registers every mapping in `length` bytes from `start`. What is not there is missing from now on.
    pub fn register(&self, start: u64, length: u64) -> Result<(), UserfaultfdError> {
        self.register_as(start, length, MODE_MISSING)
    }

    /// As [`Self::register`], and for asynchronous write-protection at the same time: what is put by
    /// [`Self::copy_protected`] counts as not written until somebody writes to it.
    pub fn register_tracked(&self, start: u64, length: u64) -> Result<(), UserfaultfdError> {
        self.register_as(start, length, MODE_MISSING | MODE_WRITE_PROTECT)
    }

    fn register_as(&self, start: u64, length: u64, mode: u64) -> Result<(), UserfaultfdError> {
        let mut register = uffdio_register {
            range: uffdio_range { start, len: length },
            mode,
            ioctls: 0,
        };
        // SAFETY: UFFDIO_REGISTER takes a pointer to `uffdio_register`, which it reads and fills in.
        let request = unsafe { Updater::<UFFDIO_REGISTER, uffdio_register>::new(&mut register) };
        // SAFETY: as above; the pointer is to `register`, exclusively borrowed by the request.
        let registered = unsafe { rustix::ioctl::ioctl(&self.fd, request) };
        registered.map_err(|errno| match errno {
            Errno::BUSY => UserfaultfdError::OwnedByAnother { start, length },
            errno => failed("register", start, length, errno),
        })
    }

    /// True if [`Self::poison`] works: Linux 6.6.
    pub fn can_poison(&self) -> bool {
        self.can_poison
    }

    /// Puts `bytes`, whole pages, at `address`, and lets go on whoever waits for them: UFFDIO_COPY.
    pub fn copy(&self, address: u64, bytes: &[u8]) -> PutReport {
        self.copy_as(address, bytes, 0)
    }

    /// As [`Self::copy`], with write protection on, where memory is registered by [`Self::register_tracked`].
    pub fn copy_protected(&self, address: u64, bytes: &[u8]) -> PutReport {
        self.copy_as(address, bytes, COPY_PROTECTED)
    }

    fn copy_as(&self, address: u64, bytes: &[u8], mode: u64) -> PutReport {
        let mut copy = uffdio_copy {
            dst: address,
            src: bytes.as_ptr() as u64,
            len: bytes.len() as u64,
            mode,
            copy: 0,
        };
        // SAFETY: UFFDIO_COPY takes a pointer to `uffdio_copy`, which it reads and fills in.
        let request = unsafe { Updater::<UFFDIO_COPY, uffdio_copy>::new(&mut copy) };
        // SAFETY: as above; it reads `len` bytes at `src`, which is all of `bytes`, and writes to no memory of this
        // process unless its own mappings are registered, which then are missing and so hold nothing.
        let done = unsafe { rustix::ioctl::ioctl(&self.fd, request) };
        outcome(done, copy.copy, bytes.len() as u64)
    }

    /// Puts zeros: UFFDIO_ZEROPAGE.
    pub fn zero(&self, start: u64, length: u64) -> PutReport {
        let mut zero = uffdio_zeropage {
            range: uffdio_range { start, len: length },
            mode: 0,
            zeropage: 0,
        };
        // SAFETY: UFFDIO_ZEROPAGE takes a pointer to `uffdio_zeropage`, which it reads and fills in.
        let request = unsafe { Updater::<UFFDIO_ZEROPAGE, uffdio_zeropage>::new(&mut zero) };
        // SAFETY: as above; only pages that hold nothing become zeros.
        let done = unsafe { rustix::ioctl::ioctl(&self.fd, request) };
        outcome(done, zero.zeropage, length)
    }

    /// Makes missing pages such that touching one is a SIGBUS, for ever: UFFDIO_POISON.
    pub fn poison(&self, start: u64, length: u64) -> PutReport {
        let mut poison = uffdio_poison {
            range: uffdio_range { start, len: length },
            mode: 0,
            updated: 0,
        };
        // SAFETY: UFFDIO_POISON takes a pointer to `uffdio_poison`, which it reads and fills in.
        let request = unsafe { Updater::<UFFDIO_POISON, uffdio_poison>::new(&mut poison) };
        // SAFETY: as above; only pages that hold nothing are changed.
        let done = unsafe { rustix::ioctl::ioctl(&self.fd, request) };
        outcome(done, poison.updated, length)
    }

    /// Lets go on whoever waits for pages of this range: UFFDIO_WAKE. Who finds them missing waits again.
    pub fn wake(&self, start: u64, length: u64) {
        let range = uffdio_range { start, len: length };
        // SAFETY: UFFDIO_WAKE takes a pointer to `uffdio_range`, which it only reads.
        let request = unsafe { Setter::<UFFDIO_WAKE, uffdio_range>::new(range) };
        // SAFETY: as above; it changes no memory. It fails only for a range that is not one.
        unsafe { rustix::ioctl::ioctl(&self.fd, request) }.ok();
    }

    /// True if there are events to be read, or whoever caused one has not gone on yet.
    pub fn is_changing(&self) -> bool {
        // Copying nothing is no range; what is asked first is told first.
        self.copy(0, &[]).stopped == Some(NotPut::Changing)
    }

    /// Reads what there is to tell, if anything, and adds it to `events` in the order in which it is to be heeded.
    ///
    /// # Errors
    /// Whatever read(2) gives but EAGAIN.
    pub fn read(&self, events: &mut Vec<MissingEvent>) -> Result<(), Errno> {
        loop {
            let mut bytes = [0u8; MESSAGES * MESSAGE_BYTES];
            let length = match rustix::io::read(&self.fd, &mut bytes) {
                Ok(length) => length,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno),
            };
            if length == 0 {
                return Ok(());
            }
            for message in bytes[..length].chunks_exact(MESSAGE_BYTES) {
                events.extend(self.decode(message));
            }
        }
    }

    fn decode(&self, message: &[u8]) -> Option<MissingEvent> {
        let word = |number: usize| {
            let at = 8 + 8 * number;
            let mut word = [0; 8];
            word.copy_from_slice(&message[at..at + 8]);
            u64::from_le_bytes(word)
        };
        match u32::from(message[0]) {
            // Flags, address, thread.
            UFFD_EVENT_PAGEFAULT => Some(MissingEvent::Touched { address: word(1) }),
            UFFD_EVENT_FORK => {
                let number = u32::from_le_bytes([message[8], message[9], message[10], message[11]]);
                // SAFETY: the kernel has opened this descriptor for us when we read the message, and nobody else has it.
                let fd = unsafe { OwnedFd::from_raw_fd(number.cast_signed()) };
                Some(MissingEvent::Forked {
                    child: Self {
                        fd,
                        can_poison: self.can_poison,
                    },
                })
            }
            UFFD_EVENT_REMAP => Some(MissingEvent::Moved {
                from: word(0),
                to: word(1),
                length: word(2),
            }),
            UFFD_EVENT_REMOVE | UFFD_EVENT_UNMAP => Some(MissingEvent::Dropped {
                start: word(0),
                end: word(1),
            }),
            _ => None,
        }
    }
}

impl AsFd for MissingPages {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn enable(fd: &OwnedFd, features: u64) -> Result<(), Errno> {
    let mut api = uffdio_api {
        api: u64::from(UFFD_API),
        features,
        ioctls: 0,
    };
    // SAFETY: UFFDIO_API takes a pointer to `uffdio_api`, which it reads and fills in.
    let request = unsafe { Updater::<UFFDIO_API, uffdio_api>::new(&mut api) };
    // SAFETY: as above; the pointer is to `api`, exclusively borrowed by the request.
    unsafe { rustix::ioctl::ioctl(fd, request) }
}

/// `done` is the result of the call, `told` what the kernel says was done: bytes, or an error number below zero.
fn outcome(done: Result<(), Errno>, told: i64, length: u64) -> PutReport {
    let Err(errno) = done else {
        return PutReport {
            done_bytes: length,
            stopped: None,
        };
    };
    let stopped = match errno {
        Errno::AGAIN => NotPut::Changing,
        Errno::EXIST => NotPut::Present,
        Errno::NOENT => NotPut::NotThere,
        Errno::SRCH => NotPut::SpaceGone,
        errno => NotPut::Kernel(errno),
    };
    PutReport {
        done_bytes: u64::try_from(told).unwrap_or(0).min(length),
        stopped: Some(stopped),
    }
}

fn failed(operation: &'static str, start: u64, length: u64, errno: Errno) -> UserfaultfdError {
    UserfaultfdError::Kernel {
        operation,
        start,
        length,
        source: errno.into(),
    }
}
