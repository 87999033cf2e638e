//! The memory that programs work on, and what is known of each page of it: enough to know whether a store would kill
//! the process, and whether an error of a capture is right.

use nix::libc;
use pagetide_testing::child::{Child, run_to_end};
use pagetide_testing::ring::Ring;
use pagetide_testing::{MADV_GUARD_INSTALL, MADV_GUARD_REMOVE, PAGE, READ_WRITE, Region};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

/// What is known of a page.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cell {
    pub mapped: bool,
    pub protection: i32,
    pub guard: bool,
    /// The file that it shows, and which page of that.
    pub file: Option<(usize, usize)>,
    pub shared: bool,
}

impl Cell {
    pub fn takes_stores(&self) -> bool {
        self.mapped && !self.guard && self.protection == READ_WRITE
    }
}

/// A region of the program.
pub struct Slot {
    pub region: Region,
    pub cells: Vec<Cell>,
    /// It is promised to be written through it only.
    pub alone: bool,
}

/// All that a program has.
pub struct World {
    pub slots: Vec<Slot>,
    pub files: Vec<File>,
    /// Files on a disk, to be read directly.
    disk: std::path::PathBuf,
    source: File,
    direct: Option<File>,
    ring: Option<Ring>,
    own_ring: Option<Ring>,
    kept: Vec<(usize, Region)>,
    children: Vec<Child>,
    /// Pages that were changed without a trace, of memory that is promised not to be.
    pub owed: Vec<(u64, u64)>,
}

/// An error, as it is counted.
pub type Outcome = Result<(), String>;

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

const FILE_PAGES: usize = 1024;

impl World {
    pub fn new(disk: &std::path::Path) -> Self {
        Self {
            slots: Vec::new(),
            files: Vec::new(),
            disk: disk.to_owned(),
            source: pagetide_testing::memfd("source", 1),
            direct: None,
            ring: None,
            own_ring: None,
            kept: Vec::new(),
            children: Vec::new(),
            owed: Vec::new(),
        }
    }

    /// Adds a region.
    pub fn add(&mut self, kind: &str, pages: usize) -> Outcome {
        let pages = pages.clamp(1, FILE_PAGES);
        let mut cell = Cell {
            mapped: true,
            protection: READ_WRITE,
            ..Cell::default()
        };
        let region = match kind {
            "anon" => Region::private(pages),
            "huge" => {
                let region = Region::private(pages);
                let _ = region.advise(0..pages, libc::MADV_HUGEPAGE);
                region
            }
            "zero" => {
                cell.shared = true;
                Region::shared(pages)
            }
            "memfd" | "alone" | "file" | "disk" => {
                let file = match kind {
                    "disk" => tempfile::tempfile_in(&self.disk).map_err(said)?,
                    _ => pagetide_testing::memfd("region", FILE_PAGES),
                };
                if kind == "disk" {
                    file.set_len((FILE_PAGES * PAGE) as u64).map_err(said)?;
                }
                cell.shared = matches!(kind, "memfd" | "alone");
                let region = Region::of_file(&file, pages, cell.shared);
                self.files.push(file);
                region
            }
            other => return Err(format!("no kind {other}")),
        };
        let file = match kind {
            "anon" | "huge" | "zero" => None,
            _ => Some(self.files.len() - 1),
        };
        let cells = (0..pages).map(|page| Cell {
            file: file.map(|file| (file, page)),
            ..cell
        });
        self.slots.push(Slot {
            region,
            cells: cells.collect(),
            alone: kind == "alone",
        });
        Ok(())
    }

    /// A place in a region, whatever the numbers are.
    pub fn place(&self, region: u64, page: u64) -> (usize, usize) {
        let slot = region as usize % self.slots.len();
        (slot, page as usize % self.slots[slot].cells.len())
    }

    /// A range in a region, at least one page long.
    pub fn range(&self, region: u64, page: u64, count: u64) -> (usize, Range<usize>) {
        let (slot, page) = self.place(region, page);
        let end = (page + count.max(1) as usize).min(self.slots[slot].cells.len());
        (slot, page..end)
    }

