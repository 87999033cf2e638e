//! What can be asked of an io_uring that another process has: whether buffers are handed to it by a ring that
//! lies in that process's own memory.
//!
//! Buffer rings exist since Linux 5.19, the question (IORING_REGISTER_PBUF_STATUS) since 6.8. Since 6.12 the
//! kernel writes to such a ring by itself (IOU_PBUF_RING_INC), and nothing lists where it lies. No privilege is
//! needed but a descriptor of the ring. A ring for one issuer alone (IORING_SETUP_SINGLE_ISSUER) answers nobody
//! else, EEXIST; a restricted one may refuse, EACCES. The question waits for whoever submits to the ring
//! at this moment. Source: io_uring_register(2), `linux/io_uring.h`.

#![allow(unsafe_code)]

use nix::libc;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;

const REGISTER_BUFFER_RING: libc::c_uint = 22;
const BUFFER_RING_STATUS: libc::c_uint = 26;

/// IOU_PBUF_RING_MMAP and IOU_PBUF_RING_INC.
const MADE_BY_KERNEL: u16 = 1;
const INCREMENTAL: u16 = 2;

/// `struct io_uring_buf_reg`.
#[repr(C)]
#[derive(Default)]
struct BufferRing {
    address: u64,
    entries: u32,
    group: u16,
    flags: u16,
    reserved: [u64; 3],
}

/// `struct io_uring_buf_status`.
#[repr(C)]
#[derive(Default)]
struct BufferRingStatus {
    group: u32,
    head: u32,
    reserved: [u32; 8],
}

/// `struct io_uring_params`.
#[repr(C)]
struct Parameters([u64; 15]);

const _: () = assert!(size_of::<BufferRing>() == 40);
const _: () = assert!(size_of::<BufferRingStatus>() == 40);
const _: () = assert!(size_of::<Parameters>() == 120);

/// Whether this kernel writes to buffer rings by itself. True also if that cannot be found out, as where
/// io_uring is switched off by now (`kernel.io_uring_disabled`).
pub fn writes_to_buffer_rings() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| match try_incremental_ring() {
        Ok(()) => true,
        Err(error) => !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)),
    })
}

/// Makes such a ring in an io_uring of our own, both of which end here.
fn try_incremental_ring() -> io::Result<()> {
    let mut parameters = Parameters([0; 15]);
    // SAFETY: io_uring_setup(2) reads and writes one `io_uring_params`, which this is by its size.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut parameters) };
    let ring = i32::try_from(ring).map_err(io::Error::other)?;
    if ring < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made this descriptor, and nobody else knows of it.
    let ring = unsafe { OwnedFd::from_raw_fd(ring) };
    let mut wanted = BufferRing {
        entries: 1,
        flags: MADE_BY_KERNEL | INCREMENTAL,
        ..BufferRing::default()
    };
    // SAFETY: the call reads one `io_uring_buf_reg`, which this is by its size and layout, and the kernel makes
    // the memory of the ring itself.
    let made = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            REGISTER_BUFFER_RING,
            &raw mut wanted,
            1,
        )
    };
    match made {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The first group of buffers, by its number, that is handed to `ring` by a buffer ring. All numbers are asked for,
/// which takes some 30 ms if there is none.
///
/// Errors: the ring does not answer (EEXIST, EACCES, EBADFD), or the kernel does not know the question (EINVAL).
pub fn buffer_ring(ring: impl AsFd) -> io::Result<Option<u16>> {
    let mut refused = 0;
    for group in 0..=u16::MAX {
        match ask(&ring, group) {
            Ok(()) => return Ok(Some(group)),
            Err(error) => match error.raw_os_error() {
                // Nobody has a group of this number.
                Some(libc::ENOENT) => {}
                // Its buffers are handed over one by one, unless that is the answer to everything.
                Some(libc::EINVAL) if refused < REFUSED_MAX => refused += 1,
                _ => return Err(error),
            },
        }
    }
    Ok(None)
}

/// No program has so many groups of the old kind.
const REFUSED_MAX: u32 = 64;

/// Whether a group of buffers is handed over by a ring.
fn ask(ring: impl AsFd, group: u16) -> io::Result<()> {
    let mut status = BufferRingStatus {
        group: u32::from(group),
        ..BufferRingStatus::default()
    };
    // SAFETY: the call reads and writes one `io_uring_buf_status`, which this is by its size and layout.
    let told = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_fd().as_raw_fd(),
            BUFFER_RING_STATUS,
            &raw mut status,
            1,
        )
    };
    match told {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
