//! Prevents that a core holds memory that its program wants in none (MADV_DONTDUMP), or that its coredump_filter leaves out,
//! and that it lacks other memory. What is expected is written down from core(5), for each bit of the filter.

use pagetide_tests::{Scratch, Target, TestStore, pagetide};
use std::collections::BTreeMap;

const PAGE: u64 = 4096;
/// Every mapping of the program that is looked at.
const WHOLE: u64 = 2 * PAGE;

/// The length of what the core file has of the segment that begins at each address.
fn segments(core: &[u8]) -> BTreeMap<u64, u64> {
    let word = |at: usize| u64::from_le_bytes(core[at..at + 8].try_into().expect("8 bytes"));
    let half = |at: usize| u16::from_le_bytes(core[at..at + 2].try_into().expect("2 bytes"));
    assert_eq!(&core[..4], b"\x7fELF");
    let (first, length, count) = (word(32), half(54), half(56));
    let headers = (0..count).map(|number| first as usize + usize::from(number * length));
    const PT_LOAD: u16 = 1;
    let loads = headers.filter(|at| half(*at) == PT_LOAD);
    loads.map(|at| (word(at + 16), word(at + 32))).collect()
}

/// How much of each mapping is in a core of a process with this filter.
fn expected(filter: u32) -> BTreeMap<&'static str, u64> {
    let bit = |number: u32, length: u64| if filter >> number & 1 == 1 { length } else { 0 };
    BTreeMap::from([
        ("anonymous", bit(0, WHOLE)),
        ("left-out", 0),
        ("shared", bit(1, WHOLE)),
        ("segment", bit(1, WHOLE)),
        ("program", bit(2, WHOLE).max(bit(4, PAGE))),
        ("text", bit(2, WHOLE)),
        ("shared-file", bit(3, WHOLE)),
        ("copied", bit(0, WHOLE).max(bit(2, WHOLE))),
    ])
}

#[test]
fn a_core_holds_what_the_program_wants_in_it() {
    let (files, store) = (Scratch::new(), TestStore::new());
    let mut target = Target::start("dumped", [files.path()]);
    let places = target.ask("where");
    let places: BTreeMap<&str, u64> = places
        .split(' ')
        .map(|place| {
            let (name, address) = place.split_once("=0x").expect("name=address");
            (name, u64::from_str_radix(address, 16).expect("an address"))
        })
        .collect();
    for filter in [0x33, 0, 0x01, 0x02, 0x04, 0x08, 0x10, 0x7f] {
        assert_eq!(target.ask(&format!("filter {filter:#x}")), "done");
        store.checkpoint(target.pid(), &[]);
        let core = |all: &[&str]| {
            let out = store
                .scratch()
                .join(&format!("core-{filter}-{}", all.len()));
            let text = store.text();
            let words = ["export", &text, "--format", "core", "-o"];
            let words = words
                .into_iter()
                .chain([out.to_str().expect("a plain path")]);
            pagetide(words.chain(all.iter().copied())).done();
            let bytes = std::fs::read(&out).expect("read the core");
            std::fs::remove_file(&out).expect("remove the core");
            let segments = segments(&bytes);
            let part = |(name, place): (&&'static str, &u64)| (*name, segments[place]);
            let names = expected(0);
            let known = names.keys().map(|name| (name, &places[name]));
            known.map(part).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(core(&[]), expected(filter), "filter {filter:#x}");
        let all: Vec<u64> = core(&["--all"]).into_values().collect();
        assert!(all.iter().all(|length| *length == WHOLE), "{all:?}");
    }
}
