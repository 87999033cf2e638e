//! May this process be stopped and entered at all? Asked before anything is done to it.
//!
//! Nothing here changes the target or waits for it. What is true now may be false a moment later,
//! so stopping checks again what matters.

use crate::freezer::Freezer;
use crate::identity::{IdentityError, ProcessIdentity};
use crate::proc_files::{FLAG_KERNEL_THREAD, Stat, Status, comm_of};
use std::borrow::Cow;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;

/// A process that can be stopped, as far as can be seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Examined {
    /// Which one it is.
    pub identity: ProcessIdentity,
    /// Command name, at most 15 bytes.
    pub comm: String,
    /// Real user id.
    pub uid: u32,
    /// Number of its threads when it was looked at.
    pub thread_count: u64,
}

/// What keeps us from entering a process that exists and could be entered by somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoPrivilege {
    /// It belongs to another user.
    OtherUser {
        /// Its real user id.
        uid: u32,
    },
    /// It is ours, but made itself undumpable (or runs with more privilege than we have).
    NotDumpable {
        /// Its real user id.
        uid: u32,
    },
    /// It is ours, but the Yama security module lets only some processes trace.
    PtraceScope {
        /// Its real user id.
        uid: u32,
        /// `/proc/sys/kernel/yama/ptrace_scope`: 1 descendants only, 2 CAP_SYS_PTRACE only, 3 nobody.
        scope: u32,
    },
    /// It is ours, and something else (another security module, a user namespace) forbids it.
    Other {
        /// Its real user id.
        uid: u32,
    },
}

impl fmt::Display for NoPrivilege {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherUser { uid } => write!(formatter, "it belongs to user {uid}"),
            Self::NotDumpable { .. } => {
                write!(
                    formatter,
                    "it is not dumpable, or has more privileges than we have"
                )
            }
            Self::PtraceScope { scope, .. } => write!(
                formatter,
                "kernel.yama.ptrace_scope is {scope}, which forbids tracing a process that is not a descendant"
            ),
            Self::Other { .. } => write!(formatter, "the kernel does not permit tracing it"),
        }
    }
}

/// Why a process is not touched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RefusalError {
    /// There is none with this number.
    #[error("there is no process {pid}")]
    NoSuchProcess {
        /// The number asked for.
        pid: i32,
    },
    /// The number is that of a thread.
    #[error("{pid} is a thread of process {process}, not a process")]
    NotAProcess {
        /// The number asked for.
        pid: i32,
        /// The process it belongs to.
        process: i32,
    },
    /// A thread of the kernel has no memory of its own.
    #[error("{pid} ({comm}) is a thread of the kernel")]
    KernelThread {
        /// The number asked for.
        pid: i32,
        /// Its name.
        comm: String,
    },
    /// It has ended and waits for its parent to ask for its status.
    #[error("process {pid} ({comm}) has ended and only waits to be reaped by process {parent}")]
    Zombie {
        /// The number asked for.
        pid: i32,
        /// Its name.
        comm: String,
        /// The process that has to reap it.
        parent: i32,
    },
    /// Its first thread has ended while others run on; `/proc` then shows no memory of it.
    #[error("the first thread of process {pid} ({comm}) has ended while others run on")]
    FirstThreadEnded {
        /// The number asked for.
        pid: i32,
        /// Its name.
        comm: String,
    },
    /// It runs a 32-bit (or x32) program.
    #[error("process {pid} ({comm}) runs a 32-bit program")]
    ThirtyTwoBit {
        /// The number asked for.
        pid: i32,
        /// Its name.
        comm: String,
    },
    /// A debugger or the like traces it already; there can be only one tracer.
    #[error("process {pid} is already traced by process {tracer} ({tracer_comm})")]
    AlreadyTraced {
        /// The number asked for.
        pid: i32,
        /// Who traces it.
        tracer: i32,
        /// The tracer's name.
        tracer_comm: String,
    },
    /// A control group keeps it frozen in such a way that it cannot be stopped by ptrace(2) either.
    #[error("process {pid} ({comm}) is frozen by {freezer}")]
    Frozen {
        /// The number asked for.
        pid: i32,
        /// Its name.
        comm: String,
        /// By what.
        freezer: Freezer,
    },
    /// We may not trace it.
    #[error("no permission to enter process {pid} ({comm}): {reason}")]
    NoPrivilege {
        /// The number asked for.
        pid: i32,
        /// Its name.
        comm: String,
        /// What stands in the way.
        reason: NoPrivilege,
    },
    /// It is the calling process.
    #[error("process {pid} is this very process")]
    Itself {
        /// The number asked for.
        pid: i32,
    },
    /// `/proc` could not be read.
    #[error("cannot read what /proc says of process {pid}")]
    Proc {
        /// The number asked for.
        pid: i32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl NoPrivilege {
    /// What whoever runs the command line can do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::OtherUser { .. } | Self::NotDumpable { .. } => {
                "run as that user, as root, or with the capability CAP_SYS_PTRACE"
            }
            Self::PtraceScope { .. } => {
                "set the sysctl kernel.yama.ptrace_scope to 0, run with the capability CAP_SYS_PTRACE, or start the program \
                 under `pagetide run`"
            }
            Self::Other { .. } if rustix::process::geteuid().is_root() => {
                "you are root already: the kernel protects this process (it is the first of the machine, a security module or \
                 another user namespace)"
            }
            Self::Other { .. } => {
                "run as root or with the capability CAP_SYS_PTRACE, or start the program under `pagetide run`"
            }
        }
    }
}

