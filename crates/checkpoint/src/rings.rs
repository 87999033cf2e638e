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
//! Where the kernel may write to pages that nothing lists, all memory of the process is compared, and the
//! reason told ([`ComparedBecause`]). So it is for a ring whose queues lie in the process's own memory
//! (IORING_SETUP_NO_MMAP), that takes its buffers from a ring there (IORING_REGISTER_PBUF_RING), that only
//! another process has, or whose list cannot be read: because its descriptor is registered and closed
//! (IORING_REGISTER_RING_FDS), or because it is busy all the time. A ring without descriptor and mapping is found
//! by its threads alone, in the stop: `RingsOfThreads` of pagetide-process. Other writers are in `writers`.

use crate::compared::ComparedBecause;
use crate::writers;
use pagetide_kernel::io_uring;
use pagetide_kernel::maps::{self, Mapping, MappingName};
use pagetide_kernel::own_descriptors::{withhold, without_forks};
use pagetide_kernel::pidfd::PidFd;
use pagetide_pages::{PageSet, PageSize};
use rustix::fs::OFlags;
use std::collections::HashSet;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

/// How the kernel shows a ring, as a descriptor and as a mapping.
const RING: &str = "anon_inode:[io_uring]";

/// What of the offset of a mapping of a ring says what is mapped: IORING_OFF_MMAP_MASK.
const KIND_OF_MAPPING: u64 = 0xf800_0000;
/// The queues, where the kernel made them: IORING_OFF_SQ_RING, IORING_OFF_CQ_RING, IORING_OFF_SQES. Others
/// are of buffers, which a ring may have whose queues lie elsewhere.
const QUEUES: [u64; 3] = [0, 0x0800_0000, 0x1000_0000];

/// To so many rings of a process the question is put whether they have buffer rings. It takes 30 ms each.
const ASKED_RINGS: usize = 8;

/// The asynchronous I/O of one process, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AsynchronousIo {
    /// The pages of all registered buffers.
    pub buffers: PageSet,
    /// There is a ring, an aio context or another such writer: reads may be under way.
    pub any: bool,
    /// Why pages may be written that nothing lists, each reason once.
    pub unlisted: Vec<ComparedBecause>,
    /// Devices that the process has open and that may write to its memory by themselves.
    pub devices: Vec<String>,
}

impl AsynchronousIo {
    fn add(&mut self, reason: ComparedBecause) {
        self.any = true;
        if !self.unlisted.contains(&reason) {
            self.unlisted.push(reason);
        }
    }

    /// Nothing is known.
    pub fn distrusted() -> Self {
        let mut io = Self::default();
        io.add(ComparedBecause::UnlistedRing);
        io
    }
}

/// What is looked for that takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Nothing of that sort. For memory of our own, whose writers wait meanwhile: see [`may_have_own_buffer_rings`].
    Shallow,
    /// Rings of buffers.
    BufferRings,
    /// Also rings that only others have by now: a thread has once used a ring, and may have made one.
    Elsewhere,
}

/// Looks at what process `pid` holds, and at its mappings.
pub(crate) fn asynchronous_io(pid: i32, mappings: &[Mapping], depth: Depth) -> AsynchronousIo {
    let is_aio = |mapping: &Mapping| {
        matches!(&mapping.name, MappingName::Path(path) if path.as_os_str() == "/[aio] (deleted)"
            || path.as_os_str() == "/[aio]")
    };
    let of_rings: Vec<&Mapping> = mappings.iter().filter(|one| is_mapped_ring(one)).collect();
    let mut unseen: HashSet<u64> = of_rings.iter().map(|mapping| mapping.inode).collect();
    let mut io = AsynchronousIo {
        any: !unseen.is_empty() || mappings.iter().any(is_aio),
        ..AsynchronousIo::default()
    };
    let links = writers::links(pid);
    let rings: Vec<i32> = links
        .iter()
        .filter(|(_, target)| target.as_os_str() == RING)
        .map(|(number, _)| *number)
        .collect();
    for (place, ring) in rings.iter().enumerate() {
        io.any = true;
        let Some(told) = told_of(pid, *ring) else {
            io.add(ComparedBecause::UnlistedRing);
            continue;
        };
        unseen.remove(&told.inode);
        io.buffers.extend(told.buffers.ranges().iter().copied());
        if !has_queues(&of_rings, told.inode) {
            io.add(ComparedBecause::UnlistedRing);
        } else if depth != Depth::Shallow
            && io_uring::writes_to_buffer_rings()
            && (place >= ASKED_RINGS || may_have_buffer_ring(pid, *ring))
        {
            io.add(ComparedBecause::BufferRing);
        }
    }
    if !unseen.is_empty() {
        io.add(ComparedBecause::UnlistedRing);
    }
    if depth == Depth::Elsewhere && is_ring_elsewhere(pid) {
        io.add(ComparedBecause::RingElsewhere);
    }
    io.devices = writers::devices(&links);
    let (pinned, listed) = (writers::pinned_pages(pid), io.buffers.count());
    if pinned > listed {
        io.add(ComparedBecause::Pinned);
    }
    for reason in writers::unseen(pid, &links, &io.devices) {
        io.add(reason);
    }
    io
}

