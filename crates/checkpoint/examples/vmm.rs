//! A virtual machine monitor for KVM whose guest outlives it: two processors compute in 64-bit mode; the machine is
//! captured every 20 ms while they run; the monitor is killed in the middle of it, and a new one goes on from the last
//! snapshot to the right result.
//!
//! `vmm run DIR` begins (with `--die N` it kills itself while a snapshot is stored, the Nth or a later one), `vmm resume DIR` goes on, and
//! `vmm --check` does both in a directory of its own. Without /dev/kvm it says SKIPPED and ends well.

#![allow(unsafe_code)]

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use pagetide::pages::PageIndex;
use pagetide::store::{Store, View};
use pagetide::{OwnMemory, OwnMemoryOptions, OwnRegion, Placement};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

const MEMORY_BYTES: usize = 256 << 20;
const PROCESSORS: usize = 2;
/// Where things are in the guest.
const CODE_AT: u64 = 0x4000;
const COUNTS_AT: u64 = 0x7000;
const TABLES_AT: u64 = 0x9000;
const DATA_AT: u64 = 16 << 20;
/// Each processor has so many pages of its own, and takes so many steps.
const PAGES: u64 = 5_000;
const STEPS: u64 = 20_000;
const MULTIPLY: u64 = 6_364_136_223_846_793_005;
const ADD: u64 = 1_442_695_040_888_963_407;

/// Again and again: r8 = r8 * rcx + rdx; the word of a page that r8 chooses is turned and added to; the count in r11 goes to
/// [r15]. After r12 steps it tells the monitor (out), after r13 it halts.
const CODE: &[u8] = &[
    0x4c, 0x89, 0xe3, 0x4c, 0x0f, 0xaf, 0xc1, 0x49, 0x01, 0xd0, 0x4c, 0x89, 0xc0, 0x48, 0xc1, 0xe8,
    0x20, 0x49, 0x0f, 0xaf, 0xc1, 0x48, 0xc1, 0xe8, 0x20, 0x48, 0xc1, 0xe0, 0x0c, 0x4c, 0x01, 0xd0,
    0x48, 0x8b, 0x30, 0x48, 0xc1, 0xc6, 0x07, 0x4c, 0x01, 0xc6, 0x48, 0x89, 0x30, 0x49, 0xff, 0xc3,
    0x4d, 0x89, 0x1f, 0x4d, 0x39, 0xeb, 0x74, 0x09, 0x48, 0xff, 0xcb, 0x75, 0xc6, 0xe6, 0x10, 0xeb,
    0xbf, 0xf4, 0xeb, 0xfd,
];

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The memory of the guest, and the machine.
struct Machine {
    memory: *mut u8,
    vm: VmFd,
    _kvm: Kvm,
}

impl Machine {
    fn new() -> Result<Self> {
        let kvm = Kvm::new()?;
        let vm = kvm.create_vm()?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let memory = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                MEMORY_BYTES,
                access,
                MapFlags::PRIVATE,
            )
        };
        let memory = memory?.cast::<u8>();
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY_BYTES as u64,
            userspace_addr: memory as u64,
        };
        // SAFETY: the mapping is ours, and stays as long as the process.
        unsafe { vm.set_user_memory_region(slot)? };
        Ok(Self {
            memory,
            vm,
            _kvm: kvm,
        })
    }

    fn place(&self) -> Placement {
        // SAFETY: as above; there are no references into it, and a guest can do with any bytes.
        let region = unsafe { OwnRegion::new(self.memory, MEMORY_BYTES) };
        Placement::new(region, PageIndex(0))
    }

    fn store(&self, at: u64, value: u64) {
        // SAFETY: all that is stored lies in the first pages of the mapping, and no processor runs yet.
        unsafe {
            self.memory
                .wrapping_add(at as usize)
                .cast::<u64>()
                .write_volatile(value)
        };
    }

    fn load(&self, at: u64) -> u64 {
        assert!((at as usize) < MEMORY_BYTES);
        let word = self.memory.wrapping_add(at as usize).cast::<u64>();
        // SAFETY: it lies in the mapping.
        unsafe { word.read_volatile() }
    }

    /// A gigabyte mapped one to one, and the code.
    fn boot(&self) {
        self.store(TABLES_AT, (TABLES_AT + 0x1000) | 3);
        self.store(TABLES_AT + 0x1000, (TABLES_AT + 0x2000) | 3);
        for large in 0..512 {
            self.store(TABLES_AT + 0x2000 + large * 8, large << 21 | 0x83);
        }
        let to = self.memory.wrapping_add(CODE_AT as usize);
        // SAFETY: it fits into the page, and no processor runs yet.
        unsafe { std::ptr::copy_nonoverlapping(CODE.as_ptr(), to, CODE.len()) };
    }
}

/// The registers of a processor, as attachments have them.
#[derive(Clone, Copy)]
struct Registers {
    plain: kvm_regs,
    special: kvm_sregs,
}

