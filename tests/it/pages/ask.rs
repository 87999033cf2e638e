//! What the kernel and what `pagetide pages` say of a process.

use pagetide_tests::{Frozen, pagetide, text};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;

pub(super) const PAGE: u64 = 4096;

pub(super) const HUGE: u64 = 2 << 20;

/// A mapping of smaps: name and counts in bytes.
pub(super) type Smaps = BTreeMap<u64, (String, BTreeMap<String, u64>)>;

pub(super) fn smaps(pid: i32) -> Smaps {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("read smaps");
    let mut mappings = Smaps::new();
    let mut start = 0;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().expect("no line is empty");
        if let Some(name) = first.strip_suffix(':') {
            let kib: Option<u64> = words.next().and_then(|word| word.parse().ok());
            let counts = &mut mappings.get_mut(&start).expect("a mapping goes before").1;
            counts.insert(name.to_owned(), kib.unwrap_or(0) * 1024);
        } else {
            let (from, _) = first.split_once('-').expect("two addresses");
            start = u64::from_str_radix(from, 16).expect("an address");
            let name = words.nth(4).unwrap_or("").to_owned();
            mappings.insert(start, (name, BTreeMap::new()));
        }
    }
    mappings
}

/// Bytes on each node by the address of the mapping.
pub(super) fn numa_maps(pid: i32) -> BTreeMap<u64, BTreeMap<String, u64>> {
    let text = fs::read_to_string(format!("/proc/{pid}/numa_maps")).expect("read numa_maps");
    let line = |line: &str| {
        let (start, rest) = line.split_once(' ').expect("an address");
        let fields: Vec<_> = rest.split(' ').filter_map(|w| w.split_once('=')).collect();
        let unit = fields.iter().find(|(name, _)| *name == "kernelpagesize_kB");
        let unit = unit.map_or(0, |(_, kib)| kib.parse::<u64>().expect("a size") * 1024);
        let node = |(name, pages): &(&str, &str)| {
            let node = name.strip_prefix('N')?;
            node.parse::<u32>().ok()?;
            Some((node.to_owned(), pages.parse::<u64>().ok()? * unit))
        };
        let start = u64::from_str_radix(start, 16).expect("an address");
        (start, fields.iter().filter_map(node).collect())
    };
    text.lines().map(line).collect()
}

pub(super) fn start_of(region: &Value) -> u64 {
    u64::from_str_radix(text(region, "start"), 16).expect("an address")
}

pub(super) fn pages(pid: i32) -> Value {
    pagetide(["pages", &pid.to_string(), "--json"])
        .done()
        .json()
}

/// What `pages` says, and what smaps said both before and after. If the kernel itself did something to the
/// memory meanwhile, both are asked again.
pub(super) fn pages_between_equal_smaps(
    frozen: &Frozen,
    of_others: impl Fn(&str) -> bool,
) -> (Value, Smaps) {
    let told = || {
        let mut told = smaps(frozen.pid());
        for (name, counts) in told.values_mut() {
            if of_others(name) {
                counts.retain(|name, _| ["Size", "Rss", "Swap"].contains(&name.as_str()));
            }
        }
        told
    };
    for _ in 0..10 {
        let before = told();
        let answer = pages(frozen.pid());
        if told() == before {
            return (answer, before);
        }
    }
    panic!("smaps of a stopped process does not stand still");
}
