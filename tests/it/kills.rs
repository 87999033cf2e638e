//! Prevents that a process under checkpoints is any worse off, or its store damaged, or a write lost,
//! when pagetide is killed at any moment.

use pagetide_tests::{Target, TestStore, background, from_environment, number, seed};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// A target that checks its own work, its store, and how long a snapshot of it takes.
fn begin() -> (Target, TestStore, Duration) {
    let store = TestStore::new();
    let target = Target::start("worker", ["2"]);
    let since = Instant::now();
    store.checkpoint(target.pid(), &[]);
    (target, store, since.elapsed())
}

#[test]
fn killed_at_random_moments() {
    let mut random = seed("killed_at_random_moments");
    let kills: u64 = from_environment("PAGETIDE_KILLS", 40);
    let (mut target, mut store, mut usual) = begin();
    let (mut early, mut late) = (0, 0);
    for round in 0..kills {
        if round > 0 && round % 10 == 0 {
            // To verify a store takes longer with each snapshot.
            (target, store, usual) = begin();
        }
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let share = f64::from((random >> 40) as u32) / f64::from(1 << 24);
        let more: &[&str] = match round % 2 {
            0 => &[],
            _ => &["--every", "5ms"],
        };
        let mut checkpoints = background(store.checkpoint_words(target.pid(), more));
        std::thread::sleep(usual.mul_f64(share * 1.3) + Duration::from_micros(200));
        if checkpoints.is_running() {
            early += 1
        } else {
            late += 1
        }
        checkpoints.signal_if_running(Signal::KILL);
        drop(checkpoints.wait());

        // It checks its own work and ends if anything is wrong with it.
        target.ask("progress");
        assert!(target.is_alive(), "round {round}");
        store.assert_sound();
        let frozen = target.freeze();
        // Tracking may have to begin again.
        let (report, _) = store.checkpoint_exactly(&frozen, &[], false);
        drop(frozen);
        assert_eq!(number(&report, "id"), store.log().len() as u64, "{report}");
    }
    target.ask("progress");
    assert!(target.is_alive());
    println!("{kills} kills: {early} while it ran, {late} after its end");
    assert!(early * 3 > kills, "most came too late: {early} of {kills}");
}
