//! Prevents that a file system whose server is gone, or stands still itself, holds a process stopped, or us.

use crate::bad::is_root;
use pagetide_tests::{
    Background, Outcome, Scratch, Target, TestStore, background, list, pagetide, text,
    thread_states,
};
use rustix::process::Signal;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// So long anything that is waited for may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A file system that somebody serves, and a process that stands in it and has its file open.
struct Served {
    server: Target,
    user: Child,
    scratch: Scratch,
}

impl Served {
    fn start() -> Self {
        let scratch = Scratch::new();
        let point = scratch.join("served");
        fs::create_dir(&point).expect("make a directory");
        let server = Target::start("silent_fs", [point.to_str().expect("a plain path")]);
        let script = format!("cd {} && exec sleep 600 3<file 4<file", point.display());
        let user = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::null())
            .spawn();
        let served = Self {
            server,
            user: user.expect("start a shell"),
            scratch,
        };
        let since = Instant::now();
        while !fs::read_to_string(served.of_user("comm")).is_ok_and(|comm| comm == "sleep\n") {
            assert!(since.elapsed() < PATIENCE, "the process does not start");
            std::thread::sleep(Duration::from_millis(1));
        }
        served
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.user.id()).expect("a process id")
    }

    fn of_user(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid()))
    }

    /// Its threads wait in their own system call, and nobody traces it.
    fn runs(&self) -> bool {
        let status = fs::read_to_string(self.of_user("status")).expect("read its status");
        thread_states(self.pid()) == ['S'] && status.contains("TracerPid:\t0\n")
    }

    #[track_caller]
    fn wait_until_it(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let since = Instant::now();
        while !is_so(self) {
            assert!(since.elapsed() < PATIENCE, "it does not {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Whatever waits goes on, or nothing here could be ended.
        let _ = self.server.ask("answer");
        let _ = self.user.kill();
        let _ = self.user.wait();
        // It may have vanished already.
        let point = self.scratch.join("served");
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(point)
            .stderr(Stdio::null())
            .status();
    }
}

/// Where in the kernel the threads of a process wait.
fn places(pid: i32) -> Vec<String> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let paths = threads.flatten().map(|thread| thread.path().join("wchan"));
    paths.flat_map(fs::read_to_string).collect()
}

fn waits_for_the_server(pid: i32) -> bool {
    places(pid)
        .iter()
        .any(|place| place.contains("wait_answer"))
}

/// Its outcome, if it ends by itself.
#[track_caller]
fn ends(mut running: Background, served: &mut Served) -> Outcome {
    let since = Instant::now();
    while running.is_running() {
        if since.elapsed() > PATIENCE {
            served.server.ask("answer");
            panic!("it waits for an answer: {:#?}", running.wait());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    running.wait()
}

#[test]
fn a_server_that_is_silent_is_not_asked() {
    if !is_root("a file system of one's own") {
        return;
    }
    let mut served = Served::start();
    let pid = served.pid();
    served.server.ask("silent");
    for more in [
        &["--mode", "stop"][..],
        &["--mode", "precopy"],
        &["--backend", "rehash"],
    ] {
        let store = TestStore::new();
        let running = background(store.checkpoint_words(pid, more));
        let report = ends(running, &mut served).done().json();
        let blockers = list(&report, "blockers");
        let of = |kind: &str| {
            blockers
                .iter()
                .any(|blocker| text(blocker, "name").starts_with(kind))
        };
        assert!(of("served-file:fd:3") && of("served-file:fd:4"), "{report}");
        assert!(of("working-directory"), "{report}");
        served.wait_until_it("run on", Served::runs);
        store.assert_sound();
        pagetide(["detach", &pid.to_string()]).done();
    }
    let inspect = background(["inspect", &pid.to_string(), "--json"]);
    let found = ends(inspect, &mut served).done().json();
    assert_eq!(found["restorable"], false, "{found}");
    served.wait_until_it("run on", Served::runs);
}

/// A process with files of a file system that answers nothing any more, and a checkpoint of it that waits for an answer while
/// the process stands still. `None` if the checkpoint was done without one.
fn waiting_for_the_server(store: &TestStore, timeout: &str) -> Option<(Served, Background)> {
    // No list of mounts tells of it any more, so it is asked, and never answers.
    let mut served = Served::start();
    served.server.ask("vanish");
    served.server.ask("silent");
    let more = ["--mode", "stop", "--add", "--stop-timeout", timeout];
    let mut running = background(store.checkpoint_words(served.pid(), &more));
    // It stands still at times; and for good when a request waits, which the kernel tells of whoever made it.
    let makers = [running.pid(), served.pid()];
    let since = Instant::now();
    while thread_states(served.pid()) != ['t'] || !makers.into_iter().any(waits_for_the_server) {
        let told = || makers.map(|pid| (thread_states(pid), places(pid)));
        if !running.is_running() {
            running.wait().done();
            return None;
        }
        assert!(since.elapsed() < PATIENCE, "no request waits: {:?}", told());
        std::thread::sleep(Duration::from_millis(2));
    }
    Some((served, running))
}

#[test]
fn whatever_hangs_nobody_is_held() {
    if !is_root("a file system of one's own") {
        return;
    }
    for (by_signal, timeout) in [(false, "4s"), (true, "300s")] {
        let store = TestStore::new();
        // Rarely the kernel has an answer of its own, and nothing waits: that is another test.
        let tries = (0..5).find_map(|_| waiting_for_the_server(&store, timeout));
        let (mut served, mut running) = tries.expect("a checkpoint that waits for the server");
        if by_signal {
            running.signal(Signal::TERM);
        }
        served.wait_until_it("run on", Served::runs);
        // What the kernel does at the end of a program is a request, too.
        served.server.ask("answer");
        let outcome = running.wait();
        if !by_signal {
            let outcome = outcome.exits_with(1);
            assert!(
                outcome.stderr.contains("nothing has moved for 4.0 s"),
                "{outcome:#?}"
            );
        } else {
            outcome.exits_with(143);
        }
        assert!(served.runs());
        // The next one is as ever.
        let report = store.checkpoint(served.pid(), &["--add"]);
        assert_eq!(text(&report, "kind"), "full", "{report}");
        served.wait_until_it("run on", Served::runs);
    }
}

#[test]
fn a_signal_ends_it_wherever_it_waits() {
    if !is_root("a file system of one's own") {
        return;
    }
    let mut served = Served::start();
    let file = served.of_user("cwd/file");
    let words = ["map", file.to_str().expect("a plain path")];
    let mut target = Target::start("silent_fs", words);
    served.server.ask("silent");
    // What is behind a mapping is looked at before the stop.
    let store = TestStore::new();
    let mut running = background(store.checkpoint_words(target.pid(), &["--mode", "stop"]));
    let waits_in = PathBuf::from(format!("/proc/{}/wchan", running.pid()));
    served.wait_until_it("wait", |_| {
        fs::read_to_string(&waits_in).is_ok_and(|place| place.contains("wait_answer"))
    });
    assert_eq!(thread_states(target.pid()), ['S']);
    running.signal(Signal::TERM);
    ends(running, &mut served).exits_with(143);
    assert_eq!(thread_states(target.pid()), ['S']);
    assert!(target.is_alive());
}
