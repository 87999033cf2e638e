//! Files opened, made and removed as a process of the snapshot would: with its user, groups and capabilities, or, where those do
//! not suffice any more, only the very file that it had.
//!
//! Paths of a snapshot are as the kernel tells them, without symbolic links. If one is in the way now, it is followed only if
//! root or the process's user made it. The file is looked at before anything of it is opened (O_PATH, which waits for nobody and
//! has no effect on devices), and what is opened then is what was looked at, through its descriptor.

mod walk;

use crate::kernel_state::Credentials;
use pagetide_kernel::acting::Actor;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, fstat, open, openat, readlink, statat, unlinkat,
};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

/// Why a file was not opened or made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] Errno),
    /// A symbolic link is in the path.
    #[error("has a symbolic link in it now that neither root nor user {user} made")]
    Link {
        /// User of the process.
        user: u32,
    },
    /// It leads out of the directories that are allowed.
    #[error("leads to {resolved} now, which is not allowed")]
    NotAllowed {
        /// Where it leads.
        resolved: PathBuf,
    },
    /// It is another file than the process had, and one that the process may not open.
    #[error("is not the file that the process had, and user {user} may not open it")]
    NotTheirs {
        /// User of the process.
        user: u32,
    },
    /// This program may not act as the process.
    #[error("cannot be opened as user {user}: CAP_SETUID and CAP_SETGID are needed")]
    Act {
        /// User of the process.
        user: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    /// True if nothing went wrong: what is at the path now is not what the process may have.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Link { .. } | Self::NotAllowed { .. } | Self::NotTheirs { .. }
        )
    }
}

/// Which file it was at the time of the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// Its device.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

/// Opens files as one process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Opener {
    inner: Arc<Inner>,
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Debug, Default)]
struct Inner {
    /// None if that is what this program is anyhow.
    actor: Option<Actor>,
    /// A thread that acts so. It does nothing else, and ends with this value.
    worker: Mutex<Option<Sender<Job>>>,
    /// Directories in which all that is opened must lie; none: anywhere.
    allowed: Vec<PathBuf>,
}

/// The openers of all processes of a snapshot, by their numbers then.
#[derive(Clone, Debug, Default)]
pub struct Openers {
    /// For what belongs to no process.
    own: Opener,
    of: HashMap<i32, Opener>,
}

impl Openers {
    /// For files in these directories; without any, for all files.
    pub fn new(allowed: &[PathBuf]) -> Self {
        let mut all = allowed.to_vec();
        // Where they lead, which is what is compared.
        all.extend(allowed.iter().filter_map(|path| path.canonicalize().ok()));
        let inner = Inner {
            allowed: all,
            ..Inner::default()
        };
        Self {
            own: Opener {
                inner: Arc::new(inner),
            },
            of: HashMap::new(),
        }
    }

    /// Adds a process, known by its number at the time of the snapshot.
    pub fn add(&mut self, pid: i32, credentials: &Credentials) {
        let actor = credentials.as_actor();
        let is_own = Actor::own().is_ok_and(|own| own == actor);
        let actor = (!is_own).then_some(actor);
        let known = self.of.values().chain([&self.own]);
        let same = known.into_iter().find(|one| one.inner.actor == actor);
        let opener = same.cloned().unwrap_or_else(|| Opener {
            inner: Arc::new(Inner {
                actor,
                worker: Mutex::default(),
                allowed: self.own.inner.allowed.clone(),
            }),
        });
        self.of.insert(pid, opener);
    }

    /// That of a process; of one that is not known, that of this program.
    pub fn of(&self, pid: i32) -> &Opener {
        self.of.get(&pid).unwrap_or(&self.own)
    }
}

