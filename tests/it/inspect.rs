//! Prevents that a process is said to be restorable and is not: whatever keeps it from being restored is named by `inspect`
//! beforehand, by every checkpoint, and by a restore, which then brings back what the user can do without.

use crate::bad_target::program_of_32_bits;
use pagetide_tests::{
    Outcome, Scratch, Target, TestStore, children, compiled, list, pagetide, pagetide_by,
    pagetide_path, skipped, text,
};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// So many kinds of things at least are named on any machine that we know.
const KINDS_MIN: usize = 30;

/// What a process of `targets/blocked.c` exits with when its input ends, which it does when it was restored.
const STATUS_AT_END: i32 = 7;

/// What it can be told to make, and how that is named. PID is the process, OTHER a number it answers with, and ADDRESS
/// the same in hexadecimal digits.
const STATES: [(&str, &[&str]); 76] = [
    ("userfaultfd", &["userfaultfd:fd:100"]),
    ("io-uring", &["io-uring:fd:100"]),
    ("perf-event", &["perf-event:fd:100"]),
    ("bpf", &["bpf:fd:100"]),
    ("fanotify", &["fanotify:fd:100"]),
    ("kvm", &["kvm:fd:100"]),
    ("tun", &["tun:fd:100"]),
    ("device", &["device:fd:100"]),
    ("block-device", &["block-device:fd:100"]),
    ("terminal-master", &["terminal-master:fd:100"]),
    ("terminal", &["terminal:fd:100", "terminal-master:fd:3"]),
    ("message-queue", &["message-queue:fd:100"]),
    ("secret-memory", &["secret-memory:fd:100"]),
    ("landlock", &["landlock:fd:100"]),
    ("mount-context", &["mount-context:fd:100"]),
    ("namespace", &["namespace:fd:100"]),
    ("pidfd", &["pidfd:fd:100"]),
    ("proc", &["proc:fd:100"]),
    ("outside-pipe", &["outside-pipe:fd:100"]),
    ("deleted-file", &["deleted-file:fd:100"]),
    ("path", &["path:fd:100"]),
    ("lease", &["lease:fd:100"]),
    ("signal-owner", &["signal-owner:fd:100"]),
    ("epoll-entry", &["epoll-entry:fd:100"]),
    ("inotify-events", &["inotify-events:fd:100"]),
    ("inotify-watch", &["inotify-watch:fd:100"]),
    (
        "seccomp-notify",
        &["seccomp-notify:fd:100", "seccomp:thread:PID"],
    ),
    ("raw-socket", &["raw-socket:fd:100"]),
    ("packet-socket", &["packet-socket:fd:100"]),
    ("ping-socket", &["ping-socket:fd:100"]),
    ("mptcp-socket", &["mptcp-socket:fd:100"]),
    ("udplite-socket", &["udplite-socket:fd:100"]),
    ("sctp-socket", &["sctp-socket:fd:100"]),
    ("vsock-socket", &["vsock-socket:fd:100"]),
    ("alg-socket", &["alg-socket:fd:100"]),
    ("xdp-socket", &["xdp-socket:fd:100"]),
    ("key-socket", &["key-socket:fd:100"]),
    ("netlink", &["netlink:fd:100"]),
    ("socket-filter", &["socket-filter:fd:100"]),
    ("multicast-group", &["multicast-group:fd:100"]),
    ("udp-encapsulation", &["udp-encapsulation:fd:100"]),
    ("socket-namespace", &["socket-namespace:fd:100"]),
    ("unix-peer", &["unix-peer:fd:100"]),
    ("unix-urgent", &["unix-urgent:fd:100"]),
    ("unix-rights", &["unix-rights:fd:100"]),
    ("unix-credentials", &["unix-credentials:fd:100"]),
    ("unix-sender", &["unix-sender:fd:100"]),
    ("unix-error", &["unix-error:fd:100"]),
    ("udp-corked", &["udp-corked:fd:100"]),
    ("unix-backlog", &["unix-backlog:fd:100"]),
    ("tcp-backlog", &["tcp-backlog:fd:100"]),
    ("tcp-urgent", &["tcp-urgent:fd:100"]),
    ("tls-socket", &["tls-socket:fd:100"]),
    ("tcp-state", &["tcp-state:fd:100"]),
    ("namespace-mnt", &["namespace-mnt:process"]),
    ("namespace-net", &["namespace-net:process"]),
    ("namespace-ipc", &["namespace-ipc:process"]),
    ("namespace-uts", &["namespace-uts:process"]),
    ("namespace-cgroup", &["namespace-cgroup:process"]),
    ("namespace-user", &["namespace-user:process"]),
    ("namespace-pid", &["namespace-pid:process"]),
    ("namespace-time", &["namespace-time:process"]),
    ("ldt", &["ldt:process"]),
    ("io-ports", &["io-ports:thread:PID"]),
    ("aio", &["aio:process"]),
    ("syscall-dispatch", &["syscall-dispatch:thread:PID"]),
    ("cpu-timer", &["cpu-timer:timer:0"]),
    ("traces", &["traces:process:OTHER"]),
    ("shared-space", &["shared-space:process:OTHER"]),
    ("lost-name", &["path:mapping:ADDRESS"]),
    ("seccomp", &["seccomp:thread:PID"]),
    ("strict", &["kernel-state:thread:PID", "seccomp:thread:PID"]),
    ("working-directory", &["working-directory:process"]),
    (
        "thread-of-its-own",
        &[
            "thread-descriptors:thread:OTHER",
            "thread-directory:thread:OTHER",
        ],
    ),
    ("device-mapping", &["device-mapping:mapping:ADDRESS"]),
    ("huge-shared", &["huge-shared:mapping:ADDRESS"]),
];

