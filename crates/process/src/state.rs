//! A process as an attachment of a snapshot: all that is neither memory nor open files.
//!
//! The bytes: magic `PTPS`, a version (u32 little-endian), then the fields in bincode's fixed-width
//! little-endian encoding. A reader takes the versions it knows and names others.

use crate::encoded::{Encoding, EncodingError};
use crate::identity::ProcessIdentity;
use crate::proc_files::{Stat, Status};
use crate::stop::StoppedProcess;
use crate::thread_state::{ThreadState, ThreadStateError};
use bincode::{Decode, Encode};
use pagetide_kernel::ptrace::{REGISTER_COUNT, Registers, ThreadId};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Some ten thousand threads, and no more.
const ENCODING: Encoding<{ 64 << 20 }> = Encoding::with_magic(*b"PTPS", 1);

/// What a process is, apart from memory and files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessState {
    /// What may be read at any time.
    pub outside: OutsideState,
    /// The threads, the first one first. Has to be read in the stop.
    pub threads: Vec<ThreadState>,
}

/// What `/proc` says of a process; may be read before or after a stop. Source: `proc(5)`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutsideState {
    /// Which process it is.
    pub identity: ProcessIdentity,
    /// Name of the first thread.
    pub comm: String,
    /// The program file; ends in " (deleted)" if it is.
    pub exe: PathBuf,
    /// Arguments, each ended by a zero byte.
    pub cmdline: Vec<u8>,
    /// Auxiliary vector, as the kernel gave it to the program.
    pub auxv: Vec<u8>,
    /// Current directory.
    pub cwd: PathBuf,
    /// Root directory.
    pub root: PathBuf,
    /// File mode creation mask.
    pub umask: u32,
    /// Real, effective, saved and file system user id.
    pub uids: [u32; 4],
    /// Real, effective, saved and file system group id.
    pub gids: [u32; 4],
    /// Parent process.
    pub ppid: i32,
    /// Process group.
    pub pgid: i32,
    /// Session.
    pub sid: i32,
    /// Addresses the kernel remembers of the program.
    pub layout: MemoryLayout,
}

/// Addresses of `/proc/PID/stat`, fields 26 to 28 and 45 to 51; 0 if the kernel hides them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)] // the names are those of prctl(2), PR_SET_MM_MAP
pub struct MemoryLayout {
    pub start_code: u64,
    pub end_code: u64,
    pub start_stack: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
}

