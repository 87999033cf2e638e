//! The paths that a restore opens, makes or connects to: all that a store can name outside of itself.

use super::error::RestoreError;
use super::nature::Nature;
use super::plan::RestorePlan;
use crate::manifest::members_of;
use pagetide_process::{Kind, OPEN_FILES_ATTACHMENT, OpenFiles, Openers, is_allowed};
use pagetide_snapshot::View;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// The paths that a restore of `view` would open, make, or connect to, each once, in their order; where one leads to another
/// now, also that.
pub fn paths_of(view: &View) -> Result<Vec<PathBuf>, RestoreError> {
    let members = members_of(view);
    let plans = members
        .iter()
        .map(|(_, names)| RestorePlan::of(view, names));
    let plans = plans.collect::<Result<Vec<_>, _>>()?;
    let files = match view.attachment(OPEN_FILES_ATTACHMENT) {
        Some(bytes) => OpenFiles::from_bytes(bytes)?,
        None => return Err(RestoreError::MemoryOnly { id: view.id() }),
    };
    let mut all = paths(&plans, &files);
    let opener = Openers::default().of(0).clone();
    let resolved: Vec<PathBuf> = all
        .iter()
        .filter_map(|path| opener.find(path, None).ok()?.resolved().ok())
        .collect();
    all.extend(resolved);
    Ok(all.into_iter().collect())
}

pub(super) fn paths(plans: &[RestorePlan<'_>], files: &OpenFiles) -> BTreeSet<PathBuf> {
    let regions = plans.iter().flat_map(|plan| plan.regions);
    let mut paths: BTreeSet<PathBuf> = regions
        .filter_map(|region| Some(Nature::of(region).path()?.to_owned()))
        .collect();
    paths.extend(plans.iter().map(|plan| plan.program().0.to_owned()));
    paths.extend(files.paths().map(|path| path.as_path().to_owned()));
    for description in &files.descriptions {
        if let Kind::Socket(socket) = &description.kind {
            paths.extend(socket.paths());
        }
    }
    paths
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
    use std::path::Path;

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
