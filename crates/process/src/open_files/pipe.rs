//! Pipes and FIFOs, with what is in them.
//!
//! A pipe belongs to the processes if both of its ends do, or if the other one is open nowhere any more. If somebody outside has
//! the other end, a restore cannot give it back: a standard stream is then pagetide's own, and anything else a [`Blocker`].
//! A FIFO is opened by its path, and who else opens it does not matter.

use super::again::{can_read, can_write, open_again, open_found, set_flags};
use super::choices::ReopenChoices;
use super::choices::accept;
use super::error::ReopenError;
use super::foreign::Foreign;
use super::model::{Description, Kind};
use super::path::{self, PathIdentity};
use super::pipe_state::PACKET_BYTES_MAX;
use super::pipe_state::PipeEnd;
use super::pipe_state::PipeOwner;
use super::pipe_state::PipeState;
use super::refused::file_system;
use super::terminal::StandardStream;
use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use crate::opener::Opener;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, fchmod, fchown, fcntl_setfl};
use rustix::io::{Errno, ioctl_fionread, read, write};
use rustix::pipe::{
    PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, tee,
};
use std::collections::HashMap;
use std::os::fd::OwnedFd;

/// Most bytes that are stored of what is in one pipe: what an administrator may allow.
const CONTENT_BYTES_MAX: usize = 64 << 20;
/// Set in what was opened by a path, and not in what pipe2(2) returned.
const OPENED_BY_PATH: u32 = 0o100_000;

/// The pipes of all processes, and to whom they belong.
#[derive(Default)]
pub(crate) struct Pipes {
    pub(crate) states: Vec<PipeState>,
    pub(crate) owners: Vec<PipeOwner>,
}

/// Reads all pipes behind `ends` (place in the list of descriptions, and the description), and says what each end is.
pub(crate) fn read_all(
    ends: &[(usize, &Foreign)],
    pipes: &mut Pipes,
) -> Vec<(usize, Result<Kind, Blocker>)> {
    let mut kinds = Vec::new();
    let mut groups: Vec<Vec<(usize, &Foreign)>> = Vec::new();
    let mut places = HashMap::new();
    for end in ends {
        let place = *places.entry(end.1.key()).or_insert(groups.len());
        match groups.get_mut(place) {
            Some(group) => group.push(*end),
            None => groups.push(vec![*end]),
        }
    }
    for group in groups {
        read_group(&group, pipes, &mut kinds);
    }
    kinds
}

fn read_group(
    group: &[(usize, &Foreign)],
    pipes: &mut Pipes,
    kinds: &mut Vec<(usize, Result<Kind, Blocker>)>,
) {
    let is_fifo = group
        .iter()
        .any(|end| end.1.file_system != file_system::PIPES);
    let standard = group.iter().find_map(|end| end.1.standard);
    if !is_fifo && other_end_is_outside(group) {
        for (index, end) in group {
            let kind = match end.standard.or(standard) {
                Some(number) => Ok(Kind::StandardStream(StandardStream::new(number))),
                None => Err(end.blocker(
                    BlockerKind::OutsidePipe,
                    "is a pipe whose other end a process outside has",
                    "checkpoint that process, too, with --tree, or let the program close it",
                )),
            };
            kinds.push((*index, kind));
        }
        return;
    }
    let state = read_state(group, is_fifo);
    let number = u32::try_from(pipes.states.len()).unwrap_or(u32::MAX);
    for (index, end) in group {
        let kind = match &state {
            Ok(_) => Ok(Kind::Pipe(PipeEnd { pipe: number })),
            Err(error) => Err(error.blocker(end)),
        };
        kinds.push((*index, kind));
    }
    if let Ok(state) = state {
        let stat = &group[0].1.stat;
        pipes.states.push(state);
        pipes.owners.push(PipeOwner {
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: stat.st_mode & 0o7777,
        });
    }
}

