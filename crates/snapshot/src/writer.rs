//! Making one more snapshot.
#![allow(unused)]

use crate::model::*;
use crate::{View, WriteError};
use pagetide_pages::{PageCount, PageIndex, PageRange};

/// How a snapshot is written.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// The zstd level.
    pub level: i32,
    /// How many threads compress; 0 is one a core.
    pub threads: usize,
    /// Leave out pages whose bytes are those of the parent.
    pub elide_unchanged: bool,
}

impl Default for WriteOptions {
    fn default() -> WriteOptions {
        WriteOptions {
            level: 1,
            threads: 0,
            elide_unchanged: true,
        }
    }
}

/// What a writer has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteCounters {
    /// Pages given to `put_pages`.
    pub written_pages: PageCount,
    /// Of these, pages whose bytes are stored.
    pub stored_pages: PageCount,
    /// Of these, pages found to be all zeros.
    pub zero_pages: PageCount,
    /// Of these, pages left out because the parent has the same bytes.
    pub elided_pages: PageCount,
    /// Bytes in the file so far.
    pub stored_bytes: u64,
}

/// A snapshot in the making. Dropped before `commit`, it goes away.
#[derive(Debug)]
pub struct SnapshotWriter {}

impl SnapshotWriter {
    /// The id the snapshot will have.
    pub fn id(&self) -> SnapshotId {
        unimplemented!()
    }
    /// What has been done so far.
    pub fn counters(&self) -> WriteCounters {
        unimplemented!()
    }
    /// Says which spaces and regions the snapshot has. May be called again with another layout:
    /// the last one counts, and pages put outside its captured regions are left out. Spaces that
    /// are there already keep number, name and page size.
    pub fn set_spaces(&mut self, spaces: Vec<Space>) -> Result<(), WriteError> {
        unimplemented!()
    }
    /// Adds an attachment; one of the same name is replaced.
    pub fn attach(&mut self, name: impl Into<String>, bytes: Vec<u8>) -> Result<(), WriteError> {
        unimplemented!()
    }
    /// Stores pages. Each piece is a first page and the bytes of that page and those after it.
    pub fn put_pages(
        &mut self,
        space: usize,
        pieces: &[(PageIndex, &[u8])],
    ) -> Result<(), WriteError> {
        unimplemented!()
    }
    /// Says that the pages of `range` are zeros, guard or unbacked.
    pub fn put_state(
        &mut self,
        space: usize,
        range: PageRange,
        state: PageState,
    ) -> Result<(), WriteError> {
        unimplemented!()
    }
    /// Finishes the snapshot; it is durable when this returns.
    pub fn commit(self) -> Result<View, WriteError> {
        unimplemented!()
    }
}
