//! Reading what stopped processes have open.

use super::descriptor_limit::raise_limit;
use super::error::OpenFilesError;
use super::foreign::Foreign;
use super::locks::{self, LockLine, PosixLock};
use super::model::{Description, Descriptor, DescriptorTable, Kind, OpenFiles, Owner};
use super::object::Objects;
use super::refused::{self, file_system};
use super::served::Mounts;
use super::socket::{self, ForeignSocket};
use super::tables::{self, ByNumber, Listed};
use super::terminal::{self, StandardStream};
use super::{
    device, directory, epoll, eventfd, inotify, path, pipe, process_file, regular, signalfd,
    timerfd,
};
use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use crate::stop::StoppedProcess;
use pagetide_kernel::descriptor_owner::{self, OwnerKind};
use pagetide_kernel::maps::mappings;
use pagetide_kernel::pidfd::PidFd;
use pagetide_kernel::process_group::process_group;
use rustix::fs::{FileType, MemfdFlags, OFlags, fstat, fstatfs, memfd_create};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

impl OpenFiles {
    /// Reads what the stopped processes have open, all of them at once: what two of them share is found to be one. `skip` are
    /// descriptors (process and number) that are none of the program's, as those of pagetide's tracking. Needs ptrace access.
    ///
    /// Nothing in the processes changes. The second result is all that a restore will not bring back; it is in the first,
    /// too. The limit of open files of this program is raised as far as it may be, since it has a copy of each description for
    /// a moment.
    #[tracing::instrument(level = "debug", skip_all, name = "open files")]
    pub fn read(
        stopped: &[&StoppedProcess],
        skip: &[(i32, i32)],
    ) -> Result<(Self, Vec<Blocker>), OpenFilesError> {
        raise_limit();
        let mut listed = Vec::new();
        for process in stopped {
            listed.extend(tables::list(process.identity().pid, skip)?);
        }
        let count = tables::number_descriptions(&mut listed)?;
        let mounts = Mounts::of(stopped.iter().map(|process| process.identity().pid));
        let foreigns = copy_all(stopped, &listed, count, &mounts)?;
        let mut reader = Reader::new(stopped, &listed, &foreigns, &mounts)?;
        let found: Vec<Finding> = foreigns.iter().map(|one| reader.look_at(one)).collect();
        let files = reader.finish(found);
        let blockers = files.blockers().cloned().collect();
        Ok((files, blockers))
    }
}

/// A copy of each description, with what can be told of all kinds.
fn copy_all(
    stopped: &[&StoppedProcess],
    listed: &[Listed],
    count: u32,
    mounts: &Mounts,
) -> Result<Vec<Foreign>, OpenFilesError> {
    let mut foreigns: Vec<Foreign> = Vec::with_capacity(count as usize);
    let mut process: Option<(i32, PidFd)> = None;
    for one in listed {
        let pid = one.pid;
        if let Some(known) = foreigns.get_mut(one.description as usize) {
            known.places.push((pid, one.number));
            if one.number <= 2 {
                let lowest = known.standard.unwrap_or(one.number).min(one.number);
                known.standard = Some(lowest);
            }
            continue;
        }
        let descriptor = match process.take() {
            Some((known, descriptor)) if known == pid => descriptor,
            _ => open_process(stopped, pid)?,
        };
        let is_served = mounts.are_behind(&one.info);
        let copy = if is_served {
            in_its_place(pid, one.number)
        } else {
            let copy = descriptor.get_fd(one.number);
            copy.map_err(|source| OpenFilesError::Copy { pid, source })
        }?;
        process = Some((pid, descriptor));
        let failed = |source: rustix::io::Errno| OpenFilesError::Look {
            pid,
            number: one.number,
            source: source.into(),
        };
        let link = PathBuf::from(format!("/proc/{pid}/fd/{}", one.number));
        let link =
            fs::read_link(&link).map_err(|source| OpenFilesError::Proc { path: link, source })?;
        foreigns.push(Foreign {
            pid,
            number: one.number,
            standard: (one.number <= 2).then_some(one.number),
            places: vec![(pid, one.number)],
            link,
            info: one.info.clone(),
            stat: fstat(&copy).map_err(failed)?,
            file_system: fstatfs(&copy).map_err(failed)?.f_type.cast_unsigned(),
            is_served,
            copy,
        });
    }
    Ok(foreigns)
}

/// Something to look at in the place of a file that is not to be touched.
fn in_its_place(pid: i32, number: i32) -> Result<OwnedFd, OpenFilesError> {
    let made = memfd_create("not touched", MemfdFlags::CLOEXEC);
    made.map_err(|source| OpenFilesError::Look {
        pid,
        number,
        source: source.into(),
    })
}

