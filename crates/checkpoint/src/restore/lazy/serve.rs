//! The threads that bring memory in: one that serves those who wait, and some that fetch everything else.

use super::spaces::{Content, Demand, PutCount, Spaces, Waiting};
use crate::restore::error::{FillError, RestoreError};
use pagetide_kernel::userfaultfd::missing::MissingPages;
use pagetide_pages::{PageCount, PageRange, PageSet};
use pagetide_snapshot::{Batch, BatchReader, ReadError, View};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

/// What came after the first instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FilledReport {
    /// Pages of batches that somebody waited for.
    pub served: PageCount,
    /// Pages that nobody had waited for.
    pub background: PageCount,
}

/// So long a change of mappings that is under way may take before a page is tried again.
const SOON: Duration = Duration::from_micros(50);
/// How often the server looks whether all is over, and for new children, in nanoseconds.
const LOOK_NS: i64 = 10_000_000;
/// Most threads that fetch in the background.
const WORKERS: usize = 4;
/// So often all that is left must find no place before it is taken to have none.
const TRIES: usize = 3;

/// The pages that come later from one space of the snapshot.
struct LateSpace {
    batches: Vec<Batch>,
    /// Which batch a range of pages is in, ascending.
    index: Vec<(PageRange, usize)>,
}

/// Why pages are lost: the first reason, and how many.
#[derive(Debug)]
enum Reason {
    Store(ReadError),
    Kernel(Errno),
}

/// What all threads have in common.
pub(super) struct Shared {
    view: View,
    spaces: Mutex<Spaces>,
    sources: Mutex<HashMap<usize, Arc<LateSpace>>>,
    /// The next piece of work for those that fetch in the background.
    next: AtomicUsize,
    /// How many of those are at work.
    at_work: AtomicUsize,
    over: AtomicBool,
    /// Memory is lost and cannot be poisoned.
    pub must_die: AtomicBool,
    served: AtomicU64,
    background: AtomicU64,
    lost: Mutex<Option<(Reason, u64)>>,
    /// Pages that a system call waits for.
    urgent: Mutex<VecDeque<PageRange>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("view", &self.view)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Work in the background: all batches of all sources.
type Work = Vec<(usize, Arc<LateSpace>, usize)>;

impl Shared {
    pub fn new(view: View) -> Result<Self, RestoreError> {
        Ok(Self {
            view,
            spaces: Mutex::new(Spaces::default()),
            sources: Mutex::new(HashMap::new()),
            next: AtomicUsize::new(0),
            at_work: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            must_die: AtomicBool::new(false),
            served: AtomicU64::new(0),
            background: AtomicU64::new(0),
            lost: Mutex::new(None),
            urgent: Mutex::new(VecDeque::new()),
        })
    }

    /// One more address space, which misses these pages of a space of the snapshot.
    pub fn add(&self, space: usize, missing: MissingPages, pages: &PageSet) {
        let batches = self.view.batches(space, pages);
        let ranges = batches.iter().enumerate();
        let mut index: Vec<(PageRange, usize)> = ranges
            .flat_map(|(number, batch)| batch.ranges().map(move |range| (range, number)))
            .collect();
        index.sort_by_key(|(range, _)| range.start());
        let source = Arc::new(LateSpace { batches, index });
        lock(&self.sources).insert(space, source);
        lock(&self.spaces).add(space, missing, pages);
    }

