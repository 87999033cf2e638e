//! Putting descriptors at their numbers, in the processes themselves.

use super::error::ReopenError;
use super::model::{DescriptorTable, Kind, OpenFiles};
use super::reopen::Reopened;
use crate::remote_error::RemoteCallError;
use crate::system_calls::{Batch, SystemCalls};
use nix::libc;
use std::os::fd::{AsRawFd, OwnedFd};

const EPOLL_CTL_ADD: u64 = 1;
const F_SETLK: u64 = 6;
const O_CLOEXEC: u64 = 0o2_000_000;

impl OpenFiles {
    /// Makes the descriptors of a process that was forked from this one what they were, by system calls in it: every
    /// description at its numbers, all else closed; root and current directory, and record locks. `pid_then` is the number of the
    /// process at the time of the snapshot. The first process that has an epoll registers what it watches.
    ///
    /// If it fails, the process is left in between.
    pub fn place(
        &self,
        pid_then: i32,
        reopened: &Reopened,
        calls: &mut dyn SystemCalls,
    ) -> Result<(), ReopenError> {
        let (index, table) = self.table(pid_then)?;
        let mut placing = Placing {
            pid: pid_then,
            calls,
        };
        self.register(index, reopened, &mut placing)?;
        let directories = reopened.directories.get(index);
        let (cwd, root) =
            directories.map_or((None, None), |(cwd, root)| (cwd.as_ref(), root.as_ref()));
        placing.stand(cwd, root)?;
        placing.put_all(table, reopened)?;
        // Closing any descriptor of a file gives back all record locks on it, so they come last.
        placing.lock(table)
    }

    pub(crate) fn table(&self, pid_then: i32) -> Result<(usize, &DescriptorTable), ReopenError> {
        let tables = self.tables.iter().enumerate();
        let mut found = tables.filter(|(_, table)| table.pid == pid_then);
        found
            .next()
            .ok_or(ReopenError::NoSuchTable { pid: pid_then })
    }

    /// Registers what the epolls watch for which this table is the first. Each file gets for that moment the number it was
    /// registered by.
    fn register(
        &self,
        index: usize,
        reopened: &Reopened,
        placing: &mut Placing<'_>,
    ) -> Result<(), ReopenError> {
        for &place in &reopened.holders.epolls {
            let Some(Kind::Epoll(state)) = self.kind(place) else {
                continue;
            };
            let epoll = reopened.descriptions.get(place).and_then(Option::as_ref);
            let Some(epoll) = epoll.filter(|_| reopened.holders.first(place) == Some(index)) else {
                continue;
            };
            for entry in &state.entries {
                let file = reopened.descriptions.get(entry.description as usize);
                let Some(file) = file.and_then(Option::as_ref) else {
                    continue;
                };
                placing.put(file.as_raw_fd(), entry.number, true)?;
                placing.add_to_epoll(epoll.as_raw_fd(), entry.number, &mut entry.to_bytes())?;
            }
        }
        Ok(())
    }
}

/// System calls in one process.
pub(crate) struct Placing<'a> {
    /// Its number at the time of the snapshot, for messages.
    pub(crate) pid: i32,
    pub(crate) calls: &'a mut dyn SystemCalls,
}

/// As an argument of a system call.
pub(crate) fn argument(number: i32) -> u64 {
    u64::from(number.cast_unsigned())
}

