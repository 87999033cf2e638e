//! The bytes of one region, written into a file.

use crate::file_pages::{FilePagesError, OutsideFiles};
use pagetide_pages::PageSize;
use pagetide_snapshot::{Capture, PageContent, ReadError, Region, View};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Why a region could not be written out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The snapshot could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Pages that were left in a file are no longer there.
    #[error(transparent)]
    File(#[from] FilePagesError),
    /// The output could not be written.
    #[error("write the output at offset {offset:#x}")]
    Write {
        /// Where in the output.
        offset: u64,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// Writes the bytes of `region` of the space with index `space` to `out`, from `offset` on, and makes
/// the file long enough. Pages of zeros, guard pages and pages without content are left as holes, so
/// `out` must hold nothing there yet.
pub fn write_region(
    view: &View,
    space: usize,
    region: &Region,
    page_size: PageSize,
    out: &File,
    offset: u64,
) -> Result<(), ExportError> {
    let end = offset.saturating_add(page_size.bytes_of(region.pages.count()));
    let length = out.metadata().map(|metadata| metadata.len());
    let extended = length.and_then(|length| out.set_len(length.max(end)));
    extended.map_err(|source| ExportError::Write {
        offset: end,
        source,
    })?;
    if region.capture != Capture::Captured {
        return Ok(());
    }
    let (start, _) = page_size.span_of(region.pages);
    let files = OutsideFiles::default();
    view.read_parallel(space, region.pages, 0, |pages, content| {
        let mut from_file = Vec::new();
        let bytes = match content {
            PageContent::Bytes(bytes) => bytes,
            PageContent::File(hashes) => {
                files.read(region, pages, hashes, &mut from_file)?;
                &from_file
            }
            _ => return Ok(()),
        };
        let at = offset + (page_size.address_of(pages.start()) - start);
        out.write_all_at(bytes, at)
            .map_err(|source| ExportError::Write { offset: at, source })
    })
}