fn first_registers(processor: &VcpuFd, number: u64) -> Result<Registers> {
    let mut special = processor.get_sregs()?;
    special.cr3 = TABLES_AT;
    special.cr4 |= 1 << 5;
    special.cr0 |= 1 << 31 | 1;
    special.efer |= 1 << 10 | 1 << 8;
    let segment = |selector: u16, type_: u8, long: u8| kvm_segment {
        base: 0,
        limit: !0,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1 - long,
        s: 1,
        l: long,
        g: 1,
        ..kvm_segment::default()
    };
    special.cs = segment(8, 11, 1);
    let data = segment(16, 3, 0);
    (special.ds, special.es, special.ss) = (data, data, data);
    let plain = kvm_regs {
        rip: CODE_AT,
        rflags: 2,
        r8: seed(number),
        r9: PAGES,
        r10: DATA_AT + number * PAGES * 4096,
        r12: 2_000,
        r13: STEPS,
        r15: COUNTS_AT + number * 8,
        rcx: MULTIPLY,
        rdx: ADD,
        ..kvm_regs::default()
    };
    Ok(Registers { plain, special })
}

fn seed(processor: u64) -> u64 {
    1234 + processor
}

fn bytes_of<T: Copy>(value: &T) -> Vec<u8> {
    let start = std::ptr::from_ref(value).cast::<u8>();
    // SAFETY: KVM's structs are plain numbers without padding.
    unsafe { std::slice::from_raw_parts(start, size_of::<T>()).to_vec() }
}

