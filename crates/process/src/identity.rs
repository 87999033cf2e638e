//! Which process is meant: a pid alone may belong to another one tomorrow.

use std::fs;
use std::io;

use crate::proc_files::Stat;

/// A process, named so that no other one ever has the same name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProcessIdentity {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot (`stat` field 22, `proc(5)`).
    pub start_time_ticks: u64,
    /// The boot it belongs to (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: [u8; 16],
}

/// Why a process could not be identified.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// There is none with this number.
    #[error("there is no process {pid}")]
    NoSuchProcess {
        /// The number asked for.
        pid: i32,
    },
    /// `/proc` could not be read.
    #[error("cannot read what /proc says of process {pid}")]
    Proc {
        /// The number asked for.
        pid: i32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl ProcessIdentity {
    /// The process that has this number now, ended and unreaped ones included.
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

    /// Whether this very process still runs: not ended (a zombie has), and the number not given
    /// to another. True says nothing of the moment after.
    pub fn is_alive_and_same(&self) -> bool {
        Stat::of_process(self.pid).is_ok_and(|stat| {
            stat.start_time_ticks() == self.start_time_ticks
                && (!stat.has_ended() || stat.field(20) > 1)
        }) && boot_id().is_ok_and(|boot| boot == self.boot_id)
    }
}

fn boot_id() -> io::Result<[u8; 16]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let number = u128::from_str_radix(&digits, 16)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(number.to_be_bytes())
}
