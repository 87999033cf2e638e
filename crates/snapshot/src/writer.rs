//! Making one more snapshot: from calls of `put_pages` and `put_state` to a file that is published
//! whole or not at all. The work on the pages themselves is in `ingest`.

use crate::error::{ReadError, WriteError};
use crate::format::header::{HEADER_BYTES, Header};
use crate::format::index::{Frame, Index, Run};
use crate::format::metadata::{self, Metadata, captured};
use crate::format::{MAX_FRAME_BYTES, MAX_INDEX_BYTES};
use crate::frame::{EncodedFrame, FrameEncoder};
use crate::ingest::{self, Chunk, Finding, PageRef, Plan};
use crate::layer::{self, Layer, file_name, partial_name};
use crate::model::{Attachment, PageHash, PageState, SnapshotId, Space};
use crate::options::{WriteCounters, WriteOptions};
use crate::read::worker_count;
use crate::runs::{self, Entry, Resolved};
use crate::storage::PartialFile;
use crate::store::{HeldLock, Store};
use crate::view::View;
use pagetide_pages::{PageCount, PageIndex, PageRange};
use std::borrow::Cow;
use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// A snapshot in the making. Dropped before `commit`, it goes away. It holds the lock it was begun
/// under.
pub struct SnapshotWriter {
    store: Store,
    lock: Arc<HeldLock>,
    id: SnapshotId,
    parent: Option<View>,
    options: WriteOptions,
    file: Option<Box<dyn PartialFile>>,
    encoder: FrameEncoder,
    chunk_encoder: Option<FrameEncoder>,
    spaces: Vec<OpenSpace>,
    attachments: Vec<Attachment>,
    frames: Vec<Frame>,
    hashes: Vec<PageHash>,
    frames_length: u64,
    sequence: u64,
    counters: WriteCounters,
    failed: bool,
}

/// A space with what was said of its pages.
struct OpenSpace {
    space: Space,
    /// Its position in the parent, if that has it.
    in_parent: Option<usize>,
    zero_hash: PageHash,
    entries: Vec<Entry>,
    waiting: Waiting,
}

/// Pages that do not fill a frame yet.
#[derive(Default)]
struct Waiting {
    raw: Vec<u8>,
    pages: Vec<(PageIndex, u64, PageHash)>,
}

impl SnapshotWriter {
    pub(crate) fn begin(
        store: Store,
        lock: Arc<HeldLock>,
        id: SnapshotId,
        parent: Option<View>,
        options: WriteOptions,
    ) -> Result<SnapshotWriter, WriteError> {
        let name = partial_name(id);
        let fail = |what: &str, error| failure(&store, id, format!("{what} {name}"), error);
        let mut file = store
            .storage()
            .create(&name)
            .map_err(|error| fail("create", error))?;
        // The header is known last; its place is kept.
        file.append(&[0; HEADER_BYTES])
            .map_err(|error| fail("write", error))?;
        let encoder = FrameEncoder::new(options.level)
            .map_err(|error| failure(&store, id, "prepare to compress".to_owned(), error))?;
        Ok(SnapshotWriter {
            store,
            lock,
            id,
            parent,
            options,
            file: Some(file),
            encoder,
            chunk_encoder: None,
            spaces: Vec::new(),
            attachments: Vec::new(),
            frames: Vec::new(),
            hashes: Vec::new(),
            frames_length: 0,
            sequence: 0,
            counters: WriteCounters::default(),
            failed: false,
        })
    }

    /// The number the snapshot will have.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// What has been done so far. Pages that wait for their frame to fill count as stored, their
    /// bytes do not yet.
    pub fn counters(&self) -> WriteCounters {
        WriteCounters {
            stored_bytes: HEADER_BYTES as u64 + self.frames_length,
            ..self.counters
        }
    }

    /// Says which spaces and regions the snapshot has. It may be called again with another layout:
    /// the last one holds, and pages that were put outside its captured regions are left out.
    /// Spaces that were given before keep position, name and page size.
    pub fn set_spaces(&mut self, spaces: Vec<Space>) -> Result<(), WriteError> {
        metadata::check_spaces(&spaces).map_err(|what| WriteError::Invalid { what })?;
        let kept = self.spaces.iter().map(|open| &open.space);
        for (number, old) in kept.enumerate() {
            let same = spaces
                .get(number)
                .is_some_and(|new| new.name == old.name && new.page_size == old.page_size);
            if !same {
                let what = format!("space {} does not keep its place", old.name);
                return Err(WriteError::Invalid { what });
            }
        }
        for (number, space) in spaces.into_iter().enumerate() {
            if let Some(open) = self.spaces.get_mut(number) {
                open.space = space;
                continue;
            }
            let parent = self.parent.as_ref();
            self.spaces.push(OpenSpace {
                in_parent: parent.and_then(|parent| parent.inner.same_space(&space)),
                zero_hash: PageHash::of(&vec![0; space.page_size.len()]),
                space,
                entries: Vec::new(),
                waiting: Waiting::default(),
            });
        }
        Ok(())
    }

