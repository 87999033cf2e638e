//! File systems that somebody else serves: a process of this machine (FUSE) or another machine (NFS). Whoever asks for
//! anything there waits for the answer, which may never come: from a server that is gone, or that stands still itself because
//! it belongs to the checkpoint. So while processes stand still, nothing of it is touched: no copy of a descriptor is made
//! (closing it is a request, which cannot even be killed), and no path is followed there.
//!
//! Where a descriptor leads is told by the number of its mount in `/proc/PID/fdinfo`, which asks nobody.

use super::fdinfo::FdInfo;
use pagetide_kernel::proc_file;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::getpid;
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Kinds that others serve, as `/proc/PID/mountinfo` calls them; those that begin with `fuse` besides.
const SERVED: [&str; 14] = [
    "nfs", "nfs4", "cifs", "smb3", "ceph", "afs", "coda", "autofs", "lustre", "orangefs", "gfs2",
    "ocfs2", "beegfs", "gpfs",
];

fn is_served_kind(kind: &str) -> bool {
    kind.starts_with("fuse") && kind != "fusectl" || SERVED.contains(&kind)
}

/// Which mounts are not to be touched.
#[derive(Default)]
pub(crate) struct Mounts {
    /// Their numbers, which are the kernel's own, the same in all namespaces.
    served: HashSet<u64>,
    /// Where they are mounted, as we see it.
    points: Vec<PathBuf>,
}

impl Mounts {
    /// Those that the processes see, and we.
    pub(crate) fn of(pids: impl Iterator<Item = i32>) -> Self {
        let mut found = Self::default();
        let own = namespace("self");
        found.read("self", true);
        let mut seen = HashSet::from([own]);
        for pid in pids {
            let pid = pid.to_string();
            let other = namespace(&pid);
            if other.is_none() || seen.insert(other) {
                found.read(&pid, false);
            }
        }
        found
    }

    fn read(&mut self, process: &str, is_own: bool) {
        let text = proc_file::read(format!("/proc/{process}/mountinfo")).unwrap_or_default();
        for line in text.split(|byte| *byte == b'\n') {
            let Some(mount) = Mount::parse(line) else {
                continue;
            };
            if mount.is_served {
                self.served.insert(mount.number);
                self.points.extend(is_own.then_some(mount.point));
            }
        }
    }

    /// True if the descriptor leads to a file system that somebody else serves.
    pub(crate) fn are_behind(&self, info: &FdInfo) -> bool {
        let number = info.number("mnt_id", 10);
        number.is_ok_and(|number| self.served.contains(&number))
    }

    /// True if a path that we follow may lead there, or through it.
    pub(crate) fn lead_to(&self, path: &Path) -> bool {
        self.points.iter().any(|point| path.starts_with(point))
    }

    /// True if this link of `/proc` (`cwd`, `root`) leads there. Opening it with O_PATH asks no server of FUSE, nor does
    /// closing.
    pub(crate) fn are_behind_link(&self, link: &str) -> bool {
        if self.served.is_empty() {
            return false;
        }
        let Ok(found) = open(link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else {
            return false;
        };
        own_info(&found).is_some_and(|info| self.are_behind(&info))
    }
}

fn namespace(process: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/mnt")).ok()
}

fn own_info(file: &OwnedFd) -> Option<FdInfo> {
    FdInfo::read(getpid().as_raw_nonzero().get(), file.as_fd().as_raw_fd()).ok()?
}

/// One line of mountinfo, `proc_pid_mountinfo(5)`.
#[derive(Debug, PartialEq)]
struct Mount {
    number: u64,
    point: PathBuf,
    is_served: bool,
}

impl Mount {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut words = line.split(|byte| *byte == b' ');
        let number = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
        let point = PathBuf::from(OsString::from_vec(unescape(words.nth(3)?)));
        let kind = words.skip_while(|word| *word != b"-").nth(1)?;
        Some(Self {
            number,
            point,
            is_served: is_served_kind(&String::from_utf8_lossy(kind)),
        })
    }
}

/// Blanks, ends of lines and backslashes stand there in octal.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut at = 0;
    while at < word.len() {
        let digits = word.get(at + 1..at + 4).filter(|_| word[at] == b'\\');
        let octal = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                at += 4;
            }
            None => {
                bytes.push(word[at]);
                at += 1;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let line =
            b"36 35 98:0 /mnt1 /m\\040n\\134t2 rw,noatime shared:7 master:1 - fuse.sshfs a-b rw";
        let mount = Mount::parse(line).expect("it reads");
        assert_eq!((mount.number, mount.is_served), (36, true));
        assert_eq!(mount.point, Path::new("/m n\\t2"));
        let line = b"21 1 254:0 / / rw,relatime - ext4 /dev/vda rw";
        assert!(!Mount::parse(line).expect("it reads").is_served);
        for cut in 0..line.len() - 4 {
            let _ = Mount::parse(&line[..cut]);
        }
        assert!(Mount::parse(b"").is_none());
    }

    #[test]
    fn a_mount_is_known_by_its_number() {
        let file = open("/proc/self/exe", OFlags::RDONLY, Mode::empty()).expect("our program");
        let info = own_info(&file).expect("it reads");
        let nothing = Mounts::default();
        assert!(!nothing.are_behind(&info) && !nothing.are_behind_link("/proc/self/exe"));
        let number = info.number("mnt_id", 10).expect("a number");
        let mounts = Mounts {
            served: HashSet::from([number]),
            points: vec![PathBuf::from("/mnt/far")],
        };
        assert!(mounts.are_behind(&info) && mounts.are_behind_link("/proc/self/exe"));
        assert!(mounts.lead_to(Path::new("/mnt/far/away")));
        assert!(!mounts.lead_to(Path::new("/mnt/farther")));
    }
}

#[cfg(test)]
mod hostile_tests {
    use super::*;

    #[test]
    fn hostile_text_of_served() {
        let sound = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - fuse.sshfs host: rw";
        pagetide_testing::hostile::survives(sound, |text| Mount::parse(text).is_some());
    }
}
