//! Who a thread is and what it may do. The kernel keeps it by thread, and so do we.

use crate::kernel_state::ask::Question;
use crate::kernel_state::calls::Caller;
use crate::kernel_state::error::KernelStateApplyError;
use crate::proc_files::Status;
use bincode::{Decode, Encode};
use nix::libc;
use pagetide_kernel::acting::Actor;
use pagetide_kernel::ptrace::ThreadId;

const PR_CAPBSET_DROP: u64 = 24;
const PR_GET_SECUREBITS: u64 = 27;
const PR_SET_SECUREBITS: u64 = 28;
const PR_CAP_AMBIENT: u64 = 47;
const PR_CAP_AMBIENT_RAISE: u64 = 2;
const PR_CAP_AMBIENT_CLEAR_ALL: u64 = 4;
/// Capabilities stay as they are when user ids change.
const SECBIT_NO_SETUID_FIXUP: u32 = 4;
/// `_LINUX_CAPABILITY_VERSION_3`: sets of 64 bits.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Who a thread is and what it may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Credentials {
    /// Real, effective, saved and file system user id.
    pub uids: [u32; 4],
    /// Real, effective, saved and file system group id.
    pub gids: [u32; 4],
    /// Supplementary groups, in ascending order.
    pub groups: Vec<u32>,
    /// Capabilities that an `execve` may leave, bit n for number n as in the other four sets.
    pub inheritable: u64,
    /// Capabilities it may make effective.
    pub permitted: u64,
    /// Capabilities in force.
    pub effective: u64,
    /// The most that an `execve` can give it.
    pub bounding: u64,
    /// What an `execve` of a plain program leaves it.
    pub ambient: u64,
    /// `PR_SET_SECUREBITS`, `PR_SET_KEEPCAPS` among them.
    pub securebits: u32,
}

impl Credentials {
    /// As whom the thread opens files.
    pub(crate) fn as_actor(&self) -> Actor {
        Actor {
            users: [self.uids[1], self.uids[3]],
            groups: [self.gids[1], self.gids[3]],
            supplementary: self.groups.clone(),
            capabilities: self.effective,
        }
    }

    /// All but `securebits`, which the thread itself has to ask.
    pub(super) fn from_status(status: &Status) -> Self {
        let capabilities = |key| {
            let text = status.value(key).unwrap_or("");
            u64::from_str_radix(text, 16).unwrap_or(0)
        };
        Self {
            uids: four(status, "Uid"),
            gids: four(status, "Gid"),
            groups: numbers(status, "Groups").collect(),
            inheritable: capabilities("CapInh"),
            permitted: capabilities("CapPrm"),
            effective: capabilities("CapEff"),
            bounding: capabilities("CapBnd"),
            ambient: capabilities("CapAmb"),
            securebits: 0,
        }
    }
}

fn numbers<'a>(status: &'a Status, key: &str) -> impl Iterator<Item = u32> + use<'a> {
    let words = status.value(key).unwrap_or("").split_whitespace();
    words.filter_map(|word| word.parse().ok())
}

fn four(status: &Status, key: &str) -> [u32; 4] {
    let mut four = [0; 4];
    for (place, number) in four.iter_mut().zip(numbers(status, key)) {
        *place = number;
    }
    four
}

pub(super) fn securebits_question() -> Question {
    Question::number(libc::SYS_prctl, [PR_GET_SECUREBITS, 0, 0, 0, 0, 0])
}

