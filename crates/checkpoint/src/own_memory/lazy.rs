//! Memory that comes when it is touched, and is tracked from the first instruction: fresh memory is registered for missing
//! pages and for write protection at the same time, and each page is put there protected. A thread puts those that are
//! touched, and between them the others, what the last delta wrote first.
//!
//! Pages of the snapshot that are zeros are left missing; the thread puts zeros when they are touched, and where memory was
//! dropped (MADV_DONTNEED). It runs as long as its owner.
//!
//! To drop a page that has not come leaves its mark, so it reads not written. The thread hears of it and tells of it, as an
//! embedder would; before anything is harvested it is waited for until it has caught up with what was dropped by then.

use super::error::OwnMemoryError;
use super::marks::WrittenPages;
use super::placement::Places;
use super::watched::Watched;
use crate::capture::SIZE;
use nix::sys::signal::{SigSet, SigmaskHow};
use pagetide_kernel::own_descriptors::{Withheld, withhold, without_forks};
use pagetide_kernel::pagemap_scan::{Categories, Pagemap, ScanFlags, ScanRequest, ScannedRange};
use pagetide_kernel::userfaultfd::missing::{MissingEvent, MissingPages, NotPut};
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};
use pagetide_snapshot::{PageContent, PageState, ReadError, View};
use pagetide_tracker::{TrackError, WpAsync};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Pages that are put at once when nobody waits, and around one that is touched: a frame of the store.
const AT_ONCE: PageCount = PageCount(32);

