//! What one snapshot was: counts, times and what is missing from it. Plain values.

use crate::compared::ComparedBecause;
use crate::not_captured::NotCapturedBecause;
use crate::options::Leave;
use crate::poison::Poisoned;
use crate::why_full::WhyFull;
use pagetide_pages::PageCount;
use pagetide_process::Blocker;
use pagetide_snapshot::{SnapshotId, SnapshotKind};
use pagetide_tracker::Backend;
use std::time::Duration;

/// A mapping whose contents a snapshot does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotCaptured {
    /// The process.
    pub pid: i32,
    /// First address.
    pub start: u64,
    /// Address past the last byte.
    pub end: u64,
    /// The name, as `/proc/PID/maps` shows it.
    pub name: String,
    /// Why not.
    pub reason: NotCapturedBecause,
}

impl NotCaptured {
    /// True of what the kernel maps into each process by itself, and what it has mapped for probes: nothing is lost with it.
    pub fn is_of_kernel(&self) -> bool {
        let of_kernel = [
            "[vvar]",
            "[vvar_vclock]",
            "[vsyscall]",
            "[uprobes]",
            "[uprobes-trampoline]",
        ];
        of_kernel.contains(&&*self.name)
    }
}

/// A mapping that was not tracked, or all memory of a process. Its contents are in the snapshot: they were
/// read and compared in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotTracked {
    /// The process.
    pub pid: i32,
    /// First address; 0 if all memory of the process is concerned.
    pub start: u64,
    /// Address past the last byte; 0 if all memory of the process is concerned.
    pub end: u64,
    /// Why not.
    pub reason: ComparedBecause,
}

impl NotTracked {
    /// All memory of process `pid`.
    pub fn whole(pid: i32, reason: ComparedBecause) -> Self {
        Self {
            pid,
            start: 0,
            end: 0,
            reason,
        }
    }

    /// True if all memory of the process is concerned.
    pub fn is_whole(&self) -> bool {
        self.end == 0
    }
}

/// What one snapshot was.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// Its id.
    pub id: SnapshotId,
    /// Its parent.
    pub parent: Option<SnapshotId>,
    /// Full or delta.
    pub kind: SnapshotKind,
    /// How written pages were found.
    pub backend: Backend,
    /// Pages reported as written, or found to differ, and copied.
    pub written_pages: PageCount,
    /// Of these, pages copied while the process was stopped.
    pub window_pages: PageCount,
    /// Pages whose bytes are in the snapshot's file.
    pub stored_pages: PageCount,
    /// Of these, pages of which only the words are stored that differ from the parent's.
    pub difference_pages: PageCount,
    /// Copied pages that turned out to be all zeros.
    pub zero_pages: PageCount,
    /// Pages that were found to be what their file has, and of which only the hash is stored.
    pub file_pages: PageCount,
    /// Processes that the snapshot holds.
    pub processes: usize,
    /// Length of everything the snapshot describes.
    pub logical_bytes: u64,
    /// Length of its file.
    pub stored_bytes: u64,
    /// How long the process did not run.
    pub stop: Duration,
    /// Of that, finding the written pages.
    pub scan: Duration,
    /// Of that, copying pages.
    pub copy: Duration,
    /// From the call to durable.
    pub total: Duration,
    /// What the snapshot does not hold.
    pub not_captured: Vec<NotCaptured>,
    /// Memory that is poisoned: it cannot be read, and whoever touches it gets a SIGBUS. It is so again after a restore.
    pub poisoned: Vec<Poisoned>,
    /// What had to be compared because it could not be tracked.
    pub not_tracked: Vec<NotTracked>,
    /// About how many mappings the processes have only because they are tracked: memory that grew is not joined with
    /// memory that was tracked before it. They stay when tracking ends.
    pub mappings_added: u64,
    /// What a restore could not bring back; `None` if the snapshot cannot be restored because only memory and
    /// registers were asked for.
    pub blockers: Option<Vec<Blocker>>,
    /// Why the snapshot is full, if it is.
    pub why_full: Option<WhyFull>,
    /// How the processes were left: as it was wanted, but running instead of killed where they could not be restored.
    pub left: Leave,
}
