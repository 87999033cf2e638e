//! Beginning, finding and ending the tracking of a process: the userfaultfd that must be created
//! inside it, if the backend needs one, and the mark. Not the use of it.

use crate::error::TrackingError;
use crate::growth;
use crate::left_behind::{self, MarkInProcess};
use crate::mark::{MEMFD_NAME, Mark, MarkContent, Phase};
use crate::page_table_limit;
use pagetide_kernel::maps::{self, Mapping};
use pagetide_kernel::pagemap_scan::{Categories, Pagemap, ScanRequest, ScannedRange};
use pagetide_kernel::pidfd::PidFd;
use pagetide_kernel::userfaultfd::{CREATION_FLAGS, WriteProtector};
use pagetide_process::{
    Freezer, ProcessIdentity, RemoteCallError, StopOptions, StoppedProcess, SystemCalls,
};
use pagetide_snapshot::{Store, StoreId};
use pagetide_tracker::{Backend, SoftDirty, Tracker, WpAsync};
use std::os::fd::OwnedFd;

/// How the processes of one checkpoint are tracked.
#[derive(Clone)]
pub(crate) struct TrackedBy {
    /// One that tracks, which `Rehash` does not.
    pub backend: Backend,
    /// For which store.
    pub store: Store,
    /// The tracking stays in the process.
    pub stays: bool,
    /// The backend was asked for by name: a process that is frozen is tracked, too, though it runs no call by which that
    /// could begin.
    pub is_asked_for: bool,
    /// As `Options::page_table_limit`.
    pub page_table_limit: Option<u64>,
}

/// The tracking of one process.
pub(crate) struct Tracking {
    pub tracker: Box<dyn Tracker + Send>,
    /// The mark in the process, if the tracking lives there.
    pub mark: Option<Mark>,
    /// How many of the process's mappings were kept apart from the one before them when tracking began.
    kept_apart: u64,
}

fn fetch(pidfd: &PidFd, pid: i32, number: i32) -> Result<OwnedFd, TrackingError> {
    pidfd
        .get_fd(number)
        .map_err(|source| TrackingError::Fetch { pid, source })
}

fn open_pidfd(pid: i32) -> Result<PidFd, TrackingError> {
    PidFd::open(pid).map_err(|source| TrackingError::Fetch { pid, source })
}

