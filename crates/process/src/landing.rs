//! Where in the target remote calls can land: instructions that are there already, and stack
//! memory that belongs to nobody. Nothing is written here, and no code is ever put into a target.
//!
//! Needed is a `syscall` instruction; the vdso holds one. For a session that heals itself (see
//! `self_healing`) also a `syscall; ret`, and the `mov $15, %eax; syscall` that every libc has to
//! return from signal handlers. Looking through megabytes of code takes too long for the stop
//! window, so it is done before, remembered for the process, and only checked inside.

use crate::identity::ProcessIdentity;
use pagetide_kernel::proc_file;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

const SYSCALL: &[u8] = &[0x0f, 0x05];
const SYSCALL_RET: &[u8] = &[0x0f, 0x05, 0xc3];
/// `mov $15, %rax; syscall` (glibc, musl, Go) and `mov $15, %eax; syscall`.
const SIGRETURNS: [&[u8]; 2] = [
    &[0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05],
    &[0xb8, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05],
];

/// No more code than this is looked through, in bytes.
const CODE_BYTES_MAX: u64 = 256 << 20;
/// Processes whose landings are remembered.
const REMEMBERED_MAX: usize = 32;

/// Addresses of instructions in the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Landing {
    /// A `syscall` instruction.
    pub(crate) syscall: u64,
    /// What a self-healing session needs on top.
    pub(crate) way_back: Option<WayBack>,
}

/// Instructions that lead a thread back by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WayBack {
    /// `syscall; ret`
    pub(crate) syscall_ret: u64,
    /// `mov $15, %eax; syscall`
    pub(crate) sigreturn: u64,
}

/// A mapping that is a thread's stack and nothing else: what lies below the stack pointer (and the
/// red zone) is free, as the ABI has it. Coroutine stacks inside a heap are not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StackMapping {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// The `[stack]` of the first thread. For others fs_base has to lie in the mapping, too.
    pub(crate) of_first_thread: bool,
}

/// What is known of a target's address space.
#[derive(Debug)]
pub(crate) struct Terrain {
    identity: ProcessIdentity,
    memory: Option<Arc<File>>,
    landing: Option<Landing>,
    stacks: Arc<[StackMapping]>,
    is_new: bool,
}

static REMEMBERED: Mutex<Vec<(ProcessIdentity, Landing)>> = Mutex::new(Vec::new());

impl Terrain {
    /// Of a process that is to be made another one: only the way to its memory.
    pub(crate) fn of_new(identity: &ProcessIdentity) -> Self {
        let path = format!("/proc/{}/mem", identity.pid);
        let memory = OpenOptions::new().read(true).write(true).open(path);
        Self {
            identity: identity.clone(),
            memory: memory.ok().map(Arc::new),
            landing: None,
            stacks: Arc::default(),
            is_new: true,
        }
    }

    /// True if it was not looked over.
    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    /// Looks the target over while it runs. What cannot be found is reported by whoever needs it.
    pub(crate) fn survey(identity: &ProcessIdentity) -> Self {
        let mappings = mappings(identity.pid).unwrap_or_default();
        let mut terrain = Self {
            stacks: stacks(&mappings).into(),
            is_new: false,
            ..Self::of_new(identity)
        };
        terrain.landing = terrain.remembered_landing().or_else(|| {
            let landing = find_landing(terrain.memory.as_deref()?, &mappings)?;
            remember(identity, landing);
            Some(landing)
        });
        terrain
    }

    /// `/proc/PID/mem`, opened before the stop.
    pub(crate) fn memory(&self) -> Option<Arc<File>> {
        self.memory.clone()
    }

    pub(crate) fn stacks(&self) -> Arc<[StackMapping]> {
        Arc::clone(&self.stacks)
    }

    /// The landing, checked by reading it; looked for again if the code has moved.
    pub(crate) fn landing(&mut self) -> Option<Landing> {
        let memory = self.memory.as_deref()?;
        if let Some(landing) = self.landing
            && still_there(memory, &landing)
        {
            return Some(landing);
        }
        let mappings = mappings(self.identity.pid).ok()?;
        self.landing = find_landing(memory, &mappings);
        if let Some(landing) = self.landing {
            remember(&self.identity, landing);
        }
        self.landing
    }

    fn remembered_landing(&self) -> Option<Landing> {
        let remembered = REMEMBERED.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, landing) = remembered
            .iter()
            .find(|(identity, _)| *identity == self.identity)?;
        still_there(self.memory.as_deref()?, landing).then_some(*landing)
    }
}

fn remember(identity: &ProcessIdentity, landing: Landing) {
    let mut remembered = REMEMBERED.lock().unwrap_or_else(PoisonError::into_inner);
    remembered.retain(|(other, _)| other != identity);
    if remembered.len() >= REMEMBERED_MAX {
        remembered.remove(0);
    }
    remembered.push((identity.clone(), landing));
}

