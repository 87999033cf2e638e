//! One file out of several that follow each other in a chain: what the last of them is, over the parent of the first. Most
//! frames are copied as they are stored; of one that is mostly no longer needed the pages that are go into new frames.
//!
//! Pages that are differences to a page of another of the files are made, and stored whole or, if the parent of the first has
//! a page of which that is worth it, as differences to that. Differences to pages of that parent stay what they are.
//!
//! The file that comes out stands for the last of them: by its content hash children and others know it still.

use crate::back::{Arrived, Back};
use crate::beneath::Beneath;
use crate::differences::Difference;
use crate::error::{PruneError, ReadError};
use crate::format::header::Header;
use crate::format::index::{Frame, Index, Run};
use crate::format::metadata::{self, Metadata};
use crate::format::{FormatError, REWRITTEN_VERSION};
use crate::frame::{EncodedFrame, FrameDecoder, FrameEncoder};
use crate::frames::{FrameError, Frames, Log, PutPage};
use crate::layer::{Layer, SnapshotFile, merging_name};
use crate::model::{PageHash, PageState, SnapshotId, Space};
use crate::options::{DEFAULT_FRAME_BYTES, WriteOptions};
use crate::runs::{self, Entry, Resolved};
use crate::storage::PartialFile;
use crate::store::Store;
use crate::view::{PageContent, View};
use crate::words::Words;
use pagetide_pages::{PageCount, PageIndex, PageRange};
use std::borrow::Cow;
use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;

/// A stored page of a file is known by the position of the file in these bits, and below by its number.
const ORDINAL_BITS: u32 = 40;

/// A file that was made, durable but for its name.
pub struct Merged {
    pub file: Box<dyn PartialFile>,
    pub bytes: u64,
}

/// What the last of several files is, over the parent of the first.
struct Sum {
    /// The files that pages are taken from.
    layers: Vec<Arc<Layer>>,
    /// By space of the last one.
    runs: Vec<Vec<Resolved>>,
    /// What differences are to, as far as it is in one of the files.
    beneath: Vec<Beneath>,
    parent: Header,
    last: Header,
    metadata: Metadata,
}

/// Makes one file of those of `ids`, each of which is the parent of the next.
pub fn merge(store: &Store, ids: &[SnapshotId]) -> Result<Merged, PruneError> {
    let sum = add_up(store, ids)?;
    let name = merging_name(sum.last.snapshot);
    let create = store.storage().create(&name);
    let mut file = create.map_err(|error| failure(store, sum.last.snapshot, "create", error))?;
    let mut header = Header {
        version: REWRITTEN_VERSION,
        parent: sum.parent.parent,
        stands_for: Some(sum.last.content_hash()),
        ..sum.last.clone()
    };
    let place = vec![0; header.length() as usize];
    file.append(&place)
        .map_err(|error| failure(store, sum.last.snapshot, "write", error))?;
    let encoder = FrameEncoder::new(WriteOptions::default().compression)
        .map_err(|error| failure(store, sum.last.snapshot, "prepare to compress", error))?;
    let mut writing = Writing {
        store,
        snapshot: sum.last.snapshot,
        frames: Frames::new(file, encoder, None),
        places: Vec::new(),
        decoder: FrameDecoder::default(),
    };
    let made = sum.to_be_made();
    let needed = needed(sum.layers.len(), &sum.runs, &made);
    writing.make(&sum, &made)?;
    for (number, (layer, needed)) in sum.layers.iter().zip(&needed).enumerate() {
        writing.take((number, layer), needed, &sum.metadata.spaces)?;
    }
    let log: &mut Log<'_> = &mut |_, entry| runs::log(&mut writing.places, entry);
    let flushed = writing.frames.flush_all(log);
    flushed.map_err(|error| writing.failed(error))?;
    let index = writing.index(&sum);
    finish(writing, &mut header, sum.metadata, &index)
}

