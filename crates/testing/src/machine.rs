//! Settings of the whole machine that some tests need, put back when the test ends: swap on a zram
//! device, huge pages, same-page merging. Only one test of all test programs holds them at a time.

use nix::libc;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::PathBuf;

/// The right to change settings of the machine, until it is dropped. Waits for other test programs.
pub struct Machine {
    _lock: File,
    restore: Vec<(PathBuf, String)>,
    swap: Option<CString>,
}

impl Machine {
    /// Waits for the right.
    pub fn lock() -> Self {
        let path = std::env::temp_dir().join("pagetide-machine-tests.lock");
        let lock = File::create(path).expect("lock file");
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("flock");
        Self {
            _lock: lock,
            restore: Vec::new(),
            swap: None,
        }
    }

    /// Writes a setting, to be put back.
    pub fn set(&mut self, path: &str, value: &str) -> io::Result<()> {
        let before = fs::read_to_string(path)?;
        fs::write(path, value)?;
        self.restore.push((path.into(), before.trim().to_owned()));
        Ok(())
    }

    /// Asks for at least `pages` free hugetlb pages of 2 MiB.
    pub fn huge_pages(&mut self, pages: usize) -> Result<(), String> {
        let path = "/proc/sys/vm/nr_hugepages";
        let wanted = pages.to_string();
        self.set(path, &wanted)
            .map_err(|error| format!("write {path}: {error}"))?;
        let given = fs::read_to_string(path).map_err(|error| error.to_string())?;
        if given.trim() == wanted {
            Ok(())
        } else {
            Err(format!(
                "{} of {pages} huge pages are to be had",
                given.trim()
            ))
        }
    }

    /// Turns swap on, on `/dev/zram0`, which must not be in use.
    pub fn swap(&mut self) -> Result<(), String> {
        let device = "/dev/zram0";
        let size = "/sys/block/zram0/disksize";
        let told = |what: &str, error: io::Error| format!("{what}: {error}");
        let before = fs::read_to_string(size).map_err(|error| told(size, error))?;
        if before.trim() != "0" {
            return Err(format!("{device} is in use"));
        }
        fs::write(size, "64M").map_err(|error| told(size, error))?;
        let area = File::options().write(true).open(device);
        let mut area = area.map_err(|error| told(device, error))?;
        write_swap_header(&mut area, 64 << 20).map_err(|error| told("make swap", error))?;
        let name = CString::new(device).expect("name");
        // SAFETY: a terminated path.
        if unsafe { libc::swapon(name.as_ptr(), 0) } != 0 {
            let error = io::Error::last_os_error();
            reset_zram();
            return Err(told("swapon", error));
        }
        self.swap = Some(name);
        Ok(())
    }

    /// Turns swap off again: everything is read back into memory.
    pub fn swap_off(&mut self) {
        if let Some(name) = self.swap.take() {
            // SAFETY: a terminated path.
            let off = unsafe { libc::swapoff(name.as_ptr()) };
            assert_eq!(off, 0, "swapoff: {}", io::Error::last_os_error());
            reset_zram();
        }
    }
}

fn reset_zram() {
    let _ = fs::write("/sys/block/zram0/reset", "1");
}

/// The header that mkswap(8) writes: version, last page and signature in the first page.
fn write_swap_header(area: &mut File, length: usize) -> io::Result<()> {
    let mut page = vec![0u8; super::PAGE];
    let last = u32::try_from(length / super::PAGE - 1).expect("swap size");
    page[1024..1028].copy_from_slice(&1u32.to_ne_bytes());
    page[1028..1032].copy_from_slice(&last.to_ne_bytes());
    page[super::PAGE - 10..].copy_from_slice(b"SWAPSPACE2");
    area.seek(SeekFrom::Start(0))?;
    area.write_all(&page)?;
    area.sync_all()
}

impl Drop for Machine {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.swap_off();
        } else if let Some(name) = self.swap.take() {
            // SAFETY: a terminated path. A failure must not hide the one that is under way.
            unsafe { libc::swapoff(name.as_ptr()) };
            reset_zram();
        }
        for (path, before) in self.restore.drain(..).rev() {
            let _ = fs::write(path, before);
        }
    }
}
