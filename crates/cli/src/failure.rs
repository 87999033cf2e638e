//! How a failure is told: the message with its causes, what to do about it, and the exit code.

use pagetide::{AttachError, RollbackError, TakeError, TrackingError};
use pagetide_process::{NoPrivilege, RefusalError, RemoteCallError, StopError};
use pagetide_snapshot::{LockError, OpenError, ReadError, WriteError};
use std::fmt;
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
pub struct Signalled(pub u8);

impl fmt::Display for Signalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted: the checkpoint under way was given up, and the process runs on")
    }
}

impl std::error::Error for Signalled {}

/// Prints the error to stderr and gives the exit code. A closed pipe on stdout is success.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let causes = || error.chain();
    if causes().any(is_broken_pipe) {
        return ExitCode::SUCCESS;
    }
    // A message that ends in its own cause's message says it once.
    let mut message = String::new();
    for cause in causes() {
        let text = cause.to_string();
        if !message.ends_with(&text) {
            if !message.is_empty() {
                message.push_str(": ");
            }
            message.push_str(&text);
        }
    }
    eprintln!("pagetide: {message}");
    if let Some(advice) = causes().find_map(advice) {
        eprintln!("  {advice}");
    }
    if let Some(Signalled(status)) = error.downcast_ref() {
        return ExitCode::from(*status);
    }
    if causes().any(|cause| matches!(cause.downcast_ref(), Some(Wrong::Usage(_)))) {
        return ExitCode::from(2);
    }
    match causes().any(is_refusal) {
        true => ExitCode::from(3),
        false => ExitCode::FAILURE,
    }
}

