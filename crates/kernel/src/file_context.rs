//! A working directory, root and file mode mask of a thread's own.
//!
//! unshare(2) with CLONE_FS, since Linux 2.6.16; needs no privilege.

#![allow(unsafe_code)]

use nix::libc;
use std::io;

/// Gives the calling thread its own working directory, root directory and file mode creation mask, as copies of those it
/// shared with the other threads until now. Call it in a thread that ends soon: there is no way back.
pub fn unshare_file_context() -> io::Result<()> {
    // SAFETY: the call takes a number only and touches no memory; what it changes is the calling thread's alone.
    if unsafe { libc::unshare(libc::CLONE_FS) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_its_own_directory() {
        let before = std::env::current_dir().expect("a directory");
        let inside = std::thread::spawn(|| {
            unshare_file_context().expect("unshare");
            std::env::set_current_dir("/proc").expect("change it");
            std::env::current_dir().expect("a directory")
        })
        .join()
        .expect("the thread");
        assert_eq!(inside, std::path::Path::new("/proc"));
        assert_eq!(std::env::current_dir().expect("a directory"), before);
    }
}
