//! Prevents: an open file that is lost on the way into a snapshot and back, comes back with another position, flag, content or
//! number, or is no longer shared with whom it was shared; and a program that notices that its files were looked at.

use crate::harness::{PATIENCE, Target, patient, wait_until};
use pagetide_kernel::kcmp::compare_files;
use pagetide_kernel::spawn::{Fate, Seed, spawn};
use pagetide_process::{
    Blocker, Descriptor, Kind, Late, Now, OpenFiles, Openers, ProcessIdentity, ReopenChoices,
    ReopenError, Reopened, StoppedProcess,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use tempfile::TempDir;

/// The target and its child, with the directory they stand in.
struct Family {
    target: Target,
    child: i32,
    directory: TempDir,
}

impl Family {
    fn start() -> Self {
        // Handles of files, by which watches are found, need a file system of a disk.
        let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR"));
        let directory = directory.or_else(|_| TempDir::new()).unwrap();
        let mut target = Target::start("files", &[directory.path().to_str().unwrap()]);
        let child = target.line().parse().unwrap();
        Self {
            target,
            child,
            directory,
        }
    }

    /// Ends both. The directory stays.
    fn end(self) -> TempDir {
        drop(self.target);
        // It is killed with its parent, and then it is for others to reap it.
        let stat = format!("/proc/{}/stat", self.child);
        wait_until("the end of the child", || {
            fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "))
        });
        self.directory
    }

    fn pids(&self) -> [i32; 2] {
        [self.target.pid(), self.child]
    }

    fn read(&self) -> OpenFiles {
        let files = read(self.pids(), &[]);
        let bytes = files.to_bytes();
        assert_eq!(OpenFiles::from_bytes(&bytes).unwrap(), files);
        files
    }
}

fn read(pids: [i32; 2], skip: &[(i32, i32)]) -> OpenFiles {
    let [parent, child] = pids.map(stop);
    let (files, blockers) = OpenFiles::read(&[&parent, &child], skip).unwrap();
    child.resume().unwrap();
    parent.resume().unwrap();
    let doubtful = |blocker: &Blocker| blocker.kind == "eventfd-semaphore" && !tells_semaphores();
    let blockers: Vec<&Blocker> = blockers.iter().filter(|one| !doubtful(one)).collect();
    assert_eq!(blockers, Vec::<&Blocker>::new());
    files
}

/// Whether the kernel tells of a counter that it is a semaphore: Linux 6.5.
fn tells_semaphores() -> bool {
    let counter = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let info = format!("/proc/self/fdinfo/{}", counter.as_raw_fd());
    fs::read_to_string(info)
        .unwrap()
        .contains("eventfd-semaphore")
}

/// All but the standard streams, which are those of the tests afterwards.
fn read_above(pids: [i32; 2]) -> OpenFiles {
    let skip = pids.map(|pid| [0, 1, 2].map(|number| (pid, number)));
    read(pids, skip.as_flattened())
}

fn stop(pid: i32) -> StoppedProcess {
    let identity = ProcessIdentity::of(pid).unwrap();
    StoppedProcess::stop(&identity, patient()).unwrap()
}

/// What `/proc` says of each descriptor above the standard streams: what it leads to, and what is known of it.
fn facts(pid: i32, pids: &[(i32, &str)]) -> BTreeMap<i32, (String, String)> {
    let mut facts = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let number: i32 = entry
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        if number <= 2 {
            continue;
        }
        let link = fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap();
        let link = neutral_link(link.to_str().unwrap(), pids);
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap();
        facts.insert(number, (link, neutral_info(&info, pids)));
    }
    facts
}

/// Without what differs between two files that are the same to a program.
fn neutral_link(link: &str, pids: &[(i32, &str)]) -> String {
    for (pid, name) in pids {
        if let Some(rest) = link.strip_prefix(&format!("/proc/{pid}/")) {
            return format!("/proc/{name}/{rest}");
        }
    }
    match link {
        _ if link.starts_with("pipe:") => "pipe".into(),
        _ if link.starts_with("socket:") => "socket".into(),
        _ if link.starts_with("/memfd:") => link.into(),
        // A file without a name has a number for one.
        _ if link.ends_with(" (deleted)") => {
            let path = Path::new(link.strip_suffix(" (deleted)").unwrap());
            format!("deleted in {}", path.parent().unwrap().display())
        }
        _ => link.into(),
    }
}

