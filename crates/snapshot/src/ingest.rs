//! From pages to frames, on all cores: which pages are zeros, which are the parent's, and the rest
//! compressed, or compared with the parent's where those are at hand. What becomes of the frames is for `writer` to say.
//!
//! The pages of one call are cut into chunks of some frames each. Workers take chunks in turn; the
//! calling thread gets the results in order, while later chunks are still being worked on, but
//! never more than a fixed number of chunks ahead, so memory is bounded however slow the disk is.

use crate::differences::{DEPTH_MAX, Difference};
use crate::frame::{EncodedFrame, FrameEncoder};
use crate::model::{PageHash, PageState};
use crate::options::Compression;
use crate::shadow::{Held, Shadow};
use crate::view::Inner;
use crate::words::Words;
use pagetide_pages::PageIndex;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError, mpsc};

/// The largest number of frames a chunk makes.
const CHUNK_FRAMES: usize = 8;
/// How many chunks each worker may be ahead of the calling thread.
const CHUNKS_AHEAD: usize = 4;

/// A page of a call: which one, and which page of which piece has its bytes.
#[derive(Clone, Copy)]
pub struct PageRef {
    pub page: PageIndex,
    pub piece: usize,
    pub number: usize,
}

/// What was found out about a page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// It is zeros.
    Zero,
    /// It is what the parent has.
    Unchanged,
    /// It has to be stored.
    Data(PageHash),
    /// It has the bytes of a page that is stored already, or will be before it.
    Same(PageHash),
}

/// What became of a chunk.
pub struct Chunk<'a> {
    /// The number of its first page in the call.
    pub first: usize,
    /// One for each of its pages.
    pub findings: Vec<Finding>,
    /// Frames with the numbers (in the chunk) of their pages, all of which are `Data`.
    pub frames: Vec<(EncodedFrame<'a>, Vec<usize>)>,
    /// The numbers of the `Data` pages that did not fill a frame.
    pub rest: Vec<usize>,
    /// The numbers of the `Data` pages that are stored as differences, with the hash of the parent's page.
    pub differing: Vec<(usize, PageHash, Difference)>,
    /// Pages whose bytes are to be kept.
    pub kept: Vec<(PageIndex, Held)>,
}

/// What all workers need to know.
pub struct IngestPlan<'p, 'a> {
    pub pieces: &'p [(PageIndex, &'a [u8])],
    pub page_bytes: usize,
    pub frame_pages: usize,
    pub compression: Compression,
    pub zero_hash: PageHash,
    /// The parent and the position of the space in it.
    pub parent: Option<(&'p Inner, usize)>,
    /// Whether unchanged pages are to be found.
    pub elide_unchanged: bool,
    /// The pages written lately, and the name of the space among them.
    pub shadow: Option<(&'p Shadow, &'p str)>,
    /// What was found out about each page of the call already, if it was.
    pub findings: Option<Vec<Finding>>,
}

/// True if all bytes are zero. Looks at a cache line at a time, and stops at the first that is not.
pub fn is_zero(bytes: &[u8]) -> bool {
    let lines = bytes.chunks_exact(64);
    let tail = lines.remainder();
    let zero = |line: &[u8]| line.iter().fold(0, |all, &byte| all | byte) == 0;
    lines.into_iter().all(zero) && zero(tail)
}

