//! Resource limits of another process: prlimit(2), Linux 2.6.36.
//!
//! Needs CAP_SYS_RESOURCE, or the same user and group ids throughout; raising a hard limit always needs the former.

#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::ptr;

use nix::libc;

/// How many resources the kernel limits: RLIM_NLIMITS. They are numbered from 0, see `getrlimit(2)`.
pub const LIMIT_COUNT: usize = 16;

/// Numbers of the resources that something is known about here.
pub const LIMIT_SIGNALS_PENDING: usize = 11;

/// One limit. All ones: none.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limit {
    /// The limit in force.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

const _: () = assert!(size_of::<Limit>() == size_of::<libc::rlimit64>());

/// All limits of a process, by the number of the resource.
///
/// # Errors
/// ESRCH no such process; EPERM no privilege.
pub fn limits(pid: i32) -> io::Result<[Limit; LIMIT_COUNT]> {
    let mut limits = [Limit::default(); LIMIT_COUNT];
    for (resource, limit) in (0u32..).zip(&mut limits) {
        call(pid, resource, ptr::null(), limit)?;
    }
    Ok(limits)
}

/// Sets a limit of a process.
///
/// # Errors
/// ESRCH no such process; EPERM no privilege; EINVAL no such resource, or the soft limit is above the hard one.
pub fn set_limit(pid: i32, resource: usize, limit: Limit) -> io::Result<()> {
    let resource = u32::try_from(resource).unwrap_or(u32::MAX);
    call(pid, resource, &raw const limit, &mut Limit::default())
}

/// `new` is null or points to a limit.
fn call(pid: i32, resource: u32, new: *const Limit, old: &mut Limit) -> io::Result<()> {
    let old = ptr::from_mut(old);
    // SAFETY: the call reads two words from `new` if that is not null (it points to a limit then, as all callers in
    // this file have it) and writes two words to `old`, borrowed until after it.
    let result = unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, new, old) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn what_is_set_for_a_child_is_read() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("run sleep");
        let pid = i32::try_from(child.id()).expect("a pid");
        let (soft, hard) = (17, 21);
        let set = set_limit(pid, LIMIT_SIGNALS_PENDING, Limit { soft, hard });
        let after = limits(pid);
        let refused = set_limit(pid, LIMIT_COUNT, Limit { soft, hard });
        child.kill().expect("end it");
        child.wait().expect("reap it");
        set.expect("lower a limit");
        let after = after.expect("read them");
        assert_eq!(after[LIMIT_SIGNALS_PENDING], Limit { soft, hard });
        let refused = refused.expect_err("no such resource");
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    }
}