fn neutral_info(info: &str, pids: &[(i32, &str)]) -> String {
    // A timer that goes off again and again has nothing left for a moment, each time before it begins anew.
    let goes_on = |line: &str| line.starts_with("it_interval:") && !line.ends_with("(0, 0)");
    let ticks = info.lines().any(goes_on);
    let line = |line: &str| -> Option<String> {
        let (key, value) = line.split_once(':')?;
        let value = value.trim();
        match key {
            "mnt_id" | "ino" | "eventfd-id" => None,
            // O_TMPFILE tells how a file was made, and the copy was made otherwise.
            "flags" => {
                let flags = u32::from_str_radix(value, 8).unwrap();
                let how_made = if flags & 0o20_000_000 == 0 {
                    0
                } else {
                    0o20_200_000
                };
                Some(format!("flags {:o}", flags & !how_made))
            }
            // Time goes on.
            "it_value" if ticks => None,
            "it_value" => Some(format!("it_value is 0: {}", value == "(0, 0)")),
            "ticks" => Some(format!("ticks is 0: {}", value == "0")),
            // Number, kind, access and range; without the process and the inode.
            "lock" => {
                let words: Vec<&str> = value.split_whitespace().collect();
                Some(format!("lock {:?} {:?}", &words[1..4], &words[6..]))
            }
            "tfd" => Some(line.split(" ino:").next().unwrap().to_owned()),
            "Pid" | "NSpid" => {
                let pid: i32 = value
                    .split_whitespace()
                    .next_back()
                    .unwrap()
                    .parse()
                    .unwrap();
                let name = pids.iter().find(|known| known.0 == pid);
                Some(format!("{key} {}", name.map_or("?", |known| known.1)))
            }
            _ => Some(line.to_owned()),
        }
    };
    let mut lines: Vec<String> = info.lines().filter_map(line).collect();
    lines.sort();
    lines.join("\n")
}

/// Which descriptors of the two are one description.
fn sharing(pids: [i32; 2]) -> Vec<Vec<(usize, i32)>> {
    let mut groups: Vec<Vec<(usize, i32)>> = Vec::new();
    for (index, pid) in pids.into_iter().enumerate() {
        let numbers = facts(pid, &[]).into_keys();
        for number in numbers {
            let same = |group: &&mut Vec<(usize, i32)>| {
                let (other, known) = group[0];
                compare_files((pids[other], known), (pid, number))
                    .unwrap()
                    .is_eq()
            };
            match groups.iter_mut().find(same) {
                Some(group) => group.push((index, number)),
                None => groups.push(vec![(index, number)]),
            }
        }
    }
    groups
}

fn choices(files: &OpenFiles) -> ReopenChoices {
    ReopenChoices {
        accepted: files.blockers().map(Blocker::name).collect(),
        ..ReopenChoices::default()
    }
}

/// Opens the files again. Processes that another test forks from this one meanwhile inherit what this one has opened, so a lock, and
/// what is in a FIFO, may outlive their descriptors here for a moment.
fn reopen(files: &OpenFiles, choices: &ReopenChoices) -> Reopened {
    let mut reopened = None;
    wait_until("others to close what they have inherited", || {
        match files.reopen(choices) {
            Err(ReopenError::Locked { .. }) => {}
            Err(ReopenError::FileChanged { what, .. }) if what == "something is in it" => {}
            result => reopened = Some(result.unwrap()),
        }
        reopened.is_some()
    });
    reopened.unwrap()
}

/// Two processes that wait, forked from this one.
fn two_that_wait() -> [i32; 2] {
    let leaf = Seed {
        pid: None,
        leads_session: false,
        fate: Fate::Waits,
        children: Vec::new(),
    };
    let root = Seed {
        children: vec![leaf.clone()],
        ..leaf
    };
    spawn(&root).unwrap().try_into().unwrap()
}

