//! Prevents that memory comes back with the right bytes and yet is other memory: windows of remap_file_pages(2) in another
//! order, policies of mbind(2) gone, poisoned pages that read as zeros, more mappings than the
//! machine allows, or charged to somebody else.

use pagetide_tests::{
    Program, Scratch, Steps, Subject, Target, TestStore, cycle, list, number, pagetide,
};
use pagetide_tests::{skipped, text};

const SCHEDULE: [&str; 4] = ["--every", "40ms", "--count", "2"];

#[test]
fn nonlinear_windows_are_in_their_order() {
    let mut subject = Subject::target("windows", &[]);
    cycle(&mut subject, &mut Steps::new(3), &SCHEDULE);
}

#[test]
fn t82_policies_of_mappings_are_set_again_also_on_one_node() {
    if !std::path::Path::new("/proc/self/numa_maps").exists() {
        return skipped(
            "t82_policies_of_mappings_are_set_again_also_on_one_node",
            "no CONFIG_NUMA",
        );
    }
    // Preferred, bound, interleaved, local, bound with static nodes.
    let policies = ["1:1", "2:1", "3:1", "4:0", "32770:1"];
    let mut subject = Subject::target("policies", &policies);
    cycle(&mut subject, &mut Steps::new(3), &SCHEDULE);
    let shown = pagetide(["show", &subject.store().text(), "--json"])
        .done()
        .json();
    let recorded: Vec<&str> = list(&shown, "numa")
        .iter()
        .map(|one| text(one, "policy"))
        .collect();
    for policy in [
        "prefer:0",
        "bind:0",
        "interleave:0",
        "local",
        "bind=static:0",
    ] {
        assert!(
            recorded.contains(&policy),
            "{policy} is not among {recorded:?}"
        );
    }
}

/// A full snapshot and a delta, in which nobody has looked at the pages again: each tells the addresses that the process
/// has printed, in its report, in `show` and in map.json.
fn all_are_named(subject: &Subject) {
    subject.wait_until("its pages", || subject.output().contains('\n'));
    let output = subject.output();
    let places: Vec<u64> = output
        .split_whitespace()
        .map(|word| u64::from_str_radix(word, 16).expect("an address"))
        .collect();
    let told = |poisoned: &serde_json::Value| -> Vec<u64> {
        let start = |one: &serde_json::Value| {
            let (start, end) = (text(one, "start"), text(one, "end"));
            let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
            assert_eq!(hex(end) - hex(start), 4096, "{one}");
            hex(start)
        };
        let mut starts: Vec<u64> = list(poisoned, "poisoned").iter().map(start).collect();
        starts.sort_unstable_by_key(|start| places.iter().position(|place| place == start));
        starts
    };
    // Of a delta, too, in which nobody has looked at it.
    for _ in 0..2 {
        let report = subject.checkpoint(&[]).remove(0);
        assert_eq!(told(&report), places, "{report}");
        assert_eq!(report["blockers"], serde_json::json!([]), "{report}");
        let store = subject.store();
        let shown = pagetide(["show", &store.text(), "--json"]).done().json();
        assert_eq!(told(&shown), places);
        let out = store
            .scratch()
            .join(&format!("raw-{}", number(&report, "id")));
        let out = out.to_str().expect("a plain path");
        pagetide(["export", &store.text(), "--format", "raw", "-o", out]).done();
        let map = std::fs::read(format!("{out}/map.json")).expect("the list of regions");
        assert_eq!(told(&serde_json::from_slice(&map).expect("JSON")), places);
    }
}

#[test]
fn t81_a_poisoned_page_is_named_and_stays_a_sigbus() {
    let subject = Subject::target("poisoned", &[]);
    all_are_named(&subject);
    drop(subject);
    let mut subject = Subject::target("poisoned", &[]);
    cycle(&mut subject, &mut Steps::new(3), &SCHEDULE);
}

#[test]
fn t81_memory_that_has_failed_is_named_and_stays_a_sigbus() {
    let test = "t81_memory_that_has_failed_is_named_and_stays_a_sigbus";
    if std::env::var_os("PAGETIDE_MEMORY_MAY_FAIL").is_none() {
        return skipped(test, "it costs the machine memory: in emulated ones only");
    }
    all_are_named(&Subject::target("poisoned", &["failed"]));
    let mut subject = Subject::target("poisoned", &["failed"]);
    cycle(&mut subject, &mut Steps::new(2), &SCHEDULE);
}

