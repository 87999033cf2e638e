//! Prevents that what a call created which was given up on, and ended later, stays in the process for ever.

use super::*;
use pagetide_kernel::cgroups::CgroupMount;
use pagetide_process::Batch;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A process that waits, in a control group of version 1 that can freeze it.
struct Target {
    child: Child,
    identity: ProcessIdentity,
    group: PathBuf,
    outside: PathBuf,
}

impl Target {
    /// `None`, and the test is skipped, where there is no such group.
    fn start(test: &str) -> Option<Self> {
        let mounts = CgroupMount::all().unwrap_or_default();
        let mount = mounts.iter().find(|mount| mount.controls("freezer"));
        let group = mount.map(|mount| mount.point.join(format!("{test}-{}", std::process::id())));
        let made = group.filter(|group| std::fs::create_dir(group).is_ok());
        let Some((group, mount)) = made.zip(mount) else {
            let text = format!("SKIPPED frozen::{test}: no freezer of version 1\n");
            std::io::stderr().write_all(text.as_bytes()).ok();
            return None;
        };
        let child = Command::new("sleep").arg("600").spawn().expect("sleep");
        let pid = child.id().cast_signed();
        // Until it runs sleep(1), it is this program.
        wait_for("the program", || {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "sleep\n")
        });
        let target = Self {
            child,
            identity: ProcessIdentity::of(pid).expect("it runs"),
            outside: mount.point.clone(),
            group,
        };
        std::fs::write(target.group.join("cgroup.procs"), pid.to_string()).expect("a member");
        Some(target)
    }

    fn set(&self, state: &str) {
        std::fs::write(self.group.join("freezer.state"), state).expect("a freezer");
    }

    fn userfaultfds(&self) -> usize {
        left_behind::userfaultfds(self.identity.pid).len()
    }

    fn stop(&self) -> StoppedProcess {
        let options = StopOptions::with_timeout(Duration::from_secs(60));
        StoppedProcess::stop(&self.identity, options).expect("it stops")
    }

    /// Begins to track it, and freezes it before it makes call `number`. Later it is thawed and makes it.
    fn create_late(&self, number: i64, seen: impl Fn() -> bool) {
        let pid = self.identity.pid;
        let pidfd = open_pidfd(pid).expect("a pidfd");
        let mut stopped = self.stop();
        let mut calls = Freezing {
            calls: stopped.remote_calls().expect("calls"),
            before: number,
            target: self,
        };
        let to = (Backend::WpAsync, StoreId([1; 16]));
        let made = create(
            &mut calls,
            &pidfd,
            &self.identity,
            to,
            &mut Footprint::default(),
        );
        let error = made.expect_err("it is frozen");
        assert!(error.is_frozen(), "{error}");
        drop(calls);
        drop(stopped);
        assert!(!seen());
        self.set("THAWED");
        wait_for("the late call", seen);
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.set("THAWED");
        self.child.kill().ok();
        self.child.wait().ok();
        let removed = || std::fs::remove_dir(&self.group).is_ok() || !self.outside.exists();
        let deadline = Instant::now() + Duration::from_secs(5);
        while !removed() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Remote calls of which one is made only when its process was frozen.
struct Freezing<'a> {
    calls: pagetide_process::RemoteCalls<'a>,
    before: i64,
    target: &'a Target,
}

impl Freezing<'_> {
    fn look(&self, number: i64) {
        if number == self.before {
            self.target.set("FROZEN");
        }
    }
}

impl SystemCalls for Freezing<'_> {
    fn call(&mut self, number: i64, args: [u64; 6]) -> Result<u64, RemoteCallError> {
        self.look(number);
        self.calls.call(number, args)
    }

    fn call_with(
        &mut self,
        number: i64,
        bytes: &mut [u8],
        args: &dyn Fn(u64) -> [u64; 6],
    ) -> Result<u64, RemoteCallError> {
        self.look(number);
        self.calls.call_with(number, bytes, args)
    }

    fn call_all(&mut self, batch: Batch) -> Result<(), (usize, RemoteCallError)> {
        self.calls.call_all(batch)
    }
}

#[test]
fn t43_a_userfaultfd_that_came_late_is_known_and_removed() {
    let Some(target) = Target::start("late_userfaultfd") else {
        return;
    };
    let pid = target.identity.pid;
    // One of the program's own, with which it has not done anything yet.
    let mut stopped = target.stop();
    let mut calls = stopped.remote_calls().expect("calls");
    let flags = u64::from(CREATION_FLAGS);
    let own = calls.call(nix::libc::SYS_userfaultfd, [flags, 0, 0, 0, 0, 0]);
    let own = i32::try_from(own.expect("a userfaultfd")).expect("a number");
    calls.finish().expect("its end");
    stopped.resume().expect("it goes on");

    target.create_late(nix::libc::SYS_userfaultfd, || target.userfaultfds() == 2);
    // It is ours: not a part of the program, and nothing that keeps it from being restored.
    let ours = left_behind::own_descriptors(pid);
    assert_eq!(ours.len(), 2, "{ours:?}");
    assert!(!ours.contains(&own));
    let store = StoreId([1; 16]);
    let found =
        Tracking::find(&target.identity, store, Backend::WpAsync, u64::MAX).expect("a look");
    assert!(found.is_none(), "nothing was tracked");
    let options = StopOptions::with_timeout(Duration::from_secs(60));
    let detached = detach(&target.identity, options).expect("it is removed");
    assert_eq!(detached.descriptors, 2);
    assert_eq!(target.userfaultfds(), 1, "the program keeps its own");
    assert!(left_behind::own_descriptors(pid).is_empty());

    // The same when the next one comes to track it.
    target.create_late(nix::libc::SYS_userfaultfd, || target.userfaultfds() == 2);
    let mut stopped = target.stop();
    let tracking = Tracking::begin(
        &mut stopped,
        &target.identity,
        Backend::WpAsync,
        store,
        true,
        u64::MAX,
    );
    tracking.expect("it is tracked");
    assert_eq!(
        target.userfaultfds(),
        2,
        "the program's and the one that tracks"
    );
    assert_eq!(left_behind::own_descriptors(pid).len(), 2);
}

#[test]
fn t43_a_mark_that_came_late_is_known_and_removed() {
    let Some(target) = Target::start("late_mark") else {
        return;
    };
    let pid = target.identity.pid;
    target.create_late(nix::libc::SYS_memfd_create, || {
        left_behind::own_descriptors(pid).len() == 1
    });
    let options = StopOptions::with_timeout(Duration::from_secs(60));
    let detached = detach(&target.identity, options).expect("it is removed");
    assert_eq!(detached.descriptors, 1);
    assert!(left_behind::own_descriptors(pid).is_empty());
    assert_eq!(target.userfaultfds(), 0);
}
