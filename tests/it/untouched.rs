//! Prevents that a program is worse off for being tracked: page tables for memory that it never touched, a mapping more at
//! each snapshot, and marks that mislead a program that looks for what it wrote by itself.

use pagetide_tests::{Scratch, Target, TestStore, list, number, pagetide, skipped, text};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Page tables of the process, in KiB.
fn page_tables(target: &Target) -> u64 {
    let status = std::fs::read_to_string(target.proc("status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmPTE:"));
    let line = line.expect("VmPTE").trim().trim_end_matches(" kB");
    line.parse().expect("a number")
}

fn mappings(target: &Target) -> usize {
    let maps = std::fs::read_to_string(target.proc("maps")).expect("its mappings");
    maps.lines().count()
}

fn skips(test: &str, report: &Value) -> bool {
    let other = text(report, "backend") != "wp-async";
    if other {
        skipped(
            test,
            "nothing is marked without asynchronous write-protection",
        );
    }
    other
}

#[test]
fn t38_memory_that_was_never_touched_costs_no_page_tables() {
    let mut target = Target::start("grows", [""; 0]);
    let store = TestStore::new();
    assert_eq!(target.ask("reserve 64"), "done");
    assert_eq!(target.ask("store 1000000 7"), "done");
    let before = page_tables(&target);
    let report = store.checkpoint(target.pid(), &[]);
    if skips(
        "t38_memory_that_was_never_touched_costs_no_page_tables",
        &report,
    ) {
        return;
    }
    assert!(list(&report, "not_tracked").is_empty(), "{report}");
    assert!(number(&report, "written_pages") < 4096, "{report}");
    // Memory that comes between two snapshots costs nothing either, and what is stored to in the empty parts is found.
    assert_eq!(target.ask("reserve 64"), "done");
    for (page, value) in [(5_000_000, 1), (5_000_000, 2), (9_000_000, 3)] {
        assert_eq!(target.ask(&format!("store {page} {value}")), "done");
        let report = store.checkpoint(target.pid(), &[]);
        assert_eq!(text(&report, "kind"), "delta", "{report}");
        let written = number(&report, "written_pages");
        assert!((1..1024).contains(&written), "{report}");
        assert!(number(&report, "stored_pages") >= 1, "{report}");
    }
    let after = page_tables(&target);
    assert!(after <= before + 1024, "{before} KiB became {after} KiB");
    store.assert_sound();
}

/// What is harvested of a reservation before the stop is marked, and looks like content in the stop: it has to be stored all the
/// same. So does what is made accessible of it meanwhile.
#[test]
fn a_reservation_that_is_new_is_in_the_delta() {
    let mut target = Target::start("grows", [""; 0]);
    let store = TestStore::new();
    store.checkpoint(target.pid(), &["--mode", "precopy"]);
    for _ in 0..3 {
        assert_eq!(target.ask("reservation 132"), "done");
        let report = store.checkpoint(target.pid(), &["--mode", "precopy"]);
        assert_eq!(text(&report, "kind"), "delta", "{report}");
    }
    let frozen = target.freeze();
    store.checkpoint_exactly(&frozen, &["--mode", "precopy"], false);
}

/// A gigabyte of which little is touched, touched first, touched again and dropped: each delta is what the process held.
#[test]
fn t38_what_is_touched_and_dropped_among_untouched_memory_is_found() {
    let mut target = Target::start("grows", [""; 0]);
    let store = TestStore::new();
    assert_eq!(target.ask("reserve 1"), "done");
    assert_eq!(target.ask("store 77777 1"), "done");
    store.checkpoint(target.pid(), &[]);
    let changes = [
        &["store 100000 2"][..],
        &["store 100001 3", "store 200000 4", "store 77777 5"],
        &["drop 98304 8192"],
        &["store 100000 6", "drop 0 262144"],
        &["store 100000 7"],
    ];
    for lines in changes {
        for line in lines {
            assert_eq!(target.ask(line), "done");
        }
        let frozen = target.freeze();
        // Reading makes page tables, so the process is read after the snapshot, at the end only.
        let report = store.checkpoint(target.pid(), &[]);
        assert_eq!(text(&report, "kind"), "delta", "{report}");
        drop(frozen);
    }
    let frozen = target.freeze();
    store.checkpoint_exactly(&frozen, &[], false);
}