impl Opener {
    /// True if both act the same way.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.inner.actor == other.inner.actor
    }

    /// The user that counts for files.
    pub fn user(&self) -> u32 {
        let own = || rustix::process::geteuid().as_raw();
        self.inner
            .actor
            .as_ref()
            .map_or_else(own, |one| one.users[1])
    }

    /// The group that counts for files.
    pub fn group(&self) -> u32 {
        let own = || rustix::process::getegid().as_raw();
        self.inner
            .actor
            .as_ref()
            .map_or_else(own, |one| one.groups[1])
    }

    /// Makes the calling thread act as the process: one that ends soon, and that no other work is done in.
    pub(crate) fn assume(&self) -> io::Result<()> {
        self.inner.actor.as_ref().map_or(Ok(()), Actor::assume)
    }

    /// Runs `work` as the process.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, OpenError> {
        let Some(actor) = &self.inner.actor else {
            return Ok(work());
        };
        let failed = |source| OpenError::Act {
            user: self.user(),
            source,
        };
        let mut worker = self
            .inner
            .worker
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let jobs = match &*worker {
            Some(jobs) => jobs,
            None => worker.insert(start(actor.clone()).map_err(failed)?),
        };
        let (answer, answered) = channel();
        let job = move || drop(answer.send(work()));
        let ended = || failed(io::Error::other("the thread that acts so has ended"));
        jobs.send(Box::new(job)).map_err(|_| ended())?;
        answered.recv().map_err(|_| ended())
    }

    /// Looks up a path, without opening what is there, and without following a link at its end. If the process may not,
    /// the file has to be the one it had.
    pub fn find(&self, path: &Path, was: Option<FileIdentity>) -> Result<PathTarget, OpenError> {
        let found = self.look(path, was, None)?;
        self.check_allowed(|| found.resolved())?;
        Ok(found)
    }

    /// The same, of what is opened with these flags afterwards, if it is a file or directory: the thread that acts as the process is
    /// asked once for both.
    pub fn find_to_open(
        &self,
        path: &Path,
        was: Option<FileIdentity>,
        flags: OFlags,
    ) -> Result<PathTarget, OpenError> {
        // Nothing is opened that is not allowed.
        let early = self.inner.allowed.is_empty().then_some(flags | ALWAYS);
        let found = self.look(path, was, early)?;
        self.check_allowed(|| found.resolved())?;
        Ok(found)
    }

    fn look(
        &self,
        path: &Path,
        was: Option<FileIdentity>,
        early: Option<OFlags>,
    ) -> Result<PathTarget, OpenError> {
        let user = self.user();
        let wanted = path.to_owned();
        let look = move || {
            let file = walk::look_up(&wanted, user)?;
            let opened = early.and_then(|flags| open_early(&file, flags));
            Ok((file, opened))
        };
        let (file, opened) = match self.run(look)? {
            Err(Errno::ACCESS | Errno::PERM) if self.inner.actor.is_some() => {
                let not_theirs = OpenError::NotTheirs { user };
                let was = was.ok_or(Errno::ACCESS)?;
                // Whatever else may be there, nobody is told.
                let Ok(file) = walk::look_up_strictly(path) else {
                    return Err(not_theirs);
                };
                if identity(&fstat(&file)?) != was {
                    return Err(not_theirs);
                }
                (file, None)
            }
            Err(Errno::LOOP) => return Err(OpenError::Link { user }),
            other => other?,
        };
        let stat = fstat(&file)?;
        Ok(PathTarget {
            opener: self.clone(),
            path: path.to_owned(),
            is_the_same: was == Some(identity(&stat)),
            file,
            stat,
            opened: Mutex::new(opened),
        })
    }

    /// A directory, and the name of what `path` leads to in there.
    pub(crate) fn find_parent(&self, path: &Path) -> Result<(PathTarget, OsString), OpenError> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        let found = self.look(directory, None, None)?;
        if found.kind() != FileType::Directory {
            return Err(Errno::NOTDIR.into());
        }
        self.check_allowed(|| Ok(found.resolved()?.join(name)))?;
        Ok((found, name.to_owned()))
    }

    /// What another opener has found, for what is done with it from here on.
    pub(crate) fn find_again(&self, found: &PathTarget) -> Result<PathTarget, OpenError> {
        Ok(PathTarget {
            opener: self.clone(),
            path: found.path.clone(),
            file: found.copy()?,
            stat: found.stat,
            is_the_same: found.is_the_same,
            opened: Mutex::default(),
        })
    }

    /// A new file of this name, for reading and writing; EEXIST if anything has it. It belongs to the process's user.
    pub fn create(&self, path: &Path) -> Result<Created, OpenError> {
        let (directory, name) = self.find_parent(path)?;
        let (at, called) = (directory.copy()?, name.clone());
        let file = self.run(move || {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
            let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(at, called, flags, Mode::RUSR | Mode::WUSR)
        })??;
        let which = identity(&fstat(&file)?);
        Ok(Created {
            file,
            name: Name {
                directory,
                name,
                which,
            },
        })
    }

    /// A new file without a name, for reading and writing. It belongs to the process's user, and can get a name only if
    /// it is `linkable`.
    pub fn create_nameless(&self, directory: &Path, linkable: bool) -> Result<OwnedFd, OpenError> {
        let directory = self.find(directory, None)?.copy()?;
        let exclusive = if linkable {
            OFlags::empty()
        } else {
            OFlags::EXCL
        };
        let file = self.run(move || {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC | exclusive;
            openat(directory, c".", flags, Mode::RUSR | Mode::WUSR)
        })??;
        Ok(file)
    }

    /// `--allow` speaks of where a path leads.
    fn check_allowed(
        &self,
        resolve: impl FnOnce() -> Result<PathBuf, Errno>,
    ) -> Result<(), OpenError> {
        let allowed = &self.inner.allowed;
        if allowed.is_empty() {
            return Ok(());
        }
        let resolved = resolve()?;
        if is_allowed(&resolved, allowed) {
            Ok(())
        } else {
            Err(OpenError::NotAllowed { resolved })
        }
    }

    /// This program's own rights, for the same directories: for a place that nobody but root can change.
    pub(crate) fn own(&self) -> Self {
        Self {
            inner: Arc::new(Inner {
                allowed: self.inner.allowed.clone(),
                ..Inner::default()
            }),
        }
    }
}

