//! The clocks that count from the boot on, as the new processes see them: they go on from where they were in the snapshot, by a time
//! namespace of their own where this system's would show something else.

use super::error::RestoreError;
use super::options::ClockChoice;
use crate::manifest::members_of;
use pagetide_kernel::time_namespace::{self, Clocks};
use pagetide_process::{KernelState, ProcessIdentity, ProcessState};
use pagetide_snapshot::View;

/// The offsets that the processes of a snapshot need, and that are not those of this program; `None` if they need none. All have
/// those of the first one: that others differ is a blocker.
pub(super) fn needed(view: &View, choice: ClockChoice) -> Result<Option<Clocks>, RestoreError> {
    if choice == ClockChoice::Host {
        return Ok(None);
    }
    let members = members_of(view);
    let first = members.first().map(|(_, names)| names);
    let attachment = |name: &str| view.attachment(name);
    let parts =
        first.and_then(|names| Some((attachment(&names.process)?, attachment(&names.kernel)?)));
    let Some((process, kernel)) = parts else {
        // Whoever looks at the rest says what is missing.
        return Ok(None);
    };
    let Some(clocks) = KernelState::from_bytes(kernel)?.since_2.clocks else {
        return Ok(None);
    };
    let then = ProcessState::from_bytes(process)?.outside.identity.boot_id;
    let own = std::process::id().cast_signed();
    let now = ProcessIdentity::of(own).map(|identity| identity.boot_id);
    let wanted = clocks.offsets(now.is_ok_and(|now| now == then));
    let own = time_namespace::offsets(own).map_err(RestoreError::Clocks)?;
    Ok((wanted != own).then_some(wanted))
}

/// Does `work` in a thread of its own whose children have these clocks. All other threads, and what they fork, have those that they had.
pub(super) fn with<T: Send>(
    clocks: Clocks,
    work: impl FnOnce() -> Result<T, RestoreError> + Send,
) -> Result<T, RestoreError> {
    std::thread::scope(|scope| {
        let builder = scope.spawn(|| {
            time_namespace::give_to_children(clocks).map_err(RestoreError::Clocks)?;
            work()
        });
        match builder.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
