//! The metadata section: spaces, regions, attachments, counters, as bincode of plain structs whose
//! codes are numbers of their own. The types of `model` are never written as they are, so they may
//! change without changing the format.

use super::{FormatError, MAX_FRAME_BYTES, MAX_METADATA_BYTES, damaged};
use crate::model::{Attachment, Backing, Capture, Protection, Region, Sharing, Space};
use bincode::{Decode, Encode};
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSize};
use std::collections::HashSet;

/// The zstd level of the section: it is small, and written once a snapshot.
const LEVEL: i32 = 3;

const READ: u8 = 1;
const WRITE: u8 = 2;
const EXECUTE: u8 = 4;
const PRIVATE: u8 = 1;
const SHARED: u8 = 2;
const ANONYMOUS: u8 = 1;
const FILE: u8 = 2;
const SHARED_MEMORY: u8 = 3;
const KERNEL: u8 = 4;
const CAPTURED: u8 = 1;
const NOT_CAPTURED: u8 = 2;

/// What the section says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    pub created_unix_ns: u64,
    pub data_pages: u64,
    pub zero_pages: u64,
    pub spaces: Vec<Space>,
    pub attachments: Vec<Attachment>,
}

impl Metadata {
    /// The length of all captured regions.
    pub fn logical_bytes(&self) -> u64 {
        let lengths = self
            .spaces
            .iter()
            .flat_map(|space| captured(space).map(|pages| space.page_size.bytes_of(pages.count())));
        lengths.fold(0, u64::saturating_add)
    }
}

/// The captured regions of `space`, ascending.
pub fn captured(space: &Space) -> impl Iterator<Item = PageRange> + '_ {
    let regions = space.regions.iter();
    regions
        .filter(|region| region.capture == Capture::Captured)
        .map(|region| region.pages)
}

#[derive(Encode, Decode)]
struct MetadataRecord {
    created_unix_ns: u64,
    data_pages: u64,
    zero_pages: u64,
    spaces: Vec<SpaceRecord>,
    attachments: Vec<AttachmentRecord>,
}

#[derive(Encode, Decode)]
struct SpaceRecord {
    name: String,
    page_size_bytes: u64,
    regions: Vec<RegionRecord>,
}

