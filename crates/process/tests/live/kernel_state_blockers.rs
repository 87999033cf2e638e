//! Prevents: a process that is said to be restorable and has something that cannot be brought back.

use crate::harness::{Target, patient, program};
use pagetide_process::{Blocker, KernelState, ProcessIdentity, StoppedProcess};
use std::fs;
use std::process::Command;

fn blockers_of(pid: i32) -> Vec<Blocker> {
    let identity = ProcessIdentity::of(pid).unwrap();
    let mut stopped = StoppedProcess::stop(&identity, patient()).unwrap();
    let (_, mut blockers) = KernelState::read(&mut stopped).unwrap();
    stopped.resume().unwrap();
    blockers.extend(KernelState::outside_blockers(pid, &[pid]).unwrap());
    blockers
}

fn names(blockers: &[Blocker]) -> Vec<String> {
    blockers.iter().map(Blocker::name).collect()
}

fn only_child(pid: i32) -> i32 {
    let path = format!("/proc/{pid}/task/{pid}/children");
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

/// A program of `targets/kept_back.c` says that it is alive afterwards.
fn assert_named(what: &str, name: &str) -> Blocker {
    let mut target = Target::start("kept_back", &[what]);
    let blockers = blockers_of(target.pid());
    let name = name.replace("PID", &target.pid().to_string());
    assert_eq!(names(&blockers), [name]);
    assert_eq!(target.ask(), "alive");
    blockers.into_iter().next().unwrap()
}

#[test]
fn a_plain_process_has_none() {
    let target = Target::start("kept_back", &["nothing"]);
    assert_eq!(blockers_of(target.pid()), []);
}

#[test]
fn other_namespaces_are_named() {
    for kind in ["mnt", "net", "ipc", "uts", "cgroup"] {
        let blocker = assert_named(kind, &format!("namespace-{kind}:process"));
        assert!(blocker.instead.is_some(), "{blocker}");
    }
    assert_eq!(assert_named("user", "namespace-user:process").instead, None);
}

#[test]
fn other_namespaces_of_a_child_are_named() {
    let parent = Target::start("kept_back", &["pid"]);
    let blockers = blockers_of(only_child(parent.pid()));
    assert_eq!(names(&blockers), ["namespace-pid:process"]);
    assert_eq!(blockers[0].instead, None);
    // Of the child's clocks the offsets are known; the parent's are not those of its children.
    let parent = Target::start("kept_back", &["time"]);
    assert_eq!(blockers_of(only_child(parent.pid())), []);
    assert_eq!(
        names(&blockers_of(parent.pid())),
        ["namespace-time:process"]
    );
}

#[test]
fn a_local_descriptor_table_is_named() {
    assert_eq!(assert_named("ldt", "ldt:process").instead, None);
}

#[test]
fn a_queue_of_asynchronous_io_is_named() {
    assert_eq!(assert_named("aio", "aio:process").instead, None);
}

#[test]
fn diverted_system_calls_are_named() {
    let blocker = assert_named("syscall-dispatch", "syscall-dispatch:thread:PID");
    assert_eq!(blocker.instead, None);
}

#[test]
fn a_timer_on_the_time_of_another_process_is_named() {
    let blocker = assert_named("cpu-timer", "cpu-timer:timer:0");
    let own = format!(
        "counts the processor time of process {}",
        std::process::id()
    );
    assert!(blocker.what.ends_with(&own), "{blocker}");
}

#[test]
fn a_process_that_traces_another_is_named() {
    let target = Target::start("kept_back", &["traces"]);
    let child = only_child(target.pid());
    let blockers = blockers_of(target.pid());
    assert_eq!(names(&blockers), [format!("traces:process:{child}")]);
}

#[test]
fn seccomp_is_named_and_so_is_what_it_hides() {
    let of = |how: &str| {
        let mut target = Target::from_command(Command::new(program("filtered")).arg(how));
        let blockers = blockers_of(target.pid());
        assert_eq!(target.ask(), "alive");
        let pid = target.pid().to_string();
        let names = names(&blockers).into_iter();
        names
            .map(|name| name.replace(&pid, "PID"))
            .collect::<Vec<_>>()
    };
    assert_eq!(of("lenient"), ["seccomp:thread:PID"]);
    assert_eq!(of("no-userfaultfd"), ["seccomp:thread:PID"]);
    assert_eq!(
        of("strict"),
        ["seccomp:thread:PID", "kernel-state:thread:PID"]
    );
}
