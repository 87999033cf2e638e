//! Files of memory: what memfd_create(2) made.

use rustix::fs::{MemfdFlags, fcntl_get_seals, fstatfs};

use crate::blocker::Blocker;

use super::foreign::Foreign;
use super::object::ObjectOrigin;
use super::refused::file_system;

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
