//! Open files as bytes, and bytes that are not trusted as open files.
//!
//! The bytes: magic `PTOF`, a version (u32 little-endian), then the fields in bincode's fixed-width little-endian encoding. Version 1
//! ended before the owners of pipes.

use super::device;
use super::model::{Description, DescriptorTable, Kind, OpenFiles};
use super::object::StoredObject;
use super::path::PathIdentity;
use super::pipe_state::PipeState;
use crate::encoded::{Encoding, EncodingError};
use std::collections::HashSet;

/// What is stored of files without names, as much again of pipes and sockets, and some million descriptors, and no more.
const LIMIT_BYTES: usize = 256 << 20;
const ENCODING: Encoding<LIMIT_BYTES> = Encoding::with_magic(*b"PTOF", 2);
/// A list of owners of pipes with nobody in it: its length.
const NO_OWNERS: [u8; 8] = [0; 8];
/// No descriptor is greater: `NR_OPEN_MAX` of the kernel.
const NUMBER_MAX: i32 = 0x3fff_ffff;

/// Why bytes are not open files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenFilesDecodeError {
    /// They begin otherwise.
    #[error("these are not the open files of processes")]
    NotOpenFiles,
    /// A later version of this program wrote them.
    #[error("the open files have version {found}, and versions up to {known} are known")]
    NewerVersion {
        /// What the bytes say.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// They are cut off, too long, or damaged.
    #[error("the open files are damaged")]
    Damaged(#[source] bincode::error::DecodeError),
    /// They go on behind the end.
    #[error("{count} bytes too many follow the open files")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// A value is impossible.
    #[error("the open files have an impossible {what}")]
    Impossible {
        /// Which value.
        what: &'static str,
    },
}

impl From<EncodingError> for OpenFilesDecodeError {
    fn from(error: EncodingError) -> Self {
        match error {
            EncodingError::Other => Self::NotOpenFiles,
            EncodingError::NewerVersion { found, known } => Self::NewerVersion { found, known },
            EncodingError::Damaged(source) => Self::Damaged(source),
            EncodingError::TrailingBytes { count } => Self::TrailingBytes { count },
        }
    }
}

impl OpenFiles {
    /// As bytes, for [`Self::from_bytes`].
    ///
    /// # Panics
    /// Never: nothing in it fails to encode into memory.
    pub fn to_bytes(&self) -> Vec<u8> {
        let bytes = ENCODING.encode(self);
        bytes.expect("a vector takes all bytes, and no field can fail to encode")
    }

    /// From bytes that [`Self::to_bytes`] of this or an earlier version made. What it returns has no index out of range and no
    /// path that cannot be one.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, OpenFilesDecodeError> {
        let files: Self = match ENCODING.split(bytes)? {
            (1, body) => Encoding::<LIMIT_BYTES>::decode_body(&[body, &NO_OWNERS].concat())?,
            _ => ENCODING.decode(bytes)?,
        };
        match files.check() {
            Err(what) => Err(OpenFilesDecodeError::Impossible { what }),
            Ok(()) => Ok(files),
        }
    }

    /// Names what is impossible.
    fn check(&self) -> Result<(), &'static str> {
        let all = |good: bool, what| if good { Ok(()) } else { Err(what) };
        for description in &self.descriptions {
            self.check_description(description)?;
        }
        let mut pids = HashSet::new();
        for table in &self.tables {
            all(table.pid > 0 && pids.insert(table.pid), "pid")?;
            self.check_table(table)?;
        }
        all(self.pipes.iter().all(PipeState::is_possible), "pipe")?;
        all(
            self.objects.iter().all(StoredObject::is_possible),
            "file without a name",
        )
    }

    fn check_description(&self, description: &Description) -> Result<(), &'static str> {
        let all = |good: bool, what| if good { Ok(()) } else { Err(what) };
        let owner = description.owner.as_ref();
        all(
            owner.is_none_or(|owner| owner.kind <= 2 && owner.number >= 0),
            "owner of an open file",
        )?;
        let position = |position| i64::try_from(position).is_ok();
        match &description.kind {
            Kind::File(state) => all(is_path(&state.at), "path"),
            Kind::Directory(state) => all(is_path(&state.at), "path"),
            Kind::Path(state) => all(is_path(&state.at), "path"),
            Kind::Device(state) => {
                all(state.path.is_possible(), "path")?;
                all(device::has_no_state(state.number), "device")
            }
            Kind::Terminal(state) => {
                all(state.path.is_possible(), "path")?;
                all(
                    state.standard.is_none_or(|stream| stream.number <= 2),
                    "standard stream",
                )
            }
            Kind::StandardStream(stream) => all(stream.number <= 2, "standard stream"),
            Kind::Object(state) => {
                all(
                    (state.object as usize) < self.objects.len(),
                    "file without a name",
                )?;
                all(position(state.position), "position")
            }
            Kind::Pipe(end) => all((end.pipe as usize) < self.pipes.len(), "pipe"),
            Kind::Eventfd(state) => all(state.count < u64::MAX, "count of events"),
            Kind::Epoll(state) => all(
                state
                    .entries
                    .iter()
                    .all(|entry| is_number(entry.number) && self.is_description(entry.description)),
                "file that is waited for",
            ),
            Kind::Inotify(state) => all(
                state
                    .watches
                    .iter()
                    .all(|watch| watch.number > 0 && is_path(&watch.at)),
                "watch",
            ),
            Kind::Process(file) => all(file.is_possible(), "file of a process"),
            Kind::Closed | Kind::Timerfd(_) | Kind::Signalfd(_) | Kind::Socket(_) => Ok(()),
        }
    }

    fn check_table(&self, table: &DescriptorTable) -> Result<(), &'static str> {
        let all = |good: bool, what| if good { Ok(()) } else { Err(what) };
        let rising = table
            .entries
            .is_sorted_by(|one, next| one.number < next.number);
        let entries = table
            .entries
            .iter()
            .all(|entry| is_number(entry.number) && self.is_description(entry.description));
        all(rising && entries, "descriptor")?;
        let directories = [&table.cwd, &table.root];
        all(directories.into_iter().flatten().all(is_path), "path")?;
        let locks = table
            .posix_locks
            .iter()
            .all(|lock| self.is_description(lock.description));
        all(locks, "lock")
    }

    fn is_description(&self, index: u32) -> bool {
        (index as usize) < self.descriptions.len()
    }
}

fn is_path(at: &PathIdentity) -> bool {
    at.path.is_possible()
}

fn is_number(number: i32) -> bool {
    (0..=NUMBER_MAX).contains(&number)
}
