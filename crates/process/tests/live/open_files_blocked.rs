//! Prevents: an open file that a restore would drop or bring back as something else without a word; and one that is refused
//! though nothing is in its way.

use crate::harness::{Target, patient, program, wait_until};
use pagetide_kernel::spawn::{Fate, Seed, spawn};
use pagetide_process::{Blocker, Kind, NewProcess, OpenFiles, ReopenChoices, ReopenError};
use rustix::fs::{MemfdFlags, OFlags, fcntl_getfl, fstat, memfd_create};
use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::isatty;
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// What each way of the target to be in the way is named.
const KINDS: [&str; 26] = [
    "userfaultfd",
    "io-uring",
    "perf-event",
    "bpf",
    "fanotify",
    "kvm",
    "tun",
    "device",
    "block-device",
    "terminal-master",
    "terminal",
    "message-queue",
    "secret-memory",
    "landlock",
    "mount-context",
    "namespace",
    "outside-pipe",
    "pidfd",
    "proc",
    "deleted-file",
    "path",
    "lease",
    "signal-owner",
    "epoll-entry",
    "inotify-events",
    "inotify-watch",
];

/// The target with one open file of this kind; none if the machine has no such thing.
fn target(kind: &str) -> Option<(Target, TempDir)> {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR"));
    let directory = directory.or_else(|_| TempDir::new()).unwrap();
    let arguments = [kind, directory.path().to_str().unwrap()];
    let mut target = Target::start("files_blocked", &arguments);
    let line = target.line();
    if line == "open" {
        return Some((target, directory));
    }
    let reason = line.strip_prefix("skip: ").unwrap();
    let skipped = format!("SKIPPED open_files_blocked::{kind}: {reason}\n");
    // Not by eprint!, which the harness of tests keeps to itself.
    std::io::stderr().write_all(skipped.as_bytes()).unwrap();
    None
}

fn read(target: &Target) -> (OpenFiles, Vec<Blocker>) {
    let stopped = target.stop();
    let read = OpenFiles::read(&[&stopped], &[]).unwrap();
    stopped.resume().unwrap();
    read
}

fn accepting(names: impl IntoIterator<Item = String>) -> ReopenChoices {
    ReopenChoices {
        accepted: names.into_iter().collect(),
        ..ReopenChoices::default()
    }
}

fn named(blockers: &[Blocker], name: &str) -> Blocker {
    let found = blockers.iter().find(|blocker| blocker.name() == name);
    found
        .unwrap_or_else(|| panic!("{name} is not among {blockers:?}"))
        .clone()
}

#[test]
fn each_kind_has_its_name() {
    for kind in KINDS {
        let Some((target, directory)) = target(kind) else {
            continue;
        };
        let (files, blockers) = read(&target);
        let name = format!("{kind}:fd:100");
        let blocker = named(&blockers, &name);
        assert_eq!(blocker.pid, target.pid());
        assert!(blocker.what.starts_with("descriptor 100 "), "{blocker}");
        assert!(
            blocker.instead.is_some_and(|instead| !instead.is_empty()),
            "{name}"
        );
        drop(target);

        // It is refused by this name, and by no other once that is accepted, but for the other side of a terminal.
        match files.reopen(&accepting([])) {
            Err(ReopenError::Blocked { blocker }) => {
                assert!(blockers.contains(&blocker), "{blocker}");
            }
            other => panic!("{kind}: {other:?}"),
        }
        let names = blockers.iter().map(Blocker::name);
        let others: Vec<String> = names.clone().filter(|other| *other != name).collect();
        assert_eq!(others.len(), usize::from(kind == "terminal"), "{others:?}");
        let reopened = files.reopen(&accepting(names)).unwrap();
        let table = &files.tables[0];
        let entry = table
            .entries
            .iter()
            .find(|entry| entry.number == 100)
            .unwrap();
        let description = &files.descriptions[entry.description as usize];
        let opened = reopened.descriptions[entry.description as usize].is_some();
        assert_eq!(opened, !matches!(description.kind, Kind::Closed), "{kind}");
        drop(directory);
    }
}

#[test]
fn a_directory_that_is_gone_is_named() {
    let (target, _directory) = target("working-directory").unwrap();
    let (files, blockers) = read(&target);
    named(&blockers, "working-directory:process");
    assert_eq!(files.tables[0].cwd, None);
}

#[test]
fn a_thread_with_files_of_its_own_is_named() {
    let target = Target::start("files_blocked", &["thread", "/"]);
    let stopped = target.stop();
    let (_, blockers) = OpenFiles::read(&[&stopped], &[]).unwrap();
    let thread = stopped.threads()[1];
    named(&blockers, &format!("thread-descriptors:thread:{thread}"));
    named(&blockers, &format!("thread-directory:thread:{thread}"));
    assert_eq!(blockers.len(), 2);
}

#[test]
fn processes_with_one_table_are_named() {
    let mut target = Target::start("files_blocked", &["shared", "/"]);
    let child: i32 = target.line().parse().unwrap();
    let identity = pagetide_process::ProcessIdentity::of(child).unwrap();
    let stopped = target.stop();
    let child = pagetide_process::StoppedProcess::stop(&identity, patient()).unwrap();
    let (_, blockers) = OpenFiles::read(&[&stopped, &child], &[]).unwrap();
    named(
        &blockers,
        &format!("shared-descriptors:process:{}", target.pid()),
    );
    named(
        &blockers,
        &format!("shared-directory:process:{}", target.pid()),
    );
    assert_eq!(blockers.len(), 2);
}

