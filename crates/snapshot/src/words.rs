//! A frame of words: of each of its pages the words that its parent's page has otherwise. Not where that page is, nor
//! who chooses what is stored so. `docs/FORMAT.md` has the bytes.

use crate::decompress::Wherever;
use crate::format::{FormatError, MAX_FRAME_BYTES, damaged};
use crate::model::PageHash;
use crate::varint;
use std::io;
use std::ops::Range;

/// What is compared, and stored where it differs.
const WORD_BYTES: usize = 8;
/// In so many bytes of a page no more than one word may differ, or it is stored otherwise: 64 words in a page of 4 KiB.
const BYTES_A_WORD: usize = 64;
/// How many bytes of words are compressed together, about.
const FRAME_BYTES: usize = 128 << 10;
const LENGTH_BYTES: usize = 4;
const HASH_BYTES: usize = 16;

/// The words of a page that differ from its parent's.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// How many words are in between, as varints.
    gaps: Vec<u8>,
    values: Vec<u8>,
}

impl Words {
    /// Those of `page` where `parent` has others. `None` if they are too many to be worth it.
    pub fn between(parent: &[u8], page: &[u8]) -> Option<Self> {
        if parent.len() != page.len() {
            return None;
        }
        let most = page.len() / BYTES_A_WORD;
        let mut words = Self::default();
        let mut next = 0;
        let lines = parent.chunks(BYTES_A_WORD).zip(page.chunks(BYTES_A_WORD));
        for (line, (old, new)) in lines.enumerate() {
            if old == new {
                continue;
            }
            let both = old
                .chunks_exact(WORD_BYTES)
                .zip(new.chunks_exact(WORD_BYTES));
            for (word, (old, new)) in both.enumerate() {
                if old == new {
                    continue;
                }
                let position = line * (BYTES_A_WORD / WORD_BYTES) + word;
                varint::push(&mut words.gaps, position - next);
                words.values.extend_from_slice(new);
                next = position + 1;
            }
            if words.values.len() > most * WORD_BYTES {
                return None;
            }
        }
        Some(words)
    }

    fn count(&self) -> usize {
        self.values.len() / WORD_BYTES
    }
}

/// Pages of one size that wait for their frame of differences to be made.
#[derive(Default)]
pub struct WordBatch {
    parents: Vec<PageHash>,
    counts: Vec<u8>,
    gaps: Vec<u8>,
    values: Vec<u8>,
}

impl WordBatch {
    pub fn push(&mut self, parent: PageHash, words: &Words) {
        self.parents.push(parent);
        varint::push(&mut self.counts, words.count());
        self.gaps.extend_from_slice(&words.gaps);
        self.values.extend_from_slice(&words.values);
    }

    /// Whether a frame should have no more, of pages of this size.
    pub fn is_full(&self, page_bytes: usize) -> bool {
        let pages = (MAX_FRAME_BYTES as usize / page_bytes).max(1);
        self.parents.len() >= pages || self.length() >= FRAME_BYTES
    }

    fn length(&self) -> usize {
        self.counts.len() + self.gaps.len() + self.values.len()
    }

    /// The stored bytes; `compress` makes a zstd frame.
    pub fn encode(
        &self,
        compress: impl FnOnce(&[u8]) -> io::Result<Vec<u8>>,
    ) -> io::Result<Vec<u8>> {
        let columns = [&self.counts[..], &self.gaps, &self.values].concat();
        let packed = compress(&columns)?;
        let hashes = self.parents.len() * HASH_BYTES;
        let mut stored = Vec::with_capacity(LENGTH_BYTES + hashes + packed.len());
        stored.extend_from_slice(&(columns.len() as u32).to_le_bytes());
        for parent in &self.parents {
            stored.extend_from_slice(&parent.0);
        }
        stored.extend_from_slice(&packed);
        Ok(stored)
    }
}

/// A frame that was read.
#[derive(Debug)]
pub struct FrameOfWords {
    pages: Vec<OfPage>,
    columns: Vec<u8>,
}

#[derive(Debug)]
struct OfPage {
    parent: PageHash,
    /// Where in the columns they are.
    gaps: Range<usize>,
    values: Range<usize>,
}

