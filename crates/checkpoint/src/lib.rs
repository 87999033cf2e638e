//! Incremental checkpoints of live memory: the embedding API of pagetide.
//!
//! Two things can be checkpointed into a [`store::Store`]: a process that knows nothing of us
//! ([`Checkpointer`], [`roll_back`], [`write_region`], [`write_core`]), and memory of the calling process
//! ([`OwnMemory`]). Either way the first snapshot is full and later ones hold what was written since. What
//! this crate is not: it formats nothing for people, keeps no schedule, and catches no signals.
//!
//! It is the only crate of pagetide that a program has to name: [`store`] has the chain of snapshots, [`pages`] the words for
//! pages, [`process`] what is said of a live process.
//!
//! A process, twice; nothing of ours has to run in between:
//!
//! ```no_run
//! use pagetide::store::Store;
//! use pagetide::{Checkpointer, Options, Request};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = Store::open_or_create_directory("/var/ckpt")?;
//! let mut checkpointer = Checkpointer::attach(4711, store, Options::default())?;
//! let full = checkpointer.take(Request::default())?;
//! let delta = checkpointer.take(Request::default())?;
//! println!("{} pages written, stopped for {:?}", delta.written_pages, delta.stop);
//! assert_eq!(delta.parent, Some(full.id));
//! # Ok(())
//! # }
//! ```
//!
//! Memory of one's own, with the writers paused only while it is scanned and copied:
//!
//! ```
//! use pagetide::pages::PageIndex;
//! use pagetide::store::Store;
//! use pagetide::{OwnMemory, OwnMemoryOptions, OwnRegion, Placement};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("store");
//! let mut arena = vec![0u8; 1 << 20];
//! let skip = arena.as_ptr().align_offset(4096);
//! // SAFETY: the arena lives as long as `memory`, and nothing of it is borrowed while it is put back.
//! let region = unsafe { OwnRegion::new(arena.as_mut_ptr().add(skip), 64 * 4096) };
//! let place = Placement::new(region, PageIndex(0));
//! let store = Store::create_directory(path)?;
//! let mut memory = OwnMemory::new(store, &[place], OwnMemoryOptions::default())?;
//! memory.capture()?.commit()?;
//!
//! arena[skip + 5 * 4096] = 1;
//! let captured = memory.capture()?; // the writers wait for this
//! let snapshot = captured.commit()?; // and not for this
//! assert_eq!(snapshot.written_pages.0, 1);
//! # Ok(())
//! # }
//! ```

/// The code of the page about embedding compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/EMBEDDING.md")]
pub struct Embedding;

mod address_space;
mod advice;
mod apart;
mod arena;
mod backends;
mod blockers;
mod capture;
mod checkpointer;
mod claim;
mod compared;
mod error;
mod export;
mod family;
mod file_pages;
mod files;
mod growth;
mod harvests;
mod inspect;
mod layout;
mod left_behind;
mod manifest;
mod mapped_file;
mod mapping_blockers;
mod mark;
mod member;
mod members;
mod memo;
mod names;
mod not_captured;
mod numa;
mod object_records;
mod objects;
mod options;
mod own_memory;
mod page_table_limit;
mod page_tables;
mod parent;
mod plan;
mod poison;
mod probes;
mod report;
mod restore;
mod rings;
mod rollback;
mod shadowing;
mod spaces;
mod sparse;
mod take;
mod tracking;
mod watchers;
mod why_full;
mod writers;

pub use apart::{decompress_apart, rest_decompressing};
pub use backends::backends;
pub use blockers::blockers_of;
pub use capture::CaptureError;
pub use checkpointer::Checkpointer;
pub use claim::checkpointed_by;
pub use compared::ComparedBecause;
pub use error::{AttachError, InspectError, TakeError, TrackingError};
pub use export::{CoreError, CoreExtent, ExportError, write_core, write_region};
pub use file_pages::FilePagesError;
pub use inspect::{Inspection, inspect};
pub use manifest::{
    MEMORY_SPACE, MemberNames, PROCESS_ATTACHMENT, TREE_ATTACHMENT, TreeProcess, members_of,
    tree_of,
};
pub use not_captured::NotCapturedBecause;
pub use numa::{NumaRegion, numa_of};
pub use options::{Leave, Mode, Options, Progress, Request, Residence};
pub use own_memory::{
    Baseline, Captured, OwnHarvest, OwnMemory, OwnMemoryError, OwnMemoryOptions, OwnSnapshot,
    OwnTracker, OwnTrackerOptions, Placement, Population, Ticket, WrittenPages,
};
pub use pagetide_kernel::own_region::OwnRegion;
#[doc(inline)]
pub use pagetide_pages as pages;
#[doc(inline)]
pub use pagetide_process as process;
#[doc(inline)]
pub use pagetide_snapshot as store;
pub use poison::{Poisoned, poisoned_of};
pub use report::{NotCaptured, NotTracked, Report};
pub use restore::{
    ClockChoice, FillError, FilledReport, Filling, LazyError, RestoreError, RestoreOptions,
    Restored, check_limits, make_room_for_descriptors, paths_of, restore,
};
pub use rollback::{RollbackError, RolledBack, roll_back};
pub use tracking::{Detached, detach, is_tracked_for};
pub use why_full::WhyFull;
