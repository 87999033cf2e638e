//! Reading every byte of a store to find damage, and naming what is lost. Nothing is repaired.

use crate::error::ReadError;
use crate::format::FormatError;
use crate::format::header::Header;
use crate::format::index::{Frame, Index};
use crate::frame::FrameDecoder;
use crate::layer::SnapshotFile;
use crate::model::{PageHash, PageState, SnapshotId, Space};
use crate::read::worker_count;
use crate::runs::Resolved;
use crate::store::Store;
use crate::view::{PageContent, View};
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// A damaged part of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// Which snapshot.
    pub snapshot: SnapshotId,
    /// The name of the space, if the damage is to pages.
    pub space: Option<String>,
    /// The address in the space of the first byte lost, if the damage is to pages.
    pub address: Option<u64>,
    /// How many bytes are lost: of the space if there is an address, of the file otherwise.
    pub length_bytes: u64,
    /// What is wrong, for people.
    pub what: String,
}

/// How far a verification has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyProgress {
    /// The snapshot that is being read.
    pub snapshot: SnapshotId,
    /// Bytes of snapshot files read so far.
    pub done_bytes: u64,
    /// Bytes of all snapshot files whose headers can be read.
    pub total_bytes: u64,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// True if there is no damage.
    pub ok: bool,
    /// How many snapshots there are, damaged ones included.
    pub snapshots: u64,
    /// Bytes of snapshot files read.
    pub checked_bytes: u64,
    /// The damage, by snapshot. What is left of a pruned one is named by its number, too.
    pub damaged: Vec<Damage>,
    /// The snapshots that are whole themselves, and need something that is damaged.
    pub lost: Vec<SnapshotId>,
    /// The newest snapshot that is whole with all that it needs.
    pub newest_whole: Option<SnapshotId>,
}

/// Bytes done and to do, over all snapshots.
struct Meter<'a> {
    done: AtomicU64,
    total: u64,
    report: &'a (dyn Fn(VerifyProgress) + Sync),
}

impl Meter<'_> {
    fn add(&self, snapshot: SnapshotId, bytes: u64) {
        let done_bytes = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.report)(VerifyProgress {
            snapshot,
            done_bytes,
            total_bytes: self.total,
        });
    }
}

impl Store {
    /// Reads and checks every byte of every snapshot, on all cores. Damage is in the report; only
    /// failing storage is an error. `progress` is called from many threads.
    pub fn verify(
        &self,
        progress: &(dyn Fn(VerifyProgress) + Sync),
    ) -> Result<VerifyReport, ReadError> {
        verify(self, progress)
    }
}

pub fn verify(
    store: &Store,
    progress: &(dyn Fn(VerifyProgress) + Sync),
) -> Result<VerifyReport, ReadError> {
    let mut damaged = Vec::new();
    let mut broken = BTreeSet::new();
    let ids: BTreeSet<SnapshotId> = store.ids()?.into_iter().collect();
    let mut headers = BTreeMap::new();
    for &id in ids.iter().chain(&store.base_ids()?) {
        match store.file(id) {
            Ok(file) => drop(headers.insert(id, file.header)),
            // It was taken away since the list was read.
            Err(ReadError::NoSuchSnapshot { .. }) => {}
            Err(error) => {
                broken.insert(id);
                damaged.push(of_file(id, 0, error)?);
            }
        }
    }
    drop_unneeded(&ids, &mut headers);
    let meter = Meter {
        done: AtomicU64::new(0),
        total: headers.values().map(Header::file_length).sum(),
        report: progress,
    };
    let mut latest = None;
    for &id in headers.keys() {
        // One file is open at a time, and what was rewritten meanwhile is read as it is now.
        let file = match store.file(id) {
            Ok(file) => file,
            Err(ReadError::NoSuchSnapshot { .. }) => continue,
            Err(error) => {
                broken.insert(id);
                damaged.push(of_file(id, 0, error)?);
                continue;
            }
        };
        let before = damaged.len();
        let has_differences = check_file(&file, &meter, &mut damaged)?;
        if damaged.len() > before {
            broken.insert(file.id);
        } else if file
            .header
            .parent
            .is_some_and(|(parent, _)| broken.contains(&parent))
        {
            // What is broken in an ancestor is said of the ancestor only.
            broken.insert(file.id);
        } else if ids.contains(&id) || has_differences {
            damaged.extend(check_chain(store, &file, &mut latest)?);
            if let Some(view) = latest.as_ref().filter(|_| has_differences) {
                check_differences(view, id, &mut damaged)?;
            }
            if damaged.len() > before {
                broken.insert(id);
            }
        }
    }
    damaged.sort_by_key(|damage| damage.snapshot);
    let named: BTreeSet<SnapshotId> = damaged.iter().map(|damage| damage.snapshot).collect();
    let dependent = ids.intersection(&broken).filter(|id| !named.contains(id));
    Ok(VerifyReport {
        lost: dependent.copied().collect(),
        newest_whole: ids.difference(&broken).last().copied(),
        ok: damaged.is_empty(),
        snapshots: ids.len() as u64,
        checked_bytes: meter.done.into_inner(),
        damaged,
    })
}

