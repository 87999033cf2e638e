//! System V segments mapped as they were. shmat(2) maps a segment as a whole and with one protection; what became of it
//! by munmap(2), mprotect(2), mremap(2) or remap_file_pages(2) is many mappings, each of a part.
//!
//! What shows a whole segment is attached where it was. For all other mappings the segment is attached out of the way, once
//! for those that may be written to and once for those that never may, and each mapping is made from that by an
//! mremap(2) of no bytes, which leaves the old one as it is. shmdt(2) goes by address and offset, and so finds
//! the new mappings as it would have found the old ones.

use super::sources::{SegmentNumber, SourceNumber, Sources, writes_through};
use crate::capture::SIZE;
use pagetide_process::{RemoteCallError, RemoteCalls};
use pagetide_snapshot::{Backing, Region};
use std::collections::BTreeMap;

const SYS_SHMAT: i64 = nix::libc::SYS_shmat;
const SYS_SHMDT: i64 = nix::libc::SYS_shmdt;
const SYS_MREMAP: i64 = nix::libc::SYS_mremap;

/// The segment that a region shows, if it shows one.
fn segment_of(region: &Region, sources: &Sources) -> Option<SegmentNumber> {
    match sources.of(region)? {
        SourceNumber::Segment(segment) => Some(segment),
        SourceNumber::File(_) => None,
    }
}

fn offset_of(region: &Region) -> u64 {
    match region.backing {
        Backing::SharedMemory { offset_bytes, .. } => offset_bytes,
        _ => 0,
    }
}

/// True if the region is what one shmat(2) makes.
fn is_whole(region: &Region, segment: SegmentNumber) -> bool {
    let length = SIZE.bytes_of(region.pages.count());
    offset_of(region) == 0 && length == segment.mapped_bytes()
}

/// Segments that are attached out of the way while mappings are made of their parts.
#[derive(Default)]
pub(super) struct Attached {
    /// By number, and whether it may be written to through the mapping.
    at: BTreeMap<(i32, bool), u64>,
}

impl Attached {
    /// How many bytes of address space are needed for what `regions` show in parts.
    pub fn needed_bytes(regions: &[Region], sources: &Sources) -> u64 {
        let needed = parts(regions, sources);
        needed.values().map(|segment| segment.mapped_bytes()).sum()
    }

    /// Attaches what `regions` show in parts, from the address `place` on, where as much is free as `needed_bytes` says.
    pub fn attach(
        calls: &mut RemoteCalls<'_>,
        regions: &[Region],
        sources: &Sources,
        place: u64,
    ) -> Result<Self, RemoteCallError> {
        let mut attached = Self::default();
        let mut place = place;
        for (key, segment) in parts(regions, sources) {
            attach(calls, segment, place, key.1)?;
            attached.at.insert(key, place);
            place += segment.mapped_bytes();
        }
        Ok(attached)
    }

    /// Maps what `region` shows of a segment. Returns the protection that it has.
    pub fn map(
        &self,
        calls: &mut RemoteCalls<'_>,
        region: &Region,
        segment: SegmentNumber,
    ) -> Result<u32, RemoteCallError> {
        let (start, end) = SIZE.span_of(region.pages);
        let writes = writes_through(region);
        match self.at.get(&(segment.id, writes)) {
            Some(place) if !is_whole(region, segment) => {
                let from = place + offset_of(region);
                let flags = nix::libc::MREMAP_MAYMOVE | nix::libc::MREMAP_FIXED;
                let flags = u64::from(flags.unsigned_abs());
                calls.call(SYS_MREMAP, [from, 0, end - start, flags, start, 0])?;
            }
            _ => attach(calls, segment, start, writes)?,
        }
        let write = if writes { nix::libc::PROT_WRITE } else { 0 };
        Ok((nix::libc::PROT_READ | write).unsigned_abs())
    }

    /// Takes away what was attached out of the way.
    pub fn detach(self, calls: &mut RemoteCalls<'_>) -> Result<(), RemoteCallError> {
        for place in self.at.values() {
            calls.call(SYS_SHMDT, [*place, 0, 0, 0, 0, 0])?;
        }
        Ok(())
    }
}

/// What regions show in parts.
fn parts(regions: &[Region], sources: &Sources) -> BTreeMap<(i32, bool), SegmentNumber> {
    let part = |region: &Region| {
        let segment = segment_of(region, sources)?;
        let key = (segment.id, writes_through(region));
        (!is_whole(region, segment)).then_some((key, segment))
    };
    regions.iter().filter_map(part).collect()
}

fn attach(
    calls: &mut RemoteCalls<'_>,
    segment: SegmentNumber,
    at: u64,
    writes: bool,
) -> Result<(), RemoteCallError> {
    let flags = if writes { 0 } else { nix::libc::SHM_RDONLY };
    let [id, flags] = [segment.id, flags].map(|number| u64::from(number.unsigned_abs()));
    calls.call(SYS_SHMAT, [id, at, flags, 0, 0, 0]).map(drop)
}