/// A process that has nothing but its standard streams, in a directory of its own.
fn fresh(scratch: &Scratch) -> Target {
    let mut command = Command::new(compiled("blocked"));
    command.current_dir(scratch.path()).stderr(Stdio::null());
    Target::start_by(&mut command)
}

/// What `inspect` finds, in the order of the names.
#[track_caller]
fn inspected(pid: &str) -> Vec<Value> {
    let answer = pagetide(["inspect", pid, "--json"]).done().json();
    let blockers = sorted(list(&answer, "blockers"));
    assert_eq!(answer["restorable"], blockers.is_empty(), "{answer}");
    blockers
}

fn sorted(blockers: &[Value]) -> Vec<Value> {
    let mut blockers = blockers.to_vec();
    blockers.sort_by(|one, other| text(one, "name").cmp(text(other, "name")));
    blockers
}

fn names(blockers: &[Value]) -> Vec<&str> {
    blockers
        .iter()
        .map(|blocker| text(blocker, "name"))
        .collect()
}

/// A restore of the newest snapshot. It ends when the process has.
fn restore(store: &TestStore, accept: &[&str]) -> Outcome {
    let store = store.text();
    let accept = accept.iter().flat_map(|name| ["--accept", name]);
    pagetide(["restore", &store].into_iter().chain(accept))
}

/// All that can be told of one state; the names of what is in the way, or nothing if this machine has no such thing.
fn goes_through_it(state: &str, expected: &[&str]) -> Option<Vec<String>> {
    let scratch = Scratch::new();
    let mut target = fresh(&scratch);
    assert_eq!(inspected(&target.pid_text()), Vec::<Value>::new());

    let answer = target.ask(state);
    let Some(made) = answer.strip_prefix("made ") else {
        skipped(&format!("inspect::{state}"), &answer);
        return None;
    };
    let (pid, other) = made.split_once(' ').expect("two numbers");
    let address = format!("{:x}", other.parse::<u64>().expect("a number"));
    let mut expected: Vec<String> = expected
        .iter()
        .map(|name| name.replace("PID", pid).replace("OTHER", other))
        .map(|name| name.replace("ADDRESS", &address))
        .collect();
    // Some need a child for it, which is in the way, too.
    let children = children(pid.parse().expect("a number"));
    expected.extend(
        children
            .iter()
            .map(|child| format!("child:process:{child}")),
    );
    expected.sort();
    let found = inspected(pid);
    assert_eq!(names(&found), expected, "{state}");
    for blocker in &found {
        assert_eq!(blocker["pid"].to_string(), pid, "{blocker}");
        assert!(!text(blocker, "what").is_empty(), "{blocker}");
        assert!(!text(blocker, "advice").is_empty(), "{blocker}");
    }

    // What allows no system calls inside of it can be checkpointed by comparison alone.
    let store = TestStore::new();
    let report = store.checkpoint(pid.parse().expect("a number"), &["--backend", "rehash"]);
    assert_eq!(report["restorable"], false, "{state}: {report}");
    let told = sorted(list(&report, "blockers"));
    assert_eq!(told, found, "{state}");
    drop(target);

    let refused = restore(&store, &[]).exits_with(3);
    assert_names(&refused.stderr, &expected);
    let all = names(&found);
    let for_good: Vec<String> = found
        .iter()
        .filter(|blocker| blocker["instead"].is_null())
        .map(|blocker| text(blocker, "name").to_owned())
        .collect();
    let outcome = restore(&store, &all);
    if for_good.is_empty() {
        drop(outcome.exits_with(STATUS_AT_END))
    } else {
        assert_names(&outcome.exits_with(3).stderr, &for_good)
    }
    Some(expected)
}