impl Placing<'_> {
    fn call(
        &mut self,
        number: i64,
        args: [u64; 6],
        what: &dyn Fn() -> String,
    ) -> Result<u64, ReopenError> {
        let result = self.calls.call(number, args);
        result.map_err(|source| self.failed(what(), source))
    }

    pub(crate) fn failed(&self, what: String, source: RemoteCallError) -> ReopenError {
        ReopenError::Place {
            pid: self.pid,
            what,
            source,
        }
    }

    /// Puts what is at one number at another one, too.
    pub(crate) fn put(
        &mut self,
        from: i32,
        to: i32,
        close_on_exec: bool,
    ) -> Result<(), ReopenError> {
        let flags = if close_on_exec { O_CLOEXEC } else { 0 };
        let args = [argument(from), argument(to), flags, 0, 0, 0];
        self.call(libc::SYS_dup3, args, &|| format!("have descriptor {to}"))?;
        Ok(())
    }

    /// Puts all that a table has at its numbers, and closes all else.
    fn put_all(&mut self, table: &DescriptorTable, reopened: &Reopened) -> Result<(), ReopenError> {
        let (mut batch, mut numbers) = (Batch::default(), Vec::new());
        let close = |batch: &mut Batch, numbers: &mut Vec<_>, from: i32, last: u64| {
            batch.push(libc::SYS_close_range, [argument(from), last, 0, 0, 0, 0]);
            numbers.push(None);
        };
        // What is put lies in one range between the numbers that are wanted, or above them: nothing is closed before all are there.
        let mut wanted = Vec::with_capacity(table.entries.len());
        for entry in &table.entries {
            let file = reopened.descriptions.get(entry.description as usize);
            let Some(file) = file.and_then(Option::as_ref) else {
                continue;
            };
            let flags = if entry.close_on_exec { O_CLOEXEC } else { 0 };
            let places = [file.as_raw_fd(), entry.number].map(argument);
            batch.push(libc::SYS_dup3, [places[0], places[1], flags, 0, 0, 0]);
            numbers.push(Some(entry.number));
            wanted.push(entry.number);
        }
        let mut free_from = 0;
        for number in wanted {
            if free_from < number {
                close(&mut batch, &mut numbers, free_from, argument(number - 1));
            }
            free_from = number + 1;
        }
        close(&mut batch, &mut numbers, free_from, u64::from(u32::MAX));
        let put = self.calls.call_all(batch);
        put.map_err(|(index, source)| {
            let what = match numbers.get(index).copied().flatten() {
                Some(number) => format!("have descriptor {number}"),
                None => String::from("close descriptors"),
            };
            self.failed(what, source)
        })
    }

    pub(crate) fn add_to_epoll(
        &mut self,
        epoll: i32,
        file: i32,
        event: &mut [u8],
    ) -> Result<(), ReopenError> {
        let args = |address| {
            [
                argument(epoll),
                EPOLL_CTL_ADD,
                argument(file),
                address,
                0,
                0,
            ]
        };
        let result = self.calls.call_with(libc::SYS_epoll_ctl, event, &args);
        result.map_err(|source| self.failed(format!("wait for descriptor {file}"), source))?;
        Ok(())
    }

    fn stand(&mut self, cwd: Option<&OwnedFd>, root: Option<&OwnedFd>) -> Result<(), ReopenError> {
        if let Some(root) = root {
            self.change_directory(root)?;
            let args = |address| [address, 0, 0, 0, 0, 0];
            let result = self
                .calls
                .call_with(libc::SYS_chroot, &mut b".\0".to_owned(), &args);
            result
                .map_err(|source| self.failed(String::from("change its root directory"), source))?;
        }
        match cwd.or(root) {
            Some(cwd) => self.change_directory(cwd),
            None => {
                let args = |address| [address, 0, 0, 0, 0, 0];
                let result = self
                    .calls
                    .call_with(libc::SYS_chdir, &mut b"/\0".to_owned(), &args);
                result
                    .map_err(|source| self.failed(String::from("change its directory"), source))?;
                Ok(())
            }
        }
    }

    fn change_directory(&mut self, directory: &OwnedFd) -> Result<(), ReopenError> {
        let args = [argument(directory.as_raw_fd()), 0, 0, 0, 0, 0];
        self.call(libc::SYS_fchdir, args, &|| {
            String::from("change its directory")
        })?;
        Ok(())
    }

    fn lock(&mut self, table: &DescriptorTable) -> Result<(), ReopenError> {
        for lock in &table.posix_locks {
            let same = |entry: &&super::model::Descriptor| entry.description == lock.description;
            let Some(entry) = table.entries.iter().find(same) else {
                continue;
            };
            let number = entry.number;
            let what = || format!("lock the file of descriptor {number}");
            let bytes = lock.range.to_kernel().to_bytes();
            let mut bytes = bytes.map_err(|error| {
                let errno = rustix::io::Errno::from_io_error(&error);
                ReopenError::Locked {
                    what: format!("the file of descriptor {number}"),
                    source: errno.unwrap_or(rustix::io::Errno::INVAL),
                }
            })?;
            let args = |address| [argument(number), F_SETLK, address, 0, 0, 0];
            let result = self.calls.call_with(libc::SYS_fcntl, &mut bytes, &args);
            result.map_err(|source| self.failed(what(), source))?;
        }
        Ok(())
    }
}
