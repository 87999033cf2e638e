//! Time namespaces: by how much the monotonic and the boot time clock of processes differ from those that the kernel counts.
//!
//! time_namespaces(7), since Linux 5.6, with CONFIG_TIME_NS. Reading the offsets needs ptrace access (read); a namespace of one's own
//! needs CAP_SYS_ADMIN, and its offsets CAP_SYS_TIME.

#![allow(unsafe_code)]

use nix::libc;
use rustix::time::{ClockId, clock_gettime};
use std::fs::OpenOptions;
use std::io::{self, Write};

const CLONE_NEWTIME: libc::c_int = 0x80;
const NANOSECONDS: i64 = 1_000_000_000;

/// Offsets, or readings, of both clocks, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clocks {
    /// Of CLOCK_MONOTONIC.
    pub monotonic_ns: i64,
    /// Of CLOCK_BOOTTIME.
    pub boottime_ns: i64,
}

impl Clocks {
    /// What the clocks of this thread show now.
    pub fn now() -> Self {
        let read = |clock| {
            let now = clock_gettime(clock);
            now.tv_sec
                .saturating_mul(NANOSECONDS)
                .saturating_add(now.tv_nsec)
        };
        Self {
            monotonic_ns: read(ClockId::Monotonic),
            boottime_ns: read(ClockId::Boottime),
        }
    }

    /// Each by as much more as `other` says.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            monotonic_ns: self.monotonic_ns.saturating_add(other.monotonic_ns),
            boottime_ns: self.boottime_ns.saturating_add(other.boottime_ns),
        }
    }

    /// Each by as much less as `other` says.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            monotonic_ns: self.monotonic_ns.saturating_sub(other.monotonic_ns),
            boottime_ns: self.boottime_ns.saturating_sub(other.boottime_ns),
        }
    }
}

/// By how much the clocks of the children of process or thread `id` differ from those that the kernel counts. It is that of its own
/// clocks, unless it has made a namespace and not entered it. 0 where the kernel has no such namespaces.
pub fn offsets(id: i32) -> io::Result<Clocks> {
    match std::fs::read_to_string(format!("/proc/{id}/timens_offsets")) {
        Ok(text) => parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Of a process that is gone nothing is known.
            std::fs::metadata(format!("/proc/{id}/stat")).map(|_| Clocks::default())
        }
        Err(error) => Err(error),
    }
}

fn parse(text: &str) -> Option<Clocks> {
    let mut clocks = Clocks::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (clock, seconds, nanoseconds) = (words.next()?, words.next()?, words.next()?);
        let seconds: i64 = seconds.parse().ok()?;
        let nanoseconds: i64 = nanoseconds.parse().ok()?;
        let offset = seconds.checked_mul(NANOSECONDS)?.checked_add(nanoseconds)?;
        // As numbers since Linux 5.6.0 only before its first release.
        match clock {
            "monotonic" | "1" => clocks.monotonic_ns = offset,
            "boottime" | "7" => clocks.boottime_ns = offset,
            _ => {}
        }
    }
    Some(clocks)
}

/// What this thread forks from now on has clocks that differ by these offsets from those that the kernel counts. The clocks of the
/// thread itself stay.
pub fn give_to_children(offsets: Clocks) -> io::Result<()> {
    // SAFETY: it changes in which namespace children of this thread are made, and no memory.
    if unsafe { libc::unshare(CLONE_NEWTIME) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let line = |name: &str, offset: i64| {
        let seconds = offset.div_euclid(NANOSECONDS);
        format!("{name} {seconds} {}\n", offset.rem_euclid(NANOSECONDS))
    };
    let text = line("monotonic", offsets.monotonic_ns) + &line("boottime", offsets.boottime_ns);
    let own = rustix::thread::gettid().as_raw_nonzero();
    let file = OpenOptions::new()
        .write(true)
        .open(format!("/proc/{own}/timens_offsets"));
    file?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_as_the_kernel_has_them() {
        let text = "monotonic      100000         0\nboottime            -3 500000000\n";
        let clocks = Clocks {
            monotonic_ns: 100_000 * NANOSECONDS,
            boottime_ns: -2_500_000_000,
        };
        assert_eq!(parse(text), Some(clocks));
        assert_eq!(parse(""), Some(Clocks::default()));
        assert_eq!(parse("monotonic x 0"), None);
    }
}