/// What is told names each of them.
#[track_caller]
fn assert_names(told: &str, names: &[String]) {
    for name in names {
        assert!(told.contains(&format!(" {name}: ")), "{name} in {told}");
    }
}

#[test]
fn whatever_keeps_a_process_from_being_restored_is_named() {
    let states = Mutex::new(STATES.iter());
    let kinds = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let next = states.lock().expect("no worker failed").next();
                    let Some((state, expected)) = next else { break };
                    let named = goes_through_it(state, expected).unwrap_or_default();
                    let named = named.into_iter().filter_map(|name| {
                        let (kind, _) = name.split_once(':')?;
                        Some(kind.to_owned())
                    });
                    kinds.lock().expect("no worker failed").extend(named);
                }
            });
        }
    });
    let kinds = kinds.into_inner().expect("no worker failed");
    assert!(kinds.len() >= KINDS_MIN, "{} kinds: {kinds:?}", kinds.len());
}

#[test]
fn a_traced_process_is_not_inspected_and_its_tracer_named() {
    let scratch = Scratch::new();
    let target = fresh(&scratch);
    let tracer = Target::start("bad_states", ["tracer", &target.pid_text()]);
    let says = format!("traced by process {} (bad_states)", tracer.pid());
    pagetide(["inspect", &target.pid_text(), "--json"]).refused(&says);
    drop(tracer);
    assert_eq!(inspected(&target.pid_text()), Vec::<Value>::new());
}

#[test]
fn a_32_bit_program_is_not_inspected() {
    let scratch = Scratch::new();
    let path = scratch.join("of-32-bits");
    fs::write(&path, program_of_32_bits()).expect("write a program");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it executable");
    let Ok(mut child) = Command::new(&path).spawn() else {
        return skipped("32-bit program", "this kernel runs none");
    };
    let outcome = pagetide(["inspect", &child.id().to_string(), "--json"]);
    child.kill().and_then(|()| child.wait()).expect("end it");
    outcome.refused("runs a 32-bit program");
}

/// In an IPC namespace of its own, where no other program has semaphores: whoever has threads might have used those.
#[test]
fn semaphores_that_are_put_back_at_the_end_are_named() {
    let scratch = Scratch::new();
    let mut command = Command::new("unshare");
    command.arg("--ipc").arg(compiled("blocked"));
    command.current_dir(scratch.path()).stderr(Stdio::null());
    let mut target = Target::start_by(&mut command);
    let pid = target.pid_text();
    let named = |words: &[&str]| {
        let mut inside = Command::new("nsenter");
        inside
            .args(["--ipc", "--target", &pid])
            .arg(pagetide_path());
        pagetide_by(inside.args(words))
    };
    let found = |outcome: Outcome| {
        let answer = outcome.done().json();
        let blockers = sorted(list(&answer, "blockers"));
        names(&blockers).join(" ")
    };
    assert_eq!(found(named(&["inspect", &pid, "--json"])), "");
    let answer = target.ask("semaphore-undo");
    assert!(answer.starts_with("made "), "{answer}");
    let expected = format!("semaphore-undo:thread:{pid}");
    assert_eq!(found(named(&["inspect", &pid, "--json"])), expected);
    let store = TestStore::new();
    let words = ["checkpoint", &pid, "--store", &store.text(), "--json"];
    assert_eq!(found(named(&words)), expected);
}

#[test]
fn what_concerns_connections_is_no_obstacle_where_all_are_reset() {
    let scratch = Scratch::new();
    let mut target = fresh(&scratch);
    assert!(target.ask("tcp-backlog").starts_with("made "));
    let store = TestStore::new();
    let report = store.checkpoint(target.pid(), &[]);
    let told = names(list(&report, "blockers")).join(" ");
    assert_eq!(told, "tcp-backlog:fd:100", "{report}");
    drop(target);
    restore(&store, &[]).exits_with(3);
    let text = store.text();
    let words = ["restore", &text, "--tcp", "reset"];
    pagetide(words.into_iter().chain(["--dry-run"])).done();
    pagetide(words).exits_with(STATUS_AT_END);
}
