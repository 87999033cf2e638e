//! Kinds of files that are not brought back, each by its fixed name.

use super::foreign::Foreign;
use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// File systems: `f_type` of statfs(2), which say what a file is.
pub(crate) mod file_system {
    pub(crate) const ANONYMOUS_INODES: u64 = 0x0904_1934;
    pub(crate) const PROCESSES: u64 = 0x5049_4446;
    pub(crate) const PIPES: u64 = 0x5049_5045;
    pub(crate) const PROC: u64 = 0x9fa0;
    pub(crate) const TMPFS: u64 = 0x0102_1994;
    pub(crate) const HUGETLBFS: u64 = 0x9584_58f6;
    const SYSFS: u64 = 0x6265_6572;
    const CGROUP: u64 = 0x0027_e0eb;
    const CGROUP2: u64 = 0x6367_7270;
    const DEBUGFS: u64 = 0x6462_6720;
    const SECURITYFS: u64 = 0x7363_6673;
    const CONFIGFS: u64 = 0x6265_6570;

    /// Those whose files are made up at the moment they are read.
    pub(crate) fn is_made_up(file_system: u64) -> bool {
        matches!(
            file_system,
            PROC | SYSFS | CGROUP | CGROUP2 | DEBUGFS | SECURITYFS | CONFIGFS
        )
    }
}

/// File systems whose files are never brought back: name of the blocker, and what it is.
static FILE_SYSTEMS: [(u64, BlockerKind, &str); 5] = [
    (
        0x5345_434d,
        BlockerKind::SecretMemory,
        "is memory that the kernel keeps secret",
    ),
    (
        0x1980_0202,
        BlockerKind::MessageQueue,
        "is a POSIX message queue",
    ),
    (0x6e73_6673, BlockerKind::Namespace, "is a namespace"),
    (0x444d_4142, BlockerKind::DmaBuf, "is a buffer of a device"),
    (0xcafe_4a11, BlockerKind::Bpf, "is a BPF object"),
];

/// Anonymous files by the beginning of what `/proc/PID/fd` shows behind `anon_inode:`.
static ANONYMOUS: [(&str, BlockerKind, &str); 13] = [
    (
        "[userfaultfd]",
        BlockerKind::Userfaultfd,
        "is a userfaultfd",
    ),
    ("[io_uring]", BlockerKind::IoUring, "is an io_uring"),
    (
        "[perf_event]",
        BlockerKind::PerfEvent,
        "is a performance counter",
    ),
    ("bpf", BlockerKind::Bpf, "is a BPF object"),
    ("[bpf", BlockerKind::Bpf, "is a BPF object"),
    ("[fanotify]", BlockerKind::Fanotify, "is a fanotify group"),
    (
        "kvm",
        BlockerKind::Kvm,
        "is a virtual machine or a part of it",
    ),
    (
        "[landlock-ruleset]",
        BlockerKind::Landlock,
        "is a set of Landlock rules",
    ),
    (
        "[fscontext]",
        BlockerKind::MountContext,
        "is a file system that is being mounted",
    ),
    (
        "seccomp notify",
        BlockerKind::SeccompNotify,
        "supervises system calls of others",
    ),
    ("dmabuf", BlockerKind::DmaBuf, "is a buffer of a device"),
    ("[vfio", BlockerKind::Device, "is a device"),
    ("sync_file", BlockerKind::DmaBuf, "is a fence of a device"),
];

const ADVICE: &str = "let the program close it before the checkpoint";
const RING_ADVICE: &str =
    "let the program close it before the checkpoint (node: start it with UV_USE_IO_URING=0)";

/// The blocker of a file that is never brought back; none if it is not known to be one.
pub(crate) fn by_file_system(foreign: &Foreign) -> Option<Blocker> {
    let (_, kind, what) = FILE_SYSTEMS
        .iter()
        .find(|known| known.0 == foreign.file_system)?;
    Some(foreign.blocker(kind.clone(), what, ADVICE))
}

/// The blocker of a file that is not touched while its process stands still.
pub(crate) fn served(foreign: &Foreign) -> Blocker {
    let what = format!(
        "is {}, in a file system that a program or another machine serves, which may wait for this very process",
        foreign.link.display()
    );
    foreign.blocker(BlockerKind::ServedFile, &what, ADVICE)
}

/// The blocker of an anonymous file, which none of the kinds that are brought back has claimed.
pub(crate) fn anonymous(foreign: &Foreign) -> Blocker {
    let link = foreign.link_bytes();
    let name = link.strip_prefix(b"anon_inode:").unwrap_or(link);
    let known = ANONYMOUS
        .iter()
        .find(|known| name.starts_with(known.0.as_bytes()));
    match known {
        Some((_, BlockerKind::IoUring, what)) => {
            foreign.blocker(BlockerKind::IoUring, what, RING_ADVICE)
        }
        Some((_, kind, what)) => foreign.blocker(kind.clone(), what, ADVICE),
        None => unknown(foreign, OsStr::from_bytes(name)),
    }
}

/// The blocker of something that is not known.
pub(crate) fn unknown(foreign: &Foreign, name: &OsStr) -> Blocker {
    let what = format!("is {}, which is not known", name.display());
    foreign.blocker(BlockerKind::UnknownFile, &what, ADVICE)
}

/// The blocker of a character device that may hold any state.
pub(crate) fn device(foreign: &Foreign) -> Blocker {
    let number = foreign.stat.st_rdev;
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let path = foreign.link.display();
    let (kind, what) = match (major, minor) {
        (10, 200) => (BlockerKind::Tun, format!("is a network tunnel ({path})")),
        (10, 232) => (
            BlockerKind::Kvm,
            format!("is the virtual machine device ({path})"),
        ),
        (226, _) => (BlockerKind::Drm, format!("is a graphics device ({path})")),
        _ => (
            BlockerKind::Device,
            format!("is the device {path} ({major}:{minor})"),
        ),
    };
    foreign.blocker(kind, &what, ADVICE)
}