/// Puts the files into two new processes, which are killed when the value is dropped.
struct Restored {
    pids: [i32; 2],
}

impl Restored {
    fn new(files: &OpenFiles, reopened: Reopened) -> Self {
        let restored = Self {
            pids: two_that_wait(),
        };
        let then = [files.tables[0].pid, files.tables[1].pid];
        let now: HashMap<i32, i32> = then.into_iter().zip(restored.pids).collect();
        let pid_now = |pid| now.get(&pid).copied();
        let mut stopped = restored.pids.map(stop);
        for (stopped, then) in stopped.iter_mut().zip(then) {
            let mut calls = stopped.remote_calls().unwrap();
            files.place(then, &reopened, &mut calls).unwrap();
            calls.finish().unwrap();
        }
        for (stopped, then) in stopped.iter_mut().zip(then) {
            let mut calls = stopped.remote_calls().unwrap();
            let now = Now {
                process: &pid_now,
                thread: &pid_now,
            };
            files
                .place_late(then, &reopened, Late::Processes, now, &mut calls)
                .unwrap();
            calls.finish().unwrap();
        }
        files
            .finish(&reopened, &Openers::default(), &pid_now)
            .unwrap();
        restored
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        let parent = rustix::process::Pid::from_raw(self.pids[0]).unwrap();
        for pid in self
            .pids
            .into_iter()
            .rev()
            .filter_map(rustix::process::Pid::from_raw)
        {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
        }
        rustix::process::waitpid(Some(parent), rustix::process::WaitOptions::empty()).ok();
    }
}

/// Without what a restore cannot keep: numbers of inodes, and time.
fn settled(mut files: OpenFiles) -> OpenFiles {
    for description in &mut files.descriptions {
        match &mut description.kind {
            Kind::Timerfd(state) => {
                // The one that ticks has gone on.
                let ticks = state.interval_ns > 0 && state.ticks > 0;
                state.ticks = state.ticks.min(1);
                state.remaining_ns = if ticks { 0 } else { state.remaining_ns };
                state.remaining_ns = state.remaining_ns.min(1);
                // The moment of the calendar, but for the microseconds that looking takes.
                let absolute = state.set_flags != 0;
                state.expires_ns = if absolute {
                    state.expires_ns / 1_000_000_000
                } else {
                    0
                };
            }
            Kind::Process(file) => file.pid = 0,
            Kind::Epoll(state) => state
                .entries
                .sort_by_key(|entry| (entry.number, entry.description)),
            // Inodes are in there; its content is compared by reading.
            Kind::Socket(_) => description.kind = Kind::Closed,
            _ => {}
        }
        if let Some(owner) = &mut description.owner {
            owner.number = 0;
        }
        // O_TMPFILE.
        if description.status_flags & 0o20_000_000 != 0 {
            description.status_flags &= !0o20_200_000;
        }
    }
    for table in &mut files.tables {
        table.pid = 0;
        table.entries.retain(|entry| entry.number > 2);
    }
    for object in &mut files.objects {
        object.inode = 0;
    }
    files
}

fn assert_same(found: OpenFiles, wanted: OpenFiles) {
    let (found, wanted) = (settled(found), settled(wanted));
    let pairs = found.descriptions.iter().zip(&wanted.descriptions);
    for (index, (found, wanted)) in pairs.enumerate() {
        assert_eq!(found, wanted, "description {index}");
    }
    assert_eq!(found.tables, wanted.tables);
    assert_eq!(found.pipes, wanted.pipes);
    assert_eq!(found.objects, wanted.objects);
    assert_eq!(found, wanted);
}