fn other_end_is_outside(group: &[(usize, &Foreign)]) -> bool {
    let reader = group.iter().find(|end| can_read(end.1.info.flags));
    let writer = group.iter().find(|end| can_write(end.1.info.flags));
    match (reader, writer) {
        (Some(reader), None) => !is_hung_up(reader.1, PollFlags::HUP),
        (None, Some(writer)) => !is_hung_up(writer.1, PollFlags::ERR),
        _ => false,
    }
}

/// Whether poll(2) tells that nobody has the other end open.
fn is_hung_up(end: &Foreign, sign: PollFlags) -> bool {
    let mut descriptors = [PollFd::new(end, PollFlags::empty())];
    let now = Timespec::default();
    poll(&mut descriptors, Some(&now)).is_ok() && descriptors[0].revents().contains(sign)
}

/// Why a pipe could not be read.
enum PipeError {
    Path,
    Kernel(Errno),
    TooMuch,
}

impl From<Errno> for PipeError {
    fn from(error: Errno) -> Self {
        Self::Kernel(error)
    }
}

impl PipeError {
    fn blocker(&self, end: &Foreign) -> Blocker {
        match self {
            Self::Path => path::of(end)
                .err()
                .unwrap_or_else(|| end.unreadable(&"it was renamed")),
            Self::Kernel(error) => end.unreadable(error),
            Self::TooMuch => end.unreadable(&"too much is in it"),
        }
    }
}

fn read_state(group: &[(usize, &Foreign)], is_fifo: bool) -> Result<PipeState, PipeError> {
    let first = group[0].1;
    let at = if is_fifo {
        Some(path::of(first).map_err(|_| PipeError::Path)?)
    } else {
        None
    };
    let capacity = fcntl_getpipe_size(first)?;
    let packets = group
        .iter()
        .any(|end| can_write(end.1.info.flags) && end.1.info.flags & OFlags::DIRECT.bits() != 0);
    let reader = group.iter().find(|end| can_read(end.1.info.flags));
    let (content, ended) = match reader {
        Some((_, reader)) => (
            read_content(reader, capacity, packets)?,
            is_hung_up(reader, PollFlags::HUP),
        ),
        None => (Vec::new(), false),
    };
    Ok(PipeState {
        at,
        capacity_bytes: u32::try_from(capacity).map_err(|_| PipeError::TooMuch)?,
        packets,
        content,
        ended,
    })
}

/// Duplicates what is in a pipe into one of our own, and reads that.
fn read_content(
    reader: &Foreign,
    capacity: usize,
    packets: bool,
) -> Result<Vec<Vec<u8>>, PipeError> {
    let length = usize::try_from(ioctl_fionread(reader)?).unwrap_or(usize::MAX);
    if length > CONTENT_BYTES_MAX {
        return Err(PipeError::TooMuch);
    }
    if length == 0 {
        return Ok(Vec::new());
    }
    let (own_reader, own_writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    fcntl_setpipe_size(&own_writer, capacity)?;
    let copied = tee(reader, &own_writer, length, SpliceFlags::NONBLOCK)?;
    if copied != length {
        return Err(PipeError::Kernel(Errno::IO));
    }
    let mut pieces = Vec::new();
    let mut buffer = vec![0; if packets { PACKET_BYTES_MAX } else { length }];
    let mut left = length;
    while left > 0 {
        let count = read(&own_reader, &mut buffer)?;
        if count == 0 {
            return Err(PipeError::Kernel(Errno::IO));
        }
        pieces.push(buffer[..count].to_vec());
        left = left.saturating_sub(count);
    }
    Ok(pieces)
}

/// Makes one pipe again, and opens its `ends`: place in the list of descriptions, and the description.
pub(crate) fn reopen(
    (state, owner): (&PipeState, Option<&PipeOwner>),
    ends: &[(usize, &Description)],
    choices: &ReopenChoices,
    opener: &Opener,
) -> Result<Vec<(usize, OwnedFd)>, ReopenError> {
    let what = || match &state.at {
        Some(at) => at.path.to_string(),
        None => String::from("a pipe"),
    };
    let failed = |source| ReopenError::Make {
        what: what(),
        source,
    };
    match &state.at {
        Some(at) => reopen_fifo(state, at, ends, choices, opener),
        None => reopen_pipe(state, owner, ends).map_err(failed),
    }
}

fn reopen_pipe(
    state: &PipeState,
    owner: Option<&PipeOwner>,
    ends: &[(usize, &Description)],
) -> Result<Vec<(usize, OwnedFd)>, Errno> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let capacity = state.capacity_bytes as usize;
    if fcntl_getpipe_size(&writer)? != capacity {
        fcntl_setpipe_size(&writer, capacity)?;
    }
    fill(state, &writer)?;
    let (mut reader_is_free, mut writer_is_free) = (true, true);
    let mut opened = Vec::new();
    for (index, description) in ends {
        let flags = description.status_flags;
        let by_path = flags & OPENED_BY_PATH != 0;
        let file = match (can_read(flags), can_write(flags)) {
            (true, false) if reader_is_free && !by_path => {
                reader_is_free = false;
                duplicate(&reader)?
            }
            (false, true) if writer_is_free && !by_path => {
                writer_is_free = false;
                duplicate(&writer)?
            }
            _ => open_again(&reader, flags)?,
        };
        set_flags(&file, flags)?;
        opened.push((*index, file));
    }
    if let Some(owner) = owner {
        let (user, group) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        fchown(&reader, Some(user), Some(group))?;
        fchmod(&reader, Mode::from_raw_mode(owner.mode))?;
    }
    Ok(opened)
}