#[test]
fn t38_over_the_limit_a_mapping_is_compared_and_named() {
    let mut target = Target::start("grows", [""; 0]);
    let store = TestStore::new();
    assert_eq!(target.ask("pieces 40"), "done");
    let limit = ["--page-table-limit", "64K"];
    let before = page_tables(&target);
    let report = store.checkpoint(target.pid(), &limit);
    if skips(
        "t38_over_the_limit_a_mapping_is_compared_and_named",
        &report,
    ) {
        return;
    }
    let named = list(&report, "not_tracked");
    let is_limit = |missing: &&Value| text(missing, "reason").contains("page tables");
    let count = named.iter().filter(is_limit).count();
    assert!((24..=40).contains(&count), "{report}");
    assert!(page_tables(&target) <= before + 64 + 32);
    // Without a limit of one's own there is room.
    let report = store.checkpoint(target.pid(), &[]);
    assert!(list(&report, "not_tracked").is_empty(), "{report}");
}

/// Takes snapshots of a program whose memory grows by `how` in between, and returns how many mappings it has more.
fn grown(how: &str, snapshots: usize) -> (usize, u64) {
    let mut target = Target::start("grows", [""; 0]);
    let store = TestStore::new();
    // Twice: what the first one finds is a mapping of its own in any case.
    for _ in 0..2 {
        assert_eq!(target.ask(&format!("{how} 256")), "done");
        store.checkpoint(target.pid(), &["--memory-only"]);
    }
    let before = mappings(&target);
    let mut added = 0;
    for number_of in 0..snapshots {
        assert_eq!(target.ask(&format!("{how} 256")), "done");
        if number_of + 1 == snapshots {
            let frozen = target.freeze();
            let (report, _) = store.checkpoint_exactly(&frozen, &["--memory-only"], true);
            assert_eq!(text(&report, "kind"), "delta", "{report}");
            added = number(&report, "mappings_added");
        } else {
            store.checkpoint(target.pid(), &["--memory-only"]);
        }
    }
    (mappings(&target).saturating_sub(before), added)
}

#[test]
fn t39_memory_that_grows_has_few_mappings_more() {
    for how in ["heap", "arena", "stretch", "beside"] {
        let (more, added) = grown(how, 12);
        assert!(more <= 2, "{how}: {more} mappings more, {added} told");
        assert!(added <= 4, "{how}: {more} mappings more, {added} told");
    }
}

/// The mapping that is kept apart is counted, from one run of the command to the next.
#[test]
fn t39_mappings_that_are_there_because_of_tracking_are_counted() {
    let mut target = Target::start("grows", [""; 0]);
    let store = TestStore::new();
    assert_eq!(target.ask("heap 256"), "done");
    let first = store.checkpoint(target.pid(), &[]);
    if skips(
        "t39_mappings_that_are_there_because_of_tracking_are_counted",
        &first,
    ) {
        return;
    }
    assert_eq!(number(&first, "mappings_added"), 0, "{first}");
    assert_eq!(target.ask("heap 256"), "done");
    let second = store.checkpoint(target.pid(), &[]);
    assert_eq!(number(&second, "mappings_added"), 1, "{second}");
}

