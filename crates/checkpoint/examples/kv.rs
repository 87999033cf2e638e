//! A key-value engine of one's own whose memory is its database: a hash index and values in an arena, which is captured
//! every 20 ms while it goes on. What it acknowledges is durable; killed at any moment, it opens where it was.
//!
//! `kv serve DIR` runs it until it is killed, and prints a line for each transaction up to which all is durable. `kv open DIR`
//! checks what is there, and an older snapshot of it. `kv --check [--kills N]` does both again and again: it kills
//! the engine at random moments, and nothing that was acknowledged may be missing.

#![allow(unsafe_code)]

use pagetide::pages::PageIndex;
use pagetide::store::{Store, View};
use pagetide::{OwnMemory, OwnMemoryOptions, OwnRegion, Placement};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ARENA_BYTES: usize = 32 << 20;
/// Slots of the index, of two words each: a key that is not 0, and where its value is.
const SLOTS: usize = 1 << 17;
const FIRST_SLOT: usize = 64;
const FIRST_VALUE: usize = FIRST_SLOT + SLOTS * 16;
/// Words of the header.
const TRANSACTIONS: usize = 0;
const END: usize = 8;
/// Keys that transactions write to.
const KEYS: u64 = 40_000;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The memory of the engine. All that it knows is in it, by offset.
struct Arena {
    start: *mut u8,
}

impl Arena {
    fn new() -> Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), ARENA_BYTES, access, MapFlags::PRIVATE) };
        Ok(Self {
            start: start?.cast(),
        })
    }

    fn place(&self) -> Placement {
        // SAFETY: the mapping stays as long as the process, there are no references into it, and any bytes of it will do.
        let region = unsafe { OwnRegion::new(self.start, ARENA_BYTES) };
        Placement::new(region, PageIndex(0))
    }

    fn load(&self, at: usize) -> u64 {
        assert!(at + 8 <= ARENA_BYTES && at.is_multiple_of(8));
        // SAFETY: it lies in the mapping.
        unsafe { self.start.wrapping_add(at).cast::<u64>().read() }
    }

    fn store(&self, at: usize, value: u64) {
        assert!(at + 8 <= ARENA_BYTES && at.is_multiple_of(8));
        // SAFETY: as above.
        unsafe { self.start.wrapping_add(at).cast::<u64>().write(value) };
    }

    /// The slot of a key, or the free one for it.
    fn slot(&self, key: u64) -> usize {
        let mut number = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize % SLOTS;
        loop {
            let slot = FIRST_SLOT + number * 16;
            match self.load(slot) {
                0 => return slot,
                found if found == key => return slot,
                _ => number = (number + 1) % SLOTS,
            }
        }
    }

    fn put(&self, key: u64, value: u64) {
        let slot = self.slot(key);
        if self.load(slot) == 0 {
            let at = self.load(END).max(FIRST_VALUE as u64);
            self.store(slot, key);
            self.store(slot + 8, at);
            self.store(END, at + 128);
        }
        let at = self.load(slot + 8) as usize;
        for word in 0..16 {
            self.store(at + word * 8, value.wrapping_add(word as u64));
        }
    }

    fn get(&self, key: u64) -> Option<u64> {
        let slot = self.slot(key);
        let at = self.load(slot + 8) as usize;
        (self.load(slot) != 0).then(|| self.load(at))
    }

    /// A transaction writes five keys.
    fn transact(&self) -> u64 {
        let number = self.load(TRANSACTIONS) + 1;
        for (key, value) in writes(number) {
            self.put(key, value);
        }
        self.store(TRANSACTIONS, number);
        number
    }
}

/// What a transaction writes.
fn writes(number: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..5).map(move |step| {
        let mixed = (number * 5 + step).wrapping_mul(0xd134_2543_de82_ef95);
        (1 + (mixed >> 20) % KEYS, number << 8 | step)
    })
}

