//! One snapshot with its ancestors resolved: what every page of it is, and the hash of its bytes.
//! Everything here is in memory; fetching the bytes is in `read`.
//!
//! A view is made from that of the parent: the parent's pages, cut down to the captured regions of
//! the snapshot, with the snapshot's own records laid over them. A page that was not part of the
//! parent therefore never comes back from further down the chain. What regions show of other spaces is
//! looked up when it is asked for (see `shown`).

use crate::back::Arrived;
use crate::beneath::{self, Beneath};
use crate::error::ReadError;
use crate::format::metadata::captured;
use crate::frame_cache::FrameCache;
use crate::layer::Layer;
use crate::model::{Attachment, PageHash, PageState, SnapshotId, SnapshotInfo, Space, StoreId};
use crate::resolve::{drop_unneeded, drop_unused, resolve};
use crate::runs::{self, Resolved};
use crate::storage::StoredFile;
use pagetide_pages::{PageIndex, PageRange, PageSize};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// A snapshot with its ancestors resolved. Cheap to clone; pages are read when asked for.
#[derive(Clone)]
pub struct View {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub store: StoreId,
    pub info: SnapshotInfo,
    pub spaces: Vec<Space>,
    /// The position of each space.
    pub names: HashMap<String, usize>,
    pub attachments: Vec<Attachment>,
    /// The snapshot and all its ancestors, oldest first.
    pub chain: Vec<SnapshotId>,
    /// The files that pages are taken from, oldest first.
    pub layers: Vec<Arc<Layer>>,
    /// For each space its pages as they are recorded, ascending.
    pub runs: Vec<Vec<Resolved>>,
    /// For each space what its differences are to.
    pub beneath: Vec<Beneath>,
    /// For each space the hash of a page of zeros.
    pub zero_hashes: Vec<PageHash>,
    pub cache: FrameCache,
    pub origin: Origin,
}

/// Finds a snapshot of a store.
pub(crate) type Find = Arc<dyn Fn(SnapshotId) -> Result<View, ReadError> + Send + Sync>;

/// How a view goes on when files that it reads from were rewritten.
pub(crate) struct Origin {
    pub find: Find,
    /// The file of the snapshot, open, so that it is not taken away as long as it is in use.
    pub held: Option<Box<dyn StoredFile>>,
    pub again: Mutex<Option<View>>,
}

impl Origin {
    pub fn new(find: Find, held: Option<Box<dyn StoredFile>>) -> Self {
        Self {
            find,
            held,
            again: Mutex::new(None),
        }
    }
}

