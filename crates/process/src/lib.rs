//! A live process as data: examine it, stop it, read and write its threads, run system calls
//! inside it, and let it go on as if nothing had happened.
//!
//! What this crate is not: it reads and writes no memory of the target but the few bytes a remote
//! call needs, tracks nothing, and stores nothing. It hands out plain values and descriptors.
//!
//! The rule above all others: the target is never worse off. Each type says what becomes of the
//! target if an operation fails, or if this process is killed in the middle of it.
//!
//! ```no_run
//! use nix::libc;
//! use pagetide_process::{StopOptions, StoppedProcess, examine};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let examined = examine(4711)?;
//! let mut stopped = StoppedProcess::stop(&examined.identity, StopOptions::default())?;
//! let threads = stopped.thread_states()?;
//! let pid = stopped.remote_calls()?.call(libc::SYS_getpid, [0; 6])?;
//! assert_eq!(pid, 4711);
//! stopped.resume()?;
//! # drop(threads);
//! # Ok(())
//! # }
//! ```

mod blocker;
mod blocker_kind;
mod control_groups;
mod descriptors;
mod encoded;
mod examine;
mod freezer;
mod guard;
mod identity;
mod kernel_state;
mod landing;
mod open_files;
mod opener;
mod page_usage;
mod proc_files;
mod rebuild;
mod remote;
mod remote_error;
mod restart;
mod rings;
mod rseq;
mod seccomp;
mod seizing;
mod self_healing;
mod session;
mod standing;
mod state;
mod stop;
mod syscall_names;
mod system_calls;
mod thread_state;
mod tracees;
mod tracer;
mod waits;

pub use blocker::Blocker;
pub use blocker_kind::BlockerKind;
pub use control_groups::enter_control_groups;
pub use descriptors::{DescriptorError, FileDescriptor};
pub use encoded::{Encoding, EncodingError};
pub use examine::{Examined, NoPrivilege, RefusalError, examine, examine_for_reading};
pub use freezer::Freezer;
pub use guard::{Gate, Guard};
pub use identity::{IdentityError, ProcessIdentity, start_of_stack};
pub use kernel_state::{
    AlternateStack, ClockState, Credentials, GroupStop, IntervalTimer, KERNEL_STATE_ATTACHMENT,
    KernelState, KernelStateApplyError, KernelStateError, MemoryPolicy, PendingSignal, PosixTimer,
    ProcessSwitches, ProcessorSwitches, Registrations, ResourceLimit, RobustFutexes,
    RseqRegistration, Scheduling, SignalAction, StateSince2, ThreadKernelState, ThreadsByNumber,
    TimerBatch, other_clocks, shared_space,
};
pub use open_files::{
    Description, DescriptionLock, Descriptor, DescriptorTable, DeviceState, DirectoryState,
    EpollEntry, EpollState, EventfdState, FilePath, FileState, InotifyState, Kind, Late, LockRange,
    Now, OPEN_FILES_ATTACHMENT, ObjectOrigin, ObjectUse, OpenFiles, OpenFilesDecodeError,
    OpenFilesError, Owner, PathIdentity, PathState, PipeEnd, PipeOwner, PipeState, PosixLock,
    ProcessFile, ProcessFileKind, ReopenChoices, ReopenError, Reopened, Run, SignalfdState,
    SocketError, SocketState, StandardStream, StoredObject, TcpChoice, TerminalState, TimerfdState,
    Watch,
};
pub use opener::{Created, FileIdentity, Name, OpenError, Opener, Openers, PathTarget, is_allowed};
pub use page_usage::{
    ExplainedPage, ObjectState, PageUsage, PageUsageError, RegionUsage, SharedFrames, SharedRange,
    SharedRegion, SwapEntry, SwapKind, Unavailable, Usage, explain_page, page_sources, page_usage,
    shared_frames,
};
pub use pagetide_kernel::keeper::KeeperError;
pub use pagetide_kernel::ptrace::{Registers, SyscallEntry, ThreadId};
pub use rebuild::{
    KernelMapping, KernelMappingsError, NewProcess, RebuildError, kernel_mappings_of,
};
pub use remote::RemoteCalls;
pub use remote_error::RemoteCallError;
pub use rings::RingsOfThreads;
pub use state::{MemoryLayout, OutsideState, ProcessState, StateDecodeError, StateReadError};
pub use stop::{ResumeError, StopError, StopOptions, StoppedProcess};
pub use syscall_names::SystemCall;
pub use system_calls::{Batch, SystemCalls};
pub use thread_state::{ThreadState, ThreadStateError};
