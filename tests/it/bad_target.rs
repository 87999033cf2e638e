//! Prevents that a process that cannot be handled is harmed, is taken for one that can, or is refused
//! without a word of why and what to do; and that one that can be handled, however odd, is refused.

use crate::bad::{Condition, assert_no_leftovers, checkpoint_exactly, fails, is_root};
use pagetide_tests::{
    Scratch, Target, TestStore, background, compiled, number, pagetide, pagetide_by, pagetide_path,
    skipped, text, thread_states,
};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const NOBODY: &str = "65534";

fn bad(words: &[&str]) -> Target {
    Target::start("bad_states", words)
}

/// Neither `checkpoint` nor `detach` handle this number, and no store is made.
#[track_caller]
fn no_process(pid: &str, says: &[&str]) {
    let store = TestStore::new();
    let words = ["checkpoint", pid, "--store", &store.text()].map(str::to_owned);
    fails(&pagetide(words), 3, says);
    assert!(!store.path().exists(), "a store was made for nothing");
    fails(&pagetide(["detach", pid]), 3, says);
}

#[test]
fn a_process_that_does_not_exist_is_refused() {
    let above = fs::read_to_string("/proc/sys/kernel/pid_max").expect("read pid_max");
    let above = above.trim();
    no_process(above, &[&format!("there is no process {above}")]);
}

#[test]
fn what_cannot_be_a_process_id_is_wrong_usage() {
    for pid in ["0", "-1", "abc", "99999999999", ""] {
        for words in [
            vec!["checkpoint", "--store", "/nonexistent/store", pid],
            vec!["detach", pid],
            vec!["rollback", pid, "/nonexistent/store"],
        ] {
            let outcome = pagetide(words);
            fails(&outcome, 2, &["error: ", pid]);
        }
    }
}

#[test]
fn a_thread_is_refused_and_its_process_named() {
    let mut target = bad(&["thread"]);
    let thread = target.ask("tid");
    let process = target.pid();
    let says = format!("{thread} is a thread of process {process}");
    no_process(&thread, &[&says, "name the process"]);
}

#[test]
fn a_thread_of_the_kernel_is_refused() {
    if fs::read_to_string("/proc/2/comm").unwrap_or_default() != "kthreadd\n" {
        return skipped("kernel thread", "no kernel threads are to be seen here");
    }
    no_process(
        "2",
        &[
            "2 (kthreadd) is a thread of the kernel",
            "only user programs",
        ],
    );
}

#[test]
fn a_zombie_is_refused_and_its_parent_named() {
    let mut target = bad(&["zombie"]);
    let (child, parent) = (target.ask("child"), target.pid());
    let ended = format!("process {child} (bad_states) has ended");
    let parent = format!("to be reaped by process {parent}");
    no_process(&child, &[&ended, &parent]);
}

/// A program that any user may run.
fn for_all(scratch: &Scratch, program: PathBuf) -> PathBuf {
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(scratch.path(), open.clone()).expect("open the directory to all");
    let copy = scratch.join(program.file_name().and_then(OsStr::to_str).expect("a name"));
    fs::copy(&program, &copy).expect("copy a program");
    fs::set_permissions(&copy, open).expect("open the program to all");
    copy
}

/// A command run by a user without any privilege.
fn by_nobody(program: &OsStr) -> Command {
    let mut command = Command::new("setpriv");
    let user = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
    command.args(user).arg("--clear-groups").arg(program);
    command
}

#[test]
fn without_privilege_the_message_says_what_would_help() {
    if !is_root("without privilege") {
        return;
    }
    let programs = Scratch::new();
    let pagetide = for_all(&programs, pagetide_path().to_owned());
    let states = for_all(&programs, compiled("bad_states"));
    let attempt = |target: &mut Target, says: &[&str]| {
        let before = Condition::of(target);
        let store = programs.join("store");
        let mut command = by_nobody(pagetide.as_os_str());
        command
            .args(["checkpoint", &target.pid_text(), "--store"])
            .arg(&store);
        fails(&pagetide_by(&mut command), 3, says);
        assert!(!store.exists());
        before.assert_is_again(target);
    };
    let says = [
        "no permission to enter process",
        "belongs to user 0",
        "CAP_SYS_PTRACE",
    ];
    attempt(&mut bad(&[]), &says);
    // Its own, but not to be read.
    let mut target = Target::spawn(by_nobody(states.as_os_str()).arg("undumpable"));
    assert_eq!(target.line(), "ready");
    let says = [
        "no permission to enter process",
        "it is not dumpable",
        "CAP_SYS_PTRACE",
    ];
    attempt(&mut target, &says);
}

