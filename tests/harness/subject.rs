//! A process, or a tree of them, that is checkpointed, killed and restored, again and again.
//!
//! A restored process is nobody's child that the test has started; so the test adopts orphans, and can see how each ends.

use crate::binary::pagetide_path;
use crate::frozen::{Frozen, children, family};
use crate::json::number;
use crate::run::{Outcome, pagetide, pagetide_by};
use crate::scratch::Scratch;
use crate::store::TestStore;
use crate::whole::Whole;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, waitpid};
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};

/// So long a process may take to end, or to do what is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// It is killed when this is dropped.
pub struct Subject {
    root: i32,
    /// The one that was started; those that are restored are adopted.
    _first: Child,
    /// All that were members when it was last killed or looked at.
    members: Vec<i32>,
    store: TestStore,
    scratch: Scratch,
    checkpoint_words: Vec<&'static str>,
    restore_words: Vec<String>,
    restore_under: Vec<String>,
}

impl Subject {
    /// Starts a command with nothing on its standard input, and with its output in a file. `directory` is where its files are.
    pub fn start(command: &Command, directory: Scratch) -> Self {
        static ADOPT: Once = Once::new();
        ADOPT.call_once(|| {
            set_child_subreaper(Some(rustix::process::getpid())).expect("adopt orphans");
        });
        // It may have to be built, and that would take long.
        crate::binary::pagetide_path();
        // What it writes after a restore stands behind what it wrote before.
        let mut file = File::options();
        let output = file
            .append(true)
            .create(true)
            .open(directory.join("output"));
        let output = output.expect("make a file for its output");
        let errors = output.try_clone().expect("its output twice");
        let mut alone = Command::new(crate::target::compiled("alone"));
        alone.arg(command.get_program()).args(command.get_args());
        for (name, is) in command.get_envs() {
            match is {
                Some(is) => alone.env(name, is),
                None => alone.env_remove(name),
            };
        }
        alone.current_dir(command.get_current_dir().unwrap_or(directory.path()));
        let child = alone
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let root = i32::try_from(child.id()).expect("a process id");
        Self {
            root,
            _first: child,
            members: vec![root],
            store: TestStore::new(),
            scratch: directory,
            checkpoint_words: Vec::new(),
            restore_words: Vec::new(),
            restore_under: Vec::new(),
        }
    }

    /// Starts `targets/<name>.c`, with a log and a directory as its first words.
    pub fn target(name: &str, more: &[&str]) -> Self {
        let scratch = Scratch::new();
        let mut command = Command::new(crate::target::compiled(name));
        command
            .arg(scratch.join("log"))
            .arg(scratch.path())
            .args(more);
        Self::start(command.env("A_WORD", "one"), scratch)
    }

    /// Words that every checkpoint of it has.
    #[must_use]
    pub fn checkpoint_with(mut self, words: &[&'static str]) -> Self {
        self.checkpoint_words.extend(words);
        self
    }

    /// The program, with its first words, that starts `pagetide` for every restore of it.
    pub fn restore_under(mut self, words: &[&str]) -> Self {
        let words = words.iter().map(|word| (*word).to_owned());
        self.restore_under.extend(words);
        self
    }

    /// Words that every restore of it has.
    #[must_use]
    pub fn restore_with(mut self, words: &[&str]) -> Self {
        let words = words.iter().map(|word| (*word).to_owned());
        self.restore_words.extend(words);
        self
    }

    /// Its process id; of a tree that of the first.
    pub fn pid(&self) -> i32 {
        self.root
    }

    /// Its store.
    pub fn store(&self) -> &TestStore {
        &self.store
    }

    /// A path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// What it wrote to its standard output and error.
    pub fn output(&self) -> String {
        let bytes = std::fs::read(self.path("output")).expect("read its output");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn is_alive(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.root));
        stat.is_ok_and(|stat| !stat.contains(") Z"))
    }

