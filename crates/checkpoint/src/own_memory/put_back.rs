//! Putting own memory back to a snapshot, on all cores. What is to be written is gathered first, so that a snapshot that cannot
//! be read leaves memory alone; if it is more than the buffer holds, it is written as it comes, and an error says what is
//! missing.

use super::error::OwnMemoryError;
use super::ground::{Ground, Kind};
use super::placement::Places;
use super::shown_twice;
use crate::capture::SIZE;
use crate::page_tables::PageTables;
use pagetide_kernel::memory::ProcessMemory;
use pagetide_kernel::pagemap_scan::Categories;
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};
use pagetide_snapshot::{PageContent, View};
use std::sync::{Mutex, PoisonError};

/// Of ranges as long as this it is asked which pages hold anything, before they are read.
const ASK_FROM: PageCount = PageCount(16);

/// Pages that are compared at once.
const AT_ONCE: PageCount = PageCount(64);

/// What is put back where.
pub(super) struct PutBack<'a> {
    pub view: &'a View,
    /// The position of the space in it.
    pub space: usize,
    pub places: &'a Places,
    pub ground: &'a Ground,
    pub memory: &'a ProcessMemory,
    pub tables: PageTables<'a>,
    /// Pages that hold zeros, by address. They are not read.
    pub empty: &'a PageSet,
    /// The pages that may differ, by address, if that is known.
    pub only: Option<&'a PageSet>,
    /// How many bytes are gathered before they are written.
    pub buffer_bytes: u64,
}

/// How far it is.
#[derive(Default)]
struct State {
    /// What is to be written: first pages, and bytes.
    gathered: Vec<(PageIndex, Vec<u8>)>,
    gathered_bytes: u64,
    /// What has been found to be right, or was written.
    right: PageSet,
    written: PageCount,
}

/// Pages that differ, and what they are to hold.
type Differing<'a> = Vec<(PageIndex, &'a [u8])>;

