//! Runs one program in this process: the steps that are done to memory, and the snapshots between them.

#![allow(unsafe_code)]

use super::world::{Outcome, World};
use crate::program::{kind, numbers};
use crate::tally::Tally;
use pagetide::{Captured, OwnMemory, OwnMemoryError, OwnMemoryOptions, OwnRegion, Placement};
use pagetide_pages::PageIndex;
use pagetide_snapshot::storage::Fault;
use pagetide_snapshot::{MemoryStorage, PageState, SnapshotKind, Store, View};
use pagetide_testing::aio::SlowFile;
use pagetide_testing::child::run_to_end;
use pagetide_testing::{PAGE, Region};
use pagetide_tests::caught;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Regions lie so many pages apart in the space.
const APART: u64 = 10_000;

/// A program that runs.
struct Driver {
    world: World,
    own: Option<OwnMemory>,
    storage: MemoryStorage,
    views: Vec<View>,
    slow: Option<Result<SlowFile, String>>,
    tally: Tally,
}

/// Runs a program. On a failure: at which step, and what.
///
/// # Errors
///
/// If a snapshot is not what memory holds, or the library gives an error that it should not.
pub fn run_program(program: &[String], disk: &Path) -> Result<Tally, (usize, String)> {
    // What the kernel refuses panics in places; it is counted.
    std::panic::set_hook(Box::new(|_| {}));
    let mut driver = Driver {
        world: World::new(disk),
        own: None,
        storage: MemoryStorage::new(),
        views: Vec::new(),
        slow: None,
        tally: Tally::default(),
    };
    for (step, line) in program.iter().enumerate() {
        let done = match line.strip_prefix('!') {
            Some(line) => driver.drive(line).map_err(|what| (step, what))?,
            None => driver.operate(line),
        };
        driver.owe_for(line);
        driver.tell_what_is_owed();
        driver.tally.count(kind(line), done);
    }
    driver.tally.programs = 1;
    Ok(driver.tally)
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// With its causes.
fn whole(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |all, cause| format!("{all}: {cause}"))
}

/// An error that has to be: what it is called. Any other is a failure.
fn is_right(world: &World, error: &OwnMemoryError) -> Result<String, String> {
    match error {
        OwnMemoryError::NotMapped { .. } if !world.is_whole() => Ok("not mapped".to_owned()),
        OwnMemoryError::AlsoMapped { .. } if world.is_mapped_twice() => {
            Ok("also mapped".to_owned())
        }
        other => Err(whole(other)),
    }
}

/// Captures, and hands what was captured on; an error that has to be is an outcome.
fn captured<T>(
    own: &mut OwnMemory,
    world: &World,
    then: impl FnOnce(Captured) -> Result<T, OwnMemoryError>,
) -> Result<Result<T, String>, String> {
    match own.capture().and_then(then) {
        Ok(_) if !world.is_whole() || world.is_mapped_twice() => {
            Err("a capture was taken that had to be refused".to_owned())
        }
        Ok(value) => Ok(Ok(value)),
        Err(error) => is_right(world, &error).map(Err),
    }
}

impl Driver {
    fn operate(&mut self, line: &str) -> Outcome {
        let words: Vec<&str> = line.split(' ').collect();
        let all = numbers(line);
        let n = |at: usize| all.get(at).copied().unwrap_or(0);
        let world = &mut self.world;
        let second = words.get(1).copied().unwrap_or("");
        if words[0] == "region" {
            return match self.own {
                None => world.add(second, n(0) as usize),
                Some(_) => Err("regions come first".to_owned()),
            };
        }
        if world.slots.is_empty() {
            return Err("no region".to_owned());
        }
        match words[0] {
            how @ ("store" | "read" | "direct" | "vm" | "mem") => {
                world.write(how, n(0), n(1), n(2))
            }
            "fill" => world.fill(n(0), n(1), n(2), n(3)),
            "load" => world.load(n(0), n(1), n(2)),
            "advise" => world.advise(second, n(0), n(1), n(2)),
            "protect" => world.protect(second, n(0), n(1), n(2)),
            "replace" => world.replace(second, n(0), n(1), n(2)),
            "unmap" => world.unmap(n(0), n(1), n(2)),
            "heal" => world.heal(),
            how @ ("move" | "leave") => {
                world.moved((n(0), n(1)), n(2), (n(3), n(4)), how == "leave")
            }
            what @ ("pwrite" | "punch" | "shrink" | "other") => {
                world.foreign(what, n(0), n(1), n(2))
            }
            "keep" => world.keep(n(0)),
            "unkeep" => world.unkeep(),
            "child" => world.child(n(0), n(1), n(2)),
            "idle" => world.idle(),
            "reap" => world.reap(),
            "ring" => world.ring(n(0), n(1), n(2)),
            "fixed" => world.fixed(n(0), n(1), n(2)),
            "unring" => world.unring(),
            "ownring" => world.own_ring(true),
            "unownring" => world.own_ring(false),
            other => Err(format!("no operation {other}")),
        }
    }

