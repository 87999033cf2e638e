//! The structs that bincode turns into the record of the metadata section and back, one set for each
//! version of the format that differs. Their fields are the format: none may be changed, added or
//! moved. What they mean is in `metadata`.

use super::{FormatError, damaged};
use bincode::{Decode, Encode};

#[derive(Encode, Decode)]
pub struct MetadataRecord {
    pub created_unix_ns: u64,
    pub data_pages: u64,
    pub zero_pages: u64,
    pub file_pages: u64,
    pub spaces: Vec<SpaceRecord>,
    pub attachments: Vec<AttachmentRecord>,
}

#[derive(Encode, Decode)]
pub struct SpaceRecord {
    pub name: String,
    pub page_size_bytes: u64,
    pub regions: Vec<RegionRecord>,
}

#[derive(Encode, Decode, Default)]
pub struct RegionRecord {
    pub first_page: u64,
    pub page_count: u64,
    pub protection: u8,
    pub sharing: u8,
    pub backing: u8,
    pub capture: u8,
    pub shows: u8,
    pub shown_space: u32,
    pub shown_first_page: u64,
    pub offset_bytes: u64,
    pub device: u64,
    pub inode: u64,
    pub size_bytes: u64,
    pub modified_ns: i64,
    pub path: Vec<u8>,
    pub build_id: Vec<u8>,
    pub name: String,
    pub advice: Vec<String>,
    pub reason: String,
}

#[derive(Encode, Decode)]
pub struct AttachmentRecord {
    pub name: String,
    pub bytes: Vec<u8>,
}

#[derive(Decode)]
struct MetadataRecord1 {
    created_unix_ns: u64,
    data_pages: u64,
    zero_pages: u64,
    spaces: Vec<SpaceRecord1>,
    attachments: Vec<AttachmentRecord>,
}

#[derive(Decode)]
struct SpaceRecord1 {
    name: String,
    page_size_bytes: u64,
    regions: Vec<RegionRecord1>,
}

#[derive(Decode)]
struct RegionRecord1 {
    first_page: u64,
    page_count: u64,
    protection: u8,
    sharing: u8,
    backing: u8,
    capture: u8,
    offset_bytes: u64,
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified_ns: i64,
    path: Vec<u8>,
    name: String,
    advice: Vec<String>,
    reason: String,
}

/// What `RegionRecord::shows` says of a region that shows nothing.
pub const SHOWS_NOTHING: u8 = 1;
/// What it says of one that shows another space.
pub const SHOWS_A_SPACE: u8 = 2;

impl From<RegionRecord1> for RegionRecord {
    fn from(old: RegionRecord1) -> Self {
        Self {
            first_page: old.first_page,
            page_count: old.page_count,
            protection: old.protection,
            sharing: old.sharing,
            backing: old.backing,
            capture: old.capture,
            shows: SHOWS_NOTHING,
            shown_space: 0,
            shown_first_page: 0,
            offset_bytes: old.offset_bytes,
            device: old.device,
            inode: old.inode,
            size_bytes: old.size_bytes,
            modified_ns: old.modified_ns,
            path: old.path,
            build_id: Vec::new(),
            name: old.name,
            advice: old.advice,
            reason: old.reason,
        }
    }
}

impl From<SpaceRecord1> for SpaceRecord {
    fn from(old: SpaceRecord1) -> Self {
        Self {
            name: old.name,
            page_size_bytes: old.page_size_bytes,
            regions: old.regions.into_iter().map(RegionRecord::from).collect(),
        }
    }
}

impl From<MetadataRecord1> for MetadataRecord {
    fn from(old: MetadataRecord1) -> Self {
        Self {
            created_unix_ns: old.created_unix_ns,
            data_pages: old.data_pages,
            zero_pages: old.zero_pages,
            file_pages: 0,
            spaces: old.spaces.into_iter().map(SpaceRecord::from).collect(),
            attachments: old.attachments,
        }
    }
}

/// The bytes of `record`, in the newest version of the format.
pub fn encode(record: &MetadataRecord) -> Result<Vec<u8>, String> {
    let config = bincode::config::standard().with_fixed_int_encoding();
    bincode::encode_to_vec(record, config).map_err(|error| error.to_string())
}

/// The record in `bytes`, of a file of this version of the format.
pub fn decode(bytes: &[u8], version: u32) -> Result<MetadataRecord, FormatError> {
    match version {
        1 => decode_as::<MetadataRecord1>(bytes).map(MetadataRecord::from),
        _ => decode_as(bytes),
    }
}

fn decode_as<R: Decode<()>>(bytes: &[u8]) -> Result<R, FormatError> {
    // The limit counts bytes in memory, of which a decoded structure can have some three times as
    // many as it had bytes in the file.
    let (record, used) = match bytes.len() {
        ..=0x1_0000 => decode_within::<0x4_0000, R>(bytes)?,
        0x1_0001..=0x20_0000 => decode_within::<0x80_0000, R>(bytes)?,
        _ => decode_within::<0x1000_0000, R>(bytes)?,
    };
    if used != bytes.len() {
        return damaged("its metadata has bytes left over");
    }
    Ok(record)
}

fn decode_within<const LIMIT: usize, R: Decode<()>>(
    bytes: &[u8],
) -> Result<(R, usize), FormatError> {
    let config = bincode::config::standard()
        .with_fixed_int_encoding()
        .with_limit::<LIMIT>();
    bincode::decode_from_slice(bytes, config).or_else(|_| damaged("its metadata does not decode"))
}
