//! Fetching the bytes of pages: one at a time, in ascending order, or on all cores in no order.
//! Which pages there are is decided in `view`.

use crate::assembly::{FramePlace, Sources};
use crate::error::ReadError;
use crate::format::index::Frame;
use crate::frame_cache::CacheState;
use crate::layer::FrameReader;
use crate::memory;
use crate::model::{PageHash, PageState};
use crate::runs::Resolved;
use crate::shown::Placed;
use crate::view::{Inner, PageContent, View};
use pagetide_pages::{PageCount, PageIndex, PageRange};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Frames of huge pages are large; no more are decoded while those that are kept exceed this.
const KEPT_BYTES_MAX: usize = 64 << 20;

/// For each thread there are at least so many frames.
const FRAMES_A_THREAD: usize = 4;

/// So many frames are asked for at once where another process decompresses them, if none is longer than this.
const FRAMES_AT_ONCE: usize = 2;
const SHORT_FRAME_BYTES: usize = 256 << 10;

/// So many pieces are put in order at once, and so many pages of files are handed on at once: what a snapshot says of a
/// space may be much longer than what it holds.
const PIECES_AT_ONCE: usize = 1 << 15;
const FILE_PAGES_AT_ONCE: PageCount = PageCount(256);

/// What `View::read_ranges_loose` finds.
pub enum RangeContent<'a> {
    /// As for everybody.
    Settled(PageContent<'a>),
    /// Bytes that whoever decompressed them may still change.
    Loose(&'a [AtomicU8]),
}

/// Pages in one frame, or pages of which the store has no bytes.
#[derive(Clone)]
pub(crate) struct Piece<'a> {
    pub pages: PageRange,
    pub state: PageState,
    pub sources: Sources,
    /// The hashes of pages in a file.
    hashes: &'a [PageHash],
}

impl View {
    /// Fills `buffer`, which has the size of a page, with the bytes of a page that is data or zero.
    /// A page whose bytes are in a file is an error of its own.
    pub fn read_page(
        &self,
        space: usize,
        page: PageIndex,
        buffer: &mut [u8],
    ) -> Result<(), ReadError> {
        let page_size = self.checked_space(space)?.page_size;
        if buffer.len() != page_size.len() {
            return Err(ReadError::WrongBuffer {
                expected: page_size.len(),
                found: buffer.len(),
            });
        }
        let no_bytes = |in_file: bool| {
            let (snapshot, space) = (self.id(), self.spaces()[space].name.clone());
            let address = page_size.address_of(page);
            if in_file {
                ReadError::InFile {
                    snapshot,
                    space,
                    address,
                }
            } else {
                ReadError::NoContent {
                    snapshot,
                    space,
                    address,
                }
            }
        };
        let mut filled = false;
        self.read(space, PageRange::single(page), |_, content| {
            match content {
                PageContent::Bytes(bytes) => buffer.copy_from_slice(bytes),
                PageContent::Zero => buffer.fill(0),
                PageContent::File(_) => return Err(no_bytes(true)),
                PageContent::Guard | PageContent::Unbacked => return Ok(()),
            }
            filled = true;
            Ok::<(), ReadError>(())
        })?;
        if filled { Ok(()) } else { Err(no_bytes(false)) }
    }

