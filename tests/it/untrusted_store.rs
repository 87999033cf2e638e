//! Prevents that a store, or a directory on the way to one, that somebody else can write to makes pagetide read, write,
//! remove or run what it should not.

use crate::bad::{contents, fails, is_root};
use pagetide_tests::{Outcome, Scratch, Subject, Target, number, pagetide};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SOMEBODY: u32 = 65534;

fn shown(path: &Path) -> String {
    path.to_str().expect("a plain path").to_owned()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("change permissions");
}

/// A store with two snapshots of the target, two directories below the scratch one.
fn filled(target: &mut Target, scratch: &Scratch) -> PathBuf {
    let way = scratch.join("way");
    fs::create_dir_all(&way).expect("make a directory");
    let store = way.join("store");
    for _ in 0..2 {
        let words = ["checkpoint", &target.pid_text(), "--store", &shown(&store)];
        pagetide(words).done();
        target.ask("noise 1 3 5");
    }
    store
}

/// All commands that act on what is in a store.
fn acting(store: &Path, target: &Target, more: &[&str]) -> Vec<Outcome> {
    let out = format!("{}-out", shown(store));
    let (store, pid) = (shown(store), target.pid_text());
    let calls: [&[&str]; 6] = [
        &["checkpoint", &pid, "--store", &store],
        &["run", "--store", &store, "--every", "1s", "--add"],
        &["rollback", &pid, &store, "--at", "1"],
        &["export", &store, "--format", "raw", "-o", &out],
        &["export", &store, "--format", "core", "-o", &out],
        &["restore", &store, "--dry-run"],
    ];
    let outcomes = calls.iter().map(|call| {
        let mut words = [call, more].concat();
        if call[0] == "run" {
            words.extend(["--", "true"]);
        }
        let outcome = pagetide(words);
        fs::remove_dir_all(&out)
            .or_else(|_| fs::remove_file(&out))
            .ok();
        outcome
    });
    outcomes.collect()
}

/// Itself, if it was not refused: a list of paths tells by its exit code that the target has a pipe to a process outside.
#[track_caller]
fn acted(outcome: Outcome) -> Outcome {
    if outcome.stdout.contains("outside-pipe") {
        outcome.exits_with(3)
    } else {
        outcome.done()
    }
}

fn tells(store: &Path) {
    let store = shown(store);
    for call in ["log", "show", "verify"] {
        pagetide([call, &store]).done();
    }
    pagetide(["diff", &store, "1", "2"]).done();
}

#[test]
fn commands_that_act_refuse_what_others_can_write_to() {
    if !is_root("a store that others can write to") {
        return;
    }
    let mut target = Target::start("bad_states", ["plain"]);
    let scratch = Scratch::new();
    let store = filled(&mut target, &scratch);
    let way = scratch.join("way");
    let before = contents(&store);
    let refused = |named: &Path, path: &Path| {
        for outcome in acting(path, &target, &[]) {
            let says = [&*shown(named), "others can write to it", "--trust-store"];
            fails(&outcome, 3, &says);
        }
        tells(path);
        assert_eq!(contents(&store), before);
    };
    for path in [&way, &store, &store.join("snapshots")] {
        for mode in [0o770, 0o707] {
            set_mode(path, mode);
            refused(path, &store);
        }
        set_mode(path, 0o700);
        chown(path, Some(SOMEBODY), None).expect("change the owner");
        refused(path, &store);
        chown(path, Some(0), None).expect("change the owner");
    }
    // The store's own directory is not one in which others may leave files, sticky or not.
    set_mode(&store, 0o1777);
    refused(&store, &store);
    set_mode(&store, 0o700);
    // A link on the way is chosen by its owner, and what it leads through counts.
    let link = scratch.join("link");
    symlink("way", &link).expect("make a link");
    lchown(&link, Some(SOMEBODY), None).expect("change the owner");
    refused(&link, &link.join("store"));
    lchown(&link, Some(0), None).expect("change the owner");
    set_mode(&way, 0o777);
    refused(&way, &link.join("store"));
    let detour = scratch.join("link").join("..").join("way").join("store");
    refused(&way, &detour);

    // Who knows better says so, and it is told.
    for outcome in acting(&store, &target, &["--trust-store"]) {
        let outcome = acted(outcome);
        let says = format!("--trust-store: who can write to {}", shown(&store));
        assert!(outcome.stderr.contains(&says), "{outcome:#?}");
    }
    // Names in a directory with the sticky bit belong to their owners.
    set_mode(&way, 0o1777);
    acting(&store, &target, &[])
        .into_iter()
        .for_each(|outcome| {
            acted(outcome);
        });
    pagetide(["verify", &shown(&store)]).done();
}

