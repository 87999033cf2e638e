//! Where a thread's list of robust futexes begins: get_robust_list(2), Linux 2.6.17. Needs ptrace access (read).

#![allow(unsafe_code)]

use crate::ptrace::ThreadId;
use nix::libc;
use std::io;

/// What a thread gave to `set_robust_list(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RobustList {
    /// Address of the head in the memory of the thread; 0 if it gave none.
    pub head: u64,
    /// Length of the head, in bytes.
    pub length_bytes: u64,
}

/// The list of any thread. ESRCH no such thread; EPERM no privilege.
pub fn robust_list(thread: ThreadId) -> io::Result<RobustList> {
    let mut list = RobustList::default();
    // SAFETY: the call writes a pointer and a length, 8 bytes each, to two fields of that size which live until after.
    let result = unsafe {
        libc::syscall(
            libc::SYS_get_robust_list,
            thread.get(),
            &raw mut list.head,
            &raw mut list.length_bytes,
        )
    };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_list_is_what_the_libc_gave() {
        let own = robust_list(ThreadId::new(0)).expect("the own list");
        // `struct robust_list_head`: three words.
        assert_eq!(own.length_bytes, 24);
        assert_ne!(own.head, 0);
        assert!(robust_list(ThreadId::new(i32::MAX)).is_err());
    }
}
