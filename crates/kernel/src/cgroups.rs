//! Where the hierarchies of control groups are mounted, and which directory there belongs to a path of
//! `/proc/PID/cgroup`. What the files in those directories say is for whoever asks.
//!
//! Sources: cgroups(7), proc_pid_mountinfo(5).

use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupMount {
    /// True for version 2, of which there is one hierarchy with all of its controllers.
    pub is_unified: bool,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Which control group is its root there.
    pub root: PathBuf,
    /// Its controllers, and other options, divided by commas.
    options: Vec<u8>,
}

impl CgroupMount {
    /// All that this process sees, in the order in which they were mounted.
    pub fn all() -> io::Result<Vec<Self>> {
        Ok(parse(&fs::read("/proc/self/mountinfo")?))
    }

    /// True if it is of version 1 and has this controller.
    pub fn controls(&self, controller: &str) -> bool {
        let mut options = self.options.split(|byte| *byte == b',');
        !self.is_unified && options.any(|option| option == controller.as_bytes())
    }

    /// The directory of the control group that `/proc/PID/cgroup` (this is its content) names in this
    /// hierarchy; `None` if it is not below the root of the mount.
    pub fn directory_of(&self, membership: &[u8]) -> Option<PathBuf> {
        let lines = membership.split(|byte| *byte == b'\n');
        let mut paths = lines.filter_map(|line| {
            // number:controllers:path
            let mut fields = line.splitn(3, |byte| *byte == b':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let mut controllers = controllers.split(|byte| *byte == b',');
            let is_here = if self.is_unified {
                controllers.all(<[u8]>::is_empty)
            } else {
                controllers.any(|name| {
                    let mut options = self.options.split(|byte| *byte == b',');
                    !name.is_empty() && options.any(|option| option == name)
                })
            };
            is_here.then(|| Path::new(std::ffi::OsStr::from_bytes(path)))
        });
        let below = paths.next()?.strip_prefix(&self.root).ok()?;
        Some(if below.as_os_str().is_empty() {
            self.point.clone()
        } else {
            self.point.join(below)
        })
    }
}

pub(crate) fn parse(mountinfo: &[u8]) -> Vec<CgroupMount> {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    lines.filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<CgroupMount> {
    // id parent device root mount-point options [tags] - type source super-options
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let is_unified = match *fields.get(dash + 1)? {
        b"cgroup" => false,
        b"cgroup2" => true,
        _ => return None,
    };
    Some(CgroupMount {
        is_unified,
        point: unescaped(fields.get(4)?),
        root: unescaped(fields.get(3)?),
        options: fields
            .get(dash + 3)
            .map_or_else(Vec::new, |text| text.to_vec()),
    })
}

/// A path of `mountinfo`, where blanks, newlines and backslashes are three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let code = after
            .first_chunk::<3>()
            .filter(|_| byte == b'\\')
            .and_then(|digits| str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
        25 18 0:22 / /proc rw - proc proc rw\n\
        34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
        35 31 0:32 /inner /sys/fs/cgroup/my\\040freezer rw shared:9 - cgroup cgroup rw,freezer,net_cls\n";
    const MEMBERSHIP: &[u8] =
        b"9:name=systemd:/\n6:net_cls,freezer:/inner/a:b\n3:cpuset:/\n0::/c\n";

    fn directory(mountinfo: &str, which: impl Fn(&CgroupMount) -> bool) -> Option<String> {
        let mounts = parse(mountinfo.as_bytes());
        let mount = mounts.iter().find(|mount| which(mount))?;
        Some(mount.directory_of(MEMBERSHIP)?.display().to_string())
    }

    #[test]
    fn the_directory_is_below_the_mount_of_the_right_hierarchy() {
        let version_1 = directory(HYBRID, |mount| mount.controls("freezer"));
        let expected = "/sys/fs/cgroup/my freezer/a:b";
        assert_eq!(version_1.as_deref(), Some(expected));
        let unified = directory(HYBRID, |mount| mount.is_unified);
        assert_eq!(unified.as_deref(), Some("/sys/fs/cgroup/unified/c"));
        let root = directory(HYBRID, |mount| mount.controls("cpuset"));
        assert_eq!(root.as_deref(), Some("/sys/fs/cgroup/cpuset"));
    }

    #[test]
    fn what_is_not_below_the_mount_has_no_directory() {
        let elsewhere = HYBRID.replace("/inner ", "/other ");
        assert_eq!(
            directory(&elsewhere, |mount| mount.controls("freezer")),
            None
        );
        assert_eq!(
            directory("25 18 0:22 / /proc rw - proc proc rw\n", |_| true),
            None
        );
    }
}
