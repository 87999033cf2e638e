//! This program is never stopped while anybody stands still because of it: Ctrl-Z (SIGTSTP), and what a terminal sends to those
//! behind (SIGTTIN, SIGTTOU), take effect when all have been let go. SIGSTOP cannot be held back; a timer of the kernel wakes us
//! up from it if somebody stands for too long.

use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use pagetide_kernel::wake_up::{BY_TIMER, WakeUp};
use pagetide_process::StoppedProcess;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// So long somebody stands before the timer fires, and again each time.
const WAKE: Duration = Duration::from_millis(500);

static TIMER: Mutex<Option<WakeUp>> = Mutex::new(None);

/// From now on, for this thread and all that are started later: one that was started before would take the signals. A second
/// call does nothing.
pub fn stop_only_while_none_stands() -> io::Result<()> {
    static IS_DONE: AtomicBool = AtomicBool::new(false);
    if IS_DONE.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    let stops = SigSet::from_iter([Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU]);
    let goes_on = SigSet::from(Signal::SIGCONT);
    stops.thread_block()?;
    goes_on.thread_block()?;
    let continued = SignalFd::with_flags(&goes_on, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let take = move || {
        while let Ok(signal) = stops.wait() {
            StoppedProcess::while_none_stands(|| {
                // Whoever sent it has let us go on since.
                if !came_by_user(&continued) {
                    take_effect(signal);
                }
            });
        }
    };
    std::thread::Builder::new()
        .name("pagetide-job-control".to_owned())
        .spawn(take)?;
    *TIMER.lock().unwrap_or_else(PoisonError::into_inner) = Some(WakeUp::new()?);
    StoppedProcess::on_change(wake_if_long);
    Ok(())
}

/// Takes all SIGCONT that came; true if one was not of our timer.
fn came_by_user(continued: &SignalFd) -> bool {
    let mut came = false;
    while let Ok(Some(one)) = continued.read_signal() {
        came |= one.ssi_code != BY_TIMER;
    }
    came
}

/// What the signal does by itself: it stops this program, or nothing where nobody could let it go on (an orphaned process
/// group) or where it is ignored.
fn take_effect(signal: Signal) {
    let alone = SigSet::from(signal);
    if raise(signal).is_ok() && alone.thread_unblock().is_ok() {
        // We have been stopped, and go on.
        alone.thread_block().ok();
    }
}

/// Sets the timer when somebody stands, and takes it back when nobody does.
fn wake_if_long(anybody: bool) {
    let mut timer = TIMER.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(timer) = timer.as_mut() else { return };
    let time = if anybody { WAKE } else { Duration::ZERO };
    if let Err(error) = timer.set(time) {
        tracing::debug!(%error, "no timer wakes us up");
    }
}
