//! The file of a Unix socket, made in the directory it belongs to, by descriptors of that directory, and as the process.
//!
//! The socket is bound in a new directory in there (a nest), to which nobody else has the way, and its file is moved to its place
//! last, without replacing anything but the file of a socket on which nobody listens any more. No link is followed
//! on the way. If the process may not make files in that directory any more, we do it, but only where nobody but root could
//! have changed the directory or any above it.

use super::address::address_of;
use super::options::Shape;
use super::rooted::{Resident, enter, make_parents, open_directory};
use super::state::SocketFile;
use crate::opener::{FileIdentity, Name, OpenError, Opener, PathTarget, identity};
use pagetide_kernel::socket::{bind, connect};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid, chmodat, chownat, fstat, linkat,
    mkdirat, openat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::umask;
use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

const TRIES_FOR_A_NAME: u128 = 1000;

/// Files made for sockets, which are removed again unless they are to be kept. One in whose place was a stale one stays, stale.
#[derive(Debug, Default)]
pub(crate) struct Files {
    made: Vec<Name>,
}

impl Files {
    pub(crate) fn keep(mut self) {
        self.made.clear();
    }

    /// Moves the file of a socket to its place. A stale file of a socket nobody listens on is replaced. EADDRINUSE if
    /// another socket is there, or a file that is none.
    pub(super) fn publish(&mut self, egg: &Egg, shape: Shape) -> io::Result<()> {
        self.made.extend(egg.publish(shape)?);
        Ok(())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.made.iter().for_each(Name::remove);
    }
}

/// A new directory in one that files of sockets belong to. It is removed when this is dropped.
struct Nest {
    /// Who made it.
    opener: Opener,
    /// Where the files belong.
    home: PathTarget,
    /// The nest, and its name in there.
    root: OwnedFd,
    name: OsString,
    /// The directories in it that names lead through.
    ways: RefCell<BTreeSet<PathBuf>>,
    /// Works in there, once there is something to do.
    resident: OnceCell<Resident>,
}

impl Nest {
    fn resident(&self) -> io::Result<&Resident> {
        if let Some(resident) = self.resident.get() {
            return Ok(resident);
        }
        let started = Resident::start(copy(&self.root)?, self.opener.clone())?;
        Ok(self.resident.get_or_init(|| started))
    }
}

impl Drop for Nest {
    fn drop(&mut self) {
        let (Ok(home), Ok(root)) = (self.home.copy(), copy(&self.root)) else {
            return;
        };
        let name = self.name.clone();
        let mut ways: Vec<PathBuf> = self.ways.take().into_iter().collect();
        ways.sort_by_key(|way| std::cmp::Reverse(way.components().count()));
        // What others have put there keeps it, and is theirs.
        drop(self.opener.run(move || {
            for way in ways {
                unlinkat(&root, way, AtFlags::REMOVEDIR).ok();
            }
            unlinkat(&home, name, AtFlags::REMOVEDIR).ok();
        }));
    }
}

/// Nests that there are already: to make one and to remove it costs a file system more than all else about a socket, so those whose
/// files belong into one directory, and that one process made, have one together.
#[derive(Default)]
pub(super) struct Nests {
    known: HashMap<(FileIdentity, u32, u32), Rc<Nest>>,
}

/// The file of a socket in a nest. It is removed when this is dropped, unless it was moved to its place.
pub(super) struct Egg {
    nest: Rc<Nest>,
    /// Its name, there and where it belongs.
    name: OsString,
    /// The directory in the nest that the socket's name leads to.
    bed: OwnedFd,
    which: FileIdentity,
}

