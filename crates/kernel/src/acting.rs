//! A thread that acts as somebody else: its effective and file system ids, its groups and its capabilities are those of
//! another process, and what it opens it opens as that one would.
//!
//! setgroups(2), setresuid(2), setfsuid(2), capset(2). To the kernel all of these belong to a thread, while the libc changes
//! all threads of a process; so they are made bare here. Real and saved ids stay, so that nobody may signal or trace
//! the thread who might not before. Needs CAP_SETUID, CAP_SETGID and the capabilities that are wanted, unless
//! they are the thread's own. The kernel takes a process whose thread has changed its ids for one that dumps no core.

#![allow(unsafe_code)]

use nix::libc;
use std::ffi::c_long;
use std::io;

/// As whom files are opened, made and looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// Effective user, and the one that counts for files.
    pub users: [u32; 2],
    /// Effective group, and the one that counts for files.
    pub groups: [u32; 2],
    /// Supplementary groups, ascending.
    pub supplementary: Vec<u32>,
    /// Capabilities in force, bit n for number n.
    pub capabilities: u64,
}

/// `_LINUX_CAPABILITY_VERSION_3`: sets of 64 bits.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// -1 as an id: leave it as it is.
const SAME: c_long = -1;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// Effective, permitted, inheritable.
type CapabilityWords = [[u32; 3]; 2];

impl Actor {
    /// Who the calling thread is. Asked of the kernel by calls: a thread may have another root directory, without `/proc`.
    pub fn own() -> io::Result<Self> {
        let mut ids = [[0u32; 3]; 2];
        for (call, ids) in [libc::SYS_getresuid, libc::SYS_getresgid]
            .into_iter()
            .zip(&mut ids)
        {
            let [real, effective, saved] = ids;
            // SAFETY: each pointer leads to a number that outlives the call.
            let got = unsafe {
                libc::syscall(call, &raw mut *real, &raw mut *effective, &raw mut *saved)
            };
            check(got)?;
        }
        // SAFETY: with a length of 0 the pointer is not used.
        let count = unsafe { libc::syscall(libc::SYS_getgroups, 0, std::ptr::null_mut::<u32>()) };
        check(count)?;
        let mut supplementary = vec![0u32; usize::try_from(count).unwrap_or(0)];
        // SAFETY: the pointer leads to `count` numbers; if there are more groups now, the call fails.
        let got = unsafe { libc::syscall(libc::SYS_getgroups, count, supplementary.as_mut_ptr()) };
        check(got)?;
        Ok(Self {
            users: [ids[0][1], id_for_files(libc::SYS_setfsuid)],
            groups: [ids[1][1], id_for_files(libc::SYS_setfsgid)],
            supplementary,
            capabilities: word_of(capabilities()?, 0),
        })
    }

    /// Makes the calling thread act so, and no other thread. Call it in a thread that ends soon. After an error the
    /// thread is in between, and must do nothing more.
    pub fn assume(&self) -> io::Result<()> {
        let own = Self::own()?;
        if own == *self {
            return Ok(());
        }
        let [user, file_user] = self.users;
        let [group, file_group] = self.groups;
        if own.supplementary != self.supplementary {
            let count = self.supplementary.len();
            // SAFETY: the pointer leads to `count` numbers, which outlive the call and are only read.
            let set =
                unsafe { libc::syscall(libc::SYS_setgroups, count, self.supplementary.as_ptr()) };
            check(set)?;
        }
        if own.groups != self.groups {
            // SAFETY: the call takes numbers only.
            let set =
                unsafe { libc::syscall(libc::SYS_setresgid, SAME, c_long::from(group), SAME) };
            check(set)?;
            set_for_files(libc::SYS_setfsgid, file_group)?;
        }
        let permitted = capabilities()?;
        if own.users != self.users {
            // SAFETY: the call takes numbers only.
            let set = unsafe { libc::syscall(libc::SYS_setresuid, SAME, c_long::from(user), SAME) };
            check(set)?;
            if file_user != user {
                // It took the capabilities out of force, which the next call needs.
                set_capabilities(permitted, word_of(permitted, 1))?;
            }
            set_for_files(libc::SYS_setfsuid, file_user)?;
        }
        let wanted = self.capabilities & word_of(permitted, 1);
        set_capabilities(permitted, wanted)
    }
}

