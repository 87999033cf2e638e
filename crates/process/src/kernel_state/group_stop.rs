//! Whether a process was stopped by a signal (SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU), and whether its parent had been told by wait(2).

use crate::kernel_state::error::KernelStateError;
use crate::seizing::is_gone;
use bincode::{Decode, Encode};
use pagetide_kernel::proc_file;
use std::path::PathBuf;

/// That it is stopped. Source: signal(7), wait(2), proc_pid_stat(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct GroupStop {
    /// The signal.
    pub signal: i32,
    /// The parent has waited for it.
    pub is_told: bool,
}

/// Of a process in a group-stop by `signal`: what waits to be told is the last field of `stat` until somebody has waited for it.
pub(super) fn read(pid: i32, signal: i32) -> Result<GroupStop, KernelStateError> {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    match proc_file::read_text(&path) {
        Ok(stat) => Ok(GroupStop {
            signal,
            is_told: stat.trim_end().ends_with(" 0"),
        }),
        Err(error) if is_gone(&error) => Err(KernelStateError::Gone { pid }),
        Err(source) => Err(KernelStateError::Proc { path, source }),
    }
}
