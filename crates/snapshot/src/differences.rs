//! What is stored of a page that is made from its parent's: words or a patch. And frames of these.

use crate::decompress::Wherever;
use crate::format::{ENCODING_PATCHES, ENCODING_WORDS, FormatError, damaged};
use crate::model::PageHash;
use crate::patches::{self, Patches};
use crate::words::{self, FrameOfWords, Words};
use std::io;

/// No page is made from more differences than this: what is older is whole.
pub const DEPTH_MAX: usize = 8;

/// What makes a page of its parent's.
#[derive(Debug, PartialEq, Eq)]
pub enum Difference {
    /// Words that are put in their places.
    Words(Words),
    /// What zstd made with reference to the parent's page.
    Patch(Vec<u8>),
}

/// Differences that wait for their frame to be made: all of one kind, of pages of one size.
pub enum DifferenceBatch {
    Words(words::WordBatch),
    Patches(patches::PatchBatch),
}

impl DifferenceBatch {
    /// For differences like this one.
    pub fn of(difference: &Difference) -> Self {
        match difference {
            Difference::Words(_) => Self::Words(words::WordBatch::default()),
            Difference::Patch(_) => Self::Patches(patches::PatchBatch::default()),
        }
    }

    pub fn push(&mut self, parent: PageHash, difference: &Difference) {
        match (self, difference) {
            (Self::Words(all), Difference::Words(words)) => all.push(parent, words),
            (Self::Patches(all), Difference::Patch(patch)) => all.push(parent, patch),
            (Self::Words(_), Difference::Patch(_)) | (Self::Patches(_), Difference::Words(_)) => {
                unreachable!("differences wait with those of their kind")
            }
        }
    }

    /// Whether a frame should have no more.
    pub fn is_full(&self, page_bytes: usize) -> bool {
        match self {
            Self::Words(words) => words.is_full(page_bytes),
            Self::Patches(patches) => patches.is_full(page_bytes),
        }
    }

    /// The stored bytes and their encoding; `compress` makes a zstd frame.
    pub fn encode(
        &self,
        compress: impl FnOnce(&[u8]) -> io::Result<Vec<u8>>,
    ) -> io::Result<(Vec<u8>, u16)> {
        match self {
            Self::Words(words) => Ok((words.encode(compress)?, ENCODING_WORDS)),
            Self::Patches(patches) => Ok((patches.encode(), ENCODING_PATCHES)),
        }
    }
}

/// A frame that was read.
#[derive(Debug)]
pub enum Differences {
    Words(FrameOfWords),
    Patches(Patches),
}

impl Differences {
    /// The differences of `pages` pages of `page_bytes` each out of stored bytes whose checksum holds.
    pub fn decode(
        stored: &[u8],
        encoding: u16,
        (pages, page_bytes): (usize, usize),
        decompressor: &mut Wherever,
    ) -> Result<Self, FormatError> {
        match encoding {
            ENCODING_WORDS => {
                let words = FrameOfWords::decode(stored, pages, page_bytes, decompressor);
                words.map(Differences::Words)
            }
            ENCODING_PATCHES => {
                Patches::decode(stored, pages, page_bytes).map(Differences::Patches)
            }
            _ => damaged("a frame is not of differences"),
        }
    }

    /// How much memory it takes, about.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Words(words) => words.bytes(),
            Self::Patches(patches) => patches.bytes(),
        }
    }

    /// What is stored of page number `number`, and the hash of its parent's.
    pub fn difference(&self, number: usize) -> Option<(PageHash, Difference)> {
        match self {
            Self::Words(all) => {
                let (parent, words) = all.words(number)?;
                Some((parent, Difference::Words(words)))
            }
            Self::Patches(all) => {
                let (parent, patch) = all.patch(number)?;
                Some((parent, Difference::Patch(patch.to_vec())))
            }
        }
    }

    /// Makes the pages of the frame from number `first` on out of their parents' bytes, in `pages`.
    pub fn apply(
        &self,
        first: usize,
        pages: &mut [u8],
        page_bytes: usize,
        decompressor: &mut Wherever,
    ) -> Result<(), FormatError> {
        match self {
            Self::Words(words) => {
                let mut each = pages.chunks_exact_mut(page_bytes).zip(first..);
                each.try_for_each(|(page, number)| words.apply(number, page))
            }
            Self::Patches(patches) => patches.apply(first, pages, page_bytes, decompressor),
        }
    }
}
