//! Threads whose root directory is another one than that of this program, and which act as a process.

use crate::opener::Opener;
use pagetide_kernel::file_context::unshare_file_context;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::fchdir;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::chroot;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};

/// The directories that a name leads through.
pub(super) fn make_parents(name: &[u8]) -> io::Result<()> {
    let path = Path::new(OsStr::from_bytes(name));
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

pub(super) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

/// Runs `work` in a thread whose root and current directory are `root`, and which acts as the process.
pub(super) fn enter<T: Send>(
    root: &OwnedFd,
    opener: &Opener,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || {
            go_in(root, opener)?;
            work()
        })?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread has failed")))
    })
}

fn go_in(root: &OwnedFd, opener: &Opener) -> io::Result<()> {
    unshare_file_context()?;
    fchdir(root.as_fd())?;
    chroot(".")?;
    opener.assume()
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread as that of [`enter`], for more than one piece of work: it ends with this value.
pub(super) struct Resident {
    jobs: Sender<Job>,
}

impl Resident {
    pub(super) fn start(root: OwnedFd, opener: Opener) -> io::Result<Self> {
        let (jobs, taken) = channel::<Job>();
        let (tell, told) = channel();
        std::thread::Builder::new().spawn(move || {
            let is_in = go_in(&root, &opener);
            let ready = is_in.is_ok();
            drop(tell.send(is_in));
            if ready {
                taken.iter().for_each(|job| job());
            }
        })?;
        told.recv().map_err(io::Error::other)??;
        Ok(Self { jobs })
    }

    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (answer, answered) = channel();
        let job = move || drop(answer.send(work()));
        let ended = || io::Error::other("the thread has failed");
        self.jobs.send(Box::new(job)).map_err(|_| ended())?;
        answered.recv().map_err(|_| ended())?
    }
}
