//! Where the name of a Unix socket leads, and giving a socket its name there.
//!
//! A socket is given its name, whatever that is, in a directory of our own that counts as the root directory for a moment, by a
//! thread that acts as the process. Where no file is wanted, as for an accepted connection, which has the name of the
//! listening socket, nothing of it stays. Where one is, see `file`.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chroot};
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc::{Sender, channel};

use pagetide_kernel::file_context::unshare_file_context;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::fchdir;
use tempfile::TempDir;

use super::file::Egg;
use crate::opener::Opener;

/// Longest name: the field `sun_path`.
const NAME_BYTES_MAX: usize = 108;

/// The bytes of an address with this name. `None` if no socket can have it.
pub(super) fn address_of(name: &[u8]) -> Option<Vec<u8>> {
    let is_path = name.first().is_some_and(|first| *first != 0);
    if name.len() > NAME_BYTES_MAX || (is_path && name.contains(&0)) {
        return None;
    }
    let mut address = 1_u16.to_ne_bytes().to_vec();
    address.extend_from_slice(name);
    Some(address)
}

/// Where a name leads to a socket.
#[derive(Clone)]
pub(super) enum Place {
    /// Anywhere: the name is abstract.
    Anywhere,
    /// From this root directory.
    Apart(Rc<Apart>),
    /// From this root directory, in which the socket's file waits for its place.
    Nest(Rc<Egg>),
}

/// A directory of which nothing stays.
pub(super) struct Apart {
    root: OwnedFd,
    opener: Opener,
    /// Nobody else can enter it.
    _outside: TempDir,
}

impl Place {
    /// A place in which `name` can be given to a socket whatever files there are.
    pub(super) fn apart(name: &[u8], opener: &Opener) -> io::Result<Self> {
        if name.first().is_none_or(|first| *first == 0) {
            return Ok(Self::Anywhere);
        }
        let outside = tempfile::Builder::new().prefix("pagetide-").tempdir()?;
        let inside = outside.path().join("root");
        fs::create_dir(&inside)?;
        let root = open_directory(&inside)?;
        // The process makes directories and the file of its socket in there.
        let all = fs::Permissions::from_mode(0o777);
        fs::File::open(&inside)?.set_permissions(all)?;
        let place = Self::Apart(Rc::new(Apart {
            root,
            opener: opener.clone(),
            _outside: outside,
        }));
        place.enter(|| make_parents(name))?;
        Ok(place)
    }

    /// Runs `work` in a thread for which names lead from here, and which acts as the process.
    pub(super) fn enter<T: Send>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        match self {
            Self::Anywhere => work(),
            Self::Apart(apart) => enter(&apart.root, &apart.opener, work),
            Self::Nest(egg) => egg.enter(work),
        }
    }
}

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
