//! A store: create, open, list, lock, and the way to views and writers. Reading never writes, and
//! needs no lock: files appear whole and never change.

use crate::back::Back;
use crate::changed;
use crate::error::{LockError, OpenError, ReadError};
use crate::format::FormatError;
use crate::format::descriptor::{self, DESCRIPTOR_BYTES, DescriptorError, STORE_VERSION};
use crate::format::index::Index;
use crate::format::metadata::Metadata;
use crate::format::preamble::MAX_HEADER_BYTES;
use crate::kept::CompactIndex;
use crate::layer::{self, Layer, SnapshotFile, io_error};
use crate::model::{Attachment, PageState, SnapshotId, SnapshotInfo, StoreId};
use crate::resolve::by_space;
use crate::storage::{
    Access, DirectoryStorage, LockFailure, Right, Storage, StorageLock, Untrusted,
};
use crate::view::{Find, Origin, View};
use pagetide_pages::PageSet;
use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The file that says that this is a store.
const DESCRIPTOR: &str = "pagetide-store";
const DESCRIPTOR_PARTIAL: &str = "pagetide-store.partial";
const LOCK: &str = "lock";
/// So long a reader waits for somebody who takes files away, which takes moments.
const PATIENCE: Duration = Duration::from_secs(10);

/// A place that holds snapshots. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    storage: Arc<dyn Storage>,
    id: StoreId,
}

/// The right to write to a store. At any time at most one exists, over all processes. Writers begun
/// under it hold on to it.
#[derive(Debug)]
pub struct WriterLock {
    pub(crate) held: Arc<HeldLock>,
}

/// What a lock and the writers begun under it share.
#[derive(Debug)]
pub(crate) struct HeldLock {
    pub(crate) store: StoreId,
    pub(crate) writing: AtomicBool,
    /// The largest number that is used, once that was looked for: nobody else uses one as long as this is held.
    pub(crate) highest: AtomicU64,
    lock: Box<dyn StorageLock>,
}

impl WriterLock {
    /// The descriptor that holds the lock, if there is one of which a copy, as a forked child has, holds it, too.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.held.lock.descriptor()
    }
}

impl HeldLock {
    /// Lets the next writer begin.
    pub fn writer_gone(&self) {
        self.writing.store(false, Ordering::Release);
    }

    /// This number is used from now on.
    pub fn used(&self, id: SnapshotId) {
        self.highest.fetch_max(id.0, Ordering::AcqRel);
    }
}

/// The snapshots of a store.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Snapshots {
    /// Those whose header and metadata are sound, by number.
    pub good: Vec<SnapshotInfo>,
    /// Those whose header or metadata cannot be read, by number.
    pub damaged: Vec<DamagedSnapshot>,
    /// Those that were pruned and of which what newer ones need is left.
    pub bases: Vec<SnapshotId>,
}

/// A snapshot whose header or metadata cannot be read.
#[derive(Debug)]
#[non_exhaustive]
pub struct DamagedSnapshot {
    /// Its number, from the name of its file.
    pub id: SnapshotId,
    /// Why not.
    pub error: ReadError,
}

