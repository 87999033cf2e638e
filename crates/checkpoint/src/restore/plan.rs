//! One process of a snapshot, as far as it is known before it exists again.

use super::error::RestoreError;
use crate::capture::SIZE;
use crate::manifest::MemberNames;
use pagetide_kernel::memory::ProcessMemory;
use pagetide_pages::PageIndex;
use pagetide_process::{KernelMapping, KernelState, ProcessState};
use pagetide_snapshot::{Backing, PageContent, ReadError, Region, View};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// See the head of this file.
pub(super) struct RestorePlan<'a> {
    /// Its pid in the snapshot.
    pub pid: i32,
    pub names: MemberNames,
    pub space: usize,
    pub state: ProcessState,
    pub kernel: KernelState,
    pub regions: &'a [Region],
    pub kernel_mappings: Vec<KernelMapping>,
}

/// No process has addresses from here on, with five levels of page tables.
const ADDRESSES_END: u64 = 1 << 56;

/// What the kernel maps where it needs it, and not into every process.
const MADE_BY_KERNEL: [&str; 3] = ["[vsyscall]", "[uprobes]", "[uprobes-trampoline]"];

/// Refuses what no process can have, before anything is made of it.
fn check_spaces(view: &View) -> Result<(), RestoreError> {
    let impossible = |what| RestoreError::Impossible {
        id: view.id(),
        what,
    };
    for space in view.spaces() {
        if space.page_size != SIZE {
            let what = format!(
                "space {} has pages of {} bytes",
                space.name,
                space.page_size.bytes()
            );
            return Err(impossible(what));
        }
        let last = space
            .regions
            .iter()
            .rfind(|one| one.backing != Backing::Kernel);
        let end = PageIndex(ADDRESSES_END / SIZE.bytes());
        if let Some(last) = last.filter(|last| last.pages.end() > end) {
            let (first, end) = (last.pages.start().0, last.pages.end().0);
            let what = format!("space {} has pages {first:#x} to {end:#x}", space.name);
            return Err(impossible(what));
        }
    }
    Ok(())
}

impl<'a> RestorePlan<'a> {
    pub fn of(view: &'a View, names: &MemberNames) -> Result<Self, RestoreError> {
        let id = view.id();
        let none = || RestoreError::NotAProcess { id };
        let space = view.space_index(&names.space).ok_or_else(none)?;
        let state = view.attachment(&names.process).ok_or_else(none)?;
        let state = ProcessState::from_bytes(state)?;
        let kernel = view.attachment(&names.kernel);
        let kernel = kernel.ok_or(RestoreError::MemoryOnly { id })?;
        let kernel = KernelState::from_bytes(kernel)?;
        check_spaces(view)?;
        let regions = &view.spaces()[space].regions[..];
        let of_kernel = regions.iter().filter(|region| {
            region.backing == Backing::Kernel && !MADE_BY_KERNEL.contains(&&*region.name)
        });
        let kernel_mapping = |region: &Region| {
            let (start, end) = SIZE.span_of(region.pages);
            KernelMapping {
                name: region.name.clone(),
                start,
                end,
            }
        };
        Ok(RestorePlan {
            pid: state.outside.identity.pid,
            names: names.clone(),
            space,
            state,
            kernel,
            regions,
            kernel_mappings: of_kernel.map(kernel_mapping).collect(),
        })
    }

    /// Refuses a vdso that is not the one of this kernel, byte for byte: code of the program may call into it.
    pub fn check_vdso(&self, view: &View, own: &[KernelMapping]) -> Result<(), RestoreError> {
        let differs = || RestoreError::Vdso { id: view.id() };
        let is_vdso = |mapping: &&KernelMapping| mapping.name == "[vdso]";
        let Some(wanted) = self.regions.iter().find(|region| region.name == "[vdso]") else {
            return Ok(());
        };
        let own = own.iter().find(is_vdso).ok_or_else(differs)?;
        // Before any of it is read: what it says of its length may be anything.
        if SIZE.bytes_of(wanted.pages.count()) != own.end - own.start {
            return Err(differs());
        }
        let mut bytes = Vec::new();
        view.read::<ReadError>(self.space, wanted.pages, |pages, content| {
            match content {
                PageContent::Bytes(found) => bytes.extend_from_slice(found),
                _ => bytes.resize(bytes.len() + SIZE.bytes_of(pages.count()) as usize, 0),
            }
            Ok(())
        })?;
        let mut present = vec![0; usize::try_from(own.end - own.start).unwrap_or(0)];
        let memory = ProcessMemory::open(std::process::id().cast_signed())?;
        memory.read(own.start, &mut present)?;
        if bytes == present {
            Ok(())
        } else {
            Err(differs())
        }
    }

    /// The path of its program, and whether that was deleted.
    pub fn program(&self) -> (&Path, bool) {
        let path = &self.state.outside.exe;
        match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
            Some(gone) => (Path::new(OsStr::from_bytes(gone)), true),
            None => (path, false),
        }
    }

    /// Where its heap ends: the address that the kernel keeps for brk(2), in whole pages.
    pub fn heap_end(&self) -> u64 {
        let heap = self.regions.iter().filter(|region| region.name == "[heap]");
        let end = heap.map(|region| SIZE.span_of(region.pages).1).max();
        end.unwrap_or(self.state.outside.layout.start_brk)
    }
}
