//! Shared objects made again and filled, before there is any process to map them: what is memory is made anew, or put back
//! where it still is; a file on a disk has to be what it was.

use super::error::RestoreError;
use super::made::NewObjects;
use super::nature::Nature;
use super::object::Object;
use super::sources::{self, MappingSource, SegmentNumber, Sources};
use crate::capture::SIZE;
use crate::object_records::{ObjectRecord, records_of};
use pagetide_kernel::shared_memory::{self, Segment};
use pagetide_process::{OpenError, Opener};
use pagetide_snapshot::{Backing, Region, View};
use rustix::fs::{MemfdFlags, OFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Of the mode of a segment: it goes when nobody has it attached any more (shmctl(2)).
const SHM_DEST: u32 = 0o1000;
/// Its pages are never swapped out (SHM_LOCK).
const SHM_LOCKED: u32 = 0o2000;

/// Makes every object that one of `regions` shows.
pub(super) fn make_all<'a>(
    view: &'a View,
    regions: impl Iterator<Item = (&'a Region, &'a Opener)>,
    opened: &mut Sources,
    made_now: &mut NewObjects<'a>,
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
        let source = make(&object, made_now, accepted)?;
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

/// Makes the object, or finds it, and notes in `made` what it has made.
fn make<'a>(
    object: &Object<'a>,
    made: &mut NewObjects<'a>,
    accepted: &[String],
) -> Result<MappingSource, RestoreError> {
    if let Some(key) = object.record.segment_key {
        return segment(object, key, made);
    }
    match Nature::of(object.region) {
        Nature::SharedAnonymous => {
            let length = usize::try_from(object.record.size_bytes).unwrap_or(usize::MAX);
            let length = length.checked_next_multiple_of(SIZE.len());
            let memory = shared_memory::anonymous(length.unwrap_or(usize::MAX));
            object.filled(memory.map_err(object.failed())?)
        }
        Nature::Memfd(name) => {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let made = rustix::fs::memfd_create(OsStr::from_bytes(name), flags);
            let made = made.map_err(|errno| object.failed()(errno.into()))?;
            object.filled(made)
        }
        Nature::Deleted(path) => object.without_name(path),
        Nature::Named(path) if object.record.in_memory => with_name(object, path, made),
        Nature::Named(path) => object.disk_file(path, accepted).map(MappingSource::File),
        Nature::HugePages => {
            Err(object.refused("is shared memory of huge pages, which cannot be made again"))
        }
        Nature::Segment | Nature::Nothing | Nature::Unknown => {
            Err(object.refused("is nothing that can be made again"))
        }
    }
}

/// Memory with a name in a file system. Where it still is, it is put back; where it is not, it is made. Both as the
/// process would.
fn with_name<'a>(
    object: &Object<'a>,
    path: &Path,
    made: &mut NewObjects<'a>,
) -> Result<MappingSource, RestoreError> {
    let failed = |error: OpenError| match error {
        OpenError::Kernel(errno) => object.failed()(errno.into()),
        error => object.refused(error.to_string()),
    };
    match object.opener.find(path, sources::identity(object.region)) {
        Ok(found) => {
            let stat = found.stat;
            let same = (stat.st_uid, stat.st_gid) == (object.record.uid, object.record.gid);
            if !found.kind().is_file() || !same {
                return Err(object.refused("is something else now"));
            }
            let file = found.open(OFlags::RDWR).map_err(failed)?;
            let again = file.try_clone().map_err(object.failed())?;
            made.present_file(object.clone(), again.into());
            Ok(MappingSource::File(file))
        }
        Err(OpenError::Kernel(Errno::NOENT)) if !object.is_own() => Err(object.refused(format!(
            "is gone, and belonged to user {}: user {} of the process cannot make it again",
            object.record.uid,
            object.opener.user()
        ))),
        Err(OpenError::Kernel(Errno::NOENT)) => {
            let created = object.opener.create(path).map_err(failed)?;
            made.name(created.name);
            object.own(&created.file)?;
            object.filled(created.file)
        }
        Err(error) => Err(failed(error)),
    }
}

/// A System V segment: the one that is still there, or a new one with the same number.
fn segment<'a>(
    object: &Object<'a>,
    key: i32,
    made: &mut NewObjects<'a>,
) -> Result<MappingSource, RestoreError> {
    let id = match object.region.backing {
        Backing::SharedMemory { inode, .. } => i32::try_from(inode).unwrap_or(-1),
        _ => -1,
    };
    let number = SegmentNumber {
        id,
        length_bytes: object.record.size_bytes,
    };
    let wanted = Segment {
        id,
        length_bytes: object.record.size_bytes,
        key,
        mode: object.record.mode,
        uid: object.record.uid,
        gid: object.record.gid,
        attached: 0,
    };
    match shared_memory::segment(id) {
        Ok(found)
            if (found.key, found.length_bytes, found.uid, found.gid)
                != (key, wanted.length_bytes, wanted.uid, wanted.gid) =>
        {
            return Err(
                object.refused(format!("has id {id}, which belongs to another segment now"))
            );
        }
        Ok(found) if found.attached > 0 => {
            return Err(object.refused("is attached to another process"));
        }
        Ok(_) => {
            made.hold(object.attach(id)?);
            made.present_segment(object.clone(), id);
            return Ok(MappingSource::Segment(number));
        }
        Err(_) => shared_memory::make_segment(&wanted).map_err(|error| {
            object.refused(format!(
                "cannot be made again with key {key:#x} and id {id}: {error}"
            ))
        })?,
    }
    made.segment(id);
    let attached = object.attach(id)?;
    if wanted.mode & SHM_DEST != 0 {
        shared_memory::remove_segment(id).map_err(object.failed())?;
    }
    if wanted.mode & SHM_LOCKED != 0 {
        shared_memory::lock_segment(id).map_err(object.failed())?;
    }
    object.fill_segment(&attached)?;
    made.hold(attached);
    Ok(MappingSource::Segment(number))
}