    /// `Err` of the outer kind is a failure of what is tested.
    fn drive(&mut self, line: &str) -> Result<Outcome, String> {
        let words: Vec<&str> = line.split(' ').collect();
        let all = numbers(line);
        let n = |at: usize| all.get(at).copied().unwrap_or(0);
        if words[0] == "new" {
            return self.make();
        }
        if self.own.is_none() {
            return Ok(Err("there is none yet".to_owned()));
        }
        match words[0] {
            "check" => self.check(),
            "back" => self.back(words.get(1).copied().unwrap_or("")),
            "late" => self.late(n(0), n(1), n(2)),
            "during" => self.during(n(0), n(1)),
            "slow" => self.slow(n(0), n(1), n(2)),
            "forked" => self.forked(),
            "rollback" => self.rollback(n(0)),
            "mark" => {
                let (slot, pages) = self.world.range(n(0), n(1), n(2));
                let address = self.world.slots[slot].region.address(pages.start);
                self.mark(address, (pages.len() * PAGE) as u64);
                Ok(Ok(()))
            }
            other => Ok(Err(format!("no step {other}"))),
        }
    }

    fn mark(&self, address: u64, length: u64) {
        if let Some(own) = &self.own {
            own.written_pages().mark(address, length);
        }
    }

    /// Whatever a step may have written through another mapping of memory that is `alone`.
    fn owe_for(&mut self, line: &str) {
        let all = numbers(line);
        let n = |at: usize| all.get(at).copied().unwrap_or(0);
        let verb = line.split(' ').next().unwrap_or("");
        if self.world.slots.is_empty() {
            return;
        }
        let (slot, pages) = match verb {
            "fill" => self.world.range(n(0), n(1), n(2)),
            "!during" => self.world.range(n(0), 0, u64::from(u32::MAX)),
            "store" | "read" | "direct" | "vm" | "mem" | "fixed" | "!late" | "!slow" => {
                self.world.range(n(0), n(1), 1)
            }
            _ => return,
        };
        self.world.owe_what_others_show(slot, pages);
    }

    fn tell_what_is_owed(&mut self) {
        for (address, length) in std::mem::take(&mut self.world.owed) {
            self.mark(address, length);
        }
    }

    /// Makes the `OwnMemory`, in place of the one before.
    fn make(&mut self) -> Result<Outcome, String> {
        if self.world.slots.is_empty() {
            return Ok(Err("no region".to_owned()));
        }
        self.own = None;
        self.views.clear();
        self.storage = MemoryStorage::new();
        let store = Store::create(Arc::new(self.storage.clone())).map_err(said)?;
        let placed = |(number, slot): (usize, &super::world::Slot)| {
            let length = slot.cells.len() * PAGE;
            let region = name(&slot.region, length);
            let place = Placement::new(region, PageIndex(number as u64 * APART));
            if slot.alone {
                place.written_through_it_only()
            } else {
                place
            }
        };
        let placements: Vec<Placement> = self.world.slots.iter().enumerate().map(placed).collect();
        match OwnMemory::new(store, &placements, OwnMemoryOptions::default()) {
            Ok(own) => {
                self.own = Some(own);
                Ok(Ok(()))
            }
            Err(error) => is_right(&self.world, &error).map(Err),
        }
    }

    fn check(&mut self) -> Result<Outcome, String> {
        let own = self.own.as_mut().ok_or("there is none")?;
        let snapshot = match captured(own, &self.world, |captured| captured.commit())? {
            Ok(snapshot) => snapshot,
            Err(refused) => return Ok(Err(refused)),
        };
        self.compare(&snapshot.view)?;
        match snapshot.view.info().kind {
            SnapshotKind::Full => self.tally.full += 1,
            SnapshotKind::Delta => self.tally.delta += 1,
        }
        self.tally.written_pages += snapshot.written_pages.0;
        self.views.push(snapshot.view);
        Ok(Ok(()))
    }

