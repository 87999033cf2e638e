//! Making one more snapshot: from calls of `put_pages` and `put_state` to a file that is published
//! whole or not at all. The work on the pages themselves is in `ingest`.

mod commit;

use crate::dedup::Known;
use crate::error::WriteError;
use crate::format::MAX_FRAME_BYTES;
use crate::format::header::HEADER_BYTES;
use crate::format::metadata;
use crate::frame::FrameEncoder;
use crate::frames::{FrameError, Frames, Log, PutPage};
use crate::ingest::{self, Chunk, Finding, IngestPlan, PageRef};
use crate::layer::{base_of, partial_name, snapshot_of};
use crate::model::{Attachment, PageHash, PageState, SnapshotId, Space};
use crate::options::{WriteCounters, WriteOptions};
use crate::read::worker_count;
use crate::runs::{self, Entry};
use crate::store::{HeldLock, Store, WriterLock};
use crate::view::{View, ZeroHashes};
use pagetide_pages::{PageCount, PageIndex, PageRange};
use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A snapshot in the making. Dropped before `commit`, it goes away. It holds the lock it was begun
/// under.
pub struct SnapshotWriter {
    store: Store,
    lock: Arc<HeldLock>,
    id: SnapshotId,
    parent: Option<View>,
    options: WriteOptions,
    frames: Frames,
    chunk_encoder: Option<FrameEncoder>,
    spaces: Vec<OpenSpace>,
    attachments: Vec<Attachment>,
    /// The hashes of pages of files, in the order they were put.
    file_hashes: Vec<PageHash>,
    zero_hashes: ZeroHashes,
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
}

impl Store {
    /// A new snapshot: a delta to `parent`, or a full one.
    pub fn begin(
        &self,
        lock: &WriterLock,
        parent: Option<&View>,
        options: WriteOptions,
    ) -> Result<SnapshotWriter, WriteError> {
        let location = self.location();
        if lock.held.store != self.id() {
            return Err(WriteError::ForeignLock { location });
        }
        if let Some(parent) = parent.filter(|parent| parent.inner.store != self.id()) {
            return Err(WriteError::ForeignParent {
                location,
                parent: parent.id(),
            });
        }
        if lock.held.highest.load(Ordering::Acquire) == 0 {
            lock.held.used(self.highest_number()?);
        }
        if lock.held.writing.swap(true, Ordering::AcqRel) {
            return Err(WriteError::Busy { location });
        }
        lock.held.used(parent.map_or(SnapshotId(0), View::id));
        let id = SnapshotId(lock.held.highest.load(Ordering::Acquire) + 1);
        let held = Arc::clone(&lock.held);
        SnapshotWriter::begin(self.clone(), held, id, parent.cloned(), options)
            .inspect_err(|_| lock.held.writer_gone())
    }

    /// The largest number of any snapshot, damaged ones and pruned ones too: no number is used twice.
    fn highest_number(&self) -> Result<SnapshotId, WriteError> {
        let names = self.storage().list().map_err(|source| WriteError::Io {
            location: self.location(),
            operation: "list its files".to_owned(),
            source,
        })?;
        let number = |name: &String| snapshot_of(name).or_else(|| base_of(name));
        let numbers = names.iter().filter_map(number);
        Ok(numbers.max().unwrap_or(SnapshotId(0)))
    }
}

