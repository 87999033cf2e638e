//! Prevents that `pages` counts wrongly where kinds of pages meet: a process that has all of them at the same moment is counted by
//! another reader as well, which has no code of pagetide: the bits of pagemap, kpageflags and kpagecount as the kernel's document
//! has them, the areas of /proc/swaps, and the holes of objects.

use super::ask::{HUGE, PAGE, start_of};
use super::kinds::{Kinds, merge_equal_pages};
use crate::bad::is_root;
use pagetide_tests::{Frozen, Machine, TestStore, list, number, skipped};
use rustix::fs::SeekFrom;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

const TEST: &str = "figures_equal_an_independent_readers_for_every_kind_at_once";

/// The flags of kpageflags that the document has, by bit.
const FLAGS: [&str; 27] = [
    "LOCKED",
    "ERROR",
    "REFERENCED",
    "UPTODATE",
    "DIRTY",
    "LRU",
    "ACTIVE",
    "SLAB",
    "WRITEBACK",
    "RECLAIM",
    "BUDDY",
    "MMAP",
    "ANON",
    "SWAPCACHE",
    "SWAPBACKED",
    "COMPOUND_HEAD",
    "COMPOUND_TAIL",
    "HUGE",
    "UNEVICTABLE",
    "HWPOISON",
    "NOPAGE",
    "KSM",
    "THP",
    "OFFLINE",
    "ZERO_PAGE",
    "IDLE",
    "PGTABLE",
];
const HUGETLB: u32 = 17;
const ZERO_PAGE: u32 = 24;

/// What is counted of one mapping: bytes by the names of `pages --json`, and pages by flag.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Figures {
    bytes: BTreeMap<&'static str, u64>,
    flags: BTreeMap<&'static str, u64>,
    /// Pages that nobody can read.
    poisoned: u64,
}

/// Sums up what a page is.
struct Page {
    entry: u64,
    flags: u64,
    users: u64,
}

impl Page {
    fn has(&self, bit: u32) -> bool {
        self.entry >> bit & 1 == 1
    }

    fn is(&self, flag: u32) -> bool {
        self.flags >> flag & 1 == 1
    }
}

struct Reader {
    pagemap: File,
    flags: File,
    users: File,
    /// How many swap areas there are: entries of other types stand for something else.
    areas: u64,
}

fn words(file: &File, first: u64, count: u64) -> Vec<u64> {
    let mut bytes = vec![0; usize::try_from(count * 8).expect("it fits")];
    file.read_exact_at(&mut bytes, first * 8).expect("entries");
    let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
    bytes.chunks(8).map(word).collect()
}

impl Reader {
    fn of(pid: i32) -> Self {
        let open = |path: &str| File::open(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let swaps = fs::read_to_string("/proc/swaps").expect("the swap areas");
        Self {
            pagemap: open(&format!("/proc/{pid}/pagemap")),
            flags: open("/proc/kpageflags"),
            users: open("/proc/kpagecount"),
            areas: swaps.lines().count().saturating_sub(1) as u64,
        }
    }

    fn pages(&self, start: u64, end: u64) -> Vec<Page> {
        let entries = words(&self.pagemap, start / PAGE, (end - start) / PAGE);
        let page = |entry: u64| {
            assert_eq!(entry >> 59 & 3, 0, "bits 59 and 60 of {entry:x}");
            let frame = entry & ((1 << 55) - 1);
            let of_frame = |file: &File| match entry >> 63 {
                1 => words(file, frame, 1)[0],
                _ => 0,
            };
            let (flags, users) = (of_frame(&self.flags), of_frame(&self.users));
            Page {
                entry,
                flags,
                users,
            }
        };
        entries.into_iter().map(page).collect()
    }

    fn figures(&self, start: u64, end: u64, is_anonymous: bool) -> Figures {
        let mut figures = Figures::default();
        let mut shares = 0;
        for page in self.pages(start, end) {
            let present = page.has(63);
            let zero = present && page.is(ZERO_PAGE);
            let hugetlb = present && page.is(HUGETLB);
            // Pages that belong to nobody, and those of the pool, are no resident memory.
            let resident = present && !zero && !hugetlb;
            let kind = page.entry & 31;
            let swapped = page.has(62) && !page.has(58);
            let counted = [
                ("size_bytes", true),
                ("present_bytes", present),
                ("swapped_bytes", swapped && kind < self.areas),
                ("guard_bytes", page.has(58)),
                // The huge zero page is told as one of a file.
                (
                    "file_bytes",
                    present && page.has(61) && !(zero && is_anonymous),
                ),
                ("exclusive_bytes", present && page.has(56)),
                ("zero_bytes", zero),
                ("hugetlb_bytes", hugetlb),
                ("rss_bytes", resident),
                ("uss_bytes", resident && page.users == 1),
                ("written_bytes", !page.has(57)),
                ("soft_dirty_bytes", page.has(55)),
            ];
            for (name, is_so) in counted {
                *figures.bytes.entry(name).or_default() += if is_so { PAGE } else { 0 };
            }
            for (bit, name) in (0..).zip(FLAGS) {
                *figures.flags.entry(name).or_default() += u64::from(page.is(bit));
            }
            if resident {
                shares += (PAGE << 20) / page.users.max(1);
            }
            // The last type is that of markers, and their second bit that of poison.
            figures.poisoned += u64::from(swapped && kind == 31 && page.entry >> 6 & 1 == 1);
        }
        figures.bytes.insert("pss_bytes", shares >> 20);
        figures
    }
}

/// Every mapping of the process, by its first address. Of what is not its `own` only that which does not depend on others: pages
/// of libraries come and go with whoever has them.
fn all_figures(pid: i32, own: &[(String, u64)]) -> BTreeMap<u64, Figures> {
    let reader = Reader::of(pid);
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("its mappings");
    let figures = |line: &str| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).expect("hex"));
        let inode = fields.nth(3)?;
        // What lies in the kernel's half is in no page table of the process.
        (start >> 63 == 0).then(|| {
            let mut figures = reader.figures(start, end, inode == "0");
            if !own.iter().any(|(_, own)| *own == start) {
                figures.flags.clear();
                for name in ["exclusive_bytes", "rss_bytes", "uss_bytes", "pss_bytes"] {
                    figures.bytes.remove(name);
                }
            }
            (start, figures)
        })
    };
    maps.lines().filter_map(figures).collect()
}

