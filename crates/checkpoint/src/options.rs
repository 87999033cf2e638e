//! How checkpoints of a process are taken: plain choices, no behaviour.

use pagetide_snapshot::WriteOptions;
use pagetide_tracker::Backend;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Where the tracking of a process lives between two snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residence {
    /// In the process itself: a later run of another program goes on with a delta. Leaves two file
    /// descriptors in the process until [`crate::detach`] removes them.
    Target,
    /// In the program that takes the checkpoints. Leaves nothing in the process; when the program
    /// ends, by whatever cause, tracking ends with it.
    Here,
}

/// When pages are copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// By how much there is to copy.
    #[default]
    Auto,
    /// All of them while the process is stopped.
    Stop,
    /// Most of them while it runs; what is written meanwhile, again while it is stopped.
    Precopy,
}

/// What becomes of the process after a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leave {
    /// It runs on.
    #[default]
    Running,
    /// It stays stopped, as by SIGSTOP, at the very instant of the snapshot.
    Stopped,
    /// It is killed once the snapshot is durable, and never runs past its instant. But one that could not be restored from
    /// the snapshot runs on, see [`Options::accept`] and [`crate::Report::left`].
    Killed,
}

/// Called while pages are stored, with the bytes stored so far and in all. Not called while the process
/// is stopped.
#[derive(Clone)]
pub struct Progress(pub Arc<dyn Fn(u64, u64) + Send + Sync>);

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Progress")
    }
}

/// How checkpoints are taken.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// The backend to use; `None` for the best that works here.
    pub backend: Option<Backend>,
    /// Where the tracking lives.
    pub residence: Residence,
    /// All children of the process belong to the checkpoint, and their children.
    pub tree: bool,
    /// Pages that a mapping shows of a file are stored, too. Otherwise, where nobody writes to the file and
    /// it is found by its path, only their hashes are, and whoever reads the snapshot needs the file.
    pub store_files: bool,
    /// Also what only a restore needs: open files, signals, timers and all else that the kernel keeps. Threads make system
    /// calls for it while they are stopped, which makes the stop longer. Without it a snapshot cannot be restored, but all
    /// else can be done with it.
    pub restorable: bool,
    /// The names of things that cannot be brought back, and despite which a process is killed ([`Leave::Killed`]). Without
    /// [`Options::restorable`] nothing is known of such things, and it is killed.
    pub accept: Vec<String>,
    /// When pages are copied.
    pub mode: Mode,
    /// The most memory that copied pages may take before they are stored. If more than this is
    /// copied in one stop, the process stays stopped while the rest is stored.
    pub buffer_bytes: u64,
    /// The most page tables, in bytes, that one snapshot may make in a process for memory of it that holds nothing. A mapping
    /// for which this is not enough is compared with the parent instead of being tracked. `None` for a sixteenth of what is
    /// left to the process by its memory cgroups and by the machine.
    pub page_table_limit: Option<u64>,
    /// The most memory, in bytes, for pages that the last snapshots were written with: where such a page is written again,
    /// only the words that have changed are stored. `None` for a sixteenth of what the processes have in memory, found anew
    /// before each snapshot, and at most 1 GiB; 0 for none.
    pub shadow_limit: Option<u64>,
    /// How snapshots are written.
    pub write: WriteOptions,
    /// How long all threads may take to stop.
    pub stop_timeout: Duration,
    /// Set to make the checkpoint under way end early, with the process running and nothing lost.
    pub cancel: Arc<AtomicBool>,
    /// Told how far storing has come.
    pub progress: Option<Progress>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            backend: None,
            residence: Residence::Target,
            tree: false,
            store_files: false,
            restorable: true,
            accept: Vec::new(),
            mode: Mode::Auto,
            buffer_bytes: 256 << 20,
            page_table_limit: None,
            shadow_limit: None,
            write: WriteOptions::default(),
            stop_timeout: Duration::from_secs(5),
            cancel: Arc::new(AtomicBool::new(false)),
            progress: None,
        }
    }
}

/// What one snapshot is asked to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request {
    /// A full snapshot, though a delta may be possible.
    pub full: bool,
    /// What becomes of the process.
    pub leave: Leave,
}