/// Makes the thread what it was. Each step needs a right that a later one may take away. Nothing is done to a thread
/// that is so already, so that no right is needed for it.
pub(super) fn apply(
    wanted: &Credentials,
    thread: ThreadId,
    caller: &mut Caller<'_>,
) -> Result<(), KernelStateApplyError> {
    let status = Status::of_process(thread.get()).map_err(caller.refused("credentials"))?;
    let bits = caller.prctl("securebits", PR_GET_SECUREBITS, [0; 2])?;
    let present = Credentials {
        securebits: u32::try_from(bits).unwrap_or(0),
        ..Credentials::from_status(&status)
    };
    if present == *wanted {
        return Ok(());
    }
    // Inheritable ones have to be in the bounding set when they are added, and may be outside of it later.
    let all = Credentials {
        inheritable: wanted.inheritable,
        effective: present.permitted,
        ..present.clone()
    };
    set_capabilities(&all, caller)?;
    for number in 0..u64::from(u64::BITS) {
        if present.bounding & !wanted.bounding & (1 << number) != 0 {
            caller.prctl("bounding set", PR_CAPBSET_DROP, [number, 0])?;
        }
    }
    set_groups(&present, wanted, caller)?;
    let keeping = present.securebits | SECBIT_NO_SETUID_FIXUP;
    if present.uids != wanted.uids {
        set_securebits(keeping, caller)?;
        set_users(wanted.uids, caller)?;
    }
    set_ambient(wanted.ambient, caller)?;
    set_securebits(wanted.securebits, caller)?;
    set_capabilities(wanted, caller)
}

fn set_capabilities(
    wanted: &Credentials,
    caller: &mut Caller<'_>,
) -> Result<(), KernelStateApplyError> {
    let mut bytes = CAPABILITY_VERSION.to_le_bytes().to_vec();
    // Of the caller itself.
    bytes.extend_from_slice(&0u32.to_le_bytes());
    for half in 0..2 {
        for set in [wanted.effective, wanted.permitted, wanted.inheritable] {
            let bytes_of_set = set.to_le_bytes();
            bytes.extend_from_slice(&bytes_of_set[half * 4..half * 4 + 4]);
        }
    }
    caller.call_with("capabilities", libc::SYS_capset, &mut bytes, &|address| {
        [address, address + 8, 0, 0, 0, 0]
    })?;
    Ok(())
}

fn set_groups(
    present: &Credentials,
    wanted: &Credentials,
    caller: &mut Caller<'_>,
) -> Result<(), KernelStateApplyError> {
    if present.groups != wanted.groups {
        let mut bytes: Vec<u8> = wanted
            .groups
            .iter()
            .flat_map(|group| group.to_le_bytes())
            .collect();
        let count = u64::try_from(wanted.groups.len()).unwrap_or(u64::MAX);
        // An address is taken of something, even if nothing is read from there.
        bytes.resize(bytes.len().max(4), 0);
        caller.call_with(
            "supplementary groups",
            libc::SYS_setgroups,
            &mut bytes,
            &|address| [count, address, 0, 0, 0, 0],
        )?;
    }
    if present.gids != wanted.gids {
        let what = "group ids";
        let [real, effective, saved, file_system] = wanted.gids.map(u64::from);
        caller.call(what, libc::SYS_setresgid, [real, effective, saved, 0, 0, 0])?;
        caller.call(what, libc::SYS_setfsgid, [file_system, 0, 0, 0, 0, 0])?;
    }
    Ok(())
}

fn set_users(wanted: [u32; 4], caller: &mut Caller<'_>) -> Result<(), KernelStateApplyError> {
    let what = "user ids";
    let [real, effective, saved, file_system] = wanted.map(u64::from);
    caller.call(what, libc::SYS_setresuid, [real, effective, saved, 0, 0, 0])?;
    caller.call(what, libc::SYS_setfsuid, [file_system, 0, 0, 0, 0, 0])?;
    Ok(())
}

fn set_ambient(wanted: u64, caller: &mut Caller<'_>) -> Result<(), KernelStateApplyError> {
    let what = "ambient capabilities";
    caller.prctl(what, PR_CAP_AMBIENT, [PR_CAP_AMBIENT_CLEAR_ALL, 0])?;
    for number in (0..u64::from(u64::BITS)).filter(|number| wanted & (1 << number) != 0) {
        caller.prctl(what, PR_CAP_AMBIENT, [PR_CAP_AMBIENT_RAISE, number])?;
    }
    Ok(())
}

fn set_securebits(wanted: u32, caller: &mut Caller<'_>) -> Result<(), KernelStateApplyError> {
    caller.prctl("securebits", PR_SET_SECUREBITS, [u64::from(wanted), 0])?;
    Ok(())
}