/// The bytes of an object behind a mapping that are data, and those that are holes: lseek(2).
fn data_and_holes(pid: i32, start: u64, length: u64) -> (u64, u64) {
    let path = format!("/proc/{pid}/map_files/{start:x}-{:x}", start + length);
    let file = File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let (mut at, mut data) = (0, 0);
    while let Ok(found) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
        let hole = rustix::fs::seek(&file, SeekFrom::Hole(found)).expect("an end");
        data += hole.min(length) - found.min(length);
        at = hole;
        if at >= length {
            break;
        }
    }
    (data, length - data)
}

/// Says what kind this machine does not have.
fn told(kind: &str, answer: Result<(), String>) -> bool {
    if let Err(reason) = &answer {
        skipped(&format!("{TEST} ({kind})"), reason);
    }
    answer.is_ok()
}

fn ask(kinds: &mut Kinds, command: &str) -> Result<(), String> {
    match kinds.target.ask(command) {
        answer if answer == "done" => Ok(()),
        answer => Err(answer),
    }
}

/// Asks until the pages of a mapping are so, which is for the kernel to do or not.
fn until(
    kinds: &mut Kinds,
    name: &str,
    command: &str,
    is_so: impl Fn(&Figures) -> bool,
) -> Result<(), String> {
    let start = kinds.address(name);
    for _ in 0..1000 {
        let figures = Reader::of(kinds.target.pid()).figures(start, start + 4 * PAGE, true);
        if is_so(&figures) {
            return Ok(());
        }
        ask(kinds, command)?;
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    Err(format!("{command}: in vain"))
}

/// What `pages` says, and what the other reader says both before and after.
fn both(frozen: &Frozen, own: &[(String, u64)]) -> (Value, BTreeMap<u64, Figures>) {
    let mut last = BTreeMap::new();
    for _ in 0..20 {
        let before = all_figures(frozen.pid(), own);
        let answer = super::pages(frozen.pid());
        last = all_figures(frozen.pid(), own);
        if last == before {
            return (answer, before);
        }
    }
    panic!("the pages of a stopped process do not stand still: {last:#?}");
}

/// What `pages` says of one mapping is what the other reader says.
#[track_caller]
fn assert_equal(region: &Value, expected: &Figures) {
    for (name, bytes) in &expected.bytes {
        match region[*name].as_u64() {
            Some(told) if *name == "pss_bytes" => {
                assert!(told.abs_diff(*bytes) <= 1, "{name}, {bytes}: {region}");
            }
            Some(told) => assert_eq!(told, *bytes, "{name} of {region}"),
            // What is not tracked, or not known to the kernel.
            None => assert!(
                ["written_bytes", "soft_dirty_bytes"].contains(name),
                "{region}"
            ),
        }
    }
    for (name, pages) in &expected.flags {
        let told = region["page_flags"][*name].as_u64().unwrap_or(0);
        assert_eq!(told, *pages, "{name} of {region}");
    }
}

/// And what it says of the object behind it is what the object says.
#[track_caller]
fn assert_equals_object(pid: i32, region: &Value) {
    let told = |name: &str| number(region, name);
    let (data, holes) = data_and_holes(pid, start_of(region), told("size_bytes"));
    assert_eq!(told("object_hole_bytes"), holes, "{region}");
    let has = told("object_resident_bytes") + told("object_swapped_bytes");
    assert_eq!(has, data, "{region}");
}

/// The target has them all at once, but for those that were told to be missing.
fn assert_all_there(own: &[(String, u64)], figures: &BTreeMap<u64, Figures>, is_swapped: bool) {
    let bytes = |name: &str, field: &str| {
        let found = own.iter().find(|(found, _)| found == name);
        found.map(|(_, start)| figures[start].bytes[field])
    };
    assert_eq!(bytes("anonymous", "rss_bytes"), Some(9 * PAGE));
    assert_eq!(bytes("anonymous", "written_bytes"), Some(6 * PAGE));
    assert_eq!(bytes("zero", "zero_bytes"), Some(7 * PAGE));
    assert_eq!(bytes("locked", "rss_bytes"), Some(4 * PAGE));
    assert_eq!(bytes("family", "uss_bytes"), Some(2 * PAGE));
    assert_eq!(bytes("shared", "uss_bytes"), Some(PAGE));
    assert_eq!(bytes("private_file", "file_bytes"), Some(6 * PAGE));
    let of_kind = |name: &str, field: &str, of: u64, kind: &str| match bytes(name, field) {
        None | Some(0) => skipped(&format!("{TEST} ({kind})"), "there is none"),
        Some(found) => assert_eq!(found, of, "{field} of {name}"),
    };
    of_kind("guard", "guard_bytes", 3 * PAGE, "guard regions");
    of_kind("huge_zero", "zero_bytes", HUGE, "the huge zero page");
    of_kind("hugetlb", "hugetlb_bytes", HUGE, "huge pages of the pool");
    assert_eq!(bytes("swapped", "swapped_bytes") > Some(0), is_swapped);
}

#[test]
fn figures_equal_an_independent_readers_for_every_kind_at_once() {
    if !is_root(TEST) {
        return;
    }
    let mut machine = Machine::lock();
    let mut kinds = Kinds::start();
    let huge = machine
        .huge_pages(2)
        .and_then(|()| ask(&mut kinds, "hugetlb"));
    told("huge pages of the pool", huge);
    let merged = merge_equal_pages(&mut machine, "0").and_then(|()| {
        until(&mut kinds, "mergeable", "merge", |figures| {
            figures.flags["KSM"] == 4
        })
    });
    told("merged", merged);
    machine.set("/sys/kernel/mm/ksm/run", "0").ok();
    let poison = ask(&mut kinds, "poison");
    let poisoned = u64::from(told("poison", poison));
    assert_eq!(kinds.target.ask("fork"), "done");
    // Tracked from here on, and some of it is written.
    let store = TestStore::new();
    store.checkpoint(kinds.target.pid(), &[]);
    assert_eq!(kinds.target.ask("write"), "done");
    // Last: whoever reads a page brings it back.
    let swapped = machine.swap().and_then(|()| {
        until(&mut kinds, "swapped", "page_out", |figures| {
            figures.bytes["swapped_bytes"] > 0
        })
    });
    let swapped = told("swap", swapped);

    let own = kinds.all();
    let frozen = Frozen::freeze_alone(kinds.target.pid());
    let (answer, figures) = both(&frozen, &own);
    let regions = list(&answer, "regions").iter();
    let regions: Vec<&Value> = regions
        .filter(|region| start_of(region) >> 63 == 0)
        .collect();
    let starts: Vec<u64> = regions.iter().map(|region| start_of(region)).collect();
    assert_eq!(starts, figures.keys().copied().collect::<Vec<_>>());
    for region in regions {
        let start = start_of(region);
        assert_equal(region, &figures[&start]);
        if region["object_hole_bytes"].is_u64() && own.iter().any(|(_, own)| *own == start) {
            assert_equals_object(frozen.pid(), region);
        }
    }
    assert_all_there(&own, &figures, swapped);
    let found: u64 = figures.values().map(|figures| figures.poisoned).sum();
    assert_eq!(found, poisoned);
    drop(frozen);
}
