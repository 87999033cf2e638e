//! The index section: which pages the snapshot records, where the frames are, and the hash of every
//! stored page. Once decoded it is known to be consistent; readers need not check again.

use super::header::Header;
use super::metadata::captured_regions;
use super::{
    ENCODING_LZ4, ENCODING_PATCHES, ENCODING_RAW, ENCODING_WORDS, ENCODING_ZSTD, Fields,
    FormatError, MAX_FRAME_BYTES, damaged,
};
use crate::model::{PageHash, PageState, Space};
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet, PageSize};

const COUNTS_BYTES: u64 = 3 * 8;
const RUN_BYTES: u64 = 4 + 2 + 2 + 8 + 8 + 8;
const FRAME_BYTES: u64 = 4 + 2 + 2 + 4 + 4 + 32;
const HASH_BYTES: u64 = 16;

const DATA: u16 = 1;
const ZERO: u16 = 2;
const GUARD: u16 = 3;
const UNBACKED: u16 = 4;
const SHOWN: u16 = 5;
const FILE: u16 = 6;

/// Pages with one state. The stored pages of a snapshot file are numbered, and after them its pages
/// that are in files of others; `ordinal` is the number of the first, 0 if the state is neither `Data`
/// nor `File`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub space: u32,
    pub state: PageState,
    pub pages: PageRange,
    pub ordinal: u64,
}

/// Some stored pages, compressed together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub space: u32,
    pub encoding: u16,
    pub stored_length: u32,
    pub page_count: u32,
    pub checksum: [u8; 32],
    /// Where it starts in the file's frames; the sum of the lengths before it.
    pub offset: u64,
    /// The number of its first page; the sum of the counts before it.
    pub first_ordinal: u64,
}

impl Frame {
    /// True if its stored bytes are one zstd frame.
    pub fn is_compressed(&self) -> bool {
        self.encoding == ENCODING_ZSTD
    }

    /// True if its pages are made from those of the parent.
    pub fn differs(&self) -> bool {
        is_of_differences(self.encoding)
    }
}

/// Whether a frame with this encoding has what makes pages from those of the parent.
pub fn is_of_differences(encoding: u16) -> bool {
    matches!(encoding, ENCODING_WORDS | ENCODING_PATCHES)
}

/// The decoded section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    pub runs: Vec<Run>,
    pub frames: Vec<Frame>,
    /// How many pages are stored.
    pub stored: u64,
    /// The hashes of the stored pages, then those of the pages in files.
    pub hashes: Vec<PageHash>,
}

impl Index {
    /// How many pages it records in this state.
    pub fn count(&self, state: PageState) -> u64 {
        let runs = self.runs.iter().filter(|run| run.state == state);
        runs.map(|run| run.pages.count().0)
            .fold(0, u64::saturating_add)
    }

    pub fn encode(&self) -> Vec<u8> {
        let counts = [self.runs.len(), self.frames.len(), self.hashes.len()];
        let mut bytes = Vec::with_capacity(
            (COUNTS_BYTES as usize)
                + counts[0] * RUN_BYTES as usize
                + counts[1] * FRAME_BYTES as usize
                + counts[2] * HASH_BYTES as usize,
        );
        for count in counts {
            bytes.extend_from_slice(&(count as u64).to_le_bytes());
        }
        for run in &self.runs {
            let state = match run.state {
                PageState::Data => DATA,
                PageState::Zero => ZERO,
                PageState::Guard => GUARD,
                PageState::Unbacked => UNBACKED,
                PageState::Shown => SHOWN,
                PageState::File => FILE,
            };
            bytes.extend_from_slice(&run.space.to_le_bytes());
            bytes.extend_from_slice(&state.to_le_bytes());
            bytes.extend_from_slice(&0_u16.to_le_bytes());
            bytes.extend_from_slice(&run.pages.start().0.to_le_bytes());
            bytes.extend_from_slice(&run.pages.count().0.to_le_bytes());
            bytes.extend_from_slice(&run.ordinal.to_le_bytes());
        }
        for frame in &self.frames {
            bytes.extend_from_slice(&frame.space.to_le_bytes());
            bytes.extend_from_slice(&frame.encoding.to_le_bytes());
            bytes.extend_from_slice(&0_u16.to_le_bytes());
            bytes.extend_from_slice(&frame.stored_length.to_le_bytes());
            bytes.extend_from_slice(&frame.page_count.to_le_bytes());
            bytes.extend_from_slice(&frame.checksum);
        }
        for hash in &self.hashes {
            bytes.extend_from_slice(&hash.0);
        }
        bytes
    }
}