    /// Adds an attachment; one of the same name is replaced.
    pub fn attach(&mut self, name: impl Into<String>, bytes: Vec<u8>) -> Result<(), WriteError> {
        let name = name.into();
        match self.attachments.iter_mut().find(|a| a.name == name) {
            Some(attachment) => attachment.bytes = bytes,
            None => self.attachments.push(Attachment { name, bytes }),
        }
        Ok(())
    }

    /// Stores pages. Each piece is a first page, and the bytes of that page and of those after it.
    /// Of a page that is put twice the last holds. Pages of zeros take no room, nor do pages that
    /// have the bytes of the parent if those are to be left out. After an error nothing more can
    /// be written.
    pub fn put_pages(
        &mut self,
        space: usize,
        pieces: &[(PageIndex, &[u8])],
    ) -> Result<(), WriteError> {
        self.check_alive()?;
        let described = &self.open_space(space)?.space;
        let page_bytes = described.page_size.len();
        let mut pages = Vec::with_capacity(pieces.iter().map(|p| p.1.len() / page_bytes).sum());
        for (piece, &(first, bytes)) in pieces.iter().enumerate() {
            let count = PageCount((bytes.len() / page_bytes) as u64);
            if bytes.len() % page_bytes != 0 || first.0.checked_add(count.0).is_none() {
                return Err(WriteError::BadPages {
                    space: described.name.clone(),
                    pages: PageRange::with_count(first, PageCount(0)),
                    what: format!("cannot take {} bytes: not whole pages", bytes.len()),
                });
            }
            let range = PageRange::with_count(first, count);
            pages.extend(range.pages().enumerate().map(|(number, page)| PageRef {
                page,
                piece,
                number,
            }));
        }
        let result = self.ingest(space, pieces, &pages);
        self.failed |= result.is_err();
        result
    }

    /// Says that the pages of `range` are zeros, guard, or unbacked. It takes no room however long
    /// the range is.
    pub fn put_state(
        &mut self,
        space: usize,
        range: PageRange,
        state: PageState,
    ) -> Result<(), WriteError> {
        self.check_alive()?;
        let sequence = self.sequence;
        let open = self.open_space(space)?;
        if state == PageState::Data {
            return Err(WriteError::BadPages {
                space: open.space.name.clone(),
                pages: range,
                what: "cannot be data without bytes".to_owned(),
            });
        }
        if range.is_empty() {
            return Ok(());
        }
        let entry = Entry {
            pages: range,
            state: Some(state),
            ordinal: 0,
            sequence,
            counted: false,
        };
        runs::log(&mut self.spaces[space].entries, entry);
        self.sequence += 1;
        Ok(())
    }

    /// Says that the pages of `space` from `first` on, of which each has a hash in `hashes`, have the
    /// bytes that the file of their region has at their place. Only regions backed by a file have
    /// such pages.
    pub fn put_file_pages(
        &mut self,
        space: usize,
        first: PageIndex,
        hashes: &[PageHash],
    ) -> Result<(), WriteError> {
        let pages = PageRange::with_count(first, PageCount(hashes.len() as u64));
        self.put_state(space, pages, PageState::File)
    }

    /// Finishes the snapshot: it is durable when this returns. Every page of every captured region
    /// must have been put, now or in an ancestor. After an error there is no such snapshot.
    pub fn commit(mut self) -> Result<View, WriteError> {
        self.check_alive()?;
        for space in 0..self.spaces.len() {
            self.flush(space)?;
        }
        let top = self.records()?;
        let index = self.index(&top);
        let index_bytes = index.encode();
        if index_bytes.len() as u64 > MAX_INDEX_BYTES {
            let what = "it has more pages than one snapshot can".to_owned();
            return Err(WriteError::Invalid { what });
        }
        let metadata = self.metadata(&index);
        let metadata_bytes =
            metadata::encode(&metadata).map_err(|what| WriteError::Invalid { what })?;
        let parent = self.parent.as_ref();
        let header = Header {
            store: self.store.id(),
            snapshot: self.id,
            parent: parent.map(|view| (view.id(), view.info().content_hash)),
            frames_length: self.frames_length,
            metadata_length: metadata_bytes.len() as u64,
            index_length: index_bytes.len() as u64,
            metadata_hash: *blake3::hash(&metadata_bytes).as_bytes(),
            index_hash: *blake3::hash(&index_bytes).as_bytes(),
        };
        let info = layer::info(&header, &metadata);
        let layer = Arc::new(Layer {
            id: self.id,
            store: self.store.id(),
            storage: Arc::clone(self.store.storage()),
            header,
            index,
        });
        // Made before the file is published: what is wrong with it must keep it from existing.
        let view = View::over(
            parent,
            Arc::clone(&layer),
            &top,
            info,
            metadata.spaces,
            metadata.attachments,
        )
        .map_err(incomplete)?;
        self.append(&metadata_bytes)?;
        self.append(&index_bytes)?;
        self.publish(&layer.header)?;
        tracing::debug!(
            snapshot = self.id.0,
            pages = view.info().pages.0,
            "committed"
        );
        Ok(view)
    }

