//! Prevents that the processes of a tree are stored as they were at different instants, that one of them
//! or a page of one is missing, that memory they share is stored more than once, or that a family whose
//! members come and go keeps snapshots from being taken.

use pagetide_tests::{
    Frozen, Image, Target, TestStore, background, family, from_environment, list, number, pagetide,
    seed, text,
};
use rustix::process::Signal;
use serde_json::Value;
use std::time::{Duration, Instant};

/// Kinds of shared objects that `family` makes: anonymous for counters, anonymous, memfd, System V, tmpfs.
const OBJECTS: usize = 5;
const SHARED_PAGES: u64 = 512;

fn start(mebibytes: u32) -> Target {
    Target::start("family", [mebibytes.to_string()])
}

/// Asks for a child and gives its pid.
fn child(target: &mut Target, what: &str) -> i32 {
    target.ask(what).parse().expect("a pid")
}

fn pids(frozen: &[Frozen]) -> Vec<i32> {
    frozen.iter().map(Frozen::pid).collect()
}

/// One snapshot of the tree, after which every process of it must stand still, as it is stored.
#[track_caller]
fn exactly(store: &TestStore, root: i32, more: &[&str], what: &str) -> (Value, Vec<Frozen>) {
    let mut words = vec!["--tree", "--leave", "stopped"];
    words.extend(more);
    let report = store.checkpoint(root, &words);
    let all: Vec<Frozen> = family(root).into_iter().map(Frozen::found).collect();
    assert_eq!(
        number(&report, "processes"),
        all.len() as u64,
        "{what}: {report}"
    );
    store.assert_equals_all(number(&report, "id"), &all, what);
    (report, all)
}

