//! Mappings that a restore could not make again.

use crate::layout;
use crate::mapped_file::device_of_memory;
use pagetide_kernel::maps::{Mapping, MappingName};
use pagetide_process::{Blocker, BlockerKind};
use std::os::unix::ffi::OsStrExt;

/// What of these mappings of process `pid` could not be made again.
pub(crate) fn mapping_blockers(pid: i32, mappings: &[Mapping]) -> Vec<Blocker> {
    let blocker = |mapping: &Mapping| {
        let (kind, what, advice) = told(mapping)?;
        Some(Blocker {
            pid,
            kind,
            place: format!("mapping:{:x}", mapping.start),
            what: format!(
                "{:#x}-{:#x} {} {what}",
                mapping.start, mapping.end, mapping.name
            ),
            advice: advice.to_owned(),
            instead: None,
        })
    };
    mappings.iter().filter_map(blocker).collect()
}

/// The kind of queues of asynchronous I/O, which are mapped.
pub(crate) const AIO: BlockerKind = BlockerKind::Aio;

/// Kind, what it is, and what to do.
fn told(mapping: &Mapping) -> Option<(BlockerKind, &'static str, &'static str)> {
    match &mapping.name {
        MappingName::Vdso | MappingName::KernelData(_) => None,
        MappingName::SystemV(_) => {
            let device = layout::device_number(mapping);
            let is_huge = device_of_memory().is_some_and(|memory| memory != device);
            is_huge.then_some((
                BlockerKind::HugeShared,
                "is a System V segment of huge pages",
                "let the program use ordinary pages, or a file of hugetlbfs",
            ))
        }
        MappingName::Path(path) => {
            let path = path.as_os_str().as_bytes();
            if mapping.shared && path.starts_with(b"/anon_hugepage") {
                return Some((
                    BlockerKind::HugeShared,
                    "is shared memory of huge pages",
                    "let the program use ordinary pages, or a file of hugetlbfs",
                ));
            }
            if path.starts_with(b"/[aio]") {
                return Some((
                    AIO,
                    "is a queue of asynchronous I/O (io_setup(2))",
                    "let the program destroy its queues before the checkpoint, or use threads for I/O",
                ));
            }
            let is_device = layout::is_device_like(mapping);
            is_device.then_some((
                BlockerKind::DeviceMapping,
                "is memory of a device or of the kernel",
                "let the program unmap it before the checkpoint",
            ))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(name: MappingName, shared: bool) -> Mapping {
        Mapping {
            start: 0x1000,
            end: 0x3000,
            read: true,
            write: true,
            execute: false,
            shared,
            offset_bytes: 0,
            device: (0, 5),
            inode: 7,
            name,
        }
    }

    #[test]
    fn a_segment_of_ordinary_pages_is_not_named() {
        let memory = device_of_memory().expect("memory");
        let mut ordinary = mapping(MappingName::SystemV(5), true);
        ordinary.device = (rustix::fs::major(memory), rustix::fs::minor(memory));
        assert!(mapping_blockers(9, &[ordinary]).is_empty());
    }

    #[test]
    fn memory_that_is_not_the_programs_own_is_named_and_the_rest_is_not() {
        let path = |path: &str| MappingName::Path(path.into());
        for (name, shared, kind) in [
            (path("/dev/dri/card0"), true, Some("device-mapping")),
            (path("anon_inode:[io_uring]"), true, Some("device-mapping")),
            (path("/secretmem (deleted)"), true, Some("device-mapping")),
            (path("/[aio] (deleted)"), true, Some("aio")),
            (path("/anon_hugepage (deleted)"), true, Some("huge-shared")),
            (MappingName::KernelData("uprobes"), false, None),
            (MappingName::KernelData("uprobes-trampoline"), false, None),
            (path("/anon_hugepage (deleted)"), false, None),
            (MappingName::SystemV(5), true, Some("huge-shared")),
            (path("/dev/zero (deleted)"), true, None),
            (path("/dev/shm/pool"), true, None),
            (path("/usr/lib/libm.so.6"), false, None),
            (MappingName::Vdso, false, None),
            (MappingName::Heap, false, None),
            (MappingName::Other("anon:arena".into()), false, None),
        ] {
            let found = mapping_blockers(9, &[mapping(name.clone(), shared)]);
            let kinds: Vec<&str> = found.iter().map(|found| found.kind.name()).collect();
            assert_eq!(kinds, kind.into_iter().collect::<Vec<_>>(), "{name}");
            if let Some(found) = found.first() {
                assert_eq!((found.pid, &*found.place), (9, "mapping:1000"));
            }
        }
    }
}