#[derive(Encode, Decode, Default)]
struct RegionRecord {
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

#[derive(Encode, Decode)]
struct AttachmentRecord {
    name: String,
    bytes: Vec<u8>,
}

/// Why spaces or attachments cannot be in a snapshot; the writer and the reader ask the same.
pub fn check_spaces(spaces: &[Space]) -> Result<(), String> {
    let mut names = HashSet::new();
    for space in spaces {
        let name = &space.name;
        if !names.insert(name) {
            return Err(format!("two spaces are named {name}"));
        }
        let page_bytes = space.page_size.bytes();
        if page_bytes > MAX_FRAME_BYTES {
            return Err(format!("space {name} has pages of {page_bytes} bytes"));
        }
        let past_end = 1 << (64 - page_bytes.trailing_zeros());
        let mut free_from = PageIndex(0);
        for region in &space.regions {
            let pages = region.pages;
            let shown = format!("{:#x}..{:#x}", pages.start().0, pages.end().0);
            if pages.is_empty() {
                return Err(format!(
                    "space {name}: the region of pages {shown} is empty"
                ));
            }
            if pages.start() < free_from {
                return Err(format!(
                    "space {name}: the region of pages {shown} overlaps the one before it"
                ));
            }
            if pages.end().0 > past_end {
                return Err(format!(
                    "space {name}: the region of pages {shown} ends past the last address"
                ));
            }
            free_from = pages.end();
        }
    }
    Ok(())
}

pub fn check_attachments(attachments: &[Attachment]) -> Result<(), String> {
    let mut names = HashSet::new();
    match attachments.iter().find(|a| !names.insert(&a.name)) {
        Some(twice) => Err(format!("two attachments are named {}", twice.name)),
        None => Ok(()),
    }
}

/// The bytes of `metadata`, which has been checked, or why there is no room for them.
pub fn encode(metadata: &Metadata) -> Result<Vec<u8>, String> {
    let record = MetadataRecord {
        created_unix_ns: metadata.created_unix_ns,
        data_pages: metadata.data_pages,
        zero_pages: metadata.zero_pages,
        spaces: metadata.spaces.iter().map(space_record).collect(),
        attachments: metadata.attachments.iter().map(attachment_record).collect(),
    };
    let config = bincode::config::standard().with_fixed_int_encoding();
    let bytes = bincode::encode_to_vec(record, config).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_METADATA_BYTES {
        return Err(format!(
            "its regions and attachments take {} bytes, more than {MAX_METADATA_BYTES}",
            bytes.len()
        ));
    }
    pack(&bytes)
}

/// The section as it is stored: the length of the record, then the record as one zstd frame. Regions
/// and registers of threads repeat themselves, and in a small delta they outweigh the pages.
fn pack(record: &[u8]) -> Result<Vec<u8>, String> {
    let mut section = (record.len() as u64).to_le_bytes().to_vec();
    let packed = zstd::bulk::compress(record, LEVEL).map_err(|error| error.to_string())?;
    section.extend(packed);
    Ok(section)
}

fn unpack(section: &[u8]) -> Result<Vec<u8>, FormatError> {
    let Some((length, packed)) = section.split_first_chunk::<8>() else {
        return damaged("its metadata is cut off");
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_METADATA_BYTES {
        return damaged("its metadata says it is longer than metadata can be");
    }
    match zstd::bulk::decompress(packed, length as usize) {
        Ok(record) if record.len() as u64 == length => Ok(record),
        _ => damaged("its metadata does not decompress"),
    }
}

pub fn decode(section: &[u8]) -> Result<Metadata, FormatError> {
    let bytes = unpack(section)?;
    let bytes = bytes.as_slice();
    // The limit counts bytes in memory, of which a decoded structure can have some three times as
    // many as it had bytes in the file.
    let (record, used) = match bytes.len() {
        ..=0x1_0000 => decode_within::<0x4_0000>(bytes)?,
        0x1_0001..=0x20_0000 => decode_within::<0x80_0000>(bytes)?,
        _ => decode_within::<0x1000_0000>(bytes)?,
    };
    if used != bytes.len() {
        return damaged("its metadata has bytes left over");
    }
    let spaces: Result<Vec<_>, _> = record.spaces.into_iter().map(space).collect();
    let metadata = Metadata {
        created_unix_ns: record.created_unix_ns,
        data_pages: record.data_pages,
        zero_pages: record.zero_pages,
        spaces: spaces?,
        attachments: record.attachments.into_iter().map(attachment).collect(),
    };
    check_spaces(&metadata.spaces).map_err(FormatError::Damaged)?;
    check_attachments(&metadata.attachments).map_err(FormatError::Damaged)?;
    Ok(metadata)
}

fn decode_within<const LIMIT: usize>(bytes: &[u8]) -> Result<(MetadataRecord, usize), FormatError> {
    let config = bincode::config::standard()
        .with_fixed_int_encoding()
        .with_limit::<LIMIT>();
    bincode::decode_from_slice(bytes, config).or_else(|_| damaged("its metadata does not decode"))
}

fn attachment_record(attachment: &Attachment) -> AttachmentRecord {
    AttachmentRecord {
        name: attachment.name.clone(),
        bytes: attachment.bytes.clone(),
    }
}

fn attachment(record: AttachmentRecord) -> Attachment {
    Attachment {
        name: record.name,
        bytes: record.bytes,
    }
}

fn space_record(space: &Space) -> SpaceRecord {
    SpaceRecord {
        name: space.name.clone(),
        page_size_bytes: space.page_size.bytes(),
        regions: space.regions.iter().map(region_record).collect(),
    }
}

fn space(record: SpaceRecord) -> Result<Space, FormatError> {
    let page_size = PageSize::new(record.page_size_bytes)
        .map_err(|error| FormatError::Damaged(error.to_string()))?;
    let regions: Result<Vec<_>, _> = record.regions.into_iter().map(region).collect();
    Ok(Space {
        name: record.name,
        page_size,
        regions: regions?,
    })
}

fn bit(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

fn region_record(region: &Region) -> RegionRecord {
    let protection = region.protection;
    let mut record = RegionRecord {
        first_page: region.pages.start().0,
        page_count: region.pages.count().0,
        protection: bit(protection.read, READ)
            | bit(protection.write, WRITE)
            | bit(protection.execute, EXECUTE),
        sharing: match region.sharing {
            Sharing::Private => PRIVATE,
            Sharing::Shared => SHARED,
        },
        name: region.name.clone(),
        advice: region.advice.clone(),
        ..RegionRecord::default()
    };
    match &region.capture {
        Capture::Captured => record.capture = CAPTURED,
        Capture::NotCaptured { reason } => {
            record.capture = NOT_CAPTURED;
            record.reason.clone_from(reason);
        }
    }
    match &region.backing {
        Backing::Anonymous => record.backing = ANONYMOUS,
        Backing::Kernel => record.backing = KERNEL,
        Backing::File {
            path,
            offset_bytes,
            device,
            inode,
            size_bytes,
            modified_ns,
            build_id: _,
        } => {
            record.backing = FILE;
            record.path.clone_from(path);
            record.offset_bytes = *offset_bytes;
            record.device = *device;
            record.inode = *inode;
            record.size_bytes = *size_bytes;
            record.modified_ns = *modified_ns;
        }
        Backing::SharedMemory {
            path,
            offset_bytes,
            device,
            inode,
        } => {
            record.backing = SHARED_MEMORY;
            record.path.clone_from(path);
            record.offset_bytes = *offset_bytes;
            record.device = *device;
            record.inode = *inode;
        }
    }
    record
}

fn region(record: RegionRecord) -> Result<Region, FormatError> {
    let unknown = |what: &str, code: u8| FormatError::Future(format!("{what} {code} of a region"));
    let first = PageIndex(record.first_page);
    let Some(end) = record.first_page.checked_add(record.page_count) else {
        return damaged("a region ends past the last page");
    };
    if record.protection > READ | WRITE | EXECUTE {
        return Err(unknown("protection", record.protection));
    }
    let sharing = match record.sharing {
        PRIVATE => Sharing::Private,
        SHARED => Sharing::Shared,
        code => return Err(unknown("sharing", code)),
    };
    let capture = match record.capture {
        CAPTURED => Capture::Captured,
        NOT_CAPTURED => Capture::NotCaptured {
            reason: record.reason,
        },
        code => return Err(unknown("capture", code)),
    };
    let backing = match record.backing {
        ANONYMOUS => Backing::Anonymous,
        KERNEL => Backing::Kernel,
        FILE => Backing::File {
            path: record.path,
            offset_bytes: record.offset_bytes,
            device: record.device,
            inode: record.inode,
            size_bytes: record.size_bytes,
            modified_ns: record.modified_ns,
            build_id: Vec::new(),
        },
        SHARED_MEMORY => Backing::SharedMemory {
            path: record.path,
            offset_bytes: record.offset_bytes,
            device: record.device,
            inode: record.inode,
        },
        code => return Err(unknown("backing", code)),
    };
    Ok(Region {
        pages: PageRange::with_count(first, PageCount(end - first.0)),
        protection: Protection {
            read: record.protection & READ != 0,
            write: record.protection & WRITE != 0,
            execute: record.protection & EXECUTE != 0,
        },
        sharing,
        backing,
        name: record.name,
        advice: record.advice,
        capture,
        shows: None,
    })
}
