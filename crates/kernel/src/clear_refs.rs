//! `/proc/PID/clear_refs` with the value 4: clearing soft-dirty bits.
//!
//! Since Linux 3.11 with CONFIG_MEM_SOFT_DIRTY; kernels without it take the request and do nothing, so
//! probe (see [`crate::probe`]). Needs to be the owner of the process, or CAP_DAC_OVERRIDE. Sources:
//! proc_pid_clear_refs(5), `Documentation/admin-guide/mm/soft-dirty.rst`.
//!
//! One request clears the bits of all pages of the address space and the mark of all its mappings; there
//! is none for a part of it. Hugetlb pages are passed over. What was written between reading the bits and
//! clearing them is lost, so nothing may run in the address space meanwhile.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// The request that clears soft-dirty bits and marks.
const CLEAR_SOFT_DIRTY: &[u8] = b"4";

/// Why soft-dirty bits could not be cleared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClearRefsError {
    /// The file could not be opened.
    #[error("open {path}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The process has ended.
    #[error("clear soft-dirty bits: the process has ended")]
    Ended,
    /// The kernel refused. Nothing was cleared, or everything.
    #[error("clear soft-dirty bits")]
    Kernel(#[source] std::io::Error),
}

/// An open `/proc/PID/clear_refs`. It stays with the process, not with the address space: after an
/// execve(2) it clears the bits of the new program.
#[derive(Debug)]
pub struct ClearRefs {
    file: File,
}

impl ClearRefs {
    /// That of process `pid`.
    pub fn of_process(pid: i32) -> Result<Self, ClearRefsError> {
        Self::open(PathBuf::from(format!("/proc/{pid}/clear_refs")))
    }

    /// That of the calling process.
    pub fn of_self() -> Result<Self, ClearRefsError> {
        Self::open(PathBuf::from("/proc/self/clear_refs"))
    }

    fn open(path: PathBuf) -> Result<Self, ClearRefsError> {
        match File::options().write(true).open(&path) {
            Ok(file) => Ok(Self { file }),
            Err(source) => Err(ClearRefsError::Open { path, source }),
        }
    }

    /// Clears the soft-dirty bits of all pages, and the soft-dirty mark of all mappings.
    pub fn clear_soft_dirty(&self) -> Result<(), ClearRefsError> {
        self.file
            .write_all_at(CLEAR_SOFT_DIRTY, 0)
            .map_err(|error| match error.raw_os_error() {
                Some(nix::libc::ESRCH) => ClearRefsError::Ended,
                _ => ClearRefsError::Kernel(error),
            })
    }
}
