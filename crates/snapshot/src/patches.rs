//! A frame of patches: each of its pages compressed by itself, with the parent's page as what zstd may refer to. For pages of
//! which too many words differ, and that are like their parent's all the same. `docs/FORMAT.md` has the bytes.

use crate::decompress::{Patched, Wherever};
use crate::format::{FormatError, MAX_FRAME_BYTES, damaged};
use crate::model::PageHash;
use crate::varint;
use std::io;
use std::ops::Range;
use zstd::zstd_safe::{CCtx, compress_bound};

/// A patch may be this part of its page at most, or it is not worth it.
const WORTH: usize = 4;
/// How many bytes of patches are in a frame, about.
const FRAME_BYTES: usize = 128 << 10;
const HASH_BYTES: usize = 16;
/// What begins so would be taken for a dictionary of zstd's, which has a structure.
const DICTIONARY: [u8; 4] = 0xEC30_A437_u32.to_le_bytes();

/// Makes patches.
pub struct Patcher {
    context: CCtx<'static>,
    level: i32,
    buffer: Vec<u8>,
}

impl Patcher {
    pub fn new(level: i32) -> io::Result<Self> {
        let context = CCtx::try_create().ok_or(io::ErrorKind::OutOfMemory)?;
        // Faster ones do not look at what is referred to.
        let level = level.max(1);
        Ok(Self {
            context,
            level,
            buffer: Vec::new(),
        })
    }

    /// What makes `page` of `parent`. `None` if that is not worth it.
    pub fn between(&mut self, parent: &[u8], page: &[u8]) -> Option<Vec<u8>> {
        if parent.len() != page.len() || parent.starts_with(&DICTIONARY) {
            return None;
        }
        self.buffer.clear();
        self.buffer.reserve(compress_bound(page.len()));
        let (context, level) = (&mut self.context, self.level);
        let packed = context.compress_using_dict(&mut self.buffer, page, parent, level);
        packed.ok()?;
        (self.buffer.len() <= page.len() / WORTH).then(|| self.buffer.clone())
    }
}

/// Pages of one size that wait for their frame of patches to be made.
#[derive(Default)]
pub struct PatchBatch {
    parents: Vec<PageHash>,
    lengths: Vec<u8>,
    packed: Vec<u8>,
}

impl PatchBatch {
    pub fn push(&mut self, parent: PageHash, patch: &[u8]) {
        self.parents.push(parent);
        varint::push(&mut self.lengths, patch.len());
        self.packed.extend_from_slice(patch);
    }

    /// Whether a frame should have no more, of pages of this size.
    pub fn is_full(&self, page_bytes: usize) -> bool {
        let pages = (MAX_FRAME_BYTES as usize / page_bytes).max(1);
        self.parents.len() >= pages || self.packed.len() >= FRAME_BYTES
    }

    /// The stored bytes.
    pub fn encode(&self) -> Vec<u8> {
        let hashes = self.parents.len() * HASH_BYTES;
        let length = hashes + self.lengths.len() + self.packed.len();
        let mut stored = Vec::with_capacity(length);
        for parent in &self.parents {
            stored.extend_from_slice(&parent.0);
        }
        stored.extend_from_slice(&self.lengths);
        stored.extend_from_slice(&self.packed);
        stored
    }
}

/// A frame that was read.
#[derive(Debug)]
pub struct Patches {
    parents: Vec<PageHash>,
    /// Where in the stored bytes the patches are.
    places: Vec<Range<usize>>,
    stored: Vec<u8>,
}

impl Patches {
    /// The patches of `pages` pages of `page_bytes` out of stored bytes whose checksum holds.
    pub fn decode(stored: &[u8], pages: usize, page_bytes: usize) -> Result<Self, FormatError> {
        if pages.saturating_mul(page_bytes) as u64 > MAX_FRAME_BYTES {
            return damaged("a frame of patches is longer than a frame can be");
        }
        let Some((hashes, rest)) = stored.split_at_checked(pages * HASH_BYTES) else {
            return damaged("a frame of patches is too short");
        };
        match places(stored.len(), rest, pages, page_bytes) {
            Some(places) => Ok(Self {
                parents: hashes
                    .chunks_exact(HASH_BYTES)
                    .map(PageHash::read)
                    .collect(),
                places,
                stored: stored.to_vec(),
            }),
            None => damaged("a frame of patches does not add up"),
        }
    }

