//! The metadata section: spaces, regions, attachments, counters, as bincode of plain structs (see
//! `records`) whose codes are numbers of their own. The types of `model` are never written as they
//! are, so they may change without changing the format.

use super::records::{
    self, AttachmentRecord, MetadataRecord, RegionRecord, SHOWS_A_SPACE, SHOWS_NOTHING, SpaceRecord,
};
use super::{FormatError, MAX_FRAME_BYTES, MAX_METADATA_BYTES, damaged};
use crate::decompress::Wherever;
use crate::model::{Attachment, Backing, Capture, Protection, Region, Sharing, Shown, Space};
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSize};
use std::collections::{HashMap, HashSet};

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
    pub file_pages: u64,
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
pub fn captured_regions(space: &Space) -> impl Iterator<Item = &Region> {
    let regions = space.regions.iter();
    regions.filter(|region| region.capture == Capture::Captured)
}

/// The pages of the captured regions of `space`, ascending.
pub fn captured(space: &Space) -> impl Iterator<Item = PageRange> + '_ {
    captured_regions(space).map(|region| region.pages)
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
        let past_end = past_end(space);
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
    check_shown(spaces)
}

/// The number of pages that a space can have.
fn past_end(space: &Space) -> u64 {
    1 << (64 - space.page_size.bytes().trailing_zeros())
}

/// Why a region cannot show what it says it shows. Whether the pages are there is not looked at.
fn check_shown(spaces: &[Space]) -> Result<(), String> {
    let shows = |space: &Space| space.regions.iter().any(|region| region.shows.is_some());
    let named: HashMap<&str, (&Space, bool)> = spaces
        .iter()
        .map(|space| (space.name.as_str(), (space, shows(space))))
        .collect();
    for space in spaces {
        for region in &space.regions {
            let Some(shown) = &region.shows else {
                continue;
            };
            let pages = region.pages;
            let fail = |what: &str| {
                let (start, end) = (pages.start().0, pages.end().0);
                Err(format!(
                    "space {}: the region of pages {start:#x}..{end:#x} shows space {}, {what}",
                    space.name, shown.space
                ))
            };
            let Some(&(target, target_shows)) = named.get(shown.space.as_str()) else {
                return fail("which does not exist");
            };
            if target_shows {
                return fail("which shows another itself");
            }
            if target.page_size != space.page_size {
                return fail("which has pages of another size");
            }
            let end = shown.first_page.0.checked_add(pages.count().0);
            if end.is_none_or(|end| end > past_end(target)) {
                return fail("past its last address");
            }
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
    let names = metadata.spaces.iter().map(|space| space.name.as_str());
    let positions: Positions<'_> = names.zip(0..).collect();
    let record = MetadataRecord {
        created_unix_ns: metadata.created_unix_ns,
        data_pages: metadata.data_pages,
        zero_pages: metadata.zero_pages,
        file_pages: metadata.file_pages,
        spaces: metadata
            .spaces
            .iter()
            .map(|space| space_record(space, &positions))
            .collect(),
        attachments: metadata.attachments.iter().map(attachment_record).collect(),
    };
    let bytes = records::encode(&record)?;
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
    let mut record = vec![0; length as usize];
    match Wherever::default().decompress(packed, &mut record) {
        Ok(Some(length)) if length == record.len() => Ok(record),
        Err(error) => Err(FormatError::Unknown(error)),
        _ => damaged("its metadata does not decompress"),
    }
}

/// What the section of a file of this version of the format says.
pub fn decode(section: &[u8], version: u32) -> Result<Metadata, FormatError> {
    let record = records::decode(&unpack(section)?, version)?;
    let names: Vec<String> = record.spaces.iter().map(|s| s.name.clone()).collect();
    let spaces = record
        .spaces
        .into_iter()
        .map(|record| space(record, &names));
    let metadata = Metadata {
        created_unix_ns: record.created_unix_ns,
        data_pages: record.data_pages,
        zero_pages: record.zero_pages,
        file_pages: record.file_pages,
        spaces: spaces.collect::<Result<_, _>>()?,
        attachments: record.attachments.into_iter().map(attachment).collect(),
    };
    check_spaces(&metadata.spaces).map_err(FormatError::Damaged)?;
    check_attachments(&metadata.attachments).map_err(FormatError::Damaged)?;
    Ok(metadata)
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

/// The position of each space, by name.
type Positions<'a> = HashMap<&'a str, u32>;

fn space_record(space: &Space, positions: &Positions<'_>) -> SpaceRecord {
    let regions = space.regions.iter();
    SpaceRecord {
        name: space.name.clone(),
        page_size_bytes: space.page_size.bytes(),
        regions: regions
            .map(|region| region_record(region, positions))
            .collect(),
    }
}

fn space(record: SpaceRecord, names: &[String]) -> Result<Space, FormatError> {
    let page_size = PageSize::new(record.page_size_bytes)
        .map_err(|error| FormatError::Damaged(error.to_string()))?;
    let regions = record.regions.into_iter();
    let regions: Result<Vec<_>, _> = regions.map(|record| region(record, names)).collect();
    Ok(Space {
        name: record.name,
        page_size,
        regions: regions?,
    })
}

fn bit(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

fn region_record(region: &Region, positions: &Positions<'_>) -> RegionRecord {
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
    record.shows = SHOWS_NOTHING;
    if let Some(shown) = &region.shows {
        record.shows = SHOWS_A_SPACE;
        // That the space exists was checked.
        record.shown_space = positions
            .get(shown.space.as_str())
            .map_or(u32::MAX, |&at| at);
        record.shown_first_page = shown.first_page.0;
    }
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
            build_id,
        } => {
            record.backing = FILE;
            record.path.clone_from(path);
            record.build_id.clone_from(build_id);
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

fn region(record: RegionRecord, names: &[String]) -> Result<Region, FormatError> {
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
    let shows = match record.shows {
        SHOWS_NOTHING => None,
        SHOWS_A_SPACE => match names.get(record.shown_space as usize) {
            Some(name) => Some(Shown {
                space: name.clone(),
                first_page: PageIndex(record.shown_first_page),
            }),
            None => return damaged("a region shows a space that does not exist"),
        },
        code => return Err(unknown("what is shown", code)),
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
            build_id: record.build_id,
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
        shows,
    })
}