    /// Nothing runs and nothing will: ends the server.
    pub fn give_up(&self) {
        self.over.store(true, Ordering::Release);
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Closes all that was served.
    pub fn close(&self) {
        lock(&self.spaces).close();
    }

    pub fn outcome(&self) -> Result<FilledReport, FillError> {
        let consequence = if self.must_die.load(Ordering::Acquire) {
            "the process was killed"
        } else {
            "touching them is a SIGBUS"
        };
        match lock(&self.lost).take() {
            None => Ok(FilledReport {
                served: PageCount(self.served.load(Ordering::Relaxed)),
                background: PageCount(self.background.load(Ordering::Relaxed)),
            }),
            Some((Reason::Store(source), lost_pages)) => Err(FillError::Store {
                lost_pages,
                consequence,
                source,
            }),
            Some((Reason::Kernel(source), lost_pages)) => Err(FillError::Kernel {
                lost_pages,
                consequence,
                source,
            }),
        }
    }

    /// The server's life.
    pub fn serve(&self) {
        let mut reader = BatchReader::new();
        let mut waiting = Vec::new();
        let mut hastens = false;
        while !self.is_over() {
            let descriptors = lock(&self.spaces).descriptors();
            let mut fds: Vec<PollFd<'_>> = descriptors
                .iter()
                .map(|uffd| PollFd::new(&**uffd, PollFlags::IN))
                .collect();
            let patience = Timespec {
                tv_sec: 0,
                tv_nsec: match (waiting.is_empty(), hastens) {
                    (_, true) => 0,
                    (true, false) => LOOK_NS,
                    (false, false) => SOON.subsec_nanos().into(),
                },
            };
            // An interruption is as good as nothing to do.
            poll(&mut fds, Some(&patience)).ok();
            if let Err(errno) = lock(&self.spaces).heed(&mut waiting) {
                self.die(Reason::Kernel(errno));
                return;
            }
            waiting.retain(|&one| !self.serve_one(one, &mut reader));
            hastens = self.hasten(&mut reader);
        }
    }

    /// True if some address space misses any of these pages. Then they come at once.
    pub fn has_to_hasten(&self, pages: PageRange) -> bool {
        if self.is_over() || lock(&self.spaces).missed_in(pages).is_none() {
            return false;
        }
        let mut urgent = lock(&self.urgent);
        if !urgent.contains(&pages) {
            urgent.push_back(pages);
        }
        true
    }

    /// Brings some of what system calls wait for. True if there is more to be brought.
    fn hasten(&self, reader: &mut Result<BatchReader, ReadError>) -> bool {
        let Some(pages) = lock(&self.urgent).front().copied() else {
            return false;
        };
        let missed = lock(&self.spaces).missed_in(pages);
        match missed {
            Some(one) => self.serve_one(one, reader),
            None => {
                lock(&self.urgent).pop_front();
                true
            }
        }
    }

    /// False if it has to be tried again.
    fn serve_one(&self, one: Waiting, reader: &mut Result<BatchReader, ReadError>) -> bool {
        let (source, then) = match lock(&self.spaces).wanted(one) {
            Demand::Nothing => return true,
            Demand::Later => return false,
            Demand::Page { source, then } => (source, then),
        };
        let pages = lock(&self.sources).get(&source).map(Arc::clone);
        let Some(pages) = pages else { return true };
        let after = pages
            .index
            .partition_point(|(range, _)| range.start() <= then);
        let Some(&(_, batch)) = after.checked_sub(1).and_then(|at| pages.index.get(at)) else {
            return true;
        };
        if reader.is_err() {
            *reader = BatchReader::new();
        }
        let done = self.bring(source, &pages.batches[batch], reader);
        self.served.fetch_add(done.pages.0, Ordering::Relaxed);
        if done.later {
            return false;
        }
        // It was woken with the page, unless the page has no place any more.
        lock(&self.spaces).wake(one);
        true
    }

    /// Fetches a batch and puts it wherever it is missing, or poisons it.
    fn bring(
        &self,
        source: usize,
        batch: &Batch,
        reader: &mut Result<BatchReader, ReadError>,
    ) -> PutCount {
        let fetched = match reader {
            Ok(reader) => reader.read(&self.view, batch),
            Err(_) => return self.lose_unread(source, batch, reader),
        };
        let ranges = match fetched {
            Ok(ranges) => ranges,
            Err(error) => return self.lose(source, batch, Reason::Store(error)),
        };
        let mut all = PutCount::default();
        let mut spaces = lock(&self.spaces);
        for (pages, bytes) in ranges {
            match spaces.put(source, pages, Content::Bytes(bytes)) {
                Ok(done) => {
                    all.pages += done.pages;
                    all.later |= done.later;
                }
                Err(errno) => {
                    drop(spaces);
                    return self.lose(source, batch, Reason::Kernel(errno));
                }
            }
        }
        all
    }

    /// There is nothing to decompress with.
    fn lose_unread(
        &self,
        source: usize,
        batch: &Batch,
        reader: &mut Result<BatchReader, ReadError>,
    ) -> PutCount {
        match std::mem::replace(reader, BatchReader::new()) {
            Err(error) => self.lose(source, batch, Reason::Store(error)),
            Ok(_) => PutCount::default(),
        }
    }

    /// The pages of a batch will never come.
    fn lose(&self, source: usize, batch: &Batch, reason: Reason) -> PutCount {
        let mut all = PutCount::default();
        let mut poisoned = true;
        {
            let mut spaces = lock(&self.spaces);
            for range in batch.ranges() {
                match spaces.put(source, range, Content::Poison) {
                    Ok(done) => {
                        all.pages += done.pages;
                        all.later |= done.later;
                    }
                    Err(_) => poisoned = false,
                }
            }
        }
        if !poisoned {
            self.die(reason);
            return PutCount::default();
        }
        if all.pages > PageCount(0) {
            let mut lost = lock(&self.lost);
            lost.get_or_insert((reason, 0)).1 += all.pages.0;
        }
        // They are not counted as brought.
        PutCount {
            pages: PageCount(0),
            later: all.later,
        }
    }

    /// Nothing can be done for the processes any more.
    fn die(&self, reason: Reason) {
        lock(&self.lost).get_or_insert((reason, 0));
        self.must_die.store(true, Ordering::Release);
        self.over.store(true, Ordering::Release);
    }

    /// Starts to fetch in the background.
    pub fn fill(shared: &Arc<Self>) -> io::Result<Vec<JoinHandle<()>>> {
        let mut work: Work = Vec::new();
        for (&space, source) in lock(&shared.sources).iter() {
            let batches = 0..source.batches.len();
            work.extend(batches.map(|batch| (space, Arc::clone(source), batch)));
        }
        let work = Arc::new(work);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let count = cores.min(WORKERS);
        shared.at_work.store(count, Ordering::Release);
        let mut workers = Vec::with_capacity(count);
        for _ in 0..count {
            let (there, work) = (Arc::clone(shared), Arc::clone(&work));
            let worker = std::thread::Builder::new()
                .name("pagetide-fill".to_owned())
                .spawn(move || there.work(&work));
            match worker {
                Ok(worker) => workers.push(worker),
                Err(error) => {
                    shared.give_up();
                    for worker in workers {
                        worker.join().ok();
                    }
                    return Err(error);
                }
            }
        }
        Ok(workers)
    }

    fn work(&self, work: &Work) {
        let mut reader = BatchReader::new();
        while !self.is_over() {
            let Some((space, source, batch)) = work.get(self.next.fetch_add(1, Ordering::Relaxed))
            else {
                break;
            };
            self.bring_missing(*space, &source.batches[*batch], &mut reader);
        }
        if self.at_work.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.finish(work, &mut reader);
            self.over.store(true, Ordering::Release);
        }
    }

