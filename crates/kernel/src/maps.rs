//! The mappings of a process, from `/proc/PID/maps`, and their VmFlags, from `/proc/PID/smaps`.
//!
//! Reading needs `PTRACE_MODE_READ_FSCREDS`. `maps` costs about a microsecond a mapping; `smaps`
//! walks the page tables and costs far more, so it is not for a stop window.
//! Source: proc_pid_maps(5), proc_pid_smaps(5).
//!
//! The lines are parsed here, as bytes: a target chooses its file names, so a name may be any bytes,
//! begin or end with blanks, or look like something else, and none of that may hide a mapping.

use crate::proc_file;
use pagetide_pages::{PageRange, PageSize};
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

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
    /// `[vvar]`, `[vvar_vclock]`, `[vsyscall]`: kernel data that is not the process's; `[uprobes]`, `[uprobes-trampoline]`: code
    /// that the kernel has mapped for probes.
    KernelData(&'static str),
    /// A System V shared memory segment, with its key.
    SystemV(i32),
    /// The path of a file, of a deleted file, of a memfd or of another file-like object, byte for
    /// byte as the kernel prints it: a newline in it reads `\012`, and ` (deleted)` is appended.
    Path(PathBuf),
    /// Any other name in brackets, such as `anon:NAME` set by prctl(2); without the brackets.
    Other(String),
}

/// As `maps` shows it, empty for none.
impl fmt::Display for MappingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Heap => f.write_str("[heap]"),
            Self::Stack => f.write_str("[stack]"),
            Self::Vdso => f.write_str("[vdso]"),
            Self::KernelData(name) => write!(f, "[{name}]"),
            Self::SystemV(key) => write!(f, "/SYSV{key:08x}"),
            Self::Path(path) => path.display().fmt(f),
            Self::Other(name) => write!(f, "[{name}]"),
        }
    }
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

    /// One line of `maps`, without its newline; `None` if it is not as proc_pid_maps(5) says.
    pub(crate) fn from_line(line: &[u8]) -> Option<Self> {
        let mut fields = line.splitn(6, |byte| *byte == b' ');
        let mut field = || fields.next().and_then(|bytes| str::from_utf8(bytes).ok());
        let (start, end) = field()?.split_once('-')?;
        let permissions = field()?.as_bytes();
        let offset = field()?;
        let (major, minor) = field()?.split_once(':')?;
        let inode = field()?;
        // The name stands after blanks that fill its column; `maps` has none without a name.
        let rest = fields.next().unwrap_or_default();
        let blanks = rest.iter().take_while(|byte| **byte == b' ').count();
        let hex = |digits| u64::from_str_radix(digits, 16).ok();
        let may = |at: usize, letter: u8| permissions.get(at) == Some(&letter);
        Some(Self {
            start: hex(start)?,
            end: hex(end)?,
            read: may(0, b'r'),
            write: may(1, b'w'),
            execute: may(2, b'x'),
            shared: may(3, b's'),
            offset_bytes: hex(offset)?,
            device: (
                u32::from_str_radix(major, 16).ok()?,
                u32::from_str_radix(minor, 16).ok()?,
            ),
            inode: inode.parse().ok()?,
            name: name_of(&rest[blanks..]),
        })
    }
}

fn name_of(name: &[u8]) -> MappingName {
    match name {
        b"" => MappingName::None,
        b"[heap]" => MappingName::Heap,
        b"[stack]" => MappingName::Stack,
        b"[vdso]" => MappingName::Vdso,
        b"[vvar]" => MappingName::KernelData("vvar"),
        b"[vvar_vclock]" => MappingName::KernelData("vvar_vclock"),
        b"[vsyscall]" => MappingName::KernelData("vsyscall"),
        b"[uprobes]" => MappingName::KernelData("uprobes"),
        b"[uprobes-trampoline]" => MappingName::KernelData("uprobes-trampoline"),
        [b'[', inner @ .., b']'] => MappingName::Other(String::from_utf8_lossy(inner).into_owned()),
        _ => match system_v_key(name) {
            Some(key) => MappingName::SystemV(key),
            None => MappingName::Path(PathBuf::from(OsStr::from_bytes(name))),
        },
    }
}

/// The key of `/SYSVkkkkkkkk (deleted)`, eight hexadecimal digits. A segment always reads as deleted,
/// because it has no name in any file system; a file of that name does not, until it is deleted.
fn system_v_key(name: &[u8]) -> Option<i32> {
    let digits = name
        .strip_prefix(b"/SYSV")?
        .strip_suffix(b" (deleted)")
        .filter(|digits| digits.len() == 8)?;
    let key = u32::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
    Some(key.cast_signed())
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
    #[error("parse {path}: not a line of mappings: {line}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line.
        line: String,
    },
}

/// The mappings of process `pid`, by ascending address, none of which overlap. A process whose address space is gone
/// (it is exiting) has none.
///
/// Of a process that maps and unmaps meanwhile it is what there was at one moment or another: a mapping that was
/// replaced while it was read may be missing in part.
pub fn mappings(pid: i32) -> Result<Vec<Mapping>, MapsError> {
    let path = PathBuf::from(format!("/proc/{pid}/maps"));
    let text = read(&path)?;
    let told = lines(&text).map(|line| parse(&path, line));
    let told = told.collect::<Result<_, _>>()?;
    Ok(without_overlaps(told, |mapping| mapping))
}

