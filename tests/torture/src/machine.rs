//! Settings of the whole machine: swap on a zram device, merging of equal pages, huge pages. Only one
//! test program holds them at a time, and they are put back when this is dropped.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const DEVICE: &str = "/dev/zram0";
const DISK_SIZE: &str = "/sys/block/zram0/disksize";
const SWAP_BYTES: u64 = 128 << 20;
const MERGING: &str = "/sys/kernel/mm/ksm";
const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";

/// The right to change settings of the machine, as far as it was to be had.
#[derive(Debug)]
pub struct Machine {
    lock: Option<File>,
    restore: Vec<(PathBuf, String)>,
    swap: bool,
}

impl Machine {
    /// Without any right yet. It is asked for at the first change.
    pub fn new() -> Self {
        Self {
            lock: None,
            restore: Vec::new(),
            swap: false,
        }
    }

    /// Does one step; the error says why not.
    pub fn perform(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split(' ').collect();
        let result = match words[..] {
            ["!compact"] => fs::write("/proc/sys/vm/compact_memory", "1"),
            ["!drop_caches"] => fs::write("/proc/sys/vm/drop_caches", "3"),
            ["!swap", "off"] => self.swap_off(),
            ["!swap", _] => self.lock().and_then(|()| self.swap_on()),
            ["!merge", "wait"] => wait_for_merging(),
            ["!merge", _] => self.lock().and_then(|()| self.merge()),
            ["!huge", count] => self.lock().and_then(|()| self.set(HUGE_PAGES, count)),
            _ => Err(io::Error::other(format!("an unknown step: {line}"))),
        };
        result.map_err(|error| error.to_string())
    }

    /// The lock of all tests that change the machine.
    fn lock(&mut self) -> io::Result<()> {
        if self.lock.is_none() {
            let path = std::env::temp_dir().join("pagetide-machine-tests.lock");
            let lock = File::create(path)?;
            let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
            rustix::fs::flock(&lock, operation)?;
            self.lock = Some(lock);
        }
        Ok(())
    }

    fn set(&mut self, path: &str, value: &str) -> io::Result<()> {
        let before = fs::read_to_string(path)?;
        fs::write(path, value)?;
        self.restore.push((path.into(), before.trim().to_owned()));
        Ok(())
    }

    fn merge(&mut self) -> io::Result<()> {
        self.set(&format!("{MERGING}/sleep_millisecs"), "2")?;
        self.set(&format!("{MERGING}/pages_to_scan"), "5000")?;
        self.set(&format!("{MERGING}/run"), "1")
    }

    fn swap_on(&mut self) -> io::Result<()> {
        if self.swap {
            return Err(io::Error::other("swap is on already"));
        }
        if fs::read_to_string(DISK_SIZE)?.trim() != "0" {
            return Err(io::Error::other(format!("{DEVICE} is in use")));
        }
        fs::write(DISK_SIZE, SWAP_BYTES.to_string())?;
        self.swap = true;
        let on = write_swap_header().and_then(|()| run("swapon"));
        if on.is_err() {
            self.swap = false;
            let _ = fs::write("/sys/block/zram0/reset", "1");
        }
        on
    }

    fn swap_off(&mut self) -> io::Result<()> {
        if !self.swap {
            return Err(io::Error::other("swap is off already"));
        }
        run("swapoff")?;
        self.swap = false;
        fs::write("/sys/block/zram0/reset", "1")
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

fn run(program: &str) -> io::Result<()> {
    let paths = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin";
    let mut command = Command::new(program);
    command.arg(DEVICE).env("PATH", paths).stderr(Stdio::null());
    match command.status()? {
        status if status.success() => Ok(()),
        status => Err(io::Error::other(format!("{program}: {status}"))),
    }
}

/// The header that mkswap(8) writes: version, last page and signature in the first page.
fn write_swap_header() -> io::Result<()> {
    let mut page = [0; 4096];
    let last = u32::try_from(SWAP_BYTES / 4096 - 1).map_err(io::Error::other)?;
    page[1024..1028].copy_from_slice(&1u32.to_ne_bytes());
    page[1028..1032].copy_from_slice(&last.to_ne_bytes());
    page[4086..].copy_from_slice(b"SWAPSPACE2");
    let area = File::options().write(true).open(DEVICE)?;
    area.write_all_at(&page, 0)?;
    area.sync_all()
}

/// Until all memory was scanned twice, or for half a second.
fn wait_for_merging() -> io::Result<()> {
    let scans = || -> io::Result<u64> {
        let text = fs::read_to_string(format!("{MERGING}/full_scans"))?;
        text.trim().parse().map_err(io::Error::other)
    };
    let (first, since) = (scans()?, Instant::now());
    while scans()? < first + 2 && since.elapsed() < Duration::from_millis(500) {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.swap {
            // What is swapped out is read back first.
            let _ = self.swap_off();
        }
        for (path, before) in self.restore.drain(..).rev() {
            let _ = fs::write(path, before);
        }
    }
}
