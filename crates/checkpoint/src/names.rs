//! The name that a mapped file has now, where the kernel says that it has none: `/proc/PID/maps` puts " (deleted)" behind the name by
//! which a file was opened once that name is gone. The file may have another one, or be called so.
//!
//! Who stores into a shared mapping of such a file changes the file; a copy without a name would take that in and lose it.

use crate::files::{Files, key};
use crate::layout;
use crate::mapped_file::device_of_memory;
use pagetide_kernel::maps::{Mapping, MappingName};
use pagetide_process::{Blocker, BlockerKind};
use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What the kernel adds to a name that is gone.
pub(crate) const DELETED: &[u8] = b" (deleted)";
/// The attribute of a region whose file is really called so.
pub(crate) const LITERAL: &str = "literal-name";

/// What is known of the name of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// As the mapping tells it: there, or gone for good.
    AsTold,
    /// It really ends in " (deleted)".
    Literal,
    /// It has this one now.
    Other(PathBuf),
    /// It has others, so many, which were not found.
    Lost(u64),
}

/// The name of the file behind a mapping of process `pid`. `files` were looked at before.
pub(crate) fn name_of(pid: i32, mapping: &Mapping, files: &Files) -> Name {
    let MappingName::Path(path) = &mapping.name else {
        return Name::AsTold;
    };
    let Some(gone) = path.as_os_str().as_bytes().strip_suffix(DELETED) else {
        return Name::AsTold;
    };
    let has_file_system = device_of_memory() != Some(layout::device_number(mapping));
    let open = files.open(key(mapping)).filter(|_| has_file_system);
    let Some(stat) = open.and_then(|file| rustix::fs::fstat(file).ok()) else {
        return Name::AsTold;
    };
    if stat.st_nlink == 0 {
        return Name::AsTold;
    }
    let is_it = |found: &Metadata| (found.dev(), found.ino()) == (stat.st_dev, stat.st_ino);
    if std::fs::symlink_metadata(seen_by(pid, path)).is_ok_and(|found| is_it(&found)) {
        return Name::Literal;
    }
    if !mapping.shared {
        return Name::AsTold;
    }
    let directory = Path::new(OsStr::from_bytes(gone)).parent();
    let directory = directory.unwrap_or(Path::new("/"));
    let entries = std::fs::read_dir(seen_by(pid, directory));
    let mut entries = entries.into_iter().flatten().flatten();
    let found = entries.find(|entry| {
        entry.ino() == stat.st_ino && entry.metadata().is_ok_and(|found| is_it(&found))
    });
    match found {
        Some(entry) => Name::Other(directory.join(entry.file_name())),
        None => Name::Lost(stat.st_nlink),
    }
}

/// A path as the process sees it; as we do, if it is gone.
fn seen_by(pid: i32, path: &Path) -> PathBuf {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    if root.exists() {
        root.join(path.strip_prefix("/").unwrap_or(path))
    } else {
        path.to_owned()
    }
}

/// Names the shared mappings of files that have a name which was not found.
pub(crate) fn blockers(pid: i32, mappings: &[Mapping], files: &Files) -> Vec<Blocker> {
    let shared = mappings.iter().filter(|mapping| mapping.shared);
    let blocker = |mapping: &Mapping| {
        let Name::Lost(links) = name_of(pid, mapping, files) else {
            return None;
        };
        Some(Blocker {
            pid,
            kind: BlockerKind::Path,
            place: format!("mapping:{:x}", mapping.start),
            what: format!(
                "{:#x}-{:#x} {} is a file that has another name now ({links} in all), which is not in the same directory",
                mapping.start, mapping.end, mapping.name
            ),
            advice:
                "let the program map it by the name that it has, or unmap it before the checkpoint"
                    .to_owned(),
            instead: Some("it has a copy of the file, which nobody else sees".to_owned()),
        })
    };
    shared.filter_map(blocker).collect()
}