impl PutBack<'_> {
    /// Writes the pages that differ and returns how many these were. What cannot be put back as a whole is refused
    /// before anything is written.
    pub fn run(&self) -> Result<PageCount, OwnMemoryError> {
        check_whole(self.view, self.space, self.places)?;
        shown_twice::refuse(self.view, self.space, self.places, self.ground)?;
        let is_shared = |kind| matches!(kind, Kind::Shared | Kind::SharedAlone);
        // Private mappings come last: where they have no copy of a page they show what is put into the shared ones.
        let phases = [
            self.wanted(&self.ground.pages(is_shared)),
            self.wanted(&self.ground.pages(|kind| !is_shared(kind))),
        ];
        let state = Mutex::new(State::default());
        for phase in &phases {
            if let Err(source) = self.phase(phase, &state) {
                let state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
                return Err(match state.written {
                    PageCount(0) => source,
                    _ => OwnMemoryError::PutBackInPart {
                        not_put_back: phases[0].union(&phases[1]).subtract(&state.right),
                        source: Box::new(source),
                    },
                });
            }
        }
        let state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(state.written)
    }

    /// Those of `pages` that may differ.
    fn wanted(&self, pages: &PageSet) -> PageSet {
        match self.only {
            Some(only) => only.intersect(pages),
            None => pages.clone(),
        }
    }

    /// Puts back `pages`, by address.
    fn phase(&self, pages: &PageSet, state: &Mutex<State>) -> Result<(), OwnMemoryError> {
        let parts = pages.ranges().iter();
        let mut parts: Vec<(PageRange, PageRange)> = parts
            .flat_map(|&range| self.places.in_space(range))
            .collect();
        parts.sort_unstable_by_key(|(_, in_space)| *in_space);
        let in_space: Vec<PageRange> = parts.iter().map(|(_, in_space)| *in_space).collect();
        let private = self.ground.pages(|kind| kind == Kind::Private);
        self.view
            .read_ranges_parallel(self.space, &in_space, 0, |pages, content| {
                let after = parts.partition_point(|(_, part)| part.start() <= pages.start());
                let (mapped, part) = parts[after.saturating_sub(1)];
                let offset = PageCount(pages.start().0 - part.start().0);
                let mapped = PageRange::with_count(mapped.start().plus(offset), pages.count());
                self.put(mapped, content, &private, state)
            })?;
        self.write_gathered(state)
    }

    /// One range, by address.
    fn put(
        &self,
        mapped: PageRange,
        content: PageContent<'_>,
        private: &PageSet,
        state: &Mutex<State>,
    ) -> Result<(), OwnMemoryError> {
        let zeros = vec![0; SIZE.bytes_of(AT_ONCE) as usize];
        let mut at = 0;
        for part in mapped.pieces(AT_ONCE) {
            let length = SIZE.bytes_of(part.count()) as usize;
            // A range of zeros may be far longer than memory.
            let bytes = match content {
                PageContent::Bytes(bytes) => &bytes[at..at + length],
                PageContent::Zero => &zeros[..length],
                PageContent::Guard | PageContent::Unbacked | PageContent::File(_) => break,
            };
            at += length;
            let is_zero = content == PageContent::Zero;
            let differing = self.differing(part, bytes, is_zero, private)?;
            self.gather(part, &differing, state)?;
        }
        Ok(())
    }

    /// The pages of `part` that do not hold `bytes`.
    fn differing<'a>(
        &self,
        part: PageRange,
        bytes: &'a [u8],
        is_zero: bool,
        private: &PageSet,
    ) -> Result<Differing<'a>, OwnMemoryError> {
        let all = PageSet::from(part);
        let mut holding = all.subtract(self.empty);
        if part.count() >= ASK_FROM {
            let held = Categories::PRESENT | Categories::SWAPPED;
            let own = holding.intersect(private);
            let held = self.tables.having(&own, held)?;
            holding = holding.subtract(&own).union(&held.intersect(&own));
        }
        let of = |page: PageIndex| {
            let at = (page.0 - part.start().0) as usize * SIZE.len();
            &bytes[at..at + SIZE.len()]
        };
        let mut differing = Vec::new();
        if !is_zero {
            // Fresh memory: it is zero, and so is not read.
            let fresh = all.subtract(&holding);
            let fresh = fresh.ranges().iter().flat_map(|range| range.pages());
            let holds = |page: &PageIndex| of(*page).iter().any(|&byte| byte != 0);
            differing.extend(fresh.filter(holds).map(|page| (page, of(page))));
        }
        let mut now = vec![0; SIZE.bytes_of(part.count()) as usize];
        for &range in holding.ranges() {
            let now = &mut now[..SIZE.bytes_of(range.count()) as usize];
            self.memory.read(SIZE.address_of(range.start()), now)?;
            let pairs = range.pages().zip(now.chunks_exact(SIZE.len()));
            let changed = pairs.filter(|&(page, now)| of(page) != now);
            differing.extend(changed.map(|(page, _)| (page, of(page))));
        }
        Ok(differing)
    }

    /// Gathers what differs in `part`, or writes it if too much is gathered.
    fn gather(
        &self,
        part: PageRange,
        differing: &Differing<'_>,
        state: &Mutex<State>,
    ) -> Result<(), OwnMemoryError> {
        let mut locked = state.lock().unwrap_or_else(PoisonError::into_inner);
        let differ: PageSet = differing
            .iter()
            .map(|(page, _)| PageRange::single(*page))
            .collect();
        let same = PageSet::from(part).subtract(&differ);
        locked.right.extend(same.ranges().iter().copied());
        let before = locked.gathered.len();
        let mut end = None;
        for (page, bytes) in differing {
            match locked.gathered[before..].last_mut() {
                Some((_, run)) if end == Some(*page) => run.extend_from_slice(bytes),
                _ => locked.gathered.push((*page, bytes.to_vec())),
            }
            end = Some(page.plus(PageCount(1)));
            locked.gathered_bytes += bytes.len() as u64;
        }
        let is_full = locked.gathered_bytes > self.buffer_bytes;
        drop(locked);
        if is_full {
            self.write_gathered(state)
        } else {
            Ok(())
        }
    }

    fn write_gathered(&self, state: &Mutex<State>) -> Result<(), OwnMemoryError> {
        let mut locked = state.lock().unwrap_or_else(PoisonError::into_inner);
        let gathered = std::mem::take(&mut locked.gathered);
        // Once it was too much, all is written as it comes.
        drop(locked);
        for (page, bytes) in gathered {
            let pages = PageRange::with_count(page, PageCount((bytes.len() / SIZE.len()) as u64));
            // Whatever comes of it, memory may not be what it was.
            let written = self.memory.fill(SIZE.address_of(page), &bytes);
            let mut locked = state.lock().unwrap_or_else(PoisonError::into_inner);
            locked.written += pages.count();
            written?;
            locked.right.insert(pages);
        }
        Ok(())
    }
}

/// The snapshot must say of each page what it was.
pub(super) fn check_whole(
    view: &View,
    space: usize,
    places: &Places,
) -> Result<(), OwnMemoryError> {
    for placement in places.list() {
        let told = view
            .runs(space, placement.in_space())
            .map(|(pages, _)| pages);
        let told: PageSet = told.collect();
        let missing = PageSet::from_iter([placement.in_space()]).subtract(&told);
        if let Some(first) = missing.ranges().first() {
            let offset = PageCount(first.start().0 - placement.first_page().0);
            return Err(OwnMemoryError::NotInSnapshot {
                id: view.id(),
                count: missing.count().0,
                address: SIZE.address_of(placement.mapped().start().plus(offset)),
            });
        }
    }
    Ok(())
}
