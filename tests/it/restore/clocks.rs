//! Prevents that a timer is late for ever, early, or not there, or that its signal comes before the process goes on; and that a program
//! that remembers a time since boot stands still, or runs after it, when that is another one.

use pagetide_tests::{Steps, Subject, compiled, cycle, skipped};
use std::path::Path;
use std::time::Duration;

const SCHEDULE: [&str; 4] = ["--every", "40ms", "--count", "3"];
/// Seconds, by which clocks are ahead of those of the machine.
const AHEAD: &str = "100000";

#[test]
fn timers() {
    let mut subject = Subject::target("clocks", &[]);
    cycle(&mut subject, &mut Steps::new(5), &SCHEDULE);
}

fn has_time_namespaces(test: &str) -> bool {
    let has = Path::new("/proc/self/timens_offsets").exists();
    if !has {
        skipped(test, "no CONFIG_TIME_NS");
    }
    has
}

/// `absolute.c`, with clocks that are so many seconds ahead.
fn absolute(ahead: &str) -> Subject {
    Subject::target("absolute", &[ahead])
}

#[test]
fn t94_clocks_go_on_in_a_time_namespace_and_in_none() {
    let test = "t94_clocks_go_on_in_a_time_namespace_and_in_none";
    if !has_time_namespaces(test) {
        return;
    }
    // Taken with clocks that are ahead, and restored by somebody whose are not; and the other way round.
    cycle(&mut absolute(AHEAD), &mut Steps::new(5), &SCHEDULE);
    let program = compiled("absolute");
    let under = [program.to_str().expect("a plain path"), "under", AHEAD];
    let mut subject = absolute("0").restore_under(&under);
    cycle(&mut subject, &mut Steps::new(5), &SCHEDULE);
}

/// How long the first step took after a restore that came a second and a half after the end.
fn first_step(mut subject: Subject) -> Option<u64> {
    let log = subject.path("log");
    let read = || std::fs::read_to_string(&log).unwrap_or_default();
    subject.wait_until("steps", || read().lines().count() > 5);
    subject.checkpoint(&[]);
    subject.kill();
    let before = read().len();
    std::thread::sleep(Duration::from_millis(1500));
    subject.restore(&[]);
    let until = std::time::Instant::now() + Duration::from_secs(3);
    let line = loop {
        if let Some((line, _)) = read()[before..].split_once('\n') {
            break line.to_owned();
        }
        if std::time::Instant::now() > until {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let took = line
        .split_once("took ")
        .and_then(|(_, rest)| rest.strip_suffix(" ms"));
    Some(took.and_then(|took| took.parse().ok()).expect("a time"))
}

#[test]
fn after_a_reboot_clocks_go_on_from_where_they_were() {
    if !has_time_namespaces("after_a_reboot_clocks_go_on_from_where_they_were") {
        return;
    }
    // In the same boot the time has passed.
    let took = first_step(absolute("0")).expect("it goes on");
    assert!(took >= 1500, "{took} ms");
    let took = first_step(absolute(AHEAD)).expect("it goes on");
    assert!(took >= 1500, "{took} ms");
    // Whoever restores sees another boot, and a clock that says anything.
    let rebooted = |subject: Subject, ahead: &str| {
        let other = subject.path("boot_id");
        std::fs::write(&other, "00000000-1111-4222-8333-444444444444\n").expect("write");
        let mount = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
        let other = other.to_str().expect("a plain path").to_owned();
        let program = compiled("absolute");
        let program = program.to_str().expect("a plain path");
        subject.restore_under(&[
            "unshare", "--mount", "sh", "-c", mount, &other, program, "under", ahead,
        ])
    };
    for (taken, restored) in [("0", "0"), ("0", AHEAD), (AHEAD, "0")] {
        let took = first_step(rebooted(absolute(taken), restored)).expect("it goes on");
        assert!(took < 1000, "{taken} {restored}: {took} ms");
    }
    // Without, it stands still until the clock is where it was.
    let host = rebooted(absolute(AHEAD), "0").restore_with(&["--clock", "host"]);
    assert_eq!(first_step(host), None);
}