/// True if `path` lies in one of the directories that the user allows, by its words alone.
pub fn is_allowed(path: &Path, allowed: &[PathBuf]) -> bool {
    let plain = path.components().all(|part| part != Component::ParentDir);
    plain && allowed.iter().any(|directory| path.starts_with(directory))
}

fn start(actor: Actor) -> io::Result<Sender<Job>> {
    let (jobs, taken) = channel::<Job>();
    let (tell, told) = channel();
    std::thread::Builder::new().spawn(move || {
        let assumed = actor.assume();
        let ready = assumed.is_ok();
        drop(tell.send(assumed));
        if ready {
            taken.iter().for_each(|job| job());
        }
    })?;
    told.recv().map_err(io::Error::other)??;
    Ok(jobs)
}

pub(crate) fn identity(stat: &Stat) -> FileIdentity {
    FileIdentity {
        device: stat.st_dev,
        inode: stat.st_ino,
    }
}

/// Where the kernel says a descriptor leads.
fn path_of(file: impl AsFd) -> Result<PathBuf, Errno> {
    use std::os::unix::ffi::OsStringExt;
    let link = readlink(link_of(file), Vec::new())?;
    Ok(PathBuf::from(OsString::from_vec(link.into_bytes())))
}

fn link_of(file: impl AsFd) -> String {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())
}

/// What a path leads to, not opened yet.
#[derive(Debug)]
pub struct PathTarget {
    opener: Opener,
    path: PathBuf,
    /// Opened with O_PATH.
    file: OwnedFd,
    /// What it is.
    pub stat: Stat,
    is_the_same: bool,
    /// What opening it came to, if that was done already.
    opened: Mutex<Option<Opened>>,
}

/// With which flags it was opened, and what came of it.
type Opened = (OFlags, Result<OwnedFd, Errno>);

/// Flags of whatever is opened.
const ALWAYS: OFlags = OFlags::CLOEXEC
    .union(OFlags::NOCTTY)
    .union(OFlags::NONBLOCK);

/// Opens a file or directory, which has no effect on anybody.
fn open_early(file: &OwnedFd, flags: OFlags) -> Option<Opened> {
    let kind = FileType::from_raw_mode(fstat(file).ok()?.st_mode);
    let is_harmless = matches!(kind, FileType::RegularFile | FileType::Directory);
    is_harmless.then(|| (flags, open(link_of(file), flags, Mode::empty())))
}

impl PathTarget {
    /// Its type.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Where it leads.
    pub fn resolved(&self) -> Result<PathBuf, Errno> {
        path_of(&self.file)
    }

