//! The PAGEMAP_SCAN ioctl: ranges of pages by category, and the atomic "report and write-protect".
//!
//! Since Linux 6.7. Needs what opening `/proc/PID/pagemap` needs: nothing for the own process,
//! `PTRACE_MODE_READ_FSCREDS` for another. Source: `Documentation/admin-guide/mm/pagemap.rst` and
//! ioctl_pagemap_scan(2). On kernels before 6.7 the ioctl answers ENOTTY; what can
//! be told without it is in `scan_by_entries`.
//!
//! This file carries the request to the kernel and the answer back. Which masks are safe to
//! harvest with, and what to do about mappings that the kernel passes over, is the tracker's business.

#![allow(unsafe_code)]

use bitflags::bitflags;
use linux_raw_sys::general::{page_region, pm_scan_arg};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

bitflags! {
    /// What the kernel says of a page. Unknown bits are refused by the kernel with EINVAL, so probe
    /// before using the newer ones (see [`crate::probe`]).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Categories: u64 {
        /// The mapping is registered with a userfaultfd in asynchronous write-protect mode.
        const WP_ALLOWED = 1 << 0;
        /// Written since it was last write-protected. A page that was zapped counts as written.
        const WRITTEN = 1 << 1;
        /// Backed by a file or shared memory, not by a private anonymous copy.
        const FILE = 1 << 2;
        /// In memory.
        const PRESENT = 1 << 3;
        /// The slot holds something that is not a page in memory: a swap entry, but also a bare
        /// write-protect marker or a guard. It alone does not mean that there is content.
        const SWAPPED = 1 << 4;
        /// The shared zero page.
        const ZERO_PAGE = 1 << 5;
        /// Part of a huge page that is mapped as one.
        const HUGE = 1 << 6;
        /// Soft-dirty; only where the kernel has CONFIG_MEM_SOFT_DIRTY (since 6.8).
        const SOFT_DIRTY = 1 << 7;
        /// A guard region, MADV_GUARD_INSTALL (since 6.15).
        const GUARD = 1 << 8;
    }
}

bitflags! {
    /// How a scan acts.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ScanFlags: u64 {
        /// Write-protect every page that is reported, atomically with the report. Mappings that are
        /// not registered for asynchronous write-protection are passed over in silence.
        const WRITE_PROTECT_MATCHING = 1 << 0;
        /// Fail with EPERM at the first mapping that is not registered. Together with
        /// `WRITE_PROTECT_MATCHING` the pages before it are protected already and their report is
        /// lost, so only use it over ranges that are known to be registered.
        const CHECK_WP_ASYNC = 1 << 1;
    }
}

/// One reported range: addresses, and the categories its pages have out of those asked for.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct ScannedRange(page_region);

impl ScannedRange {
    /// A slot for the kernel to fill.
    pub const EMPTY: Self = Self(page_region {
        start: 0,
        end: 0,
        categories: 0,
    });

    /// A range as the kernel would report it.
    pub(crate) fn new(start: u64, end: u64, categories: Categories) -> Self {
        Self(page_region {
            start,
            end,
            categories: categories.bits(),
        })
    }

    /// Address of the first byte.
    pub fn start(&self) -> u64 {
        self.0.start
    }

    /// Address past the last byte.
    pub fn end(&self) -> u64 {
        self.0.end
    }

    /// The categories of all pages of the range, out of [`ScanRequest::returned`].
    pub fn categories(&self) -> Categories {
        Categories::from_bits_retain(self.0.categories)
    }
}

/// What to scan for. A page is reported if, with the `inverted` categories flipped, it has all of
/// `all_of` and, unless that is empty, at least one of `any_of`.
#[derive(Clone, Copy, Debug)]
pub struct ScanRequest {
    /// First address; a multiple of the base page size.
    pub start: u64,
    /// Address past the last byte.
    pub end: u64,
    /// How to act.
    pub flags: ScanFlags,
    /// Categories whose sense is flipped before matching.
    pub inverted: Categories,
    /// All of these are needed.
    pub all_of: Categories,
    /// One of these is needed, if any is named.
    pub any_of: Categories,
    /// The categories that are reported; ranges are merged as long as these are equal.
    pub returned: Categories,
    /// Stop after this many pages; 0 for no limit.
    pub max_pages: u64,
}

