//! Which process is meant: a pid alone may belong to another one tomorrow.

use crate::proc_files::Stat;
use pagetide_kernel::pidfd::{PidFd, PidFdError};
use pagetide_kernel::proc_file;
use std::io;
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;

/// A process, named so that no other one ever has the same name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProcessIdentity {
    /// Its pid.
    pub pid: i32,
    /// When it started, in clock ticks since boot (`stat` field 22, `proc(5)`).
    pub start_time_ticks: u64,
    /// The boot it belongs to (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: [u8; 16],
}

/// Where the stack of the program begins that process `pid` runs now (`stat` field 28, proc(5)): somewhere else after each
/// execve(2), unless the process has chosen fixed addresses (personality(2)). `None` if that is hidden, or it has ended.
pub fn start_of_stack(pid: i32) -> Option<u64> {
    let address = Stat::of_process(pid).ok()?.field(28);
    (address != 0).then_some(address)
}

/// Why a process could not be identified.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// There is none with this pid.
    #[error("there is no process {pid}")]
    NoSuchProcess {
        /// The pid asked for.
        pid: i32,
    },
    /// `/proc` could not be read.
    #[error("cannot read what /proc says of process {pid}")]
    Proc {
        /// The pid asked for.
        pid: i32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl ProcessIdentity {
    /// The process that has this pid now, ended and unreaped ones included.
    pub fn of(pid: i32) -> Result<Self, IdentityError> {
        let stat = Stat::of_process(pid).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => IdentityError::NoSuchProcess { pid },
            _ if source.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                IdentityError::NoSuchProcess { pid }
            }
            _ => IdentityError::Proc { pid, source },
        })?;
        let boot_id = boot_id().map_err(|source| IdentityError::Proc { pid, source })?;
        Ok(Self {
            pid,
            start_time_ticks: stat.start_time_ticks(),
            boot_id,
        })
    }

    /// The process by a descriptor, which never refers to another one: a signal that is sent through it reaches this process
    /// or nobody.
    ///
    /// # Errors
    /// If it has ended (the source is ESRCH then), or the descriptor cannot be had.
    pub fn hold(&self) -> Result<PidFd, PidFdError> {
        let held = PidFd::open(self.pid)?;
        // The descriptor is open: if the start time is still right now, it refers to the right process.
        if self.is_alive_and_same() {
            Ok(held)
        } else {
            Err(PidFdError::Open {
                pid: self.pid,
                source: rustix::io::Errno::SRCH,
            })
        }
    }

    /// Whether this very process still runs: not ended (a zombie has), and the pid not given
    /// to another. True says nothing of the moment after.
    pub fn is_alive_and_same(&self) -> bool {
        if boot_id().map_or(true, |boot| boot != self.boot_id) {
            return false;
        }
        for _ in 0..LOOKS {
            match Stat::of_process(self.pid) {
                Ok(stat) if stat.start_time_ticks() != self.start_time_ticks => return false,
                Ok(stat) if !stat.has_ended() || stat.field(20) > 1 => return true,
                // While a thread that is not the first runs another program, the first is dead
                // and the other has not yet taken its place.
                _ => sleep(PAUSE_BETWEEN_LOOKS),
            }
        }
        false
    }
}

/// How often a process that seems to have ended is looked at.
const LOOKS: u32 = 50;
const PAUSE_BETWEEN_LOOKS: Duration = Duration::from_millis(4);

/// It stays the same as long as we run, so it is read once.
fn boot_id() -> io::Result<[u8; 16]> {
    static BOOT_ID: OnceLock<[u8; 16]> = OnceLock::new();
    match BOOT_ID.get() {
        Some(known) => Ok(*known),
        None => read_boot_id().map(|read| *BOOT_ID.get_or_init(|| read)),
    }
}

fn read_boot_id() -> io::Result<[u8; 16]> {
    let text = proc_file::read_text("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let number = u128::from_str_radix(&digits, 16)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(number.to_be_bytes())
}
