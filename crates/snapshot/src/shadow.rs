//! The pages written lately, with their bytes, for whoever writes snapshot after snapshot: so that of a page that is written
//! again only what has changed is stored. Memory is bounded, and what is not here is stored whole.
//!
//! What was written in the snapshot before, or in this one, is not displaced: of pages that are written over and over, more
//! than fit, those that are here stay, and are of use each time.
//!
//! A page is known by its space and number, and used only if its hash is that of the parent's page: what is here may be of a
//! snapshot that never came to be, or of another store.

use crate::model::PageHash;
use pagetide_pages::PageIndex;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use xxhash_rust::xxh3::xxh3_64;

/// What is needed for a page besides its bytes, about: its place in two tables, with their slack.
const OVERHEAD_BYTES: u64 = 192;
/// Where comparing does not pay, of so many pages one is kept to find out when it does.
const SAMPLE: u64 = 16;
/// So many of the pages that are held are looked at for one that may go.
const LOOKED_AT: usize = 32;
/// So many pages at least tell whether it pays.
const TOLD_BY: u64 = 256;
/// It does if of so many one is stored as differences; of those that have more than a few changes it has to be more.
const WORTH_KEEPING_ONE_IN: u64 = 8;
const WORTH_PATCHING_ONE_IN: u64 = 2;

/// Pages written lately, see [`WriteOptions::shadow`](crate::WriteOptions::shadow). Clones are the same shadow.
#[derive(Clone)]
pub struct Shadow {
    state: Arc<Mutex<State>>,
}

/// A page that is held.
#[derive(Clone)]
pub(crate) struct Held {
    pub hash: PageHash,
    pub bytes: Arc<[u8]>,
}

/// A space and a page of it.
type Key = (u64, u64);

struct State {
    limit: u64,
    bytes: u64,
    places: HashMap<Key, usize>,
    slots: Vec<Slot>,
    /// The next that may have to go.
    hand: usize,
    /// Counts the snapshots.
    turn: u64,
    /// A page found no room in this turn.
    is_crowded: bool,
    /// Whether it pays to keep pages.
    keeping: Pays,
    /// Whether it pays to compress what has more than a few changes with reference to what is held.
    patching: Pays,
}

/// Whether something pays, told by the last pages that it was done with.
struct Pays {
    pays: bool,
    done: u64,
    worth: u64,
    /// Of so many one must be worth it.
    one_in: u64,
}

impl Pays {
    fn new(one_in: u64) -> Self {
        Self {
            pays: true,
            done: 0,
            worth: 0,
            one_in,
        }
    }

    fn note(&mut self, done: u64, worth: u64) {
        self.done += done;
        self.worth += worth;
        if self.done >= TOLD_BY {
            self.pays = self.worth * self.one_in >= self.done;
            (self.done, self.worth) = (0, 0);
        }
    }
}

struct Slot {
    key: Key,
    held: Held,
    /// In which turn it was written last; 0 if that says nothing.
    written: u64,
}

