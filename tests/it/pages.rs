//! Prevents that `pages` tells other numbers than the kernel's own: of a process that stands still, every
//! mapping is compared with smaps and numa_maps, and pages whose state is known with what is said of them.
//!
//! smaps gives whole KiB, rounded down for each mapping. All its numbers but Pss are multiples of 4 KiB and
//! must be equal; Pss must be equal once it is rounded down, too. A total of Pss is therefore up to 1 KiB a
//! mapping larger than the sum of smaps.

use crate::bad::{fails, is_root};
use pagetide_tests::{
    Frozen, Machine, Scratch, Target, TestStore, compiled, list, number, pagetide, pagetide_by,
    pagetide_path, skipped, text,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

const PAGE: u64 = 4096;
const HUGE: u64 = 2 << 20;

/// A mapping of smaps: name and counts in bytes.
type Smaps = BTreeMap<u64, (String, BTreeMap<String, u64>)>;

fn smaps(pid: i32) -> Smaps {
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
fn numa_maps(pid: i32) -> BTreeMap<u64, BTreeMap<String, u64>> {
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

fn start_of(region: &Value) -> u64 {
    u64::from_str_radix(text(region, "start"), 16).expect("an address")
}

fn pages(pid: i32) -> Value {
    pagetide(["pages", &pid.to_string(), "--json"])
        .done()
        .json()
}

/// What `pages` says, and what smaps said both before and after. If the kernel itself did something to the
/// memory meanwhile, both are asked again.
fn pages_between_equal_smaps(frozen: &Frozen, of_others: impl Fn(&str) -> bool) -> (Value, Smaps) {
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

/// Every mapping agrees with smaps and numa_maps, and the totals with their sums. Mappings that processes of
/// no concern have, too, are excepted from what depends on who else maps a page.
#[track_caller]
fn assert_agrees(frozen: &Frozen, of_others: impl Fn(&str) -> bool) -> Value {
    let (answer, smaps) = pages_between_equal_smaps(frozen, &of_others);
    let nodes = numa_maps(frozen.pid());
    let regions = list(&answer, "regions");
    let starts: Vec<u64> = regions.iter().map(start_of).collect();
    assert_eq!(starts, smaps.keys().copied().collect::<Vec<_>>());
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    let mut pss = (0, 0);
    for (region, (start, (name, counts))) in regions.iter().zip(&smaps) {
        let of = |names: &[&str]| names.iter().map(|name| counts[*name]).sum::<u64>();
        let mut equal = vec![
            ("size_bytes", of(&["Size"])),
            ("rss_bytes", of(&["Rss"])),
            ("swap_bytes", of(&["Swap"])),
        ];
        if !of_others(name) {
            let huge = ["AnonHugePages", "ShmemPmdMapped", "FilePmdMapped"];
            let hugetlb = ["Private_Hugetlb", "Shared_Hugetlb"];
            equal.extend([
                ("uss_bytes", of(&["Private_Clean", "Private_Dirty"])),
                ("swap_pss_bytes", of(&["SwapPss"])),
                ("locked_bytes", of(&["Locked"])),
                ("hugetlb_bytes", of(&hugetlb)),
                ("huge_bytes", of(&huge) + of(&hugetlb)),
                ("page_bytes", of(&["KernelPageSize"])),
            ]);
            let told = number(region, "pss_bytes");
            assert_eq!(told / 1024 * 1024, of(&["Pss"]), "Pss of {region}");
            pss = (pss.0 + told, pss.1 + of(&["Pss"]));
        }
        for (field, expected) in equal {
            assert_eq!(number(region, field), expected, "{field} of {region}");
            *sums.entry(field).or_default() += expected;
        }
        let told: BTreeMap<String, u64> = serde_json::from_value(region["numa_bytes"].clone())
            .unwrap_or_else(|error| panic!("{error}: {region}"));
        let expected = nodes.get(start).cloned().unwrap_or_default();
        assert_eq!(told, expected, "nodes of {region}");
    }
    let totals = &answer["totals"];
    for field in ["size_bytes", "rss_bytes", "swap_bytes", "hugetlb_bytes"] {
        assert_eq!(number(totals, field), sums[field], "{field} of {totals}");
    }
    // The others have pages of others only, so nothing that is unique.
    assert_eq!(number(totals, "uss_bytes"), sums["uss_bytes"], "{totals}");
    let rounded_off = pss.0 - pss.1;
    assert!(rounded_off < 1024 * regions.len() as u64, "{rounded_off}");
    answer
}

/// A redis-server whose program and libraries nobody else maps: copies of its own.
fn private_redis(directory: &Scratch) -> Option<Target> {
    let found = Command::new("sh")
        .args([
            "-c",
            "server=$(command -v redis-server) && echo $server && ldd $server",
        ])
        .output()
        .expect("run sh");
    if !found.status.success() {
        return None;
    }
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    let mut loader = None;
    for path in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let copy = directory.join(Path::new(path).file_name()?.to_str()?);
        fs::copy(path, &copy).expect("copy a library");
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("make it executable");
        if path.contains("/ld-linux") {
            loader = Some(copy);
        }
    }
    let socket = directory.join("socket");
    let mut command = Command::new(loader.expect("a loader among the libraries"));
    command.env_clear().env("LC_ALL", "C");
    command.arg("--library-path").arg(directory.path());
    command.arg(directory.join("redis-server"));
    command.args([
        "--port",
        "0",
        "--save",
        "",
        "--appendonly",
        "no",
        "--unixsocket",
    ]);
    command.arg(&socket).arg("--dir").arg(directory.path());
    command.args(["--enable-debug-command", "yes"]);
    let mut target = Target::spawn(&mut command);
    while !target.line().contains("eady to accept connections") {}
    let filled = Command::new("redis-cli")
        .arg("-s")
        .arg(&socket)
        .args(["debug", "populate", "30000", "key", "1000"])
        .stdout(Stdio::null())
        .status();
    assert!(filled.expect("run redis-cli").success());
    Some(target)
}

#[test]
fn redis_agrees_with_smaps_and_numa_maps() {
    let test = "redis_agrees_with_smaps_and_numa_maps";
    if !is_root(test) {
        return;
    }
    let directory = Scratch::new();
    let Some(redis) = private_redis(&directory) else {
        return skipped(test, "there is no redis-server");
    };
    let frozen = redis.freeze();
    let answer = assert_agrees(&frozen, |name| name == "[vdso]");
    let totals = &answer["totals"];
    assert!(number(totals, "rss_bytes") > 30 << 20, "{totals}");
    assert!(number(totals, "uss_bytes") > 30 << 20, "{totals}");
    let flags = &totals["page_flags"];
    assert!(number(flags, "ANON") * PAGE > 30 << 20, "{flags}");
    // Every page in memory is charged to some cgroup, or to none.
    let cgroups = list(totals, "memory_cgroups");
    let charged: u64 = cgroups.iter().map(|cgroup| number(cgroup, "pages")).sum();
    assert_eq!(charged * PAGE, number(totals, "present_bytes"), "{totals}");
    frozen.assert_still_stopped();
}

/// The target with a mapping of every kind, and what it tells of them.
struct Kinds {
    target: Target,
    directory: Scratch,
}

impl Kinds {
    fn start() -> Kinds {
        let directory = Scratch::new();
        let target = Target::start("pages", [directory.path()]);
        Kinds { target, directory }
    }

    /// The address of the mapping `name`; `None` if there is none.
    fn find(&mut self, name: &str) -> Option<u64> {
        let answer = self.target.ask("where");
        let mut pairs = answer.split_whitespace().filter_map(|w| w.split_once('='));
        let (_, address) = pairs.find(|(found, _)| *found == name)?;
        u64::from_str_radix(address, 16).ok()
    }

    fn address(&mut self, name: &str) -> u64 {
        self.find(name)
            .unwrap_or_else(|| panic!("no mapping {name}"))
    }

    /// What `pages` says of the mapping, out of all it said.
    fn region(&mut self, answer: &Value, name: &str) -> Value {
        let address = self.address(name);
        let regions = list(answer, "regions").iter();
        let mut found = regions.filter(|region| start_of(region) == address);
        found
            .next()
            .unwrap_or_else(|| panic!("no region {name} in {answer}"))
            .clone()
    }

    /// What `pages --at` says of one page of a mapping.
    fn page(&mut self, name: &str, page: u64) -> Value {
        let address = format!("{:#x}", self.address(name) + page * PAGE + 17);
        let pid = self.target.pid_text();
        pagetide(["pages", &pid, "--json", "--at", &address])
            .done()
            .json()
    }

    fn pages(&self) -> Value {
        pages(self.target.pid())
    }
}

/// The numbers of a region in pages.
#[track_caller]
fn assert_pages(region: &Value, expected: &[(&str, u64)]) {
    for (name, pages) in expected {
        let bytes = number(region, &format!("{name}_bytes"));
        assert_eq!(bytes, pages * PAGE, "{name} of {region}");
    }
}

/// `--at` says these fields are so.
#[track_caller]
fn assert_is(page: &Value, yes: &[&str], no: &[&str]) {
    let is = |field: &&&str| page[**field].as_bool();
    let wrong = |expected| move |field: &&&str| is(field) != Some(expected);
    assert_eq!(yes.iter().find(wrong(true)), None, "{page}");
    assert_eq!(no.iter().find(wrong(false)), None, "{page}");
}

#[track_caller]
fn assert_flags(page: &Value, set: &[&str], not_set: &[&str]) {
    let flags: Vec<&str> = list(page, "page_flags")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert!(
        set.iter().all(|flag| flags.contains(flag)),
        "{set:?}: {page}"
    );
    assert!(
        !not_set.iter().any(|flag| flags.contains(flag)),
        "{not_set:?}: {page}"
    );
}

/// Whose pages other processes map, too: programs and libraries of the system, and pages of the kernel.
fn of_the_system(directory: &Scratch) -> impl Fn(&str) -> bool + use<> {
    let own = directory.path().to_str().expect("a plain path").to_owned();
    move |name| {
        name == "[vdso]"
            || name.starts_with('/') && !name.starts_with(&own) && !name.starts_with("/memfd")
    }
}

#[test]
fn every_kind_of_mapping_is_told() {
    let test = "every_kind_of_mapping_is_told";
    if !is_root(test) {
        return;
    }
    let mut kinds = Kinds::start();
    let answer = {
        let frozen = kinds.target.freeze();
        let others = of_the_system(&kinds.directory);
        // Libraries that only this process maps at the moment are unique to it in either.
        pages_between_equal_smaps(&frozen, others).0
    };
    let mut region = |name: &str| kinds.region(&answer, name);
    let anonymous = region("anonymous");
    assert_pages(
        &anonymous,
        &[("size", 16), ("present", 5), ("exclusive", 5), ("uss", 5)],
    );
    assert_pages(
        &anonymous,
        &[
            ("rss", 5),
            ("pss", 5),
            ("file", 0),
            ("zero", 0),
            ("swapped", 0),
        ],
    );
    assert_eq!(number(&anonymous["page_flags"], "ANON"), 5, "{anonymous}");
    assert!(anonymous["written_bytes"].is_null(), "{anonymous}");
    let zero = region("zero");
    assert_pages(
        &zero,
        &[
            ("present", 4),
            ("zero", 3),
            ("rss", 1),
            ("uss", 1),
            ("exclusive", 1),
        ],
    );
    assert_eq!(number(&zero["page_flags"], "ZERO_PAGE"), 3, "{zero}");
    let shared = region("shared");
    assert_pages(
        &shared,
        &[
            ("present", 3),
            ("file", 3),
            ("rss", 3),
            ("uss", 1),
            ("pss", 2),
        ],
    );
    let again = region("again");
    assert_pages(
        &again,
        &[("rss", 2), ("uss", 0), ("pss", 1), ("exclusive", 0)],
    );
    let private = region("private_file");
    assert_pages(
        &private,
        &[("present", 8), ("file", 6), ("rss", 8), ("uss", 8)],
    );
    assert_pages(
        &region("shared_file"),
        &[("present", 4), ("file", 4), ("uss", 4)],
    );
    if kinds.find("unlocked").is_none() {
        assert_pages(
            &kinds.region(&answer, "locked"),
            &[("locked", 4), ("present", 4)],
        );
        assert_flags(&kinds.page("locked", 2), &["MLOCKED", "UNEVICTABLE"], &[]);
    }

    let page = kinds.page("anonymous", 2);
    assert_is(
        &page,
        &["present", "exclusive"],
        &["swapped", "file", "guard", "zero", "huge"],
    );
    assert_flags(
        &page,
        &["ANON", "MMAP", "SWAPBACKED"],
        &["ZERO_PAGE", "KSM", "HUGE", "THP"],
    );
    assert_eq!(number(&page, "map_count"), 1);
    assert!(
        page["memory_cgroup"]["path"]
            .as_str()
            .is_some_and(|path| path.starts_with('/')),
        "{page}"
    );
    assert!(page["numa_node"].is_u64(), "{page}");
    assert_is(
        &kinds.page("anonymous", 6),
        &[],
        &["present", "swapped", "exclusive", "guard"],
    );
    let page = kinds.page("zero", 1);
    assert_is(&page, &["present", "zero"], &["exclusive", "file"]);
    assert_flags(&page, &["ZERO_PAGE"], &["ANON"]);
    let (one, other) = (kinds.page("shared", 0), kinds.page("again", 0));
    assert_is(&one, &["present", "file"], &["exclusive"]);
    assert_eq!(number(&one, "frame"), number(&other, "frame"));
    assert_eq!(number(&one, "map_count"), 2);
    assert_is(
        &kinds.page("private_file", 1),
        &["present", "exclusive"],
        &["file"],
    );
    assert_is(&kinds.page("private_file", 4), &["present", "file"], &[]);
    assert_flags(
        &kinds.page("private_file", 4),
        &["UPTODATE", "LRU"],
        &["ANON"],
    );
}

#[test]
fn guard_regions_are_told() {
    if !is_root("guard_regions_are_told") {
        return;
    }
    let mut kinds = Kinds::start();
    if kinds.find("unguarded").is_some() {
        return skipped("guard_regions_are_told", "this kernel has no guard regions");
    }
    let region = kinds.region(&kinds.pages(), "guard");
    assert_pages(
        &region,
        &[("guard", 3), ("present", 5), ("swapped", 0), ("rss", 5)],
    );
    let page = kinds.page("guard", 3);
    assert_is(&page, &["guard", "swapped"], &["present"]);
    assert_eq!(text(&page["swap"], "kind"), "marker", "{page}");
}

#[test]
fn transparent_huge_pages_are_told() {
    let test = "transparent_huge_pages_are_told";
    if !is_root(test) {
        return;
    }
    let mut kinds = Kinds::start();
    let region = kinds.region(&kinds.pages(), "huge");
    if number(&region, "huge_bytes") == 0 {
        return skipped(test, "this machine gives no huge page");
    }
    let pages = HUGE / PAGE;
    assert_pages(
        &region,
        &[
            ("huge", pages),
            ("present", pages),
            ("uss", pages),
            ("pss", pages),
        ],
    );
    assert_is(
        &kinds.page("huge", 0),
        &["present", "huge", "exclusive"],
        &["zero"],
    );
    assert_flags(
        &kinds.page("huge", 0),
        &["THP", "COMPOUND_HEAD", "ANON"],
        &["HUGE"],
    );
    assert_flags(
        &kinds.page("huge", 5),
        &["THP", "COMPOUND_TAIL"],
        &["COMPOUND_HEAD"],
    );
    assert_eq!(
        number(&kinds.page("huge", 5), "frame"),
        number(&kinds.page("huge", 0), "frame") + 5
    );
}

#[test]
fn pages_that_a_child_shares_count_in_part() {
    let test = "pages_that_a_child_shares_count_in_part";
    if !is_root(test) {
        return;
    }
    let mut kinds = Kinds::start();
    assert_eq!(kinds.target.ask("fork"), "done");
    let frozen = Frozen::freeze_alone(kinds.target.pid());
    let directory = of_the_system(&kinds.directory);
    let answer = pages_between_equal_smaps(&frozen, &directory).0;
    drop(frozen);
    let family = kinds.region(&answer, "family");
    // Six pages of two, and two that the child has copied.
    assert_pages(
        &family,
        &[("rss", 8), ("uss", 2), ("exclusive", 2), ("pss", 5)],
    );
    assert_eq!(number(&kinds.page("family", 0), "map_count"), 2);
    assert_is(&kinds.page("family", 0), &["present"], &["exclusive"]);
    assert_is(&kinds.page("family", 7), &["present", "exclusive"], &[]);
    // Two mappings, two processes; the child has filled none of its own since.
    let smaps = smaps(kinds.target.pid());
    for name in ["shared", "again", "huge", "guard", "private_file", "zero"] {
        let region = kinds.region(&answer, name);
        let counts = &smaps[&start_of(&region)].1;
        assert_eq!(
            number(&region, "pss_bytes") / 1024 * 1024,
            counts["Pss"],
            "{region}"
        );
        let unique = counts["Private_Clean"] + counts["Private_Dirty"];
        assert_eq!(number(&region, "uss_bytes"), unique, "{region}");
    }
}

#[test]
fn swapped_pages_are_told() {
    let test = "swapped_pages_are_told";
    if !is_root(test) {
        return;
    }
    let mut machine = Machine::lock();
    let mut kinds = Kinds::start();
    if let Err(reason) = machine.swap() {
        return skipped(test, &reason);
    }
    // The advice is a hint.
    let address = kinds.address("swapped");
    let pagemap = fs::File::open(kinds.target.proc("pagemap")).expect("open pagemap");
    let mut in_memory = || {
        assert_eq!(kinds.target.ask("page_out"), "done");
        let mut entries = [0; 6 * 8];
        pagemap
            .read_exact_at(&mut entries, address / PAGE * 8)
            .expect("read pagemap");
        entries.chunks(8).any(|entry| entry[7] & 0x80 != 0)
    };
    if (0..1000).all(|_| in_memory()) {
        return skipped(test, "the kernel does not page out");
    }
    let answer = kinds.pages();
    let region = kinds.region(&answer, "swapped");
    assert_pages(
        &region,
        &[("swapped", 6), ("swap", 6), ("swap_pss", 6), ("present", 2)],
    );
    let page = kinds.page("swapped", 0);
    assert_is(&page, &["swapped"], &["present", "guard"]);
    assert_eq!(text(&page["swap"], "kind"), "area", "{page}");
    assert!(
        page["swap"]["type"].is_u64() && page["swap"]["offset"].is_u64(),
        "{page}"
    );
    assert!(page["frame"].is_null(), "{page}");
}

#[test]
fn hugetlb_pages_are_told() {
    let test = "hugetlb_pages_are_told";
    if !is_root(test) {
        return;
    }
    let mut machine = Machine::lock();
    if let Err(reason) = machine.huge_pages(2) {
        return skipped(test, &reason);
    }
    let mut kinds = Kinds::start();
    let answer = kinds.target.ask("hugetlb");
    if answer != "done" {
        return skipped(test, &answer);
    }
    let pid = kinds.target.pid();
    let frozen = Frozen::freeze_alone(pid);
    let answer = pages_between_equal_smaps(&frozen, of_the_system(&kinds.directory)).0;
    drop(frozen);
    let region = kinds.region(&answer, "hugetlb");
    let pages = HUGE / PAGE;
    assert_pages(
        &region,
        &[
            ("hugetlb", pages),
            ("present", pages),
            ("huge", pages),
            ("rss", 0),
        ],
    );
    assert_pages(
        &region,
        &[
            ("exclusive", pages),
            ("uss", 0),
            ("pss", 0),
            ("page", pages),
        ],
    );
    let nodes: BTreeMap<String, u64> =
        serde_json::from_value(region["numa_bytes"].clone()).expect("nodes");
    assert_eq!(nodes, numa_maps(pid)[&start_of(&region)]);
    assert_eq!(nodes.values().sum::<u64>(), HUGE, "{region}");
    assert_flags(&kinds.page("hugetlb", 0), &["HUGE"], &["THP"]);
}

#[test]
fn merged_pages_are_told() {
    let test = "merged_pages_are_told";
    if !is_root(test) {
        return;
    }
    let mut machine = Machine::lock();
    let mut kinds = Kinds::start();
    let settings = [
        ("/sys/kernel/mm/ksm/pages_to_scan", "10000"),
        ("/sys/kernel/mm/ksm/sleep_millisecs", "5"),
        ("/sys/kernel/mm/ksm/run", "1"),
    ];
    for (path, value) in settings {
        if let Err(reason) = machine.set(path, value) {
            return skipped(test, &reason);
        }
    }
    let answer = kinds.target.ask("merge");
    if answer != "done" {
        return skipped(test, &answer);
    }
    let merged = |kinds: &mut Kinds| {
        let region = kinds.region(&kinds.pages(), "mergeable");
        region["page_flags"]["KSM"] == 4
    };
    for _ in 0..2000 {
        if merged(&mut kinds) {
            let page = kinds.page("mergeable", 1);
            assert_flags(&page, &["KSM", "ANON"], &[]);
            assert_is(&page, &["present"], &["exclusive", "file"]);
            assert!(number(&page, "map_count") >= 4, "{page}");
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    skipped(test, "the kernel does not merge pages");
}

#[test]
fn what_was_written_since_a_snapshot_is_told() {
    let mut kinds = Kinds::start();
    let store = TestStore::new();
    store.checkpoint(kinds.target.pid(), &["--backend", "wp-async"]);
    let written = |kinds: &mut Kinds| kinds.region(&kinds.pages(), "anonymous");
    // The snapshot has read pages that were not there, and so mapped the zero page.
    let region = written(&mut kinds);
    assert_pages(&region, &[("written", 0), ("swapped", 0), ("rss", 5)]);
    assert_eq!(kinds.target.ask("write"), "done");
    let region = written(&mut kinds);
    assert_pages(&region, &[("written", 6), ("swapped", 0), ("rss", 9)]);
    assert_is(
        &kinds.page("anonymous", 3),
        &["written"],
        &["write_protected"],
    );
    assert_is(
        &kinds.page("anonymous", 1),
        &["write_protected"],
        &["written"],
    );
    assert_is(
        &kinds.page("anonymous", 12),
        &["write_protected"],
        &["written"],
    );
}

#[test]
fn without_privilege_the_rest_is_told_and_what_is_missing_named() {
    if !is_root("without privilege") {
        return;
    }
    let programs = Scratch::new();
    let open = |path: &Path| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("open it to all");
    };
    open(programs.path());
    let copy = |from: &Path, name: &str| {
        let to = programs.join(name);
        fs::copy(from, &to).expect("copy a program");
        open(&to);
        to
    };
    let pagetide = copy(pagetide_path(), "pagetide");
    let program = copy(&compiled("pages"), "pages");
    let by_nobody = |program: &Path| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(program);
        command
    };
    let mut command = by_nobody(&program);
    let target = Target::start_by(command.arg(programs.path()));
    let mut kinds = Kinds {
        target,
        directory: Scratch::new(),
    };
    let pid = kinds.target.pid_text();
    let call =
        |words: &[&str]| pagetide_by(by_nobody(&pagetide).arg("pages").arg(&pid).args(words));
    let answer = call(&["--json"]).done().json();
    let missing = |answer: &Value| -> Vec<String> {
        let list = list(answer, "unavailable").iter();
        list.map(|one| {
            assert!(!text(one, "reason").is_empty(), "{one}");
            text(one, "what").to_owned()
        })
        .collect()
    };
    let privileged = [
        "frame-numbers",
        "swap-slots",
        "page-flags",
        "page-counts",
        "memory-cgroups",
    ];
    for what in privileged {
        assert!(
            missing(&answer).iter().any(|found| found == what),
            "{what}: {answer}"
        );
    }
    let region = kinds.region(&answer, "zero");
    assert_pages(
        &region,
        &[
            ("present", 4),
            ("zero", 3),
            ("rss", 1),
            ("uss", 1),
            ("pss", 1),
        ],
    );
    let region = kinds.region(&answer, "shared");
    assert_pages(&region, &[("rss", 3), ("uss", 1), ("pss", 2), ("file", 3)]);
    for field in ["page_flags", "memory_cgroups"] {
        assert!(
            region[field].is_null() && answer["totals"][field].is_null(),
            "{region}"
        );
    }
    // Root is told the same, and more.
    let more = kinds.pages();
    let all = kinds.region(&more, "shared");
    for field in [
        "present_bytes",
        "rss_bytes",
        "uss_bytes",
        "pss_bytes",
        "numa_bytes",
    ] {
        assert_eq!(all[field], region[field], "{field}");
    }
    assert!(
        !missing(&more)
            .iter()
            .any(|found| privileged.contains(&found.as_str())),
        "{more}"
    );
    let at = format!("{:x}", kinds.address("anonymous"));
    let page = call(&["--json", "--at", &at]).done().json();
    assert_is(&page, &["present", "exclusive"], &["zero", "swapped"]);
    for field in ["frame", "page_flags", "map_count", "memory_cgroup"] {
        assert!(page[field].is_null(), "{field}: {page}");
    }
    let people = call(&[]).done();
    assert!(
        people.stderr.contains("page-flags not told: "),
        "{people:#?}"
    );
    assert!(people.stderr.contains("CAP_SYS_ADMIN"), "{people:#?}");
    assert!(!people.stdout.contains("not told"), "{people:#?}");
    // Not its own.
    let foreign = Target::start("pages", [kinds.directory.path()]);
    let outcome = pagetide_by(by_nobody(&pagetide).args(["pages", &foreign.pid_text()]));
    fails(&outcome, 3, &["no permission", "CAP_SYS_PTRACE"]);
}

#[test]
fn what_cannot_be_looked_at_is_refused() {
    let above = fs::read_to_string("/proc/sys/kernel/pid_max").expect("read pid_max");
    let above = above.trim();
    let says = format!("there is no process {above}");
    fails(&pagetide(["pages", above]), 3, &[&says]);
    if fs::read_to_string("/proc/2/comm").is_ok_and(|comm| comm == "kthreadd\n") {
        let says = "2 (kthreadd) is a thread of the kernel";
        fails(&pagetide(["pages", "2", "--json"]), 3, &[says]);
    }
    let mut target = Target::start("bad_states", ["zombie"]);
    let child = target.ask("child");
    fails(&pagetide(["pages", &child]), 3, &["has ended"]);
    let pid = target.pid_text();
    for address in ["0x1000", "1000", "4096"] {
        let outcome = pagetide(["pages", &pid, "--at", address]);
        fails(&outcome, 3, &["has nothing mapped at 0x"]);
    }
    for wrong in ["", "xyz", "-1", "0x"] {
        fails(&pagetide(["pages", &pid, "--at", wrong]), 2, &["error: "]);
    }
}

#[test]
fn an_address_may_be_written_in_each_way() {
    let mut kinds = Kinds::start();
    let (address, pid) = (kinds.address("anonymous"), kinds.target.pid_text());
    let expected = format!("{address:016x}");
    for way in [
        format!("{address:#x}"),
        format!("{address:x}"),
        address.to_string(),
        expected.clone(),
    ] {
        let outcome = pagetide(["pages", &pid, "--json", "--at", &way]).done();
        assert_eq!(text(&outcome.json(), "address"), expected, "{way}");
    }
    let outcome = pagetide(["pages", &pid, "--json", "--at", "0xffffffffff600000"]);
    if outcome.code == Some(0) {
        let page = outcome.json();
        assert_eq!(text(&page["region"], "name"), "[vsyscall]");
        assert_is(&page, &[], &["present", "swapped", "guard"]);
    }
}

#[test]
fn people_get_a_region_a_line_and_a_total() {
    let kinds = Kinds::start();
    let outcome = pagetide(["pages", &kinds.target.pid_text()]).done();
    let regions = pagetide_tests::maps(kinds.target.pid()).len();
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert!(lines[0].starts_with("region (KiB)"), "{outcome:#?}");
    let total = lines[regions + 1];
    assert!(
        total.starts_with(&format!("{regions} regions")),
        "{outcome:#?}"
    );
}
