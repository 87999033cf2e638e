//! Whatever whoever restores has of his own, the process of another user gets nothing of it: it is compared, thing by thing, with what
//! it was, and looks for a key itself.

use super::{OTHER, Owned};
use crate::bad::is_root;
use pagetide_tests::{Scratch, TestStore, compiled, pagetide_path};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// A control group of our own, if one can be made.
struct Group(Option<PathBuf>);

impl Group {
    fn new() -> Self {
        let name = format!("pagetide-test-{}", std::process::id());
        let places = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"];
        let mut all = places.iter().map(|place| Path::new(place).join(&name));
        let made =
            all.find(|path| fs::create_dir(path).is_ok() && path.join("cgroup.procs").exists());
        Self(made)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            drop(fs::remove_dir(path));
        }
    }
}

#[test]
fn nothing_is_inherited_of_whoever_restores() {
    if !is_root("a process of another user") {
        return;
    }
    let mut owned = Owned::new(&[]);
    owned.works();
    owned.restore().done();
    owned.subject.is_back();
    let (_, truth) = owned.subject.stop_and_read();
    owned.subject.kill();
    let group = Group::new();
    let place = group.0.as_deref().unwrap_or(Path::new("-"));
    let mut command = Command::new(compiled("odd"));
    command.arg(place).arg(pagetide_path());
    let store = owned.subject.store().text();
    command.args(["restore", &store, "--detach", "--stopped", "--json"]);
    let report = pagetide_tests::pagetide_by(&mut command).done().json();
    assert_eq!(
        pagetide_tests::list(&report, "notes"),
        [] as [serde_json::Value; 0],
        "{report}"
    );
    owned.subject.is_back();
    let difference = owned.subject.differences(&truth);
    assert!(difference.is_empty(), "{difference:#?}");
    // It goes on, and finds no key.
    let log = owned.subject.path("log");
    let steps = || fs::read_to_string(&log).map_or(0, |log| log.lines().count());
    let before = steps();
    owned.subject.wait_until("steps", || steps() > before + 3);
    owned.subject.kill();
}

#[test]
fn a_terminal_of_root_is_not_handed_to_another_user() {
    if !is_root("a terminal of root") {
        return;
    }
    let (scratch, store) = (Scratch::new(), TestStore::new());
    let base = scratch.path().to_owned();
    let (program, work, log) = (base.join("program"), base.join("work"), base.join("log"));
    fs::copy(compiled("owned"), &program).expect("copy the program");
    fs::create_dir(&work).expect("make a directory");
    for directory in [&base, &work] {
        super::open_to_all(directory);
        chown(directory, Some(OTHER), Some(OTHER)).expect("change the owner");
    }
    // What it has as its standard output leads to us, and so comes from whoever restores.
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    command.arg(&program).args([&log, &work]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().expect("start it");
    let pid = i32::try_from(child.id()).expect("a pid");
    let wait = |what: &str, is_so: &dyn Fn() -> bool| {
        let since = Instant::now();
        while !is_so() {
            assert!(since.elapsed() < PATIENCE, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait("it works", &|| {
        fs::read_to_string(&log).is_ok_and(|log| log.contains("3 on"))
    });
    store.checkpoint(pid, &[]);
    child.kill().expect("kill it");
    child.wait().expect("it has ended");
    let proc = |name: &str| PathBuf::from(format!("/proc/{pid}/{name}"));
    let said = base.join("said");
    let call = format!(
        "{} restore {} 2> {}",
        pagetide_path().display(),
        store.text(),
        said.display()
    );
    let mut script = Command::new("script");
    script.args(["-qec", &call, "/dev/null"]);
    script.stdin(Stdio::null()).stdout(Stdio::null());
    let mut script = script.spawn().expect("run script");
    let is_back = || fs::read_to_string(&said).is_ok_and(|said| said.contains("is back"));
    wait("it is restored", &is_back);
    assert_eq!(
        fs::read_link(proc("fd/1")).expect("its output"),
        Path::new("/dev/null")
    );
    let stat = fs::read_to_string(proc("stat")).expect("its state");
    let (_, fields) = stat.rsplit_once(") ").expect("a name");
    let fields: Vec<&str> = fields.split(' ').collect();
    assert_eq!(fields[4], "0", "its terminal: {stat}");
    assert_eq!(fields[3], pid.to_string(), "its session: {stat}");
    let said = fs::read_to_string(&said).expect("what was said");
    assert!(
        said.contains("the terminal of pagetide is not that of user 65534"),
        "{said}"
    );
    assert!(said.contains("leads a session of its own"), "{said}");
    let pid = Pid::from_raw(pid).expect("a pid");
    kill_process(pid, Signal::KILL).expect("kill it");
    script.wait().expect("script ends");
    // Orphans are adopted by the tests.
    let _ = waitpid(Some(pid), WaitOptions::NOHANG);
}
