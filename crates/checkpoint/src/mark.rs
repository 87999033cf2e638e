//! The mark that pagetide leaves in a process whose tracking outlives the command that began it.
//!
//! It is a memfd named `pagetide` in the process itself, close-on-exec, beside the userfaultfd. It says
//! who owns the tracking (the store), for which process (a forked child inherits a copy, which is not
//! meant for it), which snapshot the write-protection bits count from, and whether a harvest was under
//! way. It is written before a harvest begins; whoever finds it "harvesting" knows that bits were
//! cleared for a snapshot that may never have been committed, and trusts none of them.

use pagetide_process::ProcessIdentity;
use pagetide_snapshot::{ContentHash, SnapshotId, StoreId};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// The name of the memfd, as it is passed to memfd_create(2).
pub(crate) const MEMFD_NAME: &[u8] = b"pagetide\0";
/// How the kernel shows it in `/proc/PID/fd`.
pub(crate) const MEMFD_LINK: &str = "/memfd:pagetide (deleted)";

const MAGIC: [u8; 8] = *b"ptmark\0\x01";
const LENGTH: usize = 8 + 16 + 4 + 8 + 16 + 4 + 1 + 8 + 32 + 4;

/// How far the owner of the tracking has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing was committed yet.
    Armed,
    /// A harvest is under way: bits were or may have been cleared.
    Harvesting,
    /// The bits count from this snapshot.
    Committed(SnapshotId, ContentHash),
}

/// What the mark says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MarkContent {
    pub store: StoreId,
    pub process: ProcessIdentity,
    /// The number of the userfaultfd in the process.
    pub uffd_number: i32,
    pub phase: Phase,
}

impl MarkContent {
    fn to_bytes(&self) -> [u8; LENGTH] {
        let (phase, id, hash) = match self.phase {
            Phase::Armed => (0u8, 0, [0; 32]),
            Phase::Harvesting => (1, 0, [0; 32]),
            Phase::Committed(id, hash) => (2, id.0, hash.0),
        };
        let mut bytes = Vec::with_capacity(LENGTH);
        bytes.extend(MAGIC);
        bytes.extend(self.store.0);
        bytes.extend(self.process.pid.to_le_bytes());
        bytes.extend(self.process.start_time_ticks.to_le_bytes());
        bytes.extend(self.process.boot_id);
        bytes.extend(self.uffd_number.to_le_bytes());
        bytes.push(phase);
        bytes.extend(id.to_le_bytes());
        bytes.extend(hash);
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
            .try_into()
            .expect("the fields above have LENGTH bytes")
    }

    /// `None` if the bytes are not a whole mark.
    fn from_bytes(bytes: &[u8; LENGTH]) -> Option<MarkContent> {
        let (body, checksum) = bytes.split_last_chunk::<4>()?;
        if u32::from_le_bytes(*checksum) != crc32c::crc32c(body) {
            return None;
        }
        let (magic, rest) = body.split_first_chunk::<8>()?;
        let (store, rest) = rest.split_first_chunk::<16>()?;
        let (pid, rest) = rest.split_first_chunk::<4>()?;
        let (start_time, rest) = rest.split_first_chunk::<8>()?;
        let (boot_id, rest) = rest.split_first_chunk::<16>()?;
        let (uffd_number, rest) = rest.split_first_chunk::<4>()?;
        let (phase, rest) = rest.split_first_chunk::<1>()?;
        let (id, rest) = rest.split_first_chunk::<8>()?;
        let (hash, _) = rest.split_first_chunk::<32>()?;
        let phase = match phase[0] {
            0 => Phase::Armed,
            1 => Phase::Harvesting,
            2 => Phase::Committed(SnapshotId(u64::from_le_bytes(*id)), ContentHash(*hash)),
            _ => return None,
        };
        (*magic == MAGIC).then_some(MarkContent {
            store: StoreId(*store),
            process: ProcessIdentity {
                pid: i32::from_le_bytes(*pid),
                start_time_ticks: u64::from_le_bytes(*start_time),
                boot_id: *boot_id,
            },
            uffd_number: i32::from_le_bytes(*uffd_number),
            phase,
        })
    }
}

/// The mark of one process, open on our side.
#[derive(Debug)]
pub(crate) struct Mark {
    file: File,
    content: MarkContent,
}

impl Mark {
    /// Writes a first mark into a new memfd.
    pub fn create(memfd: OwnedFd, content: MarkContent) -> std::io::Result<Mark> {
        let phase = content.phase;
        let mut mark = Mark {
            file: File::from(memfd),
            content,
        };
        mark.set(phase)?;
        Ok(mark)
    }

    /// Reads the mark in a memfd; `None` if there is no whole one.
    pub fn read(memfd: OwnedFd) -> std::io::Result<Option<Mark>> {
        let file = File::from(memfd);
        let mut bytes = [0; LENGTH];
        match file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let content = MarkContent::from_bytes(&bytes);
        Ok(content.map(|content| Mark { file, content }))
    }

    /// What it says.
    pub fn content(&self) -> &MarkContent {
        &self.content
    }

    /// Says how far the owner has come. One write of a few bytes: a reader sees the old or the new
    /// mark, or by its checksum that it is neither.
    pub fn set(&mut self, phase: Phase) -> std::io::Result<()> {
        let content = MarkContent {
            phase,
            ..self.content.clone()
        };
        self.file.write_all_at(&content.to_bytes(), 0)?;
        self.content = content;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(phase: Phase) -> MarkContent {
        MarkContent {
            store: StoreId([3; 16]),
            process: ProcessIdentity {
                pid: 77,
                start_time_ticks: 1 << 40,
                boot_id: [9; 16],
            },
            uffd_number: 1021,
            phase,
        }
    }

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let committed = Phase::Committed(SnapshotId(12), ContentHash([7; 32]));
        for phase in [Phase::Armed, Phase::Harvesting, committed] {
            let content = content(phase);
            assert_eq!(MarkContent::from_bytes(&content.to_bytes()), Some(content));
        }
    }

    #[test]
    fn a_torn_mark_is_no_mark() {
        let bytes = content(Phase::Armed).to_bytes();
        for at in 0..LENGTH {
            let mut torn = bytes;
            torn[at] ^= 1;
            assert_eq!(MarkContent::from_bytes(&torn), None, "byte {at}");
        }
    }
}
