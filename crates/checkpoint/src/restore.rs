//! A process, or a tree of processes, started again from a snapshot: after it was killed, or after a reboot.
//!
//! Everything that can be known to fail is found before any process exists: what the snapshot says cannot be brought
//! back, files that are no longer what they were, a vdso of another kernel. Then the processes are made, all of them
//! waiting, and built by system calls that they make themselves (see `pagetide_process::NewProcess`). They belong to this
//! process until the end: a failure halfway, or the end of this process, ends them.
//!
//! A restored process can be checkpointed as a delta to the snapshot it came from: its tracking begins before its first
//! instruction.

mod birth;
mod build;
mod clocks;
mod design;
mod error;
mod fill;
mod inherit;
mod journal;
mod lazy;
mod limits;
mod made;
mod mappings;
mod materials;
mod nature;
mod object;
mod objects;
mod options;
mod paths;
mod plan;
mod poison;
mod policy;
mod release;
mod segments;
mod sources;
mod stops;
mod undo;

use crate::manifest::tree_of;
use birth::Newborns;
use build::{Building, Built};
use design::Design;
pub use error::{FillError, LazyError, RestoreError};
use inherit::Inheritance;
use lazy::Lazy;
pub use lazy::{FilledReport, Filling};
pub use limits::check as check_limits;
use materials::Materials;
pub use options::{ClockChoice, RestoreOptions, Restored};
use pagetide_snapshot::{Store, View};
pub use paths::paths_of;
use release::Release;
use sources::Sources;
pub use sources::make_room_for_descriptors;
use std::collections::HashMap;
use std::time::Instant;

/// Starts the process or the processes of `view`, a snapshot in `store`, again. They are children of this process,
/// which may leave them alone by ending once this has returned.
///
/// Everything is built by one thread, the calling one or one that ends before this returns. No other thread of this process may open
/// files meanwhile without O_CLOEXEC, nor wait for children that it does not name.
pub fn restore(
    store: &Store,
    view: &View,
    options: &RestoreOptions,
) -> Result<Restored, RestoreError> {
    match clocks::needed(view, options.clock)? {
        None => build(store, view, options),
        Some(clocks) => clocks::with(clocks, || build(store, view, options)),
    }
}

/// The same, by a thread whose children have the right clocks.
fn build(store: &Store, view: &View, options: &RestoreOptions) -> Result<Restored, RestoreError> {
    let started = Instant::now();
    // 1. Everything is checked and opened while there is no process yet.
    let design = Design::of(view, options)?;
    let (materials, mut undo) = Materials::open(view, &design, options)?;
    let mut notes = std::mem::take(&mut undo.reopened.notes);

    // 2. The processes are born, each by its parent. They wait.
    let (born, inheritance) = bear(view, &design, &materials.sources, options)?;
    undo.born = born;
    notes.extend(undo.born.notes());
    notes.extend(undo.born.enter_control_groups(&design.plans));

    // 3. Each is emptied, mapped and filled, and given its descriptors.
    let lazy = options.lazy.then(|| Lazy::new(store, view)).transpose()?;
    let mut building = Building::new(store, view, &design, options);
    building.lazy = lazy.as_ref();
    let parts = build::Parts {
        materials: &materials,
        inheritance: &inheritance,
        reopened: &undo.reopened,
        born: &undo.born,
    };
    let mut processes = building.fill_all(&parts)?;

    // 4. Tracking begins, and each gets what the kernel keeps of it, and its threads.
    let states = building.make_all_ready(&parts, &mut processes)?;
    let Built {
        restored_pages,
        not_tracked,
        notes: of_building,
    } = building.built;
    notes.extend(of_building);

    // 5. Then what others may notice, and they are let go.
    undo.made.put_back()?;
    design.files.connect(&undo.reopened)?;
    let release = Release {
        plans: &design.plans,
        born: &undo.born,
        processes,
        states,
        parents: parents_in(view),
    };
    let let_go = release.let_go(lazy, options.stopped, options.stop, started);
    let (first_instruction, filling) = let_go?;
    let pids = design.plans.iter().map(|plan| undo.born.now(plan.pid));
    let pids: Vec<i32> = pids.collect();
    undo.keep();
    Ok(Restored {
        pid: pids[0],
        pids,
        restored_pages,
        first_instruction,
        not_tracked,
        notes,
        filling,
    })
}

/// Who was whose parent.
fn parents_in(view: &View) -> HashMap<i32, i32> {
    let tree = tree_of(view).unwrap_or_default();
    let parents = tree.iter().map(|process| (process.pid, process.parent));
    parents.collect()
}

/// Makes the processes, and what of their memory they inherit.
fn bear(
    view: &View,
    design: &Design<'_>,
    sources: &Sources,
    options: &RestoreOptions,
) -> Result<(Newborns, Inheritance), RestoreError> {
    // Memory that comes later cannot be inherited.
    let (inheritance, inherited) = if options.lazy || design.plans.len() < 2 {
        Default::default()
    } else {
        Inheritance::prepare(view, &design.plans, sources)?
    };
    crate::apart::leave_numbers(&design.numbers);
    let born = Newborns::bear(view, &design.plans, options.new_pid)?;
    drop(inherited);
    Ok((born, inheritance))
}
