//! A store and the calls of `pagetide` on it.

use crate::frozen::Frozen;
use crate::image::Image;
use crate::json::{list, text};
use crate::run::{Background, Outcome, pagetide};
use crate::scratch::Scratch;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// `--accept NAME` for all that could not be brought back of a process and its children.
#[track_caller]
pub fn accepting(pid: i32) -> Vec<String> {
    let found = pagetide(["inspect", &pid.to_string(), "--tree", "--json"]);
    let found = found.json();
    let names = list(&found, "blockers").iter();
    let names = names.map(|blocker| text(blocker, "name").to_owned());
    names
        .flat_map(|name| ["--accept".to_owned(), name])
        .collect()
}

/// A store in a scratch directory.
pub struct TestStore {
    scratch: Scratch,
    exports: AtomicU64,
}

impl Default for TestStore {
    fn default() -> Self {
        Self::new()
    }
}

impl TestStore {
    /// A store that does not exist yet.
    pub fn new() -> Self {
        Self {
            scratch: Scratch::new(),
            exports: AtomicU64::new(0),
        }
    }

    /// The directory the store lies in.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The directory of the store.
    pub fn path(&self) -> PathBuf {
        self.scratch.join("store")
    }

    /// The directory of the store as an argument.
    pub fn text(&self) -> String {
        self.path().to_str().expect("a plain path").to_owned()
    }

    /// The words of `checkpoint PID --store S --json` and `more`.
    pub fn checkpoint_words(&self, pid: i32, more: &[&str]) -> Vec<String> {
        let mut words: Vec<String> = vec![
            "checkpoint".into(),
            pid.to_string(),
            "--store".into(),
            self.text(),
            "--json".into(),
        ];
        words.extend(more.iter().map(|word| (*word).to_owned()));
        words
    }

    /// `checkpoint PID --store S --json` and `more`.
    pub fn try_checkpoint(&self, pid: i32, more: &[&str]) -> Outcome {
        pagetide(self.checkpoint_words(pid, more))
    }

    /// One snapshot after which the process must be killed, whatever of it could not be brought back; its report.
    #[track_caller]
    pub fn checkpoint_and_kill(&self, pid: i32, more: &[&str]) -> Value {
        let accepted = accepting(pid);
        let words = ["--leave", "killed"]
            .into_iter()
            .chain(more.iter().copied());
        let words: Vec<&str> = words.chain(accepted.iter().map(String::as_str)).collect();
        let report = self.checkpoint(pid, &words);
        assert_eq!(report["left"], "killed", "{report}");
        report
    }

    /// One snapshot that must be done; its report.
    #[track_caller]
    pub fn checkpoint(&self, pid: i32, more: &[&str]) -> Value {
        self.try_checkpoint(pid, more).done().json()
    }

    /// What `read` makes of the raw export of snapshot `id`.
    #[track_caller]
    fn exported<T>(&self, id: u64, more: &[&str], read: impl FnOnce(&Path) -> T) -> T {
        let name = format!("export-{}", self.exports.fetch_add(1, Ordering::Relaxed));
        let directory = self.scratch.join(&name);
        let (store, at) = (self.text(), id.to_string());
        let words = ["export", &store, "--at", &at, "--format", "raw", "-o"];
        let words = words.iter().map(std::ffi::OsStr::new);
        let words = words.chain([directory.as_os_str()]);
        pagetide(words.chain(more.iter().map(std::ffi::OsStr::new))).done();
        let found = read(&directory);
        std::fs::remove_dir_all(&directory).expect("remove an export");
        found
    }

    /// The process at snapshot `id`.
    #[track_caller]
    pub fn image(&self, id: u64) -> Image {
        self.exported(id, &[], Image::of_export)
    }

