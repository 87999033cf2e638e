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
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    u64::from_str_radix(mask.expect("a line SigIgn").trim(), 16).expect("a mask")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    /// Starts this test program again with these signals ignored, and has it say what a child of it ignores.
    #[test]
    fn what_tests_start_ignores_nothing_though_they_do() {
        let scratch = || crate::scratch::Scratch::new();
        if std::env::var_os("PAGETIDE_IGNORING").is_some() {
            let _scratch = scratch();
            let child = Command::new("cat").arg("/proc/self/status").output();
            let status = String::from_utf8(child.expect("run cat").stdout).expect("text");
            println!("of the child: {:#b}", super::ignored(&status) & 0b111);
            return;
        }
        let program = std::env::current_exe().expect("the path of this program");
        let name = "signals::tests::what_tests_start_ignores_nothing_though_they_do";
        let output = Command::new("sh")
            .arg("-c")
            .arg("trap '' HUP INT QUIT; exec \"$0\" --exact \"$1\" --nocapture")
            .arg(program)
            .arg(name)
            .env("PAGETIDE_IGNORING", "1")
            .output();
        let output = output.expect("run it again");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("of the child: 0b0\n"), "{said}");
    }
}