impl ScanRequest {
    /// A request that reports every mapped page of `start..end` with no category.
    pub fn over(start: u64, end: u64) -> Self {
        Self {
            start,
            end,
            flags: ScanFlags::empty(),
            inverted: Categories::empty(),
            all_of: Categories::empty(),
            any_of: Categories::empty(),
            returned: Categories::empty(),
            max_pages: 0,
        }
    }
}

/// Where a scan stands after one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanProgress {
    /// How many slots of the vector were filled.
    pub filled: usize,
    /// Where the walk ended. Meaningful only when the walk was cut short: with many ranges in one
    /// call it can be stale although everything was reported.
    pub walk_end: u64,
    /// True if the whole range was walked: the vector was not filled up, and no page limit was met.
    pub complete: bool,
}

/// Why a scan failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// The kernel does not know the ioctl (before Linux 6.7).
    #[error("this kernel has no PAGEMAP_SCAN (Linux 6.7 or newer is needed)")]
    Unsupported,
    /// A mapping in the range is not registered and the request insisted on it.
    #[error(
        "scan {start:#x}..{end:#x}: a mapping is not registered for asynchronous write-protection"
    )]
    NotRegistered {
        /// First address of the request.
        start: u64,
        /// End of the request.
        end: u64,
    },
    /// The address space is gone: the process exited or replaced itself by execve(2).
    #[error("scan {start:#x}..{end:#x}: the address space no longer exists")]
    SpaceGone {
        /// First address of the request.
        start: u64,
        /// End of the request.
        end: u64,
    },
    /// This kernel has no PAGEMAP_SCAN, and the entries of the pagemap do not tell what was asked.
    #[error(
        "scan {start:#x}..{end:#x}: without PAGEMAP_SCAN (Linux 6.7 or newer) it cannot be told: {}",
        crate::scan_by_entries::names(*untold)
    )]
    NotTold {
        /// First address of the request.
        start: u64,
        /// End of the request.
        end: u64,
        /// The categories that cannot be told; empty if the pages were to be protected.
        untold: Categories,
    },
    /// The vector has no slot. Some kernels crash on such a request, so it is not sent.
    #[error("scan {start:#x}..{end:#x}: the result vector is empty")]
    NoVector {
        /// First address of the request.
        start: u64,
        /// End of the request.
        end: u64,
    },
    /// Any other refusal: EINVAL (unknown category or flag, unaligned start), EFAULT, EINTR, ENOMEM.
    #[error("scan {start:#x}..{end:#x}")]
    Kernel {
        /// First address of the request.
        start: u64,
        /// End of the request.
        end: u64,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// Why `/proc/PID/pagemap` could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("open {path}", path = path.display())]
pub struct OpenPagemapError {
    /// The file.
    pub path: PathBuf,
    /// What the kernel said.
    #[source]
    pub source: std::io::Error,
}

/// An open `/proc/PID/pagemap`. It stays bound to the address space the process had when it was
/// opened: after an execve(2) it refers to the old, dead one.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
}

impl Pagemap {
    /// The pagemap of process `pid`.
    pub fn of_process(pid: i32) -> Result<Self, OpenPagemapError> {
        Self::open(PathBuf::from(format!("/proc/{pid}/pagemap")))
    }

    /// The pagemap of the calling process.
    pub fn of_self() -> Result<Self, OpenPagemapError> {
        Self::open(PathBuf::from("/proc/self/pagemap"))
    }

    fn open(path: PathBuf) -> Result<Self, OpenPagemapError> {
        match File::open(&path) {
            Ok(file) => Ok(Self { file }),
            Err(source) => Err(OpenPagemapError { path, source }),
        }
    }