/// True if process `pid` has a ring by descriptor now.
pub(crate) fn has_ring(pid: i32) -> bool {
    let links = writers::links(pid);
    links.iter().any(|(_, target)| target.as_os_str() == RING)
}

/// The registered buffers of the rings that process `pid` has by descriptor.
pub(crate) fn listed_buffers(pid: i32) -> PageSet {
    let links = writers::links(pid);
    let rings = links
        .iter()
        .filter(|(_, target)| target.as_os_str() == RING);
    let told = rings.filter_map(|(ring, _)| told_of(pid, *ring));
    told.fold(PageSet::new(), |all, told| all.union(&told.buffers))
}

fn is_mapped_ring(mapping: &Mapping) -> bool {
    matches!(&mapping.name, MappingName::Path(path) if path.as_os_str() == RING)
}

/// True if the queues of the ring with this inode are mapped from it, so that the kernel made them.
fn has_queues(of_rings: &[&Mapping], inode: u64) -> bool {
    let is_queue = |mapping: &&Mapping| QUEUES.contains(&(mapping.offset_bytes & KIND_OF_MAPPING));
    of_rings
        .iter()
        .any(|mapping| mapping.inode == inode && is_queue(mapping))
}

/// What the kernel tells of one ring.
struct RingInfo {
    inode: u64,
    buffers: PageSet,
}

/// `None` if it tells nothing, because the ring is busy in a system call each time it is asked.
fn told_of(pid: i32, ring: i32) -> Option<RingInfo> {
    let info = Path::new("/proc")
        .join(pid.to_string())
        .join("fdinfo")
        .join(ring.to_string());
    for _ in 0..1000 {
        let text = fs::read_to_string(&info).ok()?;
        if let Some((inode, buffers)) = inode_in(&text).zip(buffers_in(&text)) {
            return Some(RingInfo { inode, buffers });
        }
        std::thread::yield_now();
    }
    None
}

/// True if a ring of buffers may lie in memory of the process; where it would is told nowhere.
fn may_have_buffer_ring(pid: i32, ring: i32) -> bool {
    let copied = PidFd::open(pid).and_then(|pidfd| pidfd.get_fd(ring));
    let Ok(copied) = copied else { return true };
    !matches!(io_uring::buffer_ring(copied), Ok(None))
}

/// True if a ring of buffers may lie in memory of this process, whose number is `pid`. Not for a pause.
pub(crate) fn may_have_own_buffer_rings(pid: i32) -> bool {
    let links = writers::links(pid);
    let rings = links
        .iter()
        .filter(|(_, target)| target.as_os_str() == RING);
    let rings: Vec<i32> = rings.map(|(number, _)| *number).collect();
    if rings.is_empty() || !without_forks(io_uring::writes_to_buffer_rings).unwrap_or(true) {
        return false;
    }
    rings.len() > ASKED_RINGS
        || rings
            .iter()
            .any(|ring| may_have_own_buffer_ring(pid, *ring))
}

/// The same of one ring. What is asked is a copy, as other threads may close theirs; a child that one of them forks
/// meanwhile does not have it.
fn may_have_own_buffer_ring(pid: i32, ring: i32) -> bool {
    let copied = without_forks(|| {
        let copied = PidFd::open(pid).and_then(|pidfd| pidfd.get_fd(ring)).ok()?;
        let withheld = withhold(copied.as_fd()).ok()?;
        Some((copied, withheld))
    });
    let Ok(Some((copied, withheld))) = copied else {
        return true;
    };
    let found = io_uring::buffer_ring(&copied);
    // Before what it is about.
    drop(withheld);
    !matches!(found, Ok(None))
}

/// True if a descendant has a ring whose queues it has not mapped from it: they may lie in the memory of `pid`,
/// which made the ring and closed it after a fork(2). Whoever was adopted by the first process may be a descendant.
fn is_ring_elsewhere(pid: i32) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let Some((_, since)) = parent_and_start(pid) else {
        return false;
    };
    numbers
        .filter(|other| *other != pid)
        .any(|other| has_strange_ring(other) && may_descend_from(other, pid, since))
}

fn may_descend_from(process: i32, ancestor: i32, since: u64) -> bool {
    let mut at = process;
    while at != ancestor {
        let Some((parent, start)) = parent_and_start(at) else {
            return false;
        };
        if parent <= 1 {
            return start >= since;
        }
        at = parent;
    }
    true
}

