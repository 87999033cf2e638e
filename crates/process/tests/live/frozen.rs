//! Prevents that a process which a control group keeps frozen is waited for in vain, that a call which was given up on
//! because of it leaves a thread with registers that are not its own, or that it is made after all by one that could
//! have been stopped.

use crate::harness::{PATIENCE, Target, wait_until};
use nix::libc;
use pagetide_kernel::cgroups::CgroupMount;
use pagetide_process::{
    KernelState, RefusalError, RemoteCallError, StopError, StopOptions, StoppedProcess, examine,
};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Shorter than any wait that was made for a call before, and much longer than an answer at once.
const AT_ONCE: Duration = Duration::from_secs(9);
/// O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY
const FLAGS: u64 = 0o2_004_001;

/// A control group of a test's own. Dropped before the target, it is thawed and given up.
struct ControlGroup {
    directory: PathBuf,
    outside: PathBuf,
    is_unified: bool,
}

impl ControlGroup {
    /// `None`, and the test is skipped, if this machine has no such hierarchy.
    fn of(test: &str, is_unified: bool, target: &Target) -> Option<Self> {
        let mounts = CgroupMount::all().unwrap_or_default();
        let is_it = |mount: &&CgroupMount| {
            if is_unified {
                mount.is_unified
            } else {
                mount.controls("freezer")
            }
        };
        let outside = mounts.iter().find(is_it).map(|mount| mount.point.clone());
        let made = outside.and_then(|outside| {
            let directory = outside.join(format!("pagetide-{test}-{}", target.pid()));
            fs::create_dir(&directory).ok()?;
            Some(Self {
                directory,
                outside,
                is_unified,
            })
        });
        let Some(group) = made else {
            let version = if is_unified { 2 } else { 1 };
            let text = format!("SKIPPED frozen::{test}: no freezer of version {version}\n");
            std::io::stderr().write_all(text.as_bytes()).ok();
            return None;
        };
        group.put("cgroup.procs", &target.pid().to_string());
        Some(group)
    }

    fn put(&self, file: &str, text: &str) {
        fs::write(self.directory.join(file), text)
            .unwrap_or_else(|error| panic!("{file}: {error}"));
    }

    fn says(&self, file: &str, line: &str) -> bool {
        let text = fs::read_to_string(self.directory.join(file)).unwrap();
        text.lines().any(|found| found == line)
    }

    fn freeze(&self) {
        if self.is_unified {
            self.put("cgroup.freeze", "1")
        } else {
            self.put("freezer.state", "FROZEN")
        }
        wait_until("frozen", || {
            if self.is_unified {
                self.says("cgroup.events", "frozen 1")
            } else {
                self.says("freezer.state", "FROZEN")
            }
        });
    }

    fn thaw(&self) {
        if self.is_unified {
            self.put("cgroup.freeze", "0")
        } else {
            self.put("freezer.state", "THAWED")
        }
    }

    #[track_caller]
    fn assert_named(&self, message: &str) {
        let command = if self.is_unified {
            format!("echo 0 > {}/cgroup.freeze", self.directory.display())
        } else {
            format!("echo THAWED > {}/freezer.state", self.directory.display())
        };
        assert!(message.contains(&command), "{message}");
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        self.thaw();
        let inside = fs::read_to_string(self.directory.join("cgroup.procs")).unwrap_or_default();
        for pid in inside.lines() {
            fs::write(self.outside.join("cgroup.procs"), pid).ok();
        }
        fs::remove_dir(&self.directory).ok();
    }
}

#[track_caller]
fn assert_goes_on(target: &mut Target) {
    let before = target.ask_number();
    wait_until("it counts", || target.ask_number() > before);
}

fn is_frozen(error: &RemoteCallError) -> bool {
    matches!(error, RemoteCallError::Frozen { .. })
}

#[test]
fn t43_frozen_by_version_1_is_refused_at_once() {
    let mut target = Target::start("count", &["2"]);
    let Some(group) = ControlGroup::of("version_1", false, &target) else {
        return;
    };
    examine(target.pid()).unwrap();
    group.freeze();
    let since = Instant::now();
    let refused = examine(target.pid()).unwrap_err();
    assert!(matches!(refused, RefusalError::Frozen { .. }), "{refused}");
    group.assert_named(&refused.to_string());
    let patient = StopOptions::with_timeout(PATIENCE);
    let refused = StoppedProcess::stop(&target.identity(), patient).unwrap_err();
    assert!(matches!(refused, StopError::Frozen { .. }), "{refused}");
    group.assert_named(&refused.to_string());
    assert!(since.elapsed() < AT_ONCE);
    group.thaw();
    examine(target.pid()).unwrap();
    assert_goes_on(&mut target);
}

