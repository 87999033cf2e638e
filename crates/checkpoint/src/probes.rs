//! Breakpoints that the kernel has put into a program for a tracing tool (uprobes). They are not the program's, and would end
//! it where it is restored: nobody waits for them there. The kernel lists them nowhere for sure, so they are told by
//! what they are. A page is stored as its file has it if
//!
//! - it is the process's own copy of a page of a file, in a mapping that is executable and was never writable. What the process
//!   itself stored into its code, it stored through a mapping that was, and the kernel remembers that for ever;
//! - and it differs from the file by nothing but *calls* into `[uprobes-trampoline]`, which no program can map, in place of an
//!   instruction that does nothing; and *breakpoints* of one byte, in a program that does not catch SIGTRAP. Nothing else
//!   can have put these there but a debugger that has gone and a write to `/proc/PID/mem`, and whoever comes to one
//!   is killed by it.
//!
//! In a program that catches SIGTRAP a breakpoint may be meant for it: it is kept, and named.

use crate::capture::SIZE;
use crate::files::{self, Files};
use crate::page_tables::PageTables;
use pagetide_kernel::maps::{self, Mapping, MappingName};
use pagetide_kernel::memory::ProcessMemory;
use pagetide_pages::{PageIndex, PageRange, PageSet};
use pagetide_process::{Blocker, BlockerKind, ThreadState};
use rustix::io::pread;
use std::collections::HashMap;
use std::fs;

/// The instruction that the processor stops at.
const BREAKPOINT: u8 = 0xcc;
/// An instruction of five bytes that does nothing: the kernel takes its place with a call (6.18).
const DOES_NOTHING: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];
const CALL: u8 = 0xe8;
const SIGTRAP: u32 = 5;

/// The kernel's names of what it maps for probes.
const OUT_OF_LINE: MappingName = MappingName::KernelData("uprobes");
const TRAMPOLINE: MappingName = MappingName::KernelData("uprobes-trampoline");

/// Code of a process that was never writable, as it was before the stop. Of what has no copies nothing is asked.
#[derive(Default)]
pub(crate) struct Code {
    has_copies: bool,
    never_written: Vec<Mapping>,
}

/// The pages of one process that probes have changed.
#[derive(Default)]
pub(crate) struct Probes {
    /// What the file has, by page.
    pub instead: HashMap<PageIndex, Vec<u8>>,
    /// Addresses of breakpoints that are kept.
    pub kept: Vec<u64>,
}

/// The process to look at.
pub(crate) struct Process<'a> {
    pub pid: i32,
    pub memory: &'a ProcessMemory,
    pub tables: PageTables<'a>,
    pub mappings: &'a [Mapping],
    pub files: &'a Files,
}

/// True for code of a file into which the kernel puts probes.
fn is_code(mapping: &Mapping) -> bool {
    mapping.has_file() && mapping.execute && !mapping.write && !mapping.shared
}