    fn file(&self, number: u64, page: u64) -> Result<(usize, usize), String> {
        match self.files.len() {
            0 => Err("no file".to_owned()),
            files => Ok((number as usize % files, page as usize % FILE_PAGES)),
        }
    }

    /// The pages of some pages of a file that were promised to change through their region only: they have to be told.
    fn owe(&mut self, file: usize, pages: Range<usize>) {
        for slot in self.slots.iter().filter(|slot| slot.alone) {
            for (page, cell) in slot.cells.iter().enumerate() {
                let shows = cell
                    .file
                    .is_some_and(|(of, at)| of == file && pages.contains(&at));
                if shows && cell.shared {
                    self.owed.push((slot.region.address(page), PAGE as u64));
                }
            }
        }
    }

    /// True if a page of a file that an `alone` region shows is mapped elsewhere.
    pub fn is_mapped_twice(&self) -> bool {
        let all = || {
            let slots = self.slots.iter();
            slots.flat_map(|slot| slot.cells.iter().map(move |cell| (slot.alone, cell)))
        };
        let alone = all().filter(|(alone, cell)| *alone && cell.mapped && cell.shared);
        let mut shown = alone.filter_map(|(_, cell)| cell.file);
        shown.any(|file| {
            let times = all().filter(|(_, cell)| cell.mapped && cell.shared);
            let times = times.filter(|(_, cell)| cell.file == Some(file)).count();
            times > 1 || self.kept.iter().any(|(kept, _)| *kept == file.0)
        })
    }

    /// The same of what is written through a region that shows such a page, too: that is another mapping of it.
    pub fn owe_what_others_show(&mut self, slot: usize, pages: Range<usize>) {
        if self.slots[slot].alone {
            return;
        }
        for page in pages {
            let cell = self.slots[slot].cells[page];
            if let (Some((file, at)), true) = (cell.file, cell.shared) {
                self.owe(file, at..at + 1);
            }
        }
    }

    pub fn is_whole(&self) -> bool {
        let mut cells = self.slots.iter().flat_map(|slot| &slot.cells);
        cells.all(|cell| cell.mapped)
    }

    /// What the processor, or a system call, writes to one page.
    pub fn write(&mut self, how: &str, region: u64, page: u64, value: u64) -> Outcome {
        let (slot, page) = self.place(region, page);
        let (cell, value) = (self.slots[slot].cells[page], value as u8 | 1);
        let region = &self.slots[slot].region;
        let address = region.address(page);
        match how {
            "store" if cell.takes_stores() => {
                region.store_at(page * PAGE + usize::from(value) * 8, value);
                Ok(())
            }
            "store" => Err("no stores there".to_owned()),
            "vm" => {
                let byte = [value];
                let bytes = [std::io::IoSlice::new(&byte)];
                let to = nix::sys::uio::RemoteIoVec {
                    base: address as usize + 77,
                    len: 1,
                };
                let pid = nix::unistd::Pid::this();
                let written = nix::sys::uio::process_vm_writev(pid, &bytes, &[to]);
                written.map(drop).map_err(said)
            }
            "mem" => {
                let memory = OpenOptions::new().write(true).open("/proc/self/mem");
                let memory = memory.map_err(said)?;
                memory
                    .write_at(&[value], address + 99)
                    .map(drop)
                    .map_err(said)
            }
            _ => {
                if how == "direct" {
                    self.make_direct_source(value)?;
                }
                let from = match (&self.direct, how) {
                    (Some(direct), "direct") => direct,
                    _ => {
                        self.source.write_all_at(&[value; PAGE], 0).map_err(said)?;
                        &self.source
                    }
                };
                let mut start = from;
                std::io::Seek::rewind(&mut start).map_err(said)?;
                let region = &self.slots[slot].region;
                pagetide_testing::read_into(region, page, from)
                    .map(drop)
                    .map_err(said)
            }
        }
    }

