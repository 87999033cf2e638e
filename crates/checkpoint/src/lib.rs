//! Incremental checkpoints of live memory: the embedding API of pagetide.

mod arena;
mod capture;
mod checkpointer;
mod export;
mod files;
mod layout;
mod mark;
mod memo;
mod options;
mod own_memory;
mod report;
mod rings;
mod rollback;
mod take;
mod tracking;
mod window;

pub use capture::CaptureError;
pub use checkpointer::{AttachError, Checkpointer, MEMORY_SPACE, PROCESS_ATTACHMENT, backends};
pub use export::{CoreError, ExportError, write_core, write_region};
pub use options::{Leave, Mode, Options, Progress, Request, Residence};
pub use own_memory::{
    Captured, OwnMemory, OwnMemoryError, OwnMemoryOptions, OwnSnapshot, Placement,
};
pub use report::{NotCaptured, NotTracked, Report};
pub use rollback::{RollbackError, RolledBack, roll_back};
pub use take::TakeError;
pub use tracking::{Detached, TrackingError, detach};
