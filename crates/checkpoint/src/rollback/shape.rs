//! The layout part of a rollback: which address ranges must be unmapped, mapped, or protected otherwise.

use super::error::RollbackError;
use crate::advice::DROPPABLE;
use crate::layout;
use pagetide_kernel::maps::{Mapping, MappingName};
use pagetide_pages::{PageRange, PageSet, PageSize};
use pagetide_process::{RemoteCallError, RemoteCalls, StoppedProcess, SystemCall};
use pagetide_snapshot::{Backing, Region, Sharing};
use rustix::mm::{MapFlags, ProtFlags};
use std::os::unix::ffi::OsStrExt;

const SIZE: PageSize = PageSize::KIB_4;
/// In the place of MAP_PRIVATE, since Linux 6.11.
const MAP_DROPPABLE: u32 = 0x08;

/// What has to be done to the layout.
#[derive(Default)]
pub(super) struct Shape {
    /// Mapped now, not part of the snapshot.
    unmap: Vec<PageRange>,
    /// Part of the snapshot, not mapped now or mapped otherwise.
    map: Vec<Missing>,
    /// Mapped as it should be, with another protection.
    protect: Vec<(PageRange, ProtFlags)>,
    /// Where the heap ends in the snapshot, if it ends elsewhere now.
    heap: Option<Heap>,
}

struct Missing {
    pages: PageRange,
    protection: ProtFlags,
    name: String,
    /// Nothing is set aside for it (MAP_NORESERVE).
    unreserved: bool,
    /// The kernel may take it away (MAP_DROPPABLE).
    droppable: bool,
    file: Option<FileBehind>,
}

/// The file behind a mapping that has to be made.
struct FileBehind {
    path: Vec<u8>,
    device: u64,
    inode: u64,
    offset: u64,
    /// As long as this it must be for the pages that it had.
    length_bytes: u64,
}

fn protection(region: &Region) -> ProtFlags {
    let flag = |on, flag| if on { flag } else { ProtFlags::empty() };
    flag(region.protection.read, ProtFlags::READ)
        | flag(region.protection.write, ProtFlags::WRITE)
        | flag(region.protection.execute, ProtFlags::EXEC)
}

fn is_heap(region: &Region) -> bool {
    region.name == "[heap]"
}

/// True if the same thing stands behind both, at the addresses they share.
fn same_backing(mapping: &Mapping, region: &Region) -> bool {
    let (start, _) = SIZE.span_of(region.pages);
    let shared = region.sharing == Sharing::Shared;
    let same_place = |offset: u64, device: u64, inode: u64| {
        mapping.inode == inode
            && layout::device_number(mapping) == device
            && mapping.offset_bytes.wrapping_sub(mapping.start) == offset.wrapping_sub(start)
    };
    mapping.shared == shared
        && match region.backing {
            Backing::Anonymous => !mapping.has_file(),
            Backing::File {
                offset_bytes,
                device,
                inode,
                ..
            }
            | Backing::SharedMemory {
                offset_bytes,
                device,
                inode,
                ..
            } => same_place(offset_bytes, device, inode),
            Backing::Kernel => true,
        }
}

impl Shape {
    /// Compares the mappings of now with the regions of the snapshot. Refuses what cannot be made again.
    pub fn plan(mappings: &[Mapping], regions: &[Region]) -> Result<Self, RollbackError> {
        let of_kernel = |mapping: &Mapping| {
            matches!(mapping.name, MappingName::KernelData(_) | MappingName::Vdso)
        };
        let mut shape = Self::default();
        let now: PageSet = mappings
            .iter()
            .filter(|mapping| !of_kernel(mapping))
            .map(Mapping::pages)
            .collect();
        let regions = || {
            regions
                .iter()
                .filter(|region| region.backing != Backing::Kernel)
        };
        let wanted: PageSet = regions().map(|region| region.pages).collect();
        shape
            .unmap
            .extend_from_slice(now.subtract(&wanted).ranges());

        let heap_end_now = mappings
            .iter()
            .filter(|m| m.name == MappingName::Heap)
            .map(|m| m.end);
        let heap_end = regions()
            .filter(|r| is_heap(r))
            .map(|r| SIZE.span_of(r.pages).1);
        let (heap_end_now, heap_end) = (heap_end_now.max(), heap_end.max());
        if heap_end != heap_end_now {
            shape.heap = Some(Heap {
                end: heap_end.unwrap_or(0),
                end_now: heap_end_now.unwrap_or(0),
            });
        }
        for region in regions() {
            let first = mappings.partition_point(|m| m.pages().end() <= region.pages.start());
            let mut covered = PageSet::new();
            for mapping in &mappings[first..] {
                let Some(common) = mapping.pages().intersection(region.pages) else {
                    break;
                };
                if !same_backing(mapping, region) {
                    continue;
                }
                covered.insert(common);
                let same = (mapping.read, mapping.write, mapping.execute)
                    == (
                        region.protection.read,
                        region.protection.write,
                        region.protection.execute,
                    );
                if !same {
                    shape.protect.push((common, protection(region)));
                }
            }
            for &pages in PageSet::from(region.pages).subtract(&covered).ranges() {
                shape.map.push(missing(region, pages)?);
            }
        }
        Ok(shape)
    }