/// Runs until it is killed.
fn serve(directory: &Path) -> Result<()> {
    let arena = Arena::new()?;
    let store = Store::open_or_create_directory(directory)?;
    let newest = store.newest()?.map(|info| info.id);
    let view = newest.map(|id| store.view(id)).transpose()?;
    let mut memory = OwnMemory::new(store, &[arena.place()], OwnMemoryOptions::default())?;
    if let Some(view) = view {
        memory.restore(&view)?;
    }
    loop {
        let begun = Instant::now();
        let mut number = 0;
        while begun.elapsed() < Duration::from_millis(20) {
            number = arena.transact();
        }
        let mut captured = memory.capture()?; // the engine stands still for this
        captured.attach("transactions", number.to_le_bytes().to_vec())?;
        captured.commit_and_call(move |stored| {
            let mut out = std::io::stdout().lock();
            match stored {
                Ok(_) => writeln!(out, "durable {number}").expect("tell it"),
                Err(error) => eprintln!("{error}"), // the next one has its pages
            }
        })?;
    }
}

/// All keys of a snapshot are what its transactions wrote; returns how many those were.
fn check(view: &View, arena: &Arena) -> Result<u64> {
    let told = view.attachment("transactions").ok_or("no attachment")?;
    let number = u64::from_le_bytes(told.try_into()?);
    if arena.load(TRANSACTIONS) != number {
        return Err("the header and the attachment differ".into());
    }
    let mut expected = HashMap::new();
    for transaction in 1..=number {
        expected.extend(writes(transaction));
    }
    for key in 1..=KEYS {
        if arena.get(key) != expected.get(&key).copied() {
            return Err(format!("key {key} is wrong after {number} transactions").into());
        }
    }
    Ok(number)
}

/// Opens what is there, and an older snapshot of it beside.
fn open(directory: &Path) -> Result<u64> {
    let store = Store::open_directory(directory)?;
    let newest = store.newest()?.ok_or("an empty store")?.id;
    let view = store.view(newest)?;
    let chain = view.chain();
    let arena = Arena::new()?;
    let mut memory = OwnMemory::new(store.clone(), &[arena.place()], OwnMemoryOptions::default())?;
    memory.restore(&view)?;
    let number = check(&view, &arena)?;
    let older = store.view(chain[chain.len() / 2])?;
    memory.roll_back(&older)?;
    check(&older, &arena)?;
    Ok(number)
}

/// Kills the engine again and again.
fn kills(count: u64) -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let directory = temporary.path().join("store");
    let mut all = 0;
    for kill in 0..count {
        let mut engine = Command::new(std::env::current_exe()?)
            .arg("serve")
            .arg(&directory)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(engine.stdout.take().ok_or("no output")?).lines();
        let mut acknowledged = String::new();
        let mut told = |line: String| acknowledged = line;
        // It is up when it has said something; then it has up to 150 ms.
        lines.next().transpose()?.map(&mut told);
        std::thread::sleep(Duration::from_millis(kill * 7919 % 150));
        engine.kill()?;
        engine.wait()?;
        lines.map_while(|line| line.ok()).for_each(&mut told);
        let acknowledged: u64 = acknowledged
            .strip_prefix("durable ")
            .unwrap_or("0")
            .parse()?;
        let found = open(&directory).map_err(|error| format!("kill {kill}: {error}"))?;
        if found < acknowledged {
            return Err(
                format!("kill {kill}: {acknowledged} was acknowledged, {found} is there").into(),
            );
        }
        all = found;
        if directory.metadata().is_ok() && kill % 20 == 19 {
            std::fs::remove_dir_all(&directory)?;
        }
    }
    println!("{count} kills, {count} good; {all} transactions in the last store");
    Ok(())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", directory] => serve(Path::new(directory)),
        ["open", directory] => {
            println!("{} transactions, all there", open(Path::new(directory))?);
            Ok(())
        }
        ["--check"] => kills(8),
        ["--check", "--kills", count] => kills(count.parse()?),
        _ => Err("kv serve DIR | kv open DIR | kv --check [--kills N]".into()),
    }
}