/// Why the state of a process could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateReadError {
    /// A file of `/proc` could not be read.
    #[error("cannot read {path}")]
    Proc {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The number belongs to another process now.
    #[error("process {pid} has ended")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// The threads could not be read.
    #[error("cannot read the threads")]
    Threads(#[source] ThreadStateError),
}

/// Why bytes are not a process state.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateDecodeError {
    /// They begin otherwise.
    #[error("this is not the state of a process")]
    NotAState,
    /// A later version of this program wrote them.
    #[error("the state of the process has version {found}, and versions up to {known} are known")]
    NewerVersion {
        /// What the bytes say.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// They are cut off, too long, or damaged.
    #[error("the state of the process is damaged")]
    Damaged(#[source] bincode::error::DecodeError),
    /// They go on behind the end.
    #[error("{count} bytes too many follow the state of the process")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// A value is impossible.
    #[error("the state of the process has an impossible {what}")]
    Impossible {
        /// Which value.
        what: &'static str,
    },
}

impl From<EncodingError> for StateDecodeError {
    fn from(error: EncodingError) -> Self {
        match error {
            EncodingError::Other => Self::NotAState,
            EncodingError::NewerVersion { found, known } => Self::NewerVersion { found, known },
            EncodingError::Damaged(source) => Self::Damaged(source),
            EncodingError::TrailingBytes { count } => Self::TrailingBytes { count },
        }
    }
}

impl OutsideState {
    /// Reads it. Needs ptrace access to the process, which need not be stopped.
    pub fn read(identity: &ProcessIdentity) -> Result<Self, StateReadError> {
        let failed = match Self::read_once(identity) {
            Err(failed) => failed,
            read => return read,
        };
        // One that ends loses its memory, and with it its program, some time before it is seen to have ended.
        let since = Instant::now();
        while since.elapsed() < ENDING && has_no_program(identity.pid) {
            if !identity.is_alive_and_same() {
                return Err(StateReadError::Gone { pid: identity.pid });
            }
            sleep(Duration::from_millis(1));
        }
        Err(failed)
    }

    fn read_once(identity: &ProcessIdentity) -> Result<Self, StateReadError> {
        let pid = identity.pid;
        let base = PathBuf::from(format!("/proc/{pid}"));
        let failed = |name: &str| {
            let path = base.join(name);
            move |source| StateReadError::Proc { path, source }
        };
        let link = |name: &str| fs::read_link(base.join(name)).map_err(failed(name));
        let bytes = |name: &str| fs::read(base.join(name)).map_err(failed(name));
        let stat = Stat::of_process(pid).map_err(failed("stat"))?;
        let status = Status::of_process(pid).map_err(failed("status"))?;
        let number = |field| i32::try_from(stat.field(field).cast_signed()).unwrap_or(0);
        let state = Self {
            identity: identity.clone(),
            comm: stat.comm.clone(),
            exe: link("exe")?,
            cmdline: bytes("cmdline")?,
            auxv: bytes("auxv")?,
            cwd: link("cwd")?,
            root: link("root")?,
            umask: status
                .value("Umask")
                .and_then(|text| u32::from_str_radix(text, 8).ok())
                .unwrap_or(0o022),
            uids: four(&status, "Uid"),
            gids: four(&status, "Gid"),
            ppid: number(4),
            pgid: number(5),
            sid: number(6),
            layout: MemoryLayout {
                start_code: stat.field(26),
                end_code: stat.field(27),
                start_stack: stat.field(28),
                start_data: stat.field(45),
                end_data: stat.field(46),
                start_brk: stat.field(47),
                arg_start: stat.field(48),
                arg_end: stat.field(49),
                env_start: stat.field(50),
                env_end: stat.field(51),
            },
        };
        if identity.is_alive_and_same() {
            Ok(state)
        } else {
            Err(StateReadError::Gone { pid })
        }
    }
}

/// How long the end of a process may take.
const ENDING: Duration = Duration::from_secs(5);

fn has_no_program(pid: i32) -> bool {
    let link = fs::read_link(format!("/proc/{pid}/exe"));
    link.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn four(status: &Status, key: &str) -> [u32; 4] {
    let mut numbers = [0; 4];
    let words = status.value(key).unwrap_or("").split_whitespace();
    for (number, word) in numbers.iter_mut().zip(words) {
        *number = word.parse().unwrap_or(0);
    }
    numbers
}

impl ProcessState {
    /// Reads all of it. To keep the stop short, read [`OutsideState`] before or after it and only
    /// [`StoppedProcess::thread_states`] inside.
    pub fn collect(stopped: &StoppedProcess) -> Result<Self, StateReadError> {
        Ok(Self {
            threads: stopped.thread_states().map_err(StateReadError::Threads)?,
            outside: OutsideState::read(stopped.identity())?,
        })
    }

    /// As bytes, for [`Self::from_bytes`].
    ///
    /// # Panics
    /// Never: nothing in it fails to encode into memory.
    pub fn to_bytes(&self) -> Vec<u8> {
        let bytes = ENCODING.encode(&StateV1::from(self));
        bytes.expect("a vector takes all bytes, and no field can fail to encode")
    }

    /// From bytes that [`Self::to_bytes`] of this or an earlier version made.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateDecodeError> {
        ENCODING.decode::<StateV1>(bytes)?.into_state()
    }
}

#[derive(Encode, Decode)]
struct StateV1 {
    pid: i32,
    start_time_ticks: u64,
    boot_id: [u8; 16],
    comm: String,
    exe: Vec<u8>,
    cmdline: Vec<u8>,
    auxv: Vec<u8>,
    cwd: Vec<u8>,
    root: Vec<u8>,
    umask: u32,
    uids: [u32; 4],
    gids: [u32; 4],
    ppid: i32,
    pgid: i32,
    sid: i32,
    layout: [u64; 10],
    threads: Vec<ThreadV1>,
}

#[derive(Encode, Decode)]
struct ThreadV1 {
    thread: i32,
    comm: String,
    registers: [u64; REGISTER_COUNT],
    signal_mask: u64,
    xstate: Vec<u8>,
}

impl From<&ProcessState> for StateV1 {
    fn from(state: &ProcessState) -> Self {
        let outside = &state.outside;
        let path = |path: &Path| path.as_os_str().as_bytes().to_vec();
        Self {
            pid: outside.identity.pid,
            start_time_ticks: outside.identity.start_time_ticks,
            boot_id: outside.identity.boot_id,
            comm: outside.comm.clone(),
            exe: path(&outside.exe),
            cmdline: outside.cmdline.clone(),
            auxv: outside.auxv.clone(),
            cwd: path(&outside.cwd),
            root: path(&outside.root),
            umask: outside.umask,
            uids: outside.uids,
            gids: outside.gids,
            ppid: outside.ppid,
            pgid: outside.pgid,
            sid: outside.sid,
            layout: outside.layout.to_words(),
            threads: state.threads.iter().map(ThreadV1::from).collect(),
        }
    }
}

impl StateV1 {
    fn into_state(self) -> Result<ProcessState, StateDecodeError> {
        let path = |bytes| PathBuf::from(OsString::from_vec(bytes));
        if self.pid <= 0 {
            return Err(StateDecodeError::Impossible { what: "pid" });
        }
        let threads: Result<Vec<_>, _> =
            self.threads.into_iter().map(ThreadV1::into_state).collect();
        Ok(ProcessState {
            outside: OutsideState {
                identity: ProcessIdentity {
                    pid: self.pid,
                    start_time_ticks: self.start_time_ticks,
                    boot_id: self.boot_id,
                },
                comm: self.comm,
                exe: path(self.exe),
                cmdline: self.cmdline,
                auxv: self.auxv,
                cwd: path(self.cwd),
                root: path(self.root),
                umask: self.umask,
                uids: self.uids,
                gids: self.gids,
                ppid: self.ppid,
                pgid: self.pgid,
                sid: self.sid,
                layout: MemoryLayout::from_words(self.layout),
            },
            threads: threads?,
        })
    }
}

impl From<&ThreadState> for ThreadV1 {
    fn from(state: &ThreadState) -> Self {
        Self {
            thread: state.thread.get(),
            comm: state.comm.clone(),
            registers: state.registers.to_words(),
            signal_mask: state.signal_mask,
            xstate: state.xstate.clone(),
        }
    }
}

impl ThreadV1 {
    fn into_state(self) -> Result<ThreadState, StateDecodeError> {
        if self.thread <= 0 {
            return Err(StateDecodeError::Impossible { what: "thread id" });
        }
        Ok(ThreadState {
            thread: ThreadId::new(self.thread),
            comm: self.comm,
            registers: Registers::from_words(self.registers),
            xstate: self.xstate,
            signal_mask: self.signal_mask,
        })
    }
}

impl MemoryLayout {
    fn to_words(self) -> [u64; 10] {
        [
            self.start_code,
            self.end_code,
            self.start_stack,
            self.start_data,
            self.end_data,
            self.start_brk,
            self.arg_start,
            self.arg_end,
            self.env_start,
            self.env_end,
        ]
    }

    fn from_words(words: [u64; 10]) -> Self {
        let [
            start_code,
            end_code,
            start_stack,
            start_data,
            end_data,
            start_brk,
            arg_start,
            arg_end,
            env_start,
            env_end,
        ] = words;
        Self {
            start_code,
            end_code,
            start_stack,
            start_data,
            end_data,
            start_brk,
            arg_start,
            arg_end,
            env_start,
            env_end,
        }
    }
}
