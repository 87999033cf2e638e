//! One shared object, made again or put back: its file or segment, and what it held. Where it was found, or what was made for
//! it, is noted by `objects`.

use super::error::RestoreError;
use super::sources::{self, MappingSource};
use crate::capture::SIZE;
use crate::file_pages::OutsideFiles;
use crate::object_records::ObjectRecord;
use pagetide_kernel::shared_memory::AttachedSegment;
use pagetide_pages::{PageCount, PageIndex, PageRange};
use pagetide_process::Opener;
use pagetide_snapshot::{Backing, PageContent, Region, View};
use rustix::fs::{Gid, Mode, Uid};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// See the head of this file.
#[derive(Clone)]
pub(super) struct Object<'a> {
    pub view: &'a View,
    pub space: usize,
    pub region: &'a Region,
    /// As whom files are opened and made: the first process that maps it.
    pub opener: &'a Opener,
    pub record: ObjectRecord,
}

impl<'a> Object<'a> {
    fn path(&self) -> &[u8] {
        match &self.region.backing {
            Backing::File { path, .. } | Backing::SharedMemory { path, .. } => path,
            Backing::Anonymous | Backing::Kernel => b"",
        }
    }

    pub fn refused(&self, reason: impl Into<String>) -> RestoreError {
        RestoreError::File {
            path: String::from_utf8_lossy(self.path()).into_owned(),
            reason: reason.into(),
        }
    }

