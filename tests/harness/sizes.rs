//! How much memory processes take, by what the kernel says of them.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

fn kib_of(path: &str, field: &str) -> u64 {
    let text = std::fs::read_to_string(path).expect("read what it holds");
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib = kib.and_then(|kib| kib.trim().parse().ok());
    kib.unwrap_or_else(|| panic!("no {field} in {path}: {text}"))
}

/// What the anonymous memory of these processes takes in all: a page that several of them map counts once. In KiB.
pub fn anonymous_kib(pids: &[i32]) -> u64 {
    let path = |pid: &i32| format!("/proc/{pid}/smaps_rollup");
    pids.iter().map(|pid| kib_of(&path(pid), "Pss_Anon:")).sum()
}

/// What a process has in its page tables, huge pages among it, and what the files and shared memory behind its mappings have
/// allocated. In KiB.
pub fn resident_kib(pid: i32) -> (u64, u64) {
    let status = format!("/proc/{pid}/status");
    let own = kib_of(&status, "VmRSS:") + kib_of(&status, "HugetlbPages:");
    let links = std::fs::read_dir(format!("/proc/{pid}/map_files")).expect("list its files");
    let files: BTreeMap<(u64, u64), u64> = links
        .flatten()
        .filter_map(|link| std::fs::metadata(link.path()).ok())
        .map(|file| ((file.dev(), file.ino()), file.blocks() / 2))
        .collect();
    (own, files.values().sum())
}
