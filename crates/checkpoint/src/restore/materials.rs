//! The first step of a restore goes on: everything that the new processes will have is opened, or made, while there is no
//! process yet. They inherit it.

use super::design::Design;
use super::error::RestoreError;
use super::made::NewObjects;
use super::objects;
use super::options::RestoreOptions;
use super::sources::{OUT_OF_THE_WAY, Sources};
use super::undo::UndoLog;
use pagetide_process::ReopenChoices;
use pagetide_snapshot::View;
use std::os::fd::OwnedFd;

/// What was opened, but for what the undo log has.
pub(super) struct Materials {
    /// What mappings show.
    pub sources: Sources,
    /// The program that each process runs, in the order of the plans.
    pub programs: Vec<OwnedFd>,
}

impl Materials {
    /// Opens and makes all of it. Shared memory that is there already is not written yet.
    pub fn open<'a>(
        view: &'a View,
        design: &'a Design<'a>,
        options: &RestoreOptions,
    ) -> Result<(Self, UndoLog<'a>), RestoreError> {
        let openers = &design.openers;
        let mut sources = Sources::new(OUT_OF_THE_WAY);
        let mut programs = Vec::with_capacity(design.plans.len());
        for plan in &design.plans {
            let opener = openers.of(plan.pid);
            sources.open_all(plan.regions, opener)?;
            programs.push(sources.program(plan, opener)?);
        }
        let regions = design.plans.iter().flat_map(|plan| {
            let opener = openers.of(plan.pid);
            plan.regions.iter().map(move |region| (region, opener))
        });
        let mut made = NewObjects::default();
        objects::make_all(view, regions, &mut sources, &mut made, &options.accept)?;
        let choices = ReopenChoices {
            accepted: options.accept.clone(),
            at_least: OUT_OF_THE_WAY,
            objects: sources.objects()?,
            tcp: options.tcp,
            openers: openers.clone(),
            without_streams: options.without_streams,
        };
        let reopened = design.files.reopen(&choices)?;
        Ok((Self { sources, programs }, UndoLog::new(made, reopened)))
    }
}