/// How far memory has come that is put there lazily ([`OwnMemory::populate_lazily`](crate::OwnMemory::populate_lazily)). Dropping
/// it changes nothing.
#[derive(Clone)]
pub struct Population {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    is_over: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Pages that are still to come, by address.
    left: PageSet,
    /// The first thing that went wrong.
    failed: Option<String>,
    /// How often the thread was waited for, and up to which of these it has heeded all.
    asked: u64,
    answered: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Population {
    /// How many pages are still to come.
    pub fn left(&self) -> PageCount {
        self.shared.lock().left.count()
    }

    /// Waits until all is there.
    ///
    /// # Errors
    /// [`OwnMemoryError::NotPopulated`] if some of it could not be read, or not be put there. Whoever touches such a page gets
    /// SIGBUS.
    pub fn wait(&self) -> Result<(), OwnMemoryError> {
        let mut state = self.shared.lock();
        while !state.left.is_empty() && !self.shared.is_over.load(Ordering::Acquire) {
            let waited = self.shared.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        match &state.failed {
            None => Ok(()),
            Some(reason) => Err(OwnMemoryError::NotPopulated {
                reason: reason.clone(),
            }),
        }
    }
}

impl fmt::Debug for Population {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Population")
            .field("left", &self.left())
            .finish()
    }
}

/// The thread that puts pages, and what ends it.
pub(super) struct Populating {
    pid: u32,
    /// Before the descriptor that it is about.
    _withheld: Vec<Withheld>,
    population: Population,
    /// Kept open until it is no longer withheld, though the thread that serves it has ended: its number must not be
    /// somebody else's by then.
    _pages: Arc<MissingPages>,
    /// Wakes the thread.
    bell: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread works with.
struct Filler {
    pages: Arc<MissingPages>,
    view: View,
    space: usize,
    places: Arc<Places>,
    shared: Arc<Shared>,
    told: WrittenPages,
    /// What comes first when nobody waits, by address; the rest follows.
    first: PageSet,
}

/// Registers the regions of `watch` and begins to fill them from a space of `view`. `changed` are the pages of the space that
/// its last delta wrote.
pub(super) fn begin(
    watch: impl FnOnce(
        &mut dyn FnMut() -> Result<WpAsync, TrackError>,
    ) -> Result<Watched, OwnMemoryError>,
    view: &View,
    space: usize,
    changed: &PageSet,
) -> Result<(Watched, Population), OwnMemoryError> {
    let mut made: Option<MissingPages> = None;
    let mut make = || -> Result<WpAsync, TrackError> {
        let pages = MissingPages::of_self_tracked().map_err(TrackError::Protect)?;
        let tracker = WpAsync::with(
            pages.protector().map_err(TrackError::Protect)?,
            Pagemap::of_self()?,
        );
        made = Some(pages);
        Ok(tracker)
    };
    let mut watched = watch(&mut make)?;
    let pages = Arc::new(made.ok_or(OwnMemoryError::Closed)?);
    refuse_used(&watched)?;
    let in_view = watched.places.list().iter();
    let data = in_view.flat_map(|place| {
        let runs = view.runs(space, place.in_space());
        runs.filter(|(_, state)| *state == PageState::Data)
            .map(|(pages, _)| pages)
    });
    let data: PageSet = data.collect();
    let left = watched.places.mapped_of(&data);
    for place in watched.places.list() {
        let (start, end) = SIZE.span_of(place.mapped());
        let registered = pages.register_tracked(start, end - start);
        registered.map_err(TrackError::Protect)?;
    }
    protect(&watched, &left)?;
    let population = Population {
        shared: Arc::default(),
    };
    population.shared.lock().left = left;
    let filler = Filler {
        pages: Arc::clone(&pages),
        view: view.clone(),
        space,
        places: Arc::clone(&watched.places),
        shared: Arc::clone(&population.shared),
        told: watched.told.clone(),
        first: watched.places.mapped_of(changed),
    };
    let populating = Populating::start(watched.pid, filler, &pages, population.clone())?;
    watched.populating = Some(populating);
    Ok((watched, population))
}

/// Memory that holds anything cannot come from a snapshot.
fn refuse_used(watched: &Watched) -> Result<(), OwnMemoryError> {
    let held = Categories::PRESENT | Categories::SWAPPED;
    let used = watched.tables().having(&watched.places.mapped(), held)?;
    match used.ranges().first() {
        None => Ok(()),
        Some(&first) => Err(OwnMemoryError::NotFresh {
            address: SIZE.address_of(first.start()),
            count: used.count().0,
        }),
    }
}

/// Marks pages that are still to come as not written.
fn protect(watched: &Watched, pages: &PageSet) -> Result<(), OwnMemoryError> {
    let mut vector = vec![ScannedRange::EMPTY; 1024];
    for &range in pages.ranges() {
        let (start, end) = SIZE.span_of(range);
        let request = ScanRequest {
            flags: ScanFlags::WRITE_PROTECT_MATCHING,
            all_of: Categories::WRITTEN,
            returned: Categories::WRITTEN,
            ..ScanRequest::over(start, end)
        };
        watched.pagemap.scan(&request, &mut vector, |_| {})?;
    }
    Ok(())
}

impl Populating {
    fn start(
        pid: u32,
        filler: Filler,
        pages: &Arc<MissingPages>,
        population: Population,
    ) -> Result<Populating, OwnMemoryError> {
        let bell = without_forks(|| {
            let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let withheld = vec![withhold(pages.as_fd())?, withhold(bell.as_fd())?];
            Ok::<_, std::io::Error>((bell, withheld))
        });
        let bell = bell.map_err(OwnMemoryError::Withhold)?;
        let (bell, withheld) = bell.map_err(OwnMemoryError::Withhold)?;
        let bell = Arc::new(bell);
        let heard = Arc::clone(&bell);
        // It has the mask of the thread that makes it.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
        let builder = std::thread::Builder::new().name("pagetide-fill".to_owned());
        let made = builder.spawn(move || filler.run(&heard));
        if let Ok(mask) = mask {
            let _ = mask.thread_set_mask();
        }
        Ok(Populating {
            pid,
            _withheld: withheld,
            population,
            _pages: Arc::clone(pages),
            bell,
            thread: Some(made.map_err(OwnMemoryError::Thread)?),
        })
    }
}

impl Populating {
    /// Waits until all is there that comes from the snapshot.
    pub fn wait(&self) -> Result<(), OwnMemoryError> {
        self.population.wait()
    }