fn open_process(stopped: &[&StoppedProcess], pid: i32) -> Result<PidFd, OpenFilesError> {
    let process = PidFd::open(pid).map_err(|source| OpenFilesError::Copy { pid, source })?;
    // The pidfd is open: if the start time is still right now, it refers to the right process.
    let same = stopped.iter().map(|one| one.identity());
    let same = same
        .filter(|one| one.pid == pid)
        .any(|one| one.is_alive_and_same());
    if same {
        Ok(process)
    } else {
        Err(OpenFilesError::Gone { pid })
    }
}

/// What one look at a description found.
enum Finding {
    Is(Kind, Vec<Blocker>),
    /// Only all pipes together tell.
    Pipe,
    /// Only all sockets together tell.
    Socket,
    Refused(Blocker),
}

impl From<Result<Kind, Blocker>> for Finding {
    fn from(result: Result<Kind, Blocker>) -> Self {
        match result {
            Ok(kind) => Self::Is(kind, Vec::new()),
            Err(blocker) => Self::Refused(blocker),
        }
    }
}

struct Reader<'a> {
    stopped: &'a [&'a StoppedProcess],
    listed: &'a [Listed],
    numbers: ByNumber<'a>,
    foreigns: &'a [Foreign],
    mounts: &'a Mounts,
    pids: Vec<i32>,
    objects: Objects,
    /// Device number and number of the terminals that are standard streams.
    terminals: Vec<(u64, i32)>,
    /// Numbers of the pseudoterminals whose master the processes have.
    masters: Vec<u64>,
}

