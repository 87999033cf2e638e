//! How a failure is told: the message with its causes, what to do about it, and the exit code.

use crate::blockers::{self, Listed};
use crate::output;
use pagetide::{AttachError, InspectError, RestoreError, RollbackError, TakeError, TrackingError};
use pagetide_process::{NoPrivilege, PageUsageError, RefusalError, RemoteCallError, StopError};
use pagetide_snapshot::{LockError, OpenError, PruneError, ReadError, Untrusted};
use rustix::io::Errno;
use serde::Serialize;
use std::fmt;
use std::io::{self, ErrorKind};
use std::process::ExitCode;

/// Something this command line itself finds wrong.
#[derive(Debug)]
pub enum Wrong {
    /// The words of the call cannot be followed.
    Usage(String),
    /// The process or the store cannot be handled.
    Refused(String),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wrong::Usage(what) | Wrong::Refused(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Wrong {}

/// Ended by a signal; the exit status says by which.
#[derive(Debug)]
pub struct Signalled {
    pub status: u8,
    /// A checkpoint was under way.
    pub given_up: bool,
}

impl fmt::Display for Signalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.given_up {
            true => "interrupted: the checkpoint under way was given up, and the process runs on",
            false => "interrupted between two checkpoints; the process runs on",
        })
    }
}

impl std::error::Error for Signalled {}

/// A failure for machines.
#[derive(Serialize)]
struct Failure<'a> {
    time: String,
    error: String,
    advice: Option<String>,
    blockers: Vec<Listed<'a>>,
    exit_status: u8,
}

/// Prints the error to stderr and gives the exit code. A closed pipe on stdout is success.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let causes = || error.chain().map(unwrapped);
    if causes().any(is_broken_pipe) {
        return ExitCode::SUCCESS;
    }
    let exit_status = exit_status(error);
    let advice = causes().find_map(|cause| {
        let advice = advice(cause).map(str::to_owned);
        advice_by_name(cause).or(advice)
    });
    let blockers = match error.downcast_ref() {
        Some(RestoreError::Blocked { blockers, .. }) => &blockers[..],
        _ => &[],
    };
    if output::is_for_machines() {
        output::json_note(&Failure {
            time: output::now(),
            error: message(error),
            advice,
            blockers: blockers::listed(blockers),
            exit_status,
        });
        return ExitCode::from(exit_status);
    }
    output::note!("pagetide: {}", message(error));
    for blocker in blockers {
        output::note!("  {}", blockers::told(blocker));
    }
    if let Some(advice) = advice {
        output::note!("  {advice}");
    }
    ExitCode::from(exit_status)
}

fn exit_status(error: &anyhow::Error) -> u8 {
    if let Some(Signalled { status, .. }) = error.downcast_ref() {
        return *status;
    }
    let is_usage = |cause: Cause<'_>| matches!(cause.downcast_ref(), Some(Wrong::Usage(_)));
    match is_refused(error) {
        _ if error.chain().any(is_usage) => 2,
        true => 3,
        false => 1,
    }
}

/// True if the process or the store cannot be handled.
pub fn is_refused(error: &anyhow::Error) -> bool {
    error.chain().map(unwrapped).any(is_refusal)
}

/// True if there is no room on a disk: that passes.
pub fn is_full(error: &anyhow::Error) -> bool {
    let full = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded];
    let is_full = |cause: Cause<'_>| {
        let kind = cause.downcast_ref().map(std::io::Error::kind);
        kind.is_some_and(|kind| full.contains(&kind))
    };
    error.chain().map(unwrapped).any(is_full)
}

/// The error and its causes on one line. A message that ends in its own cause's message says it once.
pub fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if !message.ends_with(&text) {
            if !message.is_empty() {
                message.push_str(": ");
            }
            message.push_str(&text);
        }
    }
    message
}

