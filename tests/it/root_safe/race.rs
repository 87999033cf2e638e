//! Directories and links are exchanged all the time while restores run: whatever a restore sees of them, nothing of the other side
//! is ever opened, changed, removed, or handed to the process.

use super::{OTHER, Owned, state_of};
use crate::bad::is_root;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::os::unix::fs::{lchown, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// So long in a usual run. `make endure` asks for more.
const SECONDS: u64 = 10;

/// Exchanges two names until it is told to end, and leaves them as they were.
fn exchange(one: &Path, two: &Path, ends: &AtomicBool, pause_us: &AtomicU32) {
    let swap = || renameat_with(CWD, one, CWD, two, RenameFlags::EXCHANGE).expect("exchange");
    while !ends.load(Ordering::Relaxed) {
        swap();
        std::thread::sleep(Duration::from_micros(
            pause_us.load(Ordering::Relaxed).into(),
        ));
        swap();
        // Restores are to succeed now and then.
        let pause = pause_us.load(Ordering::Relaxed) * 3;
        std::thread::sleep(Duration::from_micros(pause.into()));
    }
}

#[test]
fn nothing_of_the_other_side_is_used_while_directories_are_exchanged() {
    if !is_root("a race for directories") {
        return;
    }
    let mut random = pagetide_tests::seed("a race for directories");
    let seconds = pagetide_tests::from_environment("PAGETIDE_RACE_SECONDS", SECONDS);
    let mut owned = Owned::new(&[]);
    let (work, other) = (owned.work.clone(), owned.other.clone());
    let link = work.with_file_name("link");
    symlink(&other, &link).expect("make a link");
    lchown(&link, Some(OTHER), None).expect("change the owner");
    let before = state_of(&other);
    let (mut restored, mut refused) = (0, 0);
    let since = Instant::now();
    for round in 0.. {
        if since.elapsed() > Duration::from_secs(seconds) && restored > 0 && refused > 0 {
            break;
        }
        assert!(
            since.elapsed() < Duration::from_secs(60 + 10 * seconds),
            "{restored} {refused}"
        );
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let pause_us = AtomicU32::new(1 << (8 + (random >> 33) % 9));
        // In turn a directory of root's, and a link to it.
        let with = if round % 2 == 0 { &other } else { &link };
        let ends = AtomicBool::new(false);
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| exchange(&work, with, &ends, &pause_us));
            let outcome = owned.restore();
            ends.store(true, Ordering::Relaxed);
            outcome
        });
        match outcome.code {
            Some(0) => {
                owned.subject.is_back();
                owned.assert_has_its_own();
                owned.subject.kill();
                restored += 1;
            }
            Some(1 | 3) => {
                let gone = !Path::new(&format!("/proc/{}", owned.subject.pid())).exists();
                assert!(gone, "{outcome:#?}");
                refused += 1;
            }
            _ => panic!("{outcome:#?}"),
        }
        let names: Vec<String> = state_of(&other).into_keys().collect();
        assert!(names.iter().eq(before.keys()), "{names:?}");
    }
    println!("{restored} restored and {refused} refused");
    assert_eq!(state_of(&other), before);
    owned.works();
}
