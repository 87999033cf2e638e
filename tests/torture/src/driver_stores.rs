//! Stores into the target by another process: this one.

use crate::random::page_of;
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::uio::{RemoteIoVec, process_vm_writev};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::fs::File;
use std::io::IoSlice;
use std::os::unix::fs::FileExt;

/// Where the area of the target begins.
pub const AREA: u64 = 0x10_0000_0000;

/// Stores to a page of the area: `!poke` by ptrace(2), `!mem` through `/proc/PID/mem`, `!vm` by
/// process_vm_writev(2).
pub fn store(how: &str, pid: i32, page: u64, seed: u64) -> Result<(), String> {
    let address = AREA + page * 4096;
    let bytes = &page_of(seed)[..1 + (seed % 4096) as usize];
    match how {
        "!poke" => poke(Pid::from_raw(pid), address, seed).map_err(|error| error.to_string()),
        "!mem" => {
            let memory = File::options().write(true).open(format!("/proc/{pid}/mem"));
            memory
                .and_then(|memory| memory.write_at(bytes, address))
                .map(|_| ())
                .map_err(|error| error.to_string())
        }
        _ => {
            let remote = RemoteIoVec {
                base: address as usize,
                len: bytes.len(),
            };
            process_vm_writev(Pid::from_raw(pid), &[IoSlice::new(bytes)], &[remote])
                .map(|_| ())
                .map_err(|error| error.to_string())
        }
    }
}

fn poke(pid: Pid, address: u64, seed: u64) -> Result<(), Errno> {
    ptrace::seize(pid, ptrace::Options::empty())?;
    let poked = ptrace::interrupt(pid)
        .and_then(|()| waitpid(pid, Some(WaitPidFlag::__WALL)))
        .and_then(|_| {
            let place = address + seed % 512 * 8;
            ptrace::write(pid, place as ptrace::AddressType, seed.cast_signed())
        });
    let detached = ptrace::detach(pid, None);
    poked.and(detached)
}