impl Store {
    /// A new, empty store where there is nothing yet.
    pub fn create(storage: Arc<dyn Storage>) -> Result<Self, OpenError> {
        let location = storage.location();
        let names = match storage.list() {
            Ok(names) => names,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) if error.kind() == ErrorKind::NotADirectory => {
                return Err(OpenError::NotAStore { location });
            }
            Err(error) => return Err(open_failure(location, "list its files", error)),
        };
        if names.iter().any(|name| name == DESCRIPTOR) {
            return Err(OpenError::Exists { location });
        }
        // What an earlier attempt may have left does not count.
        if names
            .iter()
            .any(|name| name != DESCRIPTOR_PARTIAL && name != LOCK)
        {
            return Err(OpenError::NotEmpty { location });
        }
        let id = new_store_id().map_err(|error| OpenError::Io {
            location: location.clone(),
            operation: "draw a random id".to_owned(),
            source: error,
        })?;
        let write = || {
            storage.prepare()?;
            let mut file = storage.create(DESCRIPTOR_PARTIAL)?;
            file.append(&descriptor::encode(id))?;
            file.publish(DESCRIPTOR)
        };
        match write() {
            Ok(_) => Ok(Self { storage, id }),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Err(OpenError::Exists { location })
            }
            Err(error) => Err(open_failure(location, "create the store", error)),
        }
    }

    /// The store that is there. Nothing is written.
    pub fn open(storage: Arc<dyn Storage>) -> Result<Self, OpenError> {
        let location = storage.location();
        let bytes = match read_descriptor(&*storage) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(match storage.list() {
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        OpenError::Missing { location }
                    }
                    Err(error) if Untrusted::is(&error) => {
                        open_failure(location, "list its files", error)
                    }
                    _ => OpenError::NotAStore { location },
                });
            }
            Err(error) if error.kind() == ErrorKind::NotADirectory => {
                return Err(OpenError::NotAStore { location });
            }
            Err(error) => return Err(open_failure(location, "read the store file", error)),
        };
        match descriptor::decode(&bytes) {
            Ok(id) => Ok(Self { storage, id }),
            Err(DescriptorError::Damaged(what)) => Err(OpenError::Damaged { location, what }),
            Err(DescriptorError::Future(found)) => Err(OpenError::FutureFormat {
                location,
                found,
                supported: STORE_VERSION,
            }),
        }
    }

    /// As `create`, in a directory that does not exist or is empty. Nobody but root and the caller may be able to write to
    /// it, see [`DirectoryStorage::new`].
    pub fn create_directory(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::create(Arc::new(DirectoryStorage::new(path.as_ref())))
    }

    /// As `open`, in a directory. Nobody but root and the caller may be able to write to it, see
    /// [`DirectoryStorage::new`].
    pub fn open_directory(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open(Arc::new(DirectoryStorage::new(path.as_ref())))
    }

    /// The store that is there, or a new one where there is nothing yet.
    ///
    /// # Errors
    /// As [`Store::open`] and [`Store::create`]; [`OpenError::NotEmpty`] if something else is there.
    pub fn open_or_create(storage: Arc<dyn Storage>) -> Result<Self, OpenError> {
        match Self::create(Arc::clone(&storage)) {
            Err(OpenError::Exists { .. }) => Self::open(storage),
            created => created,
        }
    }

    /// As `open_or_create`, in a directory. Nobody but root and the caller may be able to write to it, see
    /// [`DirectoryStorage::new`].
    pub fn open_or_create_directory(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_or_create(Arc::new(DirectoryStorage::new(path.as_ref())))
    }

    /// The store's name among stores.
    pub fn id(&self) -> StoreId {
        self.id
    }

    /// The place of the store, for messages.
    pub fn location(&self) -> String {
        self.storage.location()
    }

    /// All snapshots, from their headers and metadata alone. One that cannot be read does not keep
    /// the others from being listed.
    pub fn snapshots(&self) -> Result<Snapshots, ReadError> {
        let mut found = Snapshots {
            bases: self.base_ids()?,
            ..Snapshots::default()
        };
        for id in self.ids()? {
            let info = self
                .unpruned(id)
                .and_then(|file| Ok(file.info(&file.metadata()?)));
            match info {
                Ok(info) => found.good.push(info),
                // It was removed since the list was read.
                Err(ReadError::NoSuchSnapshot { .. }) => {}
                Err(error @ ReadError::Io { .. }) => return Err(error),
                Err(error) => found.damaged.push(DamagedSnapshot { id, error }),
            }
        }
        Ok(found)
    }

    /// The newest snapshot whose header and metadata are sound. None are read but those needed.
    pub fn newest(&self) -> Result<Option<SnapshotInfo>, ReadError> {
        for id in self.ids()?.into_iter().rev() {
            let info = self
                .unpruned(id)
                .and_then(|file| Ok(file.info(&file.metadata()?)));
            match info {
                Ok(info) => return Ok(Some(info)),
                Err(error @ ReadError::Io { .. }) => return Err(error),
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// What travels with a snapshot, from its metadata alone.
    pub fn attachments(&self, id: SnapshotId) -> Result<Vec<Attachment>, ReadError> {
        Ok(self.unpruned(id)?.metadata()?.attachments)
    }

    /// The right to write. Whoever gets it also removes what a crashed writer left behind.
    pub fn lock(&self) -> Result<WriterLock, LockError> {
        let location = self.location();
        let lock = self.take_right(Right::Write)?;
        let clean = || -> io::Result<()> {
            for name in self.storage.list()?.iter().filter(|n| layer::is_partial(n)) {
                tracing::info!(file = name, "removing what a crashed writer left");
                self.storage.remove(name)?;
            }
            Ok(())
        };
        clean()
            .map_err(|error| lock_failure(location, "remove what a crashed writer left", error))?;
        Ok(WriterLock {
            held: Arc::new(HeldLock {
                store: self.id,
                writing: AtomicBool::new(false),
                highest: AtomicU64::new(0),
                lock,
            }),
        })
    }

    /// One of the rights to change what is here.
    pub(crate) fn take_right(&self, right: Right) -> Result<Box<dyn StorageLock>, LockError> {
        let location = self.location();
        self.storage.lock(right).map_err(|failure| match failure {
            LockFailure::Held(holder) => LockError::Locked { location, holder },
            LockFailure::Io(error) => lock_failure(location, "take the lock", error),
        })
    }

    /// A snapshot with its ancestors resolved. Of each file in the chain header, metadata and index
    /// are read and checked, no pages. As long as the view is there, what it needs is.
    pub fn view(&self, id: SnapshotId) -> Result<View, ReadError> {
        let _gate = self.enter(id)?;
        let file = self.unpruned(id)?;
        self.resolve(file)
    }

    /// The same of a snapshot that may have been pruned since.
    pub(crate) fn view_of_any(&self, id: SnapshotId) -> Result<View, ReadError> {
        let _gate = self.enter(id)?;
        self.resolve(self.file(id)?)
    }

    /// From the snapshot in `newest` back to the full one. One file is open at a time. When all pages are found only headers are
    /// looked at.
    fn resolve(&self, newest: SnapshotFile) -> Result<View, ReadError> {
        let (metadata, index) = self.parts(&newest)?;
        let info = newest.info(&metadata);
        let mut back = Back::from(metadata.spaces.clone());
        let keep =
            |file: &SnapshotFile, kept| Layer::new(self.id, &self.storage, &file.header, kept);
        back.step(&metadata.spaces, index, |kept| keep(&newest, kept));
        let mut chain = vec![newest.id];
        let mut child = (newest.id, newest.header.parent);
        while let (snapshot, Some((parent, expected))) = child {
            let file = self.file(parent).map_err(|error| match error {
                ReadError::NoSuchSnapshot { .. } => ReadError::ParentMissing { snapshot, parent },
                other => other,
            })?;
            let found = file.header.content_hash();
            if found != expected {
                return Err(ReadError::ParentReplaced {
                    snapshot,
                    parent,
                    expected,
                    found,
                });
            }
            if !back.is_done() {
                let (metadata, index) = self.parts(&file)?;
                back.step(&metadata.spaces, index, |kept| keep(&file, kept));
            }
            chain.push(parent);
            child = (parent, file.header.parent);
        }
        chain.reverse();
        let origin = Origin::new(self.find(), Some(newest.hold()?));
        let attachments = metadata.attachments;
        View::arrived(self.id, back.arrive(), chain, info, attachments, origin)
    }

    /// What a file says of itself.
    fn parts(&self, file: &SnapshotFile) -> Result<(Metadata, Index), ReadError> {
        let metadata = file.metadata()?;
        let index = file.index(&metadata.spaces)?;
        let states = [PageState::Data, PageState::Zero, PageState::File];
        let counted = states.map(|state| index.count(state));
        let said = [
            metadata.data_pages,
            metadata.zero_pages,
            metadata.file_pages,
        ];
        if counted != said {
            let what = "its counters do not match its index".to_owned();
            return Err(file.at(FormatError::Damaged(what)));
        }
        Ok((metadata, index))
    }

    /// As long as what is returned is there, no file of the store is taken away.
    fn enter(&self, id: SnapshotId) -> Result<Box<dyn StorageLock>, ReadError> {
        match self.pass(Access::Shared) {
            Err(ReadError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                Err(ReadError::NoSuchSnapshot { snapshot: id })
            }
            other => other,
        }
    }

    /// Waits for the gate that readers and those who prune pass by turns.
    pub(crate) fn pass(&self, access: Access) -> Result<Box<dyn StorageLock>, ReadError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let failed = match self.storage.gate(access) {
                Ok(Some(gate)) => return Ok(gate),
                Ok(None) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                }
                Ok(None) => ErrorKind::ResourceBusy.into(),
                Err(error) => error,
            };
            let operation = match access {
                Access::Shared => "look for its snapshots: it is being pruned",
                Access::Exclusive => "take files away: it is being read",
            };
            return Err(io_error(&self.location(), operation.to_owned(), failed));
        }
    }

    /// How the views of this store find a snapshot anew.
    pub(crate) fn find(&self) -> Find {
        let store = self.clone();
        Arc::new(move |id| store.view_of_any(id))
    }

    /// The pages of the space of this name whose content differs between two snapshots (pages without
    /// bytes: their state), or that only one of them has. If the page size differs, all pages of
    /// either. Pages that show the same page of another space in both do not differ in this one:
    /// whether that page does, the other space tells. No I/O.
    pub fn changed(&self, a: &View, b: &View, space: &str) -> PageSet {
        changed::changed(a, b, space)
    }

    /// The names of all files.
    pub(crate) fn names(&self) -> Result<Vec<String>, ReadError> {
        let names = self.storage.list();
        names.map_err(|error| io_error(&self.location(), "list its files".to_owned(), error))
    }

    /// The numbers of all snapshots, ascending.
    pub(crate) fn ids(&self) -> Result<Vec<SnapshotId>, ReadError> {
        let names = self.names()?;
        let mut ids: Vec<_> = names.iter().filter_map(|n| layer::snapshot_of(n)).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// The numbers of those pruned of which something is left, ascending.
    pub(crate) fn base_ids(&self) -> Result<Vec<SnapshotId>, ReadError> {
        let names = self.names()?;
        let mut ids: Vec<_> = names.iter().filter_map(|n| layer::base_of(n)).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// The file of a snapshot, or what is left of it if it was pruned.
    pub(crate) fn file(&self, id: SnapshotId) -> Result<SnapshotFile, ReadError> {
        SnapshotFile::open(&*self.storage, self.id, id)
    }

    /// The file of a snapshot that is there for itself.
    pub(crate) fn unpruned(&self, id: SnapshotId) -> Result<SnapshotFile, ReadError> {
        match SnapshotFile::open_unpruned(&*self.storage, self.id, id) {
            Err(ReadError::NoSuchSnapshot { snapshot }) => Err(match self.file(id) {
                Ok(_) => ReadError::Pruned { snapshot },
                Err(_) => ReadError::NoSuchSnapshot { snapshot },
            }),
            other => other,
        }
    }

    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// The view of the snapshot in `file`, whose parent's view is `parent`.
    pub(crate) fn view_over(
        &self,
        parent: Option<&View>,
        file: &SnapshotFile,
    ) -> Result<View, ReadError> {
        let (metadata, index) = self.parts(file)?;
        let info = file.info(&metadata);
        let Metadata {
            spaces,
            attachments,
            ..
        } = metadata;
        let top = by_space(&index.runs, spaces.len());
        let kept = CompactIndex::all(index.frames, index.hashes);
        let layer = Arc::new(Layer::new(self.id, &self.storage, &file.header, kept));
        let origin = Origin::new(self.find(), None);
        View::over(parent, layer, &top, info, (spaces, attachments), origin)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("location", &self.location())
            .field("id", &self.id)
            .finish()
    }
}

fn new_store_id() -> io::Result<StoreId> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(io::Error::other)?;
    Ok(StoreId(id))
}

/// The bytes of the store file: at most as many as any version of it can have.
fn read_descriptor(storage: &dyn Storage) -> io::Result<Vec<u8>> {
    let file = storage.open(DESCRIPTOR)?;
    let length = file.length()?.min(u64::from(MAX_HEADER_BYTES) + 1);
    let mut bytes = Vec::with_capacity(DESCRIPTOR_BYTES);
    bytes.resize(length as usize, 0);
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
    )
}

fn open_failure(location: String, operation: &str, source: io::Error) -> OpenError {
    let source = match source.downcast::<Untrusted>() {
        Ok(source) => return OpenError::Untrusted { location, source },
        Err(source) => source,
    };
    if is_refusal(&source) && operation.starts_with("create") {
        return OpenError::ReadOnly { location, source };
    }
    OpenError::Io {
        location,
        operation: operation.to_owned(),
        source,
    }
}

fn lock_failure(location: String, operation: &str, source: io::Error) -> LockError {
    if is_refusal(&source) {
        return LockError::ReadOnly { location, source };
    }
    LockError::Io {
        location,
        operation: operation.to_owned(),
        source,
    }
}
