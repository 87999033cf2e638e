//! One snapshot file: its parts, read and checked one at a time. What a snapshot means together
//! with its ancestors is in `view`, what a view keeps of a file in `kept`.

use crate::decompress::Wherever;
use crate::differences::Differences;
use crate::error::ReadError;
use crate::format::header::{self, Header};
use crate::format::index::{self, Frame, Index};
use crate::format::metadata::{self, Metadata};
use crate::format::preamble::PREAMBLE_BYTES;
use crate::format::{FormatError, damaged};
use crate::frame::{FrameDecoder, check_all, decode_there};
use crate::kept::CompactIndex;
use crate::memory;
use crate::model::{SnapshotId, SnapshotInfo, SnapshotKind, Space, StoreId};
use crate::storage::{Storage, StoredFile};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

const DIRECTORY: &str = "snapshots/";
const SUFFIX: &str = ".snap";
const PARTIAL_SUFFIX: &str = ".partial";
/// Of a snapshot that was pruned, and is there only for pages that others need.
const BASE_SUFFIX: &str = ".base";
/// Of a file that is being made from others by whoever prunes.
const MERGING_SUFFIX: &str = ".merging";

/// The name of the file of a snapshot.
pub fn file_name(id: SnapshotId) -> String {
    format!("{DIRECTORY}{:010}{SUFFIX}", id.0)
}

/// The name of the file of a snapshot that is still being written.
pub fn partial_name(id: SnapshotId) -> String {
    format!("{DIRECTORY}{:010}{PARTIAL_SUFFIX}", id.0)
}

/// The name of the file of a snapshot that was pruned.
pub fn base_name(id: SnapshotId) -> String {
    format!("{DIRECTORY}{:010}{BASE_SUFFIX}", id.0)
}

/// The name of a file that is being made from others.
pub fn merging_name(id: SnapshotId) -> String {
    format!("{DIRECTORY}{:010}{MERGING_SUFFIX}", id.0)
}

/// Whether `name` is of a file that was still being written.
pub fn is_partial(name: &str) -> bool {
    name.ends_with(PARTIAL_SUFFIX)
}

/// Whether `name` is of a file that was still being made from others.
pub fn is_merging(name: &str) -> bool {
    name.ends_with(MERGING_SUFFIX)
}

/// The snapshot whose file has this name.
pub fn snapshot_of(name: &str) -> Option<SnapshotId> {
    let id = number_in(name, SUFFIX)?;
    (file_name(id) == name).then_some(id)
}

/// The pruned snapshot whose file has this name.
pub fn base_of(name: &str) -> Option<SnapshotId> {
    let id = number_in(name, BASE_SUFFIX)?;
    (base_name(id) == name).then_some(id)
}

fn number_in(name: &str, suffix: &str) -> Option<SnapshotId> {
    let digits = name.strip_prefix(DIRECTORY)?.strip_suffix(suffix)?;
    let id = SnapshotId(digits.parse().ok()?);
    (id.0 > 0).then_some(id)
}

/// An open snapshot file whose header has been checked.
pub struct SnapshotFile {
    pub id: SnapshotId,
    pub name: String,
    pub header: Header,
    location: String,
    file: Box<dyn StoredFile>,
}

impl SnapshotFile {
    /// The file of a snapshot, or what is left of one that was pruned.
    pub fn open(storage: &dyn Storage, store: StoreId, id: SnapshotId) -> Result<Self, ReadError> {
        match Self::open_named(storage, store, id, file_name(id)) {
            Err(ReadError::NoSuchSnapshot { .. }) => {
                Self::open_named(storage, store, id, base_name(id))
            }
            other => other,
        }
    }

    /// The file of a snapshot that was not pruned.
    pub fn open_unpruned(
        storage: &dyn Storage,
        store: StoreId,
        id: SnapshotId,
    ) -> Result<Self, ReadError> {
        Self::open_named(storage, store, id, file_name(id))
    }

    fn open_named(
        storage: &dyn Storage,
        store: StoreId,
        id: SnapshotId,
        name: String,
    ) -> Result<Self, ReadError> {
        let location = storage.location();
        let file = storage.open(&name).map_err(|error| match error.kind() {
            ErrorKind::NotFound => ReadError::NoSuchSnapshot { snapshot: id },
            _ => io_error(&location, format!("open {name}"), error),
        })?;
        let length = file
            .length()
            .map_err(|error| io_error(&location, format!("read the length of {name}"), error))?;
        let mut start = [0; PREAMBLE_BYTES];
        let read = |buffer: &mut [u8]| read_at(&*file, buffer, 0, &location, id, &name);
        read(&mut start)?;
        let header_length = header::length(&start).map_err(|error| error.at(id, &name))?;
        let mut bytes = vec![0; header_length];
        read(&mut bytes)?;
        let header = header::decode(&bytes, length).map_err(|error| error.at(id, &name))?;
        if header.store != store {
            return Err(ReadError::ForeignSnapshot {
                snapshot: id,
                file: name,
            });
        }
        if header.snapshot != id {
            let what = format!("it is snapshot {}", header.snapshot);
            return Err(FormatError::Damaged(what).at(id, &name));
        }
        Ok(Self {
            id,
            name,
            header,
            location,
            file,
        })
    }