/// Lets go of what is left of pruned snapshots and no snapshot needs.
fn drop_unneeded(ids: &BTreeSet<SnapshotId>, headers: &mut BTreeMap<SnapshotId, Header>) {
    let mut needed = BTreeSet::new();
    for &id in ids {
        let mut at = Some(id);
        while let Some(id) = at.filter(|&id| needed.insert(id)) {
            let parent = headers.get(&id).and_then(|header| header.parent);
            at = parent.map(|(parent, _)| parent);
        }
    }
    headers.retain(|id, _| needed.contains(id));
}

/// Damage to a snapshot as such. Failing storage is not damage and stays an error.
fn of_file(snapshot: SnapshotId, length_bytes: u64, error: ReadError) -> Result<Damage, ReadError> {
    if let ReadError::Io { .. } = error {
        return Err(error);
    }
    let (space, address, length_bytes) = match &error {
        ReadError::MissingPages {
            space,
            address,
            length,
            ..
        } => (Some(space.clone()), Some(*address), *length),
        _ => (None, None, length_bytes),
    };
    Ok(Damage {
        snapshot,
        space,
        address,
        length_bytes,
        what: error.to_string(),
    })
}

/// Checks everything in a file that can be checked without its ancestors. True if some of its pages cannot: they are
/// differences.
fn check_file(
    file: &SnapshotFile,
    meter: &Meter<'_>,
    damaged: &mut Vec<Damage>,
) -> Result<bool, ReadError> {
    let header = &file.header;
    meter.add(file.id, header.metadata_at() - header.frames_length);
    let length = header.metadata_length + header.index_length;
    let parts = file.metadata().and_then(|metadata| {
        let index = file.index(&metadata.spaces)?;
        Ok((metadata, index))
    });
    meter.add(file.id, length);
    match parts {
        Ok((metadata, index)) => {
            check_frames(file, &metadata.spaces, &index, meter, damaged)?;
            Ok(index.frames.iter().any(Frame::differs))
        }
        Err(error) => {
            damaged.push(of_file(file.id, length, error)?);
            Ok(false)
        }
    }
}

/// Checks that the snapshot, sound by itself, has its parent and that all its pages are somewhere.
/// `latest` is the view of the snapshot
/// checked before, mostly the parent: a chain is then walked once, not once for each of its links.
fn check_chain(
    store: &Store,
    file: &SnapshotFile,
    latest: &mut Option<View>,
) -> Result<Option<Damage>, ReadError> {
    let is_parent = |view: &View| file.header.parent == Some((view.id(), view.info().content_hash));
    let view = match latest.take().filter(is_parent) {
        Some(parent) => store.view_over(Some(&parent), file),
        None => match store.view_of_any(file.id) {
            Err(ReadError::NoSuchSnapshot { .. }) => return Ok(None),
            other => other,
        },
    };
    match view {
        Ok(view) => {
            *latest = Some(view);
            Ok(None)
        }
        Err(error) => of_file(file.id, file.header.file_length(), error).map(Some),
    }
}

/// Checks the pages that snapshot `id`, whose view this is, has as differences: each is made from its parent's.
fn check_differences(
    view: &View,
    id: SnapshotId,
    damaged: &mut Vec<Damage>,
) -> Result<(), ReadError> {
    let inner = &view.inner;
    let Some(own) = inner.layers.iter().position(|layer| layer.id == id) else {
        return Ok(());
    };
    let (kept, own) = (&inner.layers[own].kept, own as u32);
    for (number, (space, runs)) in inner.spaces.iter().zip(&inner.runs).enumerate() {
        let of_file = |run: &&Resolved| run.state == PageState::Data && run.layer == own;
        let runs = runs.iter().filter(of_file);
        let ranges: Vec<PageRange> = runs.flat_map(|run| run.differing(kept)).collect();
        // Whoever reads them compares the hashes.
        let look = |_, _: PageContent<'_>| Ok::<(), ReadError>(());
        if view.read_ranges_parallel(number, &ranges, 0, look).is_ok() {
            continue;
        }
        let mut page_bytes = vec![0; space.page_size.len()];
        let mut lost: Vec<(PageRange, String)> = Vec::new();
        for page in ranges.iter().flat_map(|range| range.pages()) {
            match view.read_page(number, page, &mut page_bytes) {
                Ok(()) => {}
                Err(error @ ReadError::Io { .. }) => return Err(error),
                Err(error) => add_lost(&mut lost, page, error.to_string()),
            }
        }
        damaged.extend(lost.into_iter().map(|(pages, what)| Damage {
            snapshot: id,
            space: Some(space.name.clone()),
            address: Some(space.page_size.address_of(pages.start())),
            length_bytes: space.page_size.bytes_of(pages.count()),
            what,
        }));
    }
    Ok(())
}