    pub fn failed(&self) -> impl Fn(io::Error) -> RestoreError + '_ {
        |source| RestoreError::Object {
            name: String::from_utf8_lossy(self.path()).into_owned(),
            source,
        }
    }

    /// An error of what is done for it.
    pub fn told(&self, done: io::Result<()>) -> Result<(), RestoreError> {
        done.map_err(self.failed())
    }

    fn all(&self) -> PageRange {
        let regions = &self.view.spaces()[self.space].regions;
        let end = regions.last().map_or(PageIndex(0), |last| last.pages.end());
        PageRange::new(PageIndex(0), end)
    }

    /// True if the process could have made it as it was.
    pub fn is_own(&self) -> bool {
        let own = (self.opener.user(), self.opener.group());
        own.0 == 0 || (self.record.uid, self.record.gid) == own
    }

    /// A new file of the length that the object had, with what it held.
    pub fn filled(&self, file: OwnedFd) -> Result<MappingSource, RestoreError> {
        let file = File::from(file);
        if file.metadata().map_err(self.failed())?.len() != self.record.size_bytes {
            // What stands for shared anonymous memory has its length already, in whole pages.
            let set = file.set_len(self.record.size_bytes);
            set.map_err(self.failed())?;
        }
        self.view
            .read_parallel::<RestoreError>(self.space, self.all(), 0, |pages, content| {
                let PageContent::Bytes(bytes) = content else {
                    return Ok(());
                };
                let at = SIZE.address_of(pages.start());
                let room = self.record.size_bytes.saturating_sub(at);
                let length = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
                file.write_all_at(&bytes[..length], at)
                    .map_err(self.failed())
            })?;
        Ok(MappingSource::File(file.into()))
    }

    pub fn own(&self, file: &OwnedFd) -> Result<(), RestoreError> {
        let (uid, gid) = (
            Uid::from_raw(self.record.uid),
            Gid::from_raw(self.record.gid),
        );
        let owned = rustix::fs::fchown(file, Some(uid), Some(gid));
        // What a process has written never runs with the rights of another user.
        let mode = if self.is_own() {
            self.record.mode & 0o7777
        } else {
            self.record.mode & 0o1777
        };
        let moded = rustix::fs::fchmod(file, Mode::from_raw_mode(mode));
        let both = owned.and(moded);
        both.map_err(|errno| self.failed()(errno.into()))
    }

    /// What had a name in a file system and has none any more.
    pub fn without_name(&self, path: &Path) -> Result<MappingSource, RestoreError> {
        let size = self.record.size_bytes;
        let file = if self.is_own() {
            sources::nameless(path, size, self.opener)?
        } else {
            sources::unlinkable(path, size, self.opener)?
        };
        self.own(&file)?;
        self.filled(file)
    }

    /// Tells `overwrites` what a file has behind the end of the object, but for zeros. Returns the file's length.
    pub fn tell_tail(
        &self,
        file: &File,
        overwrites: &impl Fn(u64, &[u8]) -> io::Result<()>,
    ) -> Result<u64, RestoreError> {
        let length = file.metadata().map_err(self.failed())?.len();
        let mut chunk = vec![0; TAIL_AT_ONCE];
        let mut at = self.record.size_bytes;
        while at < length {
            let count =
                usize::try_from(length - at).map_or(TAIL_AT_ONCE, |rest| rest.min(TAIL_AT_ONCE));
            let chunk = &mut chunk[..count];
            file.read_exact_at(chunk, at).map_err(self.failed())?;
            if chunk.iter().any(|byte| *byte != 0) {
                self.told(overwrites(at, chunk))?;
            }
            at += count as u64;
        }
        Ok(length)
    }

    /// Writes what differs, and tells `overwrites` before it does where that is and what is there.
    pub fn put_back(
        &self,
        file: &File,
        overwrites: &(impl Fn(u64, &[u8]) -> io::Result<()> + Sync),
    ) -> Result<(), RestoreError> {
        let size = self.record.size_bytes;
        file.set_len(size).map_err(self.failed())?;
        self.view
            .read_parallel::<RestoreError>(self.space, self.all(), 0, |pages, content| {
                let mut now = vec![0; SIZE.len()];
                for (number, page) in pages.pages().enumerate() {
                    let at = SIZE.address_of(page);
                    let length = size.saturating_sub(at).min(SIZE.bytes()) as usize;
                    let zeros = [0; 4096];
                    let wanted = match content {
                        PageContent::Bytes(bytes) => &bytes[number * SIZE.len()..][..length],
                        PageContent::Zero => &zeros[..length],
                        _ => continue,
                    };
                    let now = &mut now[..length];
                    file.read_exact_at(now, at).map_err(self.failed())?;
                    if now != wanted {
                        self.told(overwrites(at, now))?;
                        file.write_all_at(wanted, at).map_err(self.failed())?;
                    }
                }
                Ok(())
            })
    }

    /// A file on a disk is not ours to write: it has to be what it was.
    pub fn disk_file(&self, path: &Path, accepted: &[String]) -> Result<OwnedFd, RestoreError> {
        let (file, _) = sources::open_file(self.region, path, self.opener)?;
        let name = format!("file-changed:{}", path.display());
        if accepted.contains(&name) {
            return Ok(file);
        }
        let changed = || {
            self.refused(format!(
                "has other content now; --accept {name} maps it as it is"
            ))
        };
        let file = File::from(file);
        let files = OutsideFiles::default();
        self.view
            .read_parallel::<RestoreError>(self.space, self.all(), 0, |pages, content| {
                let same = match content {
                    PageContent::File(hashes) => {
                        let region = self.object_region(pages);
                        return Ok(files.read(region, pages, hashes, &mut Vec::new())?);
                    }
                    PageContent::Guard | PageContent::Unbacked => return Ok(()),
                    PageContent::Bytes(bytes) => self.has_bytes(&file, pages, bytes)?,
                    PageContent::Zero => self.has_zeros(&file, pages)?,
                };
                if same { Ok(()) } else { Err(changed()) }
            })?;
        Ok(file.into())
    }

    fn has_bytes(&self, file: &File, pages: PageRange, bytes: &[u8]) -> Result<bool, RestoreError> {
        let mut now = vec![0; bytes.len()];
        let at = SIZE.address_of(pages.start());
        read_or_zero(file, &mut now, at).map_err(self.failed())?;
        let size = self.record.size_bytes;
        Ok(tail_cut(bytes, at, size) == tail_cut(&now, at, size))
    }

    /// Pages of zeros may be many. What lies past the end of the file is zero, too.
    fn has_zeros(&self, file: &File, pages: PageRange) -> Result<bool, RestoreError> {
        let end = file
            .metadata()
            .map_err(self.failed())?
            .len()
            .div_ceil(SIZE.bytes());
        let inside = PageRange::new(PageIndex(0), PageIndex(end));
        let Some(inside) = pages.intersection(inside) else {
            return Ok(true);
        };
        let mut now = vec![0; ZEROS_AT_ONCE];
        for piece in inside.pieces(PageCount((ZEROS_AT_ONCE / SIZE.len()) as u64)) {
            let now = &mut now[..SIZE.bytes_of(piece.count()) as usize];
            read_or_zero(file, now, SIZE.address_of(piece.start())).map_err(self.failed())?;
            if now.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn object_region(&self, pages: PageRange) -> &Region {
        let regions = &self.view.spaces()[self.space].regions;
        let at = regions.partition_point(|region| region.pages.end() <= pages.start());
        regions.get(at).unwrap_or(self.region)
    }

    /// Attaches a segment to this process.
    pub fn attach(&self, id: i32) -> Result<AttachedSegment, RestoreError> {
        AttachedSegment::attach(id).map_err(self.failed())
    }

    /// Writes all of a segment.
    pub fn fill_segment(&self, attached: &AttachedSegment) -> Result<(), RestoreError> {
        self.view
            .read::<RestoreError>(self.space, self.all(), |pages, content| {
                let at = usize::try_from(SIZE.address_of(pages.start())).unwrap_or(usize::MAX);
                match content {
                    PageContent::Bytes(bytes) => attached.write_at(at, bytes),
                    PageContent::Zero => {
                        let length = usize::try_from(SIZE.bytes_of(pages.count()));
                        let length = length.unwrap_or(usize::MAX);
                        let end = at.saturating_add(length).min(attached.length());
                        let zeros = [0; TAIL_AT_ONCE];
                        for at in (at..end).step_by(TAIL_AT_ONCE) {
                            attached.write_at(at, &zeros[..TAIL_AT_ONCE.min(end - at)]);
                        }
                    }
                    _ => {}
                }
                Ok(())
            })
    }
}

/// So many bytes behind the end of an object are read at once: it may be a long hole.
const TAIL_AT_ONCE: usize = 64 << 10;
/// So many bytes that have to be zeros are read at once.
const ZEROS_AT_ONCE: usize = 1 << 20;

/// The part of a page's bytes that lies in the file: what a mapping shows past the end is not kept.
fn tail_cut(bytes: &[u8], at: u64, size_bytes: u64) -> &[u8] {
    let room = usize::try_from(size_bytes.saturating_sub(at)).unwrap_or(usize::MAX);
    &bytes[..bytes.len().min(room)]
}

fn read_or_zero(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => {
                buffer[done..].fill(0);
                break;
            }
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