#[test]
fn root_may_checkpoint_a_process_of_another_user() {
    if !is_root("another user's process") {
        return;
    }
    let programs = Scratch::new();
    let states = for_all(&programs, compiled("bad_states"));
    let mut target = Target::spawn(&mut by_nobody(states.as_os_str()));
    assert_eq!(target.line(), "ready");
    full_then_delta(&mut target, &[]);
}

/// The first is full, the second a delta, both are what the process holds.
#[track_caller]
fn full_then_delta(target: &mut Target, more: &[&str]) {
    let store = TestStore::new();
    let first = checkpoint_exactly(&store, target, more);
    assert_eq!(text(&first, "kind"), "full", "{first}");
    target.ask("noise 3 2 1");
    let second = checkpoint_exactly(&store, target, more);
    assert_eq!(text(&second, "kind"), "delta", "{second}");
    // The kernel writes the number of its processor into the memory of each thread that goes on.
    let threads = thread_states(target.pid()).len() as u64;
    assert!(number(&second, "stored_pages") < 100 + threads, "{second}");
    assert!(target.is_alive());
}

/// An ELF program of 32 bits that waits for ever: header, one segment, `pause` in a loop.
pub fn program_of_32_bits() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    let code = [0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7];
    let length = HEADERS + code.len() as u32;
    let mut bytes = b"\x7fELF\x01\x01\x01".to_vec();
    bytes.resize(16, 0);
    let half = |bytes: &mut Vec<u8>, value: u16| bytes.extend(value.to_le_bytes());
    let word = |bytes: &mut Vec<u8>, value: u32| bytes.extend(value.to_le_bytes());
    half(&mut bytes, 2); // executable
    half(&mut bytes, 3); // 386
    for value in [1, BASE + HEADERS, 52, 0, 0] {
        word(&mut bytes, value);
    }
    for value in [52, 32, 1, 0, 0, 0] {
        half(&mut bytes, value);
    }
    for value in [1, 0, BASE, BASE, length, length, 5, 4096] {
        word(&mut bytes, value);
    }
    bytes.extend(code);
    bytes
}

#[test]
fn a_32_bit_program_is_refused() {
    let scratch = Scratch::new();
    let path = scratch.join("of-32-bits");
    fs::write(&path, program_of_32_bits()).expect("write a program");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it executable");
    let child = Command::new(&path).spawn();
    let Ok(mut child) = child else {
        return skipped("32-bit program", "this kernel runs none");
    };
    no_process(
        &child.id().to_string(),
        &["runs a 32-bit program", "only 64-bit programs"],
    );
    assert!(matches!(child.try_wait(), Ok(None)), "it was harmed");
    child.kill().and_then(|()| child.wait()).expect("end it");
}

#[test]
fn a_process_that_is_traced_is_refused_and_its_tracer_named() {
    let mut target = bad(&[]);
    let store = TestStore::new();
    store.checkpoint(target.pid(), &[]);
    target.ask("noise 0 9 4");
    let tracer = bad(&["tracer", &target.pid_text()]);
    let before = Condition::of(&target);
    let says = format!("traced by process {} (bad_states)", tracer.pid());
    let says = [says.as_str(), "end the debugger"];
    fails(&store.try_checkpoint(target.pid(), &[]), 3, &says);
    fails(&pagetide(["detach", &target.pid_text()]), 3, &says);
    fails(
        &pagetide(["rollback", &target.pid_text(), &store.text()]),
        3,
        &says,
    );
    before.assert_is_again(&target);
    drop(tracer);
    let next = checkpoint_exactly(&store, &target, &[]);
    assert_eq!(text(&next, "kind"), "delta", "{next}");
    assert!(target.is_alive());
}

