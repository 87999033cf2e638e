//! Prevents that a disk that fills up in the middle of a snapshot costs anything but that snapshot: the
//! process, what it has written since the last one, or the use of the store.

use crate::bad::{Condition, Mounted, assert_no_leftovers, checkpoint_exactly, fails, is_root};
use pagetide_tests::{Outcome, Target, TestStore, number, pagetide, text};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const FULL: [&str; 2] = ["o space left", "free some space"];

/// A store on a small file system of its own, and something to fill that with.
struct SmallDisk {
    mounted: Mounted,
    store: TestStore,
}

impl SmallDisk {
    fn of(size: &str) -> Self {
        let store = TestStore::new();
        Self {
            mounted: Mounted::on(&store.path(), &format!("{size},mode=700")),
            store,
        }
    }

    /// Leaves `free` bytes of the disk, by a large file in the store. That is returned.
    fn leave(&self, free: u64, name: &str) -> PathBuf {
        let stat = rustix::fs::statvfs(self.store.path()).expect("look at the file system");
        let available = stat.f_bavail * stat.f_frsize;
        let length = available.checked_sub(free).expect("there is less");
        let ballast = self.store.path().join(name);
        let bytes = vec![1; usize::try_from(length).expect("a size")];
        fs::write(&ballast, bytes).expect("fill the disk");
        ballast
    }

    /// Removes such a file. Whoever was just started by another test may still have it open, until it runs its program.
    fn free(&self, ballast: PathBuf) {
        let length = fs::metadata(&ballast).expect("look at the file").len();
        fs::remove_file(ballast).expect("free the space");
        let since = Instant::now();
        let is_free = || {
            let stat = rustix::fs::statvfs(self.store.path()).expect("look at the file system");
            stat.f_bavail * stat.f_frsize >= length / 2
        };
        while !is_free() {
            assert!(
                since.elapsed() < Duration::from_secs(60),
                "nothing is freed"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The target is as before, nothing is left over, and the store holds as many snapshots as before.
#[track_caller]
fn cost_nothing(outcome: &Outcome, disk: &SmallDisk, snapshots: usize) {
    fails(outcome, 1, &FULL);
    assert_no_leftovers(&disk.store);
    assert_eq!(disk.store.log().len(), snapshots);
    disk.store.assert_sound();
}

#[test]
fn a_full_snapshot_that_does_not_fit() {
    if !is_root("full disk, full snapshot") {
        return;
    }
    let modes: [&[&str]; 4] = [
        &["--mode", "stop"],
        &["--mode", "precopy"],
        &["--mode", "stop", "--buffer", "4"],
        &["--backend", "rehash"],
    ];
    for more in modes {
        let mut target = Target::start("bad_states", ["plain"]);
        let before = Condition::of(&target);
        let disk = SmallDisk::of("size=2m");
        let outcome = disk.store.try_checkpoint(target.pid(), more);
        cost_nothing(&outcome, &disk, 0);
        before.assert_is_again(&target);
        target.ask("noise 1 1 1");
        let words = [more, &["--every", "5ms", "--max-failures", "2"]].concat();
        let outcome = disk.store.try_checkpoint(target.pid(), &words);
        cost_nothing(&outcome, &disk, 0);
        before.assert_is_again_after_work(&target);
        disk.mounted.remount("size=64m");
        let report = checkpoint_exactly(&disk.store, &target, more);
        assert_eq!(text(&report, "kind"), "full", "{report}");
        disk.store.assert_sound();
    }
}

#[test]
fn a_delta_that_does_not_fit() {
    if !is_root("full disk, delta") {
        return;
    }
    let modes: [&[&str]; 4] = [
        &["--mode", "stop"],
        &["--mode", "precopy"],
        &["--mode", "precopy", "--buffer", "4"],
        &["--backend", "rehash"],
    ];
    for more in modes {
        let mut target = Target::start("bad_states", ["plain"]);
        let disk = SmallDisk::of("size=64m");
        disk.store.checkpoint(target.pid(), more);
        let ballast = disk.leave(300_000, "ballast");
        for attempt in 0..3 {
            // Different pages each time: those of every failed attempt must be in the one that fits.
            target.ask(&format!("noise {} 300 {attempt}", attempt * 300));
            let before = Condition::of(&target);
            let outcome = disk.store.try_checkpoint(target.pid(), more);
            cost_nothing(&outcome, &disk, 1);
            before.assert_is_again(&target);
        }
        disk.free(ballast);
        let report = checkpoint_exactly(&disk.store, &target, more);
        assert_eq!(text(&report, "kind"), "delta", "{report}");
        assert_eq!(number(&report, "parent"), 1, "{report}");
        target.ask("noise 4 2 1");
        let report = checkpoint_exactly(&disk.store, &target, more);
        assert_eq!(text(&report, "kind"), "delta", "{report}");
        disk.store.assert_sound();
    }
}

#[test]
fn a_store_that_could_not_be_made_for_lack_of_space_can_be_made_later() {
    if !is_root("full disk, new store") {
        return;
    }
    let target = Target::start("bad_states", ["plain"]);
    let before = Condition::of(&target);
    let disk = SmallDisk::of("size=64m");
    let ballast = disk.leave(0, "lock");
    let outcome = disk.store.try_checkpoint(target.pid(), &[]);
    fails(&outcome, 1, &FULL);
    before.assert_is_again(&target);
    disk.free(ballast);
    let report = checkpoint_exactly(&disk.store, &target, &[]);
    assert_eq!(text(&report, "kind"), "full", "{report}");
    // And with a store, but no room even for the note of who holds its lock.
    let ballast = disk.leave(0, "ballast");
    let outcome = disk.store.try_checkpoint(target.pid(), &[]);
    fails(&outcome, 1, &FULL);
    disk.free(ballast);
    let report = checkpoint_exactly(&disk.store, &target, &[]);
    assert_eq!(text(&report, "kind"), "delta", "{report}");
    pagetide(["detach", &target.pid_text()]).done();
    before.assert_is_again(&target);
}
