//! A snapshot of a process as an ELF core file, as core(5) and the kernel's own dumps lay it out:
//! notes with the threads' registers, the auxiliary vector and the mapped files, then one segment a
//! region. Regions the snapshot does not hold, and those that the program wants in no core, have a segment without bytes.

mod extent;

use super::region::{ExportError, write_region};
use crate::manifest::MemberNames;
pub use extent::CoreExtent;
use extent::Dumped;
use object::elf;
use object::endian::{LittleEndian as Le, U16, U32, U64};
use object::pod::bytes_of;
use pagetide_pages::{PageCount, PageSize};
use pagetide_process::{ProcessState, StateDecodeError, ThreadState};
use pagetide_snapshot::{Backing, Region, View};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Why a core file could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CoreError {
    /// The snapshot is not one of a process.
    #[error("snapshot {id} holds no process")]
    NotAProcess {
        /// Its id.
        id: pagetide_snapshot::SnapshotId,
    },
    /// The state of the process cannot be read.
    #[error("the process state in the snapshot")]
    State(#[from] StateDecodeError),
    /// The memory could not be written out.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The file could not be written.
    #[error("write the core file")]
    Write(#[from] std::io::Error),
}

const SIZE: PageSize = PageSize::KIB_4;
const HEADER_BYTES: u64 = size_of::<elf::FileHeader64<Le>>() as u64;
const SEGMENT_BYTES: u64 = size_of::<elf::ProgramHeader64<Le>>() as u64;
const NT_X86_XSTATE: u32 = 0x202;
/// The segment count that says: see the first section header (elf(5)).
const PN_XNUM: u16 = 0xffff;
/// The part of the XSTATE that NT_FPREGSET holds: what FXSAVE would store.
const FXSAVE_BYTES: usize = 512;

/// Writes the process of snapshot `view` whose parts are called `names` to `out`, an empty file: as much of its memory as
/// `extent` says.
pub fn write_core(
    view: &View,
    names: &MemberNames,
    extent: CoreExtent,
    out: &File,
) -> Result<(), CoreError> {
    let not_a_process = || CoreError::NotAProcess { id: view.id() };
    let space = view.space_index(&names.space).ok_or_else(not_a_process)?;
    let state = view.attachment(&names.process).ok_or_else(not_a_process)?;
    let state = ProcessState::from_bytes(state)?;
    let regions = &view.spaces()[space].regions;
    if regions
        .iter()
        .any(|region| SIZE.span_of(region.pages).1 < SIZE.span_of(region.pages).0)
    {
        return Err(std::io::Error::from(std::io::ErrorKind::FileTooLarge).into());
    }
    let notes = notes(&state, regions);
    let dumped = Dumped::of(view, names, space, extent);

    let segments = regions.len() as u64 + 1;
    // Too many segments for the header's 16 bits are counted in a section header instead.
    let extended = segments >= u64::from(PN_XNUM);
    let section_at = HEADER_BYTES + segments * SEGMENT_BYTES;
    let section_bytes = if extended {
        size_of::<elf::SectionHeader64<Le>>() as u64
    } else {
        0
    };
    let notes_at = section_at + section_bytes;
    let mut data_at = (notes_at + notes.len() as u64).next_multiple_of(SIZE.bytes());

    let mut head = Vec::new();
    head.extend_from_slice(bytes_of(&file_header(segments, section_at)));
    head.extend_from_slice(bytes_of(&note_segment(notes_at, notes.len() as u64)));
    let mut placed = Vec::new();
    for region in regions {
        let held = dumped.part(region);
        head.extend_from_slice(bytes_of(&load_segment(region, data_at, held.count())));
        let end = data_at.checked_add(SIZE.bytes_of(held.count()));
        if !held.is_empty() {
            let mut part = region.clone();
            part.pages = held;
            placed.push((part, data_at));
        }
        data_at = end
            .ok_or(std::io::ErrorKind::FileTooLarge)
            .map_err(std::io::Error::from)?;
    }
    if extended {
        head.extend_from_slice(bytes_of(&counting_section(segments)));
    }
    head.extend_from_slice(&notes);
    out.write_all_at(&head, 0)?;
    for (part, offset) in placed {
        write_region(view, space, &part, SIZE, out, offset)?;
    }
    Ok(())
}

fn file_header(segments: u64, section_at: u64) -> elf::FileHeader64<Le> {
    let extended = segments >= u64::from(PN_XNUM);
    elf::FileHeader64 {
        e_ident: elf::Ident {
            magic: elf::ELFMAG,
            class: elf::ELFCLASS64,
            data: elf::ELFDATA2LSB,
            version: elf::EV_CURRENT,
            os_abi: elf::ELFOSABI_NONE,
            abi_version: 0,
            padding: [0; 7],
        },
        e_type: U16::new(Le, elf::ET_CORE),
        e_machine: U16::new(Le, elf::EM_X86_64),
        e_version: U32::new(Le, u32::from(elf::EV_CURRENT)),
        e_entry: U64::new(Le, 0),
        e_phoff: U64::new(Le, HEADER_BYTES),
        e_shoff: U64::new(Le, if extended { section_at } else { 0 }),
        e_flags: U32::new(Le, 0),
        e_ehsize: U16::new(Le, HEADER_BYTES as u16),
        e_phentsize: U16::new(Le, SEGMENT_BYTES as u16),
        e_phnum: U16::new(Le, if extended { PN_XNUM } else { segments as u16 }),
        e_shentsize: U16::new(Le, size_of::<elf::SectionHeader64<Le>>() as u16),
        e_shnum: U16::new(Le, u16::from(extended)),
        e_shstrndx: U16::new(Le, 0),
    }
}

fn counting_section(segments: u64) -> elf::SectionHeader64<Le> {
    elf::SectionHeader64 {
        sh_name: U32::new(Le, 0),
        sh_type: U32::new(Le, elf::SHT_NULL),
        sh_flags: U64::new(Le, 0),
        sh_addr: U64::new(Le, 0),
        sh_offset: U64::new(Le, 0),
        sh_size: U64::new(Le, 1),
        sh_link: U32::new(Le, 0),
        sh_info: U32::new(Le, segments as u32),
        sh_addralign: U64::new(Le, 0),
        sh_entsize: U64::new(Le, 0),
    }
}

fn note_segment(offset: u64, length: u64) -> elf::ProgramHeader64<Le> {
    elf::ProgramHeader64 {
        p_type: U32::new(Le, elf::PT_NOTE),
        p_flags: U32::new(Le, 0),
        p_offset: U64::new(Le, offset),
        p_vaddr: U64::new(Le, 0),
        p_paddr: U64::new(Le, 0),
        p_filesz: U64::new(Le, length),
        p_memsz: U64::new(Le, 0),
        p_align: U64::new(Le, 4),
    }
}

/// `held` pages of it are in the file, from its beginning.
fn load_segment(region: &Region, offset: u64, held: PageCount) -> elf::ProgramHeader64<Le> {
    let (start, end) = SIZE.span_of(region.pages);
    let flag = |on, flag| if on { flag } else { 0 };
    let flags = flag(region.protection.read, elf::PF_R)
        | flag(region.protection.write, elf::PF_W)
        | flag(region.protection.execute, elf::PF_X);
    elf::ProgramHeader64 {
        p_type: U32::new(Le, elf::PT_LOAD),
        p_flags: U32::new(Le, flags),
        p_offset: U64::new(Le, offset),
        p_vaddr: U64::new(Le, start),
        p_paddr: U64::new(Le, 0),
        p_filesz: U64::new(Le, SIZE.bytes_of(held)),
        p_memsz: U64::new(Le, end - start),
        p_align: U64::new(Le, SIZE.bytes()),
    }
}

/// The order is the kernel's: first thread, process, its files, floating point, then other threads.
fn notes(state: &ProcessState, regions: &[Region]) -> Vec<u8> {
    let mut notes = Vec::new();
    for (number, thread) in state.threads.iter().enumerate() {
        note(
            &mut notes,
            "CORE",
            elf::NT_PRSTATUS,
            &prstatus(state, thread),
        );
        if number == 0 {
            note(&mut notes, "CORE", elf::NT_PRPSINFO, &prpsinfo(state));
            note(&mut notes, "CORE", elf::NT_AUXV, &state.outside.auxv);
            note(&mut notes, "CORE", elf::NT_FILE, &mapped_files(regions));
        }
        if let Some(fxsave) = thread.xstate.get(..FXSAVE_BYTES) {
            note(&mut notes, "CORE", elf::NT_FPREGSET, fxsave);
            note(&mut notes, "LINUX", NT_X86_XSTATE, &thread.xstate);
        }
    }
    notes
}

fn note(notes: &mut Vec<u8>, owner: &str, kind: u32, content: &[u8]) {
    let header: elf::NoteHeader64<Le> = elf::NoteHeader64 {
        n_namesz: U32::new(Le, owner.len() as u32 + 1),
        n_descsz: U32::new(Le, content.len() as u32),
        n_type: U32::new(Le, kind),
    };
    notes.extend_from_slice(bytes_of(&header));
    notes.extend_from_slice(owner.as_bytes());
    notes.push(0);
    notes.resize(notes.len().next_multiple_of(4), 0);
    notes.extend_from_slice(content);
    notes.resize(notes.len().next_multiple_of(4), 0);
}

/// `struct elf_prstatus` of x86-64: 336 bytes.
fn prstatus(state: &ProcessState, thread: &ThreadState) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(336);
    bytes.extend([0u8; 16]); // siginfo: none; current signal: none
    bytes.extend(0u64.to_le_bytes()); // pending signals
    bytes.extend(thread.signal_mask.to_le_bytes());
    bytes.extend(thread.thread.get().to_le_bytes());
    for id in [state.outside.ppid, state.outside.pgid, state.outside.sid] {
        bytes.extend(id.to_le_bytes());
    }
    bytes.extend([0u8; 64]); // times
    for register in thread.registers.to_words() {
        bytes.extend(register.to_le_bytes());
    }
    bytes.extend(1u32.to_le_bytes()); // floating point state follows
    bytes.extend([0u8; 4]);
    bytes
}

/// `struct elf_prpsinfo` of x86-64: 136 bytes.
fn prpsinfo(state: &ProcessState) -> Vec<u8> {
    let outside = &state.outside;
    let mut bytes = Vec::with_capacity(136);
    bytes.extend([0, b'R', 0, 0]); // state, its letter, zombie, nice
    bytes.extend([0u8; 4]);
    bytes.extend(0u64.to_le_bytes()); // flags
    bytes.extend(outside.uids[0].to_le_bytes());
    bytes.extend(outside.gids[0].to_le_bytes());
    for id in [
        outside.identity.pid,
        outside.ppid,
        outside.pgid,
        outside.sid,
    ] {
        bytes.extend(id.to_le_bytes());
    }
    let fixed = |text: &[u8], length: usize| {
        let mut field = text[..text.len().min(length - 1)].to_vec();
        field.resize(length, 0);
        field
    };
    bytes.extend(fixed(outside.comm.as_bytes(), 16));
    let mut arguments: Vec<u8> = outside.cmdline.clone();
    arguments.iter_mut().for_each(|byte| {
        if *byte == 0 {
            *byte = b' ';
        }
    });
    bytes.extend(fixed(&arguments, 80));
    bytes
}

/// The content of NT_FILE: how many, the page size, then start, end and page offset of each mapping
/// of a file, then their names.
fn mapped_files(regions: &[Region]) -> Vec<u8> {
    let mut places = Vec::new();
    let mut names = Vec::new();
    let mut count = 0u64;
    for region in regions {
        let (Backing::File {
            path, offset_bytes, ..
        }
        | Backing::SharedMemory {
            path, offset_bytes, ..
        }) = &region.backing
        else {
            continue;
        };
        let (start, end) = SIZE.span_of(region.pages);
        for number in [start, end, offset_bytes / SIZE.bytes()] {
            places.extend(number.to_le_bytes());
        }
        names.extend_from_slice(path);
        names.push(0);
        count += 1;
    }
    let mut bytes = Vec::new();
    bytes.extend(count.to_le_bytes());
    bytes.extend(SIZE.bytes().to_le_bytes());
    bytes.extend(places);
    bytes.extend(names);
    bytes
}