/// Refused for its seccomp filter, unharmed, and checkpointed by comparison.
fn filtered(kind: &str, says: &str) {
    let mut target = bad(&[kind]);
    let before = Condition::of(&target);
    let store = TestStore::new();
    for more in [&[][..], &["--every", "10ms"]] {
        let outcome = store.try_checkpoint(target.pid(), more);
        fails(&outcome, 3, &[says, "--backend rehash"]);
        before.assert_is_again(&target);
    }
    target.ask("still there?");
    full_then_delta(&mut target, &["--backend", "rehash"]);
    before.assert_is_again_after_work(&target);
}

#[test]
fn a_filter_that_kills_at_userfaultfd_is_never_met() {
    filtered(
        "filter-kill",
        "a seccomp filter of the process forbids userfaultfd",
    );
}

#[test]
fn a_filter_that_forbids_userfaultfd_is_named() {
    filtered(
        "filter-errno",
        "a seccomp filter of the process forbids userfaultfd",
    );
}

#[test]
fn the_strict_mode_of_seccomp_is_named() {
    filtered("strict", "strict mode of seccomp");
}

#[test]
fn a_process_without_free_descriptors_is_refused_and_keeps_those_it_has() {
    for free in ["0", "1"] {
        let mut target = bad(&["no-descriptors", free]);
        let before = Condition::of(&target);
        let outcome = TestStore::new().try_checkpoint(target.pid(), &[]);
        fails(
            &outcome,
            3,
            &[
                "Too many open files",
                "prlimit --nofile",
                "--backend rehash",
            ],
        );
        before.assert_is_again(&target);
        full_then_delta(&mut target, &["--backend", "rehash"]);
    }
    let mut target = bad(&["no-descriptors", "2"]);
    full_then_delta(&mut target, &[]);
}

#[test]
fn a_process_that_ends_between_two_snapshots_is_told_as_just_that() {
    for _ in 0..3 {
        let mut target = bad(&[]);
        let store = TestStore::new();
        let mut snapshots = background(store.checkpoint_words(target.pid(), &["--every", "5ms"]));
        snapshots.next_id();
        target.tell("exit 7");
        let outcome = snapshots.wait().exits_with(4);
        let says = format!("process {}", target.pid());
        assert!(outcome.stderr.contains(&says), "{outcome:#?}");
        assert!(outcome.stderr.contains("ended"), "{outcome:#?}");
        assert!(!outcome.stderr.contains("first thread"), "{outcome:#?}");
        assert_eq!(target.wait().code(), Some(7));
        store.assert_sound();
        assert_no_leftovers(&store);
    }
}

#[test]
fn a_process_that_executes_another_program_is_followed_by_a_full_snapshot() {
    let mut target = bad(&[]);
    let program = compiled("bad_states");
    let execute = format!("exec {} plain", program.display());
    let store = TestStore::new();
    let mut snapshots = background(store.checkpoint_words(target.pid(), &["--every", "5ms"]));
    snapshots.next_id();
    for _ in 0..4 {
        assert_eq!(target.ask(&execute), "ready");
        target.ask("noise 7 7 7");
        store.taken_from_now_on(&mut snapshots);
    }
    snapshots.signal(rustix::process::Signal::INT);
    snapshots.wait().exits_with(130);
    let why: Vec<_> = store
        .log()
        .into_iter()
        .filter(|s| s["kind"] == "full")
        .collect();
    assert_eq!(why.len(), 5, "one for each program: {why:?}");
    // Also between two commands: the tracking has ended with the program.
    let first = checkpoint_exactly(&store, &target, &[]);
    assert_eq!(text(&first, "kind"), "delta", "{first}");
    assert_eq!(target.ask(&execute), "ready");
    let second = checkpoint_exactly(&store, &target, &[]);
    assert_eq!(text(&second, "kind"), "full", "{second}");
    target.ask("noise 1 1 1");
    let third = checkpoint_exactly(&store, &target, &[]);
    assert_eq!(text(&third, "kind"), "delta", "{third}");
    store.assert_sound();
}