    /// The pages that are mapped anew: they hold nothing, or what a file has.
    pub fn new_pages(&self) -> PageSet {
        self.map.iter().map(|missing| missing.pages).collect()
    }

    /// Whether the files that have to be mapped again are still those they were.
    pub fn check_files(&self, pid: i32) -> Result<(), RollbackError> {
        for missing in &self.map {
            let Some(file) = &missing.file else {
                continue;
            };
            let path = std::path::Path::new(std::ffi::OsStr::from_bytes(&file.path));
            let inside = path.strip_prefix("/").unwrap_or(path);
            let path = std::path::PathBuf::from(format!("/proc/{pid}/root")).join(inside);
            let found = rustix::fs::stat(&path)
                .ok()
                .filter(|stat| (stat.st_dev, stat.st_ino) == (file.device, file.inode));
            let Some(found) = found else {
                return Err(missing.refusal("the file it maps is no longer there"));
            };
            if u64::try_from(found.st_size).unwrap_or(0) < file.length_bytes {
                return Err(missing.refusal("the file it maps is shorter now"));
            }
        }
        Ok(())
    }

    /// Refuses to change the layout of what is `sealed` (mseal(2)): the kernel would, when half of the rest has been done. The mappings are
    /// those of now.
    pub fn check_sealed(
        &self,
        sealed: &PageSet,
        mappings: &[Mapping],
    ) -> Result<(), RollbackError> {
        let mut changed: PageSet = self.unmap.iter().copied().collect();
        changed.extend(self.map.iter().map(|missing| missing.pages));
        changed.extend(self.protect.iter().map(|(pages, _)| *pages));
        let refused = changed.intersect(sealed);
        let Some(&pages) = refused.ranges().first() else {
            return Ok(());
        };
        let mapping = mappings
            .iter()
            .find(|one| one.pages().intersection(pages).is_some());
        let (start, end) = SIZE.span_of(pages);
        Err(RollbackError::Mapping {
            start,
            end,
            name: mapping.map(layout::display_name).unwrap_or_default(),
            reason: "it is sealed (mseal(2)), and cannot be mapped or protected otherwise any more",
        })
    }

    /// The system calls that it takes, by number.
    pub fn calls(&self) -> impl Iterator<Item = i64> {
        let opens = self.map.iter().any(|missing| missing.file.is_some());
        let needed = [
            (self.heap.is_some(), nix::libc::SYS_brk),
            (!self.map.is_empty(), nix::libc::SYS_mmap),
            (opens, nix::libc::SYS_openat),
            (opens, nix::libc::SYS_close),
            (!self.unmap.is_empty(), nix::libc::SYS_munmap),
            (!self.protect.is_empty(), nix::libc::SYS_mprotect),
        ];
        let needed = needed.into_iter().filter(|(needed, _)| *needed);
        needed.map(|(_, number)| number)
    }

    /// Does it.
    pub fn apply(
        &self,
        pid: i32,
        stopped: &mut StoppedProcess,
        start_brk: u64,
    ) -> Result<(), RollbackError> {
        let nothing = self.unmap.is_empty() && self.map.is_empty() && self.protect.is_empty();
        if nothing && self.heap.is_none() {
            return Ok(());
        }
        let remote = |source| RollbackError::Remote { pid, source };
        let mut calls = stopped.remote_calls().map_err(remote)?;
        let done = self.apply_in(pid, &mut calls, start_brk);
        done.and(calls.finish().map_err(remote))
    }

    fn apply_in(
        &self,
        pid: i32,
        calls: &mut RemoteCalls<'_>,
        start_brk: u64,
    ) -> Result<(), RollbackError> {
        let remote = |source| RollbackError::Remote { pid, source };
        // A heap that shrinks must still be mapped; one that grows needs its old place to be free.
        let heap = self.heap.as_ref();
        if let Some(heap) = heap.filter(|heap| heap.end <= heap.end_now) {
            heap.apply(pid, calls, start_brk)?;
        }
        for &range in &self.unmap {
            let (start, end) = SIZE.span_of(range);
            let arguments = [start, end - start, 0, 0, 0, 0];
            calls
                .call(nix::libc::SYS_munmap, arguments)
                .map_err(remote)?;
        }
        if let Some(heap) = heap.filter(|heap| heap.end > heap.end_now) {
            heap.apply(pid, calls, start_brk)?;
        }
        for missing in &self.map {
            missing.map(pid, calls).map_err(remote)?;
        }
        for &(range, protection) in &self.protect {
            let (start, end) = SIZE.span_of(range);
            let arguments = [start, end - start, u64::from(protection.bits()), 0, 0, 0];
            calls
                .call(nix::libc::SYS_mprotect, arguments)
                .map_err(remote)?;
        }
        Ok(())
    }
}

