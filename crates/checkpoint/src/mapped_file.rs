//! The file or object behind a mapping: by what it is known, which page of it is shown where, and its bytes.

use crate::capture::SIZE;
use crate::layout;
use pagetide_kernel::maps::Mapping;
use pagetide_pages::{PageIndex, PageRange};
use rustix::io::{Errno, pread};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

/// A file, by device and inode.
pub(crate) type FileKey = (u64, u64);

/// The file behind a mapping.
pub(crate) fn key(mapping: &Mapping) -> FileKey {
    (layout::device_number(mapping), mapping.inode)
}

/// The page of the file that a mapping shows at `page`.
pub(crate) fn file_page(mapping: &Mapping, page: PageIndex) -> PageIndex {
    let first = mapping.offset_bytes / SIZE.bytes();
    PageIndex(first + (page.0 - mapping.pages().start().0))
}

/// Fills `buffer` from `offset` on.
pub(crate) fn read_exactly(
    file: impl AsFd,
    buffer: &mut [u8],
    offset: u64,
) -> rustix::io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match pread(&file, &mut buffer[done..], offset + done as u64) {
            Ok(0) => return Err(Errno::NODATA),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills `buffer` from `offset` on, with zeros past the end.
fn read_or_zero(file: &OwnedFd, buffer: &mut [u8], offset: u64) -> rustix::io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match pread(file, &mut buffer[done..], offset + done as u64) {
            Ok(0) => {
                buffer[done..].fill(0);
                return Ok(());
            }
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The device of what has no name in any file system: the kernel's own mount of memory.
pub(crate) fn device_of_memory() -> Option<u64> {
    static DEVICE: OnceLock<Option<u64>> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let memory = rustix::fs::memfd_create(c"", rustix::fs::MemfdFlags::CLOEXEC).ok()?;
        Some(rustix::fs::fstat(memory).ok()?.st_dev)
    })
}

/// Fills `bytes` with `pieces` of the file, one behind the other, with zeros past its end; `offset` is where a piece lies in it. Returns
/// the pages that nobody can read (EIO): the memory or the medium that held them has failed.
pub(crate) fn read_pieces(
    file: &OwnedFd,
    pieces: &[PageRange],
    bytes: &mut [u8],
    offset: impl Fn(PageRange) -> u64,
) -> rustix::io::Result<Vec<PageRange>> {
    let mut failed = Vec::new();
    let mut rest = bytes;
    for &piece in pieces {
        let length = SIZE.bytes_of(piece.count()) as usize;
        let (bytes, others) = rest.split_at_mut(length);
        rest = others;
        match read_or_zero(file, bytes, offset(piece)) {
            Err(Errno::IO) => {}
            read => {
                read?;
                continue;
            }
        }
        for (page, bytes) in piece.pages().zip(bytes.chunks_exact_mut(SIZE.len())) {
            let page = PageRange::single(page);
            match read_or_zero(file, bytes, offset(page)) {
                Err(Errno::IO) => failed.push(page),
                read => read?,
            }
        }
    }
    Ok(failed)
}