    /// The file itself, for reading entries.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// One call of the ioctl.
    ///
    /// It stops early, with `complete` false, when `vector` is full or `max_pages` pages were
    /// reported; go on from `walk_end`. A signal gives [`ScanError::Kernel`] with EINTR only before
    /// anything was reported.
    pub fn scan_once(
        &self,
        request: &ScanRequest,
        vector: &mut [ScannedRange],
    ) -> Result<ScanProgress, ScanError> {
        let (start, end) = (request.start, request.end);
        if vector.is_empty() {
            return Err(ScanError::NoVector { start, end });
        }
        let scan = PagemapScan {
            argument: pm_scan_arg {
                size: size_of::<pm_scan_arg>() as u64,
                flags: request.flags.bits(),
                start,
                end,
                walk_end: 0,
                vec: vector.as_mut_ptr() as u64,
                vec_len: vector.len() as u64,
                max_pages: request.max_pages,
                category_inverted: request.inverted.bits(),
                category_mask: request.all_of.bits(),
                category_anyof_mask: request.any_of.bits(),
                return_mask: request.returned.bits(),
            },
        };
        // SAFETY: the argument's size field is that of the struct, `vec`/`vec_len` describe `vector`,
        // which is exclusively borrowed for the whole call, and its element is `page_region` by
        // `repr(transparent)`. The other fields are plain numbers.
        let answer = unsafe { rustix::ioctl::ioctl(self.file.as_fd(), scan) };
        match answer {
            Ok(progress) => Ok(ScanProgress {
                complete: progress.complete && request.max_pages == 0 || progress.walk_end >= end,
                ..progress
            }),
            Err(Errno::NOTTY) => Err(ScanError::Unsupported),
            Err(Errno::PERM) => Err(ScanError::NotRegistered { start, end }),
            Err(Errno::SRCH) => Err(ScanError::SpaceGone { start, end }),
            Err(errno) => Err(ScanError::Kernel {
                start,
                end,
                source: errno.into(),
            }),
        }
    }

    /// Scans the whole of the request's range, calling again as often as the vector fills up, and
    /// hands every reported range to `each` in ascending order. `vector` is scratch space.
    ///
    /// With `WRITE_PROTECT_MATCHING`, ranges that were handed over before an error are protected
    /// already: the caller keeps what it was given.
    ///
    /// On kernels without the ioctl, a request without flags is answered by
    /// [`Pagemap::scan_by_entries`]: it should span mapped memory only.
    pub fn scan(
        &self,
        request: &ScanRequest,
        vector: &mut [ScannedRange],
        mut each: impl FnMut(&ScannedRange),
    ) -> Result<(), ScanError> {
        let mut request = *request;
        while request.start < request.end {
            let progress = match self.scan_once(&request, vector) {
                Err(ScanError::Kernel { source, .. })
                    if source.kind() == std::io::ErrorKind::Interrupted =>
                {
                    continue;
                }
                Err(ScanError::Unsupported) if request.flags.is_empty() => {
                    return self.scan_by_entries(&request, each);
                }
                other => other?,
            };
            let reported = &vector[..progress.filled];
            reported.iter().for_each(&mut each);
            if progress.complete {
                break;
            }
            // A stale `walk_end` may lie before what was just reported; the last range never does.
            let seen = reported.last().map_or(request.start, ScannedRange::end);
            request.start = progress.walk_end.max(seen);
        }
        Ok(())
    }
}

impl AsFd for Pagemap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

const PAGEMAP_SCAN: Opcode = opcode::read_write::<pm_scan_arg>(b'f', 16);
const _: () = assert!(PAGEMAP_SCAN == 0xC060_6610);
const _: () = assert!(size_of::<pm_scan_arg>() == 96);
const _: () = assert!(size_of::<page_region>() == 24);
const _: () = assert!(std::mem::offset_of!(pm_scan_arg, walk_end) == 32);
const _: () = assert!(std::mem::offset_of!(pm_scan_arg, return_mask) == 88);

struct PagemapScan {
    argument: pm_scan_arg,
}

// SAFETY: the opcode is PAGEMAP_SCAN, whose argument is a pointer to `pm_scan_arg`; the kernel writes
// `walk_end` back into it (IS_MUTATING) and returns the number of filled slots.
unsafe impl Ioctl for PagemapScan {
    type Output = ScanProgress;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        PAGEMAP_SCAN
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        (&raw mut self.argument).cast()
    }

    unsafe fn output_from_ptr(
        out: IoctlOutput,
        argument: *mut std::ffi::c_void,
    ) -> rustix::io::Result<ScanProgress> {
        let filled = usize::try_from(out).map_err(|_| Errno::INVAL)?;
        // SAFETY: rustix hands back the pointer that `as_ptr` gave, to a live `pm_scan_arg`.
        let argument = unsafe { &*argument.cast::<pm_scan_arg>() };
        let slots = usize::try_from(argument.vec_len).map_err(|_| Errno::INVAL)?;
        Ok(ScanProgress {
            filled,
            walk_end: argument.walk_end,
            complete: filled < slots,
        })
    }
}