    fn compare(&mut self, view: &View) -> Result<(), String> {
        let memory = File::open("/proc/self/mem").map_err(said)?;
        let (mut now, mut stored) = (vec![0; PAGE], vec![0; PAGE]);
        let space = view.space_index("memory").ok_or("no space")?;
        for (number, slot) in self.world.slots.iter().enumerate() {
            for page in 0..slot.cells.len() {
                let index = PageIndex(number as u64 * APART + page as u64);
                let has_bytes = view.read_page(space, index, &mut stored).is_ok();
                let address = slot.region.address(page);
                let readable = memory.read_exact_at(&mut now, address).is_ok();
                if has_bytes != readable || (readable && now != stored) {
                    let state = view.page_state(space, index);
                    let at = now.iter().zip(&stored).position(|(now, then)| now != then);
                    return Err(format!(
                        "differs: region {number} page {page}, {:?}, byte {at:?}, {state:?}, readable {readable}, \
                         snapshot {}",
                        slot.cells[page],
                        view.id()
                    ));
                }
                self.tally.compared_pages +=
                    u64::from(readable && now.iter().any(|byte| *byte != 0));
            }
        }
        self.tally.compared += 1;
        Ok(())
    }

    /// A capture that is not stored.
    fn back(&mut self, how: &str) -> Result<Outcome, String> {
        if how == "fail" {
            self.storage.set_fault(Some(Fault::FailFrom(1)));
            let own = self.own.as_mut().ok_or("there is none")?;
            let stored = own.capture().and_then(|captured| captured.commit());
            self.storage.set_fault(None);
            return match stored {
                Ok(_) => Err("a snapshot was stored where nothing can be written".to_owned()),
                Err(_) => Ok(Ok(())),
            };
        }
        let own = self.own.as_mut().ok_or("there is none")?;
        let outcome = caught(|| {
            captured(own, &self.world, |captured| {
                match how {
                    "give" => captured.give_back(),
                    "forget" => std::mem::forget(captured),
                    "panic" => std::panic::resume_unwind(Box::new("in between")),
                    _ => drop(captured),
                }
                Ok(())
            })
        });
        match outcome {
            Ok(outcome) => outcome,
            Err(_) if how == "panic" => Ok(Ok(())),
            Err(panic) => Err(crate::stage::text_of(panic)),
        }
    }

    /// Written between capture and commit: it belongs to the next snapshot.
    fn late(&mut self, region: u64, page: u64, value: u64) -> Result<Outcome, String> {
        let (slot, page) = self.world.place(region, page);
        let slot = &self.world.slots[slot];
        if !slot.cells[page].takes_stores() {
            return Ok(Err("no stores there".to_owned()));
        }
        let own = self.own.as_mut().ok_or("there is none")?;
        captured(own, &self.world, |captured| {
            slot.region.store_at(page * PAGE + 33, value as u8 | 1);
            captured.commit().map(drop)
        })
    }