impl<'a> IngestPlan<'_, 'a> {
    /// The bytes of a page of the call.
    pub fn bytes(&self, page: &PageRef) -> &'a [u8] {
        self.bytes_of(page, 1)
    }

    fn bytes_of(&self, first: &PageRef, pages: usize) -> &'a [u8] {
        let start = first.number * self.page_bytes;
        &self.pieces[first.piece].1[start..start + pages * self.page_bytes]
    }

    fn find(&self, page: &PageRef) -> Finding {
        let bytes = self.bytes(page);
        let zero = is_zero(bytes);
        let hash = if zero {
            self.zero_hash
        } else {
            PageHash::of(bytes)
        };
        // What the parent shows or has in a file is left to those who say so of this snapshot.
        let parent = self.parent.filter(|_| self.elide_unchanged);
        let in_parent = parent.and_then(|(parent, space)| {
            let run = parent.own_at(space, page.page)?;
            let hash = || parent.hash_in(space, run, page.page);
            (run.state != PageState::File).then(hash).flatten()
        });
        match (in_parent == Some(hash), zero) {
            (true, _) => Finding::Unchanged,
            (false, true) => Finding::Zero,
            (false, false) => Finding::Data(hash),
        }
    }

    /// Works on the chunk of `pages` whose first is number `first` of the call.
    fn work(
        &self,
        first: usize,
        pages: &[PageRef],
        encoder: &mut FrameEncoder,
    ) -> io::Result<Chunk<'a>> {
        let findings: Vec<Finding> = match &self.findings {
            Some(findings) => findings[first..first + pages.len()].to_vec(),
            None => pages.iter().map(|page| self.find(page)).collect(),
        };
        let mut data: Vec<usize> = (0..pages.len())
            .filter(|&number| matches!(findings[number], Finding::Data(_)))
            .collect();
        let held = self.held(pages, &data);
        let kept = self.kept(pages, &findings, &data, &held);
        let differing = self.differing(pages, &mut data, held, encoder)?;
        let rest = data.split_off(data.len() - data.len() % self.frame_pages);
        let mut frames = Vec::with_capacity(data.len() / self.frame_pages);
        for members in data.chunks(self.frame_pages) {
            let raw = self.gather(pages, members);
            frames.push((encoder.encode(raw)?, members.to_vec()));
        }
        Ok(Chunk {
            first,
            findings,
            frames,
            rest,
            differing,
            kept,
        })
    }

    /// What the shadow has of the pages numbered `data`.
    fn held(&self, pages: &[PageRef], data: &[usize]) -> Vec<Option<Held>> {
        let Some((shadow, name)) = self.shadow else {
            return Vec::new();
        };
        shadow.get(name, data.iter().map(|&number| pages[number].page))
    }

    /// Takes those out of the pages numbered `data` that are better stored as differences to the parent's.
    fn differing(
        &self,
        pages: &[PageRef],
        data: &mut Vec<usize>,
        held: Vec<Option<Held>>,
        encoder: &mut FrameEncoder,
    ) -> io::Result<Vec<(usize, PageHash, Difference)>> {
        let (Some((shadow, _)), Some((parent, space))) = (self.shadow, self.parent) else {
            return Ok(Vec::new());
        };
        let may_be_patched = shadow.patched();
        let mut differing = Vec::new();
        let (mut whole, mut compared, mut patches) = (Vec::new(), 0, (0, 0));
        for (&number, held) in data.iter().zip(held) {
            let (page, bytes) = (pages[number].page, self.bytes(&pages[number]));
            let usable = held.filter(|held| is_usable(parent, space, page, held.hash));
            compared += u64::from(usable.is_some());
            let difference = match usable
                .as_ref()
                .map(|held| Words::between(&held.bytes, bytes))
            {
                Some(Some(words)) => Some(Difference::Words(words)),
                Some(None) if may_be_patched(page) => {
                    let held = usable.as_ref().map_or(&[][..], |held| &held.bytes);
                    let patch = encoder.patch(held, bytes)?;
                    patches.0 += 1;
                    patches.1 += u64::from(patch.is_some());
                    patch.map(Difference::Patch)
                }
                Some(None) | None => None,
            };
            match (usable, difference) {
                (Some(held), Some(difference)) => differing.push((number, held.hash, difference)),
                _ => whole.push(number),
            }
        }
        *data = whole;
        shadow.compared(compared, differing.len() as u64, patches);
        Ok(differing)
    }

    /// Copies those of the pages numbered `data` that are to be kept.
    fn kept(
        &self,
        pages: &[PageRef],
        findings: &[Finding],
        data: &[usize],
        held: &[Option<Held>],
    ) -> Vec<(PageIndex, Held)> {
        let Some((shadow, _)) = self.shadow else {
            return Vec::new();
        };
        let is_wanted = shadow.wanted(self.page_bytes, self.parent.is_some());
        let each = data.iter().zip(held);
        let wanted = each.filter(|(number, held)| is_wanted(pages[**number].page, held.is_some()));
        let copy = wanted.filter_map(|(&number, _)| match findings[number] {
            Finding::Data(hash) => {
                let bytes = self.bytes(&pages[number]).into();
                Some((pages[number].page, Held { hash, bytes }))
            }
            Finding::Zero | Finding::Unchanged | Finding::Same(_) => None,
        });
        copy.collect()
    }

    /// The bytes of the pages numbered `members`, copied only if they lie apart.
    fn gather(&self, pages: &[PageRef], members: &[usize]) -> Cow<'a, [u8]> {
        let (first, last) = (&pages[members[0]], &pages[members[members.len() - 1]]);
        // Members ascend, and so do the pages of a piece: the ends decide.
        if first.piece == last.piece && last.number - first.number + 1 == members.len() {
            return Cow::Borrowed(self.bytes_of(first, members.len()));
        }
        let mut raw = Vec::with_capacity(members.len() * self.page_bytes);
        for &number in members {
            raw.extend_from_slice(self.bytes(&pages[number]));
        }
        Cow::Owned(raw)
    }
}