/// The index in `bytes`, of a file with these spaces and this header.
pub fn decode(bytes: &[u8], spaces: &[Space], header: &Header) -> Result<Index, FormatError> {
    if (bytes.len() as u64) < COUNTS_BYTES {
        return damaged("its index is too short");
    }
    let mut fields = Fields::new(bytes);
    let counts = [fields.u64(), fields.u64(), fields.u64()];
    let lengths = [RUN_BYTES, FRAME_BYTES, HASH_BYTES];
    let length = counts
        .iter()
        .zip(lengths)
        .try_fold(COUNTS_BYTES, |sum, (&count, each)| {
            sum.checked_add(count.checked_mul(each)?)
        });
    // From here on no count is larger than the section that was read already.
    if length != Some(bytes.len() as u64) {
        return damaged("the counts in its index do not add up to the length of the index");
    }
    let [runs, frames, hashes] = counts.map(|count| count as usize);
    let runs: Result<Vec<_>, _> = (0..runs).map(|_| run(&mut fields)).collect();
    let frames: Result<Vec<_>, _> = (0..frames).map(|_| frame(&mut fields)).collect();
    let mut index = Index {
        runs: runs?,
        frames: frames?,
        stored: 0,
        hashes: (0..hashes).map(|_| PageHash(fields.array())).collect(),
    };
    place_frames(&mut index, spaces, header.frames_length)?;
    let has_differences = index.frames.iter().any(Frame::differs);
    let is_newer = |frame: &Frame| frame.encoding > ENCODING_ZSTD;
    if header.version == 1 && index.frames.iter().any(is_newer) {
        return damaged("a frame has an encoding that format 1 does not have");
    }
    if has_differences && header.parent.is_none() {
        return damaged("it has differences to a parent that it cannot have");
    }
    if header.version == 1 && index.stored != index.hashes.len() as u64 {
        return damaged("it does not have one hash for each stored page");
    }
    check_runs(&index, spaces, header.version)?;
    if has_differences {
        check_differences(&index)?;
    }
    Ok(index)
}

fn run(fields: &mut Fields<'_>) -> Result<Run, FormatError> {
    let space = fields.u32();
    let state = match fields.u16() {
        DATA => PageState::Data,
        ZERO => PageState::Zero,
        GUARD => PageState::Guard,
        UNBACKED => PageState::Unbacked,
        SHOWN => PageState::Shown,
        FILE => PageState::File,
        0 => return damaged("a run of pages has no kind"),
        code => {
            return Err(FormatError::Future(format!(
                "kind {code} of a run of pages"
            )));
        }
    };
    match fields.u16() {
        0 => {}
        code => return Err(FormatError::Future(format!("page encoding {code}"))),
    }
    let (first, count, ordinal) = (fields.u64(), fields.u64(), fields.u64());
    if count == 0 || first.checked_add(count).is_none() {
        return damaged(format!(
            "a run of {count} pages from {first:#x} on is impossible"
        ));
    }
    if !state.is_hashed() && ordinal != 0 {
        return damaged("a run without hashes has a place for them");
    }
    Ok(Run {
        space,
        state,
        pages: PageRange::with_count(PageIndex(first), PageCount(count)),
        ordinal,
    })
}

fn frame(fields: &mut Fields<'_>) -> Result<Frame, FormatError> {
    let (space, encoding, reserved) = (fields.u32(), fields.u16(), fields.u16());
    if encoding > ENCODING_LZ4 {
        return Err(FormatError::Future(format!("frame encoding {encoding}")));
    }
    if reserved != 0 {
        return Err(FormatError::Future(format!("frame flags {reserved:#x}")));
    }
    Ok(Frame {
        space,
        encoding,
        stored_length: fields.u32(),
        page_count: fields.u32(),
        checksum: fields.array(),
        offset: 0,
        first_ordinal: 0,
    })
}

/// Gives each frame its place, and checks that the frames are all there is and fit their pages.
fn place_frames(
    index: &mut Index,
    spaces: &[Space],
    frames_length: u64,
) -> Result<(), FormatError> {
    let (mut offset, mut ordinal) = (0, 0);
    for frame in &mut index.frames {
        let Some(space) = spaces.get(frame.space as usize) else {
            return damaged("a frame belongs to a space that does not exist");
        };
        let raw = u64::from(frame.page_count) * space.page_size.bytes();
        let stored = u64::from(frame.stored_length);
        if raw == 0 || raw > MAX_FRAME_BYTES || stored == 0 || stored > raw {
            return damaged(format!(
                "a frame of {raw} bytes stored as {stored} is impossible"
            ));
        }
        if frame.encoding == ENCODING_RAW && stored != raw {
            return damaged("an uncompressed frame does not have the length of its pages");
        }
        frame.offset = offset;
        frame.first_ordinal = ordinal;
        offset += stored;
        ordinal += u64::from(frame.page_count);
    }
    if offset != frames_length {
        return damaged("its frames do not add up to the length of the frame section");
    }
    if ordinal > index.hashes.len() as u64 {
        return damaged("it does not have one hash for each stored page");
    }
    index.stored = ordinal;
    Ok(())
}