    pub fn metadata(&self) -> Result<Metadata, ReadError> {
        let header = &self.header;
        let hash = &header.metadata_hash;
        let bytes = self.section(
            header.metadata_at(),
            header.metadata_length,
            hash,
            "metadata",
        )?;
        metadata::decode(&bytes, header.version).map_err(|error| self.at(error))
    }

    pub fn index(&self, spaces: &[Space]) -> Result<Index, ReadError> {
        let header = &self.header;
        let hash = &header.index_hash;
        let bytes = self.section(header.index_at(), header.index_length, hash, "index")?;
        index::decode(&bytes, spaces, header).map_err(|error| self.at(error))
    }

    pub fn info(&self, metadata: &Metadata) -> SnapshotInfo {
        info(&self.header, metadata)
    }

    /// The stored bytes of frames that follow one another, not yet checked.
    pub fn stored(&self, frames: &[Frame], bytes: &mut [u8]) -> Result<(), ReadError> {
        let first = frames.first().map_or(0, |frame| frame.offset);
        let offset = self.header.length() + first;
        read_at(
            &*self.file,
            bytes,
            offset,
            &self.location,
            self.id,
            &self.name,
        )
    }

    /// The open file, which counts as in use as long as it is.
    pub fn hold(self) -> Result<Box<dyn StoredFile>, ReadError> {
        let held = self.file.hold();
        held.map_err(|error| io_error(&self.location, format!("hold {}", self.name), error))?;
        Ok(self.file)
    }

    /// Whether somebody reads the snapshot.
    pub fn is_held(&self) -> Result<bool, ReadError> {
        let held = self.file.is_held();
        held.map_err(|error| {
            io_error(
                &self.location,
                format!("look who holds {}", self.name),
                error,
            )
        })
    }

    /// `error`, said of this file.
    pub fn at(&self, error: FormatError) -> ReadError {
        error.at(self.id, &self.name)
    }

    fn section(
        &self,
        offset: u64,
        length: u64,
        hash: &[u8; 32],
        what: &str,
    ) -> Result<Vec<u8>, ReadError> {
        if length > memory::table_bytes() {
            return Err(ReadError::TooLarge {
                snapshot: self.id,
                length_bytes: length,
                limit_bytes: memory::memory_limit(),
            });
        }
        // The header's lengths have been checked against the length of the file.
        let mut bytes = vec![0; length as usize];
        read_at(
            &*self.file,
            &mut bytes,
            offset,
            &self.location,
            self.id,
            &self.name,
        )?;
        if blake3::hash(&bytes).as_bytes() != hash {
            let error: Result<(), _> =
                damaged(format!("the checksum of its {what} does not match"));
            error.map_err(|error| self.at(error))?;
        }
        Ok(bytes)
    }
}

/// What header and metadata say about a snapshot.
pub fn info(header: &Header, metadata: &Metadata) -> SnapshotInfo {
    SnapshotInfo {
        id: header.snapshot,
        parent: header.parent.map(|(id, _)| id),
        kind: match header.parent {
            Some(_) => SnapshotKind::Delta,
            None => SnapshotKind::Full,
        },
        created_unix_ns: metadata.created_unix_ns,
        stored_bytes: header.file_length(),
        pages: pagetide_pages::PageCount(metadata.data_pages),
        zero_pages: pagetide_pages::PageCount(metadata.zero_pages),
        file_pages: pagetide_pages::PageCount(metadata.file_pages),
        logical_bytes: metadata.logical_bytes(),
        content_hash: header.content_hash(),
    }
}

pub fn io_error(location: &str, operation: String, source: io::Error) -> ReadError {
    ReadError::Io {
        location: location.to_owned(),
        operation,
        source,
    }
}

fn read_at(
    file: &dyn StoredFile,
    buffer: &mut [u8],
    offset: u64,
    location: &str,
    id: SnapshotId,
    name: &str,
) -> Result<(), ReadError> {
    file.read_exact_at(buffer, offset)
        .map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => FormatError::Damaged(format!(
                "it ends before {:#x}",
                offset.saturating_add(buffer.len() as u64)
            ))
            .at(id, name),
            _ => io_error(location, format!("read {name} at {offset:#x}"), error),
        })
}

/// What a view keeps of a snapshot file: where its pages are, and their hashes. The file itself is
/// not kept open, so that the length of a chain is not bounded by the number of descriptors.
#[derive(Debug)]
pub struct Layer {
    pub id: SnapshotId,
    pub store: StoreId,
    pub storage: Arc<dyn Storage>,
    pub header: Header,
    pub kept: CompactIndex,
}