/// The content of the pages of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageContent<'a> {
    /// The bytes of all its pages, one after another.
    Bytes(&'a [u8]),
    /// All its pages are zeros.
    Zero,
    /// All its pages are in a guard region.
    Guard,
    /// None of its pages can have content.
    Unbacked,
    /// All its pages have the bytes that the file of their region has there; these are the hashes of
    /// the pages, one after another.
    File(&'a [PageHash]),
}

impl View {
    /// The number of the snapshot.
    pub fn id(&self) -> SnapshotId {
        self.inner.info.id
    }

    /// The store that the snapshot is in.
    pub fn store_id(&self) -> StoreId {
        self.inner.store
    }

    /// What is known about the snapshot without reading pages.
    pub fn info(&self) -> &SnapshotInfo {
        &self.inner.info
    }

    /// The snapshot and its ancestors, newest first.
    pub fn chain(&self) -> Vec<SnapshotId> {
        self.inner.chain.iter().rev().copied().collect()
    }

    /// The spaces with their regions, as they were given to the writer. A space is named in other
    /// calls by its position here.
    pub fn spaces(&self) -> &[Space] {
        &self.inner.spaces
    }

    /// The position of the space of this name.
    pub fn space_index(&self, name: &str) -> Option<usize> {
        self.inner.names.get(name).copied()
    }

    /// The attachments, in the order they were given.
    pub fn attachments(&self) -> &[Attachment] {
        &self.inner.attachments
    }

    /// The bytes of the attachment of this name.
    pub fn attachment(&self, name: &str) -> Option<&[u8]> {
        let mut all = self.inner.attachments.iter();
        Some(&all.find(|attachment| attachment.name == name)?.bytes)
    }

    /// What a page is; `None` if it is not part of the snapshot. Of a page that a region shows it is
    /// what the page that is shown is, here and wherever else a page is asked for. No I/O.
    pub fn page_state(&self, space: usize, page: PageIndex) -> Option<PageState> {
        Some(self.inner.at(space, page)?.state)
    }

    /// The hash of the bytes of a page, stored or in a file; `None` if it is not part of the snapshot,
    /// or is guard or unbacked and so has no bytes. Pages of zeros have the hash of zeros. No I/O.
    pub fn page_hash(&self, space: usize, page: PageIndex) -> Option<PageHash> {
        let run = self.inner.at(space, page)?;
        self.inner.hash_in(space, &run, page)
    }

    /// The pages of `range` that are part of the snapshot, ascending, each range as long as the
    /// state stays the same. No I/O.
    pub fn runs(
        &self,
        space: usize,
        range: PageRange,
    ) -> impl Iterator<Item = (PageRange, PageState)> + '_ {
        let mut parts = self.inner.parts(space, range).peekable();
        std::iter::from_fn(move || {
            let Resolved {
                mut pages, state, ..
            } = parts.next()?;
            while let Some(more) =
                parts.next_if(|next| next.state == state && next.pages.start() == pages.end())
            {
                pages = PageRange::new(pages.start(), more.pages.end());
            }
            Some((pages, state))
        })
    }

    /// The same snapshot, found anew because files that it was read from were rewritten since.
    pub(crate) fn again(&self) -> Result<Self, ReadError> {
        let known = || {
            let again = &self.inner.origin.again;
            again.lock().unwrap_or_else(PoisonError::into_inner)
        };
        let later = known().clone();
        if let Some(later) = later {
            // Of a long row of them only the last is of use.
            let last = later.last_again().unwrap_or(later);
            *known() = Some(last.clone());
            return Ok(last);
        }
        let found = (self.inner.origin.find)(self.id())?;
        if found.info().content_hash != self.info().content_hash {
            return Err(ReadError::Replaced {
                snapshot: self.id(),
            });
        }
        *known() = Some(found.clone());
        Ok(found)
    }

    fn last_again(&self) -> Option<Self> {
        let again = &self.inner.origin.again;
        let next = again
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()?;
        Some(next.last_again().unwrap_or(next))
    }

    /// Keeps the file of the snapshot from being taken away, if it was published as `held`.
    pub(crate) fn set_held(self, held: Box<dyn StoredFile>) -> Self {
        match Arc::try_unwrap(self.inner) {
            Ok(mut inner) => {
                inner.origin.held = Some(held);
                Self {
                    inner: Arc::new(inner),
                }
            }
            Err(inner) => Self { inner },
        }
    }

    /// The view of a snapshot whose own records are `top` (by space) and lie in `layer`.
    pub(crate) fn over(
        parent: Option<&Self>,
        layer: Arc<Layer>,
        top: &[Vec<Resolved>],
        info: SnapshotInfo,
        (spaces, attachments): (Vec<Space>, Vec<Attachment>),
        origin: Origin,
    ) -> Result<Self, ReadError> {
        let parent = parent.map(|view| &*view.inner);
        let mut layers = parent.map_or_else(Vec::new, |parent| parent.layers.clone());
        let mut chain = parent.map_or_else(Vec::new, |parent| parent.chain.clone());
        chain.push(info.id);
        let (store, own) = (layer.store, layers.len());
        // Beneath the records of each space, one after another.
        let (mut all, mut depths) = (Vec::new(), Vec::new());
        for (space, top) in spaces.iter().zip(top) {
            let base = parent.and_then(|parent| parent.runs_of(space));
            let runs = resolve(base.map(|(runs, _)| runs), space, top, own);
            let beneath = base.map(|base| beneath::resolve(base, space, top, &layer.kept));
            let beneath = beneath.unwrap_or_default();
            depths.push(beneath.len());
            all.push(runs);
            all.extend(beneath);
        }
        layers.push(layer);
        drop_unused(&mut layers, &mut all);
        drop_unneeded(&mut layers, &all);
        let mut all = all.into_iter();
        let of_space = |depth| {
            (
                all.next().unwrap_or_default(),
                all.by_ref().take(depth).collect(),
            )
        };
        let (runs, beneath) = depths.into_iter().map(of_space).unzip();
        let arrived = Arrived {
            spaces,
            runs,
            beneath,
            layers,
        };
        Self::of(store, (arrived, chain), info, attachments, origin)
    }

    /// The view of a snapshot from which the way back along `chain`, oldest first, was gone.
    pub(crate) fn arrived(
        store: StoreId,
        arrived: Arrived,
        chain: Vec<SnapshotId>,
        info: SnapshotInfo,
        attachments: Vec<Attachment>,
        origin: Origin,
    ) -> Result<Self, ReadError> {
        Self::of(store, (arrived, chain), info, attachments, origin)
    }

    fn of(
        store: StoreId,
        (arrived, chain): (Arrived, Vec<SnapshotId>),
        info: SnapshotInfo,
        attachments: Vec<Attachment>,
        origin: Origin,
    ) -> Result<Self, ReadError> {
        let Arrived {
            spaces,
            runs: resolved,
            beneath,
            layers,
        } = arrived;
        for (space, runs) in spaces.iter().zip(&resolved) {
            if let Some(gap) = runs::first_gap(runs, captured(space)) {
                return Err(ReadError::MissingPages {
                    snapshot: info.id,
                    space: space.name.clone(),
                    address: space.page_size.address_of(gap.start()),
                    length: space.page_size.bytes_of(gap.count()),
                });
            }
        }
        let names = spaces.iter().map(|space| space.name.clone());
        let mut zero_hashes = ZeroHashes::default();
        let inner = Inner {
            store,
            info,
            zero_hashes: spaces.iter().map(|s| zero_hashes.of(s.page_size)).collect(),
            names: names.zip(0..).collect(),
            spaces,
            attachments,
            chain,
            cache: FrameCache::new(layers.len()),
            layers,
            runs: resolved,
            beneath,
            origin,
        };
        inner.check_shown()?;
        inner.check_beneath()?;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }
}

