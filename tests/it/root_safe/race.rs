//! Directories, links and names of sockets are exchanged all the time while restores run: whatever a restore sees of them, nothing of the other side
//! is ever opened, changed, removed, or handed to the process.

use super::{NAMES, OTHER, Owned, state_of};
use crate::bad::is_root;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, lchown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// So long in a usual run. `make endure` asks for more.
const SECONDS: u64 = 10;

/// Exchanges two names until it is told to end, and leaves them as they were.
fn exchange(one: &Path, two: &Path, ends: &AtomicBool, pause_us: &AtomicU32) {
    let swap = || renameat_with(CWD, one, CWD, two, RenameFlags::EXCHANGE).expect("exchange");
    while !ends.load(Ordering::Relaxed) {
        swap();
        std::thread::sleep(Duration::from_micros(
            pause_us.load(Ordering::Relaxed).into(),
        ));
        swap();
        // Restores are to succeed now and then.
        let pause = pause_us.load(Ordering::Relaxed) * 3;
        std::thread::sleep(Duration::from_micros(pause.into()));
    }
}

#[test]
fn nothing_of_the_other_side_is_used_while_directories_are_exchanged() {
    if !is_root("a race for directories") {
        return;
    }
    let mut random = pagetide_tests::seed("a race for directories");
    let seconds = pagetide_tests::from_environment("PAGETIDE_RACE_SECONDS", SECONDS);
    let mut owned = Owned::new(&[]);
    let (work, other) = (owned.work.clone(), owned.other.clone());
    let link = work.with_file_name("link");
    symlink(&other, &link).expect("make a link");
    lchown(&link, Some(OTHER), None).expect("change the owner");
    let before = state_of(&other);
    let (mut restored, mut refused) = (0, 0);
    let since = Instant::now();
    for round in 0.. {
        if since.elapsed() > Duration::from_secs(seconds) && restored > 0 && refused > 0 {
            break;
        }
        assert!(
            since.elapsed() < Duration::from_secs(60 + 10 * seconds),
            "{restored} {refused}"
        );
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let pause_us = AtomicU32::new(1 << (8 + (random >> 33) % 9));
        // In turn a directory of root's, and a link to it.
        let with = if round % 2 == 0 { &other } else { &link };
        let ends = AtomicBool::new(false);
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| exchange(&work, with, &ends, &pause_us));
            let outcome = owned.restore();
            ends.store(true, Ordering::Relaxed);
            outcome
        });
        match outcome.code {
            Some(0) => {
                owned.subject.is_back();
                owned.assert_has_its_own();
                owned.subject.kill();
                restored += 1;
            }
            Some(1 | 3) => {
                let gone = !Path::new(&format!("/proc/{}", owned.subject.pid())).exists();
                assert!(gone, "{outcome:#?}");
                refused += 1;
            }
            _ => panic!("{outcome:#?}"),
        }
        let names: Vec<String> = state_of(&other).into_keys().collect();
        assert!(names.iter().eq(before.keys()), "{names:?}");
    }
    println!("{restored} restored and {refused} refused");
    assert_eq!(state_of(&other), before);
    owned.works();
}

/// What may be in the place of a socket by then.
#[derive(Clone, Copy, Debug)]
enum Decoy {
    /// Another name of a file of root's.
    File,
    /// Another name of a socket on which root listens.
    Live,
    /// A link to a socket of root's on which nobody listens.
    Link,
}

impl Decoy {
    fn put(self, at: &Path, other: &Path) {
        match self {
            Self::File => fs::hard_link(other.join(NAMES[0]), at),
            Self::Live => fs::hard_link(other.join("live"), at),
            Self::Link => symlink(other.join("socket"), at),
        }
        .expect("put it there");
    }
}

/// All below a directory, by inode.
fn inodes_below(directory: &Path) -> Vec<u64> {
    let entries = fs::read_dir(directory).expect("list").flatten();
    let below = |path: PathBuf| {
        let found = fs::symlink_metadata(&path).expect("look at it");
        let mut inodes = vec![found.ino()];
        if found.is_dir() {
            inodes.extend(inodes_below(&path));
        }
        inodes
    };
    entries.flat_map(|entry| below(entry.path())).collect()
}