/// The id that one of these two calls sets. They return what held before, and nothing changes if they are given an id that is
/// nobody's.
fn id_for_files(call: c_long) -> u32 {
    // SAFETY: the call takes a number only.
    let now = unsafe { libc::syscall(call, SAME) };
    u32::try_from(now & c_long::from(u32::MAX)).unwrap_or(u32::MAX)
}

/// These calls tell no error either.
fn set_for_files(call: c_long, id: u32) -> io::Result<()> {
    // SAFETY: the call takes a number only.
    unsafe { libc::syscall(call, c_long::from(id)) };
    if id_for_files(call) == id {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}

fn word_of(words: CapabilityWords, set: usize) -> u64 {
    u64::from(words[0][set]) | u64::from(words[1][set]) << 32
}

fn capabilities() -> io::Result<CapabilityWords> {
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    let mut words: CapabilityWords = [[0; 3]; 2];
    // SAFETY: the header names the version whose structure `words` has the layout of, and both outlive the call.
    let got = unsafe { libc::syscall(libc::SYS_capget, &raw const header, &raw mut words) };
    check(got)?;
    Ok(words)
}

/// Puts these, which must be permitted, into force.
fn set_capabilities(mut words: CapabilityWords, effective: u64) -> io::Result<()> {
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    words[0][0] = u32::try_from(effective & u64::from(u32::MAX)).unwrap_or(0);
    words[1][0] = u32::try_from(effective >> 32).unwrap_or(0);
    // SAFETY: as for capget(2); the kernel only reads.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const words) })
}

/// The calling thread has no capabilities any more, in no set that could give it one back but by executing a program.
pub(crate) fn give_up_capabilities() -> io::Result<()> {
    set_capabilities([[0; 3]; 2], 0)
}

fn check(result: c_long) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn one_thread_acts_as_another_user_and_the_rest_do_not() {
        let own = Actor::own().expect("who we are");
        if own.users != [0, 0] {
            return;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let all = fs::Permissions::from_mode(0o777);
        fs::set_permissions(directory.path(), all).expect("open it to all");
        let (theirs, ours) = (
            directory.path().join("theirs"),
            directory.path().join("ours"),
        );
        fs::write(&ours, "ours").expect("write a file");
        fs::set_permissions(&ours, fs::Permissions::from_mode(0o600)).expect("close it");
        let other = Actor {
            users: [65534; 2],
            groups: [65534; 2],
            supplementary: vec![12, 34],
            capabilities: 0,
        };
        std::thread::scope(|scope| {
            let acting = scope.spawn(|| {
                other.assume().expect("act as another");
                assert_eq!(Actor::own().expect("who we are"), other);
                fs::write(&theirs, "theirs").expect("write a file");
                let refused = fs::read(&ours).expect_err("it is not theirs");
                assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
            });
            acting.join().expect("the thread");
        });
        assert_eq!(Actor::own().expect("who we are"), own);
        let made = fs::metadata(&theirs).expect("look at it");
        assert_eq!((made.uid(), made.gid()), (65534, 65534));
        assert_eq!(fs::read(&ours).expect("read it"), b"ours");
    }

    #[test]
    fn capabilities_can_be_kept_under_another_user() {
        const DAC_OVERRIDE: u64 = 1 << 1;
        if Actor::own().expect("who we are").users != [0, 0] {
            return;
        }
        let other = Actor {
            users: [65534, 65533],
            groups: [65534, 65533],
            supplementary: Vec::new(),
            capabilities: DAC_OVERRIDE,
        };
        let seen = std::thread::spawn(move || {
            other.assume().expect("act as another");
            Actor::own().expect("who we are")
        });
        let seen = seen.join().expect("the thread");
        assert_eq!((seen.users, seen.groups), ([65534, 65533], [65534, 65533]));
        assert_eq!(seen.capabilities, DAC_OVERRIDE);
    }
}
