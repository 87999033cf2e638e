//! A program that was killed, and must be there again after every restore that works and after no other.

use crate::bad::fails;
use pagetide_tests::{Outcome, Scratch, Subject, compiled, family, pagetide_by, pagetide_path};
use rustix::process::{Pid, WaitOptions, waitpid};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// So long what was killed may take to be gone.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// By this variable of the environment all processes of a test are known: those of the program and those of pagetide.
pub const MARK: &str = "PAGETIDE_TEST_MARK";

/// The program `targets/failing.c`, with a full snapshot and a delta, killed.
pub struct Killed {
    pub subject: Subject,
    pub directory: PathBuf,
    /// A file in memory that the program maps.
    pub memory: PathBuf,
    /// All processes and threads that it had.
    pub numbers: Vec<i32>,
    /// The System V segments that it had.
    segments: Vec<String>,
}

impl Killed {
    pub fn new(more: &[&str]) -> Self {
        let scratch = Scratch::new();
        let name = scratch.path().file_name().expect("it has a name");
        let memory = Path::new("/dev/shm").join(name);
        Self::with_memory(scratch, memory, more)
    }

    pub fn with_memory(scratch: Scratch, memory: PathBuf, more: &[&str]) -> Self {
        let directory = scratch.path().to_owned();
        let program = directory.join("program");
        fs::copy(compiled("failing"), &program).expect("copy the program");
        fs::create_dir(directory.join("temporary")).expect("make a directory");
        for name in ["data", "mapped"] {
            fs::write(directory.join(name), name).expect("write a file");
        }
        let mut command = Command::new(&program);
        command.arg(directory.join("log")).arg(&directory);
        command.arg(&memory).args(more);
        command.stdin(Stdio::null()).env(MARK, &directory);
        let mut subject = Subject::start(&command, scratch);
        let log = directory.join("log");
        subject.wait_until("steps", || steps(&log) > 2);
        subject.checkpoint(more_of_checkpoint(more));
        subject.wait_until("steps", || steps(&log) > 6);
        subject.checkpoint(more_of_checkpoint(more));
        let numbers = family(subject.pid())
            .into_iter()
            .flat_map(threads)
            .collect();
        let segments = segments(subject.pid());
        assert_eq!(segments.len(), 1);
        subject.kill();
        Self {
            subject,
            directory,
            memory,
            numbers,
            segments,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub fn store(&self) -> PathBuf {
        self.subject.store().path()
    }

    /// `BY pagetide restore STORE --detach MORE`
    pub fn command(&self, by: &[&str], more: &[&str]) -> Command {
        let words = by.iter().map(AsRef::as_ref);
        let mut words = words.chain([pagetide_path().as_os_str()]);
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words).arg("restore").arg(self.store());
        command.arg("--detach").args(more);
        command.env("TMPDIR", self.path("temporary"));
        command.env(MARK, &self.directory);
        command
    }

    /// A restore fails so, and leaves nothing; whether what the program made is still there or not.
    #[track_caller]
    pub fn fails_by(&self, by: &[&str], more: &[&str], code: i32, says: &[&str]) {
        for is_there in [true, false] {
            if !is_there {
                for path in [&self.path("socket"), &self.memory] {
                    fs::remove_file(path).ok();
                }
            }
            let before = self.there();
            let outcome = pagetide_by(&mut self.command(by, more));
            fails(&outcome, code, says);
            self.assert_no_process();
            assert_eq!(before, self.there(), "{outcome:#?}");
        }
    }

    #[track_caller]
    pub fn fails(&self, code: i32, says: &[&str]) {
        self.fails_by(&[], &[], code, says);
    }

    /// What can be seen of files and segments.
    pub fn there(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        list(&self.directory, &mut found);
        if let Ok(bytes) = fs::read(&self.memory) {
            found.insert(self.memory.clone(), shown(&bytes));
        }
        let all = fs::read_to_string("/proc/sysvipc/shm").expect("list segments");
        let ids = all
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1));
        for id in ids.filter(|id| self.segments.iter().any(|own| own == id)) {
            found.insert(PathBuf::from(id), String::from("a segment"));
        }
        found
    }

    /// The processes of the test that there are.
    pub fn processes(&self) -> Vec<i32> {
        for pid in self.numbers.iter().filter_map(|pid| Pid::from_raw(*pid)) {
            // Orphans are adopted by the tests.
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
        let wanted = format!("{MARK}={}", self.directory.display());
        let all = fs::read_dir("/proc").expect("list processes").flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let read = |name| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let names = ["pagetide", "program", "occupy"];
            let has_number = self.numbers.contains(pid)
                && names.contains(&String::from_utf8_lossy(&read("comm")).trim());
            let marked = read("environ")
                .split(|byte| *byte == 0)
                .any(|variable| variable == wanted.as_bytes());
            marked || has_number
        })
        .collect()
    }

    #[track_caller]
    pub fn assert_no_process(&self) {
        let since = Instant::now();
        loop {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "{left:?} are left");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The store is whole, and the same restore works now: the program goes on. It is killed again.
    #[track_caller]
    pub fn works(&mut self) {
        self.works_by(&[], &[]);
    }

    #[track_caller]
    pub fn works_by(&mut self, by: &[&str], more: &[&str]) {
        let log = self.path("log");
        let before = steps(&log);
        pagetide_by(&mut self.command(by, more)).done();
        self.subject.is_back();
        let call = self.path("call");
        fs::write(&call, "").expect("make a file");
        self.subject
            .wait_until("steps", || steps(&log) > before + 3);
        assert_eq!(threads(self.subject.pid()).len(), 3);
        self.subject.kill();
        fs::remove_file(call).expect("remove the file");
        self.assert_no_process();
        self.subject.store().assert_sound();
    }

    /// While a file is moved away, and `instead` may have put another one there, it fails so. Then it works.
    #[track_caller]
    pub fn fails_without(&mut self, name: &str, instead: impl Fn(&Path), code: i32, says: &str) {
        let (path, aside) = (self.path(name), self.path("aside"));
        fs::rename(&path, &aside).expect("move a file away");
        instead(&path);
        let shown = path.to_str().expect("a plain path");
        self.fails(code, &[shown, says]);
        if path.is_dir() {
            fs::remove_dir_all(&path).expect("remove a directory")
        } else {
            drop(fs::remove_file(&path))
        }
        fs::rename(&aside, &path).expect("move it back");
        self.works();
    }

    #[track_caller]
    pub fn refuses(&self, says: &[&str]) {
        fails(&pagetide_by(&mut self.command(&[], &[])), 3, says);
        self.assert_no_process();
    }

    pub fn listed(&self) -> Outcome {
        pagetide_by(&mut self.command(&[], &["--dry-run"])).done()
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.subject.kill();
        fs::remove_file(&self.memory).ok();
    }
}