#[test]
fn descriptors_of_the_tracking_are_passed_over() {
    let Some((target, _directory)) = target("userfaultfd") else {
        return;
    };
    let stopped = target.stop();
    let (files, blockers) = OpenFiles::read(&[&stopped], &[(target.pid(), 100)]).unwrap();
    assert_eq!(blockers, []);
    assert!(
        files.tables[0]
            .entries
            .iter()
            .all(|entry| entry.number != 100)
    );
}

#[test]
fn memory_that_is_mapped_is_handed_over_by_the_caller() {
    let (target, _directory) = target("mapped-memory").unwrap();
    let (files, blockers) = read(&target);
    assert_eq!(blockers, []);
    drop(target);
    let object = &files.objects[0];
    assert_eq!(object.content, None);
    assert!(matches!(
        files.reopen(&accepting([])),
        Err(ReopenError::ObjectMissing { .. })
    ));

    let made: OwnedFd = memfd_create("made", MemfdFlags::CLOEXEC).unwrap();
    let wanted = fstat(&made).unwrap().st_ino;
    let choices = ReopenChoices {
        objects: HashMap::from([((object.device, object.inode), made)]),
        at_least: 700,
        ..ReopenChoices::default()
    };
    let reopened = files.reopen(&choices).unwrap();
    let index = files
        .descriptions
        .iter()
        .position(|one| matches!(one.kind, Kind::Object(_)));
    let file = reopened.descriptions[index.unwrap()].as_ref().unwrap();
    assert_eq!(fstat(file).unwrap().st_ino, wanted);
    assert!(file.as_raw_fd() >= 700);
}

#[test]
fn a_terminal_is_the_one_it_was_or_that_of_pagetide() {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    unlockpt(&master).unwrap();
    let path = PathBuf::from(ptsname(&master, Vec::new()).unwrap().into_string().unwrap());
    let terminal = || File::options().read(true).write(true).open(&path).unwrap();
    let mut command = Command::new(program("files_blocked"));
    command.args(["own-terminal", "/"]).stderr(terminal());
    let mut target = Target::from_command(&mut command);
    assert_eq!(target.line(), "open");
    let (files, blockers) = read(&target);
    assert_eq!(blockers, []);
    drop(target);
    let description = |number: i32| {
        let mut entries = files.tables[0].entries.iter();
        entries
            .find(|entry| entry.number == number)
            .unwrap()
            .description as usize
    };
    let kind = |number| &files.descriptions[description(number)].kind;
    assert!(matches!(kind(2), Kind::StandardStream(stream) if stream.number == 2));
    let Kind::Terminal(state) = kind(100) else {
        panic!("{:?}", kind(100));
    };
    assert_eq!(state.path.as_path(), path);
    assert_eq!(state.standard.map(|stream| stream.number), Some(2));

    let own = isatty(stderr());
    let reopened = files.reopen(&accepting([])).unwrap();
    let file = reopened.descriptions[description(100)].as_ref().unwrap();
    let wanted = if own {
        fstat(stderr())
    } else {
        fstat(terminal())
    };
    assert_eq!(fstat(file).unwrap().st_rdev, wanted.unwrap().st_rdev);
    assert!(fcntl_getfl(file).unwrap().contains(OFlags::NONBLOCK));
    drop(reopened);

    // Once it is gone, there is only the one of pagetide.
    drop(master);
    // Processes that other tests fork from this one have it, too, as long as they last.
    wait_until("the end of the terminal", || !path.exists());
    match files.reopen(&accepting([])) {
        Ok(_) => assert!([isatty(stdin()), isatty(stdout()), own].contains(&true)),
        Err(ReopenError::Open { path: named, .. }) => assert_eq!(named, path),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn thousands_of_files_come_back() {
    let (target, _directory) = target("many").unwrap();
    let (files, blockers) = read(&target);
    assert_eq!(blockers, []);
    drop(target);
    let bytes = files.to_bytes();
    let files = OpenFiles::from_bytes(&bytes).unwrap();
    let states = files.descriptions.iter();
    let epoll = states.clone().find_map(|one| match &one.kind {
        Kind::Epoll(state) => Some(state),
        _ => None,
    });
    let entries = &epoll.unwrap().entries;
    // One had to make room for the set itself.
    assert_eq!(entries.len(), 1999);
    for entry in entries {
        let table = files.tables[0].entries.iter();
        let found = table
            .clone()
            .find(|one| one.number == entry.number)
            .unwrap();
        assert_eq!(found.description, entry.description);
    }
    let reopened = files.reopen(&accepting([])).unwrap();
    assert_eq!(
        reopened.descriptions.iter().flatten().count(),
        states.count()
    );
}

#[test]
fn a_root_directory_of_its_own_comes_back() {
    let (target, directory) = target("chroot").unwrap();
    let (files, blockers) = read(&target);
    assert_eq!(blockers, []);
    let then = target.pid();
    drop(target);
    let reopened = files.reopen(&accepting([])).unwrap();
    let pid = spawn(&Seed {
        pid: None,
        leads_session: false,
        fate: Fate::Waits,
        children: Vec::new(),
    })
    .unwrap()[0];
    let mut made = NewProcess::take(pid, patient()).unwrap();
    let mut calls = made.as_stopped().remote_calls().unwrap();
    files.place(then, &reopened, &mut calls).unwrap();
    calls.finish().unwrap();
    let link = |name: &str| std::fs::read_link(format!("/proc/{pid}/{name}")).unwrap();
    let jail = directory.path().join("jail");
    assert_eq!(link("root"), jail);
    assert_eq!(link("cwd"), jail.join("cell"));
    assert_eq!(link("fd/100"), jail);
    // That of tables which are not there is refused.
    let mut calls = made.as_stopped().remote_calls().unwrap();
    let unknown = files.place(then + 1, &reopened, &mut calls);
    assert!(matches!(unknown, Err(ReopenError::NoSuchTable { .. })));
}