    /// A file on a disk with a page full of `value`, open for direct reads.
    fn make_direct_source(&mut self, value: u8) -> Outcome {
        let path = self
            .disk
            .join(format!("torture-own-{}", std::process::id()));
        if self.direct.is_none() {
            let mut file = File::create(&path).map_err(said)?;
            file.write_all(&[value; PAGE]).map_err(said)?;
            let mut options = OpenOptions::new();
            options.read(true).write(true).custom_flags(libc::O_DIRECT);
            let opened = options.open(&path);
            std::fs::remove_file(&path).map_err(said)?;
            self.direct = Some(opened.map_err(said)?);
        }
        Ok(())
    }

    pub fn fill(&mut self, region: u64, page: u64, count: u64, value: u64) -> Outcome {
        let (slot, pages) = self.range(region, page, count);
        let slot = &self.slots[slot];
        let mut done = Err("no stores there".to_owned());
        for page in pages.filter(|&page| slot.cells[page].takes_stores()) {
            slot.region.fill(page..page + 1, value as u8 | 1);
            done = Ok(());
        }
        done
    }

    pub fn load(&self, region: u64, page: u64, count: u64) -> Outcome {
        let (slot, pages) = self.range(region, page, count);
        let slot = &self.slots[slot];
        for page in pages {
            let cell = slot.cells[page];
            if cell.mapped && !cell.guard && cell.protection != libc::PROT_NONE {
                std::hint::black_box(slot.region.load(page));
            }
        }
        Ok(())
    }

    pub fn advise(&mut self, name: &str, region: u64, page: u64, count: u64) -> Outcome {
        let (slot, pages) = self.range(region, page, count);
        let advice = match name {
            "dontneed" => libc::MADV_DONTNEED,
            "remove" => libc::MADV_REMOVE,
            "cold" => libc::MADV_COLD,
            "pageout" => libc::MADV_PAGEOUT,
            "willneed" => libc::MADV_WILLNEED,
            "populate_read" => libc::MADV_POPULATE_READ,
            "populate_write" => libc::MADV_POPULATE_WRITE,
            "hugepage" => libc::MADV_HUGEPAGE,
            "nohugepage" => libc::MADV_NOHUGEPAGE,
            "collapse" => libc::MADV_COLLAPSE,
            "mergeable" => libc::MADV_MERGEABLE,
            "unmergeable" => libc::MADV_UNMERGEABLE,
            "wipeonfork" => libc::MADV_WIPEONFORK,
            "keeponfork" => libc::MADV_KEEPONFORK,
            "guard" => MADV_GUARD_INSTALL,
            "unguard" => MADV_GUARD_REMOVE,
            other => return Err(format!("no advice {other}")),
        };
        let touched = &self.slots[slot];
        let tracked_and_shared = |page: usize| touched.alone && touched.cells[page].shared;
        if name == "guard" && pages.clone().any(tracked_and_shared) {
            // It would never return: see T32.
            return Err("no guards in shared memory that is tracked".to_owned());
        }
        let done = touched.region.advise(pages.clone(), advice).map_err(said);
        // An error may come after a part was done.
        if name == "remove" {
            for page in pages.clone() {
                if let Some((file, at)) = self.slots[slot].cells[page].file {
                    self.owe(file, at..at + 1);
                }
            }
        }
        // An error may come after a part was done: then there may be guards, old and new.
        if name == "guard" || (name == "unguard" && done.is_ok()) {
            for cell in &mut self.slots[slot].cells[pages] {
                cell.guard = name == "guard" && cell.mapped;
            }
        }
        done
    }

    pub fn protect(&mut self, how: &str, region: u64, page: u64, count: u64) -> Outcome {
        let (slot, pages) = self.range(region, page, count);
        let protection = match how {
            "none" => libc::PROT_NONE,
            "read" => libc::PROT_READ,
            _ => READ_WRITE,
        };
        let slot = &mut self.slots[slot];
        if slot.cells[pages.clone()].iter().any(|cell| !cell.mapped) {
            return Err("not mapped".to_owned());
        }
        slot.region.protect(pages.clone(), protection);
        for cell in &mut slot.cells[pages] {
            cell.protection = protection;
        }
        Ok(())
    }

