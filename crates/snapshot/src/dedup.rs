//! Which bytes are stored already in the snapshot that is being made, by their hash. It takes some
//! 30 to 60 bytes of memory for each stored page: hash, number, and the slack of a hash table.

use crate::ingest::Finding;
use crate::model::PageHash;
use std::collections::{HashMap, HashSet};

/// Where the bytes of a page are.
#[derive(Clone, Copy)]
pub enum ContentPlace {
    /// In the stored page of this number.
    Stored(u64),
    /// In the page at this position of those that wait for their frame to fill.
    Waiting(usize),
}

/// The pages stored so far, apart by page size.
#[derive(Default)]
pub struct Known {
    sizes: HashMap<usize, Places>,
}

#[derive(Default)]
struct Places {
    stored: HashMap<PageHash, u64>,
    waiting: HashMap<PageHash, usize>,
}

impl Known {
    /// Turns `Data` into `Same` where the bytes are known, or come earlier in `findings`.
    pub fn thin(&self, page_bytes: usize, findings: &mut [Finding]) {
        let places = self.sizes.get(&page_bytes);
        let known = |hash: &PageHash| {
            places.is_some_and(|p| p.stored.contains_key(hash) || p.waiting.contains_key(hash))
        };
        let mut earlier = HashSet::new();
        for finding in findings {
            if let Finding::Data(hash) = *finding
                && (known(&hash) || !earlier.insert(hash))
            {
                *finding = Finding::Same(hash);
            }
        }
    }

    /// Where a page with this hash is.
    pub fn place(&self, page_bytes: usize, hash: PageHash) -> Option<ContentPlace> {
        let places = self.sizes.get(&page_bytes)?;
        let waiting = places
            .waiting
            .get(&hash)
            .map(|&at| ContentPlace::Waiting(at));
        waiting.or_else(|| places.stored.get(&hash).map(|&at| ContentPlace::Stored(at)))
    }

    /// The page of this hash is the stored page `ordinal`, and waits no longer.
    pub fn stored(&mut self, page_bytes: usize, hash: PageHash, ordinal: u64) {
        let places = self.sizes.entry(page_bytes).or_default();
        places.waiting.remove(&hash);
        places.stored.entry(hash).or_insert(ordinal);
    }

    /// The page of this hash waits, at this position.
    pub fn waits(&mut self, page_bytes: usize, hash: PageHash, position: usize) {
        let places = self.sizes.entry(page_bytes).or_default();
        places.waiting.entry(hash).or_insert(position);
    }
}
