//! The bytes of the store file: that there is a store, of which format, and its id. It says nothing
//! about snapshots.

use super::preamble::{self, MAGIC_BYTES, PREAMBLE_BYTES};
use super::{Fields, FormatError, damaged};
use crate::model::StoreId;

/// The version of the store's own layout; it is counted apart from that of the snapshot files.
pub const STORE_VERSION: u32 = 1;
const MAGIC: [u8; MAGIC_BYTES] = *b"\x89PTSTOR\n";
const STORE_ID_AT: usize = PREAMBLE_BYTES;
const CRC_AT: usize = STORE_ID_AT + 16;
/// How long the file is.
pub const DESCRIPTOR_BYTES: usize = CRC_AT + 4;

pub fn encode(id: StoreId) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(DESCRIPTOR_BYTES);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&STORE_VERSION.to_le_bytes());
    bytes.extend_from_slice(&(DESCRIPTOR_BYTES as u32).to_le_bytes());
    bytes.extend_from_slice(&id.0);
    preamble::seal(&mut bytes);
    bytes
}

/// The id, or the version that is too new, or what is wrong.
pub fn decode(bytes: &[u8]) -> Result<StoreId, DescriptorError> {
    let start = bytes
        .first_chunk::<PREAMBLE_BYTES>()
        .ok_or_else(|| FormatError::Damaged("it is too short".to_owned()))?;
    let (version, length) = preamble::read(start, &MAGIC)?;
    let header = bytes
        .get(..length as usize)
        .ok_or_else(|| FormatError::Damaged("it is too short".to_owned()))?;
    match preamble::check(header, version, STORE_VERSION) {
        Err(FormatError::Future(_)) => return Err(DescriptorError::Future(version)),
        other => other?,
    }
    if bytes.len() != DESCRIPTOR_BYTES || length as usize != DESCRIPTOR_BYTES {
        damaged(format!("it is not {DESCRIPTOR_BYTES} bytes long"))?;
    }
    Ok(StoreId(Fields::new(&bytes[STORE_ID_AT..]).array()))
}

/// Why the store file cannot be read.
pub enum DescriptorError {
    Future(u32),
    Damaged(String),
}

impl From<FormatError> for DescriptorError {
    fn from(error: FormatError) -> Self {
        match error {
            FormatError::Damaged(what) | FormatError::Future(what) => Self::Damaged(what),
            FormatError::Unknown(error) => Self::Damaged(error.to_string()),
        }
    }
}