/// Whose the files of a directory are, and what is in them; exchanging their other names changes times.
fn whose_and_what(directory: &Path) -> BTreeMap<String, (u32, u32, u32, u64, Vec<u8>)> {
    let entries = fs::read_dir(directory).expect("list").flatten();
    let tell = |path: &Path| {
        let found = fs::symlink_metadata(path).expect("look at it");
        let content = if found.is_file() {
            fs::read(path).expect("read it")
        } else {
            Vec::new()
        };
        (found.uid(), found.gid(), found.mode(), found.ino(), content)
    };
    let named = entries.map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        (name, tell(&entry.path()))
    });
    named.collect()
}

/// Takes away what a round has left, and leaves a socket on which nobody listens.
fn clear(work: &Path) {
    for entry in fs::read_dir(work).expect("list").flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        match name.to_string_lossy() {
            name if name.starts_with(".pagetide-") => fs::remove_dir_all(&path),
            name if name == "socket" || name == "decoy" => fs::remove_file(&path),
            _ => Ok(()),
        }
        .expect("remove it");
    }
    let socket = work.join("socket");
    drop(UnixListener::bind(&socket).expect("bind"));
    lchown(&socket, Some(OTHER), Some(OTHER)).expect("change the owner");
}

#[test]
fn nothing_in_the_place_of_a_socket_is_used_while_names_are_exchanged() {
    if !is_root("a race for names of sockets") {
        return;
    }
    let mut random = pagetide_tests::seed("a race for names of sockets");
    let seconds = pagetide_tests::from_environment("PAGETIDE_RACE_SECONDS", SECONDS);
    let mut owned = Owned::new(&[]);
    let (work, other) = (owned.work.clone(), owned.other.clone());
    let live = other.join("live");
    let listener = UnixListener::bind(&live).expect("bind");
    listener.set_nonblocking(true).expect("let it not wait");
    let (name, decoy) = (work.join("socket"), work.join("decoy"));
    let before = whose_and_what(&other);
    let (mut restored, mut refused) = (0, 0);
    let since = Instant::now();
    for kind in [Decoy::File, Decoy::Live, Decoy::Link].into_iter().cycle() {
        if since.elapsed() > Duration::from_secs(seconds) && restored > 0 && refused > 0 {
            break;
        }
        assert!(
            since.elapsed() < Duration::from_secs(60 + 10 * seconds),
            "{restored} {refused}"
        );
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        clear(&work);
        kind.put(&decoy, &other);
        let inode = fs::symlink_metadata(&decoy).expect("look at it").ino();
        let pause_us = AtomicU32::new(1 << (3 + (random >> 33) % 12));
        let ends = AtomicBool::new(false);
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| exchange(&name, &decoy, &ends, &pause_us));
            let outcome = owned.restore();
            ends.store(true, Ordering::Relaxed);
            outcome
        });
        match outcome.code {
            Some(0) => {
                owned.subject.is_back();
                owned.assert_has_its_own();
                owned.subject.kill();
                restored += 1;
            }
            Some(1 | 3) => {
                let gone = !Path::new(&format!("/proc/{}", owned.subject.pid())).exists();
                assert!(gone, "{outcome:#?}");
                refused += 1;
            }
            _ => panic!("{outcome:#?}"),
        }
        assert!(inodes_below(&work).contains(&inode), "{kind:?} is gone");
        assert_eq!(whose_and_what(&other), before, "{kind:?}");
        drop(UnixStream::connect(&live).expect("root listens still"));
        // Whoever looked whether somebody listens there has said nothing.
        while let Ok((mut stream, _)) = listener.accept() {
            let mut said = Vec::new();
            std::io::Read::read_to_end(&mut stream, &mut said).expect("hear it out");
            assert!(said.is_empty(), "{said:?}");
        }
    }
    println!("{restored} restored and {refused} refused");
    clear(&work);
    owned.works();
}