    /// Brings a batch, if somebody misses it. True if something came of it.
    fn bring_missing(
        &self,
        space: usize,
        batch: &Batch,
        reader: &mut Result<BatchReader, ReadError>,
    ) -> bool {
        let mut any = false;
        while !self.is_over() && self.is_missing(space, batch) {
            let done = self.bring(space, batch, reader);
            self.background.fetch_add(done.pages.0, Ordering::Relaxed);
            any |= done.later || done.pages > PageCount(0);
            if !done.later {
                break;
            }
            sleep(SOON);
        }
        any
    }

    fn is_missing(&self, space: usize, batch: &Batch) -> bool {
        let spaces = lock(&self.spaces);
        batch.ranges().any(|range| spaces.needs(space, range))
    }

    /// Brings what is left: pages that had no place when they came. What finds none while nothing changes has none.
    fn finish(&self, work: &Work, reader: &mut Result<BatchReader, ReadError>) {
        let mut tries = 0;
        while tries < TRIES && !self.is_over() {
            let events = lock(&self.spaces).events;
            let left = work
                .iter()
                .map(|(space, source, batch)| (*space, &source.batches[*batch]));
            let left: Vec<(usize, &Batch)> = left
                .filter(|(space, batch)| self.is_missing(*space, batch))
                .collect();
            if left.is_empty() {
                return;
            }
            let mut any = false;
            for (space, batch) in left {
                any |= self.bring_missing(space, batch, reader);
            }
            tries = if any || lock(&self.spaces).events != events {
                0
            } else {
                tries + 1
            };
            sleep(SOON);
        }
    }
}