    /// The descriptor, which is open with O_PATH only.
    pub fn into_path(self) -> OwnedFd {
        self.file
    }

    /// The same, copied.
    pub(crate) fn copy(&self) -> Result<OwnedFd, Errno> {
        rustix::io::fcntl_dupfd_cloexec(&self.file, 0)
    }

    /// Opens it, without waiting for anybody.
    pub fn open(&self, flags: OFlags) -> Result<OwnedFd, OpenError> {
        let flags = flags | ALWAYS;
        let mut early = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        // What was refused is tried again, by whoever may.
        if let Some((with, Ok(file))) = early.take()
            && with == flags
        {
            return Ok(file);
        }
        self.by_link(move |link| open(link, flags, Mode::empty()))
    }

    /// Opens it by its path, for the sake of O_NOFOLLOW, which cannot be given along with a path of `/proc`. ESTALE if
    /// that does not lead to it any more.
    pub(crate) fn open_not_following(&self, flags: OFlags) -> Result<OwnedFd, OpenError> {
        let flags = flags | OFlags::NOFOLLOW | ALWAYS;
        let (path, user) = (self.path.clone(), self.opener.user());
        let as_process = move || walk::open_last(&path, flags, user);
        let opened = match self.opener.run(as_process)? {
            Err(Errno::ACCESS | Errno::PERM) if self.is_the_same => {
                walk::open_last(&self.path, flags, 0)?
            }
            other => other?,
        };
        if identity(&fstat(&opened)?) == identity(&self.stat) {
            Ok(opened)
        } else {
            Err(Errno::STALE.into())
        }
    }

    /// Does something with a path that leads to this very file, whatever becomes of its names.
    pub(crate) fn by_link<T: Send + 'static>(
        &self,
        work: impl Fn(&str) -> Result<T, Errno> + Send + Clone + 'static,
    ) -> Result<T, OpenError> {
        let link = link_of(&self.file);
        let (again, at) = (work.clone(), link.clone());
        match self.opener.run(move || work(&at))? {
            Err(Errno::ACCESS | Errno::PERM) if self.opener.inner.actor.is_some() => {
                if self.is_the_same {
                    Ok(again(&link)?)
                } else {
                    Err(OpenError::NotTheirs {
                        user: self.opener.user(),
                    })
                }
            }
            other => Ok(other?),
        }
    }

    /// True if neither this directory nor any that it lies in can be changed by anybody but root.
    pub(crate) fn is_roots_alone(&self) -> bool {
        let Ok(path) = self.resolved() else {
            return false;
        };
        let is_roots = |directory: &Path| {
            let stat = walk::look_up_strictly(directory).and_then(fstat);
            stat.is_ok_and(|stat| stat.st_uid == 0 && stat.st_mode & 0o022 == 0)
        };
        path.is_absolute() && path.ancestors().all(is_roots)
    }

    /// Refuses a directory that the process could not stand in, unless it stood there.
    pub(crate) fn check_enter(&self) -> Result<(), OpenError> {
        let enter = |link: &str| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            open(format!("{link}/."), flags, Mode::empty()).map(drop)
        };
        self.by_link(enter)
    }
}

impl AsFd for PathTarget {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A file that was made.
#[derive(Debug)]
pub struct Created {
    /// Open for reading and writing.
    pub file: OwnedFd,
    /// What it is called.
    pub name: Name,
}

/// A name in a directory, for a file that was made.
#[derive(Debug)]
pub struct Name {
    directory: PathTarget,
    name: OsString,
    which: FileIdentity,
}

impl Name {
    pub(crate) fn new(directory: PathTarget, name: OsString, which: FileIdentity) -> Self {
        Self {
            directory,
            name,
            which,
        }
    }

    /// Takes the name away, as the process would, if it is still that of this file. Whoever has it open keeps it.
    pub fn remove(&self) {
        let Ok(directory) = self.directory.copy() else {
            return;
        };
        let (name, which) = (self.name.clone(), self.which);
        let removed = self.directory.opener.run(move || {
            let found = statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            if identity(&found) == which {
                unlinkat(&directory, &name, AtFlags::empty())
            } else {
                Ok(())
            }
        });
        // Whoever calls has another error to tell, or does not depend on it.
        drop(removed);
    }
}

#[cfg(test)]
mod tests;