impl Shadow {
    /// One that takes no more memory than `limit_bytes`. With 0 it holds nothing.
    pub fn new(limit_bytes: u64) -> Self {
        let state = State {
            limit: limit_bytes,
            bytes: 0,
            places: HashMap::new(),
            slots: Vec::new(),
            hand: 0,
            turn: 1,
            is_crowded: false,
            keeping: Pays::new(WORTH_KEEPING_ONE_IN),
            patching: Pays::new(WORTH_PATCHING_ONE_IN),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// From the next page on it takes no more than this.
    pub fn set_limit(&self, limit_bytes: u64) {
        let mut state = self.state();
        state.limit = limit_bytes;
        state.shrink();
    }

    /// A snapshot begins.
    pub(crate) fn begin_turn(&self) {
        let mut state = self.state();
        state.turn += 1;
        state.is_crowded = false;
    }

    /// How much memory it takes.
    pub fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// What is held of `pages` of the space of this name. Where keeping pages does not pay, of a sample of them.
    pub(crate) fn get(
        &self,
        space: &str,
        pages: impl Iterator<Item = PageIndex>,
    ) -> Vec<Option<Held>> {
        let space = xxh3_64(space.as_bytes());
        let state = self.state();
        let held = |page: PageIndex| {
            if !(state.keeping.pays || page.0.is_multiple_of(SAMPLE)) {
                return None;
            }
            let slot = *state.places.get(&(space, page.0))?;
            Some(state.slots[slot].held.clone())
        };
        pages.map(held).collect()
    }

    /// Whether pages are to be kept: a test for each of them, which is told whether the page is held. Those of a full snapshot
    /// only as long as there is room, since that they were written says nothing of them.
    pub(crate) fn wanted(
        &self,
        page_bytes: usize,
        is_delta: bool,
    ) -> impl Fn(PageIndex, bool) -> bool + use<> {
        let state = self.state();
        let taken = if is_delta { 0 } else { state.bytes };
        let has_room = taken + cost(page_bytes) <= state.limit;
        let (pays, is_crowded) = (state.keeping.pays, state.is_crowded);
        move |page, is_held| {
            let is_likely = pays && (is_held || !is_crowded);
            has_room && (is_likely || page.0.is_multiple_of(SAMPLE))
        }
    }

    /// Keeps pages of the space of this name, in place of what is held of them, if there is room.
    pub(crate) fn put(&self, space: &str, pages: Vec<(PageIndex, Held)>, is_delta: bool) {
        let space = xxh3_64(space.as_bytes());
        let mut state = self.state();
        let written = if is_delta { state.turn } else { 0 };
        for (page, held) in pages {
            state.put((space, page.0), held, written);
        }
    }

    /// Whether pages that have more than a few changes are to be compressed with reference to what is held: a test for each.
    pub(crate) fn patched(&self) -> impl Fn(PageIndex) -> bool + use<> {
        let pays = self.state().patching.pays;
        // It costs more than to keep and compare a page.
        move |page| pays || page.0.is_multiple_of(SAMPLE * SAMPLE)
    }

    /// Notes that so many pages were compared, of which some were stored as differences; and the same of those of them that
    /// had more than a few changes.
    pub(crate) fn compared(&self, pages: u64, worth: u64, patches: (u64, u64)) {
        if pages > 0 {
            let mut state = self.state();
            state.keeping.note(pages, worth);
            state.patching.note(patches.0, patches.1);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cost(page_bytes: usize) -> u64 {
    page_bytes as u64 + OVERHEAD_BYTES
}

impl State {
    fn put(&mut self, key: Key, held: Held, written: u64) {
        if let Some(&slot) = self.places.get(&key) {
            let slot = &mut self.slots[slot];
            if slot.held.bytes.len() == held.bytes.len() {
                slot.held = held;
                slot.written = written;
                return;
            }
            self.remove(key);
        }
        let needed = cost(held.bytes.len());
        if !self.has_made_room(needed) {
            self.is_crowded = true;
            return;
        }
        self.bytes += needed;
        self.places.insert(key, self.slots.len());
        self.slots.push(Slot { key, held, written });
    }

    /// Lets go of pages that were not written lately, until so much more fits. False if none of those looked at may go.
    fn has_made_room(&mut self, needed: u64) -> bool {
        let mut looked_at = 0;
        while self.bytes + needed > self.limit {
            if looked_at == LOOKED_AT || self.slots.is_empty() {
                return false;
            }
            looked_at += 1;
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &self.slots[self.hand];
            if slot.written + 1 < self.turn {
                self.remove(slot.key);
                looked_at = 0;
            }
        }
        true
    }

    /// Lets go of any pages, until the limit holds.
    fn shrink(&mut self) {
        while self.bytes > self.limit
            && let Some(slot) = self.slots.last()
        {
            self.remove(slot.key);
        }
    }

    fn remove(&mut self, key: Key) {
        let Some(at) = self.places.remove(&key) else {
            return;
        };
        let gone = self.slots.swap_remove(at);
        self.bytes -= cost(gone.held.bytes.len());
        if let Some(moved) = self.slots.get(at) {
            self.places.insert(moved.key, at);
        }
    }
}

impl PartialEq for Shadow {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }
}

impl Eq for Shadow {}

impl fmt::Debug for Shadow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Shadow")
            .field("limit", &state.limit)
            .field("bytes", &state.bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(seed: u8, bytes: usize) -> Held {
        let bytes = vec![seed; bytes];
        Held {
            hash: PageHash::of(&bytes),
            bytes: bytes.into(),
        }
    }

    fn put(shadow: &Shadow, page: u64, seed: u8) {
        shadow.put("mem", vec![(PageIndex(page), held(seed, 4096))], true);
    }

    fn seed_of(shadow: &Shadow, page: u64) -> Option<u8> {
        let found = shadow.get("mem", std::iter::once(PageIndex(page)));
        found[0].as_ref().map(|held| held.bytes[0])
    }

    #[test]
    fn it_never_takes_more_than_its_limit() {
        let limit = 10 * cost(4096) + 1;
        let shadow = Shadow::new(limit);
        for number in 0..1000 {
            put(&shadow, number * 7 % 40, number as u8);
            assert!(shadow.bytes() <= limit);
        }
        assert_eq!(shadow.bytes(), 10 * cost(4096));
        shadow.set_limit(3 * cost(4096));
        assert_eq!(shadow.bytes(), 3 * cost(4096));
        let found = (0..40).filter(|&page| seed_of(&shadow, page).is_some());
        assert_eq!(found.count(), 3);
        shadow.set_limit(0);
        put(&shadow, 1, 1);
        assert_eq!((shadow.bytes(), seed_of(&shadow, 1)), (0, None));
    }

    #[test]
    fn what_is_written_again_stays_and_is_what_was_written_last() {
        let shadow = Shadow::new(4 * cost(4096));
        for number in 0..100 {
            shadow.begin_turn();
            put(&shadow, 1000, number);
            put(&shadow, u64::from(number), number);
        }
        assert_eq!(seed_of(&shadow, 1000), Some(99));
        assert_eq!(seed_of(&shadow, 99), Some(99));
        assert_eq!(seed_of(&shadow, 0), None);
        shadow.put("mem", vec![(PageIndex(1000), held(7, 512))], true);
        assert_eq!(seed_of(&shadow, 1000), Some(7));
        assert_eq!(
            shadow.get("other", std::iter::once(PageIndex(1000))).len(),
            1
        );
        assert!(shadow.get("other", std::iter::once(PageIndex(1000)))[0].is_none());
    }

    /// Prevents that of pages which are written in turn, more than fit, none is ever here when it is written again.
    #[test]
    fn of_more_pages_than_fit_some_stay() {
        let shadow = Shadow::new(100 * cost(4096));
        for turn in 0..5 {
            shadow.begin_turn();
            let here = (0..300).filter(|&page| {
                let here = seed_of(&shadow, page).is_some();
                put(&shadow, page, turn);
                here
            });
            let here = here.count();
            assert!(turn == 0 || here == 100, "{here} in turn {turn}");
        }
        // Others come in their place when these are no longer written.
        for turn in 0..5 {
            shadow.begin_turn();
            (1000..1300).for_each(|page| put(&shadow, page, turn));
        }
        let others = (1000..1300).filter(|&page| seed_of(&shadow, page).is_some());
        assert_eq!(others.count(), 100);
    }

    /// Prevents that pages which are all new cost a copy and a comparison each.
    #[test]
    fn where_it_does_not_pay_a_sample_is_kept() {
        let shadow = Shadow::new(1 << 20);
        let wanted = |shadow: &Shadow| {
            let wanted = shadow.wanted(4096, true);
            (0..160)
                .filter(|&page| wanted(PageIndex(page), true))
                .count()
        };
        assert_eq!(wanted(&shadow), 160);
        shadow.compared(TOLD_BY, TOLD_BY / WORTH_KEEPING_ONE_IN - 1, (0, 0));
        assert_eq!(wanted(&shadow), 10);
        shadow.compared(TOLD_BY - 1, TOLD_BY - 1, (0, 0));
        assert_eq!(wanted(&shadow), 10);
        shadow.compared(1, 1, (0, 0));
        assert_eq!(wanted(&shadow), 160);
    }
}
