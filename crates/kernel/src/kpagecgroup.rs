//! `/proc/kpagecgroup`: the memory cgroup that a page frame is charged to, and the path of that cgroup.
//!
//! Since Linux 4.3, with CONFIG_MEMCG. For root alone. The table holds the inode number of the cgroup's
//! directory; 0 for a frame that is charged to none. A page of a cgroup that was removed shows the nearest
//! one above that is still there. Source: `Documentation/admin-guide/mm/pagemap.rst`, cgroups(7).

use crate::cgroups::CgroupMount;
use crate::frame_file::FrameFile;
pub use crate::frame_file::{OpenFramesError, ReadFramesError};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The open table.
#[derive(Debug)]
pub struct KPageCgroup(FrameFile);

impl KPageCgroup {
    /// Opens `/proc/kpagecgroup`.
    pub fn open() -> Result<Self, OpenFramesError> {
        FrameFile::open("/proc/kpagecgroup").map(KPageCgroup)
    }

    /// The inode number of the memory cgroup of each frame, in the order given; 0 for none.
    pub fn of(&self, frames: &[u64]) -> Result<Vec<u64>, ReadFramesError> {
        self.0.entries(frames, 0)
    }
}

/// The paths of the memory cgroups that can be seen from here, by the inode number of their directory.
///
/// A path is that of cgroups(7), below the mount of the hierarchy: `/system.slice/redis.service`.
#[derive(Clone, Debug, Default)]
pub struct CgroupPaths(HashMap<u64, PathBuf>);

impl CgroupPaths {
    /// Walks the hierarchy that controls memory: version 1 if it is mounted with that controller,
    /// otherwise version 2. Directories that vanish meanwhile are left out. Nothing is found where no such
    /// hierarchy is mounted.
    pub fn of_this_machine() -> io::Result<Self> {
        let Some((mount_point, root)) = memory_hierarchy(CgroupMount::all()?) else {
            return Ok(Self::default());
        };
        let mut paths = HashMap::new();
        let mut left = vec![(mount_point, root)];
        while let Some((directory, path)) = left.pop() {
            if let Ok(metadata) = fs::metadata(&directory) {
                paths.insert(metadata.ino(), path.clone());
            }
            let Ok(entries) = fs::read_dir(&directory) else {
                continue;
            };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    left.push((entry.path(), path.join(entry.file_name())));
                }
            }
        }
        Ok(Self(paths))
    }

    /// The path of a cgroup; `None` if it cannot be seen from here.
    pub fn path(&self, inode: u64) -> Option<&Path> {
        self.0.get(&inode).map(PathBuf::as_path)
    }
}

/// Where the hierarchy that controls memory is mounted, and which cgroup is its root there.
pub(crate) fn memory_hierarchy(mounts: Vec<CgroupMount>) -> Option<(PathBuf, PathBuf)> {
    let of_memory = mounts.iter().find(|mount| mount.controls("memory"));
    let chosen = of_memory.or_else(|| mounts.iter().find(|mount| mount.is_unified))?;
    Some((chosen.point.clone(), chosen.root.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroups;

    fn found(mountinfo: &str) -> Option<(String, String)> {
        let (point, root) = memory_hierarchy(cgroups::parse(mountinfo.as_bytes()))?;
        Some((point.display().to_string(), root.display().to_string()))
    }

    #[test]
    fn version_1_with_memory_goes_before_version_2() {
        let hybrid = "\
            34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            35 31 0:32 /inner /sys/fs/cgroup/my\\040memory rw shared:9 - cgroup cgroup rw,memory\n";
        let expected = ("/sys/fs/cgroup/my memory".into(), "/inner".into());
        assert_eq!(found(hybrid), Some(expected));
    }

    #[test]
    fn version_2_alone_is_found_and_none_is_none() {
        let unified = "25 18 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let expected = ("/sys/fs/cgroup".into(), "/".into());
        assert_eq!(found(unified), Some(expected));
        assert_eq!(found("25 18 0:22 / /proc rw - proc proc rw\n"), None);
    }
}