type Cause<'a> = &'a (dyn std::error::Error + 'static);

fn is_broken_pipe(cause: Cause<'_>) -> bool {
    let kind = cause.downcast_ref().map(std::io::Error::kind);
    kind == Some(std::io::ErrorKind::BrokenPipe)
}

/// True if the process or the store cannot be handled, as opposed to something that went wrong.
fn is_refusal(cause: Cause<'_>) -> bool {
    if let Some(error) = cause.downcast_ref::<TakeError>() {
        return match error {
            TakeError::Stop(error) => refuses_to_stop(error),
            TakeError::Tracking(error) => refuses_tracking(error),
            _ => false,
        };
    }
    if let Some(error) = cause.downcast_ref::<AttachError>() {
        return match error {
            AttachError::Refused(RefusalError::Proc { .. }) => false,
            AttachError::Refused(_) | AttachError::Backend { .. } => true,
            AttachError::Lock(LockError::Io { .. }) => false,
            AttachError::Lock(_) => true,
            AttachError::Tracking(error) => refuses_tracking(error),
            _ => false,
        };
    }
    if let Some(error) = cause.downcast_ref::<RollbackError>() {
        return error.is_refusal();
    }
    if let Some(error) = cause.downcast_ref::<TrackingError>() {
        return refuses_tracking(error);
    }
    if let Some(error) = cause.downcast_ref::<StopError>() {
        return refuses_to_stop(error);
    }
    matches!(cause.downcast_ref(), Some(Wrong::Refused(_)))
        || cause
            .downcast_ref::<OpenError>()
            .is_some_and(|error| !matches!(error, OpenError::Io { .. }))
        || cause
            .downcast_ref::<LockError>()
            .is_some_and(|error| !matches!(error, LockError::Io { .. }))
        || cause.downcast_ref::<RefusalError>().is_some()
        || matches!(
            cause.downcast_ref(),
            Some(ReadError::NoSuchSnapshot { .. } | ReadError::Future { .. })
        )
}

fn refuses_to_stop(error: &StopError) -> bool {
    matches!(
        error,
        StopError::AlreadyTraced { .. }
            | StopError::NoPrivilege { .. }
            | StopError::ThirtyTwoBit { .. }
            | StopError::FirstThreadEnded { .. }
    )
}

fn refuses_tracking(error: &TrackingError) -> bool {
    match error {
        TrackingError::OwnedByAnother { .. } => true,
        TrackingError::Stop(error) => refuses_to_stop(error),
        TrackingError::Remote { source, .. } => matches!(
            source,
            RemoteCallError::ForbiddenBySeccomp { .. }
                | RemoteCallError::SeccompUnknown { .. }
                | RemoteCallError::SeccompStrict { .. }
                | RemoteCallError::DivertsSyscalls { .. }
                | RemoteCallError::NoLanding { .. }
                | RemoteCallError::NoThread { .. }
        ),
        _ => false,
    }
}

/// What the user can do about it.
fn advice(cause: Cause<'_>) -> Option<&'static str> {
    refusal_advice(
        cause
            .downcast_ref::<RefusalError>()
            .or_else(|| match cause.downcast_ref()? {
                AttachError::Refused(error) => Some(error),
                _ => None,
            }),
    )
    .or_else(|| store_advice(cause))
    .or_else(|| tracking_advice(cause))
}

fn refusal_advice(error: Option<&RefusalError>) -> Option<&'static str> {
    Some(match error? {
        RefusalError::NoPrivilege { reason, .. } => match reason {
            NoPrivilege::OtherUser { .. } | NoPrivilege::NotDumpable { .. } => {
                "run as that user, as root, or with the capability CAP_SYS_PTRACE"
            }
            NoPrivilege::PtraceScope { .. } => {
                "set the sysctl kernel.yama.ptrace_scope to 0, run with the capability \
                 CAP_SYS_PTRACE, or start the program under `pagetide run`"
            }
            _ => {
                "run as root or with the capability CAP_SYS_PTRACE, or start the program under \
                 `pagetide run`"
            }
        },
        RefusalError::AlreadyTraced { .. } => {
            "end the debugger (or detach it) first: a process can have only one tracer"
        }
        RefusalError::NotAProcess { .. } => "name the process, not one of its threads",
        RefusalError::ThirtyTwoBit { .. } => "only 64-bit programs can be checkpointed",
        RefusalError::KernelThread { .. } => "only user programs can be checkpointed",
        _ => return None,
    })
}

fn store_advice(cause: Cause<'_>) -> Option<&'static str> {
    if let Some(error) = cause.downcast_ref::<OpenError>() {
        return Some(match error {
            OpenError::Missing { .. } => {
                "name the directory that was given to `checkpoint --store`"
            }
            OpenError::NotAStore { .. } | OpenError::NotEmpty { .. } => {
                "name a store, or a directory that does not exist yet"
            }
            OpenError::FutureFormat { .. } => {
                "use the version of pagetide that wrote it, or a newer"
            }
            OpenError::ReadOnly { .. } => "a store must be writable to take snapshots into it",
            _ => return None,
        });
    }
    let lock = cause
        .downcast_ref::<LockError>()
        .or_else(|| match cause.downcast_ref()? {
            AttachError::Lock(error) => Some(error),
            _ => None,
        });
    if let Some(error) = lock {
        return Some(match error {
            LockError::Locked { .. } => {
                "wait until the other command has ended, or use another store"
            }
            LockError::ReadOnly { .. } => "a store must be writable to take snapshots into it",
            _ => return None,
        });
    }
    if let Some(WriteError::Full { .. }) = write_error(cause) {
        return Some(
            "nothing is lost: free some space and take the next snapshot, which will hold everything",
        );
    }
    match cause.downcast_ref() {
        Some(ReadError::NoSuchSnapshot { .. }) => Some("`pagetide log` lists the snapshots"),
        Some(ReadError::Damaged { .. }) => Some("`pagetide verify` names all damage"),
        _ => None,
    }
}

fn write_error(cause: Cause<'_>) -> Option<&WriteError> {
    cause
        .downcast_ref::<WriteError>()
        .or_else(|| match cause.downcast_ref()? {
            TakeError::Store(error) => Some(error),
            _ => None,
        })
}

fn tracking_advice(cause: Cause<'_>) -> Option<&'static str> {
    let tracking = cause.downcast_ref::<TrackingError>().or_else(|| {
        cause
            .downcast_ref::<TakeError>()
            .and_then(|error| match error {
                TakeError::Tracking(error) => Some(error),
                _ => None,
            })
            .or_else(|| match cause.downcast_ref()? {
                AttachError::Tracking(error) => Some(error),
                _ => None,
            })
    });
    Some(match tracking? {
        TrackingError::OwnedByAnother { .. } => {
            "use that store, or run `pagetide detach` first (the next snapshot is full then)"
        }
        TrackingError::Remote {
            source:
                RemoteCallError::ForbiddenBySeccomp { .. }
                | RemoteCallError::SeccompStrict { .. }
                | RemoteCallError::SeccompUnknown { .. },
            ..
        } => {
            "use `--backend rehash`, which makes no system calls inside the process but reads all \
             of its memory each time"
        }
        _ => return None,
    })
}
