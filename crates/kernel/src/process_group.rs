//! The process group of a process: getpgid(2). Not by rustix (1.1.6), which takes 0 for impossible, while the kernel says so of a
//! group whose number does not exist in our PID namespace: pid_namespaces(7).

use nix::unistd::{Pid, getpgid};
use std::io;

/// The process group of process `pid`; `None` if it has no number in this PID namespace.
///
/// # Errors
///
/// There is no such process.
pub fn process_group(pid: i32) -> io::Result<Option<i32>> {
    let group = getpgid(Some(Pid::from_raw(pid)))?.as_raw();
    Ok((group != 0).then_some(group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_have_groups_and_what_is_none_has_not() {
        let own = std::process::id().cast_signed();
        let group = process_group(own).expect("our own");
        assert_eq!(group, Some(nix::unistd::getpgrp().as_raw()));
        let none = process_group(i32::MAX).map_err(|error| error.raw_os_error());
        assert_eq!(none, Err(Some(nix::libc::ESRCH)));
    }
}