impl FrameOfWords {
    /// The differences of `pages` pages of `page_bytes` each out of stored bytes whose checksum holds.
    pub fn decode(
        stored: &[u8],
        pages: usize,
        page_bytes: usize,
        decompressor: &mut Wherever,
    ) -> Result<Self, FormatError> {
        let Some((length, rest)) = stored.split_first_chunk::<LENGTH_BYTES>() else {
            return damaged("a frame of differences is too short");
        };
        let length = u32::from_le_bytes(*length) as usize;
        let raw_bytes = pages.saturating_mul(page_bytes);
        let Some((hashes, packed)) = rest.split_at_checked(pages.saturating_mul(HASH_BYTES)) else {
            return damaged("a frame of differences is too short");
        };
        if length > raw_bytes || raw_bytes as u64 > MAX_FRAME_BYTES {
            return damaged("a frame of differences is longer than its pages");
        }
        let mut columns = vec![0; length];
        match decompressor.decompress(packed, &mut columns) {
            Ok(Some(found)) if found == length => {}
            Ok(_) => return damaged("a frame of differences does not decompress to its length"),
            Err(error) => return Err(FormatError::Unknown(error)),
        }
        let parents = hashes.chunks_exact(HASH_BYTES).map(PageHash::read);
        match places(&columns, parents, page_bytes) {
            Some(pages) => Ok(Self { pages, columns }),
            None => damaged("a frame of differences does not add up"),
        }
    }

    /// How much memory it takes, about.
    pub fn bytes(&self) -> usize {
        self.columns.len() + self.pages.len() * size_of::<OfPage>()
    }

    /// What is stored of page number `number`: the hash of its parent's, and the words.
    pub fn words(&self, number: usize) -> Option<(PageHash, Words)> {
        let of_page = self.pages.get(number)?;
        let words = Words {
            gaps: self.columns[of_page.gaps.clone()].to_vec(),
            values: self.columns[of_page.values.clone()].to_vec(),
        };
        Some((of_page.parent, words))
    }

    /// Makes page number `number` of the frame out of its parent's bytes, in `page`.
    pub fn apply(&self, number: usize, page: &mut [u8]) -> Result<(), FormatError> {
        let Some(of_page) = self.pages.get(number) else {
            return damaged("a frame of differences has too few pages");
        };
        if PageHash::of(page) != of_page.parent {
            return damaged("the page that differences are to is not the parent's");
        }
        let mut gaps = &self.columns[of_page.gaps.clone()];
        let mut next = 0usize;
        for value in self.columns[of_page.values.clone()].chunks_exact(WORD_BYTES) {
            let at = varint::take(&mut gaps).and_then(|gap| next.checked_add(gap));
            let start = at.and_then(|at| at.checked_mul(WORD_BYTES));
            let word = start.and_then(|start| page.get_mut(start..start.checked_add(WORD_BYTES)?));
            let (Some(at), Some(word)) = (at, word) else {
                return damaged("a word that differs lies outside its page");
            };
            word.copy_from_slice(value);
            next = at + 1;
        }
        Ok(())
    }
}