    fn ingest(
        &mut self,
        space: usize,
        pieces: &[(PageIndex, &[u8])],
        pages: &[PageRef],
    ) -> Result<(), WriteError> {
        let parent = self.parent.clone();
        let open = &self.spaces[space];
        let page_bytes = open.space.page_size.len();
        let plan = Plan {
            pieces,
            page_bytes,
            frame_pages: self.frame_pages(page_bytes),
            level: self.options.level,
            zero_hash: open.zero_hash,
            parent: match (&parent, open.in_parent, self.options.elide_unchanged) {
                (Some(parent), Some(space), true) => Some((&*parent.inner, space)),
                _ => None,
            },
        };
        let base = self.sequence;
        self.sequence += pages.len() as u64;
        self.counters.written_pages += PageCount(pages.len() as u64);
        let threads = worker_count(self.options.threads, usize::MAX);
        // The writer takes chunks while later ones are worked on, hence two encoders.
        let mut encoder = match self.chunk_encoder.take() {
            Some(encoder) => encoder,
            None => FrameEncoder::new(self.options.level)
                .map_err(|error| self.failure("prepare to compress".to_owned(), error))?,
        };
        let result = ingest::run(&plan, pages, threads, &mut encoder, |chunk| {
            let first = base + chunk.first as u64;
            let pages = &pages[chunk.first..chunk.first + chunk.findings.len()];
            self.take(space, &plan, chunk, pages, first)
                .map_err(Outcome::Write)
        });
        self.chunk_encoder = Some(encoder);
        result.map_err(|outcome| match outcome {
            Outcome::Write(error) => error,
            Outcome::Compress(error) => self.failure("compress pages".to_owned(), error),
        })
    }

    /// Writes the frames of a chunk and notes what its pages are. `first` is the sequence number of
    /// its first page.
    fn take(
        &mut self,
        space: usize,
        plan: &Plan<'_, '_>,
        chunk: Chunk<'_>,
        pages: &[PageRef],
        first: u64,
    ) -> Result<(), WriteError> {
        for (number, (finding, page)) in chunk.findings.iter().zip(pages).enumerate() {
            let state = match finding {
                Finding::Zero => {
                    self.counters.zero_pages += PageCount(1);
                    Some(PageState::Zero)
                }
                Finding::Unchanged => {
                    self.counters.elided_pages += PageCount(1);
                    None
                }
                Finding::Data(_) => {
                    self.counters.stored_pages += PageCount(1);
                    continue;
                }
            };
            let entry = Entry {
                pages: PageRange::single(page.page),
                state,
                ordinal: 0,
                sequence: first + number as u64,
                counted: true,
            };
            runs::log(&mut self.spaces[space].entries, entry);
        }
        let hashed = |number: usize| match chunk.findings[number] {
            Finding::Data(hash) => Some((pages[number].page, first + number as u64, hash)),
            Finding::Zero | Finding::Unchanged => None,
        };
        for (frame, members) in chunk.frames {
            let stored = members.into_iter().filter_map(hashed);
            self.write_frame(space, frame, stored)?;
        }
        for number in chunk.rest {
            let waiting = &mut self.spaces[space].waiting;
            waiting.pages.extend(hashed(number));
            waiting.raw.extend_from_slice(plan.bytes(&pages[number]));
            if waiting.pages.len() >= plan.frame_pages {
                self.flush(space)?;
            }
        }
        Ok(())
    }

    /// Writes the pages of a space that wait for their frame to fill.
    fn flush(&mut self, space: usize) -> Result<(), WriteError> {
        let mut waiting = std::mem::take(&mut self.spaces[space].waiting);
        if waiting.pages.is_empty() {
            return Ok(());
        }
        let frame = self
            .encoder
            .encode(Cow::Borrowed(&waiting.raw))
            .map_err(|error| self.failure("compress pages".to_owned(), error))?;
        self.write_frame(space, frame, waiting.pages.drain(..))?;
        waiting.raw.clear();
        self.spaces[space].waiting = waiting;
        Ok(())
    }

