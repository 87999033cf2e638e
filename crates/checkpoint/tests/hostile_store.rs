//! Prevents that what a store says of processes, whatever it is, makes the plan of a restore panic, hang or take memory without bound. A real
//! process is checkpointed, what the snapshot says of it is changed at random and sealed again, and everything that a restore decides
//! before it makes a process is decided. A few seconds in a usual run; `PAGETIDE_FUZZ_SECONDS` asks for more, and `PAGETIDE_SEED` for
//! the changes of an earlier one. One test alone in this program, since it counts what is allocated.

use pagetide::{Checkpointer, Options, Request, blockers_of, members_of, paths_of, tree_of};
use pagetide_kernel::counted_memory::CountedMemory;
use pagetide_pages::{PageCount, PageIndex, PageRange};
use pagetide_snapshot::{
    Attachment, Backing, Capture, MemoryStorage, PageState, Region, Sharing, Space, Store, View,
    WriteOptions,
};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[global_allocator]
static MEMORY: CountedMemory = CountedMemory::new();

/// Metadata may be 64 MiB long, and is held packed, unpacked and decoded.
const MOST_BYTES: usize = 256 << 20;
const SECONDS: u64 = 3;

const NUMBERS: [u64; 12] = [
    0,
    1,
    2,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 47,
    1 << 52,
    i64::MAX as u64,
    u64::MAX,
];
const WORDS: [&str; 14] = [
    "/",
    "//",
    "/../../etc/shadow",
    "/etc/passwd\0",
    "\n/etc",
    " (deleted)",
    "[vdso]",
    "[heap]",
    "/memfd:x (deleted)",
    "/SYSV00000000",
    "/dev/zero",
    "anon_inode:[eventfd]",
    "\u{202e}",
    "mem",
];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 11) as usize % end.max(1)
    }

    fn number(&mut self) -> u64 {
        NUMBERS[self.below(NUMBERS.len())].wrapping_add(self.next() % 3)
    }

    fn word(&mut self) -> &'static str {
        WORDS[self.below(WORDS.len())]
    }
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A process that is ended when this is dropped.
struct Subject(Child);

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a snapshot says.
#[derive(Clone)]
struct Said {
    spaces: Vec<Space>,
    attachments: Vec<Attachment>,
}

fn sound() -> Said {
    let script = "exec sleep 600 3</etc/passwd 4<>/dev/null 5<. 6>&1";
    let child = Command::new("sh")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let subject = Subject(child.expect("start a shell"));
    let pid = i32::try_from(subject.0.id()).expect("a process id");
    let since = Instant::now();
    let comm = || std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    while comm() != "sleep\n" {
        assert!(
            since.elapsed() < Duration::from_secs(60),
            "it does not start"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    let store = Store::create(Arc::new(MemoryStorage::new())).expect("a store");
    let attached = Checkpointer::attach(pid, store.clone(), Options::default());
    let done = attached
        .expect("attach")
        .take(Request::default())
        .expect("a snapshot");
    let view = store.view(done.id).expect("a view");
    Said {
        spaces: view.spaces().to_vec(),
        attachments: view.attachments().to_vec(),
    }
}

fn change_bytes(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = (at + 1 + random.below(8)).min(bytes.len());
        match random.below(7) {
            0 | 1 if at < bytes.len() => bytes[at] = random.number() as u8,
            2 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            3 => {
                let number = random.number().to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)];
                let end = (at + width).min(bytes.len());
                bytes[at..end].copy_from_slice(&number[..end - at]);
            }
            4 => drop(bytes.drain(at..end)),
            5 => {
                let copied = bytes[at..end].to_vec();
                bytes.splice(at..at, copied);
            }
            _ => {
                let word = random.word().as_bytes();
                let end = (at + word.len()).min(bytes.len());
                bytes[at..end].copy_from_slice(&word[..end - at]);
            }
        }
    }
}

