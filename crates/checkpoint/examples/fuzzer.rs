//! A fuzzer that runs each input on the same memory: hundreds of times a second it puts a gigabyte back to what it was, by
//! writing only the pages that the last input has changed.
//!
//! `cargo run --release --example fuzzer` prints how many inputs a second; with `--check` it is small, and compares all
//! memory after each input. `--seconds N`, `--mib N`, `--pages N` (written by each input).

#![allow(unsafe_code)]

use pagetide::pages::PageIndex;
use pagetide::{OwnRegion, OwnTracker, OwnTrackerOptions, Placement};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use std::time::{Duration, Instant};

const PAGE: usize = 4096;

/// Memory of the program under test.
struct Memory {
    start: *mut u8,
    length: usize,
}

impl Memory {
    fn new(mib: usize) -> Self {
        let length = mib << 20;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), length, access, MapFlags::PRIVATE) };
        let start = start.expect("map memory").cast();
        let memory = Self { start, length };
        for at in (0..length).step_by(8) {
            memory.store(at, (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
        memory
    }

    fn store(&self, at: usize, value: u64) {
        assert!(at + 8 <= self.length && at.is_multiple_of(8));
        // SAFETY: it lies in the mapping, which nobody else uses and to which there are no references.
        unsafe {
            self.start
                .wrapping_add(at)
                .cast::<u64>()
                .write_volatile(value)
        };
    }

    fn load(&self, at: usize) -> u64 {
        assert!(at + 8 <= self.length && at.is_multiple_of(8));
        // SAFETY: as above.
        unsafe { self.start.wrapping_add(at).cast::<u64>().read_volatile() }
    }

    /// A number that changes with any byte.
    fn sum(&self) -> u64 {
        let words = (0..self.length).step_by(8).map(|at| self.load(at));
        words.fold(0, |sum: u64, word| {
            sum.rotate_left(5).wrapping_mul(0x100_0000_01b3) ^ word
        })
    }
}

/// The program under test: it writes all over its memory, led by the input, and has a bug.
fn run(memory: &Memory, input: u64, pages: usize) -> bool {
    let mut at = input;
    for _ in 0..pages {
        at = at
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let page = (at >> 33) as usize % (memory.length / PAGE);
        let place = page * PAGE + (at as usize % 500) * 8;
        memory.store(place, memory.load(place).rotate_left(7) ^ at);
    }
    at % 1009 == 1
}

fn number(name: &str, default: usize) -> usize {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    let value = arguments
        .nth(1)
        .map(|value| value.parse().expect("a number"));
    value.unwrap_or(default)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let is_check = std::env::args().any(|argument| argument == "--check");
    let memory = Memory::new(number("--mib", if is_check { 8 } else { 1024 }));
    let (pages, seconds) = (number("--pages", 265), number("--seconds", 3) as u64);
    // SAFETY: the memory is ours until the end, and there is no reference into it.
    let region = unsafe { OwnRegion::new(memory.start, memory.length) };
    let place = Placement::new(region, PageIndex(0));
    let mut tracker = OwnTracker::new(&[place], OwnTrackerOptions::default())?;
    let baseline = tracker.baseline()?;

    let expected = if is_check { memory.sum() } else { 0 };
    let (mut inputs, mut bugs, mut written) = (0u64, 0u64, 0u64);
    let mut spent = Duration::ZERO;
    let started = Instant::now();
    while if is_check {
        inputs < 60
    } else {
        started.elapsed() < Duration::from_secs(seconds)
    } {
        bugs += u64::from(run(&memory, inputs, pages));
        let begun = Instant::now();
        written += tracker.reset_to(&baseline)?.0;
        spent += begun.elapsed();
        inputs += 1;
        if is_check && memory.sum() != expected {
            return Err(format!("after input {inputs} memory is not what it was").into());
        }
    }
    let rate = inputs as f64 / spent.as_secs_f64();
    println!(
        "{inputs} inputs, {bugs} found a bug; {} pages written back each time, {rate:.0} resets a second ({:.0} inputs)",
        written / inputs.max(1),
        inputs as f64 / started.elapsed().as_secs_f64(),
    );
    Ok(())
}