pub(crate) const ONE_TRACER: &str =
    "end the debugger (or detach it) first: a process can have only one tracer";
pub(crate) const ONLY_64_BIT: &str = "only 64-bit programs can be checkpointed";

impl RefusalError {
    /// True if nothing went wrong: it cannot be done with this process, this store or these rights, and trying again does not help.
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::Proc { .. })
    }

    /// What whoever runs the command line can do about it, if something.
    pub fn advice(&self) -> Option<Cow<'static, str>> {
        Some(Cow::Borrowed(match self {
            Self::NoPrivilege { reason, .. } => reason.advice(),
            Self::AlreadyTraced { tracer_comm, .. } if tracer_comm.starts_with("pagetide") => {
                "wait until that command has ended; after `restore --lazy` its memory is still coming in"
            }
            Self::AlreadyTraced { .. } => ONE_TRACER,
            Self::NotAProcess { .. } => "name the process, not one of its threads",
            Self::ThirtyTwoBit { .. } => ONLY_64_BIT,
            Self::KernelThread { .. } => "only user programs can be checkpointed",
            _ => return None,
        }))
    }
}

/// Looks at a process without touching it, and refuses what cannot be handled.
pub fn examine(pid: i32) -> Result<Examined, RefusalError> {
    let (examined, status) = look(pid)?;
    if pid.cast_unsigned() == std::process::id() {
        return Err(RefusalError::Itself { pid });
    }
    if let Some(tracer) = status.tracer() {
        return Err(RefusalError::AlreadyTraced {
            pid,
            tracer,
            tracer_comm: comm_of(tracer),
        });
    }
    let mut entering = OpenOptions::new();
    entering.read(true).write(true);
    check_privilege(pid, "mem", &entering, &examined)?;
    if runs_32_bit(pid) {
        let comm = examined.comm;
        return Err(RefusalError::ThirtyTwoBit { pid, comm });
    }
    if let Some(freezer) = Freezer::of_process(pid).filter(|by| !by.lets_threads_stop()) {
        let comm = examined.comm;
        return Err(RefusalError::Frozen { pid, comm, freezer });
    }
    Ok(examined)
}