fn from_bytes<T: Copy>(bytes: &[u8]) -> Result<T> {
    if bytes.len() != size_of::<T>() {
        return Err("registers of another length".into());
    }
    // SAFETY: as above: any bytes will do, and there are enough.
    Ok(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
}

/// How processors are made to stand still: they are interrupted until all have said that they do.
struct Control {
    wanted: AtomicBool,
    over: AtomicBool,
    halted: AtomicUsize,
    threads: [AtomicU64; PROCESSORS],
    still: AtomicUsize,
    go_on: Barrier,
    registers: Mutex<[Option<Registers>; PROCESSORS]>,
}

extern "C" fn interrupted(_: i32) {}

impl Control {
    /// Returns when no processor runs.
    fn pause(&self) {
        self.wanted.store(true, Ordering::SeqCst);
        while self.still.load(Ordering::SeqCst) < PROCESSORS {
            for thread in &self.threads {
                let thread = thread.load(Ordering::SeqCst);
                if thread != 0 {
                    // SAFETY: the thread runs until it has met the barrier after this.
                    unsafe { nix::libc::pthread_kill(thread, nix::libc::SIGUSR1) };
                }
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn go_on(&self) {
        self.still.store(0, Ordering::SeqCst);
        self.wanted.store(false, Ordering::SeqCst);
        self.go_on.wait();
    }

    /// A processor's thread.
    fn run(&self, number: usize, mut processor: VcpuFd) -> Result<()> {
        // SAFETY: no arguments.
        let own = unsafe { nix::libc::pthread_self() };
        self.threads[number].store(own, Ordering::SeqCst);
        let mut has_halted = false;
        while !self.over.load(Ordering::SeqCst) {
            if self.wanted.load(Ordering::SeqCst) {
                // What a processor was doing for the monitor is finished before its registers are read.
                processor.set_kvm_immediate_exit(1);
                let _ = processor.run();
                processor.set_kvm_immediate_exit(0);
                let registers = Registers {
                    plain: processor.get_regs()?,
                    special: processor.get_sregs()?,
                };
                self.registers.lock().expect("no panic")[number] = Some(registers);
                self.still.fetch_add(1, Ordering::SeqCst);
                self.go_on.wait();
            } else if has_halted {
                std::thread::sleep(Duration::from_micros(200));
            } else {
                match processor.run() {
                    Ok(VcpuExit::IoOut(..)) => {}
                    Ok(VcpuExit::Hlt) => {
                        has_halted = true;
                        self.halted.fetch_add(1, Ordering::SeqCst);
                    }
                    Err(error) if error.errno() == nix::libc::EINTR => {}
                    other => return Err(format!("processor {number}: {other:?}").into()),
                }
            }
        }
        Ok(())
    }
}

/// Runs the guest to its end, captured every 20 ms.
fn run(directory: &Path, resume: bool, die: Option<u64>) -> Result<()> {
    let machine = Machine::new()?;
    let store = if resume {
        Store::open_directory(directory)?
    } else {
        Store::create_directory(directory)?
    };
    let mut memory = OwnMemory::new(
        store.clone(),
        &[machine.place()],
        OwnMemoryOptions::default(),
    )?;
    let view = if resume {
        let newest = store.newest()?.ok_or("an empty store")?.id;
        let view = store.view(newest)?;
        let pages = memory.restore(&view)?;
        println!(
            "snapshot {newest}: {pages} pages, at {:?}",
            counts(&machine)
        );
        Some(view)
    } else {
        machine.boot();
        None
    };
    let control = Arc::new(Control {
        wanted: AtomicBool::new(false),
        over: AtomicBool::new(false),
        halted: AtomicUsize::new(0),
        threads: Default::default(),
        still: AtomicUsize::new(0),
        go_on: Barrier::new(PROCESSORS + 1),
        registers: Mutex::new([None; PROCESSORS]),
    });
    // SAFETY: the handler does nothing; it only ends the call that a processor is in.
    unsafe { nix::libc::signal(nix::libc::SIGUSR1, interrupted as *const () as usize) };
    std::thread::scope(|scope| {
        for number in 0..PROCESSORS {
            let processor = machine.vm.create_vcpu(number as u64)?;
            let registers = match &view {
                Some(view) => registers_of(view, number)?,
                None => first_registers(&processor, number as u64)?,
            };
            processor.set_sregs(&registers.special)?;
            processor.set_regs(&registers.plain)?;
            let control = Arc::clone(&control);
            scope.spawn(move || {
                if let Err(error) = control.run(number, processor) {
                    eprintln!("{error}");
                    std::process::exit(1);
                }
            });
        }
        let outcome = checkpoints(&control, &mut memory, die);
        control.over.store(true, Ordering::SeqCst);
        outcome
    })?;
    check(&machine)
}

fn registers_of(view: &View, number: usize) -> Result<Registers> {
    let of = |what: &str| {
        let name = format!("{what}-{number}");
        view.attachment(&name).ok_or(format!("there is no {name}"))
    };
    Ok(Registers {
        plain: from_bytes(of("plain")?)?,
        special: from_bytes(of("special")?)?,
    })
}

fn checkpoints(control: &Control, memory: &mut OwnMemory, die: Option<u64>) -> Result<()> {
    let mut longest = Duration::ZERO;
    loop {
        std::thread::sleep(Duration::from_millis(20));
        control.pause();
        let captured = memory.capture();
        let registers = *control.registers.lock().expect("no panic");
        let is_over = control.halted.load(Ordering::SeqCst) == PROCESSORS;
        control.go_on();
        let mut captured = captured?;
        for (number, registers) in registers.iter().flatten().enumerate() {
            captured.attach(&format!("plain-{number}"), bytes_of(&registers.plain))?;
            captured.attach(&format!("special-{number}"), bytes_of(&registers.special))?;
        }
        longest = longest.max(captured.paused());
        let number = captured.number();
        let ticket = captured.commit_in_background()?;
        // Not before there is something to go on from.
        if die.is_some_and(|at| number >= at && memory.durable() >= 2) {
            // SAFETY: takes a number. Nothing of this process runs after it.
            unsafe { nix::libc::raise(nix::libc::SIGKILL) };
        }
        if is_over {
            ticket.wait()?;
            println!("{number} snapshots; copied in {longest:?} at most");
            return Ok(());
        }
    }
}

fn counts(machine: &Machine) -> Vec<u64> {
    let of = |number| machine.load(COUNTS_AT + number * 8);
    (0..PROCESSORS as u64).map(of).collect()
}

/// The guest's result, computed once more here.
fn check(machine: &Machine) -> Result<()> {
    for processor in 0..PROCESSORS as u64 {
        let mut words: HashMap<u64, u64> = HashMap::new();
        let mut state = seed(processor);
        for _ in 0..STEPS {
            state = state.wrapping_mul(MULTIPLY).wrapping_add(ADD);
            let page = ((state >> 32) * PAGES) >> 32;
            let word = words.entry(page).or_default();
            *word = word.rotate_left(7).wrapping_add(state);
        }
        let at = |page: u64| DATA_AT + (processor * PAGES + page) * 4096;
        let wrong = words
            .iter()
            .filter(|&(&page, &word)| machine.load(at(page)) != word);
        let wrong = wrong.count();
        if wrong > 0 {
            return Err(format!("{wrong} pages of processor {processor} are wrong").into());
        }
    }
    println!("the result is right: {:?} steps", counts(machine));
    Ok(())
}

/// A monitor that is killed, and one that goes on.
fn check_all() -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let directory = temporary.path().join("store");
    let again = |words: &[&str]| {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg(words[0])
            .arg(&directory)
            .args(&words[1..])
            .status()
    };
    let killed = again(&["run", "--die", "5"])?;
    if killed.success() {
        return Err("it was not killed".into());
    }
    if again(&["resume"])?.success() {
        Ok(())
    } else {
        Err("the second monitor failed".into())
    }
}

fn main() -> Result<()> {
    if let Err(error) = Kvm::new() {
        println!("SKIPPED vmm: /dev/kvm: {error}");
        return Ok(());
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["run", directory] => run(Path::new(directory), false, None),
        ["run", directory, "--die", at] => run(Path::new(directory), false, Some(at.parse()?)),
        ["resume", directory] => run(Path::new(directory), true, None),
        ["--check"] => check_all(),
        _ => Err("vmm run DIR [--die N] | vmm resume DIR | vmm --check".into()),
    }
}
