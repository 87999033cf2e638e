//! The address space of a process made again: every region mapped where it was, with its protection, advice and name,
//! and the addresses that the kernel remembers of the program. What the pages hold comes afterwards (see `fill`).

use super::error::RestoreError;
use super::policy::{self, Policy};
use super::segments::Attached;
use super::sources::{SourceNumber, Sources};
use crate::advice::{Advice, DROPPABLE, SEALED};
use crate::capture::SIZE;
use pagetide_kernel::maps::Mapping;
use pagetide_pages::{PageCount, PageRange, PageSet};
use pagetide_process::{
    Batch, MemoryLayout, NewProcess, RebuildError, RemoteCallError, RemoteCalls, SystemCalls,
    ThreadId,
};
use pagetide_snapshot::{Backing, Region, Sharing};
use std::os::fd::RawFd;

const SYS_MMAP: i64 = nix::libc::SYS_mmap;
const SYS_MPROTECT: i64 = nix::libc::SYS_mprotect;
const SYS_MADVISE: i64 = nix::libc::SYS_madvise;
const SYS_MLOCK2: i64 = nix::libc::SYS_mlock2;
/// Linux 6.10.
const SYS_MSEAL: i64 = 462;
const SYS_PRCTL: i64 = nix::libc::SYS_prctl;

const PR_SET_MM: u64 = 35;
const PR_SET_MM_MAP: u64 = 14;
const PR_SET_VMA: u64 = 0x5356_4d41;
const PR_SET_VMA_ANON_NAME: u64 = 0;
const MLOCK_ONFAULT: u64 = 1;
/// In the place of MAP_PRIVATE, since Linux 6.11.
const MAP_DROPPABLE: i32 = 0x08;
/// Linux 5.14.
const MADV_POPULATE_WRITE: i32 = 23;
/// Linux 6.13.
const MADV_GUARD_INSTALL: u64 = 102;

/// So many calls, and about so many of their bytes, wait at most to be made together.
const CALLS_AT_ONCE: usize = 1024;
const BYTES_AT_ONCE: usize = 16 << 10;

/// The advice of madvise(2) by the name under which a region has it.
const ADVICE: [(&str, i32); 8] = [
    ("sequential", nix::libc::MADV_SEQUENTIAL),
    ("random", nix::libc::MADV_RANDOM),
    ("dontfork", nix::libc::MADV_DONTFORK),
    ("dontdump", nix::libc::MADV_DONTDUMP),
    ("wipeonfork", nix::libc::MADV_WIPEONFORK),
    ("hugepage", nix::libc::MADV_HUGEPAGE),
    ("nohugepage", nix::libc::MADV_NOHUGEPAGE),
    ("mergeable", nix::libc::MADV_MERGEABLE),
];

fn has(region: &Region, advice: &str) -> bool {
    region.advice.iter().any(|given| given == advice)
}

/// `mmap` arguments for a region.
pub(super) fn mmap_arguments(region: &Region, source: Option<RawFd>) -> [u64; 6] {
    let (start, end) = SIZE.span_of(region.pages);
    let mut flags = nix::libc::MAP_FIXED
        | match region.sharing {
            Sharing::Private if has(region, DROPPABLE) => MAP_DROPPABLE,
            Sharing::Private => nix::libc::MAP_PRIVATE,
            Sharing::Shared => nix::libc::MAP_SHARED,
        };
    let given = [
        ("growsdown", nix::libc::MAP_GROWSDOWN),
        ("noreserve", nix::libc::MAP_NORESERVE),
        ("hugetlb", nix::libc::MAP_HUGETLB),
    ];
    for (_, flag) in given.iter().filter(|(advice, _)| has(region, advice)) {
        // A file of hugetlbfs is huge by itself.
        if source.is_none() || *flag != nix::libc::MAP_HUGETLB {
            flags |= flag;
        }
    }
    let offset = match (&region.backing, source) {
        (
            Backing::File { offset_bytes, .. } | Backing::SharedMemory { offset_bytes, .. },
            Some(_),
        ) => *offset_bytes,
        _ => {
            flags |= nix::libc::MAP_ANONYMOUS;
            0
        }
    };
    [
        start,
        end - start,
        u64::from(first_protection(region)),
        u64::from(flags.unsigned_abs()),
        source.map_or(u64::MAX, |number| u64::from(number.unsigned_abs())),
        offset,
    ]
}