    /// Waits until the thread has heeded all that had happened to memory when this was called.
    pub fn catch_up(&self) {
        let shared = &self.population.shared;
        let mut state = shared.lock();
        state.asked += 1;
        let number = state.asked;
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        while state.answered < number && !shared.is_over.load(Ordering::Acquire) {
            let waited = shared.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Populating {
    /// What is still to come would be zeros afterwards, so it is waited for. A forked child has neither thread nor memory.
    fn drop(&mut self) {
        if std::process::id() != self.pid {
            std::mem::forget(self.thread.take());
            return;
        }
        let _ = self.population.wait();
        self.population
            .shared
            .is_over
            .store(true, Ordering::Release);
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Filler {
    fn run(mut self, bell: &OwnedFd) {
        let mut events = Vec::new();
        while !self.shared.is_over.load(Ordering::Acquire) {
            // Before anything is read: whoever asks wants to know of what was there by then.
            let asked = self.shared.lock().asked;
            if self.pages.read(&mut events).is_err() {
                break;
            }
            let is_idle = events.is_empty();
            // All are heeded in the order in which they came: what is dropped is not to come any more.
            for event in events.drain(..) {
                match event {
                    MissingEvent::Dropped { start, end } => {
                        let pages = SIZE.covering(start, end);
                        self.told.mark_pages(&PageSet::from(pages));
                        self.is_there(pages);
                    }
                    MissingEvent::Touched { address } => self.touched(address),
                    MissingEvent::Moved { .. } | MissingEvent::Forked { .. } => {}
                }
            }
            self.answer(asked);
            if is_idle && !self.put_some() {
                let mut ways = [
                    PollFd::new(&*self.pages, PollFlags::IN),
                    PollFd::new(bell, PollFlags::IN),
                ];
                let _ = poll(&mut ways, None);
                // What rings is looked at above.
                let _ = rustix::io::read(bell, &mut [0u8; 8]);
            }
        }
        self.shared.is_over.store(true, Ordering::Release);
        drop(self.shared.lock());
        self.shared.changed.notify_all();
    }

    fn answer(&self, asked: u64) {
        let mut state = self.shared.lock();
        if state.answered < asked {
            state.answered = asked;
            drop(state);
            self.shared.changed.notify_all();
        }
    }

    fn is_there(&self, pages: PageRange) {
        let mut state = self.shared.lock();
        state.left = state.left.subtract(&PageSet::from(pages));
        let is_all = state.left.is_empty();
        drop(state);
        if is_all {
            self.shared.changed.notify_all();
        }
    }

    /// Puts a few pages for which nobody waits; false if there are none.
    fn put_some(&mut self) -> bool {
        let left = self.shared.lock().left.clone();
        self.first = self.first.intersect(&left);
        let next = self.first.ranges().first().or(left.ranges().first());
        let Some(&range) = next else {
            return false;
        };
        let some = range.pieces(AT_ONCE).next().unwrap_or(range);
        self.put(some);
        true
    }

    /// Somebody waits for a page.
    fn touched(&self, address: u64) {
        let page = PageIndex(address / SIZE.bytes());
        let left = self.shared.lock().left.clone();
        let start = SIZE.address_of(page);
        if !left.contains(page) {
            // Zeros in the snapshot, or dropped since. Zeros do not take the place of a mark, but a page does.
            let put = self.pages.zero(start, SIZE.bytes());
            if put.stopped == Some(NotPut::Present) {
                let _ = self.pages.copy_protected(start, &[0; 4096]);
            }
        } else {
            // With what else is in its frame.
            let first = page.0 / AT_ONCE.0 * AT_ONCE.0;
            let around = PageRange::with_count(PageIndex(first), AT_ONCE);
            let near = left.within(around);
            for &range in near.ranges() {
                self.put(range);
            }
        }
        self.pages.wake(start, SIZE.bytes());
    }

    /// Puts pages that are still to come. What the kernel does not take now, because memory changes, stays to come.
    fn put(&self, mapped: PageRange) {
        for (mapped, in_space) in self.places.in_space(mapped) {
            let distance = mapped.start().0.wrapping_sub(in_space.start().0);
            let read = self.view.read(self.space, in_space, |pages, content| {
                let to = PageIndex(pages.start().0.wrapping_add(distance));
                if let PageContent::Bytes(bytes) = content {
                    self.put_bytes(to, bytes);
                }
                Ok::<(), ReadError>(())
            });
            if let Err(error) = read {
                let (start, end) = SIZE.span_of(mapped);
                self.fail(error.to_string());
                let _ = self.pages.poison(start, end - start);
                self.is_there(mapped);
            }
        }
    }

    fn put_bytes(&self, first: PageIndex, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = first.plus(PageCount((done / SIZE.len()) as u64));
            let put = self
                .pages
                .copy_protected(SIZE.address_of(at), &bytes[done..]);
            let count = PageCount(put.done_bytes / SIZE.bytes());
            self.is_there(PageRange::with_count(at, count));
            done += put.done_bytes as usize;
            let reason = match put.stopped {
                None => continue,
                Some(NotPut::Changing) => return,
                Some(NotPut::Present | NotPut::NotThere) => None,
                Some(other) => Some(format!("{other:?}")),
            };
            let page = at.plus(count);
            if let Some(reason) = reason {
                self.fail(format!(
                    "a page could not be put at {:#x}: {reason}",
                    SIZE.address_of(page)
                ));
                let _ = self.pages.poison(SIZE.address_of(page), SIZE.bytes());
            }
            self.is_there(PageRange::single(page));
            done += SIZE.len();
        }
    }

    fn fail(&self, reason: String) {
        self.shared.lock().failed.get_or_insert(reason);
    }
}