/// Where in the columns what belongs to each page is. `None` if they do not add up.
fn places(
    columns: &[u8],
    parents: impl ExactSizeIterator<Item = PageHash>,
    page_bytes: usize,
) -> Option<Vec<OfPage>> {
    let mut rest = columns;
    let counts: Option<Vec<usize>> = (0..parents.len())
        .map(|_| varint::take(&mut rest).filter(|&count| count <= page_bytes / WORD_BYTES))
        .collect();
    let counts = counts?;
    let words: usize = counts.iter().sum();
    let mut pages = Vec::with_capacity(counts.len());
    let mut value_at = columns.len().checked_sub(words.checked_mul(WORD_BYTES)?)?;
    let values_at = value_at;
    for (count, parent) in counts.into_iter().zip(parents) {
        let from = columns.len() - rest.len();
        for _ in 0..count {
            varint::take(&mut rest)?;
        }
        let values = value_at..value_at + count * WORD_BYTES;
        value_at = values.end;
        let gaps = from..columns.len() - rest.len();
        pages.push(OfPage {
            parent,
            gaps,
            values,
        });
    }
    (columns.len() - rest.len() == values_at).then_some(pages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(pages: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let mut gathered = WordBatch::default();
        for (parent, page) in pages {
            let words = Words::between(parent, page).unwrap();
            gathered.push(PageHash::of(parent), &words);
        }
        let compress = |bytes: &[u8]| zstd::bulk::compress(bytes, 1);
        gathered.encode(compress).unwrap()
    }

    fn decode(stored: &[u8], pages: usize) -> Result<FrameOfWords, FormatError> {
        FrameOfWords::decode(stored, pages, 4096, &mut Wherever::default())
    }

    fn a_page(seed: u64) -> Vec<u8> {
        let words = (0..512).map(|word: u64| (word + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        words.flat_map(u64::to_le_bytes).collect()
    }

    #[test]
    fn more_than_one_word_in_eight_is_too_many() {
        let parent = a_page(1);
        let changed = |words: usize| {
            let mut page = parent.clone();
            page[..words * 8].iter_mut().for_each(|byte| *byte ^= 1);
            page
        };
        assert!(Words::between(&parent, &changed(64)).is_some());
        assert_eq!(Words::between(&parent, &changed(65)), None);
        assert_eq!(Words::between(&parent, &parent[..2048]), None);
    }

    #[test]
    fn a_page_that_is_not_the_parents_is_refused() {
        let parent = a_page(1);
        let mut page = parent.clone();
        page[9] ^= 1;
        let found = decode(&frame(&[(parent.clone(), page.clone())]), 1).unwrap();
        let mut other = a_page(2);
        assert!(found.apply(0, &mut other).is_err());
        assert!(found.apply(1, &mut parent.clone()).is_err());
        let mut right = parent;
        found.apply(0, &mut right).unwrap();
        assert_eq!(right, page);
    }

    /// Prevents that a made-up frame panics, or reaches outside a page.
    #[test]
    fn a_word_outside_its_page_is_refused() {
        let parent = a_page(1);
        for gaps in [vec![0x80, 4], vec![0xff; 4], vec![0x80, 0x80, 0x80, 0x7f]] {
            let mut gathered = WordBatch::default();
            let words = Words {
                gaps,
                values: vec![7; 8],
            };
            gathered.push(PageHash::of(&parent), &words);
            let stored = gathered
                .encode(|bytes| zstd::bulk::compress(bytes, 1))
                .unwrap();
            let applied = decode(&stored, 1).and_then(|found| found.apply(0, &mut parent.clone()));
            assert!(applied.is_err());
        }
    }

    proptest! {
        #[test]
        fn what_was_gathered_comes_back(
            changes in prop::collection::vec(prop::collection::vec((0_usize..512, 1_u64..), 0..64), 1..20)
        ) {
            let pages: Vec<_> = changes.iter().zip(0..).map(|(changes, seed)| {
                let parent = a_page(seed);
                let mut page = parent.clone();
                for &(word, value) in changes {
                    page[word * 8..][..8].copy_from_slice(&value.to_le_bytes());
                }
                (parent, page)
            }).collect();
            let found = decode(&frame(&pages), pages.len()).unwrap();
            for (number, (parent, page)) in pages.iter().enumerate() {
                let mut made = parent.clone();
                found.apply(number, &mut made).unwrap();
                prop_assert_eq!(&made, page);
            }
        }

        #[test]
        fn nothing_that_is_no_frame_panics(
            columns in prop::collection::vec(any::<u8>(), 0..400),
            pages in 0_usize..6,
            length in prop::option::of(any::<u32>()),
        ) {
            let mut stored = length.unwrap_or(columns.len() as u32).to_le_bytes().to_vec();
            let parent = vec![0; 4096];
            stored.extend(PageHash::of(&parent).0.repeat(pages));
            stored.extend(zstd::bulk::compress(&columns, 1).unwrap());
            if let Ok(found) = decode(&stored, pages) {
                for number in 0..pages {
                    let _ = found.apply(number, &mut parent.clone());
                }
            }
        }
    }
}
