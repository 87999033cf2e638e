//! Prevents that a change is missed that no page table shows: dropped private huge pages, rings in the
//! process's own memory, and direct reads that were under way over a snapshot.

use pagetide_tests::{Target, TestStore, number, skipped, text};
use serde_json::Value;
use std::fs;

const POOL: &str = "/proc/sys/vm/nr_hugepages";

/// Huge pages added to the pool, taken away again at the end.
struct HugePages {
    before: u64,
}

impl HugePages {
    fn add(count: u64) -> Result<Self, String> {
        let read = || fs::read_to_string(POOL).map(|text| text.trim().parse::<u64>());
        let Ok(Ok(before)) = read() else {
            return Err(format!("{POOL} cannot be read"));
        };
        let pages = Self { before };
        fs::write(POOL, (before + count).to_string()).map_err(|error| error.to_string())?;
        match read() {
            Ok(Ok(now)) if now == before + count => Ok(pages),
            _ => Err("the kernel has no huge pages to give".to_owned()),
        }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(POOL, self.before.to_string());
    }
}

fn free_huge_pages() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").expect("meminfo");
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("HugePages_Free:"));
    line.and_then(|rest| rest.trim().parse().ok())
        .expect("HugePages_Free")
}

/// One snapshot that equals the process.
fn exact(target: &Target, store: &TestStore, before: bool) -> Value {
    let frozen = target.freeze();
    store.checkpoint_exactly(&frozen, &[], before).0
}

#[test]
fn t28_dropped_huge_page() {
    let pages = match HugePages::add(4) {
        Ok(pages) => pages,
        Err(reason) => return skipped("t28_dropped_huge_page", &reason),
    };
    let mut target = Target::start("unseen", [""; 0]);
    let store = TestStore::new();
    assert_eq!(target.ask("huge"), "done");
    // The page that was never touched stays in the pool: a snapshot must not take it. (The test's own
    // reading would, so it comes after.)
    let free = free_huge_pages();
    let first = store.checkpoint(target.pid(), &[]);
    assert_eq!(free_huge_pages(), free, "a snapshot took a huge page");
    assert_eq!(text(&first, "kind"), "full");
    exact(&target, &store, false);
    assert_eq!(target.ask("drop_huge"), "done");
    let report = exact(&target, &store, false);
    assert_eq!(text(&report, "kind"), "delta");
    drop(target);
    drop(pages);
}

#[test]
fn t29_ring_in_own_memory() {
    let mut target = Target::start("unseen", [""; 0]);
    let store = TestStore::new();
    exact(&target, &store, false);
    let answer = target.ask("own_ring");
    if answer != "done" {
        return skipped("t29_ring_in_own_memory", &answer);
    }
    exact(&target, &store, true);
    // The page that only the kernel writes to is reached in the second round.
    for before in [false, true, false, true] {
        assert_eq!(target.ask("complete"), "done");
        let report = exact(&target, &store, before);
        assert_eq!(text(&report, "kind"), "delta");
    }
}

/// What was harvested for one snapshot is copied again for the next, if reads may be under way: they are
/// submitted, and so seen, before the one and land before the other.
#[test]
fn t30_pages_of_reads_under_way_are_copied_twice() {
    let mut target = Target::start("unseen", [""; 0]);
    let store = TestStore::new();
    exact(&target, &store, false);
    let answer = target.ask("ring");
    if answer != "done" {
        return skipped("t30_pages_of_reads_under_way_are_copied_twice", &answer);
    }
    assert_eq!(target.ask("write"), "done");
    let written = exact(&target, &store, false);
    assert!(number(&written, "written_pages") >= 256);
    let after = store.checkpoint(target.pid(), &[]);
    if text(&after, "backend") == "soft-dirty" {
        // T57: all is compared instead, and what is the same was not written.
        assert!(number(&after, "written_pages") < 256, "{after}");
    } else {
        assert!(number(&after, "written_pages") >= 256, "{after}");
    }
    assert!(number(&after, "stored_pages") < 64, "{after}");
}