fn more_of_checkpoint(more: &[&str]) -> &'static [&'static str] {
    if more.contains(&"family") {
        &["--tree"]
    } else {
        &[]
    }
}

/// The number of whole lines of a log, none of which may tell of something wrong.
pub fn steps(log: &Path) -> usize {
    let text = fs::read_to_string(log).unwrap_or_default();
    assert!(!text.contains("WRONG"), "{text}");
    text.matches('\n').count()
}

fn threads(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("list threads");
    let names = tasks.flatten().map(|task| task.file_name());
    names
        .map(|name| name.to_string_lossy().parse().expect("a number"))
        .collect()
}

/// The numbers of the System V segments that a process has attached.
fn segments(pid: i32) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("read its mappings");
    let lines = maps.lines().filter(|line| line.contains("/SYSV"));
    lines
        .filter_map(|line| line.split_whitespace().nth(4).map(str::to_owned))
        .collect()
}

/// Short, and different for different bytes.
fn shown(bytes: &[u8]) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{} bytes, {:x}", bytes.len(), hasher.finish())
}

/// Every file below a directory, and what it is.
fn list(directory: &Path, found: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let metadata = fs::symlink_metadata(&path).expect("look at a file");
        let mode = metadata.mode();
        let kind = metadata.file_type();
        let what = if kind.is_file() {
            shown(&fs::read(&path).expect("read a file"))
        } else if kind.is_dir() {
            list(&path, found);
            String::from("a directory")
        } else if kind.is_socket() {
            String::from("a socket")
        } else {
            String::from("something else")
        };
        found.insert(path, format!("{mode:o} {what}"));
    }
}