    /// The processes at snapshot `id` of a tree, by pid.
    #[track_caller]
    pub fn images(&self, id: u64) -> BTreeMap<i32, Image> {
        let pid_of = |name: &std::ffi::OsStr| name.to_str().and_then(|name| name.parse().ok());
        self.exported(id, &[], |directory| {
            let entries = std::fs::read_dir(directory).expect("list an export");
            let entries = entries.map(|entry| entry.expect("list an export"));
            entries
                .map(|entry| {
                    let pid = pid_of(&entry.file_name()).expect("a directory for each process");
                    (pid, Image::of_export(&entry.path()))
                })
                .collect()
        })
    }

    /// Snapshot `id` holds exactly these stopped processes, each as it is.
    #[track_caller]
    pub fn assert_equals_all(&self, id: u64, processes: &[Frozen], what: &str) {
        let (store, at) = (self.text(), id.to_string());
        let words = ["show", &store, "--at", &at, "--json"];
        let answer = pagetide(words).done().json();
        let spaces = crate::json::list(&answer, "spaces").iter();
        let held: BTreeSet<&str> = spaces
            .map(|space| crate::json::text(space, "name"))
            .filter_map(|name| name.strip_prefix("mem:"))
            .collect();
        let wanted: Vec<String> = processes.iter().map(|p| p.pid().to_string()).collect();
        let wanted: BTreeSet<&str> = wanted.iter().map(String::as_str).collect();
        // One that has ended since the snapshot began has a space with nothing in it.
        assert!(
            held.is_superset(&wanted),
            "{what}: {held:?} instead of {wanted:?}"
        );
        for frozen in processes {
            // One by one: together they may be larger than a disk.
            let pid = frozen.pid();
            let read = |directory: &Path| Image::of_export(&directory.join(pid.to_string()));
            let image = self.exported(id, &["--pid", &pid.to_string()], read);
            if let Some(difference) = Image::of_process(frozen).difference(&image) {
                panic!("{what}: snapshot {id} is not what process {pid} held: {difference}");
            }
        }
    }

    /// Snapshot `id` is what the stopped process holds. Returns what it holds.
    #[track_caller]
    pub fn assert_equals(&self, id: u64, truth: &Image, what: &str) {
        if let Some(difference) = truth.difference(&self.image(id)) {
            panic!("{what}: snapshot {id} is not what the process held: {difference}");
        }
    }

    /// A checkpoint of a stopped process, compared with what the process holds. `before` reads the
    /// process before the checkpoint, else after it: reading changes which pages exist. It must be
    /// after it where tracking begins, because the thread that makes system calls for us passes through
    /// user mode, and the kernel then tells it in memory which processor it is on (rseq).
    #[track_caller]
    pub fn checkpoint_exactly(
        &self,
        frozen: &Frozen,
        more: &[&str],
        before: bool,
    ) -> (Value, Image) {
        let early = before.then(|| Image::of_process(frozen));
        let report = self.checkpoint(frozen.pid(), more);
        frozen.assert_still_stopped();
        let truth = early.unwrap_or_else(|| Image::of_process(frozen));
        let id = crate::json::number(&report, "id");
        self.assert_equals(id, &truth, &format!("{report}"));
        (report, truth)
    }

    /// Every byte of every snapshot is as it was stored.
    #[track_caller]
    pub fn assert_sound(&self) {
        let answer = pagetide(["verify", &self.text(), "--json"]).done().json();
        assert_eq!(answer["ok"], true, "{answer}");
    }

    /// `log --json`.
    #[track_caller]
    pub fn log(&self) -> Vec<Value> {
        let answer = pagetide(["log", &self.text(), "--json"]).done().json();
        crate::json::list(&answer, "snapshots").to_vec()
    }

    /// Waits for a snapshot that began after this call, of checkpoints into it on a schedule: its id.
    #[track_caller]
    pub fn taken_from_now_on(&self, schedule: &mut Background) -> u64 {
        // The one after the newest may be under way already.
        let log = self.log();
        let newest = log.last().map_or(0, |line| crate::json::number(line, "id"));
        loop {
            let id = schedule.next_id();
            if id >= newest + 2 {
                return id;
            }
        }
    }
}
