//! Text of `/proc` as a hostile process could make it: sound text is changed at random, with a liking for what misleads readers of lines and
//! fields, and handed to a parser, which may refuse it, but neither panic nor take much memory. A part of a second in a usual run;
//! `PAGETIDE_FUZZ_SECONDS` asks for more, and `PAGETIDE_SEED` for the inputs of an earlier one.

use pagetide_kernel::counted_memory::CountedMemory;
use std::time::{Duration, Instant};

/// What is allocated in a program that this crate is a part of is counted.
#[global_allocator]
static MEMORY: CountedMemory = CountedMemory::new();

/// Parsers make some words of each line, and tests run beside each other.
const MOST_BYTES: usize = 256 << 20;
/// No input is longer.
const INPUT_BYTES_MAX: usize = 1 << 16;

/// What a process can choose, as names, arguments and paths, and numbers at the ends of their ranges.
const WORDS: [&[u8]; 40] = [
    b"\n",
    b"\t",
    b" ",
    b":",
    b")",
    b"(",
    b") R 1",
    b" (deleted)",
    b"//deleted",
    b"\\040",
    b"\\012",
    b"\\\n",
    b"\\777",
    b"\\1",
    b" - ",
    b" fuse.x ",
    b"[heap]",
    b"[stack]",
    b"[vdso]",
    b"[vsyscall]",
    b"/memfd:",
    b"/SYSV00000000",
    b"/dev/zero",
    b"/../",
    b"\xff\xfe",
    b"\0",
    b"\xc3",
    "\u{202e}".as_bytes(),
    b"-1",
    b"0",
    b"00000000",
    b"18446744073709551615",
    b"18446744073709551616",
    b"9223372036854775808",
    b"4294967295",
    b"-2147483648",
    b"ffffffffffffffff",
    b"VmFlags:",
    b"mnt_id:\t1",
    b"EOF",
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
        match end {
            0 => 0,
            end => (self.next() >> 11) as usize % end,
        }
    }
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Changes `text` in some places.
fn change(text: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(6) {
        let at = random.below(text.len() + 1);
        let end = (at + 1 + random.below(12)).min(text.len());
        match random.below(7) {
            0 if at < text.len() => text[at] = random.next() as u8,
            1 if at < text.len() => text[at] ^= 1 << random.below(8),
            2 => drop(text.drain(at..end)),
            3 => text.truncate(at),
            4 => {
                let copied = text[at..end].to_vec();
                let to = random.below(text.len() + 1);
                text.splice(to..to, copied);
            }
            5 => {
                let line = text[..at]
                    .iter()
                    .rposition(|byte| *byte == b'\n')
                    .map_or(0, |at| at + 1);
                let copied = text[line..].to_vec();
                text.extend(copied);
            }
            _ => {
                let word = WORDS[random.below(WORDS.len())];
                let end = if random.below(2) == 0 { at } else { end };
                text.splice(at..end, word.iter().copied());
            }
        }
        text.truncate(INPUT_BYTES_MAX);
    }
}

/// Tells the input when it is dropped by a panic.
struct Teller<'a>(&'a [u8], u64);

impl Drop for Teller<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("PAGETIDE_SEED={}: {}", self.1, self.0.escape_ascii());
        }
    }
}

/// Hands changed forms of `sound` to `parse`, which is to return true for the sound one.
#[track_caller]
pub fn survives(sound: &[u8], mut parse: impl FnMut(&[u8]) -> bool) {
    assert!(parse(sound), "what is sound is refused");
    let seed = from_environment("PAGETIDE_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| now.as_nanos() as u64)
    });
    let mut random = Random(seed | 1);
    let time = from_environment("PAGETIDE_FUZZ_SECONDS");
    let time = time.map_or(Duration::from_millis(150), Duration::from_secs);
    let since = Instant::now();
    let (mut inputs, mut taken) = (0_u64, 0_u64);
    // Some are tried however slow the machine is.
    while since.elapsed() < time || inputs < 500 {
        let mut text = sound.to_vec();
        change(&mut text, &mut random);
        let teller = Teller(&text, seed);
        taken += u64::from(parse(&text));
        let peak = MEMORY.take_peak();
        assert!(peak < MOST_BYTES, "{peak} bytes were allocated");
        drop(teller);
        inputs += 1;
    }
    println!("{inputs} inputs, of which {taken} were taken");
}