/// Adds a page to those of which the same is said.
fn add_lost(lost: &mut Vec<(PageRange, String)>, page: PageIndex, what: String) {
    match lost.last_mut() {
        Some((pages, said)) if pages.end() == page && *said == what => {
            *pages = PageRange::new(pages.start(), page.plus(PageCount(1)));
        }
        _ => lost.push((PageRange::single(page), what)),
    }
}

/// Checks the bytes of all frames, and the hash of every page in them.
fn check_frames(
    file: &SnapshotFile,
    spaces: &[Space],
    index: &Index,
    meter: &Meter<'_>,
    damaged: &mut Vec<Damage>,
) -> Result<(), ReadError> {
    let next = AtomicUsize::new(0);
    let found: Mutex<Vec<(PageSet, String)>> = Mutex::new(Vec::new());
    let failed: Mutex<Option<ReadError>> = Mutex::new(None);
    let lock_failed = || failed.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || -> Result<(), ReadError> {
        let mut decoder = FrameDecoder::default();
        let (mut stored, mut raw) = (Vec::new(), Vec::new());
        while lock_failed().is_none() {
            let Some(frame) = index.frames.get(next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            stored.resize(frame.stored_length as usize, 0);
            file.stored(std::slice::from_ref(frame), &mut stored)?;
            let page_bytes = spaces[frame.space as usize].page_size.len();
            let numbers = PageRange::with_count(
                PageIndex(frame.first_ordinal),
                PageCount(u64::from(frame.page_count)),
            );
            let (pages, checksum) = (frame.page_count as usize, &frame.checksum);
            let decoded = if frame.differs() {
                decoder
                    .differences(&stored, checksum, frame.encoding, (pages, page_bytes))
                    .map(|_| None)
            } else {
                raw.resize(pages * page_bytes, 0);
                decoder
                    .decode(&stored, frame.encoding, checksum, &mut raw)
                    .map(|()| wrong_pages(index, numbers, &raw, page_bytes))
            };
            let damage = match decoded {
                Err(error @ FormatError::Unknown(_)) => return Err(file.at(error)),
                Err(error) => Some((PageSet::from(numbers), error)),
                Ok(wrong) => wrong,
            };
            let damage = damage.map(|(pages, error)| (pages, file.at(error).to_string()));
            if let Some(damage) = damage {
                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                found.push(damage);
            }
            meter.add(file.id, u64::from(frame.stored_length));
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        for _ in 0..worker_count(0, index.frames.len()) {
            scope.spawn(|| {
                if let Err(error) = work() {
                    lock_failed().get_or_insert(error);
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_by_key(|(numbers, _)| numbers.ranges().first().copied());
    name_pages(file, spaces, index, &found, damaged);
    Ok(())
}

/// The stored pages whose bytes do not have their hash.
fn wrong_pages(
    index: &Index,
    numbers: PageRange,
    raw: &[u8],
    page_bytes: usize,
) -> Option<(PageSet, FormatError)> {
    let pages = numbers.pages().zip(raw.chunks_exact(page_bytes));
    let wrong: PageSet = pages
        .filter(|(number, bytes)| PageHash::of(bytes) != index.hashes[number.0 as usize])
        .map(|(number, _)| PageRange::single(number))
        .collect();
    let what = || FormatError::Damaged("pages do not have their hash".to_owned());
    (!wrong.is_empty()).then(|| (wrong, what()))
}

/// Says of the stored pages in `found`, ascending, which pages of which spaces they are. Those that
/// were written over before the snapshot was finished are nobody's, and are named by the file alone.
/// What shows the pages of another space is not named again.
fn name_pages(
    file: &SnapshotFile,
    spaces: &[Space],
    index: &Index,
    found: &[(PageSet, String)],
    damaged: &mut Vec<Damage>,
) {
    let mut named: Vec<Vec<Damage>> = Vec::new();
    for (_, what) in found {
        named.push(vec![Damage {
            snapshot: file.id,
            space: None,
            address: None,
            length_bytes: 0,
            what: what.clone(),
        }]);
    }
    let past = |numbers: &PageSet| numbers.ranges().last().map(|last| last.end());
    for run in index.runs.iter().filter(|run| run.state == PageState::Data) {
        let own = PageRange::with_count(PageIndex(run.ordinal), run.pages.count());
        let space = &spaces[run.space as usize];
        let first = found.partition_point(|(numbers, _)| past(numbers) <= Some(own.start()));
        for ((numbers, _), named) in found.iter().zip(&mut named).skip(first) {
            if numbers.ranges().first().map(|first| first.start()) >= Some(own.end()) {
                break;
            }
            for lost in numbers.within(own).ranges() {
                let skipped = PageCount(lost.start().0 - run.ordinal);
                named.push(Damage {
                    snapshot: file.id,
                    space: Some(space.name.clone()),
                    address: Some(space.page_size.address_of(run.pages.start().plus(skipped))),
                    length_bytes: space.page_size.bytes_of(lost.count()),
                    what: named[0].what.clone(),
                });
            }
        }
    }
    for mut named in named {
        if named.len() > 1 {
            named.remove(0);
        }
        damaged.append(&mut named);
    }
}