    /// Hands the contents of the pages of `range` to `visit`, ascending, many pages at a time.
    /// Pages that are not part of the snapshot are left out. Frames decoded last are kept, so that
    /// reading on from where the last call ended costs nothing extra. The first error ends it.
    pub fn read<E: From<ReadError>>(
        &self,
        space: usize,
        range: PageRange,
        mut visit: impl FnMut(PageRange, PageContent<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.read_each(space, range, &mut visit)
    }

    /// The same. Where a file was rewritten meanwhile, the same pages come from where they are now.
    pub(crate) fn read_each<E: From<ReadError>>(
        &self,
        space: usize,
        range: PageRange,
        visit: &mut dyn FnMut(PageRange, PageContent<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let page_bytes = self.checked_space(space)?.page_size.len();
        let mut made = Vec::new();
        for run in self.inner.placed_parts(space, range) {
            for piece in self.inner.pieces(run) {
                let raw = match piece.state {
                    PageState::Data => self.inner.cached(&piece, page_bytes, &mut made),
                    _ => Ok(Arc::default()),
                };
                match raw {
                    Ok(raw) => visit(piece.pages, piece.content(&raw, &made, page_bytes))?,
                    Err(ReadError::Replaced { .. }) => {
                        self.again()?.read_each(space, piece.pages, visit)?;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// As `read`, but `visit` is called from `threads` threads at once (0: one for each core) and
    /// in no order. Each frame is decoded once, however many pages of the range show its pages.
    pub fn read_parallel<E: From<ReadError> + Send>(
        &self,
        space: usize,
        range: PageRange,
        threads: usize,
        visit: impl Fn(PageRange, PageContent<'_>) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        self.read_ranges_parallel(space, &[range], threads, visit)
    }

    /// As `read_parallel`, of several ranges.
    pub fn read_ranges_parallel<E: From<ReadError> + Send>(
        &self,
        space: usize,
        ranges: &[PageRange],
        threads: usize,
        visit: impl Fn(PageRange, PageContent<'_>) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        self.read_pieces(space, ranges, threads, false, |pages, found| match found {
            RangeContent::Settled(content) => visit(pages, content),
            // Nobody asked for these.
            RangeContent::Loose(_) => Ok(()),
        })
    }

    /// As `read_ranges_parallel`, but pages with bytes may be shown where they were decompressed: for those who hand them on and
    /// conclude nothing from them.
    pub fn read_ranges_loose<E: From<ReadError> + Send>(
        &self,
        space: usize,
        ranges: &[PageRange],
        visit: impl Fn(PageRange, RangeContent<'_>) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        self.read_pieces(space, ranges, 0, true, visit)
    }

    fn read_pieces<E: From<ReadError> + Send>(
        &self,
        space: usize,
        ranges: &[PageRange],
        threads: usize,
        loose: bool,
        visit: impl Fn(PageRange, RangeContent<'_>) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        let page_bytes = self.checked_space(space)?.page_size.len();
        let mut pieces = self.inner.pieces_in(space, ranges);
        loop {
            let batch: Vec<Piece<'_>> = pieces.by_ref().take(PIECES_AT_ONCE).collect();
            if batch.is_empty() {
                return Ok(());
            }
            self.read_batch(batch, (space, page_bytes), threads, loose, &visit)?;
        }
    }

    fn read_batch<E: From<ReadError> + Send>(
        &self,
        mut pieces: Vec<Piece<'_>>,
        space: (usize, usize),
        threads: usize,
        loose: bool,
        visit: &(impl Fn(PageRange, RangeContent<'_>) -> Result<(), E> + Sync),
    ) -> Result<(), E> {
        // Pieces of one frame stand together then, in the order of the files.
        pieces.sort_by_key(Piece::frame);
        let same_frame =
            |a: &Piece<'_>, b: &Piece<'_>| a.state == PageState::Data && a.frame() == b.frame();
        let groups: Vec<&[Piece<'_>]> = pieces.chunk_by(same_frame).collect();
        let threads = match threads {
            0 => worker_count(0, threads_worth(&groups)),
            asked => worker_count(asked, groups.len()),
        };
        let threads = if threads > 1 && loose {
            worker_count(threads + 1, groups.len())
        } else {
            threads
        };
        // To ask for a frame costs two changes of the process.
        let at_once = if loose { FRAMES_AT_ONCE } else { 1 };
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let work = || -> Result<(), E> {
            let mut reader = FrameReader::default();
            let mut buffers = Buffers::default();
            while !stop.load(Ordering::Relaxed) {
                let first = next.fetch_add(at_once, Ordering::Relaxed).min(groups.len());
                let some = &groups[first..groups.len().min(first + at_once)];
                if some.is_empty() {
                    break;
                }
                let together = |group: &&[Piece<'_>], next: &&[Piece<'_>]| {
                    loose && self.inner.is_followed(&group[0], &next[0], space.1)
                };
                for run in some.chunk_by(together) {
                    if loose && self.visit_loose(run, space.1, &mut reader, visit)? {
                        continue;
                    }
                    for group in run {
                        self.visit_group(group, space, &mut reader, &mut buffers, visit)?;
                    }
                }
            }
            Ok(())
        };
        if threads <= 1 {
            return work();
        }
        let failed = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    if let Err(error) = work() {
                        stop.store(true, Ordering::Relaxed);
                        let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                        failed.get_or_insert(error);
                    }
                });
            }
        });
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        failed.map_or(Ok(()), Err)
    }

    fn visit_group<E: From<ReadError>>(
        &self,
        group: &[Piece<'_>],
        (space, page_bytes): (usize, usize),
        reader: &mut FrameReader,
        Buffers { raw, made }: &mut Buffers,
        visit: &impl Fn(PageRange, RangeContent<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let first = &group[0];
        if first.state == PageState::Data {
            let (layer, frame) = first.frame();
            let layer = &self.inner.layers[layer as usize];
            match reader.read(layer, frame, page_bytes, raw) {
                Err(ReadError::Replaced { .. }) => return self.visit_again(group, space, visit),
                read => read?,
            }
        }
        for (number, piece) in group.iter().enumerate() {
            match self.inner.make(piece, raw, page_bytes, reader, made) {
                Err(ReadError::Replaced { .. }) => {
                    return self.visit_again(&group[number..], space, visit);
                }
                made => made?,
            }
            let content = piece.content(raw, made, page_bytes);
            visit(piece.pages, RangeContent::Settled(content))?;
        }
        Ok(())
    }

    /// The same, of groups whose frames follow one another, where the bytes need not be ours. False, and nothing was done, if
    /// they have to be ours.
    fn visit_loose<E: From<ReadError>>(
        &self,
        run: &[&[Piece<'_>]],
        page_bytes: usize,
        reader: &mut FrameReader,
        visit: &impl Fn(PageRange, RangeContent<'_>) -> Result<(), E>,
    ) -> Result<bool, E> {
        let (first, last) = (&run[0][0], &run[run.len() - 1][0]);
        let mut all = run.iter().copied().flatten();
        if first.state != PageState::Data || all.any(Piece::differs) {
            return Ok(false);
        }
        let (number, first_frame) = first.frame();
        let layer = &self.inner.layers[number as usize];
        let ordinal_of = |piece: &Piece<'_>| layer.kept.frames[piece.frame().1].first_ordinal;
        let mut visited = Ok(());
        let mut see = |bytes: &[AtomicU8]| {
            let in_bytes = |piece: &Piece<'_>| {
                let skip = (ordinal_of(piece) - ordinal_of(first)) as usize * page_bytes;
                let place = piece.place(page_bytes);
                skip + place.start..skip + place.end
            };
            // Whoever hands them on makes a call for each of what it is shown, so what is in one piece is shown in one.
            let mut pieces = run.iter().copied().flatten().peekable();
            while let Some(piece) = pieces.next() {
                let (mut pages, mut place) = (piece.pages, in_bytes(piece));
                while let Some(next) = pieces.next_if(|next| {
                    (next.pages.start(), in_bytes(next).start) == (pages.end(), place.end)
                }) {
                    pages = PageRange::new(pages.start(), next.pages.end());
                    place.end = in_bytes(next).end;
                }
                visited = visit(pages, RangeContent::Loose(&bytes[place]));
                if visited.is_err() {
                    return;
                }
            }
        };
        let frames = first_frame..last.frame().1 + 1;
        match reader.read_there(layer, frames, page_bytes, &mut see) {
            Ok(true) => visited.map(|()| true),
            Ok(false) | Err(ReadError::Replaced { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The same, of a file that was rewritten since it was opened.
    fn visit_again<E: From<ReadError>>(
        &self,
        group: &[Piece<'_>],
        space: usize,
        visit: &impl Fn(PageRange, RangeContent<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let again = self.again()?;
        group.iter().try_for_each(|piece| {
            again.read_each(space, piece.pages, &mut |pages, content| {
                visit(pages, RangeContent::Settled(content))
            })
        })
    }

    fn checked_space(&self, index: usize) -> Result<&crate::model::Space, ReadError> {
        self.spaces().get(index).ok_or(ReadError::NoSuchSpace {
            snapshot: self.id(),
            index,
        })
    }
}

/// A decoded frame, and pages that were made from some of it.
#[derive(Default)]
struct Buffers {
    raw: Vec<u8>,
    made: Vec<u8>,
}

impl<'h> Piece<'h> {
    /// The layer and the number of the frame that is to be decoded.
    pub fn frame(&self) -> (u32, usize) {
        (self.sources.whole.layer, self.sources.whole.frame)
    }

    /// True if the pages are not in a frame as they are.
    pub fn differs(&self) -> bool {
        !self.sources.differences.is_empty()
    }

    /// The content of the pages. If they have bytes, `raw` is the decoded frame, and `made` what they were made if they differ.
    fn content<'a>(&self, raw: &'a [u8], made: &'a [u8], page_bytes: usize) -> PageContent<'a>
    where
        'h: 'a,
    {
        match self.state {
            PageState::Zero => PageContent::Zero,
            PageState::Guard => PageContent::Guard,
            PageState::Unbacked => PageContent::Unbacked,
            // What is shown was looked up before, so here it is always a page of a file.
            PageState::File | PageState::Shown => PageContent::File(self.hashes),
            PageState::Data if self.differs() => PageContent::Bytes(made),
            PageState::Data => PageContent::Bytes(&raw[self.place(page_bytes)]),
        }
    }

    /// Where in the decoded frame the pages are.
    fn place(&self, page_bytes: usize) -> Range<usize> {
        let start = self.sources.whole.position as usize * page_bytes;
        start..start + self.pages.count().0 as usize * page_bytes
    }
}

impl Inner {
    /// The hashes of these pages of `run` if they are in a file.
    fn hashes_of(&self, run: &Resolved, pages: PageRange) -> &[PageHash] {
        if run.state != PageState::File {
            return &[];
        }
        let first = run.ordinal + (pages.start().0 - run.pages.start().0);
        let kept = &self.layers[run.layer as usize].kept;
        kept.hashes(first, pages.count().0)
    }

    /// The pieces of all pages of `ranges`.
    pub(crate) fn pieces_in<'a>(
        &'a self,
        space: usize,
        ranges: &'a [PageRange],
    ) -> impl Iterator<Item = Piece<'a>> + 'a {
        let runs = ranges
            .iter()
            .flat_map(move |&range| self.placed_parts(space, range));
        runs.flat_map(|run| self.pieces(run))
    }

    /// A run cut where frames end.
    fn pieces(&self, Placed { run, space, first }: Placed) -> impl Iterator<Item = Piece<'_>> + '_ {
        let mut at = run.pages.start();
        std::iter::from_fn(move || {
            let left = PageRange::new(at, run.pages.end());
            if left.is_empty() {
                return None;
            }
            if run.state != PageState::Data {
                let pages = match run.state {
                    PageState::File => left.pieces(FILE_PAGES_AT_ONCE).next()?,
                    _ => left,
                };
                at = pages.end();
                return Some(Piece {
                    pages,
                    state: run.state,
                    sources: Sources {
                        whole: FramePlace::NONE,
                        differences: Vec::new(),
                    },
                    hashes: self.hashes_of(&run, pages),
                });
            }
            let recorded_at = first.plus(PageCount(at.0 - run.pages.start().0));
            let (sources, count) = self.sources(&run.cut(left)?, space, recorded_at);
            let pages = PageRange::with_count(at, count);
            at = pages.end();
            Some(Piece {
                pages,
                state: run.state,
                sources,
                hashes: &[],
            })
        })
    }

    /// True if the frame of `next` comes right after that of `piece`, both are compressed, and neither is long.
    fn is_followed(&self, piece: &Piece<'_>, next: &Piece<'_>, page_bytes: usize) -> bool {
        let have_frames = piece.state == PageState::Data && next.state == PageState::Data;
        let (layer, number) = piece.frame();
        if !have_frames || (layer, number + 1) != next.frame() {
            return false;
        }
        // Those that nobody needs are not kept.
        let frames = &self.layers[layer as usize].kept.frames;
        let (frame, after) = (&frames[number], &frames[number + 1]);
        let is_short = |frame: &Frame| {
            let bytes = frame.page_count as usize * page_bytes;
            frame.is_compressed() && bytes <= SHORT_FRAME_BYTES
        };
        let ends_at = frame.offset + u64::from(frame.stored_length);
        ends_at == after.offset && is_short(frame) && is_short(after)
    }

    /// Makes the pages of `piece` in `made` if they differ from those in the decoded frame `raw`.
    fn make(
        &self,
        piece: &Piece<'_>,
        raw: &[u8],
        page_bytes: usize,
        reader: &mut FrameReader,
        made: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        if !piece.differs() {
            return Ok(());
        }
        made.clear();
        made.extend_from_slice(&raw[piece.place(page_bytes)]);
        self.apply_differences(&piece.sources, page_bytes, reader, made)
    }

    /// The pages of the frame of `piece`, decoded now or lately; and in `made` what is made from them if they differ.
    fn cached(
        &self,
        piece: &Piece<'_>,
        page_bytes: usize,
        made: &mut Vec<u8>,
    ) -> Result<Arc<Vec<u8>>, ReadError> {
        let mut state = self
            .cache
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let raw = self.cached_frame(piece.frame(), page_bytes, state)?;
        self.make(piece, &raw, page_bytes, &mut state.reader, made)?;
        Ok(raw)
    }

    fn cached_frame(
        &self,
        key: (u32, usize),
        page_bytes: usize,
        state: &mut CacheState,
    ) -> Result<Arc<Vec<u8>>, ReadError> {
        state.clock += 1;
        if let Some((raw, used)) = state.frames.get_mut(&key) {
            *used = state.clock;
            return Ok(Arc::clone(raw));
        }
        let mut raw = Vec::new();
        while state.frames.len() >= state.capacity
            || state.bytes > memory::cache_bytes(KEPT_BYTES_MAX)
        {
            let oldest = state.frames.iter().min_by_key(|(_, (_, used))| *used);
            let oldest = oldest.map(|(&key, _)| key);
            // The buffer of the frame that goes is used again, unless somebody still reads it.
            let Some((old, _)) = oldest.and_then(|key| state.frames.remove(&key)) else {
                break;
            };
            state.bytes -= old.len();
            raw = Arc::try_unwrap(old).unwrap_or_default();
        }
        let layer = &self.layers[key.0 as usize];
        let reader = &mut state.reader;
        reader.read(layer, key.1, page_bytes, &mut raw)?;
        let raw = Arc::new(raw);
        state.bytes += raw.len();
        state.frames.insert(key, (Arc::clone(&raw), state.clock));
        Ok(raw)
    }
}

/// How many threads earn what it costs to start them, where a few frames are decoded in less time.
fn threads_worth(groups: &[&[Piece<'_>]]) -> usize {
    let frames = groups
        .iter()
        .filter(|group| group[0].state == PageState::Data)
        .count();
    1 + frames / FRAMES_A_THREAD
}

/// How many threads to use for `jobs` jobs when `asked` were asked for; 0 asks for one a core.
pub fn worker_count(asked: usize, jobs: usize) -> usize {
    // To ask reads files of control groups.
    static CORES: OnceLock<usize> = OnceLock::new();
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = match asked {
        0 => *CORES.get_or_init(cores),
        asked => asked,
    };
    memory::threads(threads).min(jobs)
}