#[test]
fn t43_frozen_by_a_group_above_is_named_by_that() {
    let target = Target::start("count", &["1"]);
    for is_unified in [false, true] {
        let Some(group) = ControlGroup::of("above", is_unified, &target) else {
            continue;
        };
        let below = group.directory.join("below");
        fs::create_dir(&below).unwrap();
        fs::write(below.join("cgroup.procs"), target.pid().to_string()).unwrap();
        group.freeze();
        let freezer = pagetide_process::Freezer::of_process(target.pid()).unwrap();
        assert_eq!(freezer.directory, group.directory);
        group.thaw();
        assert_eq!(pagetide_process::Freezer::of_process(target.pid()), None);
        group.put("cgroup.procs", &target.pid().to_string());
        fs::remove_dir(below).unwrap();
    }
}

#[test]
fn t43_frozen_by_version_2_is_stopped_and_read_and_runs_no_call() {
    let mut target = Target::start("count", &["2"]);
    let Some(group) = ControlGroup::of("version_2", true, &target) else {
        return;
    };
    group.freeze();
    let since = Instant::now();
    let mut stopped = target.stop();
    assert_eq!(stopped.thread_states().unwrap().len(), 3);
    let error = stopped.remote_calls().unwrap_err();
    assert!(is_frozen(&error), "{error}");
    group.assert_named(&error.to_string());
    let (_, blockers) = KernelState::read(&mut stopped).unwrap();
    group.assert_named(&blockers.first().expect("it is named").to_string());
    assert!(since.elapsed() < AT_ONCE);
    stopped.resume().unwrap();
    group.thaw();
    assert_goes_on(&mut target);
}

/// The userfaultfds of the target.
fn userfaultfds(target: &Target) -> usize {
    let entries = fs::read_dir(format!("/proc/{}/fd", target.pid())).unwrap();
    let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links
        .filter(|link| link.ends_with("anon_inode:[userfaultfd]"))
        .count()
}

/// Makes a call in a process that was frozen after it was stopped, and lets it go.
fn call_in_frozen(test: &str, is_unified: bool) -> Option<(Target, ControlGroup)> {
    let target = Target::start("count", &["3"]);
    let group = ControlGroup::of(test, is_unified, &target)?;
    let mut stopped = target.stop();
    let mut calls = stopped.remote_calls().unwrap();
    assert!(calls.survives_our_death());
    calls.call(libc::SYS_getpid, [0; 6]).unwrap();
    group.freeze();
    let since = Instant::now();
    let error = calls
        .call(libc::SYS_userfaultfd, [FLAGS, 0, 0, 0, 0, 0])
        .unwrap_err();
    assert!(is_frozen(&error), "{error}");
    group.assert_named(&error.to_string());
    drop(calls);
    drop(stopped);
    assert!(since.elapsed() < AT_ONCE);
    Some((target, group))
}

#[test]
fn t43_who_is_frozen_in_the_middle_of_a_call_finds_back() {
    let Some((mut target, group)) = call_in_frozen("middle_1", false) else {
        return;
    };
    assert_eq!(userfaultfds(&target), 0);
    group.thaw();
    // Here the call is made when nobody waits for it any more. Its thread is itself again after it.
    wait_until("the late call", || userfaultfds(&target) == 1);
    for _ in 0..3 {
        assert_goes_on(&mut target);
    }
}

#[test]
fn t43_who_can_be_stopped_while_frozen_makes_no_call_later() {
    let Some((mut target, group)) = call_in_frozen("middle_2", true) else {
        return;
    };
    group.thaw();
    for _ in 0..3 {
        assert_goes_on(&mut target);
    }
    assert_eq!(userfaultfds(&target), 0);
}

#[test]
fn t43_many_threads_frozen_while_all_are_asked_are_themselves_again() {
    for is_unified in [false, true] {
        let mut target = Target::start("count", &["16"]);
        let Some(group) = ControlGroup::of("all", is_unified, &target) else {
            continue;
        };
        let mut stopped = target.stop();
        group.freeze();
        let since = Instant::now();
        let (_, blockers) = KernelState::read(&mut stopped).unwrap();
        assert_eq!(blockers.len(), 17, "one for each thread: {blockers:?}");
        group.assert_named(&blockers[0].to_string());
        drop(stopped);
        assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
        group.thaw();
        for _ in 0..3 {
            assert_goes_on(&mut target);
        }
    }
}