impl Process<'_> {
    fn code(&self) -> impl Iterator<Item = &Mapping> {
        self.mappings.iter().filter(|mapping| is_code(mapping))
    }

    /// The code among which there may be probes. Not for a stop: it walks all page tables if there are copies of code.
    pub fn code_never_written(&self) -> Code {
        let pages: PageSet = self.code().map(Mapping::pages).collect();
        let copies = self.tables.private_pages(&pages);
        if copies.is_ok_and(|found| found.copies.is_empty()) {
            return Code::default();
        }
        let all = maps::mappings_with_flags(self.pid).unwrap_or_default();
        let never = |flags: &[String]| !flags.iter().any(|flag| flag == "ac" || flag == "nr");
        let found = all.into_iter().filter(|(_, flags)| never(flags));
        Code {
            has_copies: true,
            never_written: found.map(|(mapping, _)| mapping).filter(is_code).collect(),
        }
    }

    /// The probes among `copies`, which are the process's own pages over files.
    pub fn probes(&self, code: &Code, copies: &PageSet) -> Probes {
        let mut probes = Probes::default();
        let mut catches = None;
        for mapping in self.code() {
            let copies = copies.within(mapping.pages());
            for page in copies.ranges().iter().flat_map(|range| range.pages()) {
                let Some((now, file)) = self.both(mapping, page) else {
                    continue;
                };
                let address = SIZE.address_of(page);
                let Some(breakpoints) = self.differ_by_probes(&now, &file, address) else {
                    continue;
                };
                let is_known = code.never_written.contains(mapping);
                let mut is_caught = || *catches.get_or_insert_with(|| catches_traps(self.pid));
                if is_known && (breakpoints.is_empty() || !is_caught()) {
                    probes.instead.insert(page, file);
                } else if is_known || !code.has_copies {
                    // In code of which nothing was asked they came just before the stop.
                    probes.kept.extend(breakpoints);
                }
            }
        }
        probes
    }

    /// The probes that there are now.
    pub fn probes_now(&self) -> Probes {
        let pages: PageSet = self.code().map(Mapping::pages).collect();
        let found = self.tables.private_pages(&pages).unwrap_or_default();
        if found.copies.is_empty() {
            Probes::default()
        } else {
            self.probes(&self.code_never_written(), &found.copies)
        }
    }

    /// What a page holds, and what its file has there.
    fn both(&self, mapping: &Mapping, page: PageIndex) -> Option<(Vec<u8>, Vec<u8>)> {
        let (mut now, mut file) = (vec![0; SIZE.len()], vec![0; SIZE.len()]);
        let one = [PageRange::single(page)];
        let unreadable = self.memory.read_pages(SIZE, &one, &mut now).ok()?;
        let open = self.files.open(files::key(mapping))?;
        let offset = mapping.offset_bytes + (SIZE.address_of(page) - mapping.start);
        let mut done = 0;
        while done < file.len() {
            match pread(open, &mut file[done..], offset + done as u64).ok()? {
                0 => break,
                read => done += read,
            }
        }
        (unreadable.is_empty() && done > 0).then_some((now, file))
    }

    /// Where breakpoints are, if nothing but probes makes a page at `address` differ from its file.
    fn differ_by_probes(&self, now: &[u8], file: &[u8], address: u64) -> Option<Vec<u64>> {
        let into_trampoline = |target: u64| {
            let is_there = |mapping: &Mapping| {
                mapping.name == TRAMPOLINE && (mapping.start..mapping.end).contains(&target)
            };
            self.mappings.iter().any(is_there)
        };
        differ_by_probes(now, file, address, into_trampoline)
    }
}

fn differ_by_probes(
    now: &[u8],
    file: &[u8],
    address: u64,
    into_trampoline: impl Fn(u64) -> bool,
) -> Option<Vec<u64>> {
    let mut breakpoints = Vec::new();
    let mut at = 0;
    while at < now.len() {
        let call = now.get(at..at + 5).filter(|bytes| bytes[0] == CALL);
        match call {
            _ if now[at] == file[at] => at += 1,
            Some(bytes) if file[at..at + 5] == DOES_NOTHING => {
                let distance = i32::from_le_bytes(bytes[1..].try_into().ok()?);
                let next = address + at as u64 + 5;
                if !into_trampoline(next.wrapping_add_signed(distance.into())) {
                    return None;
                }
                at += 5;
            }
            _ if now[at] == BREAKPOINT => {
                breakpoints.push(address + at as u64);
                at += 1;
            }
            _ => return None,
        }
    }
    Some(breakpoints)
}