    /// Fails if it has ended.
    #[track_caller]
    pub fn assert_alive(&self) {
        if self.is_alive() {
            return;
        }
        // What a program says of itself last, if it keeps a log.
        let log = std::fs::read(self.path("log")).unwrap_or_default();
        let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(200)..]).into_owned();
        let output = self.output();
        panic!(
            "process {} has ended: {output}; its log ends with {tail:?}",
            self.root
        );
    }

    /// Waits until `is_so`, as long as it lives.
    #[track_caller]
    pub fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let since = Instant::now();
        while !is_so() {
            if !self.is_alive() && is_so() {
                return;
            }
            self.assert_alive();
            assert!(
                since.elapsed() < PATIENCE,
                "{what}: in vain; {}",
                self.output()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// `checkpoint` with these words; the report of each snapshot.
    #[track_caller]
    pub fn checkpoint(&self, more: &[&str]) -> Vec<Value> {
        let mut words = self.checkpoint_words.clone();
        words.extend(more);
        let lines = self.store.try_checkpoint(self.root, &words).done().lines();
        assert!(!lines.is_empty());
        lines
    }

    /// A snapshot after which all stands still as it was, and all that can be seen of it.
    #[track_caller]
    pub fn stop_and_read(&mut self) -> (Value, Whole) {
        let report = self.checkpoint(&["--leave", "stopped"]).remove(0);
        let frozen = self.stand_still();
        let whole = self.read_all(&frozen);
        // They are killed as they are.
        frozen.into_iter().for_each(std::mem::forget);
        (report, whole)
    }

    fn stand_still(&mut self) -> Vec<Frozen> {
        self.members = family(self.root);
        self.members.iter().copied().map(Frozen::found).collect()
    }

    /// Kills all of it, and waits until the last one is gone.
    pub fn kill(&mut self) {
        // Stopped before, so that nobody is born meanwhile who would not be found any more.
        loop {
            let known = self.members.len();
            self.members
                .iter()
                .for_each(|pid| signal(*pid, Signal::STOP));
            for parent in self.members.clone() {
                // Those that have ended and wait to be asked about, too.
                let others = children(parent).into_iter();
                let new: Vec<i32> = others.filter(|pid| !self.members.contains(pid)).collect();
                self.members.extend(new);
            }
            if self.members.len() == known {
                break;
            }
        }
        self.members
            .iter()
            .for_each(|pid| signal(*pid, Signal::KILL));
        let since = Instant::now();
        while !self.members.is_empty() {
            assert!(since.elapsed() < PATIENCE, "{:?} do not end", self.members);
            // Not all are children of the test, and not at once.
            self.members.retain(|pid| {
                let pid = Pid::from_raw(*pid).expect("a process id");
                let _ = waitpid(Some(pid), WaitOptions::NOHANG);
                Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists()
            });
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// `restore` with these words.
    pub fn try_restore(&self, more: &[&str]) -> Outcome {
        let store = self.store.text();
        let words = ["restore", &store, "--detach", "--json"];
        let own = self.restore_words.iter().map(String::as_str);
        let words = words.into_iter().chain(own).chain(more.iter().copied());
        match self.restore_under.split_first() {
            None => pagetide(words),
            Some((program, first)) => pagetide_by(
                Command::new(program)
                    .args(first)
                    .arg(pagetide_path())
                    .args(words),
            ),
        }
    }

    /// Somebody has restored it, with the numbers that it had.
    pub fn is_back(&mut self) {
        self.members = vec![self.root];
    }

    /// Restores the newest snapshot, or the one that is named by `--at`. It must have the process id it had.
    #[track_caller]
    pub fn restore(&mut self, more: &[&str]) -> Value {
        let report = self.try_restore(more).done().json();
        self.is_back();
        assert_eq!(
            number(&report, "pid"),
            u64::from(self.root.unsigned_abs()),
            "{report}"
        );
        assert!(number(&report, "restored_pages") > 0, "{report}");
        assert!(number(&report, "first_instruction_us") > 0, "{report}");
        report
    }

    /// Restores snapshot `id`, compares all that can be seen before the first instruction with what it was, and lets it go.
    #[track_caller]
    pub fn restore_and_compare(&mut self, id: u64, truth: &Whole) {
        self.restore(&["--stopped", "--at", &id.to_string()]);
        let difference = self.differences(truth);
        assert!(difference.is_empty(), "restored from {id}: {difference:#?}");
    }

    /// Compares it, while it stands still, with what it was, and lets it go.
    pub fn differences(&mut self, truth: &Whole) -> Vec<String> {
        let frozen = self.stand_still();
        truth.difference(&self.read_all(&frozen))
    }

    fn read_all(&self, frozen: &[Frozen]) -> Whole {
        let mut whole = Whole::of(&frozen.iter().collect::<Vec<_>>());
        if self.restore_words.iter().any(|word| word == "reset") {
            whole.forget_connections();
        }
        whole
    }
}

fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.kill();
    }
}
