//! Prevents that a page whose state is known is told to be in another: a target with a mapping of every
//! kind, and what `pages` and `pages --at` say of each.

use super::ask::{HUGE, PAGE, numa_maps, pages, pages_between_equal_smaps, smaps, start_of};
use crate::bad::is_root;
use pagetide_tests::{
    Frozen, Machine, Scratch, Target, TestStore, list, number, pagetide, skipped, text,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;

/// The target with a mapping of every kind, and what it tells of them.
pub(super) struct Kinds {
    pub(super) target: Target,
    pub(super) directory: Scratch,
}

impl Kinds {
    pub(super) fn start() -> Self {
        let directory = Scratch::new();
        let target = Target::start("pages", [directory.path()]);
        Self { target, directory }
    }

    /// All mappings that it tells of, by name.
    pub(super) fn all(&mut self) -> Vec<(String, u64)> {
        let answer = self.target.ask("where");
        let pairs = answer.split_whitespace().filter_map(|w| w.split_once('='));
        let address = |text| u64::from_str_radix(text, 16).expect("an address");
        pairs
            .map(|(name, text)| (name.to_owned(), address(text)))
            .collect()
    }

    /// The address of the mapping `name`; `None` if there is none.
    pub(super) fn find(&mut self, name: &str) -> Option<u64> {
        let mut all = self.all().into_iter();
        all.find_map(|(found, address)| (found == name).then_some(address))
    }

    pub(super) fn address(&mut self, name: &str) -> u64 {
        self.find(name)
            .unwrap_or_else(|| panic!("no mapping {name}"))
    }

    /// What `pages` says of the mapping, out of all it said.
    pub(super) fn region(&mut self, answer: &Value, name: &str) -> Value {
        let address = self.address(name);
        let regions = list(answer, "regions").iter();
        let mut found = regions.filter(|region| start_of(region) == address);
        found
            .next()
            .unwrap_or_else(|| panic!("no region {name} in {answer}"))
            .clone()
    }

    /// What `pages --at` says of one page of a mapping.
    pub(super) fn page(&mut self, name: &str, page: u64) -> Value {
        let address = format!("{:#x}", self.address(name) + page * PAGE + 17);
        let pid = self.target.pid_text();
        pagetide(["pages", &pid, "--json", "--at", &address])
            .done()
            .json()
    }

    pub(super) fn pages(&self) -> Value {
        pages(self.target.pid())
    }
}

/// The numbers of a region in pages.
#[track_caller]
pub(super) fn assert_pages(region: &Value, expected: &[(&str, u64)]) {
    for (name, pages) in expected {
        let bytes = number(region, &format!("{name}_bytes"));
        assert_eq!(bytes, pages * PAGE, "{name} of {region}");
    }
}

/// `--at` says these fields are so.
#[track_caller]
pub(super) fn assert_is(page: &Value, yes: &[&str], no: &[&str]) {
    let is = |field: &&&str| page[**field].as_bool();
    let wrong = |expected| move |field: &&&str| is(field) != Some(expected);
    assert_eq!(yes.iter().find(wrong(true)), None, "{page}");
    assert_eq!(no.iter().find(wrong(false)), None, "{page}");
}

#[track_caller]
pub(super) fn assert_flags(page: &Value, set: &[&str], not_set: &[&str]) {
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
    assert_flags(&page, &["ZERO_PAGE", "RESERVED"], &["ANON"]);
    assert_eq!(
        (
            number(&page, "map_count"),
            number(&page["memory_cgroup"], "inode")
        ),
        (0, 0)
    );
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
    let parts = [
        (kinds.address("swapped"), 6),
        (kinds.address("swapped_shared"), 3),
    ];
    let pagemap = fs::File::open(kinds.target.proc("pagemap")).expect("open pagemap");
    let mut in_memory = || {
        assert_eq!(kinds.target.ask("page_out"), "done");
        parts.iter().any(|(address, pages)| {
            let mut entries = vec![0; pages * 8];
            let offset = address / PAGE * 8;
            pagemap
                .read_exact_at(&mut entries, offset)
                .expect("read pagemap");
            entries.chunks(8).any(|entry| entry[7] & 0x80 != 0)
        })
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
    // Of shared memory the page table does not tell: the object does.
    let region = kinds.region(&answer, "swapped_shared");
    assert_pages(&region, &[("swapped", 0), ("swap", 3), ("present", 0)]);
    assert_pages(
        &region,
        &[
            ("object_swapped", 3),
            ("object_resident", 0),
            ("object_hole", 1),
        ],
    );
    let page = kinds.page("swapped_shared", 0);
    assert_is(&page, &[], &["present", "swapped", "empty"]);
    assert_eq!(text(&page, "object"), "swapped", "{page}");
    let page = kinds.page("swapped_shared", 3);
    assert_is(&page, &["empty"], &["present", "swapped"]);
    assert_eq!(text(&page, "object"), "hole", "{page}");
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
    // The second one was never touched, and is not swapped either: huge pages never are.
    let untouched = kinds.page("hugetlb", HUGE / PAGE);
    assert_is(&untouched, &["empty"], &["present", "swapped"]);
}

/// Lets the kernel merge equal pages, those of zeros into the zero page or not.
pub(super) fn merge_equal_pages(machine: &mut Machine, use_zero_pages: &str) -> Result<(), String> {
    let settings = [
        ("/sys/kernel/mm/ksm/use_zero_pages", use_zero_pages),
        ("/sys/kernel/mm/ksm/pages_to_scan", "10000"),
        ("/sys/kernel/mm/ksm/sleep_millisecs", "5"),
        ("/sys/kernel/mm/ksm/run", "1"),
    ];
    let mut settings = settings.into_iter();
    settings.try_for_each(|(path, value)| machine.set(path, value))
}

#[test]
fn merged_pages_of_zeros_are_told_as_the_zero_page() {
    let test = "merged_pages_of_zeros_are_told_as_the_zero_page";
    if !is_root(test) {
        return;
    }
    let mut machine = Machine::lock();
    let mut kinds = Kinds::start();
    if let Err(reason) = merge_equal_pages(&mut machine, "1") {
        return skipped(test, &reason);
    }
    let answer = kinds.target.ask("merge_zeros");
    if answer != "done" {
        return skipped(test, &answer);
    }
    for _ in 0..2000 {
        let region = kinds.region(&kinds.pages(), "mergeable_zeros");
        if number(&region, "zero_bytes") < 4 * PAGE {
            std::thread::sleep(std::time::Duration::from_millis(5));
            continue;
        }
        // They take no memory, as smaps says, too.
        assert_pages(&region, &[("present", 4), ("rss", 0), ("pss", 0)]);
        let smaps = smaps(kinds.target.pid());
        assert_eq!(smaps[&start_of(&region)].1["Rss"], 0, "{region}");
        let page = kinds.page("mergeable_zeros", 1);
        assert_is(&page, &["present", "zero"], &["exclusive", "file"]);
        assert_flags(&page, &["ZERO_PAGE"], &["KSM", "ANON"]);
        // And they are stored as what they are.
        let store = TestStore::new();
        let report = store.checkpoint(kinds.target.pid(), &["--leave", "stopped"]);
        let id = number(&report, "id");
        let frozen = kinds.target.freeze();
        let truth = pagetide_tests::Image::of_process(&frozen);
        store.assert_equals(id, &truth, "with merged zeros");
        return;
    }
    skipped(test, "the kernel does not merge pages");
}

#[test]
fn merged_pages_are_told() {
    let test = "merged_pages_are_told";
    if !is_root(test) {
        return;
    }
    let mut machine = Machine::lock();
    let mut kinds = Kinds::start();
    if let Err(reason) = merge_equal_pages(&mut machine, "0") {
        return skipped(test, &reason);
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
