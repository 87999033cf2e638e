//! SIGINT, SIGTERM and SIGHUP: what is under way ends early and cleanly, and the exit code tells. A second signal ends at once.
//! SIGHUP is left alone where it is ignored, as under nohup(1). SIGPIPE is ignored by the standard library: what cannot be
//! written is an error of whoever writes.

use crate::job_control;
use nix::sys::signal::{SigSet, Signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Which signal came, if any.
#[derive(Clone, Default)]
pub struct Signals {
    cancel: Arc<AtomicBool>,
    received: Arc<AtomicUsize>,
}

impl Signals {
    /// Catches them from now on.
    pub fn catch() -> std::io::Result<Self> {
        job_control::stop_only_while_none_stands()?;
        let signals = Self::default();
        let caught = [SIGINT, SIGTERM, SIGHUP];
        let caught = &caught[..if is_ignored(SIGHUP) { 2 } else { 3 }];
        for &signal in caught {
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

/// True if whoever started us wants this signal to be ignored: `SigIgn` of proc_pid_status(5).
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

/// Has a thread take the signals that does nothing else: one that waits in the kernel for a file system that never answers
/// takes none, and the kernel would choose the first thread. Threads that are started later do not take them either, and
/// commands that are started have a mask of their own.
fn take_by_another_thread() -> std::io::Result<()> {
    let all = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    all.thread_block()?;
    let wait = move || {
        if all.thread_unblock().is_ok() {
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
