//! The frames of a snapshot that is being made: they are appended to its file one after another, and
//! each page in them gets its number. Pages that do not fill a frame wait here, those of all spaces
//! with one page size together: memory is bounded however many spaces there are.

use crate::dedup::{ContentPlace, Known};
use crate::differences::{Difference, DifferenceBatch};
use crate::format::index::{Frame, is_of_differences};
use crate::frame::{EncodedFrame, FrameEncoder};
use crate::model::{PageHash, PageState};
use crate::runs::Entry;
use crate::storage::PartialFile;
use pagetide_pages::{PageIndex, PageRange};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};

/// Why frames could not be made or kept.
pub enum FrameError {
    /// Compression failed.
    Compress(io::Error),
    /// The file could not be written.
    Append(io::Error),
}

impl From<io::Error> for FrameError {
    fn from(error: io::Error) -> Self {
        Self::Compress(error)
    }
}

/// A page that was put: where, and when.
#[derive(Clone, Copy)]
pub struct PutPage {
    pub space: usize,
    pub page: PageIndex,
    pub sequence: u64,
}

impl PutPage {
    /// What is to be noted of it if its bytes are the stored page `ordinal`.
    fn entry(self, ordinal: u64) -> Entry {
        Entry {
            pages: PageRange::single(self.page),
            state: Some(PageState::Data),
            ordinal,
            sequence: self.sequence,
            counted: true,
        }
    }
}

/// Takes what is to be noted of the pages of a space.
pub type Log<'l> = dyn FnMut(usize, Entry) + 'l;

/// Pages of one size that do not fill a frame yet.
#[derive(Default)]
struct Waiting {
    raw: Vec<u8>,
    pages: Vec<(PutPage, PageHash)>,
    /// Pages that have the bytes of the one at this position.
    same: Vec<(usize, PutPage)>,
}

/// Pages of one size that are stored as differences of one kind, and wait for others.
struct DifferenceQueue {
    gathered: DifferenceBatch,
    pages: Vec<(PutPage, PageHash)>,
}

/// The frames, and the file they go to.
pub struct Frames {
    file: Option<Box<dyn PartialFile>>,
    encoder: FrameEncoder,
    frames: Vec<Frame>,
    hashes: Vec<PageHash>,
    length: u64,
    waiting: BTreeMap<usize, Waiting>,
    /// By size, and whether they are words.
    differing: BTreeMap<(usize, bool), DifferenceQueue>,
    known: Option<Known>,
}

impl Frames {
    pub fn new(file: Box<dyn PartialFile>, encoder: FrameEncoder, known: Option<Known>) -> Self {
        Self {
            file: Some(file),
            encoder,
            frames: Vec::new(),
            hashes: Vec::new(),
            length: 0,
            waiting: BTreeMap::new(),
            differing: BTreeMap::new(),
            known,
        }
    }

    /// How many bytes of frames there are.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The pages that are stored once, if they are.
    pub fn known(&self) -> Option<&Known> {
        self.known.as_ref()
    }

    /// The file, which is not written any more after that.
    pub fn take_file(&mut self) -> Option<Box<dyn PartialFile>> {
        self.file.take()
    }

    /// The frames and the hash of each page in them.
    pub fn take_tables(&mut self) -> (Vec<Frame>, Vec<PageHash>) {
        let frames = std::mem::take(&mut self.frames);
        (frames, std::mem::take(&mut self.hashes))
    }

    /// Adds to the file.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.file {
            Some(file) => file.append(bytes),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    /// Writes a frame of these pages, of which there is one at least.
    pub fn write(
        &mut self,
        page_bytes: usize,
        frame: EncodedFrame<'_>,
        pages: impl Iterator<Item = (PutPage, PageHash)>,
        log: &mut Log<'_>,
    ) -> Result<(), FrameError> {
        self.append(&frame.bytes).map_err(FrameError::Append)?;
        let first_ordinal = self.hashes.len() as u64;
        let is_whole = !is_of_differences(frame.encoding);
        let mut space = None;
        for (put, hash) in pages {
            let ordinal = self.hashes.len() as u64;
            self.hashes.push(hash);
            // A difference is of use at its own place only.
            let known = self.known.as_mut();
            if let Some(known) = known.filter(|_| is_whole) {
                known.stored(page_bytes, hash, ordinal);
            }
            log(put.space, put.entry(ordinal));
            space.get_or_insert(put.space as u32);
        }
        self.frames.push(Frame {
            space: space.unwrap_or_default(),
            encoding: frame.encoding,
            stored_length: frame.bytes.len() as u32,
            page_count: (self.hashes.len() as u64 - first_ordinal) as u32,
            checksum: frame.checksum,
            offset: self.length,
            first_ordinal,
        });
        self.length += frame.bytes.len() as u64;
        Ok(())
    }