#[test]
fn what_was_open_is_open_again() {
    let family = Family::start();
    let files = family.read();
    let then = family.pids();
    let above_then = read_above(then);
    for number in [0, 1] {
        assert!(
            matches!(&files.descriptions[number].kind, Kind::StandardStream(one) if usize::from(one.number) == number)
        );
    }
    let names_then = [(then[0], "parent"), (then[1], "child")];
    let facts_then = then.map(|pid| facts(pid, &names_then));
    let sharing_then = sharing(then);
    let directory = family.end();

    let reopened = reopen(&files, &choices(&files));
    for file in reopened.descriptions.iter().flatten() {
        assert!(
            file.as_raw_fd() > 311,
            "out of the way of numbers that are wanted"
        );
    }
    assert_eq!(reopened.notes, Vec::<String>::new());
    let restored = Restored::new(&files, reopened);
    let now = restored.pids;
    let names_now = [(now[0], "parent"), (now[1], "child")];
    for (pid, then) in now.into_iter().zip(&facts_then) {
        let now = facts(pid, &names_now);
        for (number, fact) in &now {
            assert_eq!(Some(fact), then.get(number), "descriptor {number}");
        }
        assert_eq!(&now, then);
    }
    assert_eq!(sharing(now), sharing_then);
    for (pid, wanted) in now.into_iter().zip(["", "watched"]) {
        let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
        assert_eq!(cwd, directory.path().join(wanted).components().as_path());
    }

    for number in [0, 1] {
        let link = |pid: &str| fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap();
        assert_eq!(link(&now[0].to_string()), link("self"));
    }
    let above = read_above(now);
    let owners = above
        .descriptions
        .iter()
        .filter_map(|one| one.owner.as_ref());
    assert!(owners.map(|owner| owner.number).eq([now[0], now[0]]));
    assert_same(above, above_then);
    let stopped = stop(now[0]);
    let kind = |entry: &Descriptor| &files.descriptions[entry.description as usize].kind;
    let entries = files.tables[0].entries.iter();
    // The timer that ticks goes on ticking, also after it was read.
    let is_ticking =
        |kind: &Kind| matches!(kind, Kind::Timerfd(state) if state.interval_ns == 1_000_000);
    let ticking = entries.clone().find(|one| is_ticking(kind(one))).unwrap();
    let timer = stopped.take_fd(ticking.number).unwrap();
    for _ in 0..2 {
        let mut ready = [PollFd::new(&timer, PollFlags::IN)];
        let patience = Timespec::try_from(PATIENCE).unwrap();
        assert_eq!(poll(&mut ready, Some(&patience)), Ok(1));
        let mut ticks = [0; 8];
        assert_eq!(rustix::io::read(&timer, &mut ticks), Ok(8));
        assert!(u64::from_ne_bytes(ticks) >= 1);
    }
    // What was written to the first of the pair waits at the second.
    let sockets: Vec<&Descriptor> = entries
        .filter(|one| matches!(kind(one), Kind::Socket(_)))
        .collect();
    let number = sockets[1].number;
    let mut buffer = [0; 64];
    let end: OwnedFd = stopped.take_fd(number).unwrap();
    let count = rustix::io::read(&end, &mut buffer).unwrap();
    assert_eq!(&buffer[..count], b"in socket");
}

#[test]
fn looking_changes_nothing() {
    let mut family = Family::start();
    let first = read_above(family.pids());
    let pids = family.pids();
    let before = pids.map(|pid| facts(pid, &[]));
    let second = read_above(family.pids());
    assert_eq!(pids.map(|pid| facts(pid, &[])), before);
    assert_same(first, second);
    assert_eq!(family.target.ask(), "ok");
}

#[test]
fn files_that_changed_are_refused_by_name() {
    let family = Family::start();
    let files = family.read();
    let directory = family.end();
    let path = |name: &str| directory.path().join(name);
    let refused = |choices: &ReopenChoices| match files.reopen(choices) {
        Err(ReopenError::FileChanged { path, .. }) => path,
        other => panic!("{other:?}"),
    };
    // What is appended to may have grown, or be another one that is long enough.
    fs::write(
        path("log"),
        "many more lines of another run of the program\n",
    )
    .unwrap();
    drop(reopen(&files, &choices(&files)));

    fs::write(path("read"), "some other text!!").unwrap();
    assert_eq!(refused(&choices(&files)), path("read"));
    let mut accepting = choices(&files);
    accepting
        .accepted
        .push(format!("file-changed:{}", path("read").display()));
    drop(reopen(&files, &accepting));

    fs::remove_file(path("both")).unwrap();
    assert_eq!(refused(&accepting), path("both"));
    accepting
        .accepted
        .push(format!("file-changed:{}", path("both").display()));
    let reopened = reopen(&files, &accepting);
    let closed = |index: usize| reopened.descriptions[index].is_none();
    let state =
        |kind: &Kind| matches!(kind, Kind::File(file) if file.at.path.as_path() == path("both"));
    let index = files
        .descriptions
        .iter()
        .position(|one| state(&one.kind))
        .unwrap();
    assert!(closed(index));
    drop(reopened);

    // Another FIFO, or something in it.
    fs::remove_file(path("fifo")).unwrap();
    fs::write(path("fifo"), "").unwrap();
    assert_eq!(refused(&accepting), path("fifo"));
}