/// Many of them are told, with what mremap(2) does then and what can be done about it.
#[test]
fn t41_many_mappings_that_are_there_because_of_tracking_are_told() {
    const PIECES: u64 = 20;
    let mut target = Target::start("grows", [""; 0]);
    let store = TestStore::new();
    for command in [&format!("pieces {PIECES}"), "fill"] {
        assert_eq!(target.ask(command), "done");
    }
    let pid = target.pid();
    let first = store.checkpoint(pid, &["--memory-only"]);
    if skips(
        "t41_many_mappings_that_are_there_because_of_tracking_are_told",
        &first,
    ) {
        return;
    }
    // For people; machines are told the number.
    let told = || {
        let words = ["checkpoint", &pid.to_string(), "--memory-only", "--store"];
        let outcome = pagetide(words.map(str::to_owned).into_iter().chain([store.text()])).done();
        let mut lines = outcome.stderr.lines();
        lines
            .find(|line| line.contains("mremap"))
            .map(str::to_owned)
    };
    assert_eq!(told(), None);
    assert_eq!(target.ask("widen"), "done");
    let line = told().expect("it is told");
    let added = line
        .strip_prefix("pagetide: ")
        .and_then(|rest| rest.split_once(' '));
    let (added, rest) = added.unwrap_or_else(|| panic!("{line}"));
    assert!(
        added.parse::<u64>().is_ok_and(|added| added >= PIECES),
        "{line}"
    );
    assert!(
        rest.contains("because it is tracked") && rest.contains("--backend rehash"),
        "{line}"
    );
}

fn watched(report: &Value) -> bool {
    let named = list(report, "not_tracked").iter();
    named
        .filter(|missing| text(missing, "because") == "own-scanner")
        .count()
        == 1
}

#[test]
fn t40_a_program_that_looks_for_what_it_wrote_is_not_misled() {
    let mut target = Target::start("grows", [""; 0]);
    let store = TestStore::new();
    // Tracked first, so that there are marks to be taken back when it opens its pagemap.
    let first = store.checkpoint(target.pid(), &[]);
    if skips(
        "t40_a_program_that_looks_for_what_it_wrote_is_not_misled",
        &first,
    ) {
        return;
    }
    assert!(list(&first, "not_tracked").is_empty(), "{first}");
    assert_eq!(target.ask("watch"), "done");
    for round in 0..3 {
        assert_eq!(target.ask("round"), "written");
        let frozen = target.freeze();
        let (report, _) = store.checkpoint_exactly(&frozen, &[], true);
        assert_eq!(text(&report, "kind"), "delta", "{report}");
        assert!(watched(&report), "{report}");
        drop(frozen);
        assert_eq!(target.ask("go on"), "0", "pages are left in round {round}");
    }
    let pid = target.pid_text();
    let inspected = pagetide(["inspect", &pid, "--json"]).done().json();
    assert!(watched(&inspected), "{inspected}");
    assert_eq!(number(&inspected, "tracked"), 1, "{inspected}");
    // When it has closed it, it is tracked again.
    assert_eq!(target.ask("unwatch"), "done");
    let frozen = target.freeze();
    for _ in 0..2 {
        let (report, _) = store.checkpoint_exactly(&frozen, &[], true);
        assert!(list(&report, "not_tracked").is_empty(), "{report}");
    }
}

/// The kernel refuses to move what it would have made one mapping of, had the first half not been tracked.
#[test]
fn t41_what_would_have_been_one_mapping_cannot_be_moved_while_it_is_tracked() {
    let answer = |words: &[&str]| {
        let mut target = Target::start("grows", [""; 0]);
        let store = TestStore::new();
        assert_eq!(target.ask("two"), "done");
        let report = store.checkpoint(target.pid(), words);
        let inspected = pagetide(["inspect", &target.pid_text()]).done();
        let backend = text(&report, "backend").to_owned();
        (backend, target.ask("join"), inspected.stdout)
    };
    let (_, moved, told) = answer(&["--backend", "rehash"]);
    assert_eq!(moved, "done");
    assert!(!told.contains("mremap"), "{told}");
    let (backend, moved, told) = answer(&[]);
    if backend == "wp-async" {
        assert_eq!(moved, "Bad address");
        assert!(
            told.contains("mremap") && told.contains("--backend rehash"),
            "{told}"
        );
    }
}

