//! Shared objects made again and filled, before there is any process to map them: what is memory is made anew, or put back
//! where it still is; a file on a disk has to be what it was.

use super::RestoreError;
use super::made::Made;
use super::nature::Nature;
use super::segments::SegmentNumber;
use super::sources::{self, Source, Sources};
use crate::capture::SIZE;
use crate::file_pages::OutsideFiles;
use crate::object_records::{ObjectRecord, records_of};
use pagetide_kernel::shared_memory::{self, AttachedSegment, Segment};
use pagetide_pages::{PageCount, PageIndex, PageRange};
use pagetide_process::{OpenError, Opener};
use pagetide_snapshot::{Backing, PageContent, Region, View};
use rustix::fs::{Gid, MemfdFlags, Mode, OFlags, Uid};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Makes every object that one of `regions` shows.
pub(super) fn make_all<'a>(
    view: &'a View,
    regions: impl Iterator<Item = (&'a Region, &'a Opener)>,
    opened: &mut Sources,
    made_now: &mut Made<'a>,
    accepted: &[String],
) -> Result<(), RestoreError> {
    let records = records_of(view);
    let mut made = BTreeSet::new();
    for (region, opener) in regions {
        let Some(shown) = &region.shows else { continue };
        let Some(space) = view.space_index(&shown.space) else {
            continue;
        };
        // A file may be mapped for reading and for writing; then it is opened for both.
        let name = (shown.space.clone(), opened.has(region));
        if name.1 || !made.insert(name) {
            continue;
        }
        let record = records.iter().find(|record| record.space == shown.space);
        let object = Object {
            view,
            space,
            region,
            opener,
            record: record.cloned().unwrap_or_else(|| unrecorded(view, space)),
        };
        let source = object.make(made_now, accepted)?;
        opened.put(region, source)?;
    }
    Ok(())
}

/// What can be told of an object from its pages alone.
fn unrecorded(view: &View, space: usize) -> ObjectRecord {
    let described = &view.spaces()[space];
    let last = described.regions.last();
    ObjectRecord {
        space: described.name.clone(),
        size_bytes: last.map_or(0, |last| SIZE.address_of(last.pages.end())),
        mode: 0o600,
        uid: 0,
        gid: 0,
        links: 1,
        in_memory: last.is_some_and(|last| matches!(last.backing, Backing::SharedMemory { .. })),
        segment_key: None,
    }
}

#[derive(Clone)]
pub(super) struct Object<'a> {
    view: &'a View,
    space: usize,
    region: &'a Region,
    /// As whom files are opened and made: the first process that maps it.
    opener: &'a Opener,
    record: ObjectRecord,
}

impl<'a> Object<'a> {
    fn path(&self) -> &[u8] {
        match &self.region.backing {
            Backing::File { path, .. } | Backing::SharedMemory { path, .. } => path,
            Backing::Anonymous | Backing::Kernel => b"",
        }
    }

    fn refused(&self, reason: impl Into<String>) -> RestoreError {
        RestoreError::File {
            path: String::from_utf8_lossy(self.path()).into_owned(),
            reason: reason.into(),
        }
    }

    fn failed(&self) -> impl Fn(io::Error) -> RestoreError + '_ {
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

    fn make(&self, made: &mut Made<'a>, accepted: &[String]) -> Result<Source, RestoreError> {
        if let Some(key) = self.record.segment_key {
            return self.segment(key, made);
        }
        match Nature::of(self.region) {
            Nature::SharedAnonymous => {
                let length = usize::try_from(self.record.size_bytes).unwrap_or(usize::MAX);
                let length = length.checked_next_multiple_of(SIZE.len());
                let memory = shared_memory::anonymous(length.unwrap_or(usize::MAX));
                self.filled(memory.map_err(self.failed())?)
            }
            Nature::Memfd(name) => {
                let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
                let made = rustix::fs::memfd_create(OsStr::from_bytes(name), flags);
                let made = made.map_err(|errno| self.failed()(errno.into()))?;
                self.filled(made)
            }
            Nature::Deleted(path) => self.without_name(path),
            Nature::Named(path) if self.record.in_memory => self.with_name(path, made),
            Nature::Named(path) => self.disk_file(path, accepted).map(Source::File),
            Nature::HugePages => {
                Err(self.refused("is shared memory of huge pages, which cannot be made again"))
            }
            Nature::Segment | Nature::Nothing | Nature::Unknown => {
                Err(self.refused("is nothing that can be made again"))
            }
        }
    }

    /// True if the process could have made it as it was.
    fn is_own(&self) -> bool {
        let own = (self.opener.user(), self.opener.group());
        own.0 == 0 || (self.record.uid, self.record.gid) == own
    }

    /// A new file of the length that the object had, with what it held.
    fn filled(&self, file: OwnedFd) -> Result<Source, RestoreError> {
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
        Ok(Source::File(file.into()))
    }

