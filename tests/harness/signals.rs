//! Tests mean the same however they are started: by nohup(1), or in the background of a shell that has no jobs, a program
//! finds SIGHUP, or SIGINT and SIGQUIT, ignored, and so would all that it starts.

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use std::sync::Arc;
use std::sync::Once;

/// What is started from now on finds no signal ignored that this program found ignored. The program itself stays as it is:
/// such a signal has a handler that does nothing, which execve(2) takes away.
pub(crate) fn leave_none_ignored() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM]
            .into_iter()
            .filter(is_ignored)
        {
            signal_hook::flag::register(signal, Arc::default()).expect("set a handler");
        }
    });
}

fn is_ignored(signal: &i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("read one's own status");
    ignored(&status) & 1 << (signal - 1) != 0
}

/// `SigIgn` of /proc/PID/status, proc_pid_status(5): a bit a signal, signal 1 the lowest.
pub(crate) fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    u64::from_str_radix(mask.expect("a line SigIgn").trim(), 16).expect("a mask")
}