/// A part of a region.
pub(super) fn part_of(region: &Region, pages: PageRange) -> Region {
    let mut part = region.clone();
    let skipped = SIZE.bytes_of(PageCount(pages.start().0 - region.pages.start().0));
    if let Backing::File { offset_bytes, .. } | Backing::SharedMemory { offset_bytes, .. } =
        &mut part.backing
    {
        *offset_bytes += skipped;
    }
    part.pages = pages;
    part
}

fn protection(region: &Region) -> u32 {
    let bit = |on, bit: i32| if on { bit.unsigned_abs() } else { 0 };
    bit(region.protection.read, nix::libc::PROT_READ)
        | bit(region.protection.write, nix::libc::PROT_WRITE)
        | bit(region.protection.execute, nix::libc::PROT_EXEC)
}

/// The protection it is mapped with. Memory that once could be written to is charged for ever, which is told by an
/// attribute of its own.
fn first_protection(region: &Region) -> u32 {
    if has(region, "accounted") && !region.protection.write {
        nix::libc::PROT_WRITE.unsigned_abs()
    } else {
        protection(region)
    }
}

/// Maps all `regions` into an empty address space, but for the parts that it was born with (`kept`). Those of the kernel are
/// there already. From `place` on there is room for what is attached out of the way meanwhile. Returns what could not be as it was.
pub(super) fn map_all(
    new: &mut NewProcess,
    regions: &[Region],
    sources: &Sources,
    kept: &PageSet,
    policies: &[Policy],
    place: u64,
) -> Result<Vec<String>, RestoreError> {
    let pid = new.pid();
    let mut notes = Vec::new();
    let mut calls = new.calls(ThreadId::new(pid))?;
    let attach = |source| RebuildError::Remote {
        what: "attach shared memory",
        pid,
        source,
    };
    let attached = Attached::attach(&mut calls, regions, sources, place).map_err(attach)?;
    let mut waiting = Waiting::default();
    for region in regions
        .iter()
        .filter(|region| region.backing != Backing::Kernel)
    {
        let kept = kept.within(region.pages);
        let source = sources.of(region);
        let first = match source {
            Some(SourceNumber::Segment(segment)) => {
                waiting.run(&mut calls)?;
                let mapped = attached.map(&mut calls, region, segment);
                mapped.map_err(|source| refused(region, source))?
            }
            Some(SourceNumber::File(number)) => {
                map_pages(&mut waiting, region, Some(number), &kept)
            }
            None => map_pages(&mut waiting, region, None, &kept),
        };
        attributes(&mut waiting, region, first, &kept);
        if policy::is_set(policies, region.pages) {
            waiting.run(&mut calls)?;
            let set = policy::set(&mut calls, policies, region.pages);
            notes.extend(set.map_err(|source| refused(region, source))?);
        }
        if waiting.batch.bytes() > BYTES_AT_ONCE || waiting.batch.len() > CALLS_AT_ONCE {
            waiting.run(&mut calls)?;
        }
    }
    waiting.run(&mut calls)?;
    attached.detach(&mut calls).map_err(attach)?;
    finish(calls, pid)?;
    Ok(notes)
}

fn finish(calls: RemoteCalls<'_>, pid: i32) -> Result<(), RestoreError> {
    let remote = |source| RebuildError::Remote {
        what: "end system calls",
        pid,
        source,
    };
    Ok(calls.finish().map_err(remote)?)
}

/// Calls that map regions and wait to be made.
#[derive(Default)]
struct Waiting<'a> {
    batch: Batch,
    /// Which region each of them is about.
    of: Vec<&'a Region>,
}

impl<'a> Waiting<'a> {
    fn push(&mut self, region: &'a Region, number: i64, args: [u64; 6]) {
        self.batch.push(number, args);
        self.of.push(region);
    }

    fn run(&mut self, calls: &mut RemoteCalls<'_>) -> Result<(), RestoreError> {
        let of = std::mem::take(&mut self.of);
        let done = calls.call_all(std::mem::take(&mut self.batch));
        done.map_err(|(index, source)| refused(of[index], source))
    }
}

