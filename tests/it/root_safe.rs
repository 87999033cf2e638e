//! Prevents that root, who restores, opens, makes, changes or removes for the process of another user what that one could
//! not: by whatever its paths have been made to lead to since the snapshot.

mod forbidden_calls;
mod inherited;
mod memory;
mod race;

use crate::bad::{fails, is_root};
use pagetide_tests::{Outcome, Scratch, Subject, compiled, pagetide};
use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A user made up for the tests.
pub const OTHER: u32 = 65534;

/// The program `targets/owned.c`, run by another user, checkpointed and killed.
pub struct Owned {
    pub subject: Subject,
    /// The directory of its files, which is its user's own, and lies in one of its user.
    pub work: PathBuf,
    /// One of root's beside it, into which nobody else can look, with files of the same names.
    pub other: PathBuf,
    /// The device and inode of each of its files.
    pub own: BTreeMap<String, (u64, u64)>,
}

const NAMES: [&str; 4] = ["lines", "data", "mapped", "both"];

impl Owned {
    pub fn new(more: &[&Path]) -> Self {
        let scratch = Scratch::new();
        let base = scratch.path().to_owned();
        let (program, place) = (base.join("program"), base.join("place"));
        let (work, other) = (place.join("work"), place.join("other"));
        fs::copy(compiled("owned"), &program).expect("copy the program");
        fs::create_dir_all(&work).expect("make a directory");
        for directory in [&base, &place, &work] {
            open_to_all(directory);
            chown(directory, Some(OTHER), Some(OTHER)).expect("change the owner");
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command
            .arg(&program)
            .arg(base.join("log"))
            .arg(&work)
            .args(more);
        let mut subject = Subject::start(&command, scratch);
        let log = base.join("log");
        subject.wait_until("steps", || {
            fs::read_to_string(&log).is_ok_and(|log| log.contains("3 on"))
        });
        subject.checkpoint(&[]);
        subject.kill();
        let own = listed(&work);
        fs::create_dir(&other).expect("make a directory");
        for name in NAMES {
            alike(&work.join(name), &other.join(name));
        }
        drop(std::os::unix::net::UnixListener::bind(other.join("socket")).expect("bind"));
        let mode = Permissions::from_mode(0o700);
        fs::set_permissions(&other, mode).expect("close it");
        Self {
            subject,
            work,
            other,
            own,
        }
    }

    /// The restore is refused, names `path`, and says so.
    #[track_caller]
    fn refuses(&self, path: &Path, says: &str) {
        let outcome = self.restore();
        fails(&outcome, 3, &[path.to_str().expect("a plain path"), says]);
        assert!(!Path::new(&format!("/proc/{}", self.subject.pid())).exists());
    }

    pub fn restore(&self) -> Outcome {
        self.subject.try_restore(&[])
    }

    /// It comes back, with its own files.
    #[track_caller]
    pub fn works(&mut self) {
        self.restore().done();
        self.subject.is_back();
        self.assert_has_its_own();
        self.subject.kill();
    }

    /// What the process has open and mapped is what it had.
    #[track_caller]
    pub fn assert_has_its_own(&self) {
        let pid = self.subject.pid();
        let key = |path: PathBuf| {
            let metadata = fs::metadata(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            (metadata.dev(), metadata.ino())
        };
        assert_eq!(key(format!("/proc/{pid}/cwd").into()), self.own["."]);
        let mut found = 0;
        for folder in ["fd", "map_files"] {
            for entry in fs::read_dir(format!("/proc/{pid}/{folder}"))
                .expect("list")
                .flatten()
            {
                let link = fs::read_link(entry.path()).expect("a link");
                let is_in = |place: &Path| link.starts_with(place);
                assert!(!is_in(&self.other), "{link:?}");
                if is_in(&self.work) {
                    let name = link
                        .strip_prefix(&self.work)
                        .expect("inside")
                        .to_str()
                        .expect("plain");
                    let name = if name.is_empty() { "." } else { name };
                    assert_eq!(Some(&key(entry.path())), self.own.get(name), "{link:?}");
                    found += 1;
                }
            }
        }
        assert!(found >= 6, "{found}");
        let socket = fs::symlink_metadata(self.work.join("socket")).expect("its socket");
        assert!(socket.file_type().is_socket() && socket.uid() == OTHER);
        let stream = UnixStream::connect(self.work.join("socket")).expect("connect");
        let peer = rustix::net::sockopt::socket_peercred(&stream).expect("who listens");
        assert_eq!(peer.uid.as_raw(), OTHER);
    }
}

fn open_to_all(path: &Path) {
    let mode = Permissions::from_mode(0o755);
    fs::set_permissions(path, mode).expect("change permissions");
}

/// A file of root's that looks the same as `path`: by its length, its content and its time, and is longer than any position.
fn alike(path: &Path, new: &Path) {
    fs::write(new, fs::read(path).expect("read a file")).expect("write a file");
    let modified = fs::metadata(path)
        .expect("look at it")
        .modified()
        .expect("a time");
    let times = FileTimes::new().set_modified(modified);
    let file = File::options().write(true).open(new).expect("open it");
    file.set_times(times).expect("set its time");
    fs::set_permissions(new, Permissions::from_mode(0o600)).expect("close it");
}

fn listed(directory: &Path) -> BTreeMap<String, (u64, u64)> {
    let key = |path: &Path| {
        let metadata = fs::symlink_metadata(path).expect("look at it");
        (metadata.dev(), metadata.ino())
    };
    let inside = fs::read_dir(directory).expect("list").flatten();
    let mut all: BTreeMap<_, _> = inside
        .map(|entry| {
            (
                entry.file_name().to_string_lossy().into_owned(),
                key(&entry.path()),
            )
        })
        .collect();
    all.insert(".".to_owned(), key(directory));
    all
}

/// All that can be told of what lies in a directory: what it is, whose it is, when it was changed, and what is in it.
pub fn state_of(directory: &Path) -> BTreeMap<String, String> {
    let tell = |path: &Path| {
        let metadata = fs::symlink_metadata(path).expect("look at it");
        let content = if metadata.is_file() {
            fs::read(path).expect("read it")
        } else {
            Vec::new()
        };
        let whose = (
            metadata.uid(),
            metadata.gid(),
            metadata.mode(),
            metadata.ino(),
        );
        let changed = (
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        );
        format!(
            "{whose:?} {changed:?} {}",
            String::from_utf8_lossy(&content)
        )
    };
    let inside = fs::read_dir(directory).expect("list").flatten();
    inside
        .map(|entry| {
            (
                entry.file_name().to_string_lossy().into_owned(),
                tell(&entry.path()),
            )
        })
        .collect()
}

#[test]
fn a_file_that_its_user_may_not_open_is_opened_only_if_it_is_the_very_one() {
    if !is_root("files of another user") {
        return;
    }
    let mut owned = Owned::new(&[]);
    owned.works();
    // Its own files, which it may not open any more: it had them open.
    for name in NAMES {
        chown(owned.work.join(name), Some(0), Some(0)).expect("change the owner");
    }
    owned.works();
    let before = state_of(&owned.other);
    for name in NAMES {
        let (path, aside) = (owned.work.join(name), owned.work.join("aside"));
        fs::rename(&path, &aside).expect("move it away");
        fs::hard_link(owned.other.join(name), &path).expect("put root's file there");
        owned.refuses(&path, "user 65534 may not open it");
        fs::remove_file(&path).expect("remove the name");
        fs::rename(&aside, &path).expect("move it back");
    }
    for (name, state) in state_of(&owned.other) {
        let whose = |state: &str| state.split_once(')').map(|parts| parts.0.to_owned());
        assert_eq!(whose(&state), whose(&before[&name]), "{name}");
        assert!(state.rsplit_once(' ').map(|p| p.1) == before[&name].rsplit_once(' ').map(|p| p.1));
    }
    owned.works();
}

#[test]
fn a_directory_that_was_exchanged_is_not_entered() {
    if !is_root("directories of another user") {
        return;
    }
    let mut owned = Owned::new(&[]);
    let before = state_of(&owned.other);
    let aside = owned.work.with_file_name("aside");
    fs::rename(&owned.work, &aside).expect("move it away");
    let work = owned.work.clone();
    // A directory of root's in its place.
    fs::rename(&owned.other, &work).expect("put another there");
    owned.refuses(&work, "user 65534 may not open it");
    fs::rename(&work, &owned.other).expect("put it back");
    // A link that somebody else has made, to where all is as it was.
    symlink(&aside, &work).expect("make a link");
    lchown(&work, Some(1234), None).expect("change the owner");
    owned.refuses(
        &work,
        "has a symbolic link in it now that neither root nor user 65534 made",
    );
    // A link of its own, to what is root's.
    fs::remove_file(&work).expect("remove the link");
    symlink(&owned.other, &work).expect("make a link");
    lchown(&work, Some(OTHER), None).expect("change the owner");
    owned.refuses(&work, "user 65534 may not open it");
    fs::remove_file(&work).expect("remove the link");
    assert_eq!(state_of(&owned.other), before);
    fs::rename(&aside, &work).expect("move it back");
    owned.works();
}

#[test]
fn a_program_in_whose_place_is_a_pipe_does_not_hold_us() {
    if !is_root("a program of another user") {
        return;
    }
    let mut owned = Owned::new(&[]);
    let (program, aside) = (owned.subject.path("program"), owned.subject.path("aside"));
    fs::rename(&program, &aside).expect("move it away");
    let made = Command::new("mkfifo").arg(&program).status();
    assert!(made.expect("run mkfifo").success());
    owned.refuses(&program, "is not a regular file now");
    fs::remove_file(&program).expect("remove the pipe");
    fs::rename(&aside, &program).expect("move it back");
    owned.works();
}

#[test]
fn a_socket_gets_its_name_as_its_user_and_where_it_was() {
    if !is_root("a socket of another user") {
        return;
    }
    let mut owned = Owned::new(&[]);
    let socket = owned.work.join("socket");
    // In a directory that its user may not write to any more, nobody makes it for him: others could have changed that.
    fs::remove_file(&socket).expect("remove the socket");
    chown(&owned.work, Some(1234), Some(1234)).expect("change the owner");
    let outcome = owned.restore();
    let shown = socket.to_str().expect("a plain path");
    assert!(
        outcome.code != Some(0) && outcome.stderr.contains(shown),
        "{outcome:#?}"
    );
    assert_eq!(listed(&owned.work).get("socket"), None);
    chown(&owned.work, Some(OTHER), Some(OTHER)).expect("change the owner");
    owned.works();
    // A stale one of another user in a directory where all may make files, but not remove those of others.
    let sticky = Permissions::from_mode(0o1777);
    fs::set_permissions(&owned.work, sticky).expect("change permissions");
    chown(&owned.work, Some(0), Some(0)).expect("change the owner");
    chown(&socket, Some(1234), Some(1234)).expect("change the owner");
    let before = fs::symlink_metadata(&socket).expect("look at it").ino();
    let outcome = owned.restore();
    assert!(
        outcome.code != Some(0) && outcome.stderr.contains(shown),
        "{outcome:#?}"
    );
    let after = fs::symlink_metadata(&socket).expect("it is there still");
    assert_eq!((after.ino(), after.uid()), (before, 1234));
    assert!(
        !listed(&owned.work)
            .keys()
            .any(|name| name.starts_with(".pagetide"))
    );
    chown(&socket, Some(OTHER), Some(OTHER)).expect("change the owner");
    owned.works();
}

/// A file that is removed with this.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

#[test]
fn names_that_look_like_memory_are_listed_and_have_to_be_allowed() {
    if !is_root("files in the root directory") {
        return;
    }
    let number = std::process::id();
    let paths = ["/memfd:", "/SYSV", "/anon_hugepage"].map(|begin| {
        let path = PathBuf::from(format!("{begin}pagetide-test-{number}"));
        fs::write(&path, [1; 4096]).expect("write a file");
        open_to_all(&path);
        Removed(path)
    });
    let all: Vec<&Path> = paths.iter().map(|path| path.0.as_path()).collect();
    let mut owned = Owned::new(&all);
    let store = owned.subject.store().text();
    let listing = pagetide(["restore", &store, "--dry-run"]).done();
    let base = owned
        .work
        .parent()
        .and_then(Path::parent)
        .expect("a directory");
    let base = base.to_str().expect("a plain path");
    for path in &all {
        let shown = path.to_str().expect("a plain path");
        assert!(
            listing.stdout.lines().any(|line| line == shown),
            "{listing:#?}"
        );
        let mut words = vec!["--allow", "/usr", "--allow", "/dev", "--allow", base];
        let others = all.iter().filter(|other| other != &path);
        for other in others {
            words.extend(["--allow", other.to_str().expect("a plain path")]);
        }
        fails(
            &owned.subject.try_restore(&words),
            3,
            &[shown, "not allowed"],
        );
    }
    owned.works();
}

#[test]
fn what_is_allowed_is_where_paths_lead() {
    if !is_root("links of root") {
        return;
    }
    let mut owned = Owned::new(&[]);
    let (work, aside) = (owned.work.clone(), owned.subject.path("elsewhere"));
    fs::rename(&work, &aside).expect("move it away");
    // Root's link is followed.
    symlink(&aside, &work).expect("make a link");
    let base = work.parent().and_then(Path::parent).expect("a directory");
    let names = ["program", "log", "output", "place"];
    let text = |name| base.join(name).to_str().expect("a plain path").to_owned();
    let words = names.map(text);
    let mut all = vec!["--allow", "/usr", "--allow", "/dev"];
    words.iter().for_each(|path| all.extend(["--allow", path]));
    let leads = format!("leads to {}", aside.display());
    fails(
        &owned.subject.try_restore(&all),
        3,
        &[&leads, "not allowed"],
    );
    let store = owned.subject.store().text();
    let listing = pagetide(["restore", &store, "--dry-run"]).done();
    let shown = aside.join("data").display().to_string();
    assert!(
        listing.stdout.lines().any(|line| line == shown),
        "{listing:#?}"
    );
    fs::remove_file(&work).expect("remove the link");
    fs::rename(&aside, &work).expect("move it back");
    owned.works();
}
