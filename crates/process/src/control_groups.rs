//! Control groups: a restored process goes into those that it was in, where they still are, and not into ours.
//!
//! cgroups(7). `/proc/PID/cgroup` names a group for each hierarchy, from the root of that hierarchy; where hierarchies are mounted
//! `/proc/self/mountinfo` says. To move a process needs the right to write to both groups' `cgroup.procs`.

use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2};
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

/// A line of `/proc/PID/cgroup`.
struct Line<'a> {
    /// Controllers, with commas between them; empty for the one hierarchy of version 2.
    controllers: &'a str,
    path: &'a str,
}

fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    text.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        Some(Line {
            controllers: parts.next()?,
            path: parts.next()?,
        })
    })
}

/// Moves process `pid` into the groups that `recorded`, the bytes of `/proc/PID/cgroup` at the time of the snapshot, names.
/// What became of each other hierarchy, for people: there the process stays where it is.
pub fn enter_control_groups(pid: i32, recorded: &str) -> Vec<String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let present = read(&format!("/proc/{pid}/cgroup"));
    let mounts = read("/proc/self/mountinfo");
    let mut notes = Vec::new();
    for wanted in lines(recorded) {
        let mut same = lines(&present).filter(|line| line.controllers == wanted.controllers);
        let Some(now) = same.next() else {
            notes.push(note(&wanted, "there is no such hierarchy here"));
            continue;
        };
        if now.path == wanted.path {
            continue;
        }
        if let Err(error) = enter(pid, &wanted, &mounts) {
            notes.push(note(&wanted, &error.to_string()));
        }
    }
    notes
}

fn note(line: &Line<'_>, why: &str) -> String {
    let hierarchy = match line.controllers {
        "" => String::new(),
        controllers => format!(" ({controllers})"),
    };
    format!(
        "control group {}{hierarchy} cannot be entered: {why}; the process is in that of pagetide",
        line.path
    )
}

fn enter(pid: i32, line: &Line<'_>, mounts: &str) -> io::Result<()> {
    let (mounted_at, inside) = place(line, mounts)
        .ok_or_else(|| io::Error::other("its hierarchy is not mounted where pagetide sees it"))?;
    let mounted = rustix::fs::open(
        mounted_at,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let group = openat2(&mounted, &inside, flags, Mode::empty(), resolve)?;
    let is_frozen = |name: &str, frozen: &str| {
        let file = openat(
            &group,
            name,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let text = file.map(|file| io::read_to_string(fs::File::from(file)).unwrap_or_default());
        text.is_ok_and(|text| text.trim() == frozen)
    };
    if is_frozen("cgroup.freeze", "1") || is_frozen("freezer.state", "FROZEN") {
        return Err(io::Error::other("it is frozen"));
    }
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let processes: OwnedFd = openat(&group, "cgroup.procs", flags, Mode::empty())?;
    fs::File::from(processes).write_all(pid.to_string().as_bytes())
}

/// Where its hierarchy is mounted, and the group from there.
fn place(line: &Line<'_>, mounts: &str) -> Option<(PathBuf, PathBuf)> {
    let path = Path::new(line.path);
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    if !path.is_absolute() || !path.components().all(plain) {
        return None;
    }
    mounts.lines().find_map(|mount| {
        let (before, behind) = mount.split_once(" - ")?;
        let mut words = before.split(' ').skip(3);
        let (root, point) = (words.next()?, words.next()?);
        let mut kind = behind.split(' ');
        let (file_system, options) = (kind.next()?, kind.nth(1)?);
        let is_it = match (file_system, line.controllers) {
            ("cgroup2", "") => true,
            ("cgroup", controllers) if !controllers.is_empty() => controllers
                .split(',')
                .all(|wanted| options.split(',').any(|option| option == wanted)),
            _ => false,
        };
        // Blanks and the like are octal in there; a mount point with any is passed over.
        let inside = path
            .strip_prefix(root)
            .ok()
            .filter(|_| is_it && !point.contains('\\'))?;
        let inside = if inside == Path::new("") {
            Path::new(".")
        } else {
            inside
        };
        Some((PathBuf::from(point), inside.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
        24 1 0:22 / /sys/fs/cgroup/memory rw,relatime shared:5 - cgroup cgroup rw,memory\n\
        25 1 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
        26 1 0:24 /ours /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn a_group_is_found_where_its_hierarchy_is_mounted() {
        let of = |text: &str| {
            let line = lines(text).next().expect("a line");
            place(&line, MOUNTS).map(|(mount, inside)| mount.join(inside))
        };
        let found = |path: &str| Some(PathBuf::from(path));
        assert_eq!(of("4:memory:/a/b"), found("/sys/fs/cgroup/memory/a/b"));
        assert_eq!(of("3:cpu,cpuacct:/"), found("/sys/fs/cgroup/cpu/."));
        assert_eq!(of("0::/ours/c:d"), found("/sys/fs/cgroup/unified/c:d"));
        assert_eq!(of("0::/theirs"), None);
        assert_eq!(of("5:devices:/"), None);
        for path in ["4:memory:/../a", "4:memory:/a/../../b", "4:memory:a"] {
            assert_eq!(of(path), None, "{path}");
        }
    }
}