    /// Snapshots while a thread stores all the time. What they hold is of many moments; the next has all of it.
    fn during(&mut self, region: u64, count: u64) -> Result<Outcome, String> {
        let (slot, _) = self.world.place(region, 0);
        let slot = &self.world.slots[slot];
        let cells = slot.cells.iter().enumerate();
        let pages = cells.filter(|(_, cell)| cell.takes_stores());
        let pages: Vec<usize> = pages.map(|(page, _)| page).collect();
        if pages.is_empty() {
            return Ok(Err("no stores there".to_owned()));
        }
        let (region, over) = (&slot.region, AtomicBool::new(false));
        let own = self.own.as_mut().ok_or("there is none")?;
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0u64.. {
                    let page = pages[(round * 7919) as usize % pages.len()];
                    region.store_at(page * PAGE + (round % 64) as usize * 8, round as u8);
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            let taken = (0..count.clamp(1, 5)).try_for_each(|_| own.capture()?.commit().map(drop));
            over.store(true, Ordering::Relaxed);
            taken
        });
        match outcome {
            Ok(()) => {
                self.tally.overlapped += count.clamp(1, 5);
                Ok(Ok(()))
            }
            Err(error) => is_right(&self.world, &error).map(Err),
        }
    }

    /// A direct read that is under way during a snapshot.
    fn slow(&mut self, region: u64, page: u64, value: u64) -> Result<Outcome, String> {
        let mounted = self
            .slow
            .get_or_insert_with(|| SlowFile::mount().map_err(said));
        let (slot, page) = self.world.place(region, page);
        let cell = self.world.slots[slot].cells[page];
        let slow = match mounted {
            Ok(slow) => slow,
            Err(error) => return Ok(Err(error.clone())),
        };
        if !cell.takes_stores() {
            return Ok(Err("no stores there".to_owned()));
        }
        let file = slow.open().map_err(said)?;
        let region = &self.world.slots[slot].region;
        let own = self.own.as_mut().ok_or("there is none")?;
        let taken = std::thread::scope(|scope| {
            let reader = scope.spawn(|| pagetide_testing::read_into(region, page, &file).map(drop));
            slow.asked();
            let taken = own
                .capture()
                .and_then(|captured| captured.commit())
                .map(drop);
            slow.answer(value as u8 | 1);
            let read = reader.join().expect("it does not panic");
            read.map_err(said)?;
            Ok::<_, String>(taken)
        })?;
        match taken {
            Ok(()) => Ok(Ok(())),
            Err(error) => is_right(&self.world, &error).map(Err),
        }
    }

    /// What a forked child must not be able to do.
    fn forked(&mut self) -> Result<Outcome, String> {
        let own = self.own.as_mut().ok_or("there is none")?;
        let view = self.views.last();
        let ended = run_to_end(|| {
            let is_refused = |outcome: Result<(), OwnMemoryError>| {
                matches!(outcome, Err(OwnMemoryError::Forked { .. }))
            };
            let captures = is_refused(own.capture().map(drop));
            let puts_back = view.is_none_or(|view| is_refused(own.roll_back(view).map(drop)));
            i32::from(!captures) + 2 * i32::from(!puts_back)
        });
        match ended {
            Ok(0) => Ok(Ok(())),
            other => Err(format!("a forked child was not refused: {other:?}")),
        }
    }

    /// Back to a snapshot, where all memory takes what it held.
    fn rollback(&mut self, back: u64) -> Result<Outcome, String> {
        let cells = self.world.slots.iter().flat_map(|slot| &slot.cells);
        let takes_all = cells.into_iter().all(|cell| cell.takes_stores());
        let at = self.views.len().checked_sub(1 + back as usize);
        let (Some(at), true) = (at, takes_all && !self.world.is_mapped_twice()) else {
            return Ok(Err("not to be put back".to_owned()));
        };
        let view = self.views[at].clone();
        let space = view.space_index("memory").ok_or("no space")?;
        for number in 0..self.world.slots.len() as u64 {
            let pages = self.world.slots[number as usize].cells.len() as u64;
            let has_bytes = |page: u64| {
                let state = view.page_state(space, PageIndex(number * APART + page));
                matches!(state, Some(PageState::Data | PageState::Zero))
            };
            if !(0..pages).all(has_bytes) {
                return Ok(Err("it has no bytes for all".to_owned()));
            }
        }
        let before = self.contents()?;
        let own = self.own.as_mut().ok_or("there is none")?;
        match own.roll_back(&view) {
            Ok(_) => {}
            Err(OwnMemoryError::ShowTheSame { .. }) if self.shows_what_differed(&view)? => {
                return if self.contents()? == before {
                    Ok(Err("two places show the same by now".to_owned()))
                } else {
                    Err("something was written by what was refused".to_owned())
                };
            }
            Err(error) => return Err(whole(&error)),
        }
        self.compare(&view)
            .map_err(|what| format!("put back: {what}"))?;
        Ok(Ok(()))
    }

    /// What all regions hold.
    fn contents(&self) -> Result<Vec<Vec<u8>>, String> {
        let memory = File::open("/proc/self/mem").map_err(said)?;
        let read = |slot: &super::world::Slot| {
            let mut bytes = vec![0; slot.cells.len() * PAGE];
            let read = memory.read_exact_at(&mut bytes, slot.region.address(0));
            read.map(|()| bytes).map_err(said)
        };
        self.world.slots.iter().map(read).collect()
    }

    /// True if two places show the same page of a file now and did not hold the same in a snapshot.
    fn shows_what_differed(&self, view: &View) -> Result<bool, String> {
        let space = view.space_index("memory").ok_or("no space")?;
        let mut held = std::collections::HashMap::new();
        for (number, slot) in self.world.slots.iter().enumerate() {
            for (page, cell) in slot.cells.iter().enumerate() {
                let Some(file) = cell.file.filter(|_| cell.shared) else {
                    continue;
                };
                let index = PageIndex(number as u64 * APART + page as u64);
                let mut bytes = vec![0; PAGE];
                view.read_page(space, index, &mut bytes).map_err(said)?;
                if *held.entry(file).or_insert_with(|| bytes.clone()) != bytes {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// Names the first `length` bytes of a region.
fn name(region: &Region, length: usize) -> OwnRegion {
    // SAFETY: a region is memory of the program alone, to which no reference exists; it outlives the
    // `OwnMemory`, which is dropped or ends with the process first.
    unsafe { OwnRegion::new(region.start() as *mut u8, length) }
}