#[test]
fn a_lock_that_somebody_else_has_is_told() {
    let family = Family::start();
    let files = family.read();
    let directory = family.end();
    let other = fs::File::open(directory.path().join("locked")).unwrap();
    other.lock().unwrap();
    assert!(matches!(
        files.reopen(&choices(&files)),
        Err(ReopenError::Locked { .. })
    ));
    other.unlock().unwrap();
    drop(reopen(&files, &choices(&files)));
}

#[test]
fn bytes_that_are_damaged_are_refused() {
    let family = Family::start();
    let files = family.read();
    let bytes = files.to_bytes();
    for length in (0..bytes.len().min(4096)).chain([bytes.len() - 1]) {
        assert!(
            OpenFiles::from_bytes(&bytes[..length]).is_err(),
            "{length} bytes"
        );
    }
    assert!(OpenFiles::from_bytes(&[bytes.as_slice(), &[0]].concat()).is_err());
    let mut newer = bytes.clone();
    newer[4] = 3;
    let error = OpenFiles::from_bytes(&newer).unwrap_err();
    assert!(error.to_string().contains("version 3"), "{error}");
    // An absurd count where the first one stands.
    let mut absurd = bytes;
    absurd[8..16].fill(0xff);
    assert!(OpenFiles::from_bytes(&absurd).is_err());

    let refused = |spoil: &dyn Fn(&mut OpenFiles)| {
        let mut spoilt = files.clone();
        spoil(&mut spoilt);
        OpenFiles::from_bytes(&spoilt.to_bytes())
            .unwrap_err()
            .to_string()
    };
    let told = |wanted: &str, spoil: &dyn Fn(&mut OpenFiles)| {
        let error = refused(spoil);
        assert!(error.ends_with(wanted), "{error}");
    };
    told("descriptor", &|files| {
        files.tables[0].entries[0].description = u32::MAX
    });
    told("descriptor", &|files| {
        files.tables[0].entries[1].number = -1
    });
    told("descriptor", &|files| {
        let first = files.tables[0].entries[0];
        files.tables[0].entries.push(first);
    });
    told("pid", &|files| files.tables[1].pid = files.tables[0].pid);
    told("pipe", &|files| files.pipes.clear());
    told("pipe", &|files| {
        files.pipes[0].content = vec![vec![0; 1 << 20]]
    });
    told("file without a name", &|files| files.objects.clear());
    told("file without a name", &|files| {
        let runs = files.objects[0].content.as_mut().unwrap();
        runs[0].offset_bytes = u64::MAX;
    });
    told("file that is waited for", &|files| {
        for description in &mut files.descriptions {
            if let Kind::Epoll(state) = &mut description.kind {
                state.entries[0].description = 100_000;
            }
        }
    });
    let at = bytes_of_path(&files);
    let mut zero = files.to_bytes();
    zero[at] = 0;
    let error = OpenFiles::from_bytes(&zero).unwrap_err().to_string();
    assert!(error.ends_with("path"), "{error}");
}

/// Where a byte of a path stands.
fn bytes_of_path(files: &OpenFiles) -> usize {
    let bytes = files.to_bytes();
    let name = b"/both";
    bytes
        .windows(name.len())
        .position(|window| window == name)
        .unwrap()
        + 2
}
