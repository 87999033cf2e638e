//! What is mapped under the regions at one moment, and how each part of it can be watched. Looked at for every
//! capture: what was mapped there before does not matter, and what is not mapped any more is an error.

use super::error::OwnMemoryError;
use super::placement::{Placement, Places};
use crate::capture::SIZE;
use crate::files::{self, FileKey, FileReport};
use crate::layout::{self, ChangeDetection};
use crate::mapped_file::file_page;
use crate::sparse;
use pagetide_kernel::maps::{self, Mapping};
use pagetide_pages::{PageIndex, PageRange, PageSet};

/// How changes of a part of a region are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Private anonymous memory: tracked.
    Private,
    /// A private mapping of a file: copies are found in the page tables and compared, and the rest is what the
    /// file has.
    OverFile,
    /// Private huge pages of the pool: those that are there are compared.
    Huge,
    /// Shared memory: compared.
    Shared,
    /// Shared memory that is promised to be written through its region only: tracked.
    SharedAlone,
}

/// A part of a region with one mapping under it.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub pages: PageRange,
    /// The whole mapping, which may be longer.
    pub mapping: Mapping,
    pub kind: Kind,
}

/// All parts of all regions, by address.
#[derive(Clone, Debug)]
pub(super) struct Ground {
    pub pieces: Vec<Piece>,
    /// All mappings of the process.
    pub mappings: Vec<Mapping>,
}

impl Ground {
    /// Looks at the mappings of this process. The regions must be mapped as a whole.
    pub fn look(pid: i32, places: &Places) -> Result<Self, OwnMemoryError> {
        // The list is not read in one piece: other threads that map and unmap elsewhere can make it look as if
        // there were a gap.
        let mut tries = 3;
        loop {
            tries -= 1;
            let mappings = maps::mappings(pid)?;
            match pieces(places, &mappings) {
                Err(OwnMemoryError::NotMapped { .. }) if tries > 0 => {}
                Err(error) => return Err(error),
                Ok(pieces) => return Ok(Self { pieces, mappings }),
            }
        }
    }

    /// The pages of some kinds.
    pub fn pages(&self, of: impl Fn(Kind) -> bool) -> PageSet {
        let pieces = self.pieces.iter().filter(|piece| of(piece.kind));
        pieces.map(|piece| piece.pages).collect()
    }

    /// The parts that are tracked, by address.
    pub fn tracked(&self) -> Vec<PageRange> {
        let is_tracked = |piece: &&Piece| matches!(piece.kind, Kind::Private | Kind::SharedAlone);
        let tracked = self.pieces.iter().filter(is_tracked);
        tracked.map(|piece| piece.pages).collect()
    }

    /// The mappings under regions that have a file.
    pub fn with_file(&self) -> Vec<Mapping> {
        let with_file = self.pieces.iter().filter(|piece| piece.mapping.has_file());
        with_file.map(|piece| piece.mapping.clone()).collect()
    }

    /// Refuses what is no memory: it changes by itself, or cannot be read. The memory of a guest of KVM
    /// (guest_memfd) is, and that of BPF programs does not tell what there is of it.
    pub fn refuse_devices(&self, report: &FileReport) -> Result<(), OwnMemoryError> {
        let is_device = |piece: &&Piece| {
            let facts = report.facts(&piece.mapping);
            layout::is_device_like(&piece.mapping)
                && piece.mapping.has_file()
                && !sparse::is_guest_memory(&piece.mapping)
                && !facts.is_some_and(|facts| facts.in_memory)
        };
        match self.pieces.iter().find(is_device) {
            None => Ok(()),
            Some(piece) => {
                let name = layout::display_name(&piece.mapping);
                let reason = format!("it is memory of a device or of the kernel ({name})");
                Err(refused(piece.pages, reason))
            }
        }
    }

    /// Refuses memory that is promised to be written through its region only, if it is mapped elsewhere, too.
    pub fn refuse_other_mappings(&self) -> Result<(), OwnMemoryError> {
        let alone = |piece: &&Piece| piece.kind == Kind::SharedAlone;
        let mut alone = self.pieces.iter().filter(alone).peekable();
        if alone.peek().is_none() {
            return Ok(());
        }
        let shared = SharedMappings::among(&self.mappings);
        for piece in alone {
            let mapping = &piece.mapping;
            let shown = in_file(mapping, piece.pages);
            if let Some(other) = shared.other(mapping, shown) {
                let (start, end) = SIZE.span_of(piece.pages);
                return Err(OwnMemoryError::AlsoMapped {
                    address: start,
                    length_bytes: end - start,
                    elsewhere: other.start,
                });
            }
        }
        Ok(())
    }
}

