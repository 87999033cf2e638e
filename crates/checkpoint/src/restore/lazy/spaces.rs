//! The address spaces that miss pages, those of forked children among them: what each misses, and putting it there.
//!
//! Whoever reads events or puts pages has this to itself (it is behind a lock). Then a page is put only where it belongs at
//! that moment: the kernel refuses while there is an event that was not read.

use super::missing::Missing;
use crate::capture::SIZE;
use pagetide_kernel::userfaultfd::missing::{MissingEvent, MissingPages, NotPut};
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};
use rustix::io::Errno;
use std::sync::Arc;

struct AddressSpace {
    number: u64,
    uffd: Arc<MissingPages>,
    /// The space of the snapshot that its pages come from.
    source: usize,
    missing: Missing,
    /// It was forked from this one, which had changes under way: it is not known yet which of them came first.
    unsettled: Option<u64>,
    /// All who had it have ended.
    is_gone: bool,
}

/// Somebody who waits for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// The address space.
    pub number: u64,
    /// The page.
    pub page: PageIndex,
}

/// What is put.
#[derive(Clone, Copy)]
pub(super) enum Content<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// That which nobody can touch.
    Poison,
}

/// What putting pages came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PutCount {
    /// Pages that were put.
    pub pages: PageCount,
    /// Something has to be read or to go on first; then it can be tried again.
    pub later: bool,
}

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Demand {
    /// A page of the snapshot, which is in this space of it.
    Page { source: usize, then: PageIndex },
    /// Nothing any more: it was woken, or is gone.
    Nothing,
    /// It cannot be said yet.
    Later,
}

/// See the head of this file.
#[derive(Default)]
pub(super) struct Spaces {
    list: Vec<AddressSpace>,
    last_number: u64,
    /// How many events were read.
    pub events: u64,
}

fn pages(bytes: u64) -> PageCount {
    PageCount(bytes / SIZE.bytes())
}

impl Spaces {
    pub fn add(&mut self, source: usize, uffd: MissingPages, wanted: &PageSet) {
        let mut missing = Missing::default();
        for &range in wanted.ranges() {
            missing.insert(range);
        }
        self.push(source, uffd, missing, None);
    }

    fn push(&mut self, source: usize, uffd: MissingPages, missing: Missing, of: Option<u64>) {
        self.last_number += 1;
        self.list.push(AddressSpace {
            number: self.last_number,
            uffd: Arc::new(uffd),
            source,
            missing,
            unsettled: of,
            is_gone: false,
        });
    }

    /// What to wait on for events.
    pub fn descriptors(&self) -> Vec<Arc<MissingPages>> {
        let descriptors = self.list.iter().map(|space| Arc::clone(&space.uffd));
        descriptors.collect()
    }

    /// Closes all.
    pub fn close(&mut self) {
        self.list.clear();
    }

    /// True if some address space misses a page of this range.
    pub fn needs(&self, source: usize, then: PageRange) -> bool {
        let mut spaces = self.list.iter().filter(|space| space.source == source);
        spaces.any(|space| !space.missing.places(then).is_empty())
    }

    /// The first page of this range that some address space misses.
    pub fn missed_in(&self, now: PageRange) -> Option<Waiting> {
        self.list.iter().find_map(|space| {
            let page = space.missing.first_in(now)?;
            let number = space.number;
            Some(Waiting { number, page })
        })
    }

    /// Reads all events and heeds them; whoever waits is added to `waiting`.
    pub fn heed(&mut self, waiting: &mut Vec<Waiting>) -> Result<(), Errno> {
        let mut at = 0;
        // Children come at the end.
        while at < self.list.len() {
            let mut events = Vec::new();
            self.list[at].uffd.read(&mut events)?;
            for event in events {
                self.heed_one(at, event, waiting);
            }
            self.settle(at);
            at += 1;
        }
        self.list.retain(|space| !space.is_gone);
        Ok(())
    }

    fn heed_one(&mut self, at: usize, event: MissingEvent, waiting: &mut Vec<Waiting>) {
        let space = &mut self.list[at];
        match event {
            MissingEvent::Touched { address } => {
                let (number, page) = (space.number, SIZE.index_of(address));
                waiting.push(Waiting { number, page });
                return;
            }
            MissingEvent::Forked { child } => {
                let (source, missing) = (space.source, space.missing.clone());
                let number = space.number;
                self.push(source, child, missing, Some(number));
            }
            MissingEvent::Moved { from, to, length } => {
                let range = PageRange::with_count(SIZE.index_of(from), pages(length));
                let to = SIZE.index_of(to);
                space.missing.move_pages(range, to);
                let number = space.number;
                // A child that has nothing there any more was forked after that.
                let children = self.list.iter_mut();
                for child in children.filter(|child| child.unsettled == Some(number)) {
                    if child.uffd.register(from, SIZE.bytes()).is_err() {
                        child.missing.move_pages(range, to);
                    }
                }
            }
            MissingEvent::Dropped { start, end } => {
                let range = PageRange::new(SIZE.index_of(start), SIZE.index_of(end));
                space.missing.remove(range);
            }
        }
        self.events += 1;
    }

