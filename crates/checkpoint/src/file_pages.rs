//! Pages that a mapping shows of a file nobody writes to: the snapshot holds their hashes, and the bytes
//! stay in the file. Hashing them before the stop, and fetching them when a snapshot is read.

use crate::capture::SIZE;
use crate::files::{FileKey, Files, build_id_of};
use crate::mapped_file::read_exactly;
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};
use pagetide_process::{OpenError, Opener};
use pagetide_snapshot::{Backing, PageContent, PageHash, ReadError, Region, View};
use rustix::fs::OFlags;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Pages read at once.
const AT_ONCE: PageCount = PageCount(256);

/// The hashes of pages of files, by the page of the file.
#[derive(Default)]
pub(crate) struct FileHashes {
    files: HashMap<FileKey, Vec<(PageRange, Vec<PageHash>)>>,
}

impl FileHashes {
    /// Hashes the `wanted` pages of an open file, of which `size_bytes` is the length. The last page is
    /// left out if the file does not fill it: what the mapping shows past the end is not in the file.
    pub fn add(&mut self, files: &Files, key: FileKey, wanted: &PageSet, size_bytes: u64) {
        let whole = PageRange::new(PageIndex(0), PageIndex(size_bytes / SIZE.bytes()));
        let Some(file) = files.open(key) else { return };
        let mut buffer = vec![0; SIZE.bytes_of(AT_ONCE) as usize];
        let mut hashed = Vec::new();
        for &range in wanted.within(whole).ranges() {
            let mut hashes = Vec::new();
            for piece in range.pieces(AT_ONCE) {
                let bytes = &mut buffer[..SIZE.bytes_of(piece.count()) as usize];
                if read_exactly(file, bytes, SIZE.address_of(piece.start())).is_err() {
                    break;
                }
                hashes.extend(bytes.chunks_exact(SIZE.len()).map(PageHash::of));
            }
            let done = PageRange::with_count(range.start(), PageCount(hashes.len() as u64));
            hashed.push((done, hashes));
        }
        self.files.insert(key, hashed);
    }

    /// The pages of a file in `range` of which the hash is known, with the hashes.
    pub fn known(
        &self,
        key: FileKey,
        range: PageRange,
    ) -> impl Iterator<Item = (PageRange, &[PageHash])> {
        let hashed = self.files.get(&key).map_or(&[][..], |hashed| hashed);
        // Asked for each of what may be tens of thousands of mappings.
        let first = hashed.partition_point(|(pages, _)| pages.end() <= range.start());
        let parts = hashed[first..].iter().map_while(move |(pages, hashes)| {
            (pages.start() < range.end()).then_some((pages, hashes))
        });
        parts.filter_map(move |(pages, hashes)| {
            let part = pages.intersection(range)?;
            let first = usize::try_from(part.start().0 - pages.start().0).ok()?;
            let count = usize::try_from(part.count().0).ok()?;
            Some((part, &hashes[first..first + count]))
        })
    }

    /// The hash of `page` of a file, if it is known.
    pub fn of(&self, key: FileKey, page: PageIndex) -> Option<PageHash> {
        let hashed = self.files.get(&key)?;
        let after = hashed.partition_point(|(range, _)| range.start() <= page);
        let (range, hashes) = &hashed[after.checked_sub(1)?];
        let number = usize::try_from(page.0 - range.start().0).ok()?;
        range.contains(page).then(|| hashes.get(number).copied())?
    }
}

/// Pages that a snapshot left in a file, and that the file no longer has.
#[derive(Debug, thiserror::Error)]
#[error("{start:#x}-{end:#x} is not stored, but was left in {path}, {reason}")]
pub struct FilePagesError {
    /// First address.
    pub start: u64,
    /// Address past the last byte.
    pub end: u64,
    /// The file.
    pub path: String,
    /// What is wrong with it, for people.
    pub reason: String,
}

/// The files that a snapshot left pages in, opened when they are asked for. May be used from many threads.
#[derive(Default)]
pub(crate) struct OutsideFiles {
    open: Mutex<HashMap<Vec<u8>, Opened>>,
}

/// A file, or why it could not be opened.
type Opened = Arc<Result<OwnedFd, String>>;