impl SnapshotWriter {
    pub(crate) fn begin(
        store: Store,
        lock: Arc<HeldLock>,
        id: SnapshotId,
        parent: Option<View>,
        options: WriteOptions,
    ) -> Result<Self, WriteError> {
        let name = partial_name(id);
        let fail = |what: &str, error| failure(&store, id, format!("{what} {name}"), error);
        let mut file = store
            .storage()
            .create(&name)
            .map_err(|error| fail("create", error))?;
        // The header is known last; its place is kept.
        file.append(&[0; HEADER_BYTES])
            .map_err(|error| fail("write", error))?;
        if let Some(shadow) = &options.shadow {
            shadow.begin_turn();
        }
        let encoder = FrameEncoder::new(options.compression)
            .map_err(|error| failure(&store, id, "prepare to compress".to_owned(), error))?;
        Ok(Self {
            store,
            lock,
            id,
            parent,
            frames: Frames::new(file, encoder, options.deduplicate.then(Known::default)),
            options,
            chunk_encoder: None,
            spaces: Vec::new(),
            attachments: Vec::new(),
            file_hashes: Vec::new(),
            zero_hashes: ZeroHashes::default(),
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
            stored_bytes: HEADER_BYTES as u64 + self.frames.length(),
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
                zero_hash: self.zero_hashes.of(space.page_size),
                space,
                entries: Vec::new(),
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

    /// Says that the pages of `range` are zeros, guard, unbacked, or shown. It takes no room however
    /// long the range is. What shown pages show must be there when the snapshot is committed.
    pub fn put_state(
        &mut self,
        space: usize,
        range: PageRange,
        state: PageState,
    ) -> Result<(), WriteError> {
        self.check_alive()?;
        let sequence = self.sequence;
        let open = self.open_space(space)?;
        let missing = match state {
            PageState::Data => Some("cannot be data without bytes"),
            PageState::File => Some("cannot be in a file without hashes"),
            PageState::Zero | PageState::Guard | PageState::Unbacked | PageState::Shown => None,
        };
        if let Some(what) = missing {
            return Err(WriteError::BadPages {
                space: open.space.name.clone(),
                pages: range,
                what: what.to_owned(),
            });
        }
        if range.is_empty() {
            return Ok(());
        }
        // A region that shows what it showed takes no room in a delta.
        let held = state == PageState::Shown && self.parent_shows(space, range);
        let entry = Entry {
            pages: range,
            state: (!held).then_some(state),
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
        self.check_alive()?;
        let open = self.open_space(space)?;
        let count = PageCount(hashes.len() as u64);
        if first.0.checked_add(count.0).is_none() {
            return Err(WriteError::BadPages {
                space: open.space.name.clone(),
                pages: PageRange::with_count(first, PageCount(0)),
                what: format!("cannot take {count} more: there are not so many"),
            });
        }
        let parent = match (open.in_parent, self.options.elide_unchanged) {
            (Some(space), true) => self.parent.as_ref().map(|parent| (&*parent.inner, space)),
            _ => None,
        };
        let is_held = |page: PageIndex, hash: PageHash| {
            let run =
                parent.and_then(|(inner, space)| Some((inner, space, inner.own_at(space, page)?)));
            run.is_some_and(|(inner, space, run)| {
                run.state == PageState::File && inner.hash_in(space, run, page) == Some(hash)
            })
        };
        for (page, &hash) in PageRange::with_count(first, count).pages().zip(hashes) {
            let entry = Entry {
                pages: PageRange::single(page),
                state: (!is_held(page, hash)).then_some(PageState::File),
                ordinal: self.file_hashes.len() as u64,
                sequence: self.sequence,
                counted: true,
            };
            if entry.state.is_some() {
                self.file_hashes.push(hash);
            }
            runs::log(&mut self.spaces[space].entries, entry);
            self.sequence += 1;
        }
        self.counters.file_pages += count;
        Ok(())
    }

    fn ingest(
        &mut self,
        space: usize,
        pieces: &[(PageIndex, &[u8])],
        pages: &[PageRef],
    ) -> Result<(), WriteError> {
        let parent = self.parent.clone();
        let shadow = self.options.shadow.clone();
        let open = &self.spaces[space];
        let page_bytes = open.space.page_size.len();
        let name = open.space.name.clone();
        let mut plan = IngestPlan {
            pieces,
            page_bytes,
            frame_pages: self.frame_pages(page_bytes),
            compression: self.options.compression,
            zero_hash: open.zero_hash,
            parent: match (&parent, open.in_parent) {
                (Some(parent), Some(space)) => Some((&*parent.inner, space)),
                _ => None,
            },
            elide_unchanged: self.options.elide_unchanged,
            shadow: shadow.as_ref().map(|shadow| (shadow, name.as_str())),
            findings: None,
        };
        let base = self.sequence;
        self.sequence += pages.len() as u64;
        self.counters.written_pages += PageCount(pages.len() as u64);
        let threads = worker_count(self.options.threads, usize::MAX);
        if let Some(known) = self.frames.known() {
            // Which of several equal pages is stored must not depend on the threads: all are
            // hashed before any is compressed.
            let mut findings = ingest::survey(&plan, pages, threads);
            known.thin(page_bytes, &mut findings);
            plan.findings = Some(findings);
        }
        // The writer takes chunks while later ones are worked on, hence two encoders.
        let mut encoder = match self.chunk_encoder.take() {
            Some(encoder) => encoder,
            None => FrameEncoder::new(self.options.compression)
                .map_err(|error| self.failure("prepare to compress".to_owned(), error))?,
        };
        let result = ingest::run(&plan, pages, threads, &mut encoder, |mut chunk| {
            self.counters.difference_pages += PageCount(chunk.differing.len() as u64);
            if let Some((shadow, name)) = plan.shadow {
                let is_delta = plan.parent.is_some();
                shadow.put(name, std::mem::take(&mut chunk.kept), is_delta);
            }
            let first = base + chunk.first as u64;
            let pages = &pages[chunk.first..chunk.first + chunk.findings.len()];
            self.take(space, &plan, chunk, pages, first)
        });
        self.chunk_encoder = Some(encoder);
        result.map_err(|error| self.frame_failure(error))
    }

    /// Writes the frames of a chunk and notes what its pages are. `first` is the sequence number of
    /// its first page.
    fn take(
        &mut self,
        space: usize,
        plan: &IngestPlan<'_, '_>,
        chunk: Chunk<'_>,
        pages: &[PageRef],
        first: u64,
    ) -> Result<(), FrameError> {
        let counters = &mut self.counters;
        for (number, (finding, page)) in chunk.findings.iter().zip(pages).enumerate() {
            let (state, counter) = match finding {
                Finding::Zero => (Some(Some(PageState::Zero)), &mut counters.zero_pages),
                Finding::Unchanged => (Some(None), &mut counters.elided_pages),
                Finding::Data(_) => (None, &mut counters.stored_pages),
                Finding::Same(_) => (None, &mut counters.deduplicated_pages),
            };
            *counter += PageCount(1);
            // Pages with bytes are noted once it is known where those are.
            let Some(state) = state else {
                continue;
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
        let put = |number: usize| PutPage {
            space,
            page: pages[number].page,
            sequence: first + number as u64,
        };
        let stored = |number: usize| match chunk.findings[number] {
            Finding::Data(hash) => Some((put(number), hash)),
            Finding::Zero | Finding::Unchanged | Finding::Same(_) => None,
        };
        let spaces = &mut self.spaces;
        let log: &mut Log<'_> = &mut |space, entry| runs::log(&mut spaces[space].entries, entry);
        for (frame, members) in chunk.frames {
            let members = members.into_iter().filter_map(stored);
            self.frames.write(plan.page_bytes, frame, members, log)?;
        }
        let frame_pages = plan.frame_pages;
        for number in chunk.rest {
            if let Some((put, hash)) = stored(number) {
                let bytes = plan.bytes(&pages[number]);
                self.frames.wait(put, hash, bytes, frame_pages, log)?;
            }
        }
        for (number, parent, difference) in &chunk.differing {
            if let Some(page) = stored(*number) {
                let difference = (*parent, difference);
                self.frames
                    .wait_differing(page, plan.page_bytes, difference, log)?;
            }
        }
        // The pages that these have the bytes of are stored or wait by now.
        for (number, finding) in chunk.findings.iter().enumerate() {
            if let Finding::Same(hash) = *finding {
                let bytes = plan.bytes(&pages[number]);
                let put = put(number);
                self.frames.refer(put, hash, bytes, frame_pages, log)?;
            }
        }
        Ok(())
    }

    fn open_space(&self, number: usize) -> Result<&OpenSpace, WriteError> {
        self.spaces.get(number).ok_or_else(|| WriteError::Invalid {
            what: format!("there is no space of index {number}"),
        })
    }

    /// Whether all pages of the range are shown in the parent: what they show is then up to the
    /// regions of this snapshot.
    fn parent_shows(&self, space: usize, range: PageRange) -> bool {
        let parent = self
            .parent
            .as_ref()
            .filter(|_| self.options.elide_unchanged);
        let own = parent.zip(self.spaces[space].in_parent);
        own.is_some_and(|(parent, space)| {
            let run = parent.inner.own_at(space, range.start());
            run.is_some_and(|run| run.state == PageState::Shown && range.end() <= run.pages.end())
        })
    }

    fn frame_pages(&self, page_bytes: usize) -> usize {
        let bytes = self.options.frame_bytes.min(MAX_FRAME_BYTES as usize);
        (bytes / page_bytes).max(1)
    }

    fn check_alive(&self) -> Result<(), WriteError> {
        if self.failed {
            Err(WriteError::Failed { snapshot: self.id })
        } else {
            Ok(())
        }
    }

    fn frame_failure(&self, error: FrameError) -> WriteError {
        match error {
            FrameError::Compress(error) => self.failure("compress pages".to_owned(), error),
            FrameError::Append(error) => {
                self.failure(format!("write {}", partial_name(self.id)), error)
            }
        }
    }

    fn failure(&self, operation: String, error: io::Error) -> WriteError {
        failure(&self.store, self.id, operation, error)
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        // The file goes first: as long as it is there nobody else may write one of its name.
        drop(self.frames.take_file());
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