impl Nests {
    /// Binds `socket` to the path `name` as it was, in a nest.
    pub(super) fn bind(
        &mut self,
        socket: BorrowedFd<'_>,
        name: &[u8],
        file: &SocketFile,
        opener: &Opener,
    ) -> io::Result<Egg> {
        let directory = PathBuf::from(OsStr::from_bytes(&file.directory));
        let path = directory.join(OsStr::from_bytes(name));
        let (opener, (home, base)) = match opener.find_parent(&path) {
            Err(OpenError::Kernel(Errno::ACCESS)) => {
                let own = opener.own();
                let found = own.find_parent(&path).map_err(plain)?;
                if !found.0.is_roots_alone() {
                    return Err(Errno::ACCESS.into());
                }
                (own, found)
            }
            found => (opener.clone(), found.map_err(plain)?),
        };
        let key = (identity(&home.stat), opener.user(), opener.group());
        if let Some(nest) = self
            .known
            .get(&key)
            .filter(|nest| nest.opener.is_like(&opener))
        {
            // Names can be in each other's way in there.
            if let Ok(egg) = Egg::lay(nest, socket, name, &base, file) {
                return Ok(egg);
            }
        }
        let nest = Rc::new(make_nest(home, &opener)?);
        let egg = Egg::lay(&nest, socket, name, &base, file)?;
        self.known.insert(key, nest);
        Ok(egg)
    }
}

impl Egg {
    fn lay(
        nest: &Rc<Nest>,
        socket: BorrowedFd<'_>,
        name: &[u8],
        base: &OsStr,
        file: &SocketFile,
    ) -> io::Result<Self> {
        let address = address_of(name).ok_or(io::ErrorKind::InvalidData)?;
        let inside = PathBuf::from(OsStr::from_bytes(name));
        nest.ways.borrow_mut().extend(ways(&inside));
        let socket = socket.try_clone_to_owned()?;
        let (called, file) = (base.to_owned(), file.clone());
        let work = move || {
            make_parents(inside.as_os_str().as_bytes())?;
            // The mask is this thread's own, as are its directories.
            umask(Mode::from_raw_mode(!file.mode & 0o777));
            bind(socket.as_fd(), &address)?;
            let parent = inside.parent().filter(|parent| *parent != Path::new(""));
            let bed = open_directory(parent.unwrap_or(Path::new(".")))?;
            let stat = own(&bed, &called, &file)?;
            Ok((bed, identity(&stat)))
        };
        let (bed, which) = nest.resident()?.run(work)?;
        Ok(Self {
            nest: Rc::clone(nest),
            name: base.to_owned(),
            bed,
            which,
        })
    }

    /// Runs `work` in a thread for which the nest is the root directory, and which acts as the process.
    pub(super) fn enter<T: Send>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        enter(&self.nest.root, &self.nest.opener, work)
    }

    /// The name that was made; none if a stale file had it.
    fn publish(&self, shape: Shape) -> io::Result<Option<Name>> {
        let nest = &self.nest;
        let (bed, home) = (copy(&self.bed)?, nest.home.copy()?);
        let (name, which) = (self.name.clone(), self.which);
        let put = nest
            .opener
            .run(move || put_in_place(&bed, &home, &name, which, shape));
        let is_new = put.map_err(plain)??;
        let home = nest.opener.find_again(&nest.home).map_err(plain)?;
        Ok(is_new.then(|| Name::new(home, self.name.clone(), self.which)))
    }
}

impl Drop for Egg {
    fn drop(&mut self) {
        if let Ok(bed) = copy(&self.bed) {
            let (name, which) = (self.name.clone(), self.which);
            // It is still there only if it was not moved; what others have got there in exchange is theirs.
            let remove = move || match statat(&bed, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(found) if identity(&found) == which => unlinkat(bed, name, AtFlags::empty()),
                _ => Ok(()),
            };
            drop(self.nest.opener.run(remove));
        }
    }
}

fn make_nest(home: PathTarget, opener: &Opener) -> io::Result<Nest> {
    let make = |opener: &Opener| {
        let home = home.copy()?;
        let user = opener.user();
        let made = opener.run(move || make_nest_in(&home, user));
        made.map_err(plain)?.map_err(io::Error::from)
    };
    let (opener, made) = match make(opener) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && home.is_roots_alone() => {
            let own = opener.own();
            let made = make(&own);
            (own, made)
        }
        made => (opener.clone(), made),
    };
    let (root, name) = made?;
    Ok(Nest {
        resident: OnceCell::new(),
        opener,
        home,
        root,
        name,
        ways: RefCell::default(),
    })
}

