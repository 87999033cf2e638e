//! Running `pagetide` as a user would, and looking at what it says.

use crate::binary::pagetide_path;
use crate::frozen::{Frozen, thread_states};
use crate::image::Image;
use rustix::process::{Pid, Signal};
use serde_json::Value;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

/// What a run of `pagetide` came to.
#[derive(Debug)]
pub struct Outcome {
    /// The words of the call.
    pub call: String,
    /// The exit status, if it was not ended by a signal.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

impl Outcome {
    fn new(call: String, output: Output) -> Self {
        Self {
            call,
            code: output.status.code(),
            signal: output.status.signal(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Itself, if the exit status is `code`.
    #[track_caller]
    pub fn exits_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// Itself, if it was done.
    #[track_caller]
    pub fn done(self) -> Self {
        self.exits_with(0)
    }

    /// Itself, if it was refused (exit 3) and standard error names `what`.
    #[track_caller]
    pub fn refused(self, what: &str) -> Self {
        let outcome = self.exits_with(3);
        assert!(outcome.stderr.contains(what), "{what:?} in {outcome:#?}");
        outcome
    }

    /// Each line of standard output as JSON.
    #[track_caller]
    pub fn lines(&self) -> Vec<Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {self:#?}"));
        self.stdout.lines().map(parse).collect()
    }

    /// Standard output as one JSON value.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:#?}"))
    }
}

/// `pagetide` with these words, run to its end.
pub fn pagetide<I>(words: I) -> Outcome
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    pagetide_by(Command::new(pagetide_path()).args(words))
}

/// A prepared command, run to its end with nothing on its standard input.
pub fn pagetide_by(command: &mut Command) -> Outcome {
    let call = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{call}: {error}"));
    Outcome::new(call, output)
}

/// A running `pagetide`, killed when it is dropped.
pub struct Background {
    child: Option<Child>,
    output: Option<BufReader<ChildStdout>>,
    call: String,
}

/// Starts `pagetide` with these words and does not wait.
pub fn background<I>(words: I) -> Background
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    let mut command = Command::new(pagetide_path());
    command
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let call = format!("{command:?}");
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{call}: {error}"));
    Background {
        output: child.stdout.take().map(BufReader::new),
        child: Some(child),
        call,
    }
}

impl Background {
    fn child(&mut self) -> &mut Child {
        self.child.as_mut().expect("it has not been waited for")
    }

    /// Its process id.
    pub fn pid(&mut self) -> i32 {
        i32::try_from(self.child().id()).expect("a process id")
    }

    /// True while it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child().try_wait(), Ok(None))
    }

    /// The next line of its standard output as JSON, or nothing at its end.
    pub fn next_line(&mut self) -> Option<Value> {
        let mut line = String::new();
        let output = self.output.as_mut().expect("its output is read here");
        output.read_line(&mut line).expect("read its output");
        if line.is_empty() {
            None
        } else {
            Some(serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}")))
        }
    }

    /// The id of the next snapshot that a scheduled checkpoint reports.
    #[track_caller]
    pub fn next_id(&mut self) -> u64 {
        match self.next_line() {
            Some(line) => crate::json::number(&line, "id"),
            None => {
                let outcome = self.ended();
                panic!("no more snapshots: {outcome:#?}")
            }
        }
    }

    /// What a stopped process holds while no snapshot of it is under way: in each of them its threads have, for a moment,
    /// bytes below their stack pointers that are taken back.
    pub fn image_of(&mut self, frozen: &Frozen) -> Image {
        let pid = self.pid();
        let still = |pid| thread_states(pid).iter().all(|&state| state == 'T');
        loop {
            self.signal(Signal::STOP);
            while !still(pid) {
                std::thread::sleep(Duration::from_micros(100));
            }
            let image = still(frozen.pid()).then(|| Image::of_process(frozen));
            self.signal(Signal::CONT);
            match image {
                Some(image) => return image,
                // It was in the middle of one.
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: Signal) {
        let pid = Pid::from_child(self.child());
        rustix::process::kill_process(pid, signal).expect("send a signal");
    }

    /// Sends it a signal, if it has not ended.
    pub fn signal_if_running(&mut self, signal: Signal) {
        if self.is_running() {
            self.signal(signal);
        }
    }

    /// Waits for its end. The outcome holds what was not read before.
    pub fn wait(mut self) -> Outcome {
        self.ended()
    }

    fn ended(&mut self) -> Outcome {
        let mut output = self.output.take().expect("its output is read here");
        // Both at a time, or it would wait for the one while we wait for the other.
        let stdout = std::thread::spawn(move || {
            let mut stdout = Vec::new();
            output.read_to_end(&mut stdout).map(|_| stdout)
        });
        let child = self.child.take().expect("it has not been waited for");
        let output = child.wait_with_output().expect("wait for pagetide");
        let stdout = stdout.join().expect("no panic").expect("read its output");
        let output = Output { stdout, ..output };
        Outcome::new(std::mem::take(&mut self.call), output)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(child) = self.child.as_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
