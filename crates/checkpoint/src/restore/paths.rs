//! The paths that a restore opens, makes or connects to: all that a store can name outside of itself.

use super::RestoreError;
use super::plan::Plan;
use crate::tree::members_of;
use pagetide_process::{Kind, OPEN_FILES_ATTACHMENT, OpenFiles};
use pagetide_snapshot::{Backing, Region, View};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// The paths that a restore of `view` would open, make, or connect to, each once, in their order.
pub fn paths_of(view: &View) -> Result<Vec<PathBuf>, RestoreError> {
    let members = members_of(view);
    let plans = members.iter().map(|(_, names)| Plan::of(view, names));
    let plans = plans.collect::<Result<Vec<_>, _>>()?;
    let files = match view.attachment(OPEN_FILES_ATTACHMENT) {
        Some(bytes) => OpenFiles::from_bytes(bytes)?,
        None => return Err(RestoreError::MemoryOnly { id: view.id() }),
    };
    Ok(paths(&plans, &files).into_iter().collect())
}

pub(super) fn paths(plans: &[Plan<'_>], files: &OpenFiles) -> BTreeSet<PathBuf> {
    let regions = plans.iter().flat_map(|plan| plan.regions);
    let mut paths: BTreeSet<PathBuf> = regions.filter_map(path_of).collect();
    paths.extend(plans.iter().map(|plan| plan.state.outside.exe.clone()));
    paths.extend(files.paths().map(|path| path.as_path().to_owned()));
    for description in &files.descriptions {
        if let Kind::Socket(socket) = &description.kind {
            paths.extend(socket.paths());
        }
    }
    paths
}

/// The path of what a region maps; none for memory without a name.
fn path_of(region: &Region) -> Option<PathBuf> {
    let (Backing::File { path, .. } | Backing::SharedMemory { path, .. }) = &region.backing else {
        return None;
    };
    let nameless = [
        &b"/memfd:"[..],
        b"/dev/zero",
        b"/SYSV",
        b"/anon_hugepage",
        b"[",
    ];
    if nameless.iter().any(|prefix| path.starts_with(prefix)) {
        return None;
    }
    let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
    Some(PathBuf::from(OsStr::from_bytes(path)))
}

/// True if `path` lies in one of the directories that the user allows, by its words alone.
fn is_allowed(path: &Path, allowed: &[PathBuf]) -> bool {
    let plain = path.components().all(|part| part != Component::ParentDir);
    plain && allowed.iter().any(|directory| path.starts_with(directory))
}

/// Refuses a path outside the directories that the user allows; without any, all are allowed.
pub(super) fn check_allowed(
    paths: &BTreeSet<PathBuf>,
    allowed: &[PathBuf],
) -> Result<(), RestoreError> {
    let outside = paths.iter().find(|path| !is_allowed(path, allowed));
    match outside.filter(|_| !allowed.is_empty()) {
        Some(path) => Err(RestoreError::NotAllowed { path: path.clone() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_allowed_is_refused_by_name() {
        let paths = |all: &[&str]| all.iter().map(PathBuf::from).collect::<BTreeSet<_>>();
        let allowed = ["/usr", "/srv/data"].map(PathBuf::from);
        let inside = paths(&["/usr/lib/libc.so.6", "/srv/data", "/srv/data/a"]);
        assert!(check_allowed(&inside, &allowed).is_ok());
        assert!(
            check_allowed(&paths(&["/etc/shadow"]), &[]).is_ok(),
            "all are"
        );
        for path in [
            "/etc/shadow",
            "/srv/database",
            "/usr/../etc/shadow",
            "usr/lib",
        ] {
            match check_allowed(&paths(&[path]), &allowed) {
                Err(RestoreError::NotAllowed { path: found }) => assert_eq!(found, Path::new(path)),
                other => panic!("{other:?}"),
            }
        }
    }
}