fn wait_until_traced(target: &Target, traced: bool) {
    let is_traced = || {
        let status = fs::read_to_string(target.proc("status")).expect("read its status");
        !status.contains("TracerPid:\t0\n")
    };
    while is_traced() != traced {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_parent_of_a_vfork_is_named_and_tried_again() {
    let mut target = bad(&["vfork"]);
    let release = target.ask("vfork");
    let release = target.proc("fd").join(release);
    let store = TestStore::new();
    let outcome = store.try_checkpoint(target.pid(), &[]);
    let says = format!("process {} did not stop within", target.pid());
    fails(&outcome, 1, &[&says, "in state D", "the process runs on"]);
    let words = store.checkpoint_words(target.pid(), &["--every", "10ms", "--count", "2"]);
    let snapshots = background(words);
    // Until the first try has begun and was given up.
    wait_until_traced(&target, true);
    wait_until_traced(&target, false);
    fs::write(release, "x").expect("release the child");
    target.ask("are you there?");
    let outcome = snapshots.wait().done();
    assert_eq!(outcome.lines().len(), 2, "{outcome:#?}");
    assert!(
        outcome.stderr.contains("no snapshot for now: "),
        "{outcome:#?}"
    );
    assert!(outcome.stderr.contains(&says), "{outcome:#?}");
    store.assert_sound();
}

#[test]
fn a_process_tracked_for_another_store_is_refused_until_it_is_detached() {
    let mut target = bad(&[]);
    let (first, second) = (TestStore::new(), TestStore::new());
    first.checkpoint(target.pid(), &[]);
    target.ask("noise 5 5 5");
    let before = Condition::of(&target);
    let outcome = second.try_checkpoint(target.pid(), &[]);
    fails(
        &outcome,
        3,
        &["is tracked for the store", "pagetide detach"],
    );
    before.assert_is_again(&target);
    let next = checkpoint_exactly(&first, &target, &[]);
    assert_eq!(text(&next, "kind"), "delta", "{next}");
    pagetide(["detach", &target.pid_text()]).done();
    let next = checkpoint_exactly(&second, &target, &[]);
    assert_eq!(text(&next, "kind"), "full", "{next}");
}

#[test]
fn hundreds_of_threads() {
    let mut target = bad(&["threads", "300"]);
    let before = Condition::of(&target);
    full_then_delta(&mut target, &[]);
    pagetide(["detach", &target.pid_text()]).done();
    before.assert_is_again_after_work(&target);
}

#[test]
fn another_mount_namespace_and_another_root() {
    if !is_root("another mount namespace") {
        return;
    }
    let root = Scratch::new();
    let mut target = bad(&["nested", root.path().to_str().expect("a plain path")]);
    full_then_delta(&mut target, &[]);
}

#[test]
fn a_stopped_process_stays_stopped() {
    let target = bad(&[]);
    let (store, pid) = (TestStore::new(), target.pid_text());
    let frozen = target.freeze();
    let all_stopped = || assert_eq!(thread_states(target.pid()), ['T']);
    for more in [&[][..], &[], &["--every", "1ms", "--count", "3"]] {
        if !more.is_empty() {
            pagetide(["detach", &pid]).done();
            all_stopped();
        }
        store.try_checkpoint(target.pid(), more).done();
        all_stopped();
    }
    pagetide(["rollback", &pid, &store.text()]).done();
    all_stopped();
    drop(frozen);
}

#[test]
fn a_program_that_was_deleted() {
    let scratch = Scratch::new();
    let program = scratch.join("gone");
    fs::copy(compiled("bad_states"), &program).expect("copy a program");
    let mut target = Target::spawn(&mut Command::new(&program));
    assert_eq!(target.line(), "ready");
    fs::remove_file(&program).expect("delete the program");
    full_then_delta(&mut target, &[]);
}

#[test]
fn a_mapped_file_whose_name_is_not_text() {
    let scratch = Scratch::new();
    let name = OsStr::from_bytes(b"a\nline and \xff\xfe \\012 (deleted)");
    let path = scratch.path().join(name);
    let words = [OsString::from("mapped"), path.clone().into_os_string()];
    let mut target = Target::start("bad_states", words);
    full_then_delta(&mut target, &[]);
    fs::remove_file(&path).expect("remove the mapped file");
    pagetide(["detach", &target.pid_text()]).done();
    full_then_delta(&mut target, &[]);
    let store = TestStore::new();
    store.checkpoint(target.pid(), &["--backend", "rehash"]);
    let shown = pagetide(["show", &store.text()]).done();
    let lines: Vec<_> = shown
        .stdout
        .lines()
        .filter(|l| l.contains("line and"))
        .collect();
    assert_eq!(lines.len(), 1, "{shown:#?}");
    assert!(lines[0].starts_with("0000"), "{lines:?}");
}