    pub fn unmap(&mut self, region: u64, page: u64, count: u64) -> Outcome {
        let (slot, pages) = self.range(region, page, count);
        let slot = &mut self.slots[slot];
        slot.region.unmap(pages.clone());
        slot.cells[pages].fill(Cell::default());
        Ok(())
    }

    /// Anonymous memory wherever there is a hole.
    pub fn heal(&mut self) -> Outcome {
        for slot in &mut self.slots {
            for page in 0..slot.cells.len() {
                if !slot.cells[page].mapped {
                    slot.region.replace(page..page + 1);
                    slot.cells[page] = Cell {
                        mapped: true,
                        protection: READ_WRITE,
                        ..Cell::default()
                    };
                }
            }
        }
        Ok(())
    }

    pub fn replace(&mut self, kind: &str, region: u64, page: u64, count: u64) -> Outcome {
        let (slot, pages) = self.range(region, page, count);
        let mut cell = Cell {
            mapped: true,
            protection: READ_WRITE,
            ..Cell::default()
        };
        if kind == "anon" {
            self.slots[slot].region.replace(pages.clone());
            self.slots[slot].cells[pages].fill(cell);
            return Ok(());
        }
        let (file, first) = self.file(page + count, page)?;
        let first = first.min(FILE_PAGES - pages.len());
        cell.shared = kind == "shared";
        if cell.shared && self.slots[slot].alone {
            return Err("it is promised to be written through it only".to_owned());
        }
        let whole = Region::of_file(&self.files[file], first + pages.len(), cell.shared);
        whole.move_to(
            first..first + pages.len(),
            &self.slots[slot].region,
            pages.start,
            false,
        );
        for (offset, page) in pages.enumerate() {
            self.slots[slot].cells[page] = Cell {
                file: Some((file, first + offset)),
                ..cell
            };
        }
        Ok(())
    }

    pub fn moved(&mut self, from: (u64, u64), count: u64, to: (u64, u64), leave: bool) -> Outcome {
        let (source, pages) = self.range(from.0, from.1, count);
        let (target, place) = self.place(to.0, to.1);
        let fits = place + pages.len() <= self.slots[target].cells.len();
        let new = place..place + pages.len();
        let overlap = source == target && new.start < pages.end && pages.start < new.end;
        let cells = self.slots[source].cells[pages.clone()].to_vec();
        // The kernel moves one mapping at a time, and leaves behind only anonymous memory that is private.
        let one = cells.windows(2).all(|two| {
            let goes_on = match (two[0].file, two[1].file) {
                (None, None) => true,
                (Some((file, at)), Some((next, after))) => file == next && after == at + 1,
                _ => false,
            };
            goes_on && two[0].shared == two[1].shared && two[0].protection == two[1].protection
        });
        let mapped = cells.iter().all(|cell| cell.mapped);
        let leaves = !leave || cells.iter().all(|cell| cell.file.is_none() && !cell.shared);
        let guards = cells.iter().any(|cell| cell.guard);
        if !fits || overlap || !one || !mapped || !leaves || guards {
            return Err("not to be moved".to_owned());
        }
        let shared = cells.iter().any(|cell| cell.shared);
        if shared && (self.slots[source].alone || self.slots[target].alone) {
            return Err("it is promised to be written through it only".to_owned());
        }
        let (there, here) = (&self.slots[target].region, &self.slots[source].region);
        let moved = pagetide_tests::caught(|| here.move_to(pages.clone(), there, place, leave));
        if moved.is_err() {
            // Several mappings that the model takes for one, as advice or tracking tells them apart. Some may have been
            // moved before the kernel gave up.
            there.replace(new.clone());
            here.replace(pages.clone());
            let anonymous = Cell {
                mapped: true,
                protection: READ_WRITE,
                ..Cell::default()
            };
            self.slots[target].cells[new].fill(anonymous);
            self.slots[source].cells[pages].fill(anonymous);
            return Err("the kernel does not move it".to_owned());
        }
        self.slots[target].cells[new].copy_from_slice(&cells);
        if !leave {
            self.slots[source].cells[pages].fill(Cell::default());
        }
        Ok(())
    }