impl<'a> Reader<'a> {
    fn new(
        stopped: &'a [&'a StoppedProcess],
        listed: &'a [Listed],
        foreigns: &'a [Foreign],
        mounts: &'a Mounts,
    ) -> Result<Self, OpenFilesError> {
        let nameless = foreigns
            .iter()
            .filter(|one| !one.is_served)
            .any(|one| one.file_type() == FileType::RegularFile && one.stat.st_nlink == 0);
        let mapped = if nameless {
            mapped_shared(stopped)?
        } else {
            HashSet::new()
        };
        let masters = foreigns.iter().filter(|one| terminal::is_master(one));
        let masters: Vec<u64> = masters
            .filter_map(|one| one.info.number("tty-index", 10).ok())
            .collect();
        let terminals = foreigns.iter().filter(|one| terminal::is_terminal(one));
        let terminals = terminals.filter_map(|one| Some((one.stat.st_rdev, one.standard?)));
        Ok(Self {
            stopped,
            listed,
            numbers: ByNumber::new(listed),
            foreigns,
            mounts,
            pids: stopped.iter().map(|one| one.identity().pid).collect(),
            objects: Objects::new(mapped),
            terminals: terminals.collect(),
            masters,
        })
    }

    fn look_at(&mut self, foreign: &Foreign) -> Finding {
        // A path may lead there though the file itself lies elsewhere, as one that something is mounted over.
        if foreign.is_served || self.mounts.lead_to(&foreign.link) {
            return Finding::Refused(refused::served(foreign));
        }
        if foreign.info.flags & OFlags::PATH.bits() != 0 {
            return match process_file::read_proc(foreign, &self.pids) {
                Some(found) => found.map(Kind::Process).into(),
                None => path::read(foreign).map(Kind::Path).into(),
            };
        }
        if let Some(blocker) = refused::by_file_system(foreign) {
            return Finding::Refused(blocker);
        }
        match foreign.file_system {
            file_system::PROCESSES => {
                return process_file::read_pidfd(foreign, &self.pids)
                    .map(Kind::Process)
                    .into();
            }
            file_system::ANONYMOUS_INODES => return self.look_at_anonymous(foreign),
            _ => {}
        }
        if let Some(found) = process_file::read_proc(foreign, &self.pids) {
            return found.map(Kind::Process).into();
        }
        match foreign.file_type() {
            FileType::RegularFile if foreign.stat.st_nlink == 0 => {
                self.objects.read(foreign).map(Kind::Object).into()
            }
            FileType::RegularFile => regular::read(foreign).map(Kind::File).into(),
            FileType::Directory => directory::read(foreign).map(Kind::Directory).into(),
            FileType::Fifo => Finding::Pipe,
            FileType::CharacterDevice => self.look_at_device(foreign).into(),
            FileType::BlockDevice => {
                let what = format!("is the block device {}", foreign.link.display());
                let advice = "let the program close it before the checkpoint";
                Finding::Refused(foreign.blocker(BlockerKind::BlockDevice, &what, advice))
            }
            FileType::Socket => Finding::Socket,
            _ => Finding::Refused(refused::unknown(foreign, foreign.link.as_os_str())),
        }
    }

    fn look_at_anonymous(&self, foreign: &Foreign) -> Finding {
        let doubtful = |kind, doubts: Vec<Blocker>| Finding::Is(kind, doubts);
        match foreign.link_bytes() {
            b"anon_inode:[eventfd]" => match eventfd::read(foreign) {
                Ok((state, doubt)) => doubtful(Kind::Eventfd(state), doubt.into_iter().collect()),
                Err(blocker) => Finding::Refused(blocker),
            },
            b"anon_inode:[eventpoll]" => match epoll::read(foreign, &self.numbers) {
                Ok((state, doubt)) => doubtful(Kind::Epoll(state), doubt.into_iter().collect()),
                Err(blocker) => Finding::Refused(blocker),
            },
            b"anon_inode:inotify" => match inotify::read(foreign) {
                Ok((state, doubts)) => doubtful(Kind::Inotify(state), doubts),
                Err(blocker) => Finding::Refused(blocker),
            },
            b"anon_inode:[timerfd]" => timerfd::read(foreign).map(Kind::Timerfd).into(),
            b"anon_inode:[signalfd]" => signalfd::read(foreign).map(Kind::Signalfd).into(),
            b"anon_inode:[pidfd]" => process_file::read_pidfd(foreign, &self.pids)
                .map(Kind::Process)
                .into(),
            _ => Finding::Refused(refused::anonymous(foreign)),
        }
    }

    fn look_at_device(&self, foreign: &Foreign) -> Result<Kind, Blocker> {
        if terminal::is_master(foreign) {
            return Err(terminal::master(foreign));
        }
        if !terminal::is_terminal(foreign) {
            return device::read(foreign).map(Kind::Device);
        }
        let other = terminal::read(foreign, &self.terminals, &self.masters);
        match (other, foreign.standard) {
            (Err(blocker), _) if blocker.kind == BlockerKind::Terminal => Err(blocker),
            (_, Some(number)) => Ok(Kind::StandardStream(StandardStream::new(number))),
            (other, None) => other.map(Kind::Terminal),
        }
    }

    fn finish(self, found: Vec<Finding>) -> OpenFiles {
        let pick = |wanted: fn(&Finding) -> bool| -> Vec<(usize, &Foreign)> {
            let all = found.iter().zip(self.foreigns).enumerate();
            let picked = all.filter(|(_, (found, _))| wanted(found));
            picked
                .map(|(index, (_, foreign))| (index, foreign))
                .collect()
        };
        let ends = pick(|found| matches!(found, Finding::Pipe));
        let sockets = pick(|found| matches!(found, Finding::Socket));
        let mut pipes = pipe::Pipes::default();
        let mut kinds: HashMap<usize, _> = pipe::read_all(&ends, &mut pipes).into_iter().collect();
        kinds.extend(read_sockets(&sockets));
        let owners = self.owners();
        let described = found.into_iter().zip(self.foreigns).enumerate();
        let descriptions = described.map(|(index, (found, foreign))| {
            let found = kinds.remove(&index).map_or(found, Finding::from);
            describe(foreign, found, &owners)
        });
        let descriptions = descriptions.collect();
        let tables = self.tables();
        OpenFiles {
            descriptions,
            tables,
            pipes: pipes.states,
            pipe_owners: pipes.owners,
            objects: self.objects.list,
        }
    }

    /// All numbers that an owner may have and that a restore knows: processes, threads, groups.
    fn owners(&self) -> HashSet<(u8, i32)> {
        let mut owners = HashSet::new();
        for process in self.stopped {
            let pid = process.identity().pid;
            owners.insert((1, pid));
            owners.extend(process.threads().iter().map(|thread| (0, thread.get())));
            let group = process_group(pid).ok().flatten();
            let known = group.filter(|group| self.pids.contains(group));
            owners.extend(known.map(|group| (2, group)));
        }
        owners
    }

    fn tables(&self) -> Vec<DescriptorTable> {
        let tables = self.stopped.iter().enumerate().map(|(index, process)| {
            let pid = process.identity().pid;
            let mut blockers = tables::unusual_sharing(process, &self.stopped[..index]);
            let mut keep = |found: Result<_, Blocker>| match found {
                Ok(at) => Some(at),
                Err(blocker) => {
                    blockers.push(blocker);
                    None
                }
            };
            let cwd = keep(directory::of_process(pid, "cwd", self.mounts));
            let root = keep(directory::of_process(pid, "root", self.mounts));
            let own = || self.listed.iter().filter(|one| one.pid == pid);
            DescriptorTable {
                pid,
                entries: own()
                    .map(|one| Descriptor {
                        number: one.number,
                        close_on_exec: one.info.close_on_exec,
                        description: one.description,
                    })
                    .collect(),
                cwd,
                root,
                posix_locks: posix_locks(own()),
                blockers,
            }
        });
        tables.collect()
    }
}

