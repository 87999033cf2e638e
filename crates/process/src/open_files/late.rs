//! Descriptors that refer to processes of the snapshot: opened by each process for itself, once all of them are there.

use super::again::flags_of_open;
use super::epoll::EpollEntry;
use super::error::ReopenError;
use super::model::{Descriptor, Kind, OpenFiles};
use super::place::{Placing, argument};
use super::process_file::{ProcessFile, ProcessFileKind};
use super::reopen::Reopened;
use crate::system_calls::SystemCalls;
use nix::libc;
use rustix::fs::{OFlags, ResolveFlags};
use std::collections::{HashMap, HashSet};

const F_DUPFD_CLOEXEC: u64 = 1030;
/// No others go with O_PATH: openat2(2).
const FLAGS_WITH_PATH: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// PIDFD_THREAD is O_EXCL, PIDFD_NONBLOCK is O_NONBLOCK: `pidfd_open(2)`.
const FLAGS_OF_PIDFD: u32 = OFlags::NONBLOCK.bits() | OFlags::EXCL.bits();

/// What is opened now of what comes late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// What refers to a process as a whole, or to its first thread.
    Processes,
    /// What refers to another thread of one, which exists by now.
    Threads,
}

/// The numbers that processes and threads have now.
#[derive(Clone, Copy)]
pub struct Now<'a> {
    /// Of a process, by its number at the time of the snapshot.
    pub process: &'a dyn Fn(i32) -> Option<i32>,
    /// Of a thread, likewise.
    pub thread: &'a dyn Fn(i32) -> Option<i32>,
}

impl OpenFiles {
    /// Opens what refers to processes of the snapshot (pidfds, files of `/proc/PID`), by system calls in a process that
    /// [`Self::place`] was done for, and registers it in epolls. To be called for each process after all of them exist, since one
    /// may refer to any, and a second time when all their threads do.
    ///
    /// Such a description is not shared between processes any more. What refers to a process that `now` does not know stays
    /// closed.
    pub fn place_late(
        &self,
        pid_then: i32,
        reopened: &Reopened,
        which: Late,
        now: Now<'_>,
        calls: &mut dyn SystemCalls,
    ) -> Result<(), ReopenError> {
        let (index, table) = self.table(pid_then)?;
        let mut placing = Placing {
            pid: pid_then,
            calls,
        };
        // Beside all that are there and all that are to come, which are in the order of their numbers.
        let wanted = table.entries.iter().map(|entry| entry.number);
        let out_of_the_way = (0..).zip(wanted).find(|(free, number)| free != number);
        let count = i32::try_from(table.entries.len()).unwrap_or(i32::MAX);
        let out_of_the_way = out_of_the_way.map_or(count, |(free, _)| free);
        let mut numbers: HashMap<usize, Vec<&Descriptor>> = HashMap::new();
        for entry in &table.entries {
            let place = entry.description as usize;
            if let Some(Kind::Process(_) | Kind::Epoll(_)) = self.kind(place) {
                numbers.entry(place).or_default().push(entry);
            }
        }
        let watched = self.watched_late(index, reopened, &numbers);
        for &place in &reopened.holders.late {
            let Some(Kind::Process(file)) = self.kind(place) else {
                continue;
            };
            let own = numbers.get(&place).map_or(&[][..], Vec::as_slice);
            let thread = file.thread();
            if own.is_empty() || thread.is_none() && which == Late::Threads {
                continue;
            }
            let Some(pid) = (now.process)(file.pid) else {
                continue;
            };
            let flags = self.descriptions[place].status_flags;
            let opened = match (thread, which) {
                (None, _) => placing.open(file, (pid, None), flags)?,
                // Until it is there something has its number, so that nothing else gets it.
                (Some(_), Late::Processes) => {
                    placing.open(&file.in_place_of_it(), (pid, None), 0)?
                }
                (Some(thread), Late::Threads) => match (now.thread)(thread) {
                    Some(thread) => placing.open(file, (pid, Some(thread)), flags)?,
                    None => continue,
                },
            };
            let above = placing.duplicate_above(opened, out_of_the_way)?;
            placing.close_one(opened)?;
            for entry in own {
                placing.put(above, entry.number, entry.close_on_exec)?;
            }
            placing.close_one(above)?;
            if thread.is_some() && which == Late::Processes {
                continue;
            }
            let there: HashSet<i32> = own.iter().map(|one| one.number).collect();
            for (epoll, entry) in watched.get(&place).into_iter().flatten() {
                if there.contains(&entry.number) {
                    placing.add_to_epoll(*epoll, entry.number, &mut entry.to_bytes())?;
                }
            }
        }
        Ok(())
    }