impl Sum {
    /// Of each space, the runs that are differences to pages in one of the files.
    fn to_be_made(&self) -> Vec<Vec<Resolved>> {
        let of_space = |(runs, beneath): (&Vec<Resolved>, &Beneath)| {
            let Some(below) = beneath.first() else {
                return Vec::new();
            };
            let data = runs.iter().filter(|run| run.state == PageState::Data);
            let differing = data.flat_map(|run| {
                let kept = &self.layers[run.layer as usize].kept;
                run.differing(kept)
                    .filter_map(|pages| run.cut(pages))
                    .collect::<Vec<_>>()
            });
            let differing: Vec<Resolved> = differing.collect();
            runs::within(&differing, below.iter().map(|run| run.pages))
        };
        self.runs.iter().zip(&self.beneath).map(of_space).collect()
    }
}

/// Writes what comes after the frames, and the header.
fn finish(
    mut writing: Writing<'_>,
    header: &mut Header,
    metadata: Metadata,
    index: &Index,
) -> Result<Merged, PruneError> {
    let snapshot = header.snapshot;
    let store = writing.store;
    let metadata = Metadata {
        data_pages: index.count(PageState::Data),
        zero_pages: index.count(PageState::Zero),
        file_pages: index.count(PageState::File),
        ..metadata
    };
    let metadata = metadata::encode(&metadata).map_err(|what| PruneError::Damaged {
        snapshot,
        source: FormatError::Damaged(what).at(snapshot, &merging_name(snapshot)),
    })?;
    let index = index.encode();
    header.frames_length = writing.frames.length();
    header.metadata_length = metadata.len() as u64;
    header.index_length = index.len() as u64;
    header.metadata_hash = *blake3::hash(&metadata).as_bytes();
    header.index_hash = *blake3::hash(&index).as_bytes();
    let appended = writing.frames.append(&metadata);
    let appended = appended.and_then(|()| writing.frames.append(&index));
    appended.map_err(|error| failure(store, snapshot, "write", error))?;
    let Some(mut file) = writing.frames.take_file() else {
        return Err(failure(
            store,
            snapshot,
            "write",
            ErrorKind::NotFound.into(),
        ));
    };
    let written = file.rewrite(0, &header.encode());
    let written = written.and_then(|()| file.sync());
    written.map_err(|error| failure(store, snapshot, "write", error))?;
    Ok(Merged {
        file,
        bytes: header.file_length(),
    })
}

/// Lays the files over one another, without their pages.
fn add_up(store: &Store, ids: &[SnapshotId]) -> Result<Sum, PruneError> {
    let mut back: Option<Back> = None;
    let (mut parent, mut last) = (None, None);
    for &id in ids.iter().rev() {
        let file = store.file(id)?;
        let metadata = file.metadata()?;
        let index = file.index(&metadata.spaces)?;
        let back = back.get_or_insert_with(|| Back::from(metadata.spaces.clone()));
        back.step(&metadata.spaces, index, |kept| {
            Layer::new(store.id(), store.storage(), &file.header, kept)
        });
        parent = Some(file.header.clone());
        last.get_or_insert((file.header, metadata));
    }
    let (Some(back), Some(parent), Some((last, metadata))) = (back, parent, last) else {
        return Err(PruneError::NothingKept);
    };
    let Arrived {
        layers,
        runs,
        beneath,
        ..
    } = back.arrive();
    Ok(Sum {
        layers,
        runs,
        beneath,
        parent,
        last,
        metadata,
    })
}

/// The file that is being made.
struct Writing<'a> {
    store: &'a Store,
    snapshot: SnapshotId,
    frames: Frames,
    /// For stored pages, as `key` knows them, their numbers in the new file.
    places: Vec<Entry>,
    decoder: FrameDecoder,
}

/// A file that pages of one size are taken from.
struct MergeInput<'a> {
    number: usize,
    file: &'a SnapshotFile,
    hashes: &'a [PageHash],
    page_bytes: usize,
    /// A space of the new file that has pages of this size.
    space: usize,
}

impl MergeInput<'_> {
    fn page(&self, ordinal: u64) -> (PutPage, PageHash) {
        let page = key(self.number, ordinal);
        let put = PutPage {
            space: self.space,
            page,
            sequence: page.0,
        };
        (put, self.hashes[ordinal as usize])
    }
}