impl Tracking {
    /// The tracking by `backend` that an earlier run left in the process for `store`, if there is any.
    pub fn find(
        identity: &ProcessIdentity,
        store: StoreId,
        backend: Backend,
        page_table_limit: u64,
    ) -> Result<Option<Self>, TrackingError> {
        let pid = identity.pid;
        let pidfd = open_pidfd(pid)?;
        let own = left_behind::marks(pid, &pidfd)?
            .into_iter()
            .find(|found| found.mark.is_some() && found.is_of(identity));
        let Some(MarkInProcess {
            mark: Some(mark),
            uffd,
            ..
        }) = own
        else {
            return Ok(None);
        };
        let number = mark.content().uffd_number;
        let is_whole = mark.content().backend != Backend::WpAsync || uffd == Some(number);
        if !is_whole {
            return Ok(None);
        }
        if mark.content().store != store {
            return Err(TrackingError::OwnedByAnother {
                pid,
                owner: mark.content().store,
                place: mark.place().unwrap_or_default(),
            });
        }
        if mark.content().backend != backend {
            return Ok(None);
        }
        let kept_apart = mark.remembered().filter(|_| backend == Backend::WpAsync);
        let kept_apart =
            kept_apart.and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)));
        let tracker: Box<dyn Tracker + Send> = match backend {
            Backend::SoftDirty => {
                let mut tracker = SoftDirty::of_process(pid)?;
                // Without it everything counts as written.
                tracker.go_on(&mark.remembered().unwrap_or_default());
                Box::new(tracker)
            }
            _ => {
                let protector = WriteProtector::already_enabled(fetch(&pidfd, pid, number)?);
                let tracker = WpAsync::with(protector, Pagemap::of_process(pid)?)
                    .with_page_table_limit(page_table_limit);
                match mark.content().phase {
                    Phase::Committed(..) => Box::new(tracker),
                    Phase::Armed | Phase::Harvesting => Box::new(tracker.distrusting()),
                }
            }
        };
        Ok(Some(Self {
            tracker,
            mark: Some(mark),
            // Without it all that are apart would count as added.
            kept_apart: kept_apart.unwrap_or(u64::MAX),
        }))
    }

    /// Begins to track the stopped process by `backend`. By `wp-async` a userfaultfd is created in it and
    /// fetched. With `stays`, it stays there with a mark beside it; without, nothing stays. Soft-dirty bits
    /// have no owner that the kernel knows of, so their mark stays in either case.
    pub fn begin(
        stopped: &mut StoppedProcess,
        identity: &ProcessIdentity,
        backend: Backend,
        store: StoreId,
        stays: bool,
        page_table_limit: u64,
    ) -> Result<Self, TrackingError> {
        let pid = identity.pid;
        let stays = stays || backend == Backend::SoftDirty;
        let pidfd = open_pidfd(pid)?;
        // The target may have closed the userfaultfd beside a mark, and a new one may get its number:
        // the old mark would then speak of bits that it knows nothing of.
        let stale = stale_descriptors(identity, &pidfd)?;
        if !stale.is_empty() {
            close_in(stopped, &stale).map_err(|source| TrackingError::Remote { pid, source })?;
        }
        let mut left = Footprint::default();
        let begun = (|| {
            let remote = |source| TrackingError::Remote { pid, source };
            let mut calls = stopped.remote_calls().map_err(remote)?;
            let made = create(&mut calls, &pidfd, identity, (backend, store), &mut left);
            let finished = calls.finish().map_err(remote);
            let mark = made?;
            finished?;
            watch(&pidfd, pid, backend, mark, page_table_limit)
        })();
        // What is not to stay, or was left by a beginning that failed, is closed again. Who is frozen closes nothing,
        // and the mark says what there is to do when he is thawed.
        let is_frozen = begun.as_ref().is_err_and(TrackingError::is_frozen);
        if (begun.is_err() || !stays) && !is_frozen {
            let closed = close_in(stopped, &left.numbers());
            if begun.is_ok() {
                closed.map_err(|source| TrackingError::Remote { pid, source })?;
            }
        }
        let mut tracking = begun?;
        tracking.mark.take_if(|_| !stays);
        Ok(tracking)
    }

    /// Begins to track, by `backend` and for `store`, a process that is being built; the tracking stays there.
    pub fn begin_in_new(
        calls: &mut dyn SystemCalls,
        identity: &ProcessIdentity,
        backend: Backend,
        store: StoreId,
    ) -> Result<Self, TrackingError> {
        let pid = identity.pid;
        let pidfd = open_pidfd(pid)?;
        let mut left = Footprint::default();
        let mark = create(calls, &pidfd, identity, (backend, store), &mut left)?;
        let limit = page_table_limit::of(pid, None);
        watch(&pidfd, pid, backend, mark, limit)
    }

    /// How many of the process's `mappings` there are only because it is tracked.
    pub fn mappings_added(&self, mappings: &[Mapping]) -> u64 {
        match self.tracker.backend() {
            Backend::WpAsync => growth::kept_apart(mappings).saturating_sub(self.kept_apart),
            _ => 0,
        }
    }

    /// Says in the process where the store is, for messages, if the tracking lives there.
    pub fn name_place(&mut self, store: &Store) {
        let place = store.location();
        // The next command may be called in another directory.
        let whole = std::path::absolute(&place).ok();
        let whole = whole.and_then(|whole| whole.into_os_string().into_string().ok());
        if let Some(mark) = self.mark.as_mut()
            && let Err(error) = mark.name_place(&whole.unwrap_or(place))
        {
            tracing::debug!(%error, "the mark does not say where the store is");
        }
    }

    /// Says in the process how far we are, if the tracking lives there.
    pub fn set_phase(&mut self, phase: Phase) -> std::io::Result<()> {
        let Some(mark) = self.mark.as_mut() else {
            return Ok(());
        };
        // What is remembered belongs to the harvest that was committed, so it is written while the mark
        // still says that one is under way.
        if matches!(phase, Phase::Committed(..)) && self.tracker.backend() == Backend::SoftDirty {
            mark.remember(&self.tracker.remembered())?;
        }
        mark.set(phase)
    }
}