/// The parent of a process, and when it started, in ticks.
fn parent_and_start(pid: i32) -> Option<(i32, u64)> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program may hold anything; behind it comes the third field.
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let fields = String::from_utf8_lossy(stat.get(name_end + 2..)?);
    let field = |number: usize| fields.split(' ').nth(number - 3);
    Some((field(4)?.parse().ok()?, field(22)?.parse().ok()?))
}

/// True if `process` has a ring by descriptor and has not mapped its queues.
fn has_strange_ring(process: i32) -> bool {
    let links = writers::links(process);
    let mut rings = links
        .iter()
        .filter(|(_, target)| target.as_os_str() == RING)
        .peekable();
    if rings.peek().is_none() {
        return false;
    }
    let mappings = maps::mappings(process).unwrap_or_default();
    let of_rings: Vec<&Mapping> = mappings.iter().filter(|one| is_mapped_ring(one)).collect();
    rings.any(|(ring, _)| {
        let text = fs::read_to_string(format!("/proc/{process}/fdinfo/{ring}"));
        let inode = text.ok().and_then(|text| inode_in(&text));
        inode.is_some_and(|inode| !has_queues(&of_rings, inode))
    })
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

/// The buffers in the fdinfo of one ring: after `UserBufs: N` as many lines, `index: 0xADDRESS/LENGTH` or
/// `index: <none>`. `None` if they are not there: kernels leave them out while the ring is busy, some with
/// their number and some without.
fn buffers_in(fdinfo: &str) -> Option<PageSet> {
    let mut lines = fdinfo
        .lines()
        .skip_while(|line| !line.starts_with("UserBufs:"));
    let count: usize = lines.next()?.split_once(':')?.1.trim().parse().ok()?;
    let mut buffers = PageSet::new();
    for number in 0..count {
        let (index, place) = lines.next()?.split_once(": ")?;
        if index.trim().parse() != Ok(number) {
            return None;
        }
        // An empty slot of kernels before 6.13 has the last address of all.
        buffers.extend(buffer(place.trim()));
    }
    Some(buffers)
}

fn buffer(place: &str) -> Option<pagetide_pages::PageRange> {
    let (address, length) = place.split_once('/')?;
    let address = u64::from_str_radix(address.strip_prefix("0x")?, 16).ok()?;
    let length: u64 = length.parse().ok()?;
    Some(PageSize::KIB_4.covering(address, address.checked_add(length)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagetide_pages::{PageCount, PageIndex, PageRange};

    fn pages(ranges: &[(u64, u64)]) -> PageSet {
        let range = |(first, count): &(u64, u64)| {
            PageRange::with_count(PageIndex(*first), PageCount(*count))
        };
        ranges.iter().map(range).collect()
    }

    #[test]
    fn the_list_ends_where_the_next_field_begins() {
        let text = "SqThread:\t-1\nUserFiles:\t0\nUserBufs:\t2\n    0: 0x7f0000001000/8192\n    \
                    1: 0x7f0000010010/1\nPollList:\n  op=1, task_works=0\n";
        let expected = pages(&[(0x7f0000001, 2), (0x7f0000010, 1)]);
        assert_eq!(buffers_in(text), Some(expected));
    }

    #[test]
    fn behind_an_empty_slot_there_may_be_buffers() {
        for nothing in ["<none>", "0xffffffffffffffff/1"] {
            let text = format!(
                "UserBufs:\t3\n    0: {nothing}\n    1: {nothing}\n    2: 0x5000/4096\nPollList:\n"
            );
            assert_eq!(buffers_in(&text), Some(pages(&[(5, 1)])), "{nothing}");
        }
    }

    #[test]
    fn a_list_that_was_left_out_is_no_empty_list() {
        assert_eq!(buffers_in("SqThread:\t-1\n"), None);
        assert_eq!(buffers_in("UserBufs:\t2\nPollList:\n"), None);
        assert_eq!(
            buffers_in("UserBufs:\t0\nPollList:\n"),
            Some(PageSet::new())
        );
    }

    #[test]
    fn only_queues_tell_that_the_kernel_made_the_queues() {
        let mapping = |offset_bytes| Mapping {
            start: 0x1000,
            end: 0x2000,
            read: true,
            write: true,
            execute: false,
            shared: true,
            offset_bytes,
            device: (0, 16),
            inode: 7,
            name: MappingName::Path(RING.into()),
        };
        for (offset, queue) in [
            (0, true),
            (0x0800_0000, true),
            (0x1000_0000, true),
            (0x1000_1000, true),
            (0x2000_0000, false),
            (0x3000_0000, false),
            (0x8000_0000, false),
            (0x8001_0000, false),
        ] {
            let mapping = mapping(offset);
            assert!(is_mapped_ring(&mapping));
            assert_eq!(has_queues(&[&mapping], 7), queue, "{offset:#x}");
            assert!(!has_queues(&[&mapping], 8));
        }
    }
}
