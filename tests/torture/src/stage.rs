//! One target with its store, and every step that is done to it.

pub mod during;

use crate::conditions::Conditions;
use crate::driver_stores;
use crate::machine::Machine;
use crate::model::{PREPARED, PREPARED_PAGES};
use crate::program::{kind, numbers};
use crate::random::Random;
use crate::random::page_of;
use crate::tally::Tally;
use nix::errno::Errno;
use pagetide_tests::{
    Background, Frozen, Image, Outcome, Target, TestStore, background, caught, compiled, number,
    pagetide, text, thread_states,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;
use std::any::Any;
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::Receiver;
use std::time::Duration;

/// Truths that are kept for a rollback.
const KEPT: usize = 3;

/// A run of pagetide whose output is read as it comes, so that it never waits for us.
struct Running {
    pid: i32,
    // A number may be another's once it has ended.
    pidfd: OwnedFd,
    outcome: Receiver<Outcome>,
}

impl Running {
    fn of(mut run: Background) -> Self {
        let (sender, outcome) = std::sync::mpsc::channel();
        let pid = run.pid();
        let pidfd = Pid::from_raw(pid)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            .expect("open pagetide's pidfd");
        std::thread::spawn(move || sender.send(run.wait()));
        Self {
            pid,
            pidfd,
            outcome,
        }
    }

    fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Its end, but nobody waits for ever.
    fn wait(self, patience: Duration) -> Result<Outcome, String> {
        self.outcome.recv_timeout(patience).map_err(|_| {
            let stack = std::fs::read_to_string(format!("/proc/{}/stack", self.pid));
            self.signal(Signal::KILL);
            format!("pagetide does not end: {stack:?}")
        })
    }
}

/// Checkpoints under way while the target runs.
struct Overlap {
    run: Running,
    repeated: bool,
    /// The target became another program meanwhile, which ends them.
    exec: bool,
}

/// See the head of this file.
pub struct Stage {
    target: Target,
    store: TestStore,
    disk: tempfile::TempDir,
    // Dropped after the target: swap is turned off faster when nobody uses it.
    machine: Machine,
    backend: String,
    overlap: Option<Overlap>,
    truths: VecDeque<(u64, Image)>,
    digests: Vec<(u64, u64)>,
    patience: Duration,
    /// What was done so far.
    pub tally: Tally,
    random: Random,
}

/// What is said of pages that a snapshot left in a file which has changed: they are gone with what the file held.
const FILE_HAS_CHANGED: &str = ", which was modified since";

fn prepared(directory: &Path, file: u64) -> PathBuf {
    directory.join(format!("prepared-{}", file % PREPARED))
}

impl Stage {
    /// A new target and an empty store.
    pub fn new(conditions: &Conditions) -> Self {
        let disk = tempfile::Builder::new()
            .prefix("pagetide-torture-")
            .tempdir_in(&conditions.disk)
            .expect("make a directory on disk");
        for file in 0..PREPARED {
            let pages = (0..PREPARED_PAGES).flat_map(|page| page_of(file * 1000 + page));
            std::fs::write(prepared(disk.path(), file), pages.collect::<Vec<u8>>())
                .expect("write a file");
        }
        let memory = if Path::new("/dev/shm").is_dir() {
            Path::new("/dev/shm")
        } else {
            disk.path()
        };
        let mut command = Command::new(compiled("adversary"));
        // Without restartable sequences: a thread that makes system calls for us passes through user
        // mode, and the kernel would then tell it in memory which processor it is on.
        command.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0");
        Self {
            target: Target::start_by(command.arg(disk.path()).arg(memory)),
            store: TestStore::new(),
            disk,
            machine: Machine::new(),
            backend: conditions.backend.clone(),
            overlap: None,
            truths: VecDeque::new(),
            digests: Vec::new(),
            patience: conditions.patience,
            tally: Tally::default(),
            random: Random::new(0),
        }
    }

    /// Operations of the target, in one piece. The last may make it another program. The error is what
    /// the target does if it does not answer.
    pub fn operate(&mut self, lines: &[String]) -> Result<(), String> {
        if lines.is_empty() {
            return Ok(());
        }
        self.target.tell(&lines.join("\n"));
        self.hear(lines)
    }

    /// The answers to these.
    fn hear(&mut self, lines: &[String]) -> Result<(), String> {
        for line in lines {
            let answer = caught(|| self.target.line());
            let answer = answer.map_err(|_| {
                let pid = self.target.pid();
                let stack = std::fs::read_to_string(format!("/proc/{pid}/stack"));
                let states = thread_states(pid);
                format!("no answer to {line}: its threads are {states:?}, {stack:?}")
            })?;
            let outcome = match answer.strip_prefix("no ") {
                None => Ok(()),
                Some(number) => Err(Errno::from_raw(number.parse().unwrap_or(0)).to_string()),
            };
            if line == "exec"
                && let Some(overlap) = &mut self.overlap
            {
                overlap.exec = true;
            }
            self.tally.count(kind(line), outcome);
        }
        Ok(())
    }

    /// A step of the driver. The error is what a snapshot or the target has come to that it must not.
    pub fn drive(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| numbers(line).get(at).copied().unwrap_or(0);
        match words[0] {
            "!check" => {
                self.end()?;
                self.check(&words[1..])
            }
            "!during" => self.during(&[], line),
            "!begin" | "!every" => {
                self.end()?;
                self.begin(words[0] == "!every", words[1])
            }
            "!end" => self.end(),
            "!kill" => {
                self.end()?;
                self.kill(number(0))
            }
            "!rollback" => {
                self.end()?;
                self.roll_back(number(0) as usize)
            }
            "!detach" => {
                self.end()?;
                self.detach()
            }
            "!store" => {
                self.end()?;
                self.review()?;
                self.detach()?;
                self.store = TestStore::new();
                self.tally.count("!store".into(), Ok(()));
                Ok(())
            }
            "!prepared" => {
                let path = prepared(self.disk.path(), number(0));
                let file = File::options().write(true).open(path).expect("open a file");
                let place = number(1) * 4096;
                file.write_all_at(&page_of(number(2)), place)
                    .expect("write a file");
                self.tally.count("!prepared".into(), Ok(()));
                Ok(())
            }
            "!age" => {
                std::thread::sleep(Duration::from_millis(2100));
                self.tally.count("!age".into(), Ok(()));
                Ok(())
            }
            "!poke" if self.overlap.is_some() => {
                // A process has one tracer.
                let busy = Err("a checkpoint is under way".to_owned());
                self.tally.count("!poke".into(), busy);
                Ok(())
            }
            "!poke" | "!mem" | "!vm" => {
                let outcome =
                    driver_stores::store(words[0], self.target.pid(), number(0), number(1));
                self.tally.count(words[0].to_owned(), outcome);
                Ok(())
            }
            _ => {
                let outcome = self.machine.perform(line);
                self.tally.count(kind(line), outcome);
                Ok(())
            }
        }
    }

    fn done(&self, what: &str, code: Option<i32>, stderr: &str) -> Result<(), String> {
        match code {
            Some(0) => Ok(()),
            _ => Err(format!("{what} ended with {code:?}: {stderr}")),
        }
    }

    fn words<'a>(&'a self, mode: &'a str) -> Vec<&'a str> {
        let mut words = vec!["--backend", self.backend.as_str()];
        match mode {
            "auto" => {}
            "full" => words.push("--full"),
            _ => words.extend(["--mode", mode]),
        }
        words
    }

    fn detach(&mut self) -> Result<(), String> {
        let outcome = pagetide(["detach", &self.target.pid_text()]);
        self.done("detach", outcome.code, &outcome.stderr)?;
        self.tally.count("!detach".into(), Ok(()));
        Ok(())
    }

    /// A snapshot of the stopped target equals it.
    fn check(&mut self, words: &[&str]) -> Result<(), String> {
        let [mode, when, stop] = words[..] else {
            return Err(format!("cannot be understood: {words:?}"));
        };
        let mut options = self.words(mode);
        let leave = stop == "leave";
        let frozen = if leave {
            options.extend(["--leave", "stopped"]);
            None
        } else {
            Some(Frozen::freeze_alone(self.target.pid()))
        };
        let early = frozen
            .as_ref()
            .filter(|_| when == "before")
            .map(Image::of_process);
        let run = background(self.store.checkpoint_words(self.target.pid(), &options));
        let outcome = Running::of(run).wait(self.patience)?;
        // Whatever it has come to, the target must be found stopped, and it must run on later.
        let frozen = frozen.unwrap_or_else(|| Frozen::freeze_alone(self.target.pid()));
        self.done("checkpoint", outcome.code, &outcome.stderr)?;
        let kind = format!("!check {mode}");
        self.compare(frozen, early, &outcome.json(), kind)?;
        if leave {
            self.tally.count("!leave stopped".into(), Ok(()));
        }
        Ok(())
    }

    /// The snapshot of this report is what the stopped target holds; it runs on.
    fn compare(
        &mut self,
        frozen: Frozen,
        early: Option<Image>,
        report: &Value,
        kind: String,
    ) -> Result<(), String> {
        frozen.assert_still_stopped();
        let truth = early.unwrap_or_else(|| Image::of_process(&frozen));
        let id = number(report, "id");
        let export = self.store.image(id);
        if let Some(difference) = truth.difference(&export) {
            let pages = truth.differing_pages(&export);
            let facts = pages.first().map(|&page| facts(frozen.pid(), page));
            return Err(format!(
                "snapshot {id} is not what the process held: {difference}\n{}\n{report}",
                facts.unwrap_or_default()
            ));
        }
        drop(frozen);
        self.count_snapshot(report);
        self.tally.compared += 1;
        self.tally.compared_pages += truth.page_count() as u64;
        self.tally.count(kind, Ok(()));
        self.digests.push((id, export.digest()));
        self.truths.push_front((id, truth));
        self.truths.truncate(KEPT);
        Ok(())
    }

    fn count_snapshot(&mut self, report: &Value) {
        match text(report, "kind") {
            "full" => self.tally.full += 1,
            _ => self.tally.delta += 1,
        }
        self.tally.written_pages += number(report, "written_pages");
    }

    /// Checkpoints begin, and the target runs on.
    fn begin(&mut self, repeated: bool, how: &str) -> Result<(), String> {
        let interval = format!("{how}ms");
        let options = if repeated {
            [self.words("auto"), vec!["--every", &interval]].concat()
        } else {
            self.words(how)
        };
        let run = background(self.store.checkpoint_words(self.target.pid(), &options));
        let run = Running::of(run);
        self.overlap = Some(Overlap {
            run,
            repeated,
            exec: false,
        });
        Ok(())
    }

    /// They end.
    fn end(&mut self) -> Result<(), String> {
        let Some(overlap) = self.overlap.take() else {
            return Ok(());
        };
        if overlap.repeated {
            overlap.run.signal(Signal::INT);
        }
        let outcome = overlap.run.wait(self.patience)?;
        let fine = match outcome.code {
            Some(0) => true,
            Some(130) => overlap.repeated,
            // It had not begun to listen to signals.
            None => overlap.repeated && outcome.signal == Some(2),
            _ => overlap.exec,
        };
        let kind = if overlap.repeated { "!every" } else { "!begin" };
        // A call of the target may be long under way when the machine is busy.
        if outcome.stderr.contains("did not stop within") {
            let late = Err("did not stop in time".to_owned());
            self.tally.count(kind.into(), late);
            return Ok(());
        }
        if !fine {
            let (code, stderr) = (outcome.code, &outcome.stderr);
            return Err(format!(
                "checkpoint of the running process ended with {code:?}: {stderr}"
            ));
        }
        self.tally.overlapped += outcome.stdout.lines().count() as u64;
        self.tally.count(kind.into(), Ok(()));
        Ok(())
    }

    /// A checkpoint is killed a moment after it has begun to write: so many units of 50 microseconds.
    fn kill(&mut self, moment: u64) -> Result<(), String> {
        let files = |store: &TestStore| {
            let entries = std::fs::read_dir(store.path().join("snapshots"));
            entries.map_or(0, |entries| entries.count())
        };
        let before = files(&self.store);
        let options = self.words("auto");
        let mut run = background(self.store.checkpoint_words(self.target.pid(), &options));
        while run.is_running() && files(&self.store) <= before {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_micros(50) * moment as u32);
        let killed = run.is_running();
        run.signal_if_running(Signal::KILL);
        let outcome = run.wait();
        if !killed {
            self.done("checkpoint", outcome.code, &outcome.stderr)?;
        }
        let late = (!killed).then(|| "too late".to_owned());
        self.tally.count("!kill".into(), late.map_or(Ok(()), Err));
        Ok(())
    }

    /// Back to a snapshot that was compared. It may be refused, but then nothing changes.
    fn roll_back(&mut self, newest: usize) -> Result<(), String> {
        let Some((id, truth)) = self.truths.get(newest) else {
            self.tally
                .count("!rollback".into(), Err("no such snapshot".into()));
            return Ok(());
        };
        let at = id.to_string();
        let frozen = Frozen::freeze_alone(self.target.pid());
        let before = Image::of_process(&frozen);
        let words = [
            "rollback",
            &self.target.pid_text(),
            &self.store.text(),
            "--at",
            &at,
        ];
        let outcome = pagetide(words);
        frozen.assert_still_stopped();
        let wanted = match outcome.code {
            Some(0) => truth,
            _ => &before,
        };
        let now = Image::of_process(&frozen);
        if let Some(difference) = wanted.difference(&now) {
            let code = outcome.code;
            return Err(format!(
                "after a rollback to {id} that ended with {code:?} (process: wanted, export: is): {difference}\n{}",
                outcome.stderr
            ));
        }
        drop(frozen);
        if outcome.code == Some(0) {
            self.skip_what_is_said_again()?;
        }
        let refused = match outcome.code {
            Some(0) => Ok(()),
            Some(3) => Err("refused".to_owned()),
            Some(1) if outcome.stderr.contains(FILE_HAS_CHANGED) => {
                Err("a file was modified since".to_owned())
            }
            code => return Err(format!("rollback ended with {code:?}: {}", outcome.stderr)),
        };
        self.tally.count("!rollback".into(), refused);
        Ok(())
    }

    /// A target that was put back into the middle of what it did answers it a second time.
    fn skip_what_is_said_again(&mut self) -> Result<(), String> {
        self.target.tell("\nmark");
        loop {
            match caught(|| self.target.line()) {
                Ok(line) if line == "mark" => return Ok(()),
                Ok(_) => (),
                Err(_) => return Err("no answer after a rollback".to_owned()),
            }
        }
    }

    /// Old snapshots are what they were, and the store is sound.
    pub fn review(&mut self) -> Result<(), String> {
        self.truths.clear();
        let mut digests = std::mem::take(&mut self.digests);
        while digests.len() > 3 {
            digests.swap_remove(self.random.dice(digests.len() as u64) as usize);
        }
        for (id, digest) in &digests {
            let now = caught(|| self.store.image(*id).digest());
            let outcome = match now {
                Ok(now) if now == *digest => Ok(()),
                Ok(_) => return Err(format!("snapshot {id} has changed since it was taken")),
                Err(panic) => match text_of(panic) {
                    text if text.contains(FILE_HAS_CHANGED) => {
                        Err("a file was modified since".to_owned())
                    }
                    text => return Err(text),
                },
            };
            self.tally.count("!review".into(), outcome);
        }
        if !digests.is_empty() {
            self.store.assert_sound();
        }
        Ok(())
    }

    /// The last things: what is under way ends, the store is looked at, the target still runs.
    pub fn finish(mut self) -> Result<Tally, String> {
        self.end()?;
        self.review()?;
        if !self.target.is_alive() {
            return Err("the target has ended".into());
        }
        self.tally.programs += 1;
        Ok(self.tally)
    }
}

/// What a panic says.
pub fn text_of(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic
            .downcast::<&str>()
            .map_or("a panic".into(), |text| (*text).to_owned()),
    }
}

