//! Whether two processes have one address space, as vfork(2) and clone(2) with CLONE_VM leave them.
//!
//! kcmp(2), since Linux 3.5, with CONFIG_KCMP; needs PTRACE_MODE_READ_REALCREDS for both.

#![allow(unsafe_code)]

use nix::libc;
use std::io;

/// KCMP_VM of `linux/kcmp.h`.
const ADDRESS_SPACES: libc::c_int = 1;

/// True if both processes have the same address space. ESRCH if one of them is gone, ENOSYS if the
/// kernel cannot tell. One that has ended and was not reaped has none, as has a thread of the kernel.
pub fn share_address_space(one: i32, other: i32) -> io::Result<bool> {
    // SAFETY: the call takes numbers only, and touches no memory of the caller.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, ADDRESS_SPACES, 0, 0) };
    match order {
        0 => Ok(true),
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_shares_with_itself_and_not_with_a_child_that_runs_another_program() {
        let own = i32::try_from(std::process::id()).expect("a pid");
        let mut child = Command::new("sleep").arg("60").spawn().expect("run sleep");
        let pid = i32::try_from(child.id()).expect("a pid");
        let answers = (share_address_space(own, own), share_address_space(own, pid));
        child.kill().expect("end it");
        child.wait().expect("reap it");
        match answers {
            // A kernel without CONFIG_KCMP.
            (Err(error), _) if error.raw_os_error() == Some(libc::ENOSYS) => {}
            (own, other) => assert!(matches!((own, other), (Ok(true), Ok(false)))),
        }
        assert!(share_address_space(own, pid).is_err());
    }
}
