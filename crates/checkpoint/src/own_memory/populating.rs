//! The thread that puts pages of a snapshot where they are missing: what is touched at once, the rest while nobody waits.

use super::error::OwnMemoryError;
use super::marks::WrittenPages;
use super::placement::Places;
use crate::capture::SIZE;
use nix::sys::signal::{SigSet, SigmaskHow};
use pagetide_kernel::own_descriptors::{Withheld, withhold, without_forks};
use pagetide_kernel::userfaultfd::missing::{MissingEvent, MissingPages, NotPut};
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};
use pagetide_snapshot::{PageContent, ReadError, View};
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
    pub(super) shared: Arc<Shared>,
}

#[derive(Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    is_over: AtomicBool,
}

#[derive(Default)]
pub(super) struct State {
    /// Pages that are still to come, by address.
    pub left: PageSet,
    /// The first thing that went wrong.
    failed: Option<String>,
    /// How often the thread was waited for, and up to which of these it has heeded all.
    asked: u64,
    answered: u64,
}

impl Shared {
    pub fn lock(&self) -> MutexGuard<'_, State> {
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
pub(super) struct Filler {
    pub pages: Arc<MissingPages>,
    pub view: View,
    pub space: usize,
    pub places: Arc<Places>,
    pub shared: Arc<Shared>,
    pub told: WrittenPages,
    /// What comes first when nobody waits, by address; the rest follows.
    pub first: PageSet,
}

impl Populating {
    pub fn start(
        pid: u32,
        filler: Filler,
        pages: &Arc<MissingPages>,
        population: Population,
    ) -> Result<Self, OwnMemoryError> {
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
        Ok(Self {
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
