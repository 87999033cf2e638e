//! Reading shared memory under regions. It is read by a descriptor of the object where there is one: others may write
//! to it without any trace in our page tables, reading its holes through the mapping would allocate them, and what
//! lies past its end cannot be read. Where there is none (shared anonymous memory, without privilege) it is read
//! through the mapping.

use super::ground::{Ground, Kind, Piece, in_file};
use crate::capture::{CaptureError, Copied, PageSource, SIZE, Verdict};
use crate::files::{self, FileKey, FileReport, Files};
use crate::layout;
use crate::mapped_file::read_pieces;
use crate::page_tables::PageTables;
use pagetide_kernel::pagemap_scan::Categories;
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};
use pagetide_snapshot::{PageHash, PageState};
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::OwnedFd;

/// Holes are asked for only if so much is to be read: the question costs a walk over all of the object.
const ASK_HOLES_FROM: PageCount = PageCount(256);

/// The objects under regions that are believed to be written through them only.
pub(super) type Lengths = HashMap<FileKey, Length>;

/// How long an object is, and how much memory it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Length {
    bytes: i64,
    blocks: i64,
}

/// How long the objects are now, and the pages of those that have lost memory or changed their length since.
pub(super) fn lengths(
    ground: &Ground,
    files: &Files,
    before: Option<&Lengths>,
) -> (Lengths, PageSet) {
    let (mut lengths, mut doubtful) = (Lengths::new(), PageSet::new());
    let alone = |piece: &&Piece| piece.kind == Kind::SharedAlone;
    for piece in ground.pieces.iter().filter(alone) {
        let key = files::key(&piece.mapping);
        // Many pieces may show one object.
        let now = lengths.get(&key).copied().or_else(|| {
            let stat = rustix::fs::fstat(files.open(key)?).ok()?;
            Some(Length {
                bytes: stat.st_size,
                blocks: stat.st_blocks,
            })
        });
        let then = before.and_then(|before| before.get(&key));
        let is_whole = match (then, now) {
            (Some(then), Some(now)) => now.bytes == then.bytes && now.blocks >= then.blocks,
            // Nothing can be asked, now or then.
            (None, None) => true,
            _ => false,
        };
        if !is_whole {
            doubtful.insert(piece.pages);
        }
        lengths.extend(now.map(|now| (key, now)));
    }
    (lengths, doubtful)
}

/// What reading shared memory needs.
pub(super) struct SharedReader<'a> {
    pub files: &'a Files,
    pub report: &'a FileReport,
    pub tables: PageTables<'a>,
    pub source: &'a PageSource<'a>,
}

impl SharedReader<'_> {
    /// Copies those of the `wanted` pages of `piece` that are not what the parent has.
    pub fn copy(
        &self,
        piece: &Piece,
        wanted: &PageSet,
        copied: &mut Copied<'_>,
    ) -> Result<(), CaptureError> {
        let wanted = wanted.within(piece.pages);
        if wanted.is_empty() {
            return Ok(());
        }
        let guards = self.tables.guards(&wanted)?;
        push(copied, &guards, PageState::Guard);
        let wanted = wanted.subtract(&guards);
        let key = files::key(&piece.mapping);
        let object = if self.files.is_object(&piece.mapping, self.report) {
            self.files.open(key)
        } else {
            None
        };
        let Some(object) = object else {
            let empty = self.holes(piece, &wanted, copied);
            return self.through_mapping(&wanted.subtract(&empty), copied);
        };
        // Marks of UFFDIO_POISON stand in the page tables of one process, and hide what the object has there. Where
        // memory is tracked, empty slots have marks of ours.
        let marked = match piece.kind {
            Kind::SharedAlone => PageSet::new(),
            _ => self.tables.having(&wanted, Categories::SWAPPED)?,
        };
        self.through_mapping(&marked, copied)?;
        self.by_object(object, piece, &wanted.subtract(&marked), copied)
    }

    fn through_mapping(
        &self,
        wanted: &PageSet,
        copied: &mut Copied<'_>,
    ) -> Result<(), CaptureError> {
        self.source.compare(wanted, &PageSet::new(), copied)
    }

    fn by_object(
        &self,
        object: &OwnedFd,
        piece: &Piece,
        wanted: &PageSet,
        copied: &mut Copied<'_>,
    ) -> Result<(), CaptureError> {
        let failed = |errno: Errno| CaptureError::Object {
            name: layout::display_name(&piece.mapping),
            source: errno.into(),
        };
        let stat = rustix::fs::fstat(object).map_err(failed)?;
        let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        let first = in_file(&piece.mapping, piece.pages).start();
        // The place of a page of the object in memory.
        let place = |page: PageIndex| {
            let offset = page.0.saturating_sub(first.0).min(piece.pages.count().0);
            piece.pages.start().plus(PageCount(offset))
        };
        let end = place(PageIndex(size_bytes.div_ceil(SIZE.bytes())));
        let whole_end = place(PageIndex(size_bytes / SIZE.bytes()));
        let past = wanted.within(PageRange::new(end, piece.pages.end()));
        push(copied, &past, PageState::Unbacked);
        // A mapping shows what was stored past the end in the last page, and a read does not.
        let tail = wanted.within(PageRange::new(whole_end, end));
        let mut wanted = wanted.within(PageRange::new(piece.pages.start(), whole_end));
        wanted = wanted.subtract(&self.holes(piece, &wanted, copied));
        let read = |pieces: &[PageRange], bytes: &mut [u8]| {
            let offset = |part| SIZE.address_of(in_file(&piece.mapping, part).start());
            read_pieces(object, pieces, bytes, offset).map_err(failed)
        };
        copied.keep_some(wanted.ranges(), read, |page, bytes| self.judge(page, bytes))?;
        self.through_mapping(&tail, copied)
    }

    /// Records those of the `wanted` pages that show nothing that was ever allocated, and gives them.
    fn holes(&self, piece: &Piece, wanted: &PageSet, copied: &mut Copied<'_>) -> PageSet {
        if wanted.count() < ASK_HOLES_FROM {
            return PageSet::new();
        }
        let holes = self.files.holes_in(&piece.mapping, self.report);
        let empty = holes.intersect(wanted);
        push(copied, &empty, PageState::Zero);
        empty
    }

    fn judge(&self, page: PageIndex, bytes: &[u8]) -> Verdict {
        let known = self.source.known.and_then(|known| known(page));
        if known == Some(PageHash::of(bytes)) {
            Verdict::Unchanged
        } else {
            Verdict::Keep
        }
    }
}

fn push(copied: &mut Copied<'_>, pages: &PageSet, state: PageState) {
    let ranges = pages.ranges().iter();
    copied.states.extend(ranges.map(|&range| (range, state)));
}