/// Whether differences may be stored to the page of `parent`, which has to have this hash.
fn is_usable(parent: &Inner, space: usize, page: PageIndex, hash: PageHash) -> bool {
    parent.own_at(space, page).is_some_and(|run| {
        run.state == PageState::Data
            && parent.hash_in(space, run, page) == Some(hash)
            && parent.depth(space, run, page) < DEPTH_MAX
    })
}

/// What is to be found out about `pages`, with `threads` threads.
pub fn survey(plan: &IngestPlan<'_, '_>, pages: &[PageRef], threads: usize) -> Vec<Finding> {
    let mut findings = vec![Finding::Zero; pages.len()];
    let share = pages.len().div_ceil(threads.max(1)).max(plan.frame_pages);
    let find = |pages: &[PageRef], findings: &mut [Finding]| {
        for (page, finding) in pages.iter().zip(findings) {
            *finding = plan.find(page);
        }
    };
    if pages.len() <= share {
        find(pages, &mut findings);
        return findings;
    }
    std::thread::scope(|scope| {
        for (pages, findings) in pages.chunks(share).zip(findings.chunks_mut(share)) {
            scope.spawn(move || find(pages, findings));
        }
    });
    findings
}

/// Works on `pages` with `threads` threads and hands the chunks to `take` in order. The first error
/// of either side ends it.
pub fn run<'a, E: From<io::Error>>(
    plan: &IngestPlan<'_, 'a>,
    pages: &[PageRef],
    threads: usize,
    encoder: &mut FrameEncoder,
    mut take: impl FnMut(Chunk<'a>) -> Result<(), E>,
) -> Result<(), E> {
    let frames = pages.len().div_ceil(plan.frame_pages);
    if frames <= 1 || threads <= 1 {
        let chunk_pages = CHUNK_FRAMES * plan.frame_pages;
        for (number, chunk) in pages.chunks(chunk_pages).enumerate() {
            take(plan.work(number * chunk_pages, chunk, encoder)?)?;
        }
        return Ok(());
    }
    let threads = threads.min(frames);
    let chunk_frames = (frames / (2 * threads)).clamp(1, CHUNK_FRAMES);
    let chunk_pages = chunk_frames * plan.frame_pages;
    let chunks: Vec<&[PageRef]> = pages.chunks(chunk_pages).collect();
    let gate = Gate::new(threads * CHUNKS_AHEAD);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        // However this ends, workers that wait at the gate are let go, or the scope would not end.
        let _open = OpenOnDrop(&gate);
        let (sender, receiver) = mpsc::channel();
        for _ in 0..threads {
            let (sender, gate, next, chunks) = (sender.clone(), &gate, &next, &chunks);
            scope.spawn(move || {
                let mut encoder = match FrameEncoder::new(plan.compression) {
                    Ok(encoder) => encoder,
                    Err(error) => return drop(sender.send((usize::MAX, Err(error)))),
                };
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(chunk) = chunks.get(number) else {
                        return;
                    };
                    gate.wait_for(number);
                    let done = plan.work(number * chunk_pages, chunk, &mut encoder);
                    // Nobody listens any more after an error.
                    if sender.send((number, done)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut early = BTreeMap::new();
        let mut taken = 0;
        for (number, done) in receiver {
            early.insert(number, done?);
            while let Some(chunk) = early.remove(&taken) {
                take(chunk)?;
                taken += 1;
                gate.taken(taken);
            }
        }
        Ok(())
    })
}

/// Holds workers back that are too far ahead.
struct Gate {
    ahead: usize,
    taken: Mutex<usize>,
    moved: Condvar,
}

impl Gate {
    fn new(ahead: usize) -> Self {
        Self {
            ahead,
            taken: Mutex::new(0),
            moved: Condvar::new(),
        }
    }

    fn wait_for(&self, number: usize) {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let too_far = |taken: &mut usize| number >= taken.saturating_add(self.ahead);
        drop(self.moved.wait_while(taken, too_far));
    }

    fn taken(&self, count: usize) {
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = count;
        self.moved.notify_all();
    }
}

struct OpenOnDrop<'a>(&'a Gate);

impl Drop for OpenOnDrop<'_> {
    fn drop(&mut self) {
        self.0.taken(usize::MAX);
    }
}
