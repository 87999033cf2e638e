//! The mappings of a process, from `/proc/PID/maps`, and their VmFlags, from `/proc/PID/smaps`.
//!
//! Reading needs `PTRACE_MODE_READ_FSCREDS`. `maps` costs about a microsecond a mapping; `smaps`
//! walks the page tables and costs far more, so it is not for a stop window. Parsing is the `procfs`
//! crate's. Source: proc_pid_maps(5), proc_pid_smaps(5).

use pagetide_pages::{PageRange, PageSize};
use procfs::FromBufRead;
use procfs::process::{MMPermissions, MMapPath, MemoryMap, MemoryMaps, VmFlags};
use std::io::Read;
use std::path::PathBuf;

/// What a mapping shows, by the last column of `maps`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum MappingName {
    /// Nothing: anonymous.
    None,
    /// `[heap]`, grown by brk(2).
    Heap,
    /// `[stack]` of the main thread.
    Stack,
    /// `[vdso]`: code the kernel provides.
    Vdso,
    /// `[vvar]`, `[vvar_vclock]`, `[vsyscall]`: kernel data that is not the process's.
    KernelData(&'static str),
    /// A System V shared memory segment, with its key.
    SystemV(i32),
    /// The path of a file, of a deleted file, of a memfd or of another file-like object.
    Path(PathBuf),
    /// Any other name in brackets, such as `anon:NAME` set by prctl(2); without the brackets.
    Other(String),
}

/// One mapping (a VMA).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Address of the first byte.
    pub start: u64,
    /// Address past the last byte.
    pub end: u64,
    /// Loads are allowed.
    pub read: bool,
    /// Stores are allowed.
    pub write: bool,
    /// Execution is allowed.
    pub execute: bool,
    /// MAP_SHARED.
    pub shared: bool,
    /// Offset of the first byte in the file, in bytes.
    pub offset_bytes: u64,
    /// Major and minor number of the file's device; (0, 0) if there is no file.
    pub device: (u32, u32),
    /// Inode number; 0 if there is no file.
    pub inode: u64,
    /// The last column.
    pub name: MappingName,
}

impl Mapping {
    /// The mapping in base pages.
    pub fn pages(&self) -> PageRange {
        PageSize::KIB_4.covering(self.start, self.end)
    }

    /// Length in bytes.
    pub fn length_bytes(&self) -> u64 {
        self.end - self.start
    }

    /// True if a file or a file-like object stands behind the mapping.
    pub fn has_file(&self) -> bool {
        self.inode != 0 || self.device != (0, 0)
    }

    fn from_procfs(map: &MemoryMap) -> Mapping {
        let may = |permission| map.perms.contains(permission);
        Mapping {
            start: map.address.0,
            end: map.address.1,
            read: may(MMPermissions::READ),
            write: may(MMPermissions::WRITE),
            execute: may(MMPermissions::EXECUTE),
            shared: may(MMPermissions::SHARED),
            offset_bytes: map.offset,
            device: (map.dev.0.cast_unsigned(), map.dev.1.cast_unsigned()),
            inode: map.inode,
            name: name_of(&map.pathname),
        }
    }
}

fn name_of(path: &MMapPath) -> MappingName {
    match path {
        MMapPath::Anonymous => MappingName::None,
        MMapPath::Heap => MappingName::Heap,
        MMapPath::Stack => MappingName::Stack,
        MMapPath::Vdso => MappingName::Vdso,
        MMapPath::Vvar => MappingName::KernelData("vvar"),
        MMapPath::Vsyscall => MappingName::KernelData("vsyscall"),
        MMapPath::Vsys(key) => MappingName::SystemV(*key),
        MMapPath::Path(path) => MappingName::Path(path.clone()),
        MMapPath::TStack(thread) => MappingName::Other(format!("stack:{thread}")),
        MMapPath::Rollup => MappingName::Other("rollup".to_owned()),
        MMapPath::Other(name) if name == "vvar_vclock" => MappingName::KernelData("vvar_vclock"),
        MMapPath::Other(name) => MappingName::Other(name.clone()),
    }
}

/// Why the mappings could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapsError {
    /// The file could not be read.
    #[error("read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// A line is not as proc_pid_maps(5) says.
    #[error("parse {path}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        #[source]
        source: procfs::ProcError,
    },
}

/// The mappings of process `pid`, by ascending address. A process whose address space is gone (it
/// is exiting) has none.
pub fn mappings(pid: i32) -> Result<Vec<Mapping>, MapsError> {
    let maps = parse(PathBuf::from(format!("/proc/{pid}/maps")))?;
    Ok(maps.iter().map(Mapping::from_procfs).collect())
}

/// The mappings of process `pid`, each with the VmFlags of proc_pid_smaps(5) as their two-letter
/// names (`rd`, `wr`, `hg`, `dc`, ...). Walks all page tables of the process: slow.
pub fn mappings_with_flags(pid: i32) -> Result<Vec<(Mapping, Vec<String>)>, MapsError> {
    let maps = parse(PathBuf::from(format!("/proc/{pid}/smaps")))?;
    let flags = |flags: &VmFlags| {
        let names = flags.iter_names();
        names.map(|(name, _)| name.to_ascii_lowercase()).collect()
    };
    let described = |map: &MemoryMap| (Mapping::from_procfs(map), flags(&map.extension.vm_flags));
    Ok(maps.iter().map(described).collect())
}

fn parse(path: PathBuf) -> Result<MemoryMaps, MapsError> {
    let mut bytes = Vec::with_capacity(16 * 1024);
    let read = std::fs::File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes));
    if let Err(source) = read {
        return Err(MapsError::Read { path, source });
    }
    // A file name need not be UTF-8; the mapping must be seen all the same.
    let text = String::from_utf8_lossy(&bytes);
    match MemoryMaps::from_buf_read(text.as_bytes()) {
        Ok(maps) => Ok(maps),
        Err(source) => Err(MapsError::Parse { path, source }),
    }
}