/// As [`examine`], for a process whose page tables are only read: it may be traced, run a 32-bit program
/// or be the calling one.
pub fn examine_for_reading(pid: i32) -> Result<Examined, RefusalError> {
    let (examined, _) = look(pid)?;
    let mut reading = OpenOptions::new();
    reading.read(true);
    check_privilege(pid, "pagemap", &reading, &examined)?;
    Ok(examined)
}

/// What everybody may see of a process; refused if it has no memory of its own.
fn look(pid: i32) -> Result<(Examined, Status), RefusalError> {
    if pid <= 0 {
        return Err(RefusalError::NoSuchProcess { pid });
    }
    let identity = ProcessIdentity::of(pid).map_err(|error| match error {
        IdentityError::NoSuchProcess { pid } => RefusalError::NoSuchProcess { pid },
        IdentityError::Proc { pid, source } => RefusalError::Proc { pid, source },
    })?;
    let proc = |source: io::Error| {
        if source.kind() == io::ErrorKind::NotFound {
            RefusalError::NoSuchProcess { pid }
        } else {
            RefusalError::Proc { pid, source }
        }
    };
    let stat = Stat::of_process(pid).map_err(proc)?;
    let status = Status::of_process(pid).map_err(proc)?;
    let comm = stat.comm.clone();
    let process = i32::try_from(status.number("Tgid")).unwrap_or(pid);
    if process != pid {
        return Err(RefusalError::NotAProcess { pid, process });
    }
    if stat.flags() & FLAG_KERNEL_THREAD != 0 {
        return Err(RefusalError::KernelThread { pid, comm });
    }
    let thread_count = status.number("Threads");
    if stat.has_ended() {
        if thread_count > 1 {
            return Err(RefusalError::FirstThreadEnded { pid, comm });
        }
        let parent = i32::try_from(stat.field(4)).unwrap_or(0);
        return Err(RefusalError::Zombie { pid, comm, parent });
    }
    let examined = Examined {
        identity,
        comm,
        uid: u32::try_from(status.number("Uid")).unwrap_or(u32::MAX),
        thread_count,
    };
    Ok((examined, status))
}

/// Opening a file of the process asks the kernel the very question that will matter: for `mem`
/// PTRACE_MODE_ATTACH, as seizing does, for `pagemap` PTRACE_MODE_READ.
fn check_privilege(
    pid: i32,
    file: &str,
    options: &OpenOptions,
    examined: &Examined,
) -> Result<(), RefusalError> {
    let path = format!("/proc/{pid}/{file}");
    match options.open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(RefusalError::NoPrivilege {
                pid,
                comm: examined.comm.clone(),
                reason: why_no_privilege(pid, examined.uid),
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(RefusalError::NoSuchProcess { pid })
        }
        Err(source) => Err(RefusalError::Proc { pid, source }),
    }
}

/// Names the likeliest reason; the kernel does not tell.
pub(crate) fn why_no_privilege(pid: i32, uid: u32) -> NoPrivilege {
    if uid != rustix::process::geteuid().as_raw() {
        return NoPrivilege::OtherUser { uid };
    }
    // The kernel gives the files of an undumpable process to root; not their directory.
    let owner = fs::metadata(format!("/proc/{pid}/status")).map(|metadata| metadata.uid());
    if owner.is_ok_and(|owner| owner != uid) {
        return NoPrivilege::NotDumpable { uid };
    }
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    if scope > 0 {
        return NoPrivilege::PtraceScope { uid, scope };
    }
    NoPrivilege::Other { uid }
}

/// By the class byte of the ELF file it runs. x32 programs have class 32, too.
fn runs_32_bit(pid: i32) -> bool {
    let mut start = [0u8; 5];
    File::open(format!("/proc/{pid}/exe"))
        .and_then(|mut file| file.read_exact(&mut start))
        .is_ok_and(|()| start == [0x7f, b'E', b'L', b'F', 1])
}
