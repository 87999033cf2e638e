//! Prevents that a program under checkpoints waits for longer than it is told to: a stop interrupts a call, and its timeout
//! begins anew. And that a wait ends early, with another result, or with another register than alone.
//!
//! The target counts how often each of its waits is over, and ends at once if one says something else or comes early.

use pagetide_tests::{
    Scratch, Subject, Target, TestStore, background, number, pagetide_path, skipped,
};
use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

/// How often each wait was over, and when it was for the first time, in milliseconds of the monotonic clock.
fn ticks(target: &mut Target) -> BTreeMap<String, (u64, u64)> {
    let line = target.ask("report");
    let words = line.split_whitespace().map(|word| {
        let (name, numbers) = word.split_once('=').unwrap_or_else(|| panic!("{line}"));
        let (count, end) = numbers.split_once('@').unwrap_or_else(|| panic!("{line}"));
        let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{line}"));
        (name.to_owned(), (number(count), number(end)))
    });
    words.collect()
}

/// How long each wait of the targets is, in milliseconds.
const WAIT_MS: &str = "500";
/// So often it is tried. A wait begins anew if a loaded machine takes our thread from its processor in the moment between the
/// last look at the sleeper and its interruption; who loses a wait at each stop loses it at each try.
const TRIES: usize = 3;

/// The promise: under checkpoints each wait of 500 ms is over at least 9 times in 6 s, of the 12 times that it is without.
/// What a loaded machine does to waits it does without us, too, so the 12 are counted: by the same program, in the
/// same time, which nobody stops.
fn times_go_on(take: impl Fn(&mut Target, &TestStore)) {
    pagetide_path();
    for left in (0..TRIES).rev() {
        let mut target = Target::start("limits", [WAIT_MS]);
        let mut alone = Target::start("limits", [WAIT_MS]);
        take(&mut target, &TestStore::new());
        let (under, alone) = (ticks(&mut target), ticks(&mut alone));
        assert!(!under.is_empty() && under.len() == alone.len(), "{under:?}");
        let short = alone.iter().find(|&(name, (alone, _))| {
            assert!(*alone >= 8, "{name} was over {alone} times alone");
            under[name].0 * 12 < alone * 9
        });
        let answer = target.ask("wake");
        let numbers: Vec<u64> = answer
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        assert_eq!(numbers.len(), 2, "{answer}");
        assert!(numbers.iter().all(|woken| *woken > 0), "{answer}");
        match short {
            None => return,
            Some((name, (times, _))) => assert!(
                left > 0,
                "{name} was over {} times, and {times} alone: {under:?}",
                under[name].0
            ),
        }
    }
}

/// Every kind of wait there is, stopped more often than it lasts.
#[test]
fn t34_waits_end_when_they_are_due_under_a_schedule() {
    times_go_on(|target, store| {
        let more = ["--every", "300ms", "--count", "20"];
        let mut command = background(store.checkpoint_words(target.pid(), &more));
        for _ in 0..20 {
            command.next_id();
            target.ask("wake");
        }
        command.wait().done();
    });
}

#[test]
fn t34_waits_end_when_they_are_due_between_single_checkpoints() {
    for backend in ["auto", "rehash"] {
        times_go_on(|target, store| {
            let since = Instant::now();
            for number in 1..=15 {
                store.checkpoint(target.pid(), &["--backend", backend]);
                target.ask("wake");
                let next = since + number * Duration::from_millis(400);
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
    }
}

/// An interval that is longer than that of the checkpoints, in a real program.
#[test]
fn t34_a_timer_of_node_goes_on() {
    let version = Command::new("node").arg("--version").output();
    if !version.is_ok_and(|output| output.status.success()) {
        skipped("t34_a_timer_of_node_goes_on", "there is no node");
        return;
    }
    let scratch = Scratch::new();
    let log = scratch.join("log");
    let program = format!(
        "const since = Date.now(); let ticks = 0;
        setInterval(() => {{
            ticks += 1;
            require('fs').appendFileSync({log:?}, `${{Date.now() - since}}\\n`);
            if (ticks === 6) process.exit(0);
        }}, 750);"
    );
    let store = TestStore::new();
    let words = ["run", "--every", "500ms", "--store"].map(str::to_owned);
    let words = words.into_iter().chain([store.text()]);
    let command = ["--", "node", "-e", &program].map(str::to_owned);
    background(words.chain(command)).wait().done();
    let log = std::fs::read_to_string(&log).expect("read what it wrote");
    let ticks: Vec<u64> = log
        .lines()
        .map(|line| line.parse().expect("a time"))
        .collect();
    assert_eq!(ticks.len(), 6, "{ticks:?}");
    let (first, last) = (ticks[0], ticks[5]);
    // 3750 ms alone; with a timeout that begins anew at each stop it is for ever.
    assert!((3700..3750 * 8 / 7).contains(&(last - first)), "{ticks:?}");
}

fn monotonic_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec * 1000 + now.tv_nsec / 1_000_000).expect("after the boot")
}

/// A process that comes back sleeps for what was left.
#[test]
fn t35_a_restored_sleep_goes_on_with_what_was_left() {
    const WHOLE_MS: u64 = 10_000;
    let kinds = [
        "epoll_wait",
        "epoll_pwait2",
        "sigtimedwait",
        "futex",
        "nanosleep",
        "nanosleep_again",
        "clock_nanosleep",
        "poll",
        "ppoll",
        "select",
        "sealed_select",
    ];
    let scratch = Scratch::new();
    let log = scratch.join("ends");
    let mut command = Command::new(pagetide_tests::compiled("limits"));
    command.arg(WHOLE_MS.to_string()).args(kinds);
    command.env("LIMITS_LOG", &log);
    pagetide_path();
    let started = monotonic_ms();
    let mut subject = Subject::start(&command, scratch);
    // More than one stop on the way, of which each must count.
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(2500));
        let before = monotonic_ms();
        let report = subject.checkpoint(&[]).remove(0);
        assert!(number(&report, "id") > 0);
        assert!(
            before - started < WHOLE_MS,
            "the machine is too slow for this test"
        );
    }
    let taken = monotonic_ms();
    subject.kill();
    let restored = monotonic_ms();
    subject.restore(&[]);
    let runs = monotonic_ms();
    let ends = loop {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        if log.lines().count() >= kinds.len() {
            break log;
        }
        assert!(monotonic_ms() - runs < 60_000, "{log}");
        std::thread::sleep(Duration::from_millis(100));
    };
    for line in ends.lines() {
        let (name, end) = line.split_once(' ').unwrap_or_else(|| panic!("{line}"));
        let end: u64 = end.parse().unwrap_or_else(|_| panic!("{line}"));
        let least = restored + WHOLE_MS - (taken - started);
        assert!(
            end >= least,
            "{name} was over at {end}, {} ms early",
            least - end
        );
        // The whole time anew would be 10 s.
        assert!(
            end < runs + 8000,
            "{name} was over {} ms after the restore",
            end - runs
        );
    }
}
