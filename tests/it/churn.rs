//! Prevents that a snapshot differs from the process in any region or byte, whatever the process does
//! to its memory between two snapshots, and that an old snapshot changes when new ones are taken.

use pagetide_tests::{Scratch, Target, TestStore, background, epochs, list, number, seed, text};
use rustix::process::Signal;
use std::time::Duration;

/// A target that changes its memory in all ways, for ever.
fn churning(seed: u64, files: &Scratch) -> Target {
    let directory = files.path().to_str().expect("a plain path");
    Target::start("churn", [&seed.to_string(), directory])
}

/// Lets the target work, for a time that differs from epoch to epoch.
fn let_it_work(seed: u64, epoch: u64) {
    let mixed = (seed ^ epoch).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
    std::thread::sleep(Duration::from_millis(2 + mixed % 40));
}

/// One command a snapshot; each export equals what the stopped process held, also at the end.
pub fn one_shot(name: &str, count: usize, modes: &[&[&str]]) {
    let seed = seed(name);
    let (files, store) = (Scratch::new(), TestStore::new());
    let mut target = churning(seed, &files);
    let mut digests = Vec::new();
    for epoch in 0..count as u64 {
        let_it_work(seed, epoch);
        let frozen = target.freeze();
        let more = modes[epoch as usize % modes.len()];
        let (report, truth) = store.checkpoint_exactly(&frozen, more, epoch % 2 == 1);
        let kind = if epoch == 0 { "full" } else { "delta" };
        assert_eq!(text(&report, "kind"), kind, "{report}");
        assert!(truth.page_count() > 500, "the target does nothing");
        digests.push((number(&report, "id"), truth.digest()));
    }
    assert!(target.is_alive());
    let done: u64 = target.ask("count").parse().expect("a number");
    println!("{name}: {count} epochs, {done} operations");
    assert!(done > count as u64, "the target does nothing");
    for (id, digest) in digests {
        assert_eq!(
            store.image(id).digest(),
            digest,
            "snapshot {id} has changed"
        );
    }
    store.assert_sound();
}

#[test]
fn one_shot_snapshots_equal_the_process() {
    one_shot("one_shot", epochs(48), &[&[]]);
}

#[test]
fn snapshots_in_stop_and_precopy_mode_equal_the_process() {
    let modes: [&[&str]; 2] = [&["--mode", "stop"], &["--mode", "precopy"]];
    one_shot("modes", epochs(40), &modes);
}

#[test]
fn snapshots_by_comparison_equal_the_process() {
    one_shot("rehash", epochs(40), &[&["--backend", "rehash"]]);
}

/// Snapshots that are taken while the process runs cannot be compared with it. So it is stopped at
/// times: a snapshot that began and ended in such a time is what the stopped process holds.
fn scheduled(name: &str, more: &[&str]) {
    let seed = seed(name);
    let (files, store) = (Scratch::new(), TestStore::new());
    let mut target = churning(seed, &files);
    let words = [&["--every", "30ms"], more].concat();
    let mut checkpoints = background(store.checkpoint_words(target.pid(), &words));
    let mut digests = Vec::new();
    let mut seen = 0;
    let first = checkpoints.next_id();
    while seen < epochs(48) as u64 {
        let_it_work(seed, seen);
        let frozen = target.freeze();
        let stop = digests.len();
        let early = (stop % 2 == 1).then(|| checkpoints.image_of(&frozen));
        let id = store.taken_from_now_on(&mut checkpoints);
        let truth = early.unwrap_or_else(|| checkpoints.image_of(&frozen));
        frozen.assert_still_stopped();
        drop(frozen);
        store.assert_equals(id, &truth, &format!("stop {stop}"));
        digests.push((id, truth.digest()));
        seen = id - first + 1;
    }
    checkpoints.signal(Signal::INT);
    checkpoints.wait().exits_with(130);
    let kinds: Vec<_> = store
        .log()
        .iter()
        .map(|line| line["kind"].clone())
        .collect();
    assert_eq!(kinds[0], "full");
    assert!(kinds[1..].iter().all(|kind| kind == "delta"), "{kinds:?}");
    println!(
        "{name}: {} snapshots, {} compared",
        kinds.len(),
        digests.len()
    );

    // Others go on where the schedule ended.
    for epoch in 0..4 {
        let_it_work(seed, epoch);
        let frozen = target.freeze();
        let (report, truth) = store.checkpoint_exactly(&frozen, more, epoch % 2 == 1);
        assert_eq!(list(&report, "not_tracked").len(), 0, "{report}");
        digests.push((number(&report, "id"), truth.digest()));
    }
    for (id, digest) in digests {
        assert_eq!(
            store.image(id).digest(),
            digest,
            "snapshot {id} has changed"
        );
    }
    assert!(target.is_alive());
    store.assert_sound();
}

#[test]
fn scheduled_snapshots_equal_the_process() {
    scheduled("every", &[]);
}

#[test]
fn scheduled_snapshots_by_precopy_equal_the_process() {
    scheduled("every_precopy", &["--mode", "precopy"]);
}