    fn own(&self, file: &OwnedFd) -> Result<(), RestoreError> {
        let (uid, gid) = (
            Uid::from_raw(self.record.uid),
            Gid::from_raw(self.record.gid),
        );
        let owned = rustix::fs::fchown(file, Some(uid), Some(gid));
        // What a process has written never runs with the rights of another user.
        let mode = match self.is_own() {
            true => self.record.mode & 0o7777,
            false => self.record.mode & 0o1777,
        };
        let moded = rustix::fs::fchmod(file, Mode::from_raw_mode(mode));
        let both = owned.and(moded);
        both.map_err(|errno| self.failed()(errno.into()))
    }

    /// What had a name in a file system and has none any more.
    fn without_name(&self, path: &Path) -> Result<Source, RestoreError> {
        let size = self.record.size_bytes;
        let file = match self.is_own() {
            true => sources::nameless(path, size, self.opener)?,
            false => sources::unlinkable(path, size, self.opener)?,
        };
        self.own(&file)?;
        self.filled(file)
    }

    /// Memory with a name in a file system. Where it still is, it is put back; where it is not, it is made. Both as the
    /// process would.
    fn with_name(&self, path: &Path, made: &mut Made<'a>) -> Result<Source, RestoreError> {
        let failed = |error: OpenError| match error {
            OpenError::Kernel(errno) => self.failed()(errno.into()),
            error => self.refused(error.to_string()),
        };
        match self.opener.find(path, sources::identity(self.region)) {
            Ok(found) => {
                let stat = found.stat;
                let same = (stat.st_uid, stat.st_gid) == (self.record.uid, self.record.gid);
                if !found.kind().is_file() || !same {
                    return Err(self.refused("is something else now"));
                }
                let file = found.open(OFlags::RDWR).map_err(failed)?;
                let again = file.try_clone().map_err(self.failed())?;
                made.present_file(self.clone(), again.into());
                Ok(Source::File(file))
            }
            Err(OpenError::Kernel(Errno::NOENT)) if !self.is_own() => Err(self.refused(format!(
                "is gone, and belonged to user {}: user {} of the process cannot make it again",
                self.record.uid,
                self.opener.user()
            ))),
            Err(OpenError::Kernel(Errno::NOENT)) => {
                let created = self.opener.create(path).map_err(failed)?;
                made.name(created.name);
                self.own(&created.file)?;
                self.filled(created.file)
            }
            Err(error) => Err(failed(error)),
        }
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
    fn disk_file(&self, path: &Path, accepted: &[String]) -> Result<OwnedFd, RestoreError> {
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
                match same {
                    true => Ok(()),
                    false => Err(changed()),
                }
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

    /// A System V segment: the one that is still there, or a new one with the same number.
    fn segment(&self, key: i32, made: &mut Made<'a>) -> Result<Source, RestoreError> {
        let id = match self.region.backing {
            Backing::SharedMemory { inode, .. } => i32::try_from(inode).unwrap_or(-1),
            _ => -1,
        };
        let number = SegmentNumber {
            id,
            length_bytes: self.record.size_bytes,
        };
        let wanted = Segment {
            id,
            length_bytes: self.record.size_bytes,
            key,
            mode: self.record.mode,
            uid: self.record.uid,
            gid: self.record.gid,
            attached: 0,
        };
        match shared_memory::segment(id) {
            Ok(found)
                if (found.key, found.length_bytes, found.uid, found.gid)
                    != (key, wanted.length_bytes, wanted.uid, wanted.gid) =>
            {
                return Err(self.refused(format!(
                    "has number {id}, which belongs to another segment now"
                )));
            }
            Ok(found) if found.attached > 0 => {
                return Err(self.refused("is attached to another process"));
            }
            Ok(_) => {
                made.hold(self.attach(id)?);
                made.present_segment(self.clone(), id);
                return Ok(Source::Segment(number));
            }
            Err(_) => shared_memory::make_segment(&wanted).map_err(|error| {
                self.refused(format!(
                    "cannot be made again with key {key:#x} and number {id}: {error}"
                ))
            })?,
        }
        made.segment(id);
        let attached = self.attach(id)?;
        if wanted.mode & SHM_DEST != 0 {
            shared_memory::remove_segment(id).map_err(self.failed())?;
        }
        if wanted.mode & SHM_LOCKED != 0 {
            shared_memory::lock_segment(id).map_err(self.failed())?;
        }
        self.fill_segment(&attached)?;
        made.hold(attached);
        Ok(Source::Segment(number))
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

/// Of the mode of a segment: it goes when nobody has it attached any more (shmctl(2)).
const SHM_DEST: u32 = 0o1000;
/// Its pages are never swapped out (SHM_LOCK).
const SHM_LOCKED: u32 = 0o2000;

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