    fn write_frame(
        &mut self,
        space: usize,
        frame: EncodedFrame<'_>,
        pages: impl Iterator<Item = (PageIndex, u64, PageHash)>,
    ) -> Result<(), WriteError> {
        self.append(&frame.bytes)?;
        let first_ordinal = self.hashes.len() as u64;
        for (page, sequence, hash) in pages {
            let entry = Entry {
                pages: PageRange::single(page),
                state: Some(PageState::Data),
                ordinal: self.hashes.len() as u64,
                sequence,
                counted: true,
            };
            self.hashes.push(hash);
            runs::log(&mut self.spaces[space].entries, entry);
        }
        self.frames.push(Frame {
            space: space as u32,
            encoding: frame.encoding,
            stored_length: frame.bytes.len() as u32,
            page_count: (self.hashes.len() as u64 - first_ordinal) as u32,
            checksum: frame.checksum,
            offset: self.frames_length,
            first_ordinal,
        });
        self.frames_length += frame.bytes.len() as u64;
        Ok(())
    }

    /// What holds of the pages of each space in the end, within its captured regions.
    fn records(&mut self) -> Result<Vec<Vec<Resolved>>, WriteError> {
        let records = self.spaces.iter_mut().map(|open| {
            let runs = runs::latest(std::mem::take(&mut open.entries), 0);
            runs::restrict(&runs, captured(&open.space))
        });
        Ok(records.collect())
    }

    fn index(&mut self, top: &[Vec<Resolved>]) -> Index {
        let runs = top.iter().enumerate().flat_map(|(space, runs)| {
            runs.iter().map(move |run| Run {
                space: space as u32,
                state: run.state,
                pages: run.pages,
                ordinal: run.ordinal,
            })
        });
        Index {
            runs: runs.collect(),
            frames: std::mem::take(&mut self.frames),
            hashes: std::mem::take(&mut self.hashes),
        }
    }

    fn metadata(&mut self, index: &Index) -> Metadata {
        let count = |state: PageState| -> u64 {
            let runs = index.runs.iter().filter(|run| run.state == state);
            runs.map(|run| run.pages.count().0)
                .fold(0, u64::saturating_add)
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Metadata {
            created_unix_ns: now.map_or(0, |time| time.as_nanos() as u64),
            data_pages: count(PageState::Data),
            zero_pages: count(PageState::Zero),
            spaces: self.spaces.drain(..).map(|open| open.space).collect(),
            attachments: std::mem::take(&mut self.attachments),
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let result = match &mut self.file {
            Some(file) => file.append(bytes),
            None => Err(ErrorKind::NotFound.into()),
        };
        result.map_err(|error| self.failure(format!("write {}", partial_name(self.id)), error))
    }

    fn publish(&mut self, header: &Header) -> Result<(), WriteError> {
        let name = file_name(self.id);
        let result = match self.file.take() {
            Some(mut file) => file
                .rewrite(0, &header.encode())
                .and_then(|()| file.publish(&name)),
            None => Err(ErrorKind::NotFound.into()),
        };
        result.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => WriteError::Exists {
                location: self.store.location(),
                snapshot: self.id,
            },
            _ => self.failure(format!("publish {name}"), error),
        })
    }

    fn open_space(&self, number: usize) -> Result<&OpenSpace, WriteError> {
        self.spaces.get(number).ok_or_else(|| WriteError::Invalid {
            what: format!("there is no space number {number}"),
        })
    }

    fn frame_pages(&self, page_bytes: usize) -> usize {
        let bytes = self.options.frame_bytes.min(MAX_FRAME_BYTES as usize);
        (bytes / page_bytes).max(1)
    }

    fn check_alive(&self) -> Result<(), WriteError> {
        match self.failed {
            true => Err(WriteError::Failed { snapshot: self.id }),
            false => Ok(()),
        }
    }

    fn failure(&self, operation: String, error: io::Error) -> WriteError {
        failure(&self.store, self.id, operation, error)
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        // The file goes first: as long as it is there nobody else may write one of its name.
        drop(self.file.take());
        self.lock.writer_gone();
    }
}

impl fmt::Debug for SnapshotWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotWriter")
            .field("snapshot", &self.id)
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

/// Which side of `ingest` failed.
enum Outcome {
    Compress(io::Error),
    Write(WriteError),
}

impl From<io::Error> for Outcome {
    fn from(error: io::Error) -> Outcome {
        Outcome::Compress(error)
    }
}

fn failure(
    store: &Store,
    snapshot: SnapshotId,
    operation: String,
    source: io::Error,
) -> WriteError {
    let location = store.location();
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => WriteError::Full {
            location,
            snapshot,
            source,
        },
        _ => WriteError::Io {
            location,
            operation,
            source,
        },
    }
}

/// The only thing that can be wrong with a view before its file exists.
fn incomplete(error: ReadError) -> WriteError {
    match error {
        ReadError::MissingPages {
            space,
            address,
            length,
            ..
        } => WriteError::MissingPages {
            space,
            address,
            length,
        },
        other => WriteError::Invalid {
            what: other.to_string(),
        },
    }
}