/// Waits until the workers of the family have gone on.
fn let_run(target: &mut Target) {
    let rounds = |target: &mut Target| -> u64 { target.ask("rounds").parse().expect("a number") };
    let before = rounds(target);
    let since = Instant::now();
    while rounds(target) < before + 500 {
        assert!(
            since.elapsed() < Duration::from_secs(60),
            "the workers stand still"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The file descriptors that pagetide left in a process.
fn left_in(pid: i32) -> usize {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its file descriptors");
    let is_ours =
        |link: &str| link == "anon_inode:[userfaultfd]" || link.starts_with("/memfd:pagetide");
    entries
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter(|link| link.to_str().is_some_and(is_ours))
        .count()
}

#[test]
fn every_process_equals_its_export() {
    let mut target = start(4);
    target.ask("worker 2");
    child(&mut target, "threads");
    child(&mut target, "stopped");
    let idle = child(&mut target, "idle");
    let store = TestStore::new();
    let root = target.pid();
    let (first, all) = exactly(&store, root, &[], "first");
    assert_eq!(text(&first, "kind"), "full");
    assert_eq!(all.len(), 8);
    drop(all);

    target.ask(&format!("exec {idle}"));
    let ending = child(&mut target, "idle");
    for round in 0..5 {
        let_run(&mut target);
        match round {
            1 => drop(child(&mut target, "idle")),
            2 => drop(target.ask(&format!("end {ending}"))),
            3 => drop(target.ask("zombie 2")),
            _ => {}
        }
        let (report, all) = exactly(&store, root, &[], &format!("round {round}"));
        assert_eq!(text(&report, "kind"), "delta", "{report}");
        assert_eq!(number(&report, "parent"), number(&report, "id") - 1);
        // What was there before is not stored again: its workers write less than a quarter.
        assert!(
            number(&report, "stored_pages") < number(&first, "stored_pages"),
            "{report}"
        );
        assert!(pids(&all).contains(&idle));
    }
    store.assert_sound();
    // All that is in the processes is removed, one by one.
    for pid in family(root) {
        assert!(left_in(pid) > 0, "process {pid} is not tracked");
        pagetide(["detach", &pid.to_string()]).done();
        assert_eq!(left_in(pid), 0, "process {pid}");
    }
    let (again, _all) = exactly(&store, root, &[], "after detach");
    assert_eq!(text(&again, "kind"), "full");
}

#[test]
fn a_schedule_equals_at_its_end() {
    for backend in ["wp-async", "rehash"] {
        let mut target = start(4);
        let store = TestStore::new();
        target.ask("worker 2");
        let words = ["--every", "50ms", "--count", "6", "--backend", backend];
        let words = words.into_iter().chain(["--tree", "--leave", "stopped"]);
        let outcome = store.try_checkpoint(target.pid(), &words.collect::<Vec<_>>());
        let lines = outcome.done().lines();
        assert_eq!(lines.len(), 6);
        for line in &lines[1..] {
            assert_eq!(text(line, "kind"), "delta", "{line}");
            assert_eq!(number(line, "processes"), 5, "{line}");
        }
        let all: Vec<Frozen> = family(target.pid())
            .into_iter()
            .map(Frozen::found)
            .collect();
        store.assert_equals_all(6, &all, backend);
        drop(all);
        for pid in family(target.pid()) {
            pagetide(["detach", &pid.to_string()]).done();
            assert_eq!(left_in(pid), 0, "process {pid}");
        }
    }
}

#[test]
fn what_is_shared_is_stored_once() {
    const MEBIBYTES: u32 = 16;
    let mut target = start(MEBIBYTES);
    for _ in 0..6 {
        child(&mut target, "idle");
    }
    let store = TestStore::new();
    let (report, _all) = exactly(&store, target.pid(), &[], "seven processes");
    let private = u64::from(MEBIBYTES) * 256;
    let once = private + 4 * SHARED_PAGES;
    let stored = number(&report, "stored_pages");
    // Beside them there are the stacks and the data of the C library, which differ.
    assert!(
        (once..once + 1000).contains(&stored),
        "{once} pages once, stored {stored}"
    );
    let answer = pagetide(["show", &store.text(), "--json"]).done().json();
    let names: Vec<&str> = list(&answer, "spaces")
        .iter()
        .map(|s| text(s, "name"))
        .collect();
    let of = |what: &str| names.iter().filter(|name| name.starts_with(what)).count();
    assert_eq!((of("shm:"), of("mem:")), (OBJECTS, 7), "{names:?}");
}

/// Counters that a parent, a child and a grandchild raise one after another.
#[test]
fn a_snapshot_is_of_one_instant() {
    let mut target = start(2);
    let answer = target.ask("march");
    let mut words = answer.split(' ');
    let marcher: i32 = words.next().and_then(|w| w.parse().ok()).expect("a pid");
    let mut address = || {
        let word = words.next().and_then(|word| word.strip_prefix("0x"));
        u64::from_str_radix(word.expect("an address"), 16).expect("an address")
    };
    let (count, shared) = (address(), address());
    let store = TestStore::new();
    let snapshots: u64 = from_environment("PAGETIDE_MARCH", 40);
    let words = [
        "--tree",
        "--every",
        "5ms",
        "--count",
        &snapshots.to_string(),
    ];
    let lines = store.try_checkpoint(target.pid(), &words).done().lines();
    let mut last = 0;
    for line in &lines {
        let id = number(line, "id");
        let images = store.images(id);
        assert_eq!(images.len(), 4);
        let value = |pid: i32, at| {
            let bytes = images[&pid].bytes(at, 8);
            u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
        };
        let marchers = family(marcher);
        let seen = [
            value(marchers[0], count),
            value(target.pid(), shared),
            value(marchers[1], count),
            value(marchers[2], count),
        ];
        let falls = seen.windows(2).all(|pair| pair[0] >= pair[1]);
        assert!(falls && seen[0] - seen[3] <= 1, "snapshot {id}: {seen:?}");
        assert!(seen[0] >= last, "snapshot {id}: {seen:?} after {last}");
        last = seen[0];
    }
    assert_eq!(lines.len() as u64, snapshots);
    assert!(last > snapshots, "they did not march: {last}");
}

#[test]
fn children_that_come_and_go() {
    let mut target = start(2);
    for what in ["churn", "spawn", "hold"] {
        child(&mut target, what);
    }
    let store = TestStore::new();
    let words = ["--tree", "--every", "10ms", "--count", "8"];
    let lines = store.try_checkpoint(target.pid(), &words).done().lines();
    assert_eq!(lines.len(), 8);
    for line in &lines {
        assert!(number(line, "processes") >= 3, "{line}");
    }
    for round in 0..4 {
        exactly(&store, target.pid(), &[], &format!("round {round}"));
    }
    target.ask("rounds");
    store.assert_sound();
}

#[test]
fn ended_children_that_nobody_reaps() {
    let mut target = start(1);
    let store = TestStore::new();
    exactly(&store, target.pid(), &[], "alone");
    target.ask("zombie 100");
    let (report, _all) = exactly(&store, target.pid(), &[], "with a hundred zombies");
    assert_eq!(number(&report, "processes"), 1);
    assert_eq!(text(&report, "kind"), "delta");
}

/// A child of the family and its own child, which outlives it.
fn middle(target: &mut Target) -> (i32, i32) {
    let middle = child(target, "middle");
    loop {
        if let [_, last] = family(middle)[..] {
            return (middle, last);
        }
    }
}

#[test]
fn orphans_stay_once_they_are_known() {
    let mut target = start(1);
    let root = target.pid();
    child(&mut target, "orphan");
    let store = TestStore::new();
    let (_, all) = exactly(&store, root, &[], "it belongs to nobody");
    assert_eq!(pids(&all), [root]);
    drop(all);

    // From one run to the next.
    let (parent, orphan) = middle(&mut target);
    store.checkpoint(root, &["--tree"]);
    target.ask(&format!("end {parent}"));
    assert_eq!(family(root), [root]);
    let report = store.checkpoint(root, &["--tree", "--leave", "stopped"]);
    assert_eq!(text(&report, "kind"), "delta");
    let both = [root, orphan].map(Frozen::found);
    store.assert_equals_all(number(&report, "id"), &both, "an orphan");
    drop(both);

    // In one run. An orphan of a subreaper stays in the family.
    target.ask("subreaper");
    let (parent, other) = middle(&mut target);
    let every = ["--tree", "--every", "20ms"];
    let mut schedule = background(store.checkpoint_words(root, &every));
    schedule.next_id();
    target.ask(&format!("end {parent}"));
    store.taken_from_now_on(&mut schedule);
    let line = schedule.next_line().expect("one more");
    assert_eq!(number(&line, "processes"), 3, "{line}");
    assert_eq!(text(&line, "kind"), "delta", "{line}");
    assert_eq!(family(root), [root, other]);
    schedule.signal(Signal::TERM);
    schedule.wait().exits_with(143);
}

#[test]
fn a_child_that_cannot_be_handled_is_named_and_nothing_is_left() {
    let mut target = start(1);
    let other = child(&mut target, "idle");
    let traced = child(&mut target, "idle");
    let mut tracer = Target::start("bad_states", ["tracer", &traced.to_string()]);
    let store = TestStore::new();
    for more in [
        &["--tree"][..],
        &["--tree", "--every", "5ms"],
        &["--tree", "--leave", "stopped"],
    ] {
        let outcome = store.try_checkpoint(target.pid(), more);
        let outcome = outcome.refused(&format!("process {traced}"));
        assert!(outcome.stderr.contains(&tracer.pid_text()), "{outcome:#?}");
        for pid in [target.pid(), other, traced] {
            assert_eq!(left_in(pid), 0, "process {pid}");
        }
    }
    target.ask("rounds");
    assert!(tracer.is_alive());
    drop(tracer);
    exactly(&store, target.pid(), &[], "when nobody traces");
}

#[test]
fn all_are_killed_if_so_wanted() {
    let mut target = start(1);
    target.ask("worker 2");
    let store = TestStore::new();
    let all = family(target.pid());
    assert_eq!(all.len(), 5);
    let report = store.checkpoint_and_kill(target.pid(), &["--tree"]);
    assert_eq!(number(&report, "processes"), 5);
    assert!(!target.wait().success());
    let since = Instant::now();
    let lives = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z")
    };
    while all.iter().any(lives) {
        assert!(since.elapsed() < Duration::from_secs(60), "{all:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    store.assert_sound();
}

#[test]
fn a_family_survives_that_pagetide_is_killed() {
    let mut random = seed("a_family_survives_that_pagetide_is_killed");
    let kills: u64 = from_environment("PAGETIDE_KILLS", 40) / 4;
    let mut target = start(4);
    target.ask("worker 2");
    let store = TestStore::new();
    let since = Instant::now();
    store.checkpoint(target.pid(), &["--tree"]);
    let usual = since.elapsed();
    let mut early = 0;
    for round in 0..kills {
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let share = f64::from((random >> 40) as u32) / f64::from(1 << 24);
        let more: &[&str] = match round % 2 {
            0 => &["--tree"],
            _ => &["--tree", "--every", "5ms"],
        };
        let mut checkpoints = background(store.checkpoint_words(target.pid(), more));
        std::thread::sleep(usual.mul_f64(share) + Duration::from_micros(200));
        early += u64::from(checkpoints.is_running());
        checkpoints.signal_if_running(Signal::KILL);
        drop(checkpoints.wait());
        let_run(&mut target);
        store.assert_sound();
        let (_, all) = exactly(&store, target.pid(), &[], &format!("after kill {round}"));
        assert_eq!(all.len(), 5);
    }
    println!("{kills} kills, {early} of them while it ran");
    assert!(early > 0, "all came too late");
}

/// The image of a member can be taken out alone.
#[test]
fn one_process_of_a_tree_as_a_core() {
    let mut target = start(1);
    let idle = child(&mut target, "idle");
    let store = TestStore::new();
    store.checkpoint(target.pid(), &["--tree"]);
    let core = store.scratch().join("core");
    let core = core.to_str().expect("a plain path");
    let words = ["export", &store.text(), "--format", "core", "-o", core];
    pagetide(words).refused("--pid");
    pagetide(words.into_iter().chain(["--pid", "1"])).refused(&idle.to_string());
    let all = ["--all", "--pid", &idle.to_string()];
    pagetide(words.into_iter().chain(all)).done();
    let bytes = std::fs::read(core).expect("a core");
    assert_eq!(&bytes[..4], b"\x7fELF");
    let pages = store
        .images(1)
        .remove(&idle)
        .as_ref()
        .map(Image::page_count);
    assert!(bytes.len() > pages.expect("its image") * 4096);
}

/// A shell that does nothing but make children, which execute programs and end.
const STORM: &str = "echo ready; while :; do /bin/true; (:); /bin/true | /bin/true; done";

#[test]
fn a_shell_that_forks_all_the_time_is_looked_at_and_taken() {
    let target = Target::start_by(std::process::Command::new("/bin/sh").args(["-c", STORM]));
    let pid = target.pid();
    for _ in 0..40 {
        let found = pagetide(["inspect", "--tree", &pid.to_string(), "--json"]).done();
        assert!(number(&found.json(), "processes") >= 1);
    }
    let store = TestStore::new();
    for _ in 0..5 {
        store.checkpoint(pid, &["--tree"]);
    }
    let words = store.checkpoint_words(pid, &["--tree", "--every", "20ms", "--count", "30"]);
    assert_eq!(pagetide(words).done().lines().len(), 30);
    store.assert_sound();
}
