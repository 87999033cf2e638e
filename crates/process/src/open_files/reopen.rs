//! Opening every description again, in the process that restores.

use super::again::set_flags;
use super::choices::ReopenChoices;
use super::descriptor_limit::raise_limit;
use super::error::ReopenError;
use super::model::{Description, Kind, OpenFiles};
use super::object::ObjectUse;
use super::path::PathIdentity;
use super::socket::{SocketChoices, SocketFiles, SocketState, TcpChoice, let_go, reopen_sockets};
use super::{
    device, directory, epoll, eventfd, inotify, locks, path, pipe, regular, signalfd, terminal,
    timerfd,
};
use crate::opener::{Opener, Openers};
use rustix::io::fcntl_dupfd_cloexec;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Which processes have a description: looked up once for all of them. To go through the tables for each one would take the square of
/// their count, and a process may have a million. Descriptions are told by their places.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    /// By description, the first of the tables that has it.
    first: Vec<Option<usize>>,
    /// Those that are epolls.
    pub(crate) epolls: Vec<usize>,
    /// Those that refer to processes.
    pub(crate) late: Vec<usize>,
}

impl Holders {
    pub(crate) fn of(files: &OpenFiles) -> Self {
        let mut first = vec![None; files.descriptions.len()];
        for (index, table) in files.tables.iter().enumerate() {
            for entry in &table.entries {
                // One that there is not belongs to nobody.
                if let Some(first) = first.get_mut(entry.description as usize) {
                    first.get_or_insert(index);
                }
            }
        }
        let all = || files.descriptions.iter().enumerate();
        let epolls = all().filter(|(_, one)| matches!(one.kind, Kind::Epoll(_)));
        let late = all().filter(|(_, one)| matches!(one.kind, Kind::Process(_)));
        Self {
            first,
            epolls: epolls.map(|(place, _)| place).collect(),
            late: late.map(|(place, _)| place).collect(),
        }
    }

    /// The first table that has a description.
    pub(crate) fn first(&self, description: usize) -> Option<usize> {
        self.first.get(description).copied().flatten()
    }
}

/// All descriptions, opened again. Dropping it closes them, and removes what files were made unless they are kept.
#[derive(Debug)]
pub struct Reopened {
    /// As in [`OpenFiles::descriptions`]; none for what stays closed, and for what comes later
    /// ([`OpenFiles::place_late`]).
    pub descriptions: Vec<Option<OwnedFd>>,
    /// As in [`OpenFiles::tables`]: current directory, and root directory; none for a root that is that of pagetide.
    pub directories: Vec<(Option<OwnedFd>, Option<OwnedFd>)>,
    /// What is otherwise than it was, for people.
    pub notes: Vec<String>,
    /// Files of sockets.
    made: SocketFiles,
    /// What becomes of TCP connections.
    tcp: TcpChoice,
    pub(super) holders: Holders,
}

impl Reopened {
    #[cfg(test)]
    pub(super) fn empty(holders: Holders) -> Self {
        Self {
            descriptions: Vec::new(),
            directories: Vec::new(),
            notes: Vec::new(),
            made: SocketFiles::default(),
            tcp: TcpChoice::default(),
            holders,
        }
    }

    /// The files that were made for sockets stay: there is somebody now who has the sockets.
    pub fn keep(&mut self) {
        std::mem::take(&mut self.made).keep();
    }
}

impl OpenFiles {
    /// Opens every description again in this process, with nothing left behind on failure but FIFOs' content. To be
    /// called before any process of the restore exists: they are forked from this one, and inherit what was opened. Two things
    /// are left for the end: [`OpenFiles::connect`] and [`Reopened::keep`].
    ///
    /// Refused if something cannot be brought back and was not accepted. Raises the soft limit of open files of this
    /// program to the hard one.
    pub fn reopen(&self, choices: &ReopenChoices) -> Result<Reopened, ReopenError> {
        let refused = self
            .blockers_without_sockets()
            .find(|blocker| !choices.accepts(&blocker.name()));
        if let Some(blocker) = refused {
            return Err(ReopenError::Blocked {
                blocker: Box::new(blocker.clone()),
            });
        }
        raise_limit();
        let mut reopening = Reopening {
            files: self,
            choices,
            holders: Holders::of(self),
            floor: self.floor(choices.at_least),
            objects: HashMap::new(),
            originals: HashSet::new(),
            notes: Vec::new(),
        };
        let mut descriptions = reopening.open_all()?;
        reopening.open_pipes(&mut descriptions)?;
        set_locks(self, &descriptions)?;
        let mut directories = Vec::with_capacity(self.tables.len());
        for table in &self.tables {
            let opener = choices.openers.of(table.pid);
            let open = |at: Option<&PathIdentity>| {
                let directory = at.map(|at| directory::reopen_for_process(at, opener));
                let directory = directory.transpose()?;
                directory
                    .map(|directory| reopening.raise(directory))
                    .transpose()
            };
            // Changing to the root directory that it has anyhow would need a privilege.
            let root = table
                .root
                .as_ref()
                .filter(|at| at.path.as_path() != Path::new("/"));
            directories.push((open(table.cwd.as_ref())?, open(root)?));
        }
        let made = reopening.open_sockets(&mut descriptions)?;
        Ok(Reopened {
            descriptions,
            directories,
            notes: reopening.notes,
            made,
            tcp: choices.tcp,
            holders: reopening.holders,
        })
    }

