//! The first step of a restore, before anything is opened: what the snapshot says is read and checked, and what it asks for is
//! compared with what this system and whoever restores allow.

use super::birth::claim_numbers;
use super::error::RestoreError;
use super::options::RestoreOptions;
use super::plan::RestorePlan;
use super::{limits, paths};
use crate::blockers::{blockers_of, stays};
use crate::manifest::members_of;
use pagetide_process::{
    Blocker, OPEN_FILES_ATTACHMENT, OpenFiles, Openers, RebuildError, kernel_mappings_of,
};
use pagetide_snapshot::View;

/// What is to be made, as far as it is known before anything is made.
pub(super) struct Design<'a> {
    /// The processes, the first one first.
    pub plans: Vec<RestorePlan<'a>>,
    /// What they have open.
    pub files: OpenFiles,
    /// The pids and thread ids that they get again; none if they are to be new.
    pub numbers: Vec<i32>,
    /// As whom the files of each are opened.
    pub openers: Openers,
}

impl<'a> Design<'a> {
    /// Of a snapshot. Refuses what cannot be brought back and was not accepted, and what is not allowed or not possible here.
    pub fn of(view: &'a View, options: &RestoreOptions) -> Result<Self, RestoreError> {
        check_blockers(view, options)?;
        let members = members_of(view);
        let plans = members
            .iter()
            .map(|(_, names)| RestorePlan::of(view, names));
        let plans = plans.collect::<Result<Vec<_>, _>>()?;
        let files = match view.attachment(OPEN_FILES_ATTACHMENT) {
            Some(bytes) => OpenFiles::from_bytes(bytes)?,
            None => return Err(RestoreError::MemoryOnly { id: view.id() }),
        };
        paths::check_allowed(&paths::paths(&plans, &files), &options.allow)?;
        let numbers = claim_numbers(view, &plans, options.new_pid)?;
        limits::check(view)?;
        let mut openers = Openers::new(&options.allow);
        for plan in &plans {
            if let Some(first) = plan.kernel.threads.first() {
                openers.add(plan.pid, &first.credentials);
            }
        }
        let own = kernel_mappings_of(std::process::id().cast_signed());
        let own = own.map_err(RebuildError::from)?;
        for plan in &plans {
            plan.check_vdso(view, &own)?;
        }
        Ok(Design {
            plans,
            files,
            numbers,
            openers,
        })
    }
}

/// Refuses what cannot be brought back and was not accepted.
fn check_blockers(view: &View, options: &RestoreOptions) -> Result<(), RestoreError> {
    let id = view.id();
    if members_of(view).is_empty() {
        return Err(RestoreError::NotAProcess { id });
    }
    let blockers = blockers_of(view).ok_or(RestoreError::MemoryOnly { id })?;
    let stays =
        |blocker: &Blocker| stays(blocker, &options.accept) && !options.tcp.settles(blocker);
    let blockers: Vec<Blocker> = blockers.into_iter().filter(stays).collect();
    if blockers.is_empty() {
        Ok(())
    } else {
        Err(RestoreError::Blocked { id, blockers })
    }
}
