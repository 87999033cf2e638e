//! Prevents that a restore that cannot be done leaves anything behind (a process, a file, a name of a socket), spoils what is
//! there, or does not say why; and that a store which others could have written to is run.

use crate::bad::{Mounted, contents, fails, is_root};
use pagetide_tests::{
    Outcome, Scratch, Subject, Target, compiled, family, pagetide_by, pagetide_path,
};
use rustix::process::{Pid, WaitOptions, waitpid};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// So long what was killed may take to be gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// By this variable of the environment all processes of a test are known: those of the program and those of pagetide.
const MARK: &str = "PAGETIDE_TEST_MARK";

/// The program `targets/failing.c`, with a full snapshot and a delta, killed.
struct Killed {
    subject: Subject,
    directory: PathBuf,
    /// A file in memory that the program maps.
    memory: PathBuf,
    /// All processes and threads that it had.
    numbers: Vec<i32>,
    /// The System V segments that it had.
    segments: Vec<String>,
}

impl Killed {
    fn new(more: &[&str]) -> Killed {
        let scratch = Scratch::new();
        let name = scratch.path().file_name().expect("it has a name");
        let memory = Path::new("/dev/shm").join(name);
        Killed::with_memory(scratch, memory, more)
    }

    fn with_memory(scratch: Scratch, memory: PathBuf, more: &[&str]) -> Killed {
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
        Killed {
            subject,
            directory,
            memory,
            numbers,
            segments,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn store(&self) -> PathBuf {
        self.subject.store().path()
    }

    /// `BY pagetide restore STORE --detach MORE`
    fn command(&self, by: &[&str], more: &[&str]) -> Command {
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
    fn fails_by(&self, by: &[&str], more: &[&str], code: i32, says: &[&str]) {
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
    fn fails(&self, code: i32, says: &[&str]) {
        self.fails_by(&[], &[], code, says);
    }

    /// What can be seen of files and segments.
    fn there(&self) -> BTreeMap<PathBuf, String> {
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
    fn processes(&self) -> Vec<i32> {
        for pid in self.numbers.iter().filter_map(|pid| Pid::from_raw(*pid)) {
            // Orphans are adopted by the tests.
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
        let wanted = format!("{MARK}={}", self.directory.display());
        let all = fs::read_dir("/proc").expect("list processes").flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let read = |name| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let has_number = self.numbers.contains(pid)
                && ["pagetide", "program"].contains(&String::from_utf8_lossy(&read("comm")).trim());
            let marked = read("environ")
                .split(|byte| *byte == 0)
                .any(|variable| variable == wanted.as_bytes());
            marked || has_number
        })
        .collect()
    }

    #[track_caller]
    fn assert_no_process(&self) {
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
    fn works(&mut self) {
        self.works_by(&[], &[]);
    }

    #[track_caller]
    fn works_by(&mut self, by: &[&str], more: &[&str]) {
        let log = self.path("log");
        let before = steps(&log);
        pagetide_by(&mut self.command(by, more)).done();
        self.subject
            .wait_until("steps", || steps(&log) > before + 3);
        assert_eq!(threads(self.subject.pid()).len(), 3);
        self.subject.kill();
        self.assert_no_process();
        self.subject.store().assert_sound();
    }

    /// While a file is moved away, and `instead` may have put another one there, it fails so. Then it works.
    #[track_caller]
    fn fails_without(&mut self, name: &str, instead: impl Fn(&Path), code: i32, says: &str) {
        let (path, aside) = (self.path(name), self.path("aside"));
        fs::rename(&path, &aside).expect("move a file away");
        instead(&path);
        let shown = path.to_str().expect("a plain path");
        self.fails(code, &[shown, says]);
        match path.is_dir() {
            true => fs::remove_dir_all(&path).expect("remove a directory"),
            false => drop(fs::remove_file(&path)),
        }
        fs::rename(&aside, &path).expect("move it back");
        self.works();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.subject.kill();
        fs::remove_file(&self.memory).ok();
    }
}

fn more_of_checkpoint(more: &[&str]) -> &'static [&'static str] {
    match more.contains(&"family") {
        true => &["--tree"],
        false => &[],
    }
}

/// The number of whole lines of a log, none of which may tell of something wrong.
fn steps(log: &Path) -> usize {
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

#[test]
fn a_number_that_somebody_else_has() {
    if !is_root("a number that somebody else has") {
        return;
    }
    let mut killed = Killed::new(&["family"]);
    let root = killed.subject.pid();
    let numbers = killed.numbers.clone();
    assert_eq!(numbers.len(), 4, "three threads and a child");
    for number in numbers {
        let occupant = Target::start("occupy", [number.to_string()]);
        let others: Vec<i32> = killed.numbers.clone();
        killed.numbers.retain(|other| *other != number);
        let says = format!("the number {number} ");
        killed.fails(3, &[&says, "belongs to the process occupy"]);
        killed.numbers = others;
        drop(occupant);
    }
    killed.works();
    assert_eq!(killed.subject.pid(), root);
}

#[test]
fn a_file_that_is_not_what_it_was() {
    let mut killed = Killed::new(&[]);
    let nothing = |_: &Path| {};
    let other = |path: &Path| fs::write(path, "other").expect("write a file");
    let directory = |path: &Path| fs::create_dir(path).expect("make a directory");
    for name in ["mapped", "program"] {
        killed.fails_without(name, nothing, 3, "No such file or directory");
        killed.fails_without(name, other, 3, "is 5 bytes long now and was");
    }
    killed.fails_without("data", nothing, 3, "it is gone");
    killed.fails_without("data", other, 3, "it was 4 bytes long, and is 5");
    killed.fails_without("data", directory, 3, "it is a file of another type now");
    killed.fails_without("log", nothing, 3, "it is gone");
    killed.fails_without("log", other, 3, "shorter than the position of the program");
    killed.fails_without("work", nothing, 3, "No such file or directory");
    killed.fails_without("work", other, 3, "it is a file of another type now");
}

#[test]
fn the_name_of_its_socket_is_taken() {
    let mut killed = Killed::new(&[]);
    let path = killed.path("socket");
    let shown = path.to_str().expect("a plain path").to_owned();
    let says = [shown.as_str(), "Address already in use"];
    for living in [true, false] {
        fs::remove_file(&path).ok();
        let listener = living.then(|| UnixListener::bind(&path).expect("listen"));
        if !living {
            fs::write(&path, "a file").expect("write a file");
        }
        let before = killed.there();
        fails(&pagetide_by(&mut killed.command(&[], &[])), 3, &says);
        killed.assert_no_process();
        assert_eq!(before, killed.there());
        drop(listener);
        fs::remove_file(&path).expect("remove the socket");
        killed.works();
    }
}

/// A file of the store, damaged while this exists.
struct Damaged {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Damaged {
    fn at(path: PathBuf, damage: impl Fn(&mut Vec<u8>)) -> Damaged {
        let bytes = fs::read(&path).expect("read a file of the store");
        let mut damaged = bytes.clone();
        damage(&mut damaged);
        fs::write(&path, damaged).expect("write a file of the store");
        Damaged { path, bytes }
    }
}

impl Drop for Damaged {
    fn drop(&mut self) {
        fs::write(&self.path, &self.bytes).expect("write a file of the store");
    }
}

#[test]
fn a_store_that_is_damaged() {
    let mut killed = Killed::new(&[]);
    let first = killed.store().join("snapshots/0000000001.snap");
    let second = killed.store().join("snapshots/0000000002.snap");
    let flip = |bytes: &mut Vec<u8>, percent: usize| {
        let at = bytes.len() * percent / 100;
        bytes[at] ^= 0x10;
    };
    // Pages that no other snapshot has: the largest part of the first.
    for percent in [20, 50, 80] {
        let damaged = Damaged::at(first.clone(), |bytes| flip(bytes, percent));
        killed.fails(
            1,
            &[
                "snapshot 1 ",
                "is damaged",
                "`pagetide verify` names all damage",
            ],
        );
        drop(damaged);
        killed.works();
    }
    for keep in [0, 100, 1000] {
        let damaged = Damaged::at(second.clone(), |bytes| bytes.truncate(keep));
        killed.fails_by(&[], &["--at", "2"], 1, &["snapshot 2 ", "is damaged"]);
        drop(damaged);
    }
    killed.works();
    let aside = killed.path("aside");
    fs::rename(&first, &aside).expect("move a snapshot away");
    killed.fails(1, &["snapshot 1"]);
    fs::rename(&aside, &first).expect("move it back");
    killed.works();
}

#[test]
fn too_little_memory() {
    let mut killed = Killed::new(&["large"]);
    let says = ["cannot map ", "Cannot allocate memory"];
    killed.fails_by(&["prlimit", "--as=4294967296"], &[], 1, &says);
    killed.works();
}

#[test]
fn too_few_open_files() {
    let mut killed = Killed::new(&[]);
    let says = ["the limit of open files is too low"];
    for hard in [12, 64, 4096, 4100] {
        let limit = format!("--nofile={hard}");
        killed.fails_by(&["prlimit", &limit], &[], 1, &says);
    }
    // A low soft limit is raised.
    killed.works_by(&["prlimit", "--nofile=256:8192"], &[]);
}

#[test]
fn no_room_for_a_file_of_memory() {
    if !is_root("a small file system of memory") {
        return;
    }
    let scratch = Scratch::new();
    let place = Scratch::new();
    let mounted = Mounted::on(&place.join("memory"), "size=16m");
    let mut killed = Killed::with_memory(scratch, place.join("memory/file"), &[]);
    fs::remove_file(&killed.memory).expect("remove the file");
    mounted.remount("size=64k");
    let path = killed.memory.clone();
    let path = path.to_str().expect("a plain path");
    killed.fails(1, &[path, "o space left"]);
    mounted.remount("size=16m");
    killed.works();
}

#[test]
fn pagetide_killed_at_any_moment() {
    let mut random = pagetide_tests::seed("pagetide_killed_at_any_moment");
    let mut killed = Killed::new(&["family"]);
    let since = Instant::now();
    pagetide_by(&mut killed.command(&[], &[])).done();
    let usual = since.elapsed();
    killed.subject.kill();
    let log = killed.path("log");
    let (mut early, mut whole) = (0, 0);
    let kills = pagetide_tests::from_environment("PAGETIDE_KILLS", 20);
    for round in 0..kills {
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let share = f64::from((random >> 40) as u32) / f64::from(1 << 24);
        if round % 2 == 0 {
            fs::remove_file(&killed.memory).ok();
        }
        let mut command = killed.command(&[], &[]);
        command.stdin(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("start pagetide");
        std::thread::sleep(usual.mul_f64(share));
        child.kill().expect("kill pagetide");
        let status = child.wait().expect("wait for pagetide");
        early += u64::from(!status.success());
        let before = steps(&log);
        let since = Instant::now();
        loop {
            let left = killed.processes();
            if left.is_empty() {
                break;
            }
            if left.len() == 2 && steps(&log) > before + 3 {
                whole += 1;
                break;
            }
            assert!(since.elapsed() < PATIENCE, "round {round}: {left:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        killed.subject.kill();
        killed.assert_no_process();
    }
    println!("{kills} kills: {early} while it ran; {whole} processes were whole");
    assert!(early * 3 > kills, "most came too late: {early} of {kills}");
    killed.works();
}

#[test]
fn a_store_that_others_can_write_to() {
    if !is_root("a store that others can write to") {
        return;
    }
    let mut killed = Killed::new(&[]);
    let store = killed.store();
    let all = contents(&store).into_keys();
    let all: Vec<PathBuf> = all
        .chain([store.join("snapshots"), store.clone()])
        .collect();
    for path in &all {
        let mode = fs::metadata(path).expect("look at a file").mode();
        let set = |mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        let shown = path.to_str().expect("a plain path").to_owned();
        for more in [0o020, 0o002] {
            set(mode | more).expect("change permissions");
            killed.refuses(&[&shown, "others can write to it"]);
        }
        set(mode).expect("change permissions");
        std::os::unix::fs::chown(path, Some(65534), None).expect("change the owner");
        killed.refuses(&[&shown, "others can write to it", "owner 65534"]);
        std::os::unix::fs::chown(path, Some(0), None).expect("change the owner");
    }
    killed.works();
}

#[test]
fn a_store_behind_a_link() {
    if !is_root("a store behind a link") {
        return;
    }
    let mut killed = Killed::new(&[]);
    let (store, link) = (killed.store(), killed.path("link"));
    std::os::unix::fs::symlink(&store, &link).expect("make a link");
    let restore = |killed: &Killed| {
        let mut command = Command::new(pagetide_path());
        command.arg("restore").arg(&link).arg("--detach");
        pagetide_by(command.env(MARK, &killed.directory))
    };
    // Whoever owns the link chooses what is run.
    std::os::unix::fs::lchown(&link, Some(65534), None).expect("change the owner");
    fails(&restore(&killed), 3, &["link", "others can write to it"]);
    std::os::unix::fs::lchown(&link, Some(0), None).expect("change the owner");
    fs::set_permissions(&store, fs::Permissions::from_mode(0o777)).expect("change permissions");
    fails(&restore(&killed), 3, &["link", "others can write to it"]);
    fs::set_permissions(&store, fs::Permissions::from_mode(0o700)).expect("change permissions");
    killed.assert_no_process();
    restore(&killed).done();
    killed.subject.assert_alive();
    killed.subject.kill();
    killed.works();
}

impl Killed {
    #[track_caller]
    fn refuses(&self, says: &[&str]) {
        fails(&pagetide_by(&mut self.command(&[], &[])), 3, says);
        self.assert_no_process();
    }

    fn listed(&self) -> Outcome {
        pagetide_by(&mut self.command(&[], &["--dry-run"])).done()
    }
}

#[test]
fn paths_are_listed_and_only_those_allowed_are_touched() {
    let mut killed = Killed::new(&["family"]);
    fs::remove_file(killed.path("socket")).expect("remove the socket");
    fs::remove_file(&killed.memory).expect("remove the file of memory");
    let before = killed.there();
    let listed = killed.listed();
    let paths: Vec<&str> = listed.stdout.lines().collect();
    let names = ["program", "data", "mapped", "log", "work", "socket"];
    let own = names.map(|name| killed.path(name));
    for path in own.iter().chain([&killed.memory]) {
        let path = path.to_str().expect("a plain path");
        assert!(paths.contains(&path), "{path} in {paths:?}");
    }
    killed.assert_no_process();
    assert_eq!(before, killed.there());
    let directory = killed.directory.to_str().expect("a plain path").to_owned();
    let memory = killed.memory.to_str().expect("a plain path").to_owned();
    // Each is needed: all that is listed lies in one of these.
    let allowed = [&*directory, "/usr", "/dev/null", &*memory];
    for without in 0..allowed.len() {
        let mut words = Vec::new();
        for (number, path) in allowed.iter().enumerate() {
            if number != without {
                words.extend(["--allow", path]);
            }
        }
        let outside = paths.iter().find(|path| path.starts_with(allowed[without]));
        let outside = outside.unwrap_or_else(|| panic!("{} in {paths:?}", allowed[without]));
        let outcome = pagetide_by(&mut killed.command(&[], &words));
        fails(&outcome, 3, &[outside, "is not allowed"]);
        killed.assert_no_process();
        assert_eq!(before, killed.there());
    }
    let words: Vec<&str> = allowed.iter().flat_map(|path| ["--allow", path]).collect();
    killed.works_by(&[], &words);
}

#[test]
fn without_privileges() {
    if !is_root("another user") {
        return;
    }
    let mut killed = Killed::new(&[]);
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    // The directories of tests are root's own.
    let parent = killed.store().parent().expect("a directory").to_owned();
    let modes = [&parent, &killed.directory];
    for path in modes {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("change permissions");
    }
    killed.fails_by(&nobody, &[], 1, &["store", "Permission denied"]);
    killed.works();
}