    /// TCP connections go on: a late step, for until then they can be closed without a word to the peer.
    pub fn connect(&self, reopened: &Reopened) -> Result<(), ReopenError> {
        if reopened.tcp != TcpChoice::Restore {
            return Ok(());
        }
        let all = self.descriptions.iter().zip(&reopened.descriptions);
        for (index, (description, socket)) in all.enumerate() {
            if let (Kind::Socket(state), Some(socket)) = (&description.kind, socket) {
                let_go(index, state, socket.as_fd())
                    .map_err(|error| ReopenError::Socket(Box::new(error)))?;
            }
        }
        Ok(())
    }

    /// As whom a description is opened: the first process that has it.
    pub(crate) fn opener_of<'a>(
        &self,
        description: usize,
        holders: &Holders,
        openers: &'a Openers,
    ) -> &'a Opener {
        let first = holders.first(description);
        openers.of(first.map_or(0, |index| self.tables[index].pid))
    }

    /// From where on there is room for all descriptions at numbers that no process wants: above all of these, or, where that would
    /// be past the highest number that there is, between them.
    fn floor(&self, at_least: i32) -> i32 {
        let numbers = self
            .tables
            .iter()
            .flat_map(|table| table.entries.iter().map(|one| one.number));
        let watched = self.descriptions.iter().flat_map(|one| match &one.kind {
            Kind::Epoll(state) => state.entries.as_slice(),
            _ => &[],
        });
        let numbers = numbers.chain(watched.map(|entry| entry.number));
        floor_beside(
            numbers.collect(),
            self.descriptions.len(),
            at_least,
            most_descriptors(),
        )
    }
}

/// See [`OpenFiles::floor`]: beside `wanted` numbers, for so many descriptions, from `at_least` on and below `end`.
fn floor_beside(wanted: BTreeSet<i32>, descriptions: usize, at_least: i32, end: i32) -> i32 {
    // Directories, and what is opened in passing.
    let room = i32::try_from(2 * descriptions).map_or(i32::MAX, |room| room.saturating_add(256));
    let above = wanted.last().map_or(0, |highest| highest.saturating_add(1));
    let above = above.max(at_least);
    if above.saturating_add(room) <= end {
        return above;
    }
    let mut from = at_least;
    for &number in wanted.range(at_least..) {
        if number - from >= room {
            return from;
        }
        from = number.saturating_add(1);
    }
    above
}

/// No descriptor has this number or a higher one.
fn most_descriptors() -> i32 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit
        .and_then(|limit| i32::try_from(limit).ok())
        .unwrap_or(i32::MAX)
}

struct Reopening<'a> {
    files: &'a OpenFiles,
    choices: &'a ReopenChoices,
    holders: Holders,
    floor: i32,
    /// What was made of [`OpenFiles::objects`].
    objects: HashMap<u32, OwnedFd>,
    /// Those of them whose first description is open already.
    originals: HashSet<u32>,
    notes: Vec<String>,
}