    /// By description that comes late: the epolls that watch it, by their numbers in this process, which is the first that has
    /// them, and how.
    fn watched_late(
        &self,
        index: usize,
        reopened: &Reopened,
        numbers: &HashMap<usize, Vec<&Descriptor>>,
    ) -> HashMap<usize, Vec<(i32, &EpollEntry)>> {
        let mut watched: HashMap<usize, Vec<(i32, &EpollEntry)>> = HashMap::new();
        for &place in &reopened.holders.epolls {
            let Some(Kind::Epoll(state)) = self.kind(place) else {
                continue;
            };
            let exists = matches!(reopened.descriptions.get(place), Some(Some(_)));
            let is_ours = exists && reopened.holders.first(place) == Some(index);
            let number = numbers.get(&place).and_then(|own| own.first());
            let Some(epoll) = number.filter(|_| is_ours) else {
                continue;
            };
            for entry in &state.entries {
                let late = entry.description as usize;
                if let Some(Kind::Process(_)) = self.kind(late) {
                    watched.entry(late).or_default().push((epoll.number, entry));
                }
            }
        }
        watched
    }
}

impl Placing<'_> {
    /// Opens it under any number.
    fn open(
        &mut self,
        file: &ProcessFile,
        (pid, thread): (i32, Option<i32>),
        status_flags: u32,
    ) -> Result<i32, ReopenError> {
        let result = match (&file.kind, file.path(pid, thread)) {
            (ProcessFileKind::Proc { .. }, Some(mut path)) => {
                // struct open_how: flags, mode, resolve. Behind it the path.
                let flags = flags_of_open(status_flags);
                let flags = if flags.contains(OFlags::PATH) {
                    flags.intersection(FLAGS_WITH_PATH)
                } else {
                    flags
                };
                let flags = u64::from(flags.bits());
                let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
                let how = [flags, 0, resolve.bits()].map(u64::to_ne_bytes);
                let mut bytes = how.concat();
                let length = bytes.len() as u64;
                bytes.append(&mut path);
                let args = |address| [0, address + length, address, length, 0, 0];
                self.calls.call_with(libc::SYS_openat2, &mut bytes, &args)
            }
            _ => {
                let flags = u64::from(status_flags & FLAGS_OF_PIDFD);
                let args = [argument(pid), flags, 0, 0, 0, 0];
                self.calls.call(libc::SYS_pidfd_open, args)
            }
        };
        let what = || format!("open what refers to process {} (formerly)", file.pid);
        let opened = result.map_err(|source| self.failed(what(), source))?;
        let opened = as_descriptor(opened);
        if let ProcessFileKind::Proc { position, .. } = file.kind
            && position != 0
        {
            let args = [argument(opened), position, 0, 0, 0, 0];
            let result = self.calls.call(libc::SYS_lseek, args);
            result.map_err(|source| self.failed(what(), source))?;
        }
        Ok(opened)
    }

    fn duplicate_above(&mut self, file: i32, least: i32) -> Result<i32, ReopenError> {
        let args = [argument(file), F_DUPFD_CLOEXEC, argument(least), 0, 0, 0];
        let result = self.calls.call(libc::SYS_fcntl, args);
        let result =
            result.map_err(|source| self.failed(format!("copy descriptor {file}"), source));
        Ok(as_descriptor(result?))
    }

    fn close_one(&mut self, file: i32) -> Result<(), ReopenError> {
        let result = self
            .calls
            .call(libc::SYS_close, [argument(file), 0, 0, 0, 0, 0]);
        result.map_err(|source| self.failed(format!("close descriptor {file}"), source))?;
        Ok(())
    }
}

/// The kernel returns no larger number from these calls; -1 fails in the next one.
fn as_descriptor(result: u64) -> i32 {
    i32::try_from(result).unwrap_or(-1)
}
