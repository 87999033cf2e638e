//! Target processes: small C programs from `targets/`, compiled once, and any other command.
//!
//! A target speaks lines: it prints `ready` when it is set up, then answers each line on its standard
//! input with one line. It is killed when it is dropped, and dies by itself when the tests die.

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, OnceLock};

/// So long a target may stay silent before a test gives it up.
const PATIENCE_SECONDS: i64 = 120;

/// The program `targets/<name>.c`, compiled. Each is compiled once in a run, unless `PAGETIDE_TARGETS`
/// names a directory that holds all of them, for a machine without a compiler.
pub fn compiled(name: &str) -> PathBuf {
    if let Some(directory) = std::env::var_os("PAGETIDE_TARGETS") {
        return Path::new(&directory).join(name);
    }
    static DIRECTORY: OnceLock<tempfile::TempDir> = OnceLock::new();
    static PROGRAMS: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);
    let directory = DIRECTORY.get_or_init(|| {
        tempfile::Builder::new()
            .prefix("pagetide-targets-")
            .tempdir()
            .expect("make a temporary directory")
    });
    let mut programs = PROGRAMS.lock().unwrap_or_else(|poison| poison.into_inner());
    let programs = programs.get_or_insert_default();
    if let Some(program) = programs.get(name) {
        return program.clone();
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("targets")
        .join(format!("{name}.c"));
    let program = directory.path().join(name);
    let output = Command::new("cc")
        .args(["-std=gnu17", "-g", "-O1", "-Wall", "-Wextra", "-pthread"])
        .arg("-o")
        .arg(&program)
        .arg(&source)
        .output()
        .expect("run cc");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", source.display());
    programs.insert(name.to_owned(), program.clone());
    program
}

/// A running process under test.
pub struct Target {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Target {
    /// Starts `targets/<name>.c` with these words and waits until it is ready.
    pub fn start<I>(name: &str, words: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        Self::start_by(Command::new(compiled(name)).args(words))
    }

    /// Starts a prepared command and waits until it is ready.
    pub fn start_by(command: &mut Command) -> Self {
        let mut target = Self::spawn(command);
        assert_eq!(target.line(), "ready", "{command:?} did not start");
        target
    }

    /// Starts any command, and waits for nothing.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let output = child.stdout.take().expect("its output is a pipe");
        Self {
            input: child.stdin.take(),
            output: BufReader::new(output),
            child,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id")
    }

    /// Its process id as an argument.
    pub fn pid_text(&self) -> String {
        self.child.id().to_string()
    }

    /// `/proc/PID/<name>`.
    pub fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid()))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("send a signal");
    }

    /// Writes a line to its standard input.
    pub fn tell(&mut self, line: &str) {
        let input = self.input.as_mut().expect("its input is open");
        writeln!(input, "{line}").unwrap_or_else(|error| panic!("tell {line:?}: {error}"));
    }

    /// The next line of its standard output.
    pub fn line(&mut self) -> String {
        if self.output.buffer().is_empty() {
            let patience = Timespec {
                tv_sec: PATIENCE_SECONDS,
                tv_nsec: 0,
            };
            let mut waits = [PollFd::new(self.output.get_ref(), PollFlags::IN)];
            let ready = rustix::event::poll(&mut waits, Some(&patience)).expect("poll");
            assert!(ready > 0, "process {} is silent", self.pid());
        }
        let mut line = String::new();
        self.output.read_line(&mut line).expect("read its output");
        assert!(!line.is_empty(), "process {} has ended", self.pid());
        line.trim_end().to_owned()
    }

    /// Writes a line and gives the answer.
    pub fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.line()
    }

    /// True while it has not ended.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Closes its input and waits for its end.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.input = None;
        self.child.wait().expect("wait for the target")
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