impl<'a> Reopening<'a> {
    fn opener_of(&self, description: usize) -> &'a Opener {
        let choices = self.choices;
        self.files
            .opener_of(description, &self.holders, &choices.openers)
    }

    /// Everything but pipes, which come later.
    fn open_all(&mut self) -> Result<Vec<Option<OwnedFd>>, ReopenError> {
        let mut opened = Vec::with_capacity(self.files.descriptions.len());
        for (index, description) in self.files.descriptions.iter().enumerate() {
            let opener = self.opener_of(index);
            let file = self.open(description, opener)?;
            opened.push(file.map(|file| self.raise(file)).transpose()?);
        }
        Ok(opened)
    }

    fn open(
        &mut self,
        description: &Description,
        opener: &Opener,
    ) -> Result<Option<OwnedFd>, ReopenError> {
        let flags = description.status_flags;
        let file = match &description.kind {
            Kind::Closed | Kind::Process(_) | Kind::Pipe(_) | Kind::Socket(_) => return Ok(None),
            Kind::File(state) => return regular::reopen(state, flags, self.choices, opener),
            Kind::StandardStream(_) if self.choices.without_streams => {
                terminal::reopen_as_nothing(flags)?
            }
            Kind::StandardStream(stream) if !terminal::may_have(*stream, opener) => {
                self.notes.push(format!(
                    "standard stream {} leads to /dev/null: the terminal of pagetide is not that of user {}",
                    stream.number,
                    opener.user()
                ));
                terminal::reopen_as_nothing(flags)?
            }
            Kind::StandardStream(stream) => terminal::reopen_standard(*stream, flags)?,
            Kind::Directory(state) => directory::reopen(state, flags, opener)?,
            Kind::Path(state) => path::reopen(state, flags, opener)?,
            Kind::Object(state) => return self.open_object(*state, flags, opener),
            Kind::Eventfd(state) => eventfd::reopen(state, flags)?,
            Kind::Epoll(_) => epoll::reopen()?,
            Kind::Timerfd(state) => timerfd::reopen(state, flags)?,
            Kind::Signalfd(state) => signalfd::reopen(state, flags)?,
            Kind::Inotify(state) => inotify::reopen(state, flags, self.choices, opener)?,
            Kind::Device(state) => device::reopen(state, flags, opener)?,
            Kind::Terminal(state) => {
                let (file, other) = terminal::reopen(state, flags, opener)?;
                if other {
                    let path = &state.path;
                    self.notes
                        .push(format!("the terminal {path} is the one of pagetide now"));
                }
                file
            }
        };
        Ok(Some(file))
    }

    fn open_object(
        &mut self,
        state: ObjectUse,
        status_flags: u32,
        opener: &Opener,
    ) -> Result<Option<OwnedFd>, ReopenError> {
        // The place is checked where bytes become open files; one that was made otherwise and is wrong stays closed.
        let Some(object) = self.files.objects.get(state.object as usize) else {
            return Ok(None);
        };
        if !self.objects.contains_key(&state.object) {
            let made = object.make(self.choices, opener)?;
            self.objects.insert(state.object, made);
        }
        let made = &self.objects[&state.object];
        if object.is_original(status_flags) && self.originals.insert(state.object) {
            return object
                .open_original(made, status_flags, state.position)
                .map(Some);
        }
        object.open(made, status_flags, state.position).map(Some)
    }

    fn open_pipes(&self, opened: &mut [Option<OwnedFd>]) -> Result<(), ReopenError> {
        let mut ends_of: Vec<Vec<(usize, &Description)>> = vec![Vec::new(); self.files.pipes.len()];
        for (index, one) in self.files.descriptions.iter().enumerate() {
            if let Kind::Pipe(end) = &one.kind
                && let Some(ends) = ends_of.get_mut(end.pipe as usize)
            {
                ends.push((index, one));
            }
        }
        for (number, (state, ends)) in self.files.pipes.iter().zip(ends_of).enumerate() {
            let state = (state, self.files.pipe_owners.get(number));
            let first = ends.first().map_or(usize::MAX, |end| end.0);
            let opener = self.opener_of(first);
            for (index, file) in pipe::reopen(state, &ends, self.choices, opener)? {
                opened[index] = Some(self.raise(file)?);
            }
        }
        Ok(())
    }

    fn open_sockets(&self, opened: &mut [Option<OwnedFd>]) -> Result<SocketFiles, ReopenError> {
        let descriptions = self.files.descriptions.iter().enumerate();
        let states: Vec<(usize, &SocketState)> = descriptions
            .filter_map(|(index, one)| match &one.kind {
                Kind::Socket(state) => Some((index, state)),
                _ => None,
            })
            .collect();
        let choices = SocketChoices {
            accepted: self.choices.accepted.iter().cloned().collect(),
            tcp: self.choices.tcp,
        };
        let opener_of = |index| self.opener_of(index);
        let (sockets, made) = reopen_sockets(&states, &choices, &opener_of)
            .map_err(|error| ReopenError::Socket(Box::new(error)))?;
        for ((index, _), socket) in states.iter().zip(sockets) {
            let flags = self.files.descriptions[*index].status_flags;
            set_flags(&socket, flags).map_err(|source| ReopenError::Make {
                what: String::from("a socket"),
                source,
            })?;
            opened[*index] = Some(self.raise(socket)?);
        }
        Ok(made)
    }

    /// The same description under a number that is out of the way.
    fn raise(&self, file: OwnedFd) -> Result<OwnedFd, ReopenError> {
        fcntl_dupfd_cloexec(&file, self.floor).map_err(|source| ReopenError::TooMany {
            number: self.floor,
            source,
        })
    }
}

fn set_locks(files: &OpenFiles, opened: &[Option<OwnedFd>]) -> Result<(), ReopenError> {
    for (description, file) in files.descriptions.iter().zip(opened) {
        let Some(file) = file else { continue };
        for lock in &description.locks {
            locks::set(file, *lock).map_err(|source| ReopenError::Locked {
                what: description.name(),
                source,
            })?;
        }
    }
    Ok(())
}

impl Description {
    /// For messages.
    pub(crate) fn name(&self) -> String {
        match &self.kind {
            Kind::File(state) => state.at.path.to_string(),
            Kind::Directory(state) => state.at.path.to_string(),
            Kind::Device(state) => state.path.to_string(),
            Kind::Terminal(state) => state.path.to_string(),
            Kind::Object(_) => String::from("a file without a name"),
            _ => String::from("an open file"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_above_all_numbers_or_between_them() {
        let floor =
            |wanted: &[i32]| floor_beside(wanted.iter().copied().collect(), 10, 4096, 65536);
        assert_eq!(floor(&[0, 1, 2, 9]), 4096);
        assert_eq!(floor(&[0, 5000]), 5001);
        assert_eq!(floor(&[0, 65535]), 4096);
        assert_eq!(floor(&[4097, 65535]), 4098);
        assert_eq!(floor(&[4200, 4400, 65535]), 4401);
    }
}