/// A memory cgroup, removed at the end.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(limit_bytes: u64) -> Result<Self, String> {
        let own =
            std::fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
        let path = own.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            controllers
                .split(',')
                .any(|name| name == "memory")
                .then_some(path)
        });
        let (directory, file) = match path {
            Some(path) => (
                Path::new("/sys/fs/cgroup/memory").join(path.trim_start_matches('/')),
                "memory.limit_in_bytes",
            ),
            None => (PathBuf::from("/sys/fs/cgroup"), "memory.max"),
        };
        let directory = directory.join(format!("pagetide-test-{}", std::process::id()));
        std::fs::create_dir(&directory)
            .map_err(|error| format!("{}: {error}", directory.display()))?;
        let cgroup = Self(directory);
        let limit = cgroup.0.join(file);
        std::fs::write(&limit, limit_bytes.to_string())
            .map_err(|error| format!("{}: {error}", limit.display()))?;
        Ok(cgroup)
    }

    /// A command in it.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("sh");
        let script = "echo $$ > \"$0\" && exec \"$@\"";
        command
            .args(["-c", script])
            .arg(self.0.join("cgroup.procs"))
            .args(words);
        command
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

/// A shadow of many terabytes, in a small memory cgroup with pagetide in it, too.
#[test]
fn t38_a_program_built_with_an_address_sanitizer() {
    let test = "t38_a_program_built_with_an_address_sanitizer";
    let files = Scratch::new();
    let program = files.join("sanitized");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("targets/grows.c");
    let built = Command::new("cc")
        .args(["-std=gnu17", "-O1", "-fsanitize=address", "-pthread", "-o"])
        .args([&program, &source])
        .output();
    if !built.is_ok_and(|built| built.status.success()) {
        return skipped(test, "there is no address sanitizer");
    }
    let cgroup = match Cgroup::new(1 << 30) {
        Ok(cgroup) => cgroup,
        Err(reason) => return skipped(test, &reason),
    };
    let store = TestStore::new();
    let program = program.to_str().expect("a plain path");
    let mut target = Target::start_by(&mut cgroup.command(&[program]));
    assert_eq!(target.ask("heap 256"), "done");
    let before = page_tables(&target);
    for kind in ["full", "delta", "delta"] {
        assert_eq!(target.ask("arena 64"), "done");
        let mut words = store.checkpoint_words(target.pid(), &[]);
        words.insert(
            0,
            pagetide_tests::pagetide_path()
                .to_str()
                .expect("a plain path")
                .to_owned(),
        );
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let report = pagetide_tests::pagetide_by(&mut cgroup.command(&words))
            .done()
            .json();
        assert_eq!(text(&report, "kind"), kind, "{report}");
        assert!(list(&report, "not_tracked").is_empty(), "{report}");
    }
    let after = page_tables(&target);
    assert!(after <= before + 1024, "{before} KiB became {after} KiB");
    store.assert_sound();
    let pid = target.pid();
    let blockers = store.checkpoint_and_kill(pid, &[]);
    target.wait();
    let path = store.text();
    let mut words = vec![
        pagetide_tests::pagetide_path()
            .to_str()
            .expect("a plain path"),
    ];
    words.extend(["restore", &path, "--stopped", "--detach", "--json"]);
    for blocker in list(&blockers, "blockers") {
        words.extend(["--accept", text(blocker, "name")]);
    }
    let back = pagetide_tests::pagetide_by(&mut cgroup.command(&words))
        .done()
        .json();
    let back = i32::try_from(number(&back, "pid")).expect("a pid");
    assert_eq!(back, pid);
    let tables = std::fs::read_to_string(format!("/proc/{back}/status")).expect("it is back");
    assert!(tables.contains("VmPTE:"), "{tables}");
    let back = rustix::process::Pid::from_raw(back).expect("a pid");
    rustix::process::kill_process(back, rustix::process::Signal::KILL).expect("it is there");
    drop(cgroup);
}
