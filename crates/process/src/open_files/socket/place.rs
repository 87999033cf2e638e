//! Where the name of a Unix socket leads, and giving a socket its name there.
//!
//! A path need not lead to the socket any more: the name of an accepted connection is that of the listening socket, and
//! files are removed and replaced. Such a name is given in a directory of our own that counts as the root directory for a moment, so that
//! the socket has its name and no file is touched.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, chown, chroot};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use pagetide_kernel::file_context::unshare_file_context;
use pagetide_kernel::socket::{bind, connect};
use rustix::fs::Mode;
use rustix::process::umask;
use tempfile::TempDir;

use super::options::Shape;
use super::state::SocketFile;

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
    /// From this directory.
    Directory(PathBuf),
    /// From this root directory.
    Root(Rc<TempDir>),
}

impl Place {
    /// A place in which `name` can be given to a socket whatever files there are.
    pub(super) fn apart(name: &[u8]) -> io::Result<Self> {
        if name.first().is_none_or(|first| *first == 0) {
            return Ok(Self::Anywhere);
        }
        let root = tempfile::Builder::new().prefix("pagetide-").tempdir()?;
        let place = Self::Root(Rc::new(root));
        let path = Path::new(OsStr::from_bytes(name));
        place.enter(|| path.parent().map_or(Ok(()), fs::create_dir_all))?;
        Ok(place)
    }

    /// Runs `work` in a thread for which names lead from here.
    pub(super) fn enter<T: Send>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        let (directory, is_root) = match self {
            Self::Anywhere => return work(),
            Self::Directory(directory) => (directory.as_path(), false),
            Self::Root(root) => (root.path(), true),
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, || {
                unshare_file_context()?;
                if is_root {
                    chroot(directory)?;
                    std::env::set_current_dir("/")?;
                } else {
                    std::env::set_current_dir(directory)?;
                }
                work()
            })?;
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread has failed")))
        })
    }
}

/// Files made for sockets, which are removed again unless they are to be kept. One in whose place was a stale one stays, stale.
#[derive(Debug, Default)]
pub(crate) struct Files {
    made: Vec<PathBuf>,
}

impl Files {
    pub(crate) fn keep(mut self) {
        self.made.clear();
    }

    /// Binds `socket` to the path `name` as it was. A stale file of a socket nobody listens on is replaced. EADDRINUSE if
    /// another socket is there, or a file that is none.
    pub(super) fn bind(
        &mut self,
        socket: BorrowedFd<'_>,
        shape: Shape,
        name: &[u8],
        file: &SocketFile,
    ) -> io::Result<Place> {
        let address = address_of(name).ok_or(io::ErrorKind::InvalidData)?;
        let directory = PathBuf::from(OsStr::from_bytes(&file.directory));
        let path = directory.join(OsStr::from_bytes(name));
        let place = Place::Directory(directory);
        let bound = &mut self.made;
        place.enter(|| {
            let was_there = remove_stale(&path, shape, &address)?;
            // The mask is this thread's own, as is the directory.
            let before = umask(Mode::from_raw_mode(!file.mode & 0o777));
            let result = bind(socket, &address);
            umask(before);
            result?;
            if !was_there {
                bound.push(path.clone());
            }
            let [user, group] = file.owner;
            chown(&path, Some(user), Some(group))
        })?;
        Ok(place)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for path in &self.made {
            // A failed restore has an error of its own to tell.
            let _ = fs::remove_file(path);
        }
    }
}

/// True if there was one.
fn remove_stale(path: &Path, shape: Shape, address: &[u8]) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        // Nothing there, or something that is not to be touched, of which bind(2) tells.
        _ => return Ok(false),
    }
    let probe = shape.open()?;
    rustix::io::ioctl_fionbio(&probe, true)?;
    match connect(probe.as_fd(), address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map(|()| true)
        }
        // Somebody is there: bind(2) will say that the address is in use.
        _ => Ok(false),
    }
}