impl OutsideFiles {
    /// Fills `buffer` with what the file of `region` has for `pages` of it, and checks it against `hashes`.
    pub fn read(
        &self,
        region: &Region,
        pages: PageRange,
        hashes: &[PageHash],
        buffer: &mut Vec<u8>,
    ) -> Result<(), FilePagesError> {
        let (start, end) = SIZE.span_of(pages);
        let (path, offset) = match &region.backing {
            Backing::File {
                path, offset_bytes, ..
            } => (&path[..], *offset_bytes),
            _ => (&b""[..], 0),
        };
        let error = |reason: String| FilePagesError {
            start,
            end,
            path: String::from_utf8_lossy(path).into_owned(),
            reason,
        };
        let file = self.file(path);
        let file = match &*file {
            Ok(file) => file,
            Err(reason) => return Err(error(format!("which {reason}"))),
        };
        buffer.resize(SIZE.bytes_of(pages.count()) as usize, 0);
        let offset = offset + SIZE.bytes_of(PageCount(pages.start().0 - region.pages.start().0));
        let read = read_exactly(file, buffer, offset);
        let found = buffer.chunks_exact(SIZE.len()).map(PageHash::of);
        if read.is_err() || !found.eq(hashes.iter().copied()) {
            return Err(error(format!(
                "which {}",
                what_changed(file, &region.backing)
            )));
        }
        Ok(())
    }

    fn file(&self, path: &[u8]) -> Opened {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(path) {
            return Arc::clone(file);
        }
        let file = Arc::new(open_regular(Path::new(OsStr::from_bytes(path))));
        open.insert(path.to_vec(), Arc::clone(&file));
        file
    }
}

/// Opens a file, if it is one: anything else might have effects.
fn open_regular(path: &Path) -> Result<OwnedFd, String> {
    let told = |error: OpenError| match error {
        OpenError::Kernel(errno) => format!("cannot be opened: {errno}"),
        error => error.to_string(),
    };
    let found = Opener::default().find(path, None).map_err(told)?;
    if found.kind().is_file() {
        found.open(OFlags::RDONLY).map_err(told)
    } else {
        Err("is not a regular file now".to_owned())
    }
}

/// Hands the pages of `range` that have bytes to `visit`, those that were left in files among them.
pub(crate) fn read_bytes<E: From<ReadError> + From<FilePagesError>>(
    view: &View,
    space: usize,
    range: PageRange,
    files: &OutsideFiles,
    mut visit: impl FnMut(PageRange, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let regions = &view.spaces()[space].regions;
    let mut buffer = Vec::new();
    view.read(space, range, |pages, content| match content {
        PageContent::Bytes(bytes) => visit(pages, bytes),
        PageContent::File(hashes) => {
            let mut first = 0;
            let from = regions.partition_point(|region| region.pages.end() <= pages.start());
            for region in &regions[from..] {
                let Some(part) = region.pages.intersection(pages) else {
                    break;
                };
                let count = part.count().0 as usize;
                files.read(region, part, &hashes[first..first + count], &mut buffer)?;
                first += count;
                visit(part, &buffer)?;
            }
            Ok(())
        }
        _ => Ok(()),
    })
}

/// In what a file is not the one that was mapped.
fn what_changed(file: &OwnedFd, backing: &Backing) -> String {
    let Backing::File {
        size_bytes,
        modified_ns,
        build_id,
        ..
    } = backing
    else {
        return "is not a file".to_owned();
    };
    let Ok(stat) = rustix::fs::fstat(file) else {
        return "cannot be looked at".to_owned();
    };
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let modified = stat
        .st_mtime
        .saturating_mul(1_000_000_000)
        .saturating_add_unsigned(stat.st_mtime_nsec);
    if !build_id.is_empty() && build_id_of(file).is_some_and(|found| found != *build_id) {
        "is another build of the program or library".to_owned()
    } else if size != *size_bytes {
        format!("is {size} bytes long now and was {size_bytes}")
    } else if modified != *modified_ns {
        "was modified since".to_owned()
    } else {
        "has other content now, though its length and time stamp are the same".to_owned()
    }
}
