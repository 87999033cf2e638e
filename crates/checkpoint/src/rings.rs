//! Memory that the kernel writes without a page fault: asynchronous I/O.
//!
//! *Registered buffers* of io_uring are pinned when they are registered, and reads into them leave no
//! trace in any page table. Registering itself counts as a write, so a buffer is only dangerous from the
//! harvest it was registered over until the next one: what was registered at the last snapshot or is now
//! counts as written. The kernel lists them in `/proc/PID/fdinfo` of the ring (`UserBufs`).
//!
//! *A direct read under way* (io_uring or libaio with O_DIRECT) pins its page and counts as a write when it
//! is submitted, but its bytes arrive later, perhaps after the harvest. Nothing lists such pages. In a
//! process that has a ring or an aio context, all that was harvested for one snapshot is therefore copied
//! again for the next. A read that stays under way for longer than that is not seen.
//!
//! *A ring in the process's own memory* (IORING_SETUP_NO_MMAP) gets its completions without a fault, and
//! nothing says where it lies. All memory of such a process is compared. So is that of a process with a
//! ring whose list cannot be read: because its descriptor is registered and closed
//! (IORING_REGISTER_RING_FDS), which leaves its mappings only, or because it is busy all the time.
//!
//! *Devices that write to memory by themselves* (RDMA, VFIO) cannot be seen at all. All memory of a process
//! that has one open is compared, and the device is named in the report, since it goes on writing while
//! the process stands still.

use pagetide_kernel::maps::{Mapping, MappingName};
use pagetide_pages::{PageSet, PageSize};
use rustix::fs::OFlags;
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// How the kernel shows a ring, as a descriptor and as a mapping.
const RING: &str = "anon_inode:[io_uring]";

/// The asynchronous I/O of one process, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AsynchronousIo {
    /// The pages of all registered buffers.
    pub buffers: PageSet,
    /// There is a ring or an aio context: reads may be under way.
    pub any: bool,
    /// There is a ring of which it is not known where it lies or which buffers it has, or a device that
    /// writes to memory by itself.
    pub unlisted_ring: bool,
    /// Devices that the process has open and that may write to its memory by themselves.
    pub devices: Vec<String>,
}

/// Descriptors of devices that are given memory of the process to write to (RDMA, VFIO), as the kernel
/// shows them.
const DEVICES: [&str; 4] = [
    "/dev/vfio/",
    "/dev/infiniband/uverbs",
    "anon_inode:[vfio-device]",
    "anon_inode:[infinibandevent]",
];

/// Looks at the rings that process `pid` holds, and at its mappings.
pub(crate) fn asynchronous_io(pid: i32, mappings: &[Mapping]) -> AsynchronousIo {
    let is_aio = |mapping: &Mapping| {
        matches!(&mapping.name, MappingName::Path(path) if path.as_os_str() == "/[aio] (deleted)"
            || path.as_os_str() == "/[aio]")
    };
    let is_mapped_ring = |mapping: &&Mapping| matches!(&mapping.name, MappingName::Path(path) if path.as_os_str() == RING);
    let mut unseen: HashSet<u64> = mappings
        .iter()
        .filter(is_mapped_ring)
        .map(|mapping| mapping.inode)
        .collect();
    let mut io = AsynchronousIo {
        any: !unseen.is_empty() || mappings.iter().any(is_aio),
        unlisted_ring: !unseen.is_empty(),
        ..AsynchronousIo::default()
    };
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return io;
    };
    let links: Vec<(OsString, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| Some((entry.file_name(), fs::read_link(entry.path()).ok()?)))
        .collect();
    let devices = links.iter().map(|(_, target)| target.to_string_lossy());
    let devices = devices.filter(|target| DEVICES.iter().any(|name| target.starts_with(name)));
    io.devices = devices.map(String::from).collect();
    io.devices.sort();
    io.devices.dedup();
    let rings = links
        .iter()
        .filter(|(_, target)| target.as_os_str() == RING)
        .map(|(number, _)| number);
    let mut all_told = true;
    for ring in rings {
        io.any = true;
        let mut told = false;
        let info = Path::new("/proc")
            .join(pid.to_string())
            .join("fdinfo")
            .join(ring);
        // The kernel leaves the list out while the ring is busy in a system call.
        for _ in 0..1000 {
            let Ok(text) = fs::read_to_string(&info) else {
                break;
            };
            if text.contains("UserBufs:") {
                told = inode_in(&text).is_some_and(|inode| {
                    unseen.remove(&inode);
                    mappings.iter().any(|mapping| mapping.inode == inode)
                });
                io.buffers
                    .extend(buffers_in(&text).ranges().iter().copied());
                break;
            }
            std::thread::yield_now();
        }
        all_told &= told;
    }
    io.unlisted_ring = !all_told || !unseen.is_empty() || !io.devices.is_empty();
    io.any |= !io.devices.is_empty();
    io
}

/// True if process `pid` has a file open for direct I/O (O_DIRECT). While a thread of it runs, its read(2)
/// may be under way just as an asynchronous one may; a stopped thread has none under way.
pub(crate) fn reads_directly(pid: i32) -> bool {
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo"));
    let is_direct = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
        flags.is_some_and(|flags| flags & OFlags::DIRECT.bits() != 0)
    };
    entries.into_iter().flatten().flatten().any(is_direct)
}

/// The inode number of the ring itself.
fn inode_in(fdinfo: &str) -> Option<u64> {
    let line = fdinfo.lines().find_map(|line| line.strip_prefix("ino:"))?;
    line.trim().parse().ok()
}

/// The buffers in the fdinfo of one ring: after `UserBufs: N` a line `index: 0xADDRESS/LENGTH` each.
fn buffers_in(fdinfo: &str) -> PageSet {
    let lines = fdinfo
        .lines()
        .skip_while(|line| !line.starts_with("UserBufs:"))
        .skip(1);
    let buffer = |line: &str| {
        let (_, place) = line.split_once(": ")?;
        let (address, length) = place.trim().split_once('/')?;
        let address = u64::from_str_radix(address.strip_prefix("0x")?, 16).ok()?;
        let length: u64 = length.trim().parse().ok()?;
        Some(PageSize::KIB_4.covering(address, address.checked_add(length)?))
    };
    lines.map_while(buffer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagetide_pages::{PageCount, PageIndex, PageRange};

    #[test]
    fn the_list_ends_where_the_next_field_begins() {
        let text = "SqThread:\t-1\nUserFiles:\t0\nUserBufs:\t2\n    0: 0x7f0000001000/8192\n    \
                    1: 0x7f0000010010/1\nPollList:\n  op=1, task_works=0\n";
        let expected: PageSet = [
            PageRange::with_count(PageIndex(0x7f0000001), PageCount(2)),
            PageRange::with_count(PageIndex(0x7f0000010), PageCount(1)),
        ]
        .into_iter()
        .collect();
        assert_eq!(buffers_in(text), expected);
    }
}