/// All sockets at once. A standard stream whose peer is outside is pagetide's own.
fn read_sockets(sockets: &[(usize, &Foreign)]) -> Vec<(usize, Result<Kind, Blocker>)> {
    let foreign: Vec<ForeignSocket<'_>> = sockets
        .iter()
        .map(|(_, one)| ForeignSocket {
            pid: one.pid,
            number: one.number,
            inode: one.stat.st_ino,
            fd: one.as_fd(),
        })
        .collect();
    let states = socket::read_sockets(&foreign).into_iter().zip(sockets);
    let kinds = states.map(|(state, (index, one))| {
        let outside = match &state {
            Ok(state) => state
                .blockers()
                .iter()
                .any(|blocker| blocker.kind == BlockerKind::UnixPeer),
            Err(_) => true,
        };
        let kind = match one.standard.filter(|_| outside) {
            Some(number) => Ok(Kind::StandardStream(StandardStream::new(number))),
            None => state.map(Kind::Socket),
        };
        (*index, kind)
    });
    kinds.collect()
}

/// Record locks of one process, each once.
fn posix_locks<'a>(listed: impl Iterator<Item = &'a Listed>) -> Vec<PosixLock> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for one in listed {
        if !seen.insert(one.description) {
            continue;
        }
        found.extend(
            locks::read(&one.info)
                .into_iter()
                .filter_map(|told| match told {
                    LockLine::Process(range) => Some(PosixLock {
                        description: one.description,
                        range,
                    }),
                    _ => None,
                }),
        );
    }
    found
}

fn describe(foreign: &Foreign, found: Finding, known_owners: &HashSet<(u8, i32)>) -> Description {
    let (kind, mut blockers) = match found {
        Finding::Is(kind, blockers) => (kind, blockers),
        Finding::Refused(blocker) => (Kind::Closed, vec![blocker]),
        Finding::Pipe | Finding::Socket => {
            let blocker = foreign.unreadable(&"it is of another kind than its type says");
            (Kind::Closed, vec![blocker])
        }
    };
    let restored = !matches!(kind, Kind::Closed);
    let own = matches!(kind, Kind::StandardStream(_));
    let mut held = Vec::new();
    for told in locks::read(&foreign.info) {
        match told {
            LockLine::Description(lock) => held.push(lock),
            LockLine::Process(_) => {}
            LockLine::Other(line) if restored => blockers.push(foreign.blocker_instead(
                BlockerKind::Lease,
                &format!("holds a lease, or a lock that is not known ({line})"),
                "let the program give it back before the checkpoint",
                "the file is open without it",
            )),
            LockLine::Other(_) => {}
        }
    }
    let mut owner = if restored && !own {
        owner(foreign)
    } else {
        None
    };
    if let Some(known) =
        owner.take_if(|one| one.number != 0 && !known_owners.contains(&(one.kind, one.number)))
    {
        blockers.push(foreign.blocker_instead(
            BlockerKind::SignalOwner,
            &format!("signals {}, which is outside", known.number),
            "checkpoint that process, too, or let the program choose another",
            "nobody is signalled",
        ));
    }
    Description {
        status_flags: foreign.info.flags,
        owner,
        locks: held,
        kind,
        blockers,
    }
}

fn owner(foreign: &Foreign) -> Option<Owner> {
    let signal = descriptor_owner::signal(foreign).ok()?;
    let (kind, number) = match descriptor_owner::owner(foreign).ok()? {
        Some((OwnerKind::Thread, number)) => (0, number),
        Some((OwnerKind::Process, number)) => (1, number),
        Some((OwnerKind::Group, number)) => (2, number),
        None => (1, 0),
    };
    let owner = Owner {
        kind,
        number,
        signal,
    };
    (number != 0 || signal != 0).then_some(owner)
}

/// What the processes map shared: device and inode.
fn mapped_shared(stopped: &[&StoppedProcess]) -> Result<HashSet<(u32, u32, u64)>, OpenFilesError> {
    let mut mapped = HashSet::new();
    for process in stopped {
        let pid = process.identity().pid;
        let found = mappings(pid).map_err(|source| OpenFilesError::Maps { pid, source })?;
        let shared = found.iter().filter(|mapping| mapping.shared);
        mapped.extend(shared.map(|mapping| (mapping.device.0, mapping.device.1, mapping.inode)));
    }
    Ok(mapped)
}
