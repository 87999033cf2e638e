//! What a chain of snapshots should be, as maps from page to content: the slow and plain version of
//! what the crate does. Used by `chain`.

use crate::common::*;
use pagetide_pages::{PageIndex, PageRange, PageSet};
use pagetide_snapshot::*;
use std::collections::BTreeMap;

pub const PAGES: u64 = 24;
pub const NAMES: [&str; 3] = ["mem", "arena", "shm:1:1"];
pub const SIZES: [u64; 3] = [512, 1024, 512];
/// The space with regions that show another, and the one they show.
pub const MEM: usize = 0;
pub const SHM: usize = 2;

/// What is captured, and of `mem` what shows `shm:1:1` and what is backed by a file.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// For each space a bit for each page that is in a captured region.
    pub captured: [u32; 3],
    pub shows: u32,
    pub of_file: u32,
    /// How far on in the object the regions are.
    pub offset: u64,
}

impl Layout {
    fn bit(mask: u32, page: u64) -> bool {
        page < PAGES && mask >> page & 1 == 1
    }

    pub fn is_captured(&self, space: usize, page: u64) -> bool {
        Self::bit(self.captured[space], page)
    }

    /// Captured, shows, of a file.
    fn kind(&self, space: usize, page: u64) -> (bool, bool, bool) {
        let in_mem = |mask| space == MEM && Self::bit(mask, page);
        (
            self.is_captured(space, page),
            in_mem(self.shows),
            in_mem(self.of_file),
        )
    }

    /// The page of the object that a page of `mem` shows, if its region shows any. Regions end where
    /// their kind does, and every eight pages; those of one object overlap in it.
    fn target(&self, page: u64) -> Option<u64> {
        let kind = self.kind(MEM, page);
        let start = (page / 8 * 8..=page).rev();
        let start = start.take_while(|&p| self.kind(MEM, p) == kind).last()?;
        kind.1.then_some(self.offset + start / 2 + (page - start))
    }

    pub fn spaces(&self) -> Vec<Space> {
        let regions = |space: usize| {
            let mut regions: Vec<Region> = Vec::new();
            for page in 0..PAGES + 2 {
                let (captured, shows, is_of_file) = self.kind(space, page);
                let continues =
                    page % 8 != 0 && self.kind(space, page - 1) == self.kind(space, page);
                if let Some(last) = regions.last_mut().filter(|_| continues) {
                    last.pages = PageRange::new(last.pages.start(), PageIndex(page + 1));
                    continue;
                }
                let mut new = if captured {
                    region(page, page + 1)
                } else {
                    not_captured(page, page + 1)
                };
                if is_of_file {
                    new = of_file(new);
                }
                if shows {
                    new = showing(new, NAMES[SHM], self.offset + page / 2);
                }
                regions.push(new);
            }
            regions
        };
        let space = |n: usize| Space::new(NAMES[n], size(SIZES[n]), regions(n));
        vec![space(0), space(1), space(2)]
    }
}

/// What was put, or is held from the parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Own {
    Is(Content),
    Shown,
}

pub type Puts = [BTreeMap<u64, Own>; 3];

/// A snapshot.
#[derive(Clone, Debug)]
pub struct Model {
    pub own: Puts,
    pub layout: Layout,
}

/// What keeps a snapshot from being made.
#[derive(Debug, PartialEq, Eq)]
pub enum Wrong {
    /// A page is in a state that its region cannot have.
    Misfit(usize, u64),
    /// Nothing is recorded for a page, or for the page it shows.
    Missing(usize, u64),
}

impl Model {
    /// The snapshot with this layout, parent, and own pages.
    pub fn new(layout: Layout, parent: Option<&Self>, puts: &Puts) -> Self {
        let mut own = Puts::default();
        for (space, own) in own.iter_mut().enumerate() {
            let held = parent.map(|parent| &parent.own[space]);
            for (&page, what) in held.into_iter().flatten() {
                if layout.admits(space, page, what) {
                    own.insert(page, what.clone());
                }
            }
            own.extend(puts[space].clone());
            own.retain(|&page, _| layout.is_captured(space, page));
        }
        Self { own, layout }
    }

    pub fn wrong(&self) -> Vec<Wrong> {
        let mut wrong = Vec::new();
        for (space, own) in self.own.iter().enumerate() {
            for page in (0..PAGES).filter(|&p| self.layout.is_captured(space, p)) {
                match own.get(&page) {
                    None => wrong.push(Wrong::Missing(space, page)),
                    Some(what) if !self.layout.admits(space, page, what) => {
                        wrong.push(Wrong::Misfit(space, page));
                    }
                    Some(Own::Shown) => {
                        let target = self.layout.target(page);
                        if !target.is_some_and(|t| self.layout.is_captured(SHM, t)) {
                            wrong.push(Wrong::Missing(space, page));
                        }
                    }
                    Some(Own::Is(_)) => {}
                }
            }
        }
        wrong
    }

    /// What a page is, wherever it comes from.
    pub fn at(&self, space: usize, page: u64) -> Option<&Content> {
        match self.own[space].get(&page)? {
            Own::Is(content) => Some(content),
            Own::Shown => self.at(SHM, self.layout.target(page)?),
        }
    }

    pub fn contents(&self, space: usize) -> BTreeMap<u64, Content> {
        let own = self.own[space].keys();
        own.filter_map(|&page| Some((page, self.at(space, page)?.clone())))
            .collect()
    }

    /// The pages of a space that differ.
    pub fn changed(&self, other: &Self, space: usize) -> PageSet {
        let differ = |&page: &u64| {
            let own = [self, other].map(|model| model.own[space].get(&page));
            let both_shown = own == [Some(&Own::Shown); 2];
            if both_shown && self.layout.target(page) == other.layout.target(page) {
                return false;
            }
            let key = |model: &Self| {
                model
                    .at(space, page)
                    .map(|content| key(content, SIZES[space]))
            };
            key(self) != key(other)
        };
        let pages = (0..PAGES + 8).filter(differ);
        pages.map(|n| PageRange::single(PageIndex(n))).collect()
    }
}

impl Layout {
    fn admits(&self, space: usize, page: u64, what: &Own) -> bool {
        let (captured, shows, is_of_file) = self.kind(space, page);
        captured
            && match what {
                Own::Shown => shows,
                Own::Is(Content::File(_)) => is_of_file,
                Own::Is(_) => true,
            }
    }
}

/// What a page is to a reader, or the hash of its bytes.
#[derive(PartialEq, Eq)]
enum Key {
    Hash(PageHash),
    Guard,
    Unbacked,
}

fn key(content: &Content, bytes: u64) -> Key {
    match content {
        Content::Bytes(bytes) => Key::Hash(PageHash::of(bytes)),
        Content::Zero => Key::Hash(hash(0, bytes as usize)),
        Content::File(hash) => Key::Hash(*hash),
        Content::Guard => Key::Guard,
        Content::Unbacked => Key::Unbacked,
    }
}
