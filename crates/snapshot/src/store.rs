//! A store: create, open, list, lock, and the way to views and writers.
#![allow(unused)]

use crate::model::*;
use crate::*;
use pagetide_pages::PageSet;
use std::path::Path;
use std::sync::Arc;

/// A place that holds snapshots. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {}

/// The right to write to a store; at most one at a time, over all processes.
#[derive(Debug)]
pub struct WriterLock {}

/// The snapshots of a store.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Snapshots {
    /// Those whose description can be read, by id.
    pub good: Vec<SnapshotInfo>,
    /// Those whose description cannot be read, by id.
    pub damaged: Vec<DamagedSnapshot>,
}

/// A snapshot whose description cannot be read.
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
    pub fn create(storage: Arc<dyn Storage>) -> Result<Store, OpenError> {
        unimplemented!()
    }
    /// The store that is there. Nothing is written.
    pub fn open(storage: Arc<dyn Storage>) -> Result<Store, OpenError> {
        unimplemented!()
    }
    /// As `create`, in a directory, which may exist if it is empty.
    pub fn create_directory(path: impl AsRef<Path>) -> Result<Store, OpenError> {
        unimplemented!()
    }
    /// As `open`, in a directory.
    pub fn open_directory(path: impl AsRef<Path>) -> Result<Store, OpenError> {
        unimplemented!()
    }
    /// The id.
    pub fn id(&self) -> StoreId {
        unimplemented!()
    }
    /// The place, for messages.
    pub fn location(&self) -> String {
        unimplemented!()
    }
    /// All snapshots, from headers and metadata only.
    pub fn snapshots(&self) -> Result<Snapshots, ReadError> {
        unimplemented!()
    }
    /// The newest snapshot whose description can be read.
    pub fn newest(&self) -> Result<Option<SnapshotInfo>, ReadError> {
        unimplemented!()
    }
    /// The right to write. Also removes what a crashed writer left behind.
    pub fn lock(&self) -> Result<WriterLock, LockError> {
        unimplemented!()
    }
    /// A snapshot with its ancestors resolved.
    pub fn view(&self, id: SnapshotId) -> Result<View, ReadError> {
        unimplemented!()
    }
    /// A new snapshot: a delta to `parent`, or full without one.
    pub fn begin(
        &self,
        lock: &WriterLock,
        parent: Option<&View>,
        options: WriteOptions,
    ) -> Result<SnapshotWriter, WriteError> {
        unimplemented!()
    }
    /// The pages of the space of this name whose state or bytes differ between two snapshots, or that only one of them has. No I/O.
    pub fn changed(&self, a: &View, b: &View, space: &str) -> PageSet {
        unimplemented!()
    }
    /// Checks every byte of every snapshot.
    pub fn verify(
        &self,
        progress: &(dyn Fn(VerifyProgress) + Sync),
    ) -> Result<VerifyReport, ReadError> {
        unimplemented!()
    }
}
