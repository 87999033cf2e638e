//! How much memory is left to a process: on the machine, and in its memory cgroup and those above it.
//!
//! `/proc/PID/cgroup` names the cgroup, version 1 or 2, and the files in its directory say how much it may have and
//! has. What can be had back without writing anything counts as left: `MemAvailable`, and file pages that were
//! not used of late. Sources: cgroups(7), `Documentation/admin-guide/cgroup-v1/memory.rst` and `cgroup-v2.rst`,
//! proc_meminfo(5).

use crate::cgroups::CgroupMount;
use crate::kpagecgroup::memory_hierarchy;
use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that are left to process `pid`: the least of the machine's and of each cgroup's. `None` if nothing
/// could be found out.
pub fn memory_left(pid: i32) -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let machine = field(&meminfo, "MemAvailable:").map(|kib| kib << 10);
    let mounts = CgroupMount::all().unwrap_or_default();
    let of = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let cgroups = memory_hierarchy(mounts).and_then(|(mount, root)| {
        let directory = directory(&of, &mount, &root)?;
        left_in(&directory, &mount)
    });
    machine.into_iter().chain(cgroups).min()
}

/// The directory of the cgroup that controls memory, out of `/proc/PID/cgroup`.
fn directory(of: &str, mount: &Path, root: &Path) -> Option<PathBuf> {
    // hierarchy:controllers:path; version 2 is hierarchy 0 without controllers
    let path = |is_wanted: &dyn Fn(&str, &str) -> bool| {
        of.lines().find_map(|line| {
            let (hierarchy, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            is_wanted(hierarchy, controllers).then_some(path)
        })
    };
    let first = path(&|_, controllers| controllers.split(',').any(|name| name == "memory"));
    let second = || path(&|hierarchy, controllers| hierarchy == "0" && controllers.is_empty());
    let path = Path::new(first.or_else(second)?);
    Some(mount.join(path.strip_prefix(root).ok()?))
}

/// The least that is left in the cgroup of `directory` and in those above it, up to `mount`.
fn left_in(directory: &Path, mount: &Path) -> Option<u64> {
    let above = directory
        .ancestors()
        .take_while(|above| above.starts_with(mount));
    above.filter_map(left_in_one).min()
}

fn left_in_one(directory: &Path) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        let text = fs::read_to_string(directory.join(name)).ok()?;
        text.trim().parse().ok()
    };
    // "max" is no number: such a cgroup has no limit of its own.
    let either = |one: &str, other: &str| number(one).or_else(|| number(other));
    let limit = either("memory.max", "memory.limit_in_bytes")?;
    let used = either("memory.current", "memory.usage_in_bytes")?;
    let stat = fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
    let idle = field(&stat, "total_inactive_file").or_else(|| field(&stat, "inactive_file"));
    Some(limit.saturating_sub(used.saturating_sub(idle.unwrap_or(0))))
}

/// The number after `name` in a file of lines.
fn field(text: &str, name: &str) -> Option<u64> {
    let words = |line: &str| -> Option<u64> {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
    };
    text.lines().find_map(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_is_found_in_either_version() {
        let first = "9:name=systemd:/\n4:cpu,memory:/a/b\n0::/\n";
        let found = |of: &str, root: &str| {
            directory(of, Path::new("/sys/fs/cgroup/memory"), Path::new(root))
        };
        let expected = Some(PathBuf::from("/sys/fs/cgroup/memory/a/b"));
        assert_eq!(found(first, "/"), expected);
        assert_eq!(found("0::/a/b\n", "/"), expected);
        assert_eq!(found("0::/c/a/b\n", "/c"), expected);
        assert_eq!(found("0::/elsewhere\n", "/c"), None);
    }

    #[test]
    fn the_least_of_all_above_is_left() {
        let mount = std::env::temp_dir().join(format!("memory_cgroup.{}", std::process::id()));
        let inner = mount.join("a/b");
        fs::create_dir_all(&inner).expect("a directory");
        let say = |directory: &Path, files: [(&str, &str); 3]| {
            for (name, text) in files {
                fs::write(directory.join(name), text).expect("a file");
            }
        };
        let stat = "anon 5\ninactive_file 100\n";
        let none = [
            ("memory.max", "max\n"),
            ("memory.current", "7\n"),
            ("memory.stat", stat),
        ];
        say(&inner, none);
        assert_eq!(left_in(&inner, &mount), None, "no limit anywhere");
        let tight = [
            ("memory.max", "4096\n"),
            ("memory.current", "1000\n"),
            ("memory.stat", stat),
        ];
        say(&mount.join("a"), tight);
        assert_eq!(left_in(&inner, &mount), Some(4096 - 900));
        fs::remove_dir_all(&mount).expect("it is ours");
    }

    #[test]
    fn something_is_left_to_this_process() {
        let left = memory_left(std::process::id().cast_signed());
        assert!(left.is_some_and(|left| left > 0), "{left:?}");
    }
}