fn key(layer: usize, ordinal: u64) -> PageIndex {
    PageIndex((layer as u64) << ORDINAL_BITS | ordinal)
}

impl Writing<'_> {
    /// Stores the pages that cannot stay the differences they are, of each space.
    fn make(&mut self, sum: &Sum, made: &[Vec<Resolved>]) -> Result<(), PruneError> {
        if made.iter().all(Vec::is_empty) {
            return Ok(());
        }
        let whole = self.store.view_of_any(sum.last.snapshot)?;
        let parent = match sum.parent.parent {
            Some((parent, _)) => Some(self.store.view_of_any(parent)?),
            None => None,
        };
        for (number, (space, runs)) in sum.metadata.spaces.iter().zip(made).enumerate() {
            let below = parent.as_ref().and_then(|parent| {
                let space = parent.inner.same_space(space)?;
                Some((parent, space))
            });
            let page_bytes = space.page_size.len();
            let mut page_below = vec![0; page_bytes];
            for run in runs {
                let kept = &sum.layers[run.layer as usize].kept;
                whole.read_each(number, run.pages, &mut |pages, content| {
                    let PageContent::Bytes(bytes) = content else {
                        return Ok(());
                    };
                    let each = pages.pages().zip(bytes.chunks_exact(page_bytes));
                    for (page, bytes) in each {
                        let ordinal = run.ordinal + (page.0 - run.pages.start().0);
                        let key = key(run.layer as usize, ordinal);
                        let put = PutPage {
                            space: number,
                            page: key,
                            sequence: key.0,
                        };
                        let put = (put, kept.hashes(ordinal, 1)[0]);
                        let depth = depth_of(&whole, number, page);
                        let below = match below {
                            Some(below) => to_differ_from(below, page, depth, &mut page_below)?,
                            None => None,
                        };
                        let below = below.map(|hash| (hash, page_below.as_slice()));
                        self.store_made(put, bytes, below)?;
                    }
                    Ok::<(), PruneError>(())
                })?;
            }
        }
        Ok(())
    }

    /// Stores a page, as differences to `below` if that is worth it.
    fn store_made(
        &mut self,
        (put, hash): (PutPage, PageHash),
        bytes: &[u8],
        below: Option<(PageHash, &[u8])>,
    ) -> Result<(), PruneError> {
        let log: &mut Log<'_> = &mut |_, entry| runs::log(&mut self.places, entry);
        let words = below.and_then(|(below, page)| Some((below, Words::between(page, bytes)?)));
        let stored = match words {
            Some((below, words)) => {
                let page = (put, hash);
                let difference = Difference::Words(words);
                self.frames
                    .wait_differing(page, bytes.len(), (below, &difference), log)
            }
            None => {
                let room = (DEFAULT_FRAME_BYTES / bytes.len()).max(1);
                self.frames.wait(put, hash, bytes, room, log)
            }
        };
        stored.map_err(|error| self.failed(error))
    }

    /// Takes over the pages of a file that are needed.
    fn take(
        &mut self,
        (number, layer): (usize, &Layer),
        needed: &[Range<u64>],
        own_spaces: &[Space],
    ) -> Result<(), PruneError> {
        if needed.is_empty() {
            return Ok(());
        }
        let file = self.store.file(layer.id)?;
        let spaces = file.metadata()?.spaces;
        // The hashes of pages that nobody needs are part of it, if they lie in a frame that is copied.
        let index = file.index(&spaces)?;
        let mut stored = Vec::new();
        for frame in &index.frames {
            let pages = frame.first_ordinal..frame.first_ordinal + u64::from(frame.page_count);
            let live = within(needed, pages.clone());
            let count: u64 = live.iter().map(|range| range.end - range.start).sum();
            if count == 0 {
                continue;
            }
            stored.resize(frame.stored_length as usize, 0);
            file.stored(std::slice::from_ref(frame), &mut stored)?;
            if *blake3::hash(&stored).as_bytes() != frame.checksum {
                let what = "the checksum of a frame does not match".to_owned();
                return Err(file.at(FormatError::Damaged(what)).into());
            }
            let size = spaces[frame.space as usize].page_size;
            // There is one, or nothing of this size would be needed.
            let own = |space: &Space| space.page_size == size;
            let source = MergeInput {
                number,
                file: &file,
                hashes: &index.hashes,
                page_bytes: size.len(),
                space: own_spaces.iter().position(own).unwrap_or(0),
            };
            if 2 * count >= u64::from(frame.page_count) {
                self.copy(&source, frame, &live, &stored)?
            } else {
                self.take_pages(&source, frame, &live, &stored)?
            }
        }
        Ok(())
    }

    /// Takes over a frame as it is stored.
    fn copy(
        &mut self,
        source: &MergeInput<'_>,
        frame: &Frame,
        live: &[Range<u64>],
        stored: &[u8],
    ) -> Result<(), PruneError> {
        let encoded = EncodedFrame {
            bytes: Cow::Borrowed(stored),
            encoding: frame.encoding,
            checksum: frame.checksum,
        };
        let pages = frame.first_ordinal..frame.first_ordinal + u64::from(frame.page_count);
        let all = pages.map(|ordinal| source.page(ordinal));
        // Some that are not needed were made, and are elsewhere.
        let mut needed = live.iter().flat_map(Range::clone).peekable();
        let log: &mut Log<'_> = &mut |_, entry| {
            let is_page = |ordinal: &u64| key(source.number, *ordinal) == entry.pages.start();
            if needed.next_if(is_page).is_some() {
                runs::log(&mut self.places, entry);
            }
        };
        let written = self.frames.write(source.page_bytes, encoded, all, log);
        written.map_err(|error| self.failed(error))
    }

    /// Takes some pages out of a frame.
    fn take_pages(
        &mut self,
        source: &MergeInput<'_>,
        frame: &Frame,
        live: &[Range<u64>],
        stored: &[u8],
    ) -> Result<(), PruneError> {
        let (pages, page_bytes) = (frame.page_count as usize, source.page_bytes);
        let log: &mut Log<'_> = &mut |_, entry| runs::log(&mut self.places, entry);
        let mut live = live.iter().flat_map(Range::clone);
        let decoder = &mut self.decoder;
        let written = if frame.differs() {
            let size = (pages, page_bytes);
            let found = decoder.differences(stored, &frame.checksum, frame.encoding, size);
            let found = found.map_err(|error| source.file.at(error))?;
            live.try_for_each(|ordinal| {
                let found = found.difference((ordinal - frame.first_ordinal) as usize);
                found.map_or(Ok(()), |(parent, difference)| {
                    let page = source.page(ordinal);
                    self.frames
                        .wait_differing(page, page_bytes, (parent, &difference), log)
                })
            })
        } else {
            let mut raw = vec![0; pages * page_bytes];
            let decoded = decoder.decode(stored, frame.encoding, &frame.checksum, &mut raw);
            decoded.map_err(|error| source.file.at(error))?;
            let room = (DEFAULT_FRAME_BYTES / page_bytes).max(1);
            live.try_for_each(|ordinal| {
                let at = (ordinal - frame.first_ordinal) as usize * page_bytes;
                let (put, hash) = source.page(ordinal);
                let bytes = &raw[at..at + page_bytes];
                self.frames.wait(put, hash, bytes, room, log)
            })
        };
        written.map_err(|error| self.failed(error))
    }

    /// The tables of the new file.
    fn index(&mut self, sum: &Sum) -> Index {
        self.places
            .sort_unstable_by_key(|entry| entry.pages.start());
        let (frames, mut hashes) = self.frames.take_tables();
        let stored = hashes.len() as u64;
        let mut placed = Vec::new();
        for (space, records) in sum.runs.iter().enumerate() {
            let mut own = Vec::with_capacity(records.len());
            for run in records {
                match run.state {
                    PageState::Data => self.place(run, &mut own),
                    PageState::File => {
                        let kept = &sum.layers[run.layer as usize].kept;
                        let ordinal = hashes.len() as u64;
                        hashes.extend_from_slice(kept.hashes(run.ordinal, run.pages.count().0));
                        let layer = 0;
                        runs::push(
                            &mut own,
                            Resolved {
                                layer,
                                ordinal,
                                ..*run
                            },
                        );
                    }
                    _ => runs::push(&mut own, *run),
                }
            }
            placed.extend(own.into_iter().map(|run| Run {
                space: space as u32,
                state: run.state,
                pages: run.pages,
                ordinal: run.ordinal,
            }));
        }
        Index {
            runs: placed,
            frames,
            stored,
            hashes,
        }
    }

    /// Adds a run of stored pages with their new numbers.
    fn place(&self, run: &Resolved, placed: &mut Vec<Resolved>) {
        let from = key(run.layer as usize, run.ordinal);
        let wanted = PageRange::with_count(from, run.pages.count());
        let first = self
            .places
            .partition_point(|entry| entry.pages.end() <= wanted.start());
        for entry in &self.places[first..] {
            let Some(part) = entry.pages.intersection(wanted) else {
                break;
            };
            let skipped = PageCount(part.start().0 - wanted.start().0);
            let pages = PageRange::with_count(run.pages.start().plus(skipped), part.count());
            let ordinal = entry.ordinal + (part.start().0 - entry.pages.start().0);
            runs::push(
                placed,
                Resolved {
                    pages,
                    state: PageState::Data,
                    layer: 0,
                    ordinal,
                },
            );
        }
    }

    fn failed(&self, error: FrameError) -> PruneError {
        let (operation, error) = match error {
            FrameError::Compress(error) => ("compress pages", error),
            FrameError::Append(error) => ("write", error),
        };
        failure(self.store, self.snapshot, operation, error)
    }
}

