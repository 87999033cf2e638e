//! The bytes of the format, as `docs/FORMAT.md` specifies them: from bytes to values and back. No
//! I/O here, and no reading of pages.

pub mod descriptor;
pub mod header;
pub mod index;
pub mod metadata;
mod records;

use crate::error::ReadError;
use crate::model::SnapshotId;
use std::io;

/// The newest format this version reads.
pub const FORMAT_VERSION: u32 = 3;
/// The format of a new snapshot.
pub const NEW_VERSION: u32 = 2;
/// The format of a file that has taken the place of another: from this on a header says of which.
pub const REWRITTEN_VERSION: u32 = 3;

/// The largest number of bytes the pages of one frame have. Also the largest page.
pub const MAX_FRAME_BYTES: u64 = 4 << 20;
/// The largest metadata section.
pub const MAX_METADATA_BYTES: u64 = 64 << 20;
/// The largest index section: the hashes of 256 million pages, a terabyte of small ones.
pub const MAX_INDEX_BYTES: u64 = 8 << 30;

/// Pages that are stored as they are.
pub const ENCODING_RAW: u16 = 0;
/// Pages that are stored as one zstd frame.
pub const ENCODING_ZSTD: u16 = 1;
/// Pages of which the words are stored that differ from the parent's pages.
pub const ENCODING_WORDS: u16 = 2;
/// Pages each of which was compressed with reference to the parent's page.
pub const ENCODING_PATCHES: u16 = 3;
/// Pages that are stored as one lz4 block.
pub const ENCODING_LZ4: u16 = 4;

/// Why bytes are not what they should be.
#[derive(Debug)]
pub enum FormatError {
    /// They are wrong.
    Damaged(String),
    /// They are of a later format, or use a code this one does not know.
    Future(String),
    /// It could not be found out.
    Unknown(io::Error),
}

impl FormatError {
    pub fn at(self, snapshot: SnapshotId, file: &str) -> ReadError {
        let file = file.to_owned();
        match self {
            Self::Damaged(what) => ReadError::Damaged {
                snapshot,
                file,
                what,
            },
            Self::Future(what) => ReadError::Future {
                snapshot,
                file,
                what,
            },
            Self::Unknown(source) => ReadError::Io {
                location: file,
                operation: "have it decompressed".to_owned(),
                source,
            },
        }
    }
}

pub fn damaged<T>(what: impl Into<String>) -> Result<T, FormatError> {
    Err(FormatError::Damaged(what.into()))
}

/// Reads fields off the front of a slice. Past the end it reads zeros: callers check the length of
/// a whole structure first, so that is never seen.
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Fields { rest: bytes }
    }

    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        match self.rest.split_first_chunk::<N>() {
            Some((field, rest)) => {
                self.rest = rest;
                *field
            }
            None => [0; N],
        }
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}

/// What every file starts with, in every version of the format: magic, version, header length; and
/// the CRC32C that ends the header, over all of it before.
pub mod preamble {
    use super::{Fields, FormatError, damaged};

    pub const MAGIC_BYTES: usize = 8;
    /// Magic, version, length.
    pub const PREAMBLE_BYTES: usize = MAGIC_BYTES + 4 + 4;
    /// No header of any version is longer.
    pub const MAX_HEADER_BYTES: u32 = 4096;
    const CRC_BYTES: usize = 4;

    /// The version and the length of the header that starts with `bytes`. The magic is checked, the
    /// version is not: only once the checksum holds can it be believed.
    pub fn read(
        bytes: &[u8; PREAMBLE_BYTES],
        magic: &[u8; MAGIC_BYTES],
    ) -> Result<(u32, u32), FormatError> {
        let mut fields = Fields::new(bytes);
        if fields.array::<MAGIC_BYTES>() != *magic {
            return damaged("it does not begin with the magic bytes");
        }
        let (version, length) = (fields.u32(), fields.u32());
        if (length as usize) < PREAMBLE_BYTES + CRC_BYTES || length > MAX_HEADER_BYTES {
            return damaged(format!("its header cannot be {length} bytes long"));
        }
        Ok((version, length))
    }

    /// Checks the checksum that ends `header`, then that the version is one of those up to `newest`.
    pub fn check(header: &[u8], version: u32, newest: u32) -> Result<(), FormatError> {
        let Some((body, crc)) = header.split_last_chunk::<CRC_BYTES>() else {
            return damaged("its header is too short");
        };
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return damaged("the checksum of its header does not match");
        }
        if version > newest {
            return Err(FormatError::Future(format!(
                "format {version}, where {newest} is the newest known"
            )));
        }
        if version == 0 {
            return damaged(format!("there is no format {version}"));
        }
        Ok(())
    }

    /// Ends `header` with its checksum.
    pub fn seal(header: &mut Vec<u8>) {
        let crc = crc32c::crc32c(header);
        header.extend_from_slice(&crc.to_le_bytes());
    }
}