/// Where the heap ends in the snapshot and now; 0 where there is none.
struct Heap {
    end: u64,
    end_now: u64,
}

impl Heap {
    /// Moves the end of the heap, which tells failure by its result and not by an error.
    fn apply(
        &self,
        pid: i32,
        calls: &mut RemoteCalls<'_>,
        start_brk: u64,
    ) -> Result<(), RollbackError> {
        let end = if self.end == 0 { start_brk } else { self.end };
        let reached = calls.call(nix::libc::SYS_brk, [end, 0, 0, 0, 0, 0]);
        match reached.map_err(|source| RollbackError::Remote { pid, source })? {
            reached if reached == end => Ok(()),
            reached => Err(RollbackError::Mapping {
                start: reached.min(end),
                end: reached.max(end),
                name: "[heap]".to_owned(),
                reason: "the heap cannot be brought back to its size",
            }),
        }
    }
}

fn missing(region: &Region, pages: PageRange) -> Result<Missing, RollbackError> {
    let (region_start, _) = SIZE.span_of(region.pages);
    let (start, _) = SIZE.span_of(pages);
    let has = |name: &str| region.advice.iter().any(|advice| advice == name);
    let mut missing = Missing {
        pages,
        protection: protection(region),
        name: region.name.clone(),
        unreserved: has("noreserve"),
        droppable: has(DROPPABLE),
        file: None,
    };
    if region.sharing == Sharing::Shared {
        return Err(
            missing.refusal("shared memory that is no longer mapped cannot be mapped again")
        );
    }
    if has("hugetlb") {
        return Err(missing.refusal("huge pages that are no longer mapped cannot be mapped again"));
    }
    if let Backing::File {
        path,
        offset_bytes,
        device,
        inode,
        size_bytes,
        ..
    } = &region.backing
    {
        let offset = offset_bytes + (start - region_start);
        missing.file = Some(FileBehind {
            path: path.clone(),
            device: *device,
            inode: *inode,
            offset,
            length_bytes: (*size_bytes).min(offset + SIZE.bytes_of(pages.count())),
        });
    }
    Ok(missing)
}

impl Missing {
    fn refusal(&self, reason: &'static str) -> RollbackError {
        let (start, end) = SIZE.span_of(self.pages);
        RollbackError::Mapping {
            start,
            end,
            name: self.name.clone(),
            reason,
        }
    }

    fn map(&self, pid: i32, calls: &mut RemoteCalls<'_>) -> Result<(), RemoteCallError> {
        let (start, end) = SIZE.span_of(self.pages);
        let protection = u64::from(self.protection.bits());
        let unreserved = if self.unreserved {
            MapFlags::NORESERVE
        } else {
            MapFlags::empty()
        };
        let kind = if self.droppable {
            MapFlags::from_bits_retain(MAP_DROPPABLE)
        } else {
            MapFlags::PRIVATE
        };
        let always = unreserved | MapFlags::FIXED | kind;
        let place = |flags: MapFlags| u64::from((flags | always).bits());
        let Some(behind) = &self.file else {
            let flags = place(MapFlags::from_bits_retain(
                nix::libc::MAP_ANONYMOUS.cast_unsigned(),
            ));
            let arguments = [start, end - start, protection, flags, u64::MAX, 0];
            return calls.call(nix::libc::SYS_mmap, arguments).map(drop);
        };
        let mut path = behind.path.clone();
        path.push(0);
        let at_cwd = i64::from(nix::libc::AT_FDCWD).cast_unsigned();
        // Not waiting for anybody, whatever the path has been made to lead to meanwhile.
        let flags = nix::libc::O_RDONLY | nix::libc::O_CLOEXEC | nix::libc::O_NOFOLLOW;
        let flags = (flags | nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY).cast_unsigned();
        let file = calls.with_bytes(&path, |calls, path| {
            let arguments = [at_cwd, path, u64::from(flags), 0, 0, 0];
            calls.call(nix::libc::SYS_openat, arguments)
        })?;
        let opened = rustix::fs::stat(format!("/proc/{pid}/fd/{file}"));
        let is_the_file =
            opened.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (behind.device, behind.inode));
        if !is_the_file {
            calls.call(nix::libc::SYS_close, [file, 0, 0, 0, 0, 0])?;
            return Err(RemoteCallError::Failed {
                call: SystemCall(nix::libc::SYS_openat),
                errno: rustix::io::Errno::STALE,
            });
        }
        let flags = place(MapFlags::empty());
        let mapped = calls.call(
            nix::libc::SYS_mmap,
            [start, end - start, protection, flags, file, behind.offset],
        );
        let closed = calls.call(nix::libc::SYS_close, [file, 0, 0, 0, 0, 0]);
        mapped.and(closed).map(drop)
    }
}
