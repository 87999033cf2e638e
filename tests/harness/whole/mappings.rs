//! The mappings of a process with all attributes that the kernel tells. Neighbours that differ in nothing count as one: whether
//! the kernel keeps them as one depends on when they were made.

use super::facts::Facts;
use super::left_out::{Place, is_left_out};
use std::collections::HashMap;
use std::fs;

/// Objects without a path, numbered as they appear: the kernel gives a new one another inode.
#[derive(Default)]
pub(super) struct Objects {
    known: HashMap<String, usize>,
}

impl Objects {
    fn number(&mut self, object: &str) -> usize {
        let next = self.known.len();
        *self.known.entry(object.to_owned()).or_insert(next)
    }
}

struct Mapping {
    start: u64,
    end: u64,
    /// Where in the object it begins; nothing for plain memory.
    offset: Option<u64>,
    attributes: String,
}

/// Reads all of them.
pub(super) fn read(pid: i32, objects: &mut Objects, facts: &mut Facts) {
    let policies = policies(pid);
    let mut all: Vec<Mapping> = Vec::new();
    let bytes = fs::read(format!("/proc/{pid}/smaps")).expect("read its mappings");
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines().peekable();
    while let Some(first) = lines.next() {
        let mut mapping = begin(first, objects);
        while let Some(line) = lines.next_if(|line| is_of_mapping(line)) {
            add(&mut mapping, line);
        }
        if let Some(policy) = policies.get(&mapping.start) {
            mapping.attributes += &format!(", policy {policy}");
        }
        match all.last_mut() {
            Some(last) if follows(last, &mapping) => last.end = mapping.end,
            _ => all.push(mapping),
        }
    }
    for mapping in all {
        let offset = mapping.offset.map(|offset| format!(" at {offset:x}"));
        let is = format!(
            "to {:x}{}, {}",
            mapping.end,
            offset.unwrap_or_default(),
            mapping.attributes
        );
        facts.insert(format!("mapping {:x}", mapping.start), is);
    }
}

/// `Rss:  4 kB`, and no address range.
fn is_of_mapping(line: &str) -> bool {
    let first = line.split_whitespace().next().unwrap_or("");
    first.ends_with(':')
}

fn begin(line: &str, objects: &mut Objects) -> Mapping {
    let mut words = line.splitn(6, ' ');
    let mut word = || words.next().unwrap_or("");
    let (range, permissions, offset, device, inode) = (word(), word(), word(), word(), word());
    let name = word().trim();
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap_or_else(|_| panic!("{line}"));
    let (start, end) = range.split_once('-').unwrap_or_else(|| panic!("{line}"));
    let has_object = inode != "0";
    let is_nameless = name.ends_with(" (deleted)")
        || name.starts_with("/SYSV")
        || name.starts_with("anon_inode:");
    let object = match (has_object, is_nameless) {
        (false, _) => String::new(),
        (true, false) => format!("{device} {inode}"),
        (true, true) => format!("object {}", objects.number(&format!("{device} {inode}"))),
    };
    // Where the heap follows the program at once, the kernel may make one mapping of both.
    let name = if name == "[heap]" { "" } else { name };
    Mapping {
        start: hex(start),
        end: hex(end),
        offset: has_object.then(|| hex(offset)),
        attributes: format!("{permissions} {name:?} {object}"),
    }
}

/// Of the lines under a mapping only those are kept which tell attributes, and no usage.
fn add(mapping: &mut Mapping, line: &str) {
    let (name, is) = line.split_once(':').unwrap_or((line, ""));
    match name {
        "VmFlags" => {
            let flags = is.split_whitespace();
            let flags: Vec<&str> = flags
                .filter(|flag| !is_left_out(Place::VmFlags, flag))
                .collect();
            mapping.attributes += &format!(", flags {}", flags.join(" "));
        }
        "KernelPageSize" | "ProtectionKey" => {
            mapping.attributes += &format!(", {name} {}", is.trim());
        }
        _ => {}
    }
}

fn follows(last: &Mapping, next: &Mapping) -> bool {
    let offset = last.offset.map(|offset| offset + (last.end - last.start));
    last.end == next.start && offset == next.offset && last.attributes == next.attributes
}

/// The memory policies of mappings that have one of their own, by address.
fn policies(pid: i32) -> HashMap<u64, String> {
    // Without NUMA there is no such file.
    let text = fs::read_to_string(format!("/proc/{pid}/numa_maps")).unwrap_or_default();
    let policy = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let policy = words.next()?;
        (policy != "default").then(|| (address, policy.to_owned()))
    };
    text.lines().filter_map(policy).collect()
}