fn duplicate(file: &OwnedFd) -> Result<OwnedFd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(file, 0)
}

/// Writes the content; `writer` does not wait.
fn fill(state: &PipeState, writer: &OwnedFd) -> Result<(), Errno> {
    if state.packets {
        fcntl_setfl(writer, OFlags::NONBLOCK | OFlags::DIRECT)?;
    }
    for piece in &state.content {
        let mut rest = piece.as_slice();
        while !rest.is_empty() {
            let count = write(writer, rest)?;
            rest = &rest[count..];
        }
    }
    Ok(())
}

/// Readers come first: one that was there before any writer does not see an end yet.
fn reopen_fifo(
    state: &PipeState,
    at: &PathIdentity,
    ends: &[(usize, &Description)],
    choices: &ReopenChoices,
    opener: &Opener,
) -> Result<Vec<(usize, OwnedFd)>, ReopenError> {
    let failed = |source| ReopenError::Make {
        what: at.path.to_string(),
        source,
    };
    let fifo = at.find(FileType::Fifo, opener)?;
    let open = |flags| {
        let opened = open_found(&fifo, flags);
        opened.map_err(|error| ReopenError::opening(&at.path, error))
    };
    // What is in it is asked of a description that the process has, or had.
    let flags = OFlags::NONBLOCK.bits();
    let reader = ends.iter().any(|end| can_read(end.1.status_flags));
    let reader = if reader {
        open(flags)?
    } else {
        open_again(&fifo, flags).map_err(failed)?
    };
    if ioctl_fionread(&reader).map_err(failed)? > 0 {
        accept(
            ReopenError::changed(&at.path, "something is in it"),
            choices,
        )?;
    }
    let capacity = state.capacity_bytes as usize;
    if fcntl_getpipe_size(&reader).map_err(failed)? != capacity {
        fcntl_setpipe_size(&reader, capacity).map_err(failed)?;
    }
    let mut ordered = ends.to_vec();
    ordered.sort_by_key(|end| can_write(end.1.status_flags));
    let mut opened = Vec::new();
    for (index, description) in ordered {
        let file = open(description.status_flags)?;
        opened.push((index, file));
    }
    if state.ended || !state.content.is_empty() {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK;
        let writer = open(flags.bits())?;
        fill(state, &writer).map_err(failed)?;
    }
    Ok(opened)
}
