//! The mark that pagetide leaves in a process whose tracking outlives the command that began it.
//!
//! It is a memfd named `pagetide` in the process itself, close-on-exec, beside the userfaultfd if there is
//! one. It says who owns the tracking (the store), for which process (a forked child inherits a copy, which
//! is not meant for it), by which backend, which snapshot the bits count from, and whether a harvest was
//! under way. It is written before a harvest begins; whoever finds it "harvesting" knows that bits were
//! cleared for a snapshot that may never have been committed, and trusts none of them.
//!
//! Behind it stands what the tracker must remember besides the kernel's bits. It concerns this process in
//! this life only, so it is kept here and not in the snapshot.

use pagetide_process::ProcessIdentity;
use pagetide_snapshot::{ContentHash, SnapshotId, StoreId};
use pagetide_tracker::Backend;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// The name of the memfd, as it is passed to memfd_create(2).
pub(crate) const MEMFD_NAME: &[u8] = b"pagetide\0";
/// How the kernel shows it in `/proc/PID/fd`.
pub(crate) const MEMFD_LINK: &str = "/memfd:pagetide (deleted)";

const MAGIC: [u8; 8] = *b"ptmark\0\x02";
const LENGTH: usize = 8 + 16 + 4 + 8 + 16 + 1 + 4 + 1 + 8 + 32 + 8 + 4 + 4;

/// Where in the memfd stands where the store is: the length of the text, its checksum, and the text.
const PLACE_AT: u64 = 1024;
const PLACE_LIMIT: usize = 2048;

/// Where in the memfd stands what the tracker remembers.
const REMEMBERED_AT: u64 = 4096;

/// More than this was never written by us.
const REMEMBERED_LIMIT: u64 = 1 << 30;

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
    pub backend: Backend,
    /// The descriptor of the userfaultfd in the process; -1 if the backend needs none, or if it is still being made.
    pub uffd_number: i32,
    pub phase: Phase,
    /// Length and checksum of what the tracker remembers.
    pub remembered: (u64, u32),
}