/// Shared mappings by what they show.
struct SharedMappings<'a> {
    /// Object, what of it is shown, and where; ascending.
    all: Vec<(FileKey, PageRange, &'a Mapping)>,
    /// How far those up to each of them reach within its object.
    reach: Vec<PageIndex>,
}

impl<'a> SharedMappings<'a> {
    fn among(mappings: &'a [Mapping]) -> Self {
        let shared = mappings.iter().filter(|mapping| mapping.shared);
        let mut all: Vec<_> = shared
            .map(|mapping| {
                let shown = in_file(mapping, mapping.pages());
                (files::key(mapping), shown, mapping)
            })
            .collect();
        all.sort_by_key(|(key, shown, mapping)| (*key, *shown, mapping.start));
        let mut reach: Vec<PageIndex> = Vec::with_capacity(all.len());
        for (at, (key, shown, _)) in all.iter().enumerate() {
            let before = match at.checked_sub(1) {
                Some(before) if all[before].0 == *key => reach[before],
                _ => PageIndex(0),
            };
            reach.push(before.max(shown.end()));
        }
        SharedMappings { all, reach }
    }

    /// Another mapping than `mapping` that shows some of `shown`, pages of the same object.
    fn other(&self, mapping: &Mapping, shown: PageRange) -> Option<&'a Mapping> {
        let key = files::key(mapping);
        let end = self
            .all
            .partition_point(|(other, pages, _)| (*other, pages.start()) < (key, shown.end()));
        let before = (0..end).rev();
        let before =
            before.take_while(|&at| self.all[at].0 == key && self.reach[at] > shown.start());
        let shows = |&at: &usize| {
            let (_, pages, other) = &self.all[at];
            other.start != mapping.start && pages.intersection(shown).is_some()
        };
        before.filter(shows).last().map(|at| self.all[at].2)
    }
}

/// The pages of the file that a mapping shows at `pages`.
pub(super) fn in_file(mapping: &Mapping, pages: PageRange) -> PageRange {
    PageRange::with_count(file_page(mapping, pages.start()), pages.count())
}

pub(super) fn refused(pages: PageRange, reason: String) -> OwnMemoryError {
    let (start, end) = SIZE.span_of(pages);
    OwnMemoryError::Range {
        address: start,
        length_bytes: end - start,
        reason,
    }
}

fn pieces(places: &Places, mappings: &[Mapping]) -> Result<Vec<Piece>, OwnMemoryError> {
    let mut pieces = Vec::with_capacity(places.list().len());
    for placement in places.list() {
        let all = placement.mapped();
        let not_mapped = |from, to| {
            let (start, end) = SIZE.span_of(PageRange::new(from, to));
            OwnMemoryError::NotMapped {
                address: start,
                length_bytes: end - start,
                region: placement.region().address(),
            }
        };
        let mut at = all.start();
        let from = mappings.partition_point(|mapping| mapping.pages().end() <= at);
        for mapping in &mappings[from..] {
            let Some(part) = PageRange::new(at, all.end()).intersection(mapping.pages()) else {
                break;
            };
            if part.start() > at {
                return Err(not_mapped(at, part.start()));
            }
            let kind = kind_of(placement, mapping, part)?;
            pieces.push(Piece {
                pages: part,
                mapping: mapping.clone(),
                kind,
            });
            at = part.end();
        }
        if at < all.end() {
            let next = mappings.iter().map(|mapping| mapping.pages().start());
            let next = next.filter(|next| *next > at).min().unwrap_or(all.end());
            return Err(not_mapped(at, next.min(all.end())));
        }
    }
    Ok(pieces)
}

fn kind_of(
    placement: &Placement,
    mapping: &Mapping,
    pages: PageRange,
) -> Result<Kind, OwnMemoryError> {
    match layout::watch(mapping) {
        ChangeDetection::Leave(reason) => Err(refused(pages, format!("it is {reason}"))),
        ChangeDetection::Compare | ChangeDetection::Object if !mapping.shared => {
            Err(refused(pages, "it is code of the kernel".to_owned()))
        }
        ChangeDetection::Compare | ChangeDetection::Object => {
            Ok(if placement.is_written_through_it_only() {
                Kind::SharedAlone
            } else {
                Kind::Shared
            })
        }
        ChangeDetection::CompareHeld => Ok(Kind::Huge),
        ChangeDetection::OverFile => Ok(Kind::OverFile),
        ChangeDetection::Track | ChangeDetection::Reserved => Ok(Kind::Private),
    }
}