    /// What others do to a file.
    pub fn foreign(&mut self, what: &str, file: u64, page: u64, number: u64) -> Outcome {
        let (file, page) = self.file(file, page)?;
        let value = number as u8 | 1;
        let offset = (page * PAGE) as u64;
        let end = match what {
            "punch" => (page + number.max(1) as usize).min(FILE_PAGES),
            "shrink" => FILE_PAGES,
            _ => page + 1,
        };
        let open = &self.files[file];
        let done = match what {
            "pwrite" => open.write_all_at(&[value; 100], offset + 5).map_err(said),
            "punch" => {
                pagetide_testing::punch_hole(open, page..end);
                Ok(())
            }
            "shrink" => {
                let whole = (FILE_PAGES * PAGE) as u64;
                let shrunk = open.set_len(offset).and_then(|()| open.set_len(whole));
                shrunk.map_err(said)
            }
            "other" => {
                let other = Region::of_file(open, page + 1, true);
                other.store_at(page * PAGE + 11, value);
                Ok(())
            }
            other => Err(format!("no way {other}")),
        };
        self.owe(file, page..end);
        done
    }

    pub fn keep(&mut self, file: u64) -> Outcome {
        let (file, _) = self.file(file, 0)?;
        let kept = Region::of_file(&self.files[file], FILE_PAGES, true);
        self.kept.push((file, kept));
        Ok(())
    }

    pub fn unkeep(&mut self) -> Outcome {
        self.kept.clear();
        Ok(())
    }

    pub fn child(&mut self, region: u64, page: u64, value: u64) -> Outcome {
        let (slot, page) = self.place(region, page);
        let cell = self.slots[slot].cells[page];
        if !cell.takes_stores() {
            return Err("no stores there".to_owned());
        }
        if let (Some((file, at)), true) = (cell.file, cell.shared) {
            self.owe(file, at..at + 1);
        }
        let region = &self.slots[slot].region;
        let ended = run_to_end(|| {
            region.store_at(page * PAGE + 123, value as u8 | 1);
            0
        });
        match ended {
            Ok(0) => Ok(()),
            other => Err(format!("the child ended with {other:?}")),
        }
    }

    pub fn idle(&mut self) -> Outcome {
        // One at a time can be made while others live: see there.
        if self.children.is_empty() {
            let child = Child::run(|board| board.tell(0, 1));
            child.wait(0);
            self.children.push(child);
        }
        Ok(())
    }

    pub fn reap(&mut self) -> Outcome {
        self.children.clear();
        Ok(())
    }

    pub fn ring(&mut self, region: u64, page: u64, count: u64) -> Outcome {
        let (slot, pages) = self.range(region, page, count);
        let ring = Ring::new().map_err(said)?;
        let region = &self.slots[slot].region;
        ring.register_buffer(region, pages).map_err(said)?;
        self.ring = Some(ring);
        Ok(())
    }

    pub fn fixed(&mut self, region: u64, page: u64, value: u64) -> Outcome {
        let (slot, page) = self.place(region, page);
        let address = self.slots[slot].region.address(page);
        self.source
            .write_all_at(&[value as u8 | 1; PAGE], 0)
            .map_err(said)?;
        let ring = self.ring.as_mut().ok_or("no ring")?;
        ring.start_read(&self.source, address, PAGE, true);
        match ring.finish() {
            read if read > 0 => Ok(()),
            error => Err(said(std::io::Error::from_raw_os_error(-error))),
        }
    }

    pub fn unring(&mut self) -> Outcome {
        self.ring = None;
        Ok(())
    }

    pub fn own_ring(&mut self, there: bool) -> Outcome {
        self.own_ring = if there {
            Some(Ring::in_own_memory().map_err(said)?)
        } else {
            None
        };
        Ok(())
    }
}