fn make_nest_in(home: &OwnedFd, user: u32) -> Result<(OwnedFd, OsString), Errno> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seed = now.map_or(0, |since| since.as_nanos());
    let name = |number: u128| OsString::from(format!(".pagetide-{:x}", seed + number));
    for name in (0..TRIES_FOR_A_NAME).map(name) {
        match mkdirat(home, &name, Mode::RWXU) {
            Err(Errno::EXIST) => continue,
            made => made?,
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = openat(home, &name, flags, Mode::empty())?;
        let stat = fstat(&root)?;
        // Somebody may have put another one there.
        if stat.st_uid == user && stat.st_mode & 0o077 == 0 {
            return Ok((root, name));
        }
    }
    Err(Errno::EXIST)
}

/// Gives the file in `bed` the permissions and owner that it had.
fn own(bed: &OwnedFd, name: &OsStr, file: &SocketFile) -> io::Result<Stat> {
    let look = || statat(bed, name, AtFlags::SYMLINK_NOFOLLOW);
    let stat = look()?;
    let [user, group] = file.owner;
    if [stat.st_uid, stat.st_gid] != [user, group] {
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        chownat(
            bed,
            name,
            Some(user),
            Some(group),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    let stat = look()?;
    if stat.st_mode & 0o777 != file.mode & 0o777 {
        // A default list of access rights stands above the mask. Nobody else has the way in here.
        chmodat(
            bed,
            name,
            Mode::from_raw_mode(file.mode & 0o777),
            AtFlags::empty(),
        )?;
    }
    Ok(look()?)
}

/// True if nothing was there before.
fn put_in_place(
    bed: &OwnedFd,
    home: &OwnedFd,
    name: &OsStr,
    which: FileIdentity,
    shape: Shape,
) -> Result<bool, Errno> {
    let moved = match renameat_with(bed, name, home, name, RenameFlags::NOREPLACE) {
        // The file system does not know this.
        Err(Errno::INVAL) => linkat(bed, name, home, name, AtFlags::empty())
            .and_then(|()| unlinkat(bed, name, AtFlags::empty())),
        other => other,
    };
    match moved {
        Err(Errno::EXIST) => {}
        other => return other.map(|()| true),
    }
    let Some(stale) = stale(home, name, shape)? else {
        return Err(Errno::ADDRINUSE);
    };
    renameat_with(bed, name, home, name, RenameFlags::EXCHANGE)?;
    let found = identity(&statat(bed, name, AtFlags::SYMLINK_NOFOLLOW)?);
    if found != stale {
        // Something else has come there meanwhile, and goes back.
        let back = renameat_with(bed, name, home, name, RenameFlags::EXCHANGE);
        return back.and(Err(Errno::ADDRINUSE));
    }
    unlinkat(bed, name, AtFlags::empty())?;
    let now = identity(&statat(home, name, AtFlags::SYMLINK_NOFOLLOW)?);
    if now == which {
        Ok(false)
    } else {
        Err(Errno::ADDRINUSE)
    }
}

/// The file in the way, if it is that of a socket nobody listens on.
fn stale(home: &OwnedFd, name: &OsStr, shape: Shape) -> Result<Option<FileIdentity>, Errno> {
    use std::os::fd::AsRawFd;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(home, name, flags, Mode::empty())?;
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Ok(None);
    }
    let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let probe = shape.open().map_err(errno)?;
    rustix::io::ioctl_fionbio(&probe, true)?;
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let address = address_of(link.as_bytes()).ok_or(Errno::INVAL)?;
    let refused = connect(probe.as_fd(), &address);
    let refused = refused.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    Ok(refused.then(|| identity(&stat)))
}

/// The directories that a name leads through, from the nest.
fn ways(name: &Path) -> BTreeSet<PathBuf> {
    let mut at = PathBuf::new();
    let mut ways = BTreeSet::new();
    for part in name.parent().unwrap_or(Path::new("")).components() {
        match part {
            Component::Normal(part) => at.push(part),
            Component::ParentDir => drop(at.pop()),
            _ => continue,
        }
        if at != Path::new("") {
            ways.insert(at.clone());
        }
    }
    ways
}

fn copy(file: &OwnedFd) -> Result<OwnedFd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(file, 0)
}

/// What the kernel said, or else the words.
pub(super) fn plain(error: OpenError) -> io::Error {
    match error {
        OpenError::Kernel(errno) => errno.into(),
        error => io::Error::new(io::ErrorKind::PermissionDenied, error),
    }
}
