//! What the C program `targets/whole.c` tells, and the few ways in which what it tells may differ and mean the same.

use super::facts::Facts;
use super::left_out::comes_by_itself;
use crate::image::Image;
use crate::target::compiled;
use std::collections::BTreeMap;
use std::process::Command;

/// Length of the `syscall` instruction, and of that with `mov $number, %eax` before it.
const SYSCALL_BYTES: u64 = 2;
/// The number that stands in place of a call's own while it is continued.
const RESTART_SYSCALL: u64 = 219;
/// Results of a call that the kernel does again by itself, negative.
const AGAIN: [i64; 4] = [-512, -513, -514, -516];
/// What the kernel writes of a thread's registration for restartable sequences: the rest is the program's.
const RSEQ_BYTES: u64 = 32;
/// Where in the extended registers it says which of them are not as they begin.
const XSTATE_IN_USE: std::ops::Range<usize> = 512..520;
/// Where in them the vectors begin.
const XSTATE_VECTORS: usize = 160;

/// What was told of each process.
pub(super) type Told = BTreeMap<i32, Facts>;

/// Asks about these processes together.
pub(super) fn ask(pids: &[i32]) -> Told {
    let words = pids.iter().map(i32::to_string);
    let output = Command::new(compiled("whole")).args(words).output();
    let output = output.expect("run whole");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "about {pids:?}: {errors}");
    let mut told = Told::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let mut words = line.splitn(3, '\t');
        let mut word = || words.next().unwrap_or_else(|| panic!("{line}"));
        let pid: i32 = word().parse().unwrap_or_else(|_| panic!("{line}"));
        let (name, is) = (word().to_owned(), word().to_owned());
        told.entry(pid).or_default().insert(name, is);
    }
    told
}

/// Adds what was told of one process.
pub(super) fn keep(told: &Told, pid: i32, facts: &mut Facts, image: &mut Image) {
    let mut told = told.get(&pid).cloned().unwrap_or_default();
    told.retain(|name, is| !(name.contains(" queued ") && is_of_no_concern(is)));
    let queued = renumbered(&mut told);
    told.extend(queued);
    let threads: Vec<String> = told
        .keys()
        .filter_map(|name| name.strip_suffix(" register rip").map(str::to_owned))
        .collect();
    for thread in threads {
        settle_call(&mut told, &thread);
        settle_sequence(&mut told, &thread, image);
        settle_extended(&mut told, &thread);
    }
    facts.extend(told);
}

fn is_of_no_concern(queued: &str) -> bool {
    let mut words = queued.split(' ').map(str::parse::<i32>);
    match (words.next(), words.next()) {
        (Some(Ok(signal)), Some(Ok(code))) => comes_by_itself(signal, code),
        _ => false,
    }
}

/// What is queued, counted from 0 again after some were left out.
fn renumbered(told: &mut Facts) -> Vec<(String, String)> {
    let mut all: Vec<(String, usize, String)> = Vec::new();
    told.retain(|name, is| match name.split_once(" queued ") {
        Some((who, number)) if !who.starts_with("fd ") => {
            all.push((who.to_owned(), number.parse().unwrap_or(0), is.clone()));
            false
        }
        _ => true,
    });
    all.sort();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let name = |(who, _, is): (String, usize, String)| {
        let count = counts.entry(who.clone()).or_default();
        *count += 1;
        (format!("{who} queued {}", *count - 1), is)
    };
    all.into_iter().map(name).collect()
}

fn register(told: &Facts, thread: &str, name: &str) -> u64 {
    let is = &told[&format!("{thread} register {name}")];
    u64::from_str_radix(is, 16).unwrap_or_else(|_| panic!("{is}"))
}

fn set_register(told: &mut Facts, thread: &str, name: &str, is: u64) {
    told.insert(format!("{thread} register {name}"), format!("{is:x}"));
}

/// A thread whose call the kernel is about to do again is the same as one that is about to enter it.
fn settle_call(told: &mut Facts, thread: &str) {
    let code = told.remove(&format!("{thread} code"));
    let (call, result) = (
        register(told, thread, "orig_rax"),
        register(told, thread, "rax"),
    );
    if call.cast_signed() < 0 || !AGAIN.contains(&result.cast_signed()) {
        return;
    }
    // Of a call that was continued before, the number stands in the instruction before it: b8, four bytes, 0f 05.
    let number = match call {
        RESTART_SYSCALL => code.and_then(|code| loaded(&code)).unwrap_or(call),
        _ => call,
    };
    let at = register(told, thread, "rip") - SYSCALL_BYTES;
    set_register(told, thread, "rip", at);
    set_register(told, thread, "rax", number);
    set_register(told, thread, "orig_rax", u64::MAX);
}

fn loaded(code: &str) -> Option<u64> {
    let number = code.strip_prefix("b8")?.strip_suffix("0f05")?;
    u32::from_str_radix(number, 16)
        .ok()
        .map(|number| u64::from(number.swap_bytes()))
}

/// A thread within a restartable sequence is the same as one at its abort handler. The kernel writes the registered area
/// whenever the thread returns to the program.
fn settle_sequence(told: &mut Facts, thread: &str, image: &mut Image) {
    if let Some(at) = told.remove(&format!("{thread} aborted at")) {
        let outside_of_calls = register(told, thread, "orig_rax").cast_signed() < 0;
        if outside_of_calls {
            told.insert(format!("{thread} register rip"), at);
        }
    }
    let area = told.get(&format!("{thread} rseq"));
    let address = area.and_then(|area| area.split(' ').next());
    let address = address.and_then(|text| u64::from_str_radix(text, 16).ok());
    if let Some(address) = address.filter(|address| *address != 0) {
        image.clear(address, RSEQ_BYTES);
    }
}

/// Which components are in use may differ, as long as all have the same content. What is before the vectors is told by itself.
fn settle_extended(told: &mut Facts, thread: &str) {
    let Some(mut hex) = told.remove(&format!("{thread} xstate")) else {
        return;
    };
    let range = XSTATE_IN_USE.start * 2..XSTATE_IN_USE.end * 2;
    if hex.len() >= range.end {
        hex.replace_range(range, &"0".repeat(16));
    }
    let vectors = hex.split_off(hex.len().min(XSTATE_VECTORS * 2));
    told.insert(format!("{thread} floating point"), hex);
    told.insert(format!("{thread} vectors"), vectors);
}