/// True if the process has a handler for SIGTRAP, or nobody can tell.
fn catches_traps(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status
        .lines()
        .find_map(|line| line.strip_prefix("SigCgt:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    caught.is_none_or(|mask| mask & (1 << (SIGTRAP - 1)) != 0)
}

/// What of the probes could not be brought back.
pub(crate) fn blockers(
    pid: i32,
    mappings: &[Mapping],
    threads: &[ThreadState],
    kept: &[u64],
) -> Vec<Blocker> {
    let blocker = |place: u64, what: String, advice: &str, instead: Option<&str>| Blocker {
        pid,
        kind: BlockerKind::Uprobes,
        place: format!("mapping:{place:x}"),
        what,
        advice: advice.to_owned(),
        instead: instead.map(str::to_owned),
    };
    let mut blockers = Vec::new();
    for mapping in mappings {
        let within = mapping.start..mapping.end;
        if let Some(address) = kept.iter().find(|address| within.contains(*address)) {
            blockers.push(blocker(
                mapping.start,
                format!(
                    "{address:#x} of {} is a breakpoint, and the program catches SIGTRAP: it is stored as it is",
                    mapping.name
                ),
                "end the tracing before the checkpoint, or accept a breakpoint that is the program's own",
                Some("the breakpoint stays in the program"),
            ));
        }
        if mapping.name == OUT_OF_LINE {
            blockers.push(blocker(
                mapping.start,
                format!(
                    "{:#x}-{:#x} {} was mapped by the kernel for a tracing tool, and stays: functions whose return is \
                     probed return to it",
                    mapping.start, mapping.end, mapping.name
                ),
                "end the tracing, and accept it once no function that was probed is running any more",
                Some("it is not mapped"),
            ));
        }
        let inside = |thread: &&ThreadState| within.contains(&thread.registers.rip);
        if mapping.name == TRAMPOLINE
            && let Some(thread) = threads.iter().find(inside)
        {
            blockers.push(blocker(
                mapping.start,
                format!(
                    "thread {} is inside a probe of a tracing tool",
                    thread.thread
                ),
                "take another checkpoint",
                None,
            ));
        }
    }
    blockers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_keeps_for_probes_is_named_and_can_be_accepted() {
        let mapping = |start: u64, name: MappingName| Mapping {
            start,
            end: start + 0x1000,
            read: true,
            write: false,
            execute: true,
            shared: false,
            offset_bytes: 0,
            device: (0, 0),
            inode: 0,
            name,
        };
        let mappings = [
            mapping(0x1000, MappingName::Path("/bin/true".into())),
            mapping(0x3000, TRAMPOLINE),
            mapping(0x7000, OUT_OF_LINE),
        ];
        let names = |kept: &[u64]| -> Vec<(String, bool)> {
            let found = blockers(9, &mappings, &[], kept).into_iter();
            found
                .map(|one| (one.name(), one.instead.is_some()))
                .collect()
        };
        let stays = ("uprobes:mapping:7000".to_owned(), true);
        assert_eq!(names(&[]), std::slice::from_ref(&stays));
        let kept = ("uprobes:mapping:1000".to_owned(), true);
        assert_eq!(names(&[0x1234, 0x1235]), [kept, stays]);
    }

    #[test]
    fn only_probes_are_taken_for_probes() {
        let file = {
            let mut file = vec![0x90; 64];
            file[16..21].copy_from_slice(&DOES_NOTHING);
            file
        };
        let differ = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut now = file.clone();
            change(&mut now);
            differ_by_probes(&now, &file, 0x1000, |target| target == 0x2000)
        };
        let call = |distance: i32| {
            move |now: &mut Vec<u8>| {
                now[16] = CALL;
                now[17..21].copy_from_slice(&distance.to_le_bytes());
            }
        };
        assert_eq!(differ(&|_| {}), Some(vec![]));
        assert_eq!(
            differ(&|now| [3, 63].into_iter().for_each(|at| now[at] = BREAKPOINT)),
            Some(vec![0x1003, 0x103f])
        );
        assert_eq!(differ(&|now| now[3] = 0xcd), None);
        assert_eq!(differ(&call(0x2000 - 0x1015)), Some(vec![]));
        assert_eq!(differ(&call(0x2000 - 0x1014)), None, "it leads elsewhere");
        assert_eq!(
            differ(&|now| {
                now[40] = CALL;
                now[41..45].copy_from_slice(&(0x2000 - 0x102d_i32).to_le_bytes());
            }),
            None,
            "where the program does something"
        );
        assert_eq!(
            differ(&|now| now[60] = CALL),
            None,
            "cut off by the end of the page"
        );
    }
}
