//! Target programs: compiled once, started, talked to by lines, and killed at the end of a test.

use nix::libc;
use pagetide_process::{ProcessIdentity, StopOptions, StoppedProcess};
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, OnceLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine; reached only by a hang.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The compiled program `targets/NAME.c`. `PAGETIDE_LIVE_TARGETS` names a directory that holds all of
/// them, for a machine without a compiler.
pub fn program(name: &str) -> PathBuf {
    if let Some(directory) = std::env::var_os("PAGETIDE_LIVE_TARGETS") {
        return PathBuf::from(directory).join(name);
    }
    static COMPILED: OnceLock<Mutex<HashMap<String, PathBuf>>> = OnceLock::new();
    let mut compiled = COMPILED
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(path) = compiled.get(name) {
        return path.clone();
    }
    let source = format!("{}/tests/live/targets/{name}.c", env!("CARGO_MANIFEST_DIR"));
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(&directory).unwrap();
    // Another run of the tests may be using the old one.
    let fresh = directory.join(format!("{name}.{}", std::process::id()));
    let path = directory.join(name);
    let status = Command::new("cc")
        .args(["-O1", "-pthread", "-o"])
        .arg(&fresh)
        .arg(&source)
        .status()
        .expect("cc is needed for these tests");
    assert!(status.success(), "cc failed on {source}");
    fs::rename(&fresh, &path).unwrap();
    compiled.insert(name.to_owned(), path.clone());
    path
}

/// A running target. Dropped: killed and reaped.
pub struct Target {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Target {
    /// Starts `targets/NAME.c` and waits for it to say "ready".
    pub fn start(name: &str, arguments: &[&str]) -> Self {
        Self::from_command(Command::new(program(name)).args(arguments))
    }

    pub fn from_command(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut target = Self {
            child,
            stdin,
            lines,
        };
        assert_eq!(target.line(), "ready");
        target
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub fn identity(&self) -> ProcessIdentity {
        ProcessIdentity::of(self.pid()).unwrap()
    }

    pub fn stop(&self) -> StoppedProcess {
        StoppedProcess::stop(&self.identity(), patient()).unwrap()
    }

    /// The next line it says.
    pub fn line(&mut self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap_or_else(|error| {
            let status = self.child.try_wait();
            panic!("{error}, process {} is {status:?}", self.child.id())
        })
    }

    pub fn tell(&mut self, text: &str) {
        self.stdin
            .as_mut()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    /// Asks it something with a line and returns its answer.
    pub fn ask(&mut self) -> String {
        self.tell("?\n");
        self.line()
    }

    pub fn ask_number(&mut self) -> u64 {
        let answer = self.ask();
        answer
            .parse()
            .unwrap_or_else(|_| panic!("it says {answer}"))
    }

    /// Lines it has said since the last look.
    pub fn lines_so_far(&mut self) -> Vec<String> {
        self.lines.try_iter().collect()
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub fn signal(&self, signal: &str) {
        kill(self.pid(), signal);
    }

    /// State letter of `/proc/PID/stat`.
    pub fn state(&self) -> char {
        state_of(self.pid())
    }

    pub fn wait_for_state(&self, wanted: char) {
        wait_until(&format!("state {wanted}"), || self.state() == wanted);
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub fn patient() -> StopOptions {
    StopOptions::with_timeout(PATIENCE)
}

pub fn state_of(pid: i32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after = &stat[stat.rfind(')').unwrap() + 2..];
    after.chars().next().unwrap()
}

/// Sends a signal by name or number with kill(1).
pub fn kill(pid: i32, signal: &str) {
    let status = Command::new("kill")
        .args([format!("-{signal}"), pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        sleep(Duration::from_millis(2));
    }
}

/// One stop with one call run in the target, as a checkpoint does it.
pub fn stop_call_resume(target: &Target) {
    let mut stopped = target.stop();
    let pid = stopped
        .remote_calls()
        .unwrap()
        .call(libc::SYS_getpid, [0; 6])
        .unwrap();
    assert_eq!(pid, u64::from(target.pid().cast_unsigned()));
    stopped.resume().unwrap();
}
