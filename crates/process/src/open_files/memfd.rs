//! Files of memory: what memfd_create(2) made.

use super::file_path::FilePath;
use super::foreign::Foreign;
use super::refused::file_system;
use crate::blocker::Blocker;
use bincode::Decode;
use bincode::Encode;
use rustix::fs::{MemfdFlags, fcntl_get_seals, fstatfs};

/// Longest name of a memfd, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 249;

/// What the file was made as, if it is one. Others are told by their path, which has a directory.
pub(crate) fn read(foreign: &Foreign) -> Result<Option<ObjectOrigin>, Blocker> {
    let memory = matches!(
        foreign.file_system,
        file_system::TMPFS | file_system::HUGETLBFS
    );
    let name = foreign.link_bytes().strip_prefix(b"/memfd:");
    let name = name.and_then(|name| name.strip_suffix(b" (deleted)"));
    let Some(name) = name.filter(|_| memory) else {
        return Ok(None);
    };
    let failed = |error| foreign.unreadable(&error);
    let seals = fcntl_get_seals(foreign).map_err(failed)?;
    let huge_page_bytes = if foreign.file_system == file_system::HUGETLBFS {
        let block = fstatfs(foreign).map_err(failed)?.f_bsize;
        u64::try_from(block).unwrap_or(0)
    } else {
        0
    };
    Ok(Some(ObjectOrigin::Memfd {
        name: name.to_vec(),
        seals: seals.bits(),
        huge_page_bytes,
    }))
}

/// The flags that ask for pages of this size; 0 is the ordinary one.
pub(crate) fn huge_pages(page_bytes: u64) -> MemfdFlags {
    /// MFD_HUGE_SHIFT of `memfd_create(2)`: the logarithm of the size stands in the upper bits.
    const SIZE_SHIFT: u32 = 26;
    if page_bytes == 0 {
        return MemfdFlags::empty();
    }
    MemfdFlags::HUGETLB | MemfdFlags::from_bits_retain(page_bytes.trailing_zeros() << SIZE_SHIFT)
}

/// What a file without a name was made as. The order is part of the format.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[non_exhaustive]
pub enum ObjectOrigin {
    /// In a directory, and deleted, or never named.
    Deleted {
        /// The directory.
        directory: FilePath,
    },
    /// By memfd_create(2).
    Memfd {
        /// Its name, without `memfd:`.
        name: Vec<u8>,
        /// What may not be done to it any more: `F_GET_SEALS` of fcntl(2).
        seals: u32,
        /// Size of its pages if they are huge ones (MFD_HUGETLB), else 0.
        huge_page_bytes: u64,
    },
}