#[test]
fn t81_who_has_poison_that_cannot_come_again_is_not_killed() {
    // The second is of a private mapping of a file, which nobody can poison again.
    let start = || {
        let subject = Subject::target("poisoned", &["private"]);
        subject.wait_until("its pages", || subject.output().contains('\n'));
        let output = subject.output();
        let page = output.split_whitespace().nth(1).expect("two addresses");
        let name = format!("poisoned:mapping:{page}");
        (subject, name)
    };
    let (mut subject, name) = start();
    let mut steps = Steps::new(3);
    let (store, pid) = (subject.store(), subject.pid());
    for (id, kind) in [(1, "full"), (2, "delta")] {
        // Also accepted for something else.
        let words = ["--leave", "killed", "--accept", "poisoned:mapping:1000"];
        let outcome = store.try_checkpoint(pid, &words);
        let outcome = outcome.refused(&format!(
            "process {pid} was not killed and runs on: it could not be restored from snapshot {id}, for {name} ("
        ));
        let report = outcome.json();
        assert_eq!(report["left"], "running", "{report}");
        assert_eq!(text(&report, "kind"), kind, "{report}");
        assert_eq!(list(&report, "poisoned").len(), 2, "{report}");
        steps.goes_on(&subject);
    }
    // Of a series the last one tells.
    let every = ["--every", "20ms", "--count", "2", "--leave", "killed"];
    let outcome = store.try_checkpoint(pid, &every);
    let lines = outcome.refused(&name).lines();
    assert_eq!(lines.len(), 2);
    steps.goes_on(&subject);
    let words = ["--leave", "killed", "--accept", &name];
    let report = store.checkpoint(pid, &words);
    assert_eq!(report["left"], "killed", "{report}");
    assert_eq!(text(&list(&report, "blockers")[0], "name"), name);
    store.assert_sound();
    subject.kill();
    // Who wants no restore is not asked about it.
    let (mut subject, _) = start();
    let report = subject.checkpoint(&["--memory-only", "--leave", "killed"]);
    assert_eq!(report[0]["left"], "killed", "{report:?}");
    subject.kill();
}

#[test]
fn more_mappings_than_the_machine_allows_are_told_beforehand_with_their_number() {
    let test = "more_mappings_than_the_machine_allows_are_told_beforehand_with_their_number";
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").expect("the limit");
    let limit: usize = limit.trim().parse().expect("a number");
    if limit > 100_000 {
        return skipped(test, &format!("vm.max_map_count is {limit}"));
    }
    let (files, store) = (Scratch::new(), TestStore::new());
    let words = [
        "limit".into(),
        limit.to_string().into(),
        files.path().as_os_str().to_owned(),
    ];
    let mut target = Target::start("many", words);
    let pid = target.pid();
    let maps = std::fs::read_to_string(target.proc("maps")).expect("its mappings");
    let mappings = maps
        .lines()
        .filter(|line| !line.ends_with("[vsyscall]"))
        .count();
    assert!(mappings + 3 > limit, "{mappings} of {limit}");
    let report = store.checkpoint_and_kill(pid, &["--backend", "rehash"]);
    target.wait();
    let needed = format!("vm.max_map_count={}", mappings + 3);
    let listed = pagetide(["restore", &store.text(), "--dry-run", "--json"]);
    let listed = listed.exits_with(3);
    let answer = listed.json();
    let limits = list(&answer, "limits");
    assert!(
        limits[0]
            .as_str()
            .is_some_and(|told| told.contains(&needed)),
        "{answer}"
    );
    assert_eq!(answer["restorable"], false);
    // Its standard streams lead to the test.
    let store = store.text();
    let accepted = list(&report, "blockers").iter();
    let accepted = accepted.flat_map(|blocker| ["--accept", text(blocker, "name")]);
    let refused = pagetide(["restore", &store, "--detach"].into_iter().chain(accepted));
    let refused = refused.exits_with(3);
    assert!(refused.stderr.contains(&needed), "{refused:#?}");
}

/// A control group that counts memory. Removed when it is dropped, and empty by then.
struct MemoryGroup(std::path::PathBuf);

impl MemoryGroup {
    fn of(pid: i32) -> Option<Self> {
        let made = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"]
            .iter()
            .find_map(|top| {
                let group = std::path::Path::new(top).join(format!("pagetide-it-{pid}"));
                std::fs::create_dir(&group).ok()?;
                let group = Self(group);
                // Without the controller it counts nothing.
                group.bytes()?;
                Some(group)
            })?;
        std::fs::write(made.0.join("cgroup.procs"), pid.to_string()).ok()?;
        Some(made)
    }

    fn bytes(&self) -> Option<u64> {
        let names = ["memory.usage_in_bytes", "memory.current"].iter();
        let mut texts = names.filter_map(|name| std::fs::read_to_string(self.0.join(name)).ok());
        texts.next()?.trim().parse().ok()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        for _ in 0..500 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

#[test]
fn the_memory_of_a_restored_process_is_charged_to_its_group() {
    const MEBIBYTE: u64 = 1 << 20;
    // 16 mappings of 64 KiB.
    let mut subject = Subject::target("policies", &["0:0"; 16]);
    let Some(group) = MemoryGroup::of(subject.pid()) else {
        return skipped(
            "the_memory_of_a_restored_process_is_charged_to_its_group",
            "no control group of memory can be made",
        );
    };
    let mut steps = Steps::new(2);
    steps.goes_on(&subject);
    let (report, truth) = subject.stop_and_read();
    subject.kill();
    let before = group.bytes().expect("it counts");
    assert!(before < MEBIBYTE, "{before} with nobody in it");
    subject.restore_and_compare(number(&report, "id"), &truth);
    let after = group.bytes().expect("it counts");
    assert!(after >= MEBIBYTE, "{after} with the restored process in it");
    subject.kill();
}