    /// Adds a page to those that wait; they are written once they are `frame_pages`.
    pub fn wait(
        &mut self,
        put: PutPage,
        hash: PageHash,
        bytes: &[u8],
        frame_pages: usize,
        log: &mut Log<'_>,
    ) -> Result<(), FrameError> {
        let waiting = self.waiting.entry(bytes.len()).or_default();
        if let Some(known) = &mut self.known {
            known.waits(bytes.len(), hash, waiting.pages.len());
        }
        waiting.pages.push((put, hash));
        waiting.raw.extend_from_slice(bytes);
        if waiting.pages.len() >= frame_pages {
            self.flush(bytes.len(), log)
        } else {
            Ok(())
        }
    }

    /// Adds a page that is made from the parent's, which has the hash `parent`.
    pub fn wait_differing(
        &mut self,
        (put, hash): (PutPage, PageHash),
        page_bytes: usize,
        (parent, difference): (PageHash, &Difference),
        log: &mut Log<'_>,
    ) -> Result<(), FrameError> {
        let kind = (page_bytes, matches!(difference, Difference::Words(_)));
        let differing = self.differing.entry(kind);
        let differing = differing.or_insert_with(|| DifferenceQueue {
            gathered: DifferenceBatch::of(difference),
            pages: Vec::new(),
        });
        differing.pages.push((put, hash));
        differing.gathered.push(parent, difference);
        if differing.gathered.is_full(page_bytes) {
            self.flush_differing(kind, log)
        } else {
            Ok(())
        }
    }

    /// Notes that a page has the bytes of one that is stored or waits.
    pub fn refer(
        &mut self,
        put: PutPage,
        hash: PageHash,
        bytes: &[u8],
        frame_pages: usize,
        log: &mut Log<'_>,
    ) -> Result<(), FrameError> {
        let known = self.known.as_ref();
        match known.and_then(|known| known.place(bytes.len(), hash)) {
            Some(ContentPlace::Stored(ordinal)) => log(put.space, put.entry(ordinal)),
            Some(ContentPlace::Waiting(position)) => {
                let waiting = self.waiting.entry(bytes.len()).or_default();
                waiting.same.push((position, put));
            }
            // Whoever said so was wrong: it is stored.
            None => return self.wait(put, hash, bytes, frame_pages, log),
        }
        Ok(())
    }

    /// Writes all pages that wait.
    pub fn flush_all(&mut self, log: &mut Log<'_>) -> Result<(), FrameError> {
        let sizes: Vec<usize> = self.waiting.keys().copied().collect();
        for size in sizes {
            self.flush(size, log)?;
        }
        let kinds: Vec<(usize, bool)> = self.differing.keys().copied().collect();
        let mut kinds = kinds.into_iter();
        kinds.try_for_each(|kind| self.flush_differing(kind, log))
    }

    fn flush_differing(
        &mut self,
        kind: (usize, bool),
        log: &mut Log<'_>,
    ) -> Result<(), FrameError> {
        let Some(differing) = self.differing.remove(&kind) else {
            return Ok(());
        };
        let frame = self.encoder.encode_differences(&differing.gathered)?;
        self.write(kind.0, frame, differing.pages.into_iter(), log)
    }

    fn flush(&mut self, page_bytes: usize, log: &mut Log<'_>) -> Result<(), FrameError> {
        let Some(mut waiting) = self.waiting.remove(&page_bytes) else {
            return Ok(());
        };
        if waiting.pages.is_empty() {
            return Ok(());
        }
        let first = self.hashes.len() as u64;
        let frame = self.encoder.encode(Cow::Borrowed(&waiting.raw))?;
        self.write(page_bytes, frame, waiting.pages.drain(..), log)?;
        for (position, put) in waiting.same.drain(..) {
            log(put.space, put.entry(first + position as u64));
        }
        // Its memory is used again.
        waiting.raw.clear();
        self.waiting.insert(page_bytes, waiting);
        Ok(())
    }
}
