//! Fetching pages in an order of the caller's, a frame at a time: for whoever needs some page at once and all others
//! soon. A batch is the pages of one frame that are wanted; fetching one that is damaged keeps no other from being fetched.

use crate::assembly::Sources;
use crate::error::ReadError;
use crate::layer::FrameReader;
use crate::model::PageState;
use crate::read::Piece;
use crate::view::{PageContent, View};
use pagetide_pages::{PageCount, PageRange, PageSet};

/// Wanted pages whose bytes lie in one frame.
#[derive(Clone, Debug)]
pub struct Batch {
    space: usize,
    page_bytes: usize,
    /// Pages, and where they come from.
    pieces: Vec<(PageRange, Sources)>,
}

impl Batch {
    /// Its pages: disjoint ranges, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = PageRange> + '_ {
        self.pieces.iter().map(|(pages, _)| *pages)
    }
}

/// Fetches batches. Keeps the last file open and the memory for bytes.
pub struct BatchReader {
    reader: FrameReader,
    raw: Vec<u8>,
    /// The pages of a batch one after another, where they are not in `raw` as they are.
    gathered: Vec<u8>,
}

impl BatchReader {
    /// A new one.
    pub fn new() -> Result<Self, ReadError> {
        Ok(Self {
            reader: FrameReader::default(),
            raw: Vec::new(),
            gathered: Vec::new(),
        })
    }

    /// The bytes of a batch of `view`, a range of pages at a time.
    pub fn read<'a>(
        &'a mut self,
        view: &View,
        batch: &'a Batch,
    ) -> Result<impl Iterator<Item = (PageRange, &'a [u8])>, ReadError> {
        let is_gathered = match self.read_now(view, batch) {
            Err(ReadError::Replaced { .. }) => {
                self.gather(&view.again()?, batch)?;
                true
            }
            read => read?,
        };
        let page_bytes = batch.page_bytes;
        let raw = if is_gathered {
            &self.gathered
        } else {
            &self.raw
        };
        let mut gathered = 0;
        Ok(batch.pieces.iter().map(move |(pages, sources)| {
            let position = if is_gathered {
                gathered
            } else {
                sources.whole.position
            };
            gathered += pages.count().0;
            let start = position as usize * page_bytes;
            let length = pages.count().0 as usize * page_bytes;
            (*pages, &raw[start..start + length])
        }))
    }

    /// The frame of a batch. True if its pages are gathered, since some of them differ from those in the frame.
    fn read_now(&mut self, view: &View, batch: &Batch) -> Result<bool, ReadError> {
        let Some((_, first)) = batch.pieces.first() else {
            return Ok(false);
        };
        let (inner, page_bytes) = (&view.inner, batch.page_bytes);
        let layer = &inner.layers[first.whole.layer as usize];
        self.reader
            .read(layer, first.whole.frame, page_bytes, &mut self.raw)?;
        let mut pieces = batch.pieces.iter();
        if pieces.all(|(_, sources)| sources.differences.is_empty()) {
            return Ok(false);
        }
        self.gathered.clear();
        for (pages, sources) in &batch.pieces {
            let from = sources.whole.position as usize * page_bytes;
            let whole = &self.raw[from..from + pages.count().0 as usize * page_bytes];
            let start = self.gathered.len();
            self.gathered.extend_from_slice(whole);
            if !sources.differences.is_empty() {
                let made = &mut self.gathered[start..];
                inner.apply_differences(sources, page_bytes, &mut self.reader, made)?;
            }
        }
        Ok(true)
    }

    /// The pages of a batch one after another, from wherever they are by now.
    fn gather(&mut self, view: &View, batch: &Batch) -> Result<(), ReadError> {
        self.gathered.clear();
        for &(pages, _) in &batch.pieces {
            let start = self.gathered.len();
            let raw = &mut self.gathered;
            view.read_each(batch.space, pages, &mut |_, content| {
                if let PageContent::Bytes(bytes) = content {
                    raw.extend_from_slice(bytes);
                }
                Ok::<(), ReadError>(())
            })?;
            if self.gathered.len() - start != pages.count().0 as usize * batch.page_bytes {
                return Err(ReadError::Replaced {
                    snapshot: view.id(),
                });
            }
        }
        Ok(())
    }
}

impl View {
    /// Those of the pages `wanted` of a space that have bytes in the store, in batches: what was written last comes first.
    pub fn batches(&self, space: usize, wanted: &PageSet) -> Vec<Batch> {
        let Some(page_bytes) = self.spaces().get(space).map(|space| space.page_size.len()) else {
            return Vec::new();
        };
        let pieces = self.inner.pieces_in(space, wanted.ranges());
        let mut pieces: Vec<Piece<'_>> = pieces
            .filter(|piece| piece.state == PageState::Data)
            .collect();
        // Pages that differ come with those written last, though in the frame that they differ from.
        let order = |piece: &Piece<'_>| {
            let newest = u32::MAX - piece.sources.newest().layer;
            (newest, piece.frame(), piece.pages.start())
        };
        pieces.sort_by_key(order);
        let same_frame = |a: &Piece<'_>, b: &Piece<'_>| {
            (a.frame(), a.sources.newest().layer) == (b.frame(), b.sources.newest().layer)
        };
        let of_piece = |piece: &Piece<'_>| (piece.pages, piece.sources.clone());
        let batch = |group: &[Piece<'_>]| Batch {
            space,
            page_bytes,
            pieces: group.iter().map(of_piece).collect(),
        };
        pieces.chunk_by(same_frame).map(batch).collect()
    }

    /// Those of the pages `among` of a space that the newest deltas of the chain wrote: of as many deltas, the newest first,
    /// as together wrote no more than `most` pages of them.
    pub fn written_last(&self, space: usize, among: &PageSet, most: PageCount) -> PageSet {
        let inner = &self.inner;
        let mut by_layer = vec![Vec::new(); inner.layers.len()];
        for &range in among.ranges() {
            let runs = inner.parts(space, range);
            for run in runs.filter(|run| run.state == PageState::Data) {
                by_layer[run.layer as usize].push(run.pages);
            }
        }
        let mut last = PageSet::new();
        let mut count = PageCount(0);
        for (layer, ranges) in inner.layers.iter().zip(&by_layer).rev() {
            count += ranges.iter().map(|range| range.count()).sum();
            // The first of the chain is full: it does not tell what was written.
            if inner.chain.first() == Some(&layer.id) || count > most {
                break;
            }
            let mut ranges = ranges.clone();
            ranges.sort_by_key(|range| range.start());
            let of_layer: PageSet = ranges.into_iter().collect();
            last = last.union(&of_layer);
        }
        last
    }
}
