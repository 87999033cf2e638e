//! SIGINT and SIGTERM: what is under way ends early and cleanly, and the exit code tells. A second
//! signal ends at once.

use nix::sys::signal::{SigSet, Signal};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Which signal came, if any.
#[derive(Clone, Default)]
pub struct Signals {
    cancel: Arc<AtomicBool>,
    received: Arc<AtomicUsize>,
}

impl Signals {
    /// Catches both signals from now on.
    pub fn catch() -> std::io::Result<Signals> {
        let signals = Signals::default();
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal finds `cancel` unset and sets it; the second ends us.
            let status = 128 + signal;
            signal_hook::flag::register_conditional_shutdown(
                signal,
                status,
                Arc::clone(&signals.cancel),
            )?;
            signal_hook::flag::register(signal, Arc::clone(&signals.cancel))?;
            let number = signal.unsigned_abs() as usize;
            signal_hook::flag::register_usize(signal, Arc::clone(&signals.received), number)?;
        }
        take_by_another_thread()?;
        Ok(signals)
    }

    /// Set when a signal came.
    pub fn cancel(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancel)
    }

    /// True if a signal came.
    pub fn came(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    /// The exit status of a program ended by the signal that came.
    pub fn exit_status(&self) -> Option<u8> {
        match self.received.load(Ordering::Relaxed) {
            0 => None,
            number => u8::try_from(128 + number).ok(),
        }
    }
}

/// Has a thread take the signals that does nothing else: one that waits in the kernel for a file system that never answers
/// takes none, and the kernel would choose the first thread. Threads that are started later do not take them either, and
/// commands that are started have a mask of their own.
fn take_by_another_thread() -> std::io::Result<()> {
    let both = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    both.thread_block()?;
    let wait = move || {
        if both.thread_unblock().is_ok() {
            loop {
                std::thread::park();
            }
        }
    };
    std::thread::Builder::new()
        .name("pagetide-signals".to_owned())
        .spawn(wait)
        .map(drop)
}