fn still_there(memory: &File, landing: &Landing) -> bool {
    holds(memory, landing.syscall, SYSCALL)
        && landing.way_back.is_none_or(|way| {
            holds(memory, way.syscall_ret, SYSCALL_RET)
                && SIGRETURNS
                    .iter()
                    .any(|code| holds(memory, way.sigreturn, code))
        })
}

fn holds(memory: &File, address: u64, code: &[u8]) -> bool {
    let mut bytes = [0u8; 16];
    let bytes = &mut bytes[..code.len()];
    memory.read_exact_at(bytes, address).is_ok() && bytes == code
}

fn find_landing(memory: &File, mappings: &[Mapping]) -> Option<Landing> {
    let mut code: Vec<&Mapping> = mappings
        .iter()
        .filter(|mapping| mapping.is_code())
        .collect();
    code.sort_by_key(|mapping| mapping.promise());
    let (mut syscall, mut syscall_ret, mut sigreturn) = (None, None, None);
    let mut left = CODE_BYTES_MAX;
    for mapping in code {
        let length = mapping.end - mapping.start;
        if length > left {
            continue;
        }
        left -= length;
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        if memory.read_exact_at(&mut bytes, mapping.start).is_err() {
            continue;
        }
        let find = |code: &[u8]| find(&bytes, code).map(|offset| mapping.start + offset);
        syscall = syscall.or_else(|| find(SYSCALL));
        syscall_ret = syscall_ret.or_else(|| find(SYSCALL_RET));
        sigreturn = sigreturn.or_else(|| SIGRETURNS.iter().find_map(|code| find(code)));
        if syscall.is_some() && syscall_ret.is_some() && sigreturn.is_some() {
            break;
        }
    }
    let way_back = match (syscall_ret, sigreturn) {
        (Some(syscall_ret), Some(sigreturn)) => Some(WayBack {
            syscall_ret,
            sigreturn,
        }),
        _ => None,
    };
    Some(Landing {
        syscall: syscall?,
        way_back,
    })
}

fn find(bytes: &[u8], code: &[u8]) -> Option<u64> {
    bytes
        .windows(code.len())
        .position(|window| window == code)
        .and_then(|offset| u64::try_from(offset).ok())
}

/// A line of `/proc/PID/maps`, as far as it matters here.
#[derive(Debug)]
struct Mapping {
    start: u64,
    end: u64,
    permissions: String,
    name: String,
}

impl Mapping {
    fn is_code(&self) -> bool {
        // Code that is writable, too, may change under us; [vsyscall] cannot be executed freely.
        self.permissions.starts_with("r-x") && self.name != "[vsyscall]"
    }

    /// Where the instructions are likely to be comes first.
    fn promise(&self) -> u8 {
        let file = self.name.rsplit('/').next().unwrap_or("");
        if self.name == "[vdso]" {
            0
        } else if file.starts_with("libc.") || file.starts_with("libc-") || file.contains("musl") {
            1
        } else if self.name.starts_with('/') {
            2
        } else {
            3
        }
    }

    fn is_anonymous(&self) -> bool {
        self.name.is_empty() || self.name.starts_with("[anon:")
    }
}

fn mappings(pid: i32) -> io::Result<Vec<Mapping>> {
    let text = proc_file::read_text(format!("/proc/{pid}/maps"))?;
    Ok(text.lines().filter_map(mapping).collect())
}

fn mapping(line: &str) -> Option<Mapping> {
    let mut rest = line;
    let mut word = || {
        rest = rest.trim_start();
        let end = rest.find(' ').unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after;
        word
    };
    let (start, end) = word().split_once('-')?;
    let permissions = word().to_owned();
    // Offset, device and inode.
    for _ in 0..3 {
        word();
    }
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        permissions,
        name: rest.trim().to_owned(),
    })
}

/// `[stack]`, and every anonymous mapping with an inaccessible one right below it: a thread stack
/// and its guard, if fs_base of the thread lies in it, too.
fn stacks(mappings: &[Mapping]) -> Vec<StackMapping> {
    let mut stacks = Vec::new();
    for (index, mapping) in mappings.iter().enumerate() {
        if !mapping.permissions.starts_with("rw") || !mapping.permissions.ends_with('p') {
            continue;
        }
        let of_first_thread = mapping.name == "[stack]";
        let guarded = index.checked_sub(1).is_some_and(|below| {
            let below = &mappings[below];
            below.end == mapping.start && below.permissions.starts_with("---")
        });
        if of_first_thread || (guarded && mapping.is_anonymous()) {
            stacks.push(StackMapping {
                start: mapping.start,
                end: mapping.end,
                of_first_thread,
            });
        }
    }
    stacks
}