/// What the kernel says of a page of a stopped process.
fn facts(pid: i32, address: u64) -> String {
    let mut entry = [0; 8];
    let read = File::open(format!("/proc/{pid}/pagemap"))
        .and_then(|pagemap| pagemap.read_exact_at(&mut entry, address / 4096 * 8));
    let entry = match read {
        Ok(()) => format!("{:#018x}", u64::from_le_bytes(entry)),
        Err(error) => error.to_string(),
    };
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let is_head = |line: &&str| {
        line.split_once(' ')
            .is_some_and(|(range, _)| range.contains('-'))
    };
    let heads: Vec<&str> = smaps
        .lines()
        .filter(|line| is_head(line) || line.starts_with("VmFlags"))
        .collect();
    let holds = |line: &str| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let start = u64::from_str_radix(start, 16).ok()?;
        let end = u64::from_str_radix(end, 16).ok()?;
        Some((start..end).contains(&address))
    };
    let at = heads.iter().position(|line| holds(line) == Some(true));
    let mapping = at.map(|at| heads[at..(at + 2).min(heads.len())].join("\n  "));
    format!(
        "page {} of the area, pagemap {entry}\n  {}",
        address.wrapping_sub(driver_stores::AREA) / 4096,
        mapping.unwrap_or_default()
    )
}