fn refused(region: &Region, source: RemoteCallError) -> RestoreError {
    let (start, end) = SIZE.span_of(region.pages);
    RestoreError::Map {
        start,
        end,
        name: region.name.clone(),
        source,
    }
}

/// Gives a region that is mapped, with the protection `first`, its own, its advice and its name.
fn attributes<'a>(waiting: &mut Waiting<'a>, region: &'a Region, first: u32, kept: &PageSet) {
    let (start, end) = SIZE.span_of(region.pages);
    let length = end - start;
    // What it was born with has the protection that it had in a relative.
    if first != protection(region) || !kept.is_empty() {
        let protection = u64::from(protection(region));
        waiting.push(region, SYS_MPROTECT, [start, length, protection, 0, 0, 0]);
    }
    for (_, advice) in ADVICE.iter().filter(|(name, _)| has(region, name)) {
        let advice = u64::from(advice.unsigned_abs());
        waiting.push(region, SYS_MADVISE, [start, length, advice, 0, 0, 0]);
    }
    let inner = region
        .name
        .strip_prefix("[anon:")
        .or(region.name.strip_prefix("[anon_shmem:"));
    if let Some(name) = inner.and_then(|name| name.strip_suffix(']')) {
        let mut name = name.as_bytes().to_vec();
        name.push(0);
        let arguments = [PR_SET_VMA, PR_SET_VMA_ANON_NAME, start, length, 0, 0];
        waiting.batch.push_with(SYS_PRCTL, arguments, 4, &name);
        waiting.of.push(region);
    }
}

/// Maps those of a region that are not `kept`. Returns the protection that they have.
///
/// Memory that is to be accounted though it cannot be written to has held something: since Linux 6.6 the kernel forgets
/// accounting when it protects anonymous memory that never has. So its first page is there for a moment.
fn map_pages<'a>(
    waiting: &mut Waiting<'a>,
    region: &'a Region,
    source: Option<RawFd>,
    kept: &PageSet,
) -> u32 {
    for &pages in PageSet::from(region.pages).subtract(kept).ranges() {
        let part = part_of(region, pages);
        let place = mmap_arguments(&part, source);
        waiting.push(region, SYS_MMAP, place);
        if source.is_none() && first_protection(region) != protection(region) {
            for advice in [MADV_POPULATE_WRITE, nix::libc::MADV_DONTNEED] {
                let advice = u64::from(advice.unsigned_abs());
                waiting.push(
                    region,
                    SYS_MADVISE,
                    [place[0], SIZE.bytes(), advice, 0, 0, 0],
                );
            }
        }
    }
    first_protection(region)
}

/// Takes away what `new` was born with and is not to hold.
pub(super) fn drop_pages(new: &mut NewProcess, pages: &PageSet) -> Result<(), RestoreError> {
    if pages.is_empty() {
        return Ok(());
    }
    let pid = new.pid();
    let mut calls = new.calls(ThreadId::new(pid))?;
    for &range in pages.ranges() {
        let (start, end) = SIZE.span_of(range);
        let advice = u64::from(nix::libc::MADV_DONTNEED.unsigned_abs());
        let dropped = calls.call(SYS_MADVISE, [start, end - start, advice, 0, 0, 0]);
        dropped.map_err(|source| RebuildError::Remote {
            what: "drop pages",
            pid,
            source,
        })?;
    }
    finish(calls, pid)
}