impl Layer {
    /// What is kept of the file with this header.
    pub fn new(
        store: StoreId,
        storage: &Arc<dyn Storage>,
        header: &Header,
        kept: CompactIndex,
    ) -> Self {
        Self {
            id: header.snapshot,
            store,
            storage: Arc::clone(storage),
            header: header.clone(),
            kept,
        }
    }
}

/// Reads frames of layers. Keeps the last file open, and the buffer for stored bytes.
#[derive(Default)]
pub struct FrameReader {
    decoder: FrameDecoder,
    stored: Vec<u8>,
    file: Option<SnapshotFile>,
}

impl FrameReader {
    /// The pages of frame number `number` of `layer`, each of `page_bytes` bytes, in `raw`.
    pub fn read(
        &mut self,
        layer: &Layer,
        number: usize,
        page_bytes: usize,
        raw: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        let frame = self.fetch(layer, number)?;
        raw.resize(frame.page_count as usize * page_bytes, 0);
        self.decoder
            .decode(&self.stored, frame.encoding, &frame.checksum, raw)
            .map_err(|error| self.at(error, layer))
    }

    /// Frame number `number` of `layer`, which is one of differences.
    pub fn differences(
        &mut self,
        layer: &Layer,
        number: usize,
        page_bytes: usize,
    ) -> Result<Differences, ReadError> {
        let frame = self.fetch(layer, number)?;
        let pages = (frame.page_count as usize, page_bytes);
        self.decoder
            .differences(&self.stored, &frame.checksum, frame.encoding, pages)
            .map_err(|error| self.at(error, layer))
    }

    /// Makes pages of those of the parent, as [`Differences::apply`]. `differences` are of `layer`.
    pub fn apply(
        &mut self,
        (differences, layer): (&Differences, &Layer),
        first: usize,
        pages: &mut [u8],
        page_bytes: usize,
    ) -> Result<(), ReadError> {
        let applied = self.decoder.apply(differences, first, pages, page_bytes);
        applied.map_err(|error| self.at(error, layer))
    }

    /// Reads the stored bytes of a frame.
    fn fetch<'l>(&mut self, layer: &'l Layer, number: usize) -> Result<&'l Frame, ReadError> {
        let frame = &layer.kept.frames[number];
        let mut stored = std::mem::take(&mut self.stored);
        stored.resize(frame.stored_length as usize, 0);
        self.file_of(layer)?
            .stored(std::slice::from_ref(frame), &mut stored)?;
        self.stored = stored;
        Ok(frame)
    }

    /// Shows `see` the pages of frames that follow one another where they are decompressed, see
    /// [`crate::Decompress::decompress_there`]. False, and nothing was done, if that is here, or if one is not compressed.
    pub fn read_there(
        &mut self,
        layer: &Layer,
        numbers: Range<usize>,
        page_bytes: usize,
        see: &mut dyn FnMut(&[AtomicU8]),
    ) -> Result<bool, ReadError> {
        let frames = &layer.kept.frames[numbers];
        let is_packed = frames.iter().all(Frame::is_compressed);
        let Some(other) = Wherever::elsewhere().filter(|_| is_packed) else {
            return Ok(false);
        };
        let file = self.file_of(layer)?;
        let mut failed = None;
        let mut put = |place: &mut [u8]| {
            let read = file.stored(frames, place);
            let read = read.and_then(|()| check_all(place, frames).map_err(|error| file.at(error)));
            read.map_err(|error| {
                failed = Some(error);
                ErrorKind::Other.into()
            })
        };
        let pages: usize = frames.iter().map(|frame| frame.page_count as usize).sum();
        let shown = decode_there(other, frames, &mut put, pages * page_bytes, see);
        match failed {
            Some(error) => Err(error),
            None => shown.map(|()| true).map_err(|error| file.at(error)),
        }
    }

    /// The file of `layer`, which stays open.
    fn file_of(&mut self, layer: &Layer) -> Result<&SnapshotFile, ReadError> {
        let file = match self.file.take() {
            Some(file) if file.id == layer.id => file,
            _ => {
                let opened = SnapshotFile::open(&*layer.storage, layer.store, layer.id);
                opened.map_err(|error| match error {
                    ReadError::NoSuchSnapshot { snapshot } => ReadError::Replaced { snapshot },
                    other => other,
                })?
            }
        };
        if file.header == layer.header {
            Ok(self.file.insert(file))
        } else {
            Err(ReadError::Replaced { snapshot: layer.id })
        }
    }

    /// `error`, said of the file of `layer`.
    pub fn at(&self, error: FormatError, layer: &Layer) -> ReadError {
        error.at(layer.id, &file_name(layer.id))
    }
}