type Cause<'a> = &'a (dyn std::error::Error + 'static);

/// The error itself, out of those that only pass it on.
fn unwrapped(cause: Cause<'_>) -> Cause<'_> {
    let inner: Option<Cause<'_>> = if let Some(error) = cause.downcast_ref() {
        match error {
            TakeError::Stop(inner) => Some(inner),
            TakeError::Tracking(inner) => Some(inner),
            TakeError::Store(inner) => Some(inner),
            TakeError::Member { source, .. } => Some(&**source),
            _ => None,
        }
    } else if let Some(error) = cause.downcast_ref() {
        match error {
            AttachError::Refused(inner) => Some(inner),
            AttachError::Stop(inner) => Some(inner),
            AttachError::Lock(inner) => Some(inner),
            AttachError::Store(inner) => Some(inner),
            AttachError::Tracking(inner) => Some(inner),
            _ => None,
        }
    } else if let Some(error) = cause.downcast_ref() {
        match error {
            RollbackError::Refused(inner) => Some(inner),
            RollbackError::Stop(inner) => Some(inner),
            RollbackError::Store(inner) => Some(inner),
            RollbackError::Tracking(inner) => Some(inner),
            _ => None,
        }
    } else if let Some(error) = cause.downcast_ref() {
        match error {
            InspectError::Refused(inner) => Some(inner),
            InspectError::Stop(inner) => Some(inner),
            InspectError::Member { source, .. } => Some(&**source),
            _ => None,
        }
    } else if let Some(error) = cause.downcast_ref() {
        match error {
            RestoreError::Store(inner) => Some(inner),
            _ => None,
        }
    } else if let Some(error) = cause.downcast_ref() {
        match error {
            PruneError::Lock(inner) => Some(inner),
            PruneError::Read(inner) => Some(inner),
            _ => None,
        }
    } else {
        match cause.downcast_ref() {
            Some(TrackingError::Stop(inner)) => Some(inner),
            _ => None,
        }
    };
    inner.map_or(cause, unwrapped)
}

fn is_broken_pipe(cause: Cause<'_>) -> bool {
    let kind = cause.downcast_ref().map(std::io::Error::kind);
    kind == Some(ErrorKind::BrokenPipe)
}

/// True if an error of this type says that the process or the store cannot be handled.
fn refuses<E: std::error::Error + 'static>(cause: Cause<'_>, says: fn(&E) -> bool) -> bool {
    cause.downcast_ref().is_some_and(says)
}

/// True if the process or the store cannot be handled, as opposed to something that went wrong.
fn is_refusal(cause: Cause<'_>) -> bool {
    refuses(cause, RefusalError::is_refusal)
        || refuses(cause, StopError::is_refusal)
        || refuses(cause, RemoteCallError::is_refusal)
        || refuses(cause, PageUsageError::is_refusal)
        || refuses(cause, OpenError::is_refusal)
        || refuses(cause, LockError::is_refusal)
        || refuses(cause, ReadError::is_refusal)
        || refuses(cause, PruneError::is_refusal)
        || refuses(cause, AttachError::is_refusal)
        || refuses(cause, TrackingError::is_refusal)
        || refuses(cause, RestoreError::is_refusal)
        || refuses(cause, RollbackError::is_refusal)
        || refuses(cause, Untrusted::is)
        || matches!(cause.downcast_ref(), Some(Wrong::Refused(_)))
}

/// What the user can do about it, where that names the thing.
fn advice_by_name(cause: Cause<'_>) -> Option<String> {
    if let Some(AttachError::Busy { by, .. }) = cause.downcast_ref() {
        return Some(match by {
            Some(by) => format!("end that one first (`kill {by}`), or use its store"),
            None => "end that one first, or use its store".to_owned(),
        });
    }
    if let Some(TrackingError::OwnedByAnother { pid, place, .. }) = cause.downcast_ref() {
        let instead = match &place[..] {
            "" => "use that store".to_owned(),
            place => format!("use `--store {place}`"),
        };
        return Some(format!(
            "{instead}, or `pagetide detach {pid}` to begin anew (the next snapshot is full then)"
        ));
    }
    match cause.downcast_ref()? {
        RestoreError::Taken { pid, .. } => Some(format!(
            "end it first (`kill {pid}`), put it back as it was (`pagetide rollback {pid} DIR`), or start a copy with --new-pid"
        )),
        RestoreError::NotAllowed { path } => Some(format!(
            "add `--allow {}`; --dry-run lists all such paths",
            path.display()
        )),
        _ => None,
    }
}

/// What the user can do about it.
fn advice(cause: Cause<'_>) -> Option<&'static str> {
    (cause.downcast_ref().and_then(refusal_advice))
        .or_else(|| cause.downcast_ref().and_then(stop_advice))
        .or_else(|| cause.downcast_ref().and_then(call_advice))
        .or_else(|| store_advice(cause))
        .or_else(|| cause.downcast_ref().and_then(limit_advice))
}

/// Of an error that is none of ours.
fn limit_advice(error: &io::Error) -> Option<&'static str> {
    (error.raw_os_error() == Some(Errno::MFILE.raw_os_error()))
        .then_some("the limit of open files is too low for pagetide; raise it (`prlimit --nofile`)")
}

const ONE_TRACER: &str =
    "end the debugger (or detach it) first: a process can have only one tracer";
const BY_US: &str =
    "wait until that command has ended; after `restore --lazy` its memory is still coming in";
const ONLY_64_BIT: &str = "only 64-bit programs can be checkpointed";