/// The hashes of pages of zeros, by page size.
#[derive(Default)]
pub(crate) struct ZeroHashes(HashMap<usize, PageHash>);

impl ZeroHashes {
    pub fn of(&mut self, size: PageSize) -> PageHash {
        let length = size.len();
        let hash = || PageHash::of(&vec![0; length]);
        *self.0.entry(length).or_insert_with(hash)
    }
}

impl Inner {
    /// The pages of the space that is the same as `space`.
    fn runs_of(&self, space: &Space) -> Option<(&[Resolved], &Beneath)> {
        let own = self.same_space(space)?;
        Some((&self.runs[own], &self.beneath[own]))
    }

    /// The position here of the space that is the same as `space`, which may be of another snapshot.
    pub fn same_space(&self, space: &Space) -> Option<usize> {
        let own = *self.names.get(&space.name)?;
        (self.spaces[own].page_size == space.page_size).then_some(own)
    }

    /// The hash of `page`, which is in `run`.
    pub fn hash_in(&self, space: usize, run: &Resolved, page: PageIndex) -> Option<PageHash> {
        match run.state {
            PageState::Data | PageState::File => {
                let ordinal = run.ordinal + (page.0 - run.pages.start().0);
                Some(self.layers[run.layer as usize].kept.hashes(ordinal, 1)[0])
            }
            PageState::Zero => Some(self.zero_hashes[space]),
            PageState::Guard | PageState::Unbacked | PageState::Shown => None,
        }
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View")
            .field("snapshot", &self.id())
            .field("store", &self.inner.store)
            .finish_non_exhaustive()
    }
}
