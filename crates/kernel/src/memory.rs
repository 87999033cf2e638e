//! The memory of a process, read and written from outside.
//!
//! Reads go through process_vm_readv(2), which is the faster way for many small pieces but stops at
//! the first page the process itself could not read, and un-shares what fork(2) left shared (see `sharing`); and through
//! `/proc/PID/mem` for these. Writes go the same two ways.
//! Both need `PTRACE_MODE_ATTACH_REALCREDS`. A page that neither can read is named, never skipped.

use crate::loose;
use crate::maps::Mapping;
use crate::progress;
use crate::sharing::Sharing;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSize};
use std::fs::{File, OpenOptions};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::AtomicU8;

/// The kernel takes at most this many pieces in one call (UIO_MAXIOV).
const PIECES_AT_ONCE: usize = 1024;

/// Why memory of a process could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// `/proc/PID/mem` could not be opened.
    #[error("open {path}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The address space is gone: the process exited or called execve(2) since it was opened.
    #[error("the address space of process {pid} no longer exists")]
    SpaceGone {
        /// The process.
        pid: i32,
    },
    /// Bytes could not be written.
    #[error("write {address:#x}+{length:#x} of process {pid}")]
    Write {
        /// The process.
        pid: i32,
        /// First address.
        address: u64,
        /// Length in bytes.
        length: usize,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// Bytes could not be read.
    #[error("read {address:#x}+{length:#x} of process {pid}")]
    Read {
        /// The process.
        pid: i32,
        /// First address.
        address: u64,
        /// Length in bytes.
        length: usize,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// The memory of one process. Bound to the address space it had when this was opened: after an
/// execve(2) every use fails with [`MemoryError::SpaceGone`].
#[derive(Debug)]
pub struct ProcessMemory {
    pid: i32,
    file: File,
    sharing: Sharing,
}

/// Pieces that are read in the same way.
struct Run<'a> {
    pieces: Vec<PageRange>,
    pinned: bool,
    out: &'a mut [u8],
}

impl ProcessMemory {
    /// Opens the memory of process `pid` for reading and writing.
    pub fn open(pid: i32) -> Result<Self, MemoryError> {
        let path = PathBuf::from(format!("/proc/{pid}/mem"));
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => Ok(Self {
                pid,
                file,
                sharing: Sharing::of(pid),
            }),
            Err(source) => Err(MemoryError::Open { path, source }),
        }
    }

    /// Learns from `mappings`, which are those of the process, how to see at once that it shares no memory with a
    /// relative. Not needed, but reading is faster afterwards. Not for a stop window: it takes about a microsecond a mapping.
    pub fn expect(&self, mappings: &[Mapping]) {
        self.sharing.find_witnesses(mappings);
    }

    /// Reads the pages of `ranges`, one range after the other, into `out`, which must have their
    /// total length, and returns the pages that cannot be read (past the end of a mapped file, guard
    /// regions, device memory); their bytes in `out` are zero.
    ///
    /// Only meaningful while the process is stopped or when the caller reads again what is written
    /// meanwhile. A page that was never touched is read as zeros; for shared memory, hugetlb and
    /// files, reading it makes the kernel allocate it, so ask only for what there is. What fork(2) left shared with
    /// another process stays so.
    pub fn read_pages(
        &self,
        size: PageSize,
        ranges: &[PageRange],
        out: &mut [u8],
    ) -> Result<Vec<PageRange>, MemoryError> {
        let mut unreadable = Vec::new();
        let mut rest = out;
        let mut pending: Vec<PageRange> = Vec::with_capacity(PIECES_AT_ONCE.min(ranges.len()));
        for chunk in ranges.chunks(PIECES_AT_ONCE) {
            pending.clear();
            pending.extend(chunk.iter().filter(|range| !range.is_empty()));
            let length: u64 = pending.iter().map(|r| size.bytes_of(r.count())).sum();
            let (mine, other) = rest.split_at_mut(length as usize);
            rest = other;
            for run in self.runs(size, &pending, mine) {
                if run.pinned {
                    self.read_pieces(size, run.pieces, run.out, &mut unreadable)?
                } else {
                    self.read_by_file(size, &run.pieces, run.out, &mut unreadable)?
                }
            }
        }
        // process_vm_readv names a process, not an address space: after an execve(2), or if the
        // number was given to a new process, it has read from the wrong one.
        let first = ranges.iter().find(|range| !range.is_empty());
        self.check_alive_at(first.map_or(0, |range| size.address_of(range.start())))?;
        Ok(unreadable)
    }

    /// `pieces`, cut where the way in which to read them changes, with what of `out` is theirs.
    fn runs<'a>(&self, size: PageSize, pieces: &[PageRange], out: &'a mut [u8]) -> Vec<Run<'a>> {
        let base: Vec<PageRange> = pieces
            .iter()
            .map(|&piece| {
                let (start, end) = size.span_of(piece);
                PageSize::KIB_4.covering(start, end)
            })
            .collect();
        let apart = self.sharing.not_to_be_pinned(&base);
        let mut runs: Vec<Run<'a>> = Vec::new();
        let mut add = |piece: PageRange, pinned: bool| match runs.last_mut() {
            Some(run) if run.pinned == pinned => run.pieces.push(piece),
            _ => runs.push(Run {
                pieces: vec![piece],
                pinned,
                out: &mut [],
            }),
        };
        let mut apart = apart.into_iter().peekable();
        for &piece in pieces {
            let mut at = piece.start();
            while let Some(next) = apart.peek() {
                let (start, end) = PageSize::KIB_4.span_of(*next);
                let next = size.covering(start, end);
                let Some(part) = next.intersection(piece) else {
                    break;
                };
                // Of large pages, several parts may lie in one.
                let part = PageRange::new(part.start().max(at), part.end().max(at));
                if part.start() > at {
                    add(PageRange::new(at, part.start()), true);
                }
                if !part.is_empty() {
                    add(part, false);
                }
                at = part.end();
                if next.end() > piece.end() {
                    // It goes on in the next piece.
                    break;
                }
                apart.next();
            }
            if at < piece.end() {
                add(PageRange::new(at, piece.end()), true);
            }
        }
        let mut rest = out;
        for run in &mut runs {
            let pages: u64 = run.pieces.iter().map(|piece| piece.count().0).sum();
            let length = size.bytes_of(PageCount(pages)) as usize;
            (run.out, rest) = rest.split_at_mut(length);
        }
        runs
    }

    /// Reads without pinning.
    fn read_by_file(
        &self,
        size: PageSize,
        pieces: &[PageRange],
        mut out: &mut [u8],
        unreadable: &mut Vec<PageRange>,
    ) -> Result<(), MemoryError> {
        for &piece in pieces {
            let mut at = piece.start();
            while at < piece.end() {
                let left = size.bytes_of(PageCount(piece.end().0 - at.0)) as usize;
                // An error, or less than a page: whether this page can be read is found out by itself.
                let read = self.file.read_at(&mut out[..left], size.address_of(at));
                progress::step();
                let mut whole = read.unwrap_or(0) / size.len();
                if whole == 0 {
                    let page = &mut out[..size.len()];
                    if !self.read_page_by_file(size, at, page)? {
                        page.fill(0);
                        unreadable.push(PageRange::single(at));
                    }
                    whole = 1;
                }
                out = &mut out[whole * size.len()..];
                at = at.plus(PageCount(whole as u64));
            }
        }
        Ok(())
    }

    /// Reads by pinning what can be read so.
    fn read_pieces(
        &self,
        size: PageSize,
        mut pieces: Vec<PageRange>,
        mut out: &mut [u8],
        unreadable: &mut Vec<PageRange>,
    ) -> Result<(), MemoryError> {
        let mut done = 0;
        while done < pieces.len() {
            let remote: Vec<RemoteIoVec> = pieces[done..]
                .iter()
                .map(|range| RemoteIoVec {
                    base: size.address_of(range.start()) as usize,
                    len: size.bytes_of(range.count()) as usize,
                })
                .collect();
            let local = &mut [IoSliceMut::new(out)];
            // An error means that nothing was read: the first page of the first piece refuses.
            let read = process_vm_readv(Pid::from_raw(self.pid), local, &remote).unwrap_or(0);
            progress::step();
            let mut pages = PageCount((read / size.len()) as u64);
            out = &mut out[pages.0 as usize * size.len()..];
            while done < pieces.len() && pages >= pieces[done].count() {
                pages = PageCount(pages.0 - pieces[done].count().0);
                done += 1;
            }
            if done == pieces.len() {
                break;
            }
            let stuck = pieces[done].start().plus(pages);
            let page = &mut out[..size.len()];
            if !self.read_page_by_file(size, stuck, page)? {
                page.fill(0);
                unreadable.push(PageRange::single(stuck));
            }
            out = &mut out[size.len()..];
            pieces[done] = PageRange::new(PageIndex(stuck.0 + 1), pieces[done].end());
            if pieces[done].is_empty() {
                done += 1;
            }
        }
        Ok(())
    }

    /// One page through `/proc/PID/mem`; false if it has no readable content.
    fn read_page_by_file(
        &self,
        size: PageSize,
        page: PageIndex,
        out: &mut [u8],
    ) -> Result<bool, MemoryError> {
        let mut filled = 0;
        while filled < out.len() {
            let at = size.address_of(page) + filled as u64;
            // The kernel's half, such as `[vsyscall]`: no offset of a file.
            if i64::try_from(at).is_err() {
                return Ok(false);
            }
            match self.file.read_at(&mut out[filled..], at) {
                // The file gives zero bytes only when the address space is gone.
                Ok(0) => return Err(MemoryError::SpaceGone { pid: self.pid }),
                Ok(read) => filled += read,
                Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => return Ok(false),
                Err(error) if error.raw_os_error() == Some(nix::libc::EFAULT) => return Ok(false),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(MemoryError::Read {
                        pid: self.pid,
                        address: at,
                        length: out.len() - filled,
                        source,
                    });
                }
            }
        }
        Ok(true)
    }

    /// Reads exactly `out.len()` bytes from `address`.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        let read = self.file.read_exact_at(out, address);
        read.map_err(|source| match source.kind() {
            // The file gives zero bytes only when the address space is gone.
            std::io::ErrorKind::UnexpectedEof => MemoryError::SpaceGone { pid: self.pid },
            _ => MemoryError::Read {
                pid: self.pid,
                address,
                length: out.len(),
                source,
            },
        })
    }

    /// Writes all of `bytes` at `address`, whatever the protection of the mapping; private pages are
    /// copied first, as for a debugger.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let written = self.file.write_all_at(bytes, address);
        written.map_err(|source| match source.kind() {
            std::io::ErrorKind::WriteZero => MemoryError::SpaceGone { pid: self.pid },
            _ => MemoryError::Write {
                pid: self.pid,
                address,
                length: bytes.len(),
                source,
            },
        })
    }

    /// As [`Self::write`], for memory that is meant to be written to: by process_vm_writev(2), which copies once, as far as
    /// the process itself may write there, and the rest as a debugger.
    pub fn fill(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let mut done = 0;
        while done < bytes.len() {
            let rest = &bytes[done..];
            let remote = RemoteIoVec {
                base: address as usize + done,
                len: rest.len(),
            };
            match process_vm_writev(Pid::from_raw(self.pid), &[IoSlice::new(rest)], &[remote]) {
                Ok(0) | Err(_) => {
                    self.write(address + done as u64, rest)?;
                    break;
                }
                Ok(count) => done += count,
            }
        }
        // process_vm_writev names a process, not an address space.
        self.check_alive_at(address)
    }

    /// As [`Self::fill`], with bytes that another process may still change.
    pub fn fill_loose(&self, address: u64, bytes: &[AtomicU8]) -> Result<(), MemoryError> {
        let mut done = 0;
        while done < bytes.len() {
            match loose::write_to(self.pid, address + done as u64, &bytes[done..]) {
                Ok(0) | Err(_) => return self.write_loose(address + done as u64, &bytes[done..]),
                Ok(count) => done += count,
            }
        }
        self.check_alive_at(address)
    }

    /// As [`Self::write`], with such bytes.
    pub fn write_loose(&self, address: u64, bytes: &[AtomicU8]) -> Result<(), MemoryError> {
        let mut copied = vec![0; bytes.len()];
        loose::copy(bytes, &mut copied);
        self.write(address, &copied)
    }

    /// Has pages that are missing come, where a userfaultfd serves them: reads a byte of each in a way that waits for it, which a
    /// read of `/proc/PID/mem` does not. What cannot be read stays as it is.
    pub fn touch(&self, size: PageSize, pages: &[PageRange]) {
        let all = pages.iter().flat_map(|range| range.pages());
        let all: Vec<RemoteIoVec> = all
            .map(|page| RemoteIoVec {
                base: size.address_of(page) as usize,
                len: 1,
            })
            .collect();
        let mut bytes = [0u8; PIECES_AT_ONCE];
        let mut done = 0;
        while done < all.len() {
            let some = &all[done..all.len().min(done + PIECES_AT_ONCE)];
            let local = &mut [IoSliceMut::new(&mut bytes[..some.len()])];
            let read = process_vm_readv(Pid::from_raw(self.pid), local, some).unwrap_or(0);
            // One that cannot be read ends the call, and is passed over.
            done += if read < some.len() { read + 1 } else { read };
        }
    }

    /// As [`Self::fill`], of many pieces, an address and bytes each, in as few system calls as the kernel allows. An error comes
    /// with how many pieces were written whole.
    pub fn fill_all(&self, pieces: &[(u64, &[u8])]) -> Result<(), (usize, MemoryError)> {
        let mut done = 0;
        while done < pieces.len() {
            let some = &pieces[done..pieces.len().min(done + PIECES_AT_ONCE)];
            let local: Vec<IoSlice<'_>> = some.iter().map(|(_, b)| IoSlice::new(b)).collect();
            let remote = some.iter().map(|(address, bytes)| RemoteIoVec {
                base: *address as usize,
                len: bytes.len(),
            });
            let remote: Vec<RemoteIoVec> = remote.collect();
            let written = process_vm_writev(Pid::from_raw(self.pid), &local, &remote);
            let mut written = written.unwrap_or(0);
            let before = done;
            while done < before + some.len() && written >= pieces[done].1.len() {
                written -= pieces[done].1.len();
                done += 1;
            }
            if done < before + some.len() {
                let (address, bytes) = pieces[done];
                let left = &bytes[written..];
                let written = self.write(address + written as u64, left);
                written.map_err(|error| (done, error))?;
                done += 1;
            }
        }
        // process_vm_writev names a process, not an address space.
        let address = pieces.first().map_or(0, |&(address, _)| address);
        self.check_alive_at(address).map_err(|error| (0, error))
    }

    /// Fails with [`MemoryError::SpaceGone`] if the process has exited or replaced its address space
    /// since this was opened. An address space that another process shares (CLONE_VM) lives on.
    pub fn check_alive(&self) -> Result<(), MemoryError> {
        self.check_alive_at(0)
    }

    /// The same, of a caller who has just read or written at `address`. Where nothing is mapped, as at zero, the kernel (since
    /// 6.5) looks for a stack to grow, and takes the lock of the address space for writing: all who fault there wait.
    fn check_alive_at(&self, address: u64) -> Result<(), MemoryError> {
        // In a living space, what cannot be read is an error and not an end of file.
        match self.file.read_at(&mut [0u8; 1], address) {
            Ok(0) => Err(MemoryError::SpaceGone { pid: self.pid }),
            _ => Ok(()),
        }
    }
}

impl AsFd for ProcessMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
