//! What a region maps, told by the kind that was recorded and by the name that the kernel gives to it: one place says what
//! is opened by a path and what never is, for what is done and for what is told beforehand.

use crate::mapped_file::device_of_memory;
use crate::names::{DELETED, LITERAL};
use pagetide_snapshot::{Backing, Region};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What a region maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nature<'a> {
    /// Nothing, or what the kernel maps into every process.
    Nothing,
    /// Shared memory without a name.
    SharedAnonymous,
    /// A file of memory, by its name.
    Memfd(&'a [u8]),
    /// Anonymous memory of huge pages.
    HugePages,
    /// A System V segment.
    Segment,
    /// A file that was deleted while it was mapped, by the path that it had.
    Deleted(&'a Path),
    /// A file.
    Named(&'a Path),
    /// Something that has no path, and is not known.
    Unknown,
}

impl<'a> Nature<'a> {
    pub fn of(region: &'a Region) -> Self {
        let (path, is_memory) = match &region.backing {
            Backing::Anonymous | Backing::Kernel => return Nature::Nothing,
            Backing::File { path, .. } => (&path[..], false),
            Backing::SharedMemory { path, device, .. } => {
                if is_segment(path) && Some(*device) == device_of_memory() {
                    return Nature::Segment;
                }
                (&path[..], true)
            }
        };
        if is_memory && region.name.starts_with("[anon_shmem:") {
            return Nature::SharedAnonymous;
        }
        if path.first() != Some(&b'/') {
            return Nature::Unknown;
        }
        if region.advice.iter().any(|told| told == LITERAL) {
            return Nature::Named(Path::new(OsStr::from_bytes(path)));
        }
        // Only what has no name can be called so: whatever else begins like this is a file, and is opened as one.
        let Some(gone) = path.strip_suffix(DELETED) else {
            return Nature::Named(Path::new(OsStr::from_bytes(path)));
        };
        if let Some(name) = gone.strip_prefix(b"/memfd:") {
            Nature::Memfd(name)
        } else if gone.starts_with(b"/anon_hugepage") {
            Nature::HugePages
        } else if is_memory && gone == b"/dev/zero" {
            Nature::SharedAnonymous
        } else {
            Nature::Deleted(Path::new(OsStr::from_bytes(gone)))
        }
    }

    /// The path that is opened, or at which a file is made.
    pub fn path(self) -> Option<&'a Path> {
        match self {
            Nature::Deleted(path) | Nature::Named(path) => Some(path),
            _ => None,
        }
    }
}

/// The name of a System V segment: its key in hexadecimal digits. A file may be called so, too.
fn is_segment(path: &[u8]) -> bool {
    let key = path.strip_prefix(b"/SYSV");
    key.is_some_and(|key| key.len() == 8 && key.iter().all(u8::is_ascii_hexdigit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagetide_pages::{PageIndex, PageRange};

    #[test]
    fn a_name_that_begins_like_that_of_memory_is_a_path_unless_it_is_memory() {
        let of_device = |path: &str, is_memory: bool, device: u64| {
            let path = path.as_bytes().to_vec();
            let mut region = Region::anonymous(PageRange::new(PageIndex(1), PageIndex(2)));
            region.backing = if is_memory {
                Backing::SharedMemory {
                    path,
                    offset_bytes: 0,
                    device,
                    inode: 1,
                }
            } else {
                Backing::File {
                    path,
                    offset_bytes: 0,
                    device: 1,
                    inode: 1,
                    size_bytes: 0,
                    modified_ns: 0,
                    build_id: Vec::new(),
                }
            };
            match Nature::of(&region) {
                Nature::Memfd(name) => format!("memory {}", String::from_utf8_lossy(name)),
                nature => nature.path().map_or(format!("{nature:?}"), |path| {
                    format!("path {}", path.display())
                }),
            }
        };
        let memory = device_of_memory().expect("memory");
        assert_eq!(of_device("/SYSV00000000", true, memory), "Segment");
        let of = |path: &str, is_memory| of_device(path, is_memory, memory + 1);
        for path in [
            "/memfd:x",
            "/SYSV00000000",
            "/dev/zero",
            "/dev/zeroes",
            "/anon_hugepage",
        ] {
            assert_eq!(of(path, true), format!("path {path}"));
            assert_eq!(of(path, false), format!("path {path}"));
        }
        assert_eq!(of("/memfd:x (deleted)", true), "memory x");
        assert_eq!(of("/memfd:x (deleted)", false), "memory x");
        assert_eq!(of("/SYSV00000000 (deleted)", true), "path /SYSV00000000");
        assert_eq!(
            of_device("/SYSV0000000x", true, memory),
            "path /SYSV0000000x"
        );
        assert_eq!(of("/dev/zero (deleted)", true), "SharedAnonymous");
        assert_eq!(of("/dev/zeroes (deleted)", true), "path /dev/zeroes");
        for path in ["[heap]", "etc/passwd", "../x", ""] {
            assert_eq!(of(path, false), "Unknown");
        }
    }
}
