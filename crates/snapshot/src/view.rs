//! One snapshot with its ancestors resolved: what every page of it is, and its bytes.
#![allow(unused)]

use crate::ReadError;
use crate::model::*;
use pagetide_pages::{PageIndex, PageRange};

/// A snapshot with its ancestors resolved. Cheap to clone; pages are read when asked for.
#[derive(Clone, Debug)]
pub struct View {}

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
}

impl View {
    /// The id.
    pub fn id(&self) -> SnapshotId {
        unimplemented!()
    }
    /// What is known without reading pages.
    pub fn info(&self) -> &SnapshotInfo {
        unimplemented!()
    }
    /// The snapshot and its ancestors, newest first.
    pub fn chain(&self) -> Vec<SnapshotId> {
        unimplemented!()
    }
    /// The spaces.
    pub fn spaces(&self) -> &[Space] {
        unimplemented!()
    }
    /// The number of the space of this name.
    pub fn space_index(&self, name: &str) -> Option<usize> {
        unimplemented!()
    }
    /// The attachments.
    pub fn attachments(&self) -> &[Attachment] {
        unimplemented!()
    }
    /// The bytes of the attachment of this name.
    pub fn attachment(&self, name: &str) -> Option<&[u8]> {
        unimplemented!()
    }
    /// What a page is; `None` if it is not part of the snapshot. No I/O.
    pub fn page_state(&self, space: usize, page: PageIndex) -> Option<PageState> {
        unimplemented!()
    }
    /// The hash of a page that is data or zero. No I/O.
    pub fn page_hash(&self, space: usize, page: PageIndex) -> Option<PageHash> {
        unimplemented!()
    }
    /// The states of the pages of `range`, ascending, as ranges.
    pub fn runs(&self, space: usize, range: PageRange) -> Vec<(PageRange, PageState)> {
        unimplemented!()
    }
    /// Fills `buffer` (one page) with the bytes of a page.
    pub fn read_page(
        &self,
        space: usize,
        page: PageIndex,
        buffer: &mut [u8],
    ) -> Result<(), ReadError> {
        unimplemented!()
    }
    /// Hands the contents of `range` to `visit` in ascending order; pages that are not part of the snapshot are left out.
    pub fn read<E: From<ReadError>>(
        &self,
        space: usize,
        range: PageRange,
        visit: impl FnMut(PageRange, PageContent<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        unimplemented!()
    }
    /// As `read`, but on `threads` threads (0: one a core) and in no order.
    pub fn read_parallel<E: From<ReadError> + Send>(
        &self,
        space: usize,
        range: PageRange,
        threads: usize,
        visit: impl Fn(PageRange, PageContent<'_>) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        unimplemented!()
    }
}