/// The marks of a tracking of this very process that is not gone on with, and what is left beside them.
fn stale_descriptors(identity: &ProcessIdentity, pidfd: &PidFd) -> Result<Vec<i32>, TrackingError> {
    let all = left_behind::marks(identity.pid, pidfd)?;
    let own = all.iter().filter(|found| found.is_of(identity));
    let mut numbers: Vec<i32> = own.flat_map(MarkInProcess::numbers).collect();
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

/// What a beginning has put into a process so far.
#[derive(Default)]
struct Footprint {
    uffd: Option<i32>,
    memfd: Option<i32>,
}

impl Footprint {
    fn numbers(&self) -> Vec<i32> {
        [self.uffd, self.memfd].into_iter().flatten().collect()
    }
}

/// Creates the mark inside the process, and then what the backend needs: should we be gone before that is heard of,
/// the mark tells whose it is.
fn create(
    calls: &mut dyn SystemCalls,
    pidfd: &PidFd,
    identity: &ProcessIdentity,
    (backend, store): (Backend, StoreId),
    left: &mut Footprint,
) -> Result<Mark, TrackingError> {
    let pid = identity.pid;
    let remote = |source| TrackingError::Remote { pid, source };
    let wrong = |source| TrackingError::Mark { pid, source };
    let flags = u64::from(rustix::fs::MemfdFlags::CLOEXEC.bits());
    let mut name = MEMFD_NAME.to_vec();
    let memfd = calls.call_with(nix::libc::SYS_memfd_create, &mut name, &|name| {
        [name, flags, 0, 0, 0, 0]
    });
    let memfd = i32::try_from(memfd.map_err(remote)?).unwrap_or(-1);
    left.memfd = Some(memfd);
    let content = MarkContent {
        store,
        process: identity.clone(),
        backend,
        uffd_number: -1,
        phase: Phase::Armed,
        remembered: (0, 0),
    };
    let others = left_behind::userfaultfds(pid);
    let mark = Mark::create(fetch(pidfd, pid, memfd)?, content, &others);
    let mut mark = mark.map_err(wrong)?;
    if backend == Backend::WpAsync {
        let flags = u64::from(CREATION_FLAGS);
        let uffd = calls.call(nix::libc::SYS_userfaultfd, [flags, 0, 0, 0, 0, 0]);
        let uffd = i32::try_from(uffd.map_err(remote)?).unwrap_or(-1);
        left.uffd = Some(uffd);
        mark.was_made(uffd).map_err(wrong)?;
    }
    Ok(mark)
}

/// The tracking that a mark speaks of, which has just been made.
fn watch(
    pidfd: &PidFd,
    pid: i32,
    backend: Backend,
    mut mark: Mark,
    page_table_limit: u64,
) -> Result<Tracking, TrackingError> {
    let kept_apart = growth::kept_apart(&maps::mappings(pid).unwrap_or_default());
    let tracker: Box<dyn Tracker + Send> = match backend {
        Backend::SoftDirty => Box::new(SoftDirty::of_process(pid)?),
        _ => {
            let uffd = fetch(pidfd, pid, mark.content().uffd_number)?;
            let protector = WriteProtector::enable(uffd)?;
            let tracker = WpAsync::with(protector, Pagemap::of_process(pid)?);
            Box::new(tracker.with_page_table_limit(page_table_limit))
        }
    };
    if backend == Backend::WpAsync {
        mark.remember(&kept_apart.to_le_bytes())
            .and_then(|()| mark.set(Phase::Armed))
            .map_err(|source| TrackingError::Mark { pid, source })?;
    }
    Ok(Tracking {
        tracker,
        mark: Some(mark),
        kept_apart,
    })
}

fn close_in(stopped: &mut StoppedProcess, numbers: &[i32]) -> Result<(), RemoteCallError> {
    let mut calls = stopped.remote_calls()?;
    let mut closed = Ok(());
    for &number in numbers {
        let number = u64::from(number.cast_unsigned());
        let result = calls.call(nix::libc::SYS_close, [number, 0, 0, 0, 0, 0]);
        closed = closed.and(result.map(drop));
    }
    closed.and(calls.finish())
}

/// True if pagetide left tracking in process `pid` itself. What cannot be looked at is not tracked.
pub(crate) fn is_tracked(pid: i32) -> bool {
    let Ok(identity) = ProcessIdentity::of(pid) else {
        return false;
    };
    let found = open_pidfd(pid).and_then(|pidfd| left_behind::marks(pid, &pidfd));
    found.is_ok_and(|found| {
        let of_this = |found: &MarkInProcess| found.mark.is_some() && found.is_of(&identity);
        found.iter().any(of_this)
    })
}

/// What was removed from a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Detached {
    /// How many file descriptors were closed in it.
    pub descriptors: usize,
}

