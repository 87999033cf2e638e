//! Prevents that a name which a process, a store or a file system chose moves the cursor of a terminal, hides what is said, or
//! looks like another line of ours.

use pagetide_tests::{Outcome, Scratch, Subject, list, pagetide, text};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What must be in no output: control characters (but the end of a line), and what changes the direction of text.
fn is_deceiving(letter: char) -> bool {
    letter.is_control() && letter != '\n' || ('\u{202a}'..='\u{202e}').contains(&letter)
}

/// The output is plain, and each line begins with what it may begin with.
#[track_caller]
fn is_plain(outcome: &Outcome) {
    for all in [&outcome.stdout, &outcome.stderr] {
        assert!(!all.chars().any(is_deceiving), "{outcome:#?}");
        assert!(
            !all.lines().any(|line| line.trim() == FORGED),
            "{outcome:#?}"
        );
        assert!(
            !all.lines().any(|line| line.starts_with("process 1 is")),
            "{outcome:#?}"
        );
    }
}

const FORGED: &str = "/etc/shadow";
/// Directories of which the path pretends to be several lines, and more.
const DIRECTORY: &str = "a\n/etc/shadow\nprocess 1 is back\r\u{1b}[2K\u{9b}31m\u{202e}\\n";
/// A program; its name as a process has at most 15 bytes.
const PROGRAM: &str = "s\u{1b}[31m\u{202e}p";

fn shown(path: &Path) -> &str {
    path.to_str().expect("it is text")
}

/// A process whose program, directory and files have such names.
fn deceiver(scratch: Scratch) -> (Subject, PathBuf) {
    let directory = scratch.join(DIRECTORY);
    fs::create_dir_all(&directory).expect("make directories");
    let program = scratch.join(PROGRAM);
    fs::copy("/bin/sleep", &program).expect("copy a program");
    let mut command = Command::new(&program);
    command.arg("600").current_dir(&directory);
    (Subject::start(&command, scratch), program)
}

#[test]
fn nothing_that_is_printed_deceives() {
    let (mut subject, program) = deceiver(Scratch::new());
    let (pid, store) = (subject.pid().to_string(), subject.store().text());
    let directory = subject.path(DIRECTORY);
    let checkpoint = pagetide(["checkpoint", &pid, "--store", &store]).done();
    is_plain(&checkpoint);
    pagetide(["checkpoint", &pid, "--store", &store, "--full"]).done();
    let missing = format!("{}/{PROGRAM}", shown(&directory));
    let calls: [&[&str]; 12] = [
        &["log", &store],
        &["show", &store],
        &["verify", &store],
        &["diff", &store, "1", "2"],
        &["inspect", &pid],
        &["pages", &pid],
        &["restore", &store, "--dry-run"],
        // The process still has its number: its name is told.
        &["restore", &store, "--detach"],
        &["show", &missing],
        &["checkpoint", &pid, "--store", &missing],
        &[
            "export",
            &store,
            "--format",
            "raw",
            "-o",
            "/proc/self\n\u{1b}x/y",
        ],
        &["restore", &store, "--allow", &missing],
    ];
    for call in calls {
        let outcome = pagetide(call);
        is_plain(&outcome);
        let told = outcome.stdout.clone() + &outcome.stderr;
        assert!(!told.is_empty(), "{outcome:#?}");
    }
    // The list holds what is opened, a path a line.
    let listed = pagetide(["restore", &store, "--dry-run"]);
    let name = "s\\u{1b}[31m\\u{202e}p";
    let of_program = listed.stdout.lines().filter(|line| line.ends_with(name));
    assert_eq!(of_program.count(), 1, "{listed:#?}");
    assert!(
        listed
            .stdout
            .lines()
            .all(|line| line.starts_with(['/', 'c'])),
        "{listed:#?}"
    );
    // JSON says exactly what it is called.
    let json = pagetide(["restore", &store, "--dry-run", "--json"]);
    is_plain(&json);
    let json = json.json();
    let paths: Vec<&str> = list(&json, "paths")
        .iter()
        .filter_map(|path| path.as_str())
        .collect();
    assert!(paths.contains(&shown(&program)), "{paths:?}");
    assert!(paths.contains(&shown(&directory)), "{paths:?}");
    let json = pagetide(["show", &store, "--json"]);
    is_plain(&json);
    let json = json.json();
    let regions = list(&list(&json, "spaces")[0], "regions").iter();
    assert!(
        regions
            .map(|one| text(one, "name"))
            .any(|name| name == shown(&program))
    );

    // A file that is gone is named by the error.
    subject.kill();
    fs::remove_file(&program).expect("remove the program");
    let refused = pagetide(["restore", &store, "--detach"]).exits_with(3);
    is_plain(&refused);
    assert!(refused.stderr.contains(name), "{refused:#?}");

    // Who holds the lock is told by a note that anybody with the right to write can have written.
    let lock = File::options()
        .write(true)
        .open(subject.store().path().join("lock"));
    let lock = lock.expect("open the lock");
    fs::write(subject.store().path().join("lock"), "process 1\u{1b}[2J\n").expect("write a note");
    flock(&lock, FlockOperation::NonBlockingLockExclusive).expect("take the lock");
    let other = Subject::start(Command::new("sleep").arg("600"), Scratch::new());
    let locked = pagetide(["checkpoint", &other.pid().to_string(), "--store", &store]);
    is_plain(&locked.refused("locked by another writer"));
}
