//! Prevents that a signal meant for a process of a snapshot reaches somebody else who has its number by then.

use crate::bad::is_root;
use pagetide_tests::{Background, Target, TestStore, accepting, background};
use rustix::process::Signal;
use std::fs;
use std::time::{Duration, Instant};

/// So long anything that is waited for may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until most of the snapshot under way is still to be written, and the process stands no more by us.
fn wait_until_it_is_stored(store: &TestStore, running: &mut Background) {
    let since = Instant::now();
    let partial = store.path().join("snapshots/0000000001.partial");
    while fs::metadata(&partial).map_or(0, |file| file.len()) < 1 << 16 {
        assert!(running.is_running(), "it ended before pages were stored");
        assert!(since.elapsed() < PATIENCE, "no pages are stored");
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// The state letter of a process.
fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[test]
fn whoever_has_the_number_of_a_process_that_was_to_be_killed() {
    if !is_root("a number of one's choice") {
        return;
    }
    for (leave, succeeds) in [("killed", true), ("stopped", false)] {
        let store = TestStore::new();
        // At this level it takes seconds to store what the process had.
        let mut target = Target::start("writer", ["48"]);
        let pid = target.pid();
        let accepted = accepting(pid);
        let more = ["--mode", "stop", "--level", "19", "--leave", leave];
        let more = more.into_iter().chain(accepted.iter().map(String::as_str));
        let more: Vec<&str> = more.collect();
        let mut running = background(store.checkpoint_words(pid, &more));
        wait_until_it_is_stored(&store, &mut running);
        target.signal(Signal::KILL);
        target.wait();
        let other = Target::start("occupy", [pid.to_string()]);
        assert!(running.is_running(), "the snapshot was durable too early");
        if !succeeds {
            // What is stopped by a signal of its own must not be let go when the snapshot comes to nothing.
            let number = rustix::process::Pid::from_raw(pid).expect("a process id");
            rustix::process::kill_process(number, Signal::STOP).expect("stop it");
            while state(pid) != Some('T') {
                std::thread::sleep(Duration::from_millis(1));
            }
            running.signal(Signal::TERM);
        }
        let outcome = running.wait();
        if succeeds {
            outcome.done()
        } else {
            outcome.exits_with(143)
        };
        // A signal would have been delivered by now.
        std::thread::sleep(Duration::from_millis(50));
        if succeeds {
            assert_eq!(state(pid), Some('S'), "it was killed")
        } else {
            assert_eq!(state(pid), Some('T'), "it was let go")
        }
        drop(other);
    }
}