fn change_region(regions: &mut Vec<Region>, random: &mut Random) {
    if regions.is_empty() {
        return;
    }
    let at = random.below(regions.len());
    let number = random.number();
    let region = &mut regions[at];
    let first = region.pages.start();
    match random.below(9) {
        0 => region.name = random.word().to_owned(),
        1 => region.pages = PageRange::with_count(first, PageCount(number >> 12)),
        2 => region.pages = PageRange::with_count(PageIndex(number >> 12), region.pages.count()),
        3 => region.sharing = Sharing::Shared,
        4 => region.protection.write = !region.protection.write,
        5 => region.advice.push(random.word().to_owned()),
        6 => drop(regions.remove(at)),
        7 => region.backing = Backing::Kernel,
        _ => {
            region.backing = Backing::File {
                path: random.word().as_bytes().to_vec(),
                offset_bytes: number & !0xfff,
                device: random.number(),
                inode: random.number(),
                size_bytes: random.number(),
                modified_ns: 0,
                build_id: Vec::new(),
            }
        }
    }
}

fn changed(sound: &Said, random: &mut Random) -> Said {
    let mut said = sound.clone();
    for _ in 0..=random.below(3) {
        match random.below(8) {
            0 | 1 => {
                let space = random.below(said.spaces.len());
                change_region(&mut said.spaces[space].regions, random);
            }
            2 => drop(
                said.attachments
                    .remove(random.below(said.attachments.len())),
            ),
            _ => {
                let one = random.below(said.attachments.len());
                change_bytes(&mut said.attachments[one].bytes, random);
            }
        }
        if said.attachments.is_empty() {
            break;
        }
    }
    said
}

/// The snapshot that says this, with right checksums, if the format can hold it.
fn sealed(said: &Said) -> Option<View> {
    let store = Store::create(Arc::new(MemoryStorage::new())).ok()?;
    let lock = store.lock().ok()?;
    let options = WriteOptions {
        threads: 1,
        ..WriteOptions::default()
    };
    let mut writer = store.begin(&lock, None, options).ok()?;
    let mut spaces = said.spaces.clone();
    for region in spaces.iter_mut().flat_map(|space| &mut space.regions) {
        region.shows = None;
    }
    writer.set_spaces(spaces.clone()).ok()?;
    for (number, space) in spaces.iter().enumerate() {
        for region in space
            .regions
            .iter()
            .filter(|region| region.capture == Capture::Captured)
        {
            writer
                .put_state(number, region.pages, PageState::Zero)
                .ok()?;
        }
    }
    for one in &said.attachments {
        writer.attach(&one.name, one.bytes.clone()).ok()?;
    }
    let id = writer.commit().ok()?.id();
    store.view(id).ok()
}

#[test]
fn whatever_a_snapshot_says_a_plan_is_made_or_refused() {
    let seed = from_environment("PAGETIDE_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| now.as_nanos() as u64)
    });
    println!("PAGETIDE_SEED={seed}");
    let mut random = Random(seed | 1);
    let sound = sound();
    let view = sealed(&sound).expect("what is sound can be sealed");
    let paths = paths_of(&view).expect("what is sound has a plan");
    assert!(
        paths.iter().any(|path| path.ends_with("passwd")),
        "{paths:?}"
    );
    let seconds = from_environment("PAGETIDE_FUZZ_SECONDS").unwrap_or(SECONDS);
    let since = Instant::now();
    let (mut inputs, mut planned, mut refused) = (0_u64, 0_u64, 0_u64);
    while since.elapsed() < Duration::from_secs(seconds) || inputs < 100 {
        inputs += 1;
        let said = changed(&sound, &mut random);
        let Some(view) = sealed(&said) else {
            continue;
        };
        let (blockers, members, tree) = (blockers_of(&view), members_of(&view), tree_of(&view));
        let _ = format!("{blockers:?} {} {tree:?}", members.len());
        match paths_of(&view) {
            Ok(_) => planned += 1,
            Err(error) => {
                let _ = format!("{error} {error:?}");
                refused += 1;
            }
        }
        let peak = MEMORY.take_peak();
        assert!(peak < MOST_BYTES, "{peak} bytes were allocated at once");
    }
    println!("{inputs} inputs: {planned} planned, {refused} refused");
    assert!(planned > 0 && refused > 0, "{inputs}: {planned} {refused}");
}
