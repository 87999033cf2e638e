//! The header of a snapshot file: who it is, who its parent is, how long each section is, and the
//! hashes that cover them. The content hash is a hash over the header, and so over everything.
//!
//! A file that was rewritten, so that a chain is shorter, says in format 3 which content hash it stands for: that by
//! which its children name it.

use super::preamble::{self, MAGIC_BYTES, PREAMBLE_BYTES};
use super::{
    FORMAT_VERSION, Fields, FormatError, MAX_INDEX_BYTES, MAX_METADATA_BYTES, REWRITTEN_VERSION,
    damaged,
};
use crate::model::{ContentHash, SnapshotId, StoreId};

const MAGIC: [u8; MAGIC_BYTES] = *b"\x89PTSNAP\n";
const FILE_LENGTH_AT: usize = PREAMBLE_BYTES;
const STORE_ID_AT: usize = FILE_LENGTH_AT + 8;
const SNAPSHOT_ID_AT: usize = STORE_ID_AT + 16;
const PARENT_ID_AT: usize = SNAPSHOT_ID_AT + 8;
const PARENT_HASH_AT: usize = PARENT_ID_AT + 8;
const FRAMES_LENGTH_AT: usize = PARENT_HASH_AT + 32;
const METADATA_LENGTH_AT: usize = FRAMES_LENGTH_AT + 8;
const INDEX_LENGTH_AT: usize = METADATA_LENGTH_AT + 8;
const METADATA_HASH_AT: usize = INDEX_LENGTH_AT + 8;
const INDEX_HASH_AT: usize = METADATA_HASH_AT + 32;
const END_OF_FIELDS: usize = INDEX_HASH_AT + 32;
/// The content hash, and the CRC.
const SEALS_BYTES: usize = 32 + 4;
/// How long the header of a snapshot is that was not rewritten.
pub const HEADER_BYTES: usize = END_OF_FIELDS + SEALS_BYTES;
/// How long it is if it was: it says what it stands for.
const REWRITTEN_BYTES: usize = HEADER_BYTES + 32;

/// The header as values. Offsets are not among them: each section starts where the one before ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub version: u32,
    pub store: StoreId,
    pub snapshot: SnapshotId,
    pub parent: Option<(SnapshotId, ContentHash)>,
    pub frames_length: u64,
    pub metadata_length: u64,
    pub index_length: u64,
    pub metadata_hash: [u8; 32],
    pub index_hash: [u8; 32],
    /// The content hash of the file whose place it has taken. Only in format 3.
    pub stands_for: Option<ContentHash>,
}

impl Header {
    /// How long it is itself, and where the frames start.
    pub fn length(&self) -> u64 {
        length_in(self.version) as u64
    }

    /// Where the metadata starts.
    pub fn metadata_at(&self) -> u64 {
        self.length() + self.frames_length
    }

    /// Where the index starts.
    pub fn index_at(&self) -> u64 {
        self.metadata_at() + self.metadata_length
    }

    /// How long the file is.
    pub fn file_length(&self) -> u64 {
        self.index_at() + self.index_length
    }

    /// The hash a child names this snapshot by, and whoever else knows it.
    pub fn content_hash(&self) -> ContentHash {
        self.stands_for.unwrap_or_else(|| self.own_hash())
    }

    /// The hash over this file.
    fn own_hash(&self) -> ContentHash {
        ContentHash(*blake3::hash(&self.hashed_part()).as_bytes())
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.hashed_part();
        bytes.extend_from_slice(&self.own_hash().0);
        preamble::seal(&mut bytes);
        bytes
    }

    fn hashed_part(&self) -> Vec<u8> {
        let (parent, parent_hash) = match self.parent {
            Some((id, hash)) => (id.0, hash.0),
            None => (0, [0; 32]),
        };
        let mut bytes = Vec::with_capacity(REWRITTEN_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&(self.length() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.file_length().to_le_bytes());
        bytes.extend_from_slice(&self.store.0);
        bytes.extend_from_slice(&self.snapshot.0.to_le_bytes());
        bytes.extend_from_slice(&parent.to_le_bytes());
        bytes.extend_from_slice(&parent_hash);
        bytes.extend_from_slice(&self.frames_length.to_le_bytes());
        bytes.extend_from_slice(&self.metadata_length.to_le_bytes());
        bytes.extend_from_slice(&self.index_length.to_le_bytes());
        bytes.extend_from_slice(&self.metadata_hash);
        bytes.extend_from_slice(&self.index_hash);
        if self.version >= REWRITTEN_VERSION {
            bytes.extend_from_slice(&self.stands_for.map_or([0; 32], |hash| hash.0));
        }
        bytes
    }
}

fn length_in(version: u32) -> usize {
    match version {
        ..REWRITTEN_VERSION => HEADER_BYTES,
        _ => REWRITTEN_BYTES,
    }
}

/// How long the header is that starts with `bytes`, whatever its version.
pub fn length(bytes: &[u8; PREAMBLE_BYTES]) -> Result<usize, FormatError> {
    Ok(preamble::read(bytes, &MAGIC)?.1 as usize)
}

/// The header in `bytes`, of a file of `file_length` bytes. Every length in it is bounded by that.
pub fn decode(bytes: &[u8], file_length: u64) -> Result<Header, FormatError> {
    let start = bytes
        .first_chunk::<PREAMBLE_BYTES>()
        .ok_or_else(|| FormatError::Damaged("its header is too short".to_owned()))?;
    let (version, length) = preamble::read(start, &MAGIC)?;
    preamble::check(bytes, version, FORMAT_VERSION)?;
    let expected = length_in(version);
    if length as usize != expected || bytes.len() != expected {
        return damaged(format!("its header is not {expected} bytes long"));
    }
    let mut fields = Fields::new(&bytes[FILE_LENGTH_AT..]);
    let recorded_length = fields.u64();
    let store = StoreId(fields.array());
    let snapshot = SnapshotId(fields.u64());
    let (parent, parent_hash) = (fields.u64(), ContentHash(fields.array()));
    let mut header = Header {
        version,
        store,
        snapshot,
        parent: (parent != 0).then_some((SnapshotId(parent), parent_hash)),
        frames_length: fields.u64(),
        metadata_length: fields.u64(),
        index_length: fields.u64(),
        metadata_hash: fields.array(),
        index_hash: fields.array(),
        stands_for: None,
    };
    if version >= REWRITTEN_VERSION {
        let hash: [u8; 32] = fields.array();
        header.stands_for = (hash != [0; 32]).then_some(ContentHash(hash));
    }
    if recorded_length != file_length {
        return damaged(format!(
            "it is {file_length} bytes long, where its header says {recorded_length}"
        ));
    }
    if header.metadata_length > MAX_METADATA_BYTES || header.index_length > MAX_INDEX_BYTES {
        return damaged("a section is longer than the format allows");
    }
    let sum = header
        .length()
        .checked_add(header.frames_length)
        .and_then(|sum| sum.checked_add(header.metadata_length))
        .and_then(|sum| sum.checked_add(header.index_length));
    if sum != Some(file_length) {
        return damaged("the lengths of its sections do not add up to that of the file");
    }
    if parent == 0 && parent_hash.0 != [0; 32] {
        return damaged("it names the hash of a parent but no parent");
    }
    if parent >= snapshot.0 && parent != 0 {
        return damaged(format!("its parent {parent} is not older than itself"));
    }
    if fields.array() != header.own_hash().0 {
        return damaged("its content hash does not match its header");
    }
    Ok(header)
}
