//! Settings of the whole machine that some tests need, put back when the test ends: swap on a zram device,
//! huge pages, same-page merging. Only one test of all test programs holds them at a time.

use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io;
use std::process::{Command, Stdio};

const DEVICE: &str = "/dev/zram0";
const SIZE: &str = "/sys/block/zram0/disksize";

/// The right to change settings of the machine, until it is dropped.
pub struct Machine {
    _lock: File,
    restore: Vec<(&'static str, String)>,
    swap: bool,
}

impl Machine {
    /// Waits for other test programs that have it.
    pub fn lock() -> Self {
        let path = std::env::temp_dir().join("pagetide-machine-tests.lock");
        let lock = File::create(path).expect("make a lock file");
        flock(&lock, FlockOperation::LockExclusive).expect("lock it");
        Self {
            _lock: lock,
            restore: Vec::new(),
            swap: false,
        }
    }

    /// Writes a setting, to be put back.
    pub fn set(&mut self, path: &'static str, value: &str) -> Result<(), String> {
        let told = |error: io::Error| format!("{path}: {error}");
        let before = fs::read_to_string(path).map_err(told)?;
        fs::write(path, value).map_err(told)?;
        self.restore.push((path, before.trim().to_owned()));
        Ok(())
    }

    /// Asks for hugetlb pages of 2 MiB.
    pub fn huge_pages(&mut self, pages: usize) -> Result<(), String> {
        let path = "/proc/sys/vm/nr_hugepages";
        self.set(path, &pages.to_string())?;
        let given = fs::read_to_string(path).map_err(|error| error.to_string())?;
        match given.trim().parse::<usize>() {
            Ok(given) if given == pages => Ok(()),
            _ => Err(format!(
                "{} of {pages} huge pages are to be had",
                given.trim()
            )),
        }
    }

    /// Turns swap on, on a zram device that must not be in use.
    pub fn swap(&mut self) -> Result<(), String> {
        let before = fs::read_to_string(SIZE).map_err(|error| format!("{SIZE}: {error}"))?;
        if before.trim() != "0" {
            return Err(format!("{DEVICE} is in use"));
        }
        fs::write(SIZE, "64M").map_err(|error| format!("{SIZE}: {error}"))?;
        self.swap = true;
        run("mkswap")?;
        run("swapon")
    }
}

fn run(program: &str) -> Result<(), String> {
    let status = Command::new(program)
        .arg(DEVICE)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        other => Err(format!("{program} {DEVICE}: {other:?}")),
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.swap {
            // Fails if it was never turned on; then there is nothing to turn off.
            let _ = run("swapoff");
            let _ = fs::write("/sys/block/zram0/reset", "1");
        }
        for (path, before) in self.restore.drain(..).rev() {
            let _ = fs::write(path, before);
        }
    }
}
