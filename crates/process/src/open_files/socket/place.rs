//! Where the name of a Unix socket leads, and giving a socket its name there.
//!
//! A socket is given its name, whatever that is, in a directory of our own that counts as the root directory for a moment, by a
//! thread that acts as the process. Where no file is wanted, as for an accepted connection, which has the name of the
//! listening socket, nothing of it stays. Where one is, see `file`.

use super::file::Egg;
use super::rooted::{enter, make_parents, open_directory};
use crate::opener::Opener;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::rc::Rc;
use tempfile::TempDir;

/// Where a name leads to a socket.
#[derive(Clone)]
pub(super) enum SocketName {
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

impl SocketName {
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