/// What can be done only when the pages are there: guards, and locking memory.
pub(super) fn seal(
    new: &mut NewProcess,
    regions: &[Region],
    guards: &[pagetide_pages::PageRange],
) -> Result<(), RestoreError> {
    let pid = new.pid();
    let locked = regions.iter().filter(|region| has(region, "locked"));
    let mut locked = locked.peekable();
    if guards.is_empty() && locked.peek().is_none() {
        return Ok(());
    }
    let remote = |what| move |source| RebuildError::Remote { what, pid, source };
    let mut calls = new.calls(ThreadId::new(pid))?;
    for &pages in guards {
        let (start, end) = SIZE.span_of(pages);
        calls
            .call(
                SYS_MADVISE,
                [start, end - start, MADV_GUARD_INSTALL, 0, 0, 0],
            )
            .map_err(remote("install guard pages"))?;
    }
    let locked: Vec<&Region> = locked.collect();
    for region in &locked {
        let (start, end) = SIZE.span_of(region.pages);
        calls
            .call(SYS_MLOCK2, [start, end - start, MLOCK_ONFAULT, 0, 0, 0])
            .map_err(remote("lock memory"))?;
    }
    // Whether pages are locked as they come, some kernels tell and others do not; then it stays so.
    let (now, mappings) = if locked.iter().any(|region| !has(region, "lockonfault")) {
        Advice::read(pid)?
    } else {
        Default::default()
    };
    let told = mappings
        .iter()
        .filter(|mapping| now.has(mapping, "lockonfault"));
    let told: PageSet = told.map(Mapping::pages).collect();
    for region in locked.iter().filter(|region| !has(region, "lockonfault")) {
        for &pages in told.within(region.pages).ranges() {
            let (start, end) = SIZE.span_of(pages);
            match calls.call(SYS_MLOCK2, [start, end - start, 0, 0, 0, 0]) {
                // It is locked: what cannot be touched is not there to be fetched.
                Ok(_) | Err(RemoteCallError::Failed { .. }) => {}
                Err(error) => return Err(remote("lock memory")(error).into()),
            }
        }
    }
    finish(calls, pid)
}

/// Seals the regions that were sealed (mseal(2)), from which on they cannot be mapped or protected otherwise: last of all.
pub(super) fn seal_for_good(new: &mut NewProcess, regions: &[Region]) -> Result<(), RestoreError> {
    let sealed = |region: &&Region| has(region, SEALED) && region.backing != Backing::Kernel;
    let mut waiting = Waiting::default();
    for region in regions.iter().filter(sealed) {
        let (start, end) = SIZE.span_of(region.pages);
        waiting.push(region, SYS_MSEAL, [start, end - start, 0, 0, 0, 0]);
    }
    if waiting.of.is_empty() {
        return Ok(());
    }
    let pid = new.pid();
    let mut calls = new.calls(ThreadId::new(pid))?;
    waiting.run(&mut calls)?;
    finish(calls, pid)
}

/// Tells the kernel what it remembers of the program: where its code, data, heap, stack, arguments and environment are, its
/// auxiliary vector, and which file it runs. Source: prctl(2), PR_SET_MM_MAP.
pub(super) fn set_layout(
    new: &mut NewProcess,
    layout: &MemoryLayout,
    heap_end: u64,
    auxv: &[u8],
    program: Option<RawFd>,
) -> Result<(), RestoreError> {
    let pid = new.pid();
    let mut calls = new.calls(ThreadId::new(pid))?;
    let set = calls.with_bytes(auxv, |calls, auxv_at| {
        let words = [
            layout.start_code,
            layout.end_code,
            layout.start_data,
            layout.end_data,
            layout.start_brk,
            heap_end,
            layout.start_stack,
            layout.arg_start,
            layout.arg_end,
            layout.env_start,
            layout.env_end,
            auxv_at,
        ];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(u32::try_from(auxv.len()).unwrap_or(0).to_le_bytes());
        bytes.extend(program.unwrap_or(-1).to_le_bytes());
        let length = bytes.len() as u64;
        calls.with_bytes(&bytes, |calls, map| {
            calls.call(SYS_PRCTL, [PR_SET_MM, PR_SET_MM_MAP, map, length, 0, 0])
        })
    });
    set.map_err(|source| RebuildError::Remote {
        what: "set what the kernel remembers of the program",
        pid,
        source,
    })?;
    finish(calls, pid)
}

/// An address where `length` bytes are free in the address space of these regions: the lowest such place above the first
/// 16 MiB.
pub(super) fn free_place(regions: &[Region], length: u64) -> u64 {
    let mut at = 16 << 20;
    for region in regions {
        let (start, end) = SIZE.span_of(region.pages);
        // The stack may grow down, and nothing may be right below it.
        if start >= at + length + (2 << 20) {
            break;
        }
        at = at.max(end);
    }
    at
}