    /// How much memory it takes, about.
    pub fn bytes(&self) -> usize {
        self.stored.len() + self.parents.len() * (HASH_BYTES + size_of::<Range<usize>>())
    }

    /// What is stored of page number `number`: the hash of its parent's, and the patch.
    pub fn patch(&self, number: usize) -> Option<(PageHash, &[u8])> {
        let place = self.places.get(number)?.clone();
        Some((*self.parents.get(number)?, &self.stored[place]))
    }

    /// Makes the pages of the frame from number `first` on out of their parents' bytes, in `pages`.
    pub fn apply(
        &self,
        first: usize,
        pages: &mut [u8],
        page_bytes: usize,
        decompressor: &mut Wherever,
    ) -> Result<(), FormatError> {
        let mut patched = Patched::new(page_bytes);
        for (page, number) in pages.chunks_exact(page_bytes).zip(first..) {
            let Some((parent, patch)) = self.patch(number) else {
                return damaged("a frame of patches has too few pages");
            };
            if PageHash::of(page) != parent || page.starts_with(&DICTIONARY) {
                return damaged("the page that a patch is to is not the parent's");
            }
            patched.push(page, patch);
        }
        match decompressor.patch(&patched, pages) {
            Ok(true) => Ok(()),
            Ok(false) => damaged("a patch does not make a page"),
            Err(error) => Err(FormatError::Unknown(error)),
        }
    }
}

/// Where the patches are in stored bytes of this length, of which `rest` is what follows the hashes.
fn places(
    length: usize,
    mut rest: &[u8],
    pages: usize,
    page_bytes: usize,
) -> Option<Vec<Range<usize>>> {
    let lengths: Option<Vec<usize>> = (0..pages)
        .map(|_| varint::take(&mut rest).filter(|&length| length <= page_bytes))
        .collect();
    let mut at = length - rest.len();
    let place = |length: usize| {
        let place = at..at + length;
        at = place.end;
        place
    };
    let places: Vec<Range<usize>> = lengths?.into_iter().map(place).collect();
    (at == length).then_some(places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn a_page(seed: u64) -> Vec<u8> {
        let words = (0..512).map(|word: u64| (word + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        words.flat_map(u64::to_le_bytes).collect()
    }

    /// Moved on by some bytes: every word differs.
    fn moved(page: &[u8], by: usize) -> Vec<u8> {
        [&vec![7; by], &page[..page.len() - by]].concat()
    }

    #[test]
    fn what_was_patched_comes_back() {
        let mut patcher = Patcher::new(1).unwrap();
        let mut gathered = PatchBatch::default();
        let pages: Vec<_> = (0..20)
            .map(|n| (a_page(n), moved(&a_page(n), 3 + n as usize)))
            .collect();
        for (parent, page) in &pages {
            let patch = patcher.between(parent, page).unwrap();
            assert!(patch.len() < 60, "{} bytes", patch.len());
            gathered.push(PageHash::of(parent), &patch);
        }
        let patches = Patches::decode(&gathered.encode(), 20, 4096).unwrap();
        let here = &mut Wherever::default();
        let mut made: Vec<u8> = pages[5..]
            .iter()
            .flat_map(|(parent, _)| parent.clone())
            .collect();
        patches.apply(5, &mut made, 4096, here).unwrap();
        let expected: Vec<u8> = pages[5..]
            .iter()
            .flat_map(|(_, page)| page.clone())
            .collect();
        assert!(made == expected);
        assert!(patches.apply(0, &mut a_page(77), 4096, here).is_err());
        assert!(patches.apply(20, &mut a_page(0), 4096, here).is_err());
    }

    #[test]
    fn noise_and_dictionaries_are_not_referred_to() {
        let mut patcher = Patcher::new(-5).unwrap();
        assert_eq!(patcher.between(&a_page(1), &a_page(1_000_000)), None);
        let mut parent = a_page(1);
        parent[..4].copy_from_slice(&DICTIONARY);
        assert_eq!(patcher.between(&parent, &moved(&parent, 9)), None);
    }

    proptest! {
        #[test]
        fn nothing_that_is_no_frame_panics(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            pages in 0_usize..6,
        ) {
            let parent = vec![0; 4096];
            let stored = [PageHash::of(&parent).0.repeat(pages), bytes].concat();
            if let Ok(patches) = Patches::decode(&stored, pages, 4096) {
                let mut all = parent.repeat(pages);
                let _ = patches.apply(0, &mut all, 4096, &mut Wherever::default());
            }
        }
    }
}