/// True if the process is tracked for this store: whoever takes that away leaves it tracked for none. False of a process that has
/// ended, or cannot be looked at.
pub fn is_tracked_for(identity: &ProcessIdentity, store: StoreId) -> bool {
    let pid = identity.pid;
    let marks = open_pidfd(pid).and_then(|pidfd| left_behind::marks(pid, &pidfd));
    let is_own = |found: MarkInProcess| {
        let is_of = found.is_of(identity);
        is_of && found.mark.is_some_and(|mark| mark.content().store == store)
    };
    marks.is_ok_and(|marks| marks.into_iter().any(is_own))
}

/// Removes everything that pagetide left in a process: the registration of its mappings, and the file
/// descriptors. Whatever store they belong to, and also copies that the process inherited from a parent.
/// Nothing to remove is no error. The next snapshot of the process is full.
pub fn detach(identity: &ProcessIdentity, options: StopOptions) -> Result<Detached, TrackingError> {
    let pid = identity.pid;
    let pidfd = open_pidfd(pid)?;
    let found = left_behind::marks(pid, &pidfd)?;
    if found.is_empty() {
        return Ok(Detached { descriptors: 0 });
    }
    let failed = |source| TrackingError::Detach { pid, source };
    // Before anything is taken away.
    if let Some(freezer) = Freezer::of_process(pid) {
        return Err(failed(RemoteCallError::Frozen { pid, freezer }));
    }
    for found in &found {
        if let Some(uffd) = found.uffd.filter(|_| found.is_of(identity)) {
            // A forked child may hold copies of the userfaultfd, so closing it may not be the end.
            unregister(pid, fetch(&pidfd, pid, uffd)?);
        }
    }
    let numbers: Vec<i32> = found.iter().flat_map(MarkInProcess::numbers).collect();
    let mut stopped = StoppedProcess::stop(identity, options)?;
    let closed = close_in(&mut stopped, &numbers);
    stopped.resume()?;
    closed.map_err(failed)?;
    Ok(Detached {
        descriptors: numbers.len(),
    })
}

/// Ends the registration of every mapping that is tracked asynchronously. Mappings that the process
/// itself registered with a userfaultfd in another mode are left alone: some kernels would let any
/// userfaultfd of the process end their registration.
fn unregister(pid: i32, uffd: OwnedFd) {
    let protector = WriteProtector::already_enabled(uffd);
    let Ok(pagemap) = Pagemap::of_process(pid) else {
        return;
    };
    for mapping in maps::mappings(pid).unwrap_or_default() {
        let request = ScanRequest {
            all_of: Categories::WP_ALLOWED,
            max_pages: 1,
            ..ScanRequest::over(mapping.start, mapping.end)
        };
        let tracked = pagemap.scan_once(&request, &mut [ScannedRange::EMPTY]);
        if tracked.is_ok_and(|progress| progress.filled > 0)
            && let Err(error) = protector.unregister(mapping.start, mapping.length_bytes())
        {
            tracing::debug!(%error, "a mapping stays registered until the last copy is closed");
        }
    }
}

#[cfg(test)]
mod tests;
