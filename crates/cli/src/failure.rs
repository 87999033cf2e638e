//! How a failure is told: the message with its causes, what to do about it, and the exit code.

use crate::blockers::{self, Listed};
use crate::output;
use crate::wrong::{Signalled, Wrong};
use pagetide::{AttachError, InspectError, RestoreError, RollbackError, TakeError, TrackingError};
use pagetide_process::{PageUsageError, RefusalError, RemoteCallError, StopError};
use pagetide_snapshot::{LockError, OpenError, PruneError, ReadError, Untrusted};
use rustix::io::Errno;
use serde::Serialize;
use std::borrow::Cow;
use std::io::{self, ErrorKind};
use std::process::ExitCode;

/// A failure for machines.
#[derive(Serialize)]
struct Failure<'a> {
    time: String,
    error: String,
    advice: Option<Cow<'static, str>>,
    blockers: Vec<Listed<'a>>,
    exit_status: u8,
}

/// Prints the error to stderr and gives the exit code. A closed pipe on stdout is success.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(is_broken_pipe) {
        return ExitCode::SUCCESS;
    }
    let exit_status = exit_status(error);
    let advice = error.chain().find_map(|cause| judged(cause).1);
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
    error.chain().any(|cause| judged(cause).0)
}

/// True if there is no room on a disk: that passes.
pub fn is_full(error: &anyhow::Error) -> bool {
    let full = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded];
    let is_full = |cause: Cause<'_>| {
        let kind = cause.downcast_ref().map(std::io::Error::kind);
        kind.is_some_and(|kind| full.contains(&kind))
    };
    error.chain().any(is_full)
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

fn is_broken_pipe(cause: Cause<'_>) -> bool {
    let kind = cause.downcast_ref().map(std::io::Error::kind);
    kind == Some(ErrorKind::BrokenPipe)
}

/// Asks a cause whether it is a refusal, and what can be done about it, if it is of one of these types.
macro_rules! asked {
    ($cause:ident: $($error:ty),*) => {$(
        if let Some(error) = $cause.downcast_ref::<$error>() {
            return (error.is_refusal(), error.advice());
        }
    )*};
}

/// Whether the process or the store cannot be handled, as opposed to something that went wrong, and what the user can do about it.
fn judged(cause: Cause<'_>) -> (bool, Option<Cow<'static, str>>) {
    asked!(cause: RefusalError, StopError, RemoteCallError, OpenError, LockError, ReadError, PruneError);
    asked!(cause: AttachError, TrackingError, TakeError, InspectError, RestoreError, RollbackError);
    if let Some(error) = cause.downcast_ref() {
        return (PageUsageError::is_refusal(error), None);
    }
    match cause.downcast_ref::<io::Error>() {
        Some(error) => of_the_system(error),
        None => (
            matches!(cause.downcast_ref(), Some(Wrong::Refused(_))),
            None,
        ),
    }
}

/// The same, of what the kernel said, or of what a directory of a store wraps into that.
fn of_the_system(error: &io::Error) -> (bool, Option<Cow<'static, str>>) {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    if let Some(advice) = inner.map(Untrusted::advice) {
        return (true, Some(advice.into()));
    }
    let advice = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Some("nothing is lost: free some space and run it again")
        }
        _ if error.raw_os_error() == Some(Errno::MFILE.raw_os_error()) => {
            Some("the limit of open files is too low for pagetide; raise it (`prlimit --nofile`)")
        }
        _ => None,
    };
    (false, advice.map(Cow::Borrowed))
}