/// From how many differences a page of a view is made.
fn depth_of(view: &View, space: usize, page: PageIndex) -> usize {
    let run = view.inner.own_at(space, page);
    run.map_or(0, |run| view.inner.depth(space, run, page))
}

/// Fills `bytes` with a page of a view, and gives its hash, if a page that was made from so many differences as `depth` is made from no
/// more when it is one to this: newer snapshots, which stay as they are, have differences to that page, and count on it.
fn to_differ_from(
    (view, space): (&View, usize),
    page: PageIndex,
    depth: usize,
    bytes: &mut [u8],
) -> Result<Option<PageHash>, ReadError> {
    let inner = &view.inner;
    let run = inner.own_at(space, page);
    let usable =
        run.filter(|run| run.state == PageState::Data && inner.depth(space, run, page) < depth);
    let Some(run) = usable else {
        return Ok(None);
    };
    view.read_page(space, page, bytes)?;
    Ok(inner.hash_in(space, run, page))
}

/// For each layer the numbers of its stored pages that are needed, but for those `made`, by space: ascending, joined.
fn needed(layers: usize, runs: &[Vec<Resolved>], made: &[Vec<Resolved>]) -> Vec<Vec<Range<u64>>> {
    let mut needed = vec![Vec::new(); layers];
    let taken = runs.iter().zip(made);
    let data = taken.flat_map(|(runs, made)| runs::without(runs, made));
    for run in data.filter(|run| run.state == PageState::Data) {
        needed[run.layer as usize].push(run.ordinal..run.ordinal + run.pages.count().0);
    }
    needed.into_iter().map(join).collect()
}

fn join(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// The parts of ascending `ranges` in `pages`.
fn within(ranges: &[Range<u64>], pages: Range<u64>) -> Vec<Range<u64>> {
    let first = ranges.partition_point(|range| range.end <= pages.start);
    let touching = ranges[first..]
        .iter()
        .take_while(|range| range.start < pages.end);
    touching
        .map(|range| range.start.max(pages.start)..range.end.min(pages.end))
        .collect()
}

/// Why a file could not be made.
pub fn failure(
    store: &Store,
    snapshot: SnapshotId,
    what: &str,
    source: std::io::Error,
) -> PruneError {
    let location = store.location();
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => PruneError::Full {
            location,
            snapshot,
            source,
        },
        _ => PruneError::Read(ReadError::Io {
            location,
            operation: format!("{what} {}", merging_name(snapshot)),
            source,
        }),
    }
}