/// Since Linux 6.17 the kernel holds the list of mappings only for one line at a time (and before it, for a page of
/// text): one that was told already may be told again, grown or in parts. What was read later is newer, and holds.
pub(crate) fn without_overlaps<T>(
    told: Vec<T>,
    mapping_of: impl Fn(&mut T) -> &mut Mapping,
) -> Vec<T> {
    let mut all: Vec<T> = Vec::with_capacity(told.len());
    for mut next in told {
        let Mapping { start, end, .. } = *mapping_of(&mut next);
        if start >= end {
            continue;
        }
        while let Some(earlier) = all.last_mut().map(&mapping_of) {
            if earlier.end <= start {
                break;
            }
            if earlier.start < start {
                earlier.end = start;
                break;
            }
            all.pop();
        }
        all.push(next);
    }
    all
}

/// The mappings of process `pid`, each with the VmFlags of proc_pid_smaps(5) as their two-letter
/// names (`rd`, `wr`, `hg`, `dc`, ...). Walks all page tables of the process: slow.
pub fn mappings_with_flags(pid: i32) -> Result<Vec<(Mapping, Vec<String>)>, MapsError> {
    MappingFlags::read(pid)?.parse()
}

/// What the kernel says in `/proc/PID/smaps`, read and not yet parsed: for whoever has no time for that.
#[derive(Debug)]
pub struct MappingFlags {
    path: PathBuf,
    text: Vec<u8>,
}

impl MappingFlags {
    /// Reads it: as [`mappings_with_flags`].
    pub fn read(pid: i32) -> Result<Self, MapsError> {
        let path = PathBuf::from(format!("/proc/{pid}/smaps"));
        let text = read(&path)?;
        Ok(Self { path, text })
    }

    /// The mappings, each with its VmFlags.
    pub fn parse(&self) -> Result<Vec<(Mapping, Vec<String>)>, MapsError> {
        let mut described: Vec<(Mapping, Vec<String>)> = Vec::new();
        for line in lines(&self.text) {
            // A field is `Name:   value`; the line of a mapping begins with a hexadecimal digit and has
            // no colon in its first word.
            let word = line.split(|byte| *byte == b' ').next().unwrap_or_default();
            match (word.ends_with(b":"), described.last_mut()) {
                (false, _) => described.push((parse(&self.path, line)?, Vec::new())),
                (true, Some((_, flags))) if word == b"VmFlags:" => {
                    let names = String::from_utf8_lossy(&line[word.len()..]);
                    *flags = names.split_whitespace().map(str::to_owned).collect();
                }
                (true, _) => {}
            }
        }
        Ok(without_overlaps(described, |(mapping, _)| mapping))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, MapsError> {
    proc_file::read(path).map_err(|source| MapsError::Read {
        path: path.to_owned(),
        source,
    })
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
}

fn parse(path: &Path, line: &[u8]) -> Result<Mapping, MapsError> {
    Mapping::from_line(line).ok_or_else(|| MapsError::Parse {
        path: path.to_owned(),
        line: String::from_utf8_lossy(line).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_lines_of_mappings() {
        let sound =
            b"55d0c0a00000-55d0c0a21000 rw-p 00000000 00:00 0                          [heap]\n\
            VmFlags: rd wr mr mw me ac sd\n\
            7f1e5c000000-7f1e5c021000 r-xp 00001000 fe:00 1234567    /tmp/a b\\012c (deleted)\n\
            Size:                132 kB\nVmFlags: rd ex mr mw me\n";
        pagetide_testing::hostile::survives(sound, |text| {
            let told = MappingFlags {
                path: PathBuf::from("smaps"),
                text: text.to_vec(),
            };
            let Ok(all) = told.parse() else {
                return false;
            };
            let in_order = all.windows(2).all(|two| two[0].0.end <= two[1].0.start);
            assert!(
                in_order && all.iter().all(|(one, _)| one.start < one.end),
                "{all:?}"
            );
            true
        });
    }

    fn settled(told: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let mapping = |(start, end): &(u64, u64)| {
            let line = format!("{start:x}-{end:x} rw-p 00000000 00:00 0 ");
            Mapping::from_line(line.as_bytes()).expect("a line of mappings")
        };
        let told = told.iter().map(mapping).collect();
        let all = without_overlaps(told, |mapping| mapping);
        all.iter()
            .map(|mapping| (mapping.start, mapping.end))
            .collect()
    }

    #[test]
    fn a_list_without_overlaps_stays_as_it_is() {
        assert_eq!(settled(&[]), []);
        let list = [(1, 2), (2, 5), (7, 9)];
        assert_eq!(settled(&list), list);
    }

    #[test]
    fn of_what_is_told_twice_the_later_holds() {
        for (told, holds) in [
            // The same again; grown; grown to the front; shrunk; split.
            (&[(1, 4), (1, 4), (5, 6)][..], &[(1, 4), (5, 6)][..]),
            (&[(1, 4), (1, 6), (7, 8)], &[(1, 6), (7, 8)]),
            (&[(3, 4), (1, 6)], &[(1, 6)]),
            (&[(1, 6), (1, 4), (5, 6)], &[(1, 4), (5, 6)]),
            (&[(1, 6), (3, 6)], &[(1, 3), (3, 6)]),
            (&[(1, 9), (3, 4), (6, 7)], &[(1, 3), (3, 4), (6, 7)]),
            // Out of order, over several.
            (&[(1, 2), (3, 4), (5, 6), (2, 8)], &[(1, 2), (2, 8)]),
            (&[(1, 2), (3, 5), (6, 7), (4, 8)], &[(1, 2), (3, 4), (4, 8)]),
            // Of no length.
            (&[(1, 2), (3, 3), (5, 4), (6, 7)], &[(1, 2), (6, 7)]),
            (&[(1, 4), (2, 2)], &[(1, 4)]),
        ] {
            assert_eq!(settled(told), holds, "{told:?}");
        }
    }
}