#[test]
fn no_link_in_a_store_is_followed() {
    let mut target = Target::start("bad_states", ["plain"]);
    let scratch = Scratch::new();
    let store = filled(&mut target, &scratch);
    let (victim, aside) = (scratch.join("victim"), scratch.join("aside"));
    let precious = "of great value, and longer than a note of a lock would be, for sure";
    let attempt = |name: &str, calls: &[&[&str]]| {
        for link in [true, false] {
            let path = store.join(name);
            let was_there = path.symlink_metadata().is_ok();
            if was_there {
                fs::rename(&path, &aside).expect("move it aside");
            }
            fs::write(&victim, precious).expect("write a file");
            match (link, name) {
                (true, "snapshots") => symlink(&aside, &path).expect("make a link"),
                (true, _) => symlink(&victim, &path).expect("make a link"),
                (false, "lock") => fs::hard_link(&victim, &path).expect("make a name"),
                (false, _) => {
                    let made = Command::new("mkfifo").arg(&path).status();
                    assert!(made.expect("run mkfifo").success());
                }
            }
            for call in calls {
                for more in [&[][..], &["--trust-store"]] {
                    let takes_it = !["log", "show", "verify"].contains(&call[0]);
                    if !takes_it && !more.is_empty() {
                        continue;
                    }
                    let outcome = pagetide([call, more].concat());
                    fails(&outcome, 3, &[&shown(&path)]);
                }
            }
            assert_eq!(fs::read_to_string(&victim).expect("it is there"), precious);
            fs::remove_file(&path).expect("remove it");
            if was_there {
                fs::rename(&aside, &path).expect("move it back");
            }
        }
    };
    let (path, pid) = (shown(&store), target.pid_text());
    let out = shown(&scratch.join("out"));
    let checkpoint: &[&str] = &["checkpoint", &pid, "--store", &path];
    let rollback: &[&str] = &["rollback", &pid, &path];
    let export: &[&str] = &["export", &path, "--format", "raw", "-o", &out];
    let readers: [&[&str]; 2] = [&["show", &path], &["verify", &path]];
    attempt("lock", &[checkpoint]);
    attempt("snapshots/0000000009.partial", &[checkpoint]);
    for name in ["pagetide-store", "snapshots", "snapshots/0000000002.snap"] {
        attempt(name, &[rollback, export, readers[0], readers[1]]);
    }
    assert!(!Path::new(&out).exists());
    assert!(target.is_alive());
    pagetide(checkpoint).done();
    pagetide(["verify", &path]).done();
}

/// How long stores are exchanged while commands act on them.
fn race() -> Duration {
    let seconds = std::env::var("PAGETIDE_RACE_SECONDS");
    let seconds = seconds.map_or(6, |text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds)
}

/// A process that does nothing, in a store; it is killed.
fn asleep(store: &Path) -> Subject {
    let mut subject = Subject::start(Command::new("sleep").arg("600"), Scratch::new());
    let pid = subject.pid();
    let words = ["checkpoint", &pid.to_string(), "--store", &shown(store)];
    pagetide(words).done();
    subject.kill();
    subject
}

/// Exchanges two directories until it is dropped, and puts them back then.
struct Exchanging {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Exchanging {
    fn start(one: PathBuf, other: PathBuf) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        let exchange = move || {
            renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).expect("exchange");
        };
        let thread = std::thread::spawn(move || {
            let mut exchanges = 0;
            while !is_over.load(Ordering::Relaxed) || exchanges % 2 == 1 {
                exchange();
                exchanges += 1;
                std::thread::sleep(Duration::from_micros(exchanges % 7 * 20));
            }
            exchanges
        });
        Self {
            over,
            thread: Some(thread),
        }
    }

    fn end(&mut self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take();
        thread.map_or(0, |thread| thread.join().expect("it exchanges"))
    }
}

impl Drop for Exchanging {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_store_that_is_exchanged_all_the_time() {
    if !is_root("a store of somebody else") {
        return;
    }
    // Somebody else's directory stands where ours does, every other moment, with a store in it that is as sound as ours.
    let scratch = Scratch::new();
    let (ours, theirs) = (scratch.join("way"), scratch.join("other"));
    fs::create_dir(&ours).expect("make a directory");
    fs::create_dir(&theirs).expect("make a directory");
    let store = ours.join("store");
    let our_process = asleep(&store);
    let their_process = asleep(&theirs.join("store"));
    chown(&theirs, Some(SOMEBODY), None).expect("change the owner");
    let mut target = Target::start("bad_states", ["plain"]);
    let before = contents(&theirs);
    let (mut done, mut refused) = (0, 0);
    let mut exchanging = Exchanging::start(ours.clone(), theirs.clone());
    let until = Instant::now() + race();
    let path = shown(&store);
    while Instant::now() < until || done == 0 || refused == 0 {
        let outcome = pagetide(["restore", &path, "--at", "1", "--detach", "--json"]);
        if outcome.code == Some(0) {
            let pid = i32::try_from(number(&outcome.json(), "pid")).expect("a process id");
            assert_eq!(pid, our_process.pid(), "not {}", their_process.pid());
            let pid = Pid::from_raw(pid).expect("a process id");
            kill_process(pid, Signal::KILL).expect("kill it");
            waitpid(Some(pid), WaitOptions::empty()).expect("it was adopted");
        }
        let words = ["checkpoint", &target.pid_text(), "--store", &path, "--add"];
        let checkpoint = pagetide(words);
        for outcome in [outcome, checkpoint] {
            match outcome.code {
                Some(0) => done += 1,
                _ => {
                    let says = [&*shown(&ours), "others can write to it", "owner 65534"];
                    fails(&outcome, 3, &says);
                    refused += 1;
                }
            }
        }
    }
    let exchanges = exchanging.end();
    println!("{exchanges} exchanges: {done} calls were done, {refused} were refused");
    assert_eq!(contents(&theirs), before, "nothing of theirs has changed");
    let verified = pagetide(["verify", &path, "--json"]).done().json();
    assert_eq!(verified["ok"], true);
    assert!(target.is_alive());
}
