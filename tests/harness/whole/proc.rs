//! What `/proc/PID` says of a process, apart from its mappings.

use super::facts::Facts;
use super::left_out::{Place, is_left_out};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Files whose bytes must be equal.
const WHOLE_FILES: [&str; 11] = [
    "auxv",
    "cgroup",
    "cmdline",
    "comm",
    "coredump_filter",
    "environ",
    "limits",
    "loginuid",
    "oom_score_adj",
    "personality",
    "timers",
];

/// Fields of `stat`, counted from 1 as in proc_pid_stat(5), that neither stand elsewhere nor count what was used.
const STAT: [(usize, &str); 21] = [
    (5, "pgrp"),
    (6, "session"),
    (7, "tty"),
    (8, "foreground"),
    (18, "priority"),
    (19, "nice"),
    (20, "threads"),
    (26, "startcode"),
    (27, "endcode"),
    (28, "startstack"),
    (38, "exit_signal"),
    (40, "rt_priority"),
    (41, "policy"),
    (45, "start_data"),
    (46, "end_data"),
    (47, "start_brk"),
    (48, "arg_start"),
    (49, "arg_end"),
    (50, "env_start"),
    (51, "env_end"),
    (52, "exit_code"),
];

/// Reads all of it. `family` are the processes that are read together.
pub(super) fn read(pid: i32, family: &[i32], facts: &mut Facts) {
    let directory = format!("/proc/{pid}");
    for name in WHOLE_FILES {
        // Not every kernel has every one of them.
        if let Ok(bytes) = fs::read(format!("{directory}/{name}")) {
            facts.insert(name.to_owned(), printable(&bytes));
        }
    }
    // A list in an order that the kernel gives it.
    if let Some(timers) = facts.get_mut("timers") {
        let mut each: Vec<&str> = timers.split("ID: ").collect();
        each.sort_unstable();
        *timers = each.join("; ");
    }
    for name in ["cwd", "root", "exe"] {
        facts.insert(name.to_owned(), link(&format!("{directory}/{name}")));
    }
    for name in names_in(&format!("{directory}/ns")) {
        // One of these is made again, and its offsets are what it is.
        let is = if name.starts_with("time") {
            fs::read_to_string(format!("{directory}/timens_offsets")).unwrap_or_default()
        } else {
            link(&format!("{directory}/ns/{name}"))
        };
        facts.insert(format!("namespace {name}"), is);
    }
    // Whose the files are says whether it may be dumped.
    if let Ok(metadata) = fs::metadata(format!("{directory}/environ")) {
        let owner = format!("{} {}", metadata.uid(), metadata.gid());
        facts.insert("owner".to_owned(), owner);
    }
    if let Some(parent) = fields(&directory).get(3) {
        let known = family.iter().any(|pid| pid.to_string() == *parent);
        if known {
            facts.insert("parent".to_owned(), parent.clone());
        }
    }
    for tid in names_in(&format!("{directory}/task")) {
        thread(&directory, &tid, facts);
    }
    for number in names_in(&format!("{directory}/fd")) {
        descriptor(&directory, &number, facts);
    }
    zombies(pid, facts);
}

fn thread(directory: &str, tid: &str, facts: &mut Facts) {
    let task = format!("{directory}/task/{tid}");
    let mut keep = |name: &str, is: String| {
        facts.insert(format!("thread {tid} {name}"), is);
    };
    let comm = fs::read(format!("{task}/comm")).unwrap_or_default();
    keep("comm", printable(&comm));
    let slack = fs::read(format!("/proc/{tid}/timerslack_ns")).unwrap_or_default();
    keep("timer slack", printable(&slack));
    let fields = fields(&task);
    for (number, name) in STAT {
        keep(name, fields.get(number - 1).cloned().unwrap_or_default());
    }
    let status = fs::read(format!("{task}/status")).unwrap_or_default();
    for line in String::from_utf8_lossy(&status).lines() {
        let (name, is) = line.split_once(':').unwrap_or((line, ""));
        if !is_left_out(Place::Status, name) {
            keep(name, is.trim().to_owned());
        }
    }
}

/// The fields of a `stat` file in their order; a name may contain anything.
fn fields(directory: &str) -> Vec<String> {
    let bytes = fs::read(format!("{directory}/stat")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let Some((first, rest)) = text.rsplit_once(") ") else {
        return Vec::new();
    };
    let (number, name) = first.split_once(" (").unwrap_or((first, ""));
    let rest = rest.split_whitespace().map(str::to_owned);
    [number.to_owned(), name.to_owned()]
        .into_iter()
        .chain(rest)
        .collect()
}

fn descriptor(directory: &str, number: &str, facts: &mut Facts) {
    let target = link(&format!("{directory}/fd/{number}"));
    if target == "anon_inode:[userfaultfd]" || target.starts_with("/memfd:pagetide") {
        return;
    }
    // What is between the brackets is a number of the kernel; which of them are one object is compared otherwise.
    let kind = ["pipe:", "socket:"]
        .into_iter()
        .find(|kind| target.starts_with(kind));
    facts.insert(
        format!("fd {number}"),
        kind.map_or(target.clone(), str::to_owned),
    );
    let info = fs::read(format!("{directory}/fdinfo/{number}")).unwrap_or_default();
    let mut lists = Vec::new();
    for line in String::from_utf8_lossy(&info).lines() {
        let (name, is) = line.split_once(':').unwrap_or((line, ""));
        match name {
            // Lists, in an order that the kernel gives them.
            "tfd" => lists.push(without_object(line)),
            "inotify wd" | "fanotify" | "lock" => lists.push(line.to_owned()),
            "it_value" => {
                let armed = is.trim() != "(0, 0)";
                facts.insert(format!("fd {number} armed"), armed.to_string());
            }
            _ if is_left_out(Place::Fdinfo, name) => {}
            _ => drop(facts.insert(format!("fd {number} {name}"), is.trim().to_owned())),
        }
    }
    if !lists.is_empty() {
        lists.sort();
        facts.insert(format!("fd {number} list"), lists.join("; "));
    }
}

/// A line of an epoll set without the inode of what is watched: it is told by its number, which is compared.
fn without_object(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let end = words.iter().position(|word| word.starts_with("pos:"));
    words[..end.unwrap_or(words.len())].join(" ")
}

/// Children that have ended and wait to be asked about: how many, and how they ended.
fn zombies(pid: i32, facts: &mut Facts) {
    for child in crate::frozen::children(pid) {
        let fields = fields(&format!("/proc/{child}"));
        if fields.get(2).is_some_and(|state| state == "Z") {
            let code = fields.get(51).cloned().unwrap_or_default();
            facts.insert(format!("ended child {child}"), code);
        }
    }
}

fn names_in(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap_or_else(|e| panic!("{directory}: {e}"));
    let names = entries.flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.into_string().ok()).collect()
}

fn link(path: &str) -> String {
    match fs::read_link(Path::new(path)) {
        Ok(target) => printable(target.as_os_str().as_bytes()),
        Err(error) => format!("{error}"),
    }
}

fn printable(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