    /// All changes of this one that had begun when its children were forked have been read, if it says so.
    fn settle(&mut self, at: usize) {
        let number = self.list[at].number;
        let has_children = |space: &AddressSpace| space.unsettled == Some(number);
        let space = &self.list[at];
        let is_quiet = space.is_gone || !space.uffd.is_changing();
        if is_quiet && self.list.iter().any(has_children) {
            for space in &mut self.list {
                if space.unsettled == Some(number) {
                    space.unsettled = None;
                }
            }
        }
    }

    /// What `waiting` waits for. Where nothing is missing it gets zeros.
    pub fn wanted(&mut self, waiting: Waiting) -> Demand {
        let Some(at) = self.index(waiting.number) else {
            return Demand::Nothing;
        };
        let space = &mut self.list[at];
        if space.unsettled.is_some() {
            return Demand::Later;
        }
        if let Some(then) = space.missing.at(waiting.page) {
            let source = space.source;
            return Demand::Page { source, then };
        }
        let address = SIZE.address_of(waiting.page);
        match space.uffd.zero(address, SIZE.bytes()).stopped {
            None => {}
            Some(NotPut::Changing) => return Demand::Later,
            Some(NotPut::SpaceGone) => space.is_gone = true,
            // There is something, or no place for it any more: it looks again.
            Some(_) => space.uffd.wake(address, SIZE.bytes()),
        }
        Demand::Nothing
    }

    /// It looks again, if it still waits.
    pub fn wake(&self, waiting: Waiting) {
        if let Some(at) = self.index(waiting.number) {
            let address = SIZE.address_of(waiting.page);
            self.list[at].uffd.wake(address, SIZE.bytes());
        }
    }

    fn index(&self, number: u64) -> Option<usize> {
        self.list.iter().position(|space| space.number == number)
    }

    /// Puts the pages `then` of a space of the snapshot wherever they are missing. An error of the kernel ends it.
    pub fn put(
        &mut self,
        source: usize,
        then: PageRange,
        what: Content<'_>,
    ) -> Result<PutCount, Errno> {
        let mut done = PutCount::default();
        for space in self.list.iter_mut().filter(|space| space.source == source) {
            for (now, from) in space.missing.places(then) {
                if space.unsettled.is_some() {
                    done.later = true;
                    break;
                }
                let what = match what {
                    Content::Bytes(bytes) => {
                        let skipped = SIZE.bytes_of(PageCount(from.0 - then.start().0)) as usize;
                        let length = SIZE.bytes_of(now.count()) as usize;
                        Content::Bytes(&bytes[skipped..skipped + length])
                    }
                    Content::Poison => Content::Poison,
                };
                let part = space.put(now, what)?;
                done.pages += part.pages;
                done.later |= part.later;
            }
        }
        Ok(done)
    }
}

impl AddressSpace {
    /// Puts pages, all of which are missing.
    fn put(&mut self, now: PageRange, what: Content<'_>) -> Result<PutCount, Errno> {
        let mut done = PutCount::default();
        let mut at = now.start();
        let mut one_by_one = false;
        while at < now.end() {
            let count = if one_by_one {
                PageCount(1)
            } else {
                PageCount(now.end().0 - at.0)
            };
            let (address, length) = (SIZE.address_of(at), SIZE.bytes_of(count));
            let put = match what {
                Content::Bytes(bytes) => {
                    let skipped = SIZE.bytes_of(PageCount(at.0 - now.start().0)) as usize;
                    let part = &bytes[skipped..skipped + length as usize];
                    self.uffd.copy(address, part)
                }
                Content::Poison => self.uffd.poison(address, length),
            };
            let part = PageRange::with_count(at, pages(put.done_bytes));
            self.missing.remove(part);
            done.pages += part.count();
            at = part.end();
            match put.stopped {
                None => {}
                // What stopped it halfway is told by the next try.
                Some(_) if !part.is_empty() => {}
                Some(NotPut::Changing) => {
                    done.later = true;
                    break;
                }
                Some(NotPut::Present) => {
                    self.missing.remove(PageRange::single(at));
                    self.uffd.wake(address, SIZE.bytes());
                    at = at.plus(PageCount(1));
                }
                // It may reach over the end of a mapping.
                Some(NotPut::NotThere) if count > PageCount(1) => one_by_one = true,
                // The mapping may have moved just now, which will be told.
                Some(NotPut::NotThere) if self.uffd.is_changing() => {
                    done.later = true;
                    break;
                }
                // It is gone, as in a child that did not get it.
                Some(NotPut::NotThere) => {
                    self.missing.remove(PageRange::single(at));
                    at = at.plus(PageCount(1));
                }
                Some(NotPut::SpaceGone) => {
                    self.missing = Missing::default();
                    self.is_gone = true;
                    break;
                }
                Some(NotPut::Kernel(errno)) => return Err(errno),
            }
        }
        Ok(done)
    }
}