/// The backend's number in a mark; it must never change.
fn number_of(backend: Backend) -> u8 {
    match backend {
        Backend::WpAsync => 1,
        Backend::SoftDirty => 2,
        _ => 0,
    }
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
        bytes.push(number_of(self.backend));
        bytes.extend(self.uffd_number.to_le_bytes());
        bytes.push(phase);
        bytes.extend(id.to_le_bytes());
        bytes.extend(hash);
        bytes.extend(self.remembered.0.to_le_bytes());
        bytes.extend(self.remembered.1.to_le_bytes());
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
            .try_into()
            .expect("the fields above have LENGTH bytes")
    }

    /// `None` if the bytes are not a whole mark.
    fn from_bytes(bytes: &[u8; LENGTH]) -> Option<Self> {
        let (body, checksum) = bytes.split_last_chunk::<4>()?;
        if u32::from_le_bytes(*checksum) != crc32c::crc32c(body) {
            return None;
        }
        let (magic, rest) = body.split_first_chunk::<8>()?;
        let (store, rest) = rest.split_first_chunk::<16>()?;
        let (pid, rest) = rest.split_first_chunk::<4>()?;
        let (start_time, rest) = rest.split_first_chunk::<8>()?;
        let (boot_id, rest) = rest.split_first_chunk::<16>()?;
        let (backend, rest) = rest.split_first_chunk::<1>()?;
        let (uffd_number, rest) = rest.split_first_chunk::<4>()?;
        let (phase, rest) = rest.split_first_chunk::<1>()?;
        let (id, rest) = rest.split_first_chunk::<8>()?;
        let (hash, rest) = rest.split_first_chunk::<32>()?;
        let (length, rest) = rest.split_first_chunk::<8>()?;
        let (checksum, _) = rest.split_first_chunk::<4>()?;
        let with_mark = [Backend::WpAsync, Backend::SoftDirty];
        let backend = with_mark
            .into_iter()
            .find(|known| [number_of(*known)] == *backend)?;
        let phase = match phase[0] {
            0 => Phase::Armed,
            1 => Phase::Harvesting,
            2 => Phase::Committed(SnapshotId(u64::from_le_bytes(*id)), ContentHash(*hash)),
            _ => return None,
        };
        (*magic == MAGIC).then_some(Self {
            store: StoreId(*store),
            process: ProcessIdentity {
                pid: i32::from_le_bytes(*pid),
                start_time_ticks: u64::from_le_bytes(*start_time),
                boot_id: *boot_id,
            },
            backend,
            uffd_number: i32::from_le_bytes(*uffd_number),
            phase,
            remembered: (u64::from_le_bytes(*length), u32::from_le_bytes(*checksum)),
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
    /// The userfaultfds, by inode, that were there before one was made, if that one was never heard of.
    pub fn others(&self) -> Option<Vec<u64>> {
        if self.content.backend != Backend::WpAsync || self.content.uffd_number >= 0 {
            return None;
        }
        let bytes = self.remembered()?;
        let inodes = bytes
            .chunks_exact(8)
            .filter_map(|inode| inode.try_into().ok());
        Some(inodes.map(u64::from_le_bytes).collect())
    }

    /// The userfaultfd was made.
    pub fn was_made(&mut self, uffd_number: i32) -> std::io::Result<()> {
        self.content.uffd_number = uffd_number;
        self.content.remembered = (0, 0);
        self.set(self.content.phase)
    }

    /// Writes a first mark into a new memfd. If a userfaultfd is to be made, that comes after it: whoever finds
    /// the mark as it is now knows that the call was given up on, and by the `others`, the inodes of those that
    /// were there before, which one came of it.
    pub fn create(memfd: OwnedFd, content: MarkContent, others: &[u64]) -> std::io::Result<Self> {
        let phase = content.phase;
        let mut mark = Self {
            file: File::from(memfd),
            content,
        };
        let others: Vec<u8> = others
            .iter()
            .flat_map(|inode| inode.to_le_bytes())
            .collect();
        mark.remember(&others)?;
        mark.set(phase)?;
        Ok(mark)
    }

    /// Reads the mark in a memfd; `None` if there is no whole one.
    pub fn read(memfd: OwnedFd) -> std::io::Result<Option<Self>> {
        let file = File::from(memfd);
        let mut bytes = [0; LENGTH];
        match file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let content = MarkContent::from_bytes(&bytes);
        Ok(content.map(|content| Self { file, content }))
    }

    /// What it says.
    pub fn content(&self) -> &MarkContent {
        &self.content
    }

    /// Keeps where the store is, for messages. What is too long to be kept is not.
    pub fn name_place(&self, place: &str) -> std::io::Result<()> {
        let kept = Some(place).filter(|place| place.len() <= PLACE_LIMIT);
        let text = kept.unwrap_or_default().as_bytes();
        let length = u32::try_from(text.len()).unwrap_or(0);
        let head = [length.to_le_bytes(), crc32c::crc32c(text).to_le_bytes()].concat();
        self.file.write_all_at(&[&head, text].concat(), PLACE_AT)
    }

    /// Where the store was when that was kept; `None` if it is not known.
    pub fn place(&self) -> Option<String> {
        let mut head = [0; 8];
        self.file.read_exact_at(&mut head, PLACE_AT).ok()?;
        let (length, checksum) = head.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let mut text = vec![0; Some(length).filter(|length| (1..=PLACE_LIMIT).contains(length))?];
        self.file.read_exact_at(&mut text, PLACE_AT + 8).ok()?;
        (crc32c::crc32c(&text).to_le_bytes() == *checksum).then_some(())?;
        String::from_utf8(text).ok()
    }

    /// Keeps what the tracker remembers. It holds from the next [`Mark::set`] on; until then the mark must
    /// not speak of a snapshot.
    pub fn remember(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let length = bytes.len() as u64;
        self.file.set_len(REMEMBERED_AT + length)?;
        self.file.write_all_at(bytes, REMEMBERED_AT)?;
        self.content.remembered = (length, crc32c::crc32c(bytes));
        Ok(())
    }

    /// What was kept; `None` if it is not whole.
    pub fn remembered(&self) -> Option<Vec<u8>> {
        let (length, checksum) = self.content.remembered;
        let length = usize::try_from(length)
            .ok()
            .filter(|_| length <= REMEMBERED_LIMIT)?;
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, REMEMBERED_AT).ok()?;
        (crc32c::crc32c(&bytes) == checksum).then_some(bytes)
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
            backend: Backend::WpAsync,
            uffd_number: 1021,
            phase,
            remembered: (77, 99),
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
    fn what_the_tracker_remembers_is_kept_whole_or_not_at_all() {
        let memfd = || {
            let flags = rustix::fs::MemfdFlags::CLOEXEC;
            rustix::fs::memfd_create("mark", flags).expect("a memfd")
        };
        let soft_dirty = MarkContent {
            backend: Backend::SoftDirty,
            uffd_number: -1,
            ..content(Phase::Armed)
        };
        let mut mark = Mark::create(memfd(), soft_dirty, &[]).expect("a mark");
        assert_eq!(
            mark.remembered().as_deref(),
            Some(&b""[..]),
            "nothing was kept"
        );
        for bytes in [&b"a longer piece"[..], b"short", b""] {
            mark.remember(bytes).expect("room");
            mark.set(Phase::Harvesting).expect("room");
            let again = mark.file.try_clone().expect("a copy");
            let read = Mark::read(again.into()).expect("a file").expect("a mark");
            assert_eq!(read.content().backend, Backend::SoftDirty);
            assert_eq!(read.remembered().as_deref(), Some(bytes));
        }
        mark.remember(b"whole").expect("room");
        mark.file
            .write_all_at(b"H", REMEMBERED_AT + 1)
            .expect("room");
        assert_eq!(mark.remembered(), None, "damaged");
    }

    #[test]
    fn a_mark_says_where_the_store_is() {
        let memfd = rustix::fs::memfd_create("mark", rustix::fs::MemfdFlags::CLOEXEC);
        let mark = Mark::create(memfd.expect("a memfd"), content(Phase::Armed), &[]).expect("room");
        assert_eq!(mark.place(), None, "nothing was kept");
        mark.name_place("/var/grüße").expect("room");
        assert_eq!(mark.place().as_deref(), Some("/var/grüße"));
        mark.file.write_all_at(b"x", PLACE_AT + 9).expect("room");
        assert_eq!(mark.place(), None, "damaged");
        mark.name_place(&"x".repeat(PLACE_LIMIT + 1)).expect("room");
        assert_eq!(mark.place(), None, "too long to be kept");
    }

    #[test]
    fn a_mark_says_that_its_userfaultfd_is_being_made_until_it_was() {
        let memfd = rustix::fs::memfd_create("mark", rustix::fs::MemfdFlags::CLOEXEC);
        let content = MarkContent {
            uffd_number: -1,
            ..content(Phase::Armed)
        };
        let mut mark =
            Mark::create(memfd.expect("a memfd"), content, &[7, 1 << 40]).expect("a mark");
        let read = |mark: &Mark| {
            let again = mark.file.try_clone().expect("a copy");
            Mark::read(again.into()).expect("a file").expect("a mark")
        };
        assert_eq!(read(&mark).others(), Some(vec![7, 1 << 40]));
        mark.was_made(12).expect("room");
        assert_eq!(read(&mark).others(), None);
        assert_eq!(read(&mark).content().uffd_number, 12);
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