fn refusal_advice(error: &RefusalError) -> Option<&'static str> {
    Some(match error {
        RefusalError::NoPrivilege { reason, .. } => privilege_advice(*reason),
        RefusalError::AlreadyTraced { tracer_comm, .. } if tracer_comm.starts_with("pagetide") => {
            BY_US
        }
        RefusalError::AlreadyTraced { .. } => ONE_TRACER,
        RefusalError::NotAProcess { .. } => "name the process, not one of its threads",
        RefusalError::ThirtyTwoBit { .. } => ONLY_64_BIT,
        RefusalError::KernelThread { .. } => "only user programs can be checkpointed",
        _ => return None,
    })
}

fn stop_advice(error: &StopError) -> Option<&'static str> {
    Some(match error {
        StopError::NoPrivilege { reason, .. } => privilege_advice(*reason),
        StopError::AlreadyTraced { .. } => ONE_TRACER,
        StopError::ThirtyTwoBit { .. } => ONLY_64_BIT,
        StopError::Timeout { state: 'D', .. } => {
            "the process runs on; try again when that wait in the kernel is over, which for the \
             parent of a vfork is when its child ends or executes a program"
        }
        StopError::Timeout { .. } => "the process runs on; try again",
        _ => return None,
    })
}

fn privilege_advice(reason: NoPrivilege) -> &'static str {
    match reason {
        NoPrivilege::OtherUser { .. } | NoPrivilege::NotDumpable { .. } => {
            "run as that user, as root, or with the capability CAP_SYS_PTRACE"
        }
        NoPrivilege::PtraceScope { .. } => {
            "set the sysctl kernel.yama.ptrace_scope to 0, run with the capability \
             CAP_SYS_PTRACE, or start the program under `pagetide run`"
        }
        _ if rustix::process::geteuid().is_root() => {
            "you are root already: the kernel protects this process (it is the first of the machine, a security module or \
             another user namespace)"
        }
        _ => {
            "run as root or with the capability CAP_SYS_PTRACE, or start the program under \
             `pagetide run`"
        }
    }
}

fn call_advice(error: &RemoteCallError) -> Option<&'static str> {
    Some(match error {
        RemoteCallError::ForbiddenBySeccomp { .. }
        | RemoteCallError::SeccompStrict { .. }
        | RemoteCallError::UnderSeccomp { .. }
        | RemoteCallError::SeccompUnknown { .. } => {
            "use `--backend rehash`, which makes no system calls inside the process but reads all \
             of its memory each time"
        }
        _ if error.has_no_free_descriptor() => {
            "raise its limit of open files (`prlimit --nofile`), or use `--backend rehash`, which \
             opens nothing in the process but reads all of its memory each time"
        }
        _ => return None,
    })
}

fn store_advice(cause: Cause<'_>) -> Option<&'static str> {
    const WRITABLE: &str = "a store must be writable to take snapshots into it";
    const NEWER: &str = "use the version of pagetide that wrote it, or a newer";
    const RELIABLE: &str = "name a store that nobody but root and you can write to, in directories \
                            of which that is true, too; if you know better, add `--trust-store`";
    if let Some(error) = cause.downcast_ref() {
        return Some(match error {
            OpenError::Missing { .. } => {
                "name the directory that was given to `checkpoint --store`"
            }
            OpenError::NotAStore { .. } | OpenError::NotEmpty { .. } => {
                "name a store; `checkpoint` also takes a directory that is empty or not there yet"
            }
            OpenError::FutureFormat { .. } => NEWER,
            OpenError::Untrusted { .. } => RELIABLE,
            OpenError::ReadOnly { .. } => WRITABLE,
            _ => return None,
        });
    }
    if let Some(error) = cause.downcast_ref() {
        return Some(match error {
            LockError::Locked { .. } => {
                "wait until the other command has ended, or use another store"
            }
            LockError::ReadOnly { .. } => WRITABLE,
            _ => return None,
        });
    }
    if let Some(error) = cause.downcast_ref::<std::io::Error>() {
        return Some(match error.kind() {
            _ if Untrusted::is(error) => RELIABLE,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                "nothing is lost: free some space and run it again"
            }
            _ => return None,
        });
    }
    match cause.downcast_ref()? {
        ReadError::NoSuchSnapshot { .. } | ReadError::Pruned { .. } => {
            Some("`pagetide log` lists the snapshots")
        }
        ReadError::TooLarge { .. } => Some("raise --memory-limit"),
        ReadError::Damaged { .. } => Some("`pagetide verify` names all damage"),
        ReadError::Future { .. } => Some(NEWER),
        _ => None,
    }
}
