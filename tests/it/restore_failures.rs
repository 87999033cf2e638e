//! Prevents that a restore that cannot be done leaves anything behind (a process, a file, a name of a socket), spoils what is
//! there, or does not say why; and that a store which others could have written to is run.

mod killed;

use crate::bad::{Mounted, contents, fails, is_root};
use killed::{Killed, MARK, PATIENCE, steps};
use pagetide_tests::{Scratch, Target, pagetide_by, pagetide_path};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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
        let says = format!("pid {number}, ");
        killed.fails(3, &[&says, "belongs to the process occupy"]);
        killed.numbers = others;
        drop(occupant);
        killed.assert_no_process();
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
    fn at(path: PathBuf, damage: impl Fn(&mut Vec<u8>)) -> Self {
        let bytes = fs::read(&path).expect("read a file of the store");
        let mut damaged = bytes.clone();
        damage(&mut damaged);
        fs::write(&path, damaged).expect("write a file of the store");
        Self { path, bytes }
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
    killed.fails(1, &["needs its parent 1, which does not exist"]);
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
    killed.works_by(&["prlimit", "--nofile=256:"], &[]);
}

#[test]
fn no_room_for_a_file_of_memory() {
    if !is_root("a small file system of memory") {
        return;
    }
    let scratch = Scratch::new();
    let place = Scratch::new();
    let mounted = Mounted::on(&place.join("memory"), "size=16m");
    let mut killed = Killed::with_memory(scratch, place.join("memory/file"), &["family"]);
    // It is shorter now. What was written to it before the file system was full is taken back.
    fs::write(&killed.memory, [7; 8 * 4096]).expect("write the file");
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
    // Of a tree each process is let go by itself, and some of them may be there.
    let mut killed = Killed::new(&[]);
    let since = Instant::now();
    pagetide_by(&mut killed.command(&[], &[])).done();
    let mut usual = since.elapsed();
    killed.subject.is_back();
    killed.subject.kill();
    let log = killed.path("log");
    let (mut early, mut whole) = (0, 0);
    let kills = pagetide_tests::from_environment("PAGETIDE_KILLS", 20);
    for round in 0.. {
        if early == kills {
            break;
        }
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
        if status.success() {
            usual = usual.mul_f64(0.9)
        } else {
            early += 1
        }
        let before = steps(&log);
        let since = Instant::now();
        loop {
            let left = killed.processes();
            if left.is_empty() {
                break;
            }
            if left.len() == 1 && steps(&log) > before + 3 {
                whole += 1;
                break;
            }
            assert!(since.elapsed() < PATIENCE, "round {round}: {left:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        killed.subject.is_back();
        killed.subject.kill();
        killed.assert_no_process();
    }
    println!("{kills} kills while it ran; {whole} processes were whole");
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
    killed.subject.is_back();
    killed.subject.assert_alive();
    killed.subject.kill();
    killed.works();
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
    killed.fails_by(&nobody, &[], 3, &["restore needs root", "--dry-run"]);
    killed.works();
}