/// Checks that runs ascend, lie in captured regions which can have pages in their state, and point
/// at stored pages of the right size, or at hashes of pages in files.
fn check_runs(index: &Index, spaces: &[Space], version: u32) -> Result<(), FormatError> {
    let places: Vec<Places> = spaces.iter().map(Places::of).collect();
    let stretches = stretches(index, spaces);
    let mut before = None;
    for run in &index.runs {
        let Some(places) = places.get(run.space as usize) else {
            return damaged("a run of pages belongs to a space that does not exist");
        };
        if before.is_some_and(|before| before > (run.space, run.pages.start())) {
            return damaged("its runs of pages do not ascend");
        }
        before = Some((run.space, run.pages.end()));
        if !places.captured.contains_range(run.pages) {
            return damaged("a run of pages lies outside the captured regions");
        }
        let end = run.ordinal.checked_add(run.pages.count().0);
        match run.state {
            PageState::Zero | PageState::Guard | PageState::Unbacked => {}
            PageState::Data => {
                let Some(end) = end.filter(|&end| end <= index.stored) else {
                    return damaged("a run of pages points past the stored pages");
                };
                let page_size = spaces[run.space as usize].page_size;
                let after = stretches.partition_point(|stretch| stretch.first <= run.ordinal);
                let own = stretches[after - 1].page_size == page_size;
                let next = stretches
                    .get(after)
                    .map_or(u64::MAX, |stretch| stretch.first);
                if !own || end > next {
                    return damaged("a run of pages points at pages of another size");
                }
            }
            PageState::Shown | PageState::File if version == 1 => {
                return damaged("a run of pages is of a kind that format 1 does not have");
            }
            PageState::Shown => {
                if !places.showing.contains_range(run.pages) {
                    return damaged("pages are shown by regions that show nothing");
                }
            }
            PageState::File => {
                if !places.of_files.contains_range(run.pages) {
                    return damaged("pages of a file are in regions that have none");
                }
                let within = |end: &u64| *end <= index.hashes.len() as u64;
                if run.ordinal < index.stored || !end.as_ref().is_some_and(within) {
                    return damaged("a run of pages points past the hashes of pages in files");
                }
            }
        }
    }
    Ok(())
}

/// Checks that no difference is of several pages: it is to the parent's page at its own place.
fn check_differences(index: &Index) -> Result<(), FormatError> {
    let data = index.runs.iter().filter(|run| run.state == PageState::Data);
    let mut stored: Vec<(u64, u64)> = data
        .map(|run| (run.ordinal, run.ordinal + run.pages.count().0))
        .collect();
    stored.sort_unstable();
    let mut frames = index.frames.iter().filter(|frame| frame.differs());
    let mut frame = frames.next();
    let mut end_before = 0;
    for (start, end) in stored {
        // What both have of the frames of differences.
        let shared_end = end.min(end_before);
        let past = |frame: &Frame| frame.first_ordinal + u64::from(frame.page_count) <= start;
        while frame.is_some_and(past) {
            frame = frames.next();
        }
        if frame.is_some_and(|frame| start < shared_end && frame.first_ordinal < shared_end) {
            return damaged("a difference is of several pages");
        }
        end_before = end_before.max(end);
    }
    Ok(())
}

/// Which pages of a space can be in which states.
struct Places {
    captured: PageSet,
    showing: PageSet,
    of_files: PageSet,
}

impl Places {
    fn of(space: &Space) -> Self {
        let that_admit = |state| {
            let regions = captured_regions(space).filter(move |region| region.admits(state));
            regions.map(|region| region.pages).collect()
        };
        Self {
            captured: that_admit(PageState::Data),
            showing: that_admit(PageState::Shown),
            of_files: that_admit(PageState::File),
        }
    }
}

/// Stored pages from `first` on that have the same size: as many as there are in a row.
struct Stretch {
    first: u64,
    page_size: PageSize,
}

fn stretches(index: &Index, spaces: &[Space]) -> Vec<Stretch> {
    let mut stretches: Vec<Stretch> = Vec::new();
    for frame in &index.frames {
        let page_size = spaces[frame.space as usize].page_size;
        if stretches
            .last()
            .is_none_or(|last| last.page_size != page_size)
        {
            let first = frame.first_ordinal;
            stretches.push(Stretch { first, page_size });
        }
    }
    stretches
}
