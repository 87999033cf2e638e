//! What is on or off for a whole process, and its limits.

use crate::kernel_state::ask::{Answer, Question};
use crate::kernel_state::calls::Caller;
use crate::kernel_state::error::KernelStateApplyError;
use crate::system_calls::Batch;
use bincode::{Decode, Encode};
use nix::libc;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::fs;
use std::io;

const PR_GET_DUMPABLE: u64 = 3;
const PR_SET_DUMPABLE: u64 = 4;
const PR_SET_CHILD_SUBREAPER: u64 = 36;
const PR_GET_CHILD_SUBREAPER: u64 = 37;
const PR_SET_THP_DISABLE: u64 = 41;
const PR_GET_THP_DISABLE: u64 = 42;
const PR_SET_MDWE: u64 = 65;
const PR_GET_MDWE: u64 = 66;
const PR_SET_MEMORY_MERGE: u64 = 67;
const PR_GET_MEMORY_MERGE: u64 = 68;
/// Dumps belong to root: the kernel makes a process so that has changed its user, and nobody can ask for it.
const DUMPABLE_BY_ROOT: u32 = 2;

/// What is on or off for a whole process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct ProcessSwitches {
    /// File mode creation mask.
    pub umask: u32,
    /// `/proc/PID/oom_score_adj`, -1000 to 1000.
    pub oom_score_adj: i32,
    /// `/proc/PID/coredump_filter`.
    pub coredump_filter: u32,
    /// Nice value of its session's group of processes, if the kernel makes such groups: `/proc/PID/autogroup`.
    pub autogroup_nice: Option<i32>,
    /// Orphans below it become its children: `PR_SET_CHILD_SUBREAPER`.
    pub child_subreaper: bool,
    /// `PR_SET_DUMPABLE`: no 0, yes 1, for root only 2.
    pub dumpable: u32,
    /// `PR_GET_THP_DISABLE`: huge pages are allowed 0, forbidden 1, forbidden unless advised 3.
    pub thp_disabled: u32,
    /// Equal pages of it are merged: `PR_SET_MEMORY_MERGE`.
    pub memory_merge: bool,
    /// `PR_SET_MDWE`: memory that was written cannot become code 1, and children may do so 2.
    pub write_exec_denied: u32,
}

/// One resource limit. All ones: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct ResourceLimit {
    /// The limit in force.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

/// The five that the process itself has to ask.
pub(super) fn questions() -> [Question; 5] {
    let ask = |request| Question::number(libc::SYS_prctl, [request, 0, 0, 0, 0, 0]);
    [
        ask(PR_GET_DUMPABLE),
        Question::bytes(
            libc::SYS_prctl,
            [PR_GET_CHILD_SUBREAPER, 0, 0, 0, 0, 0],
            1,
            4,
        ),
        ask(PR_GET_THP_DISABLE),
        ask(PR_GET_MEMORY_MERGE),
        ask(PR_GET_MDWE),
    ]
}

pub(super) fn answered(
    switches: &mut ProcessSwitches,
    [dumpable, subreaper, thp, merge, write_exec]: [Option<&Answer>; 5],
) {
    let number = |answer: Option<&Answer>| {
        answer.map_or(0, |answer| u32::try_from(answer.result).unwrap_or(0))
    };
    switches.dumpable = number(dumpable);
    switches.child_subreaper = subreaper.is_some_and(|answer| answer.half(0) != 0);
    switches.thp_disabled = number(thp);
    switches.memory_merge = number(merge) != 0;
    switches.write_exec_denied = number(write_exec);
}

/// Before the process is filled: all that takes nothing away.
pub(super) fn apply(
    wanted: &ProcessSwitches,
    pid: i32,
    caller: &mut Caller<'_>,
) -> Result<(), KernelStateApplyError> {
    caller.call(
        "umask",
        libc::SYS_umask,
        [u64::from(wanted.umask), 0, 0, 0, 0, 0],
    )?;
    let subreaper = u64::from(wanted.child_subreaper);
    caller.prctl("child subreaper", PR_SET_CHILD_SUBREAPER, [subreaper, 0])?;
    let thp = u64::from(wanted.thp_disabled);
    let args = [thp & 1, thp & !1];
    caller.prctl("use of huge pages", PR_SET_THP_DISABLE, args)?;
    let what = "merging of memory";
    let merge = u64::from(wanted.memory_merge);
    let args = [PR_SET_MEMORY_MERGE, merge, 0, 0, 0, 0];
    if wanted.memory_merge {
        caller.call(what, libc::SYS_prctl, args)?;
    } else {
        // Kernels before 6.4 do not know it.
        caller.try_call(what, libc::SYS_prctl, args)?;
    }
    let failed = caller.refused("OOM score");
    write_if_other(pid, "oom_score_adj", wanted.oom_score_adj.to_string()).map_err(failed)?;
    let filter = format!("{:08x}", wanted.coredump_filter);
    let failed = caller.refused("coredump filter");
    write_if_other(pid, "coredump_filter", filter).map_err(failed)?;
    if let Some(nice) = wanted.autogroup_nice {
        apply_autogroup(pid, nice).map_err(caller.refused("autogroup"))?;
    }
    Ok(())
}

/// Writing may need a right that having the value does not. `wanted` is as the kernel shows it.
fn write_if_other(pid: i32, file: &str, wanted: String) -> io::Result<()> {
    let path = format!("/proc/{pid}/{file}");
    if fs::read_to_string(&path)?.trim() == wanted {
        return Ok(());
    }
    let is_hexadecimal = file == "coredump_filter";
    let prefix = if is_hexadecimal { "0x" } else { "" };
    fs::write(path, format!("{prefix}{wanted}"))
}

/// Name and nice value of a process's group.
pub(super) fn autogroup(pid: i32) -> Option<(String, i32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/autogroup")).ok()?;
    let (name, nice) = text.trim().split_once(" nice ")?;
    Some((name.to_owned(), nice.parse().ok()?))
}

/// A group that is also our own is left alone.
fn apply_autogroup(pid: i32, wanted: i32) -> io::Result<()> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    match (autogroup(pid), autogroup(own)) {
        (Some((name, nice)), Some((own_name, _))) if name != own_name && nice != wanted => {
            fs::write(format!("/proc/{pid}/autogroup"), wanted.to_string())
        }
        _ => Ok(()),
    }
}

/// Number of the limit on signals that wait.
const LIMIT_SIGNALS_PENDING: usize = 11;

/// `/proc/PID/limits`, which is in the order of the numbers. Unlike `prlimit(2)` it tells of other users, too.
pub(super) fn parse_limits(text: &str) -> Vec<ResourceLimit> {
    // Names have blanks in them, so columns count: 26 bytes for the name, then 21 for each limit.
    let column = |line: &str, start: usize| {
        let text = line.get(start..start + 20).unwrap_or("").trim();
        text.parse().unwrap_or(u64::MAX)
    };
    let limits = text.lines().skip(1).map(|line| ResourceLimit {
        soft: column(line, 26),
        hard: column(line, 47),
    });
    limits.collect()
}

/// Signals that wait and timers count against a limit. While they are made there is none, if we may say so.
pub(super) fn lift_signal_limit(pid: i32) {
    let none = Rlimit {
        current: None,
        maximum: None,
    };
    // Without the right, the limit stays as it is, and whoever needs more room is told so.
    prlimit(Pid::from_raw(pid), Resource::Sigpending, none).ok();
}

/// Limits that may be set before signals are queued, or the one that may not. The process sets them itself: for that no
/// right is needed, unless one is raised.
pub(super) fn apply_limits(
    wanted: &[ResourceLimit],
    that_of_signals: bool,
    caller: &mut Caller<'_>,
) -> Result<(), KernelStateApplyError> {
    let mut batch = Batch::default();
    for (resource, limit) in wanted.iter().enumerate() {
        if (resource == LIMIT_SIGNALS_PENDING) != that_of_signals {
            continue;
        }
        let bytes = [limit.soft.to_le_bytes(), limit.hard.to_le_bytes()].concat();
        let resource = u64::try_from(resource).unwrap_or(u64::MAX);
        batch.push_with(libc::SYS_prlimit64, [0, resource, 0, 0, 0, 0], 2, &bytes);
    }
    let applied = caller.calls.call_all(batch);
    applied.map_err(|(_, source)| caller.failed("resource limits")(source))
}

/// No page may be code from here on that was written.
pub(super) fn apply_write_exec(
    wanted: &ProcessSwitches,
    caller: &mut Caller<'_>,
) -> Result<(), KernelStateApplyError> {
    if wanted.write_exec_denied != 0 {
        let args = [u64::from(wanted.write_exec_denied), 0];
        caller.prctl("ban on written code", PR_SET_MDWE, args)?;
    }
    Ok(())
}

/// After every change of credentials, which changes it, too.
pub(super) fn apply_dumpable(
    wanted: &ProcessSwitches,
    caller: &mut Caller<'_>,
) -> Result<(), KernelStateApplyError> {
    let what = "dumpability";
    let present = caller.prctl(what, PR_GET_DUMPABLE, [0; 2])?;
    if present == u64::from(wanted.dumpable) {
        return Ok(());
    }
    // The third value cannot be asked for; no dumps at all is the stricter one.
    let dumpable = if wanted.dumpable == DUMPABLE_BY_ROOT {
        0
    } else {
        u64::from(wanted.dumpable)
    };
    caller.prctl(what, PR_SET_DUMPABLE, [dumpable, 0])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::getrlimit;

    #[test]
    fn limits_are_read_as_the_kernel_gives_them_to_ourselves() {
        let read = parse_limits(&fs::read_to_string("/proc/self/limits").expect("read it"));
        assert_eq!(read.len(), 16);
        for (number, resource) in [
            (3, Resource::Stack),
            (7, Resource::Nofile),
            (9, Resource::As),
            (LIMIT_SIGNALS_PENDING, Resource::Sigpending),
        ] {
            let limit = getrlimit(resource);
            let expected = ResourceLimit {
                soft: limit.current.unwrap_or(u64::MAX),
                hard: limit.maximum.unwrap_or(u64::MAX),
            };
            assert_eq!(read[number], expected, "{number}");
        }
    }
}

#[cfg(test)]
mod hostile_tests {
    use super::*;

    #[test]
    fn hostile_text_of_limits() {
        let sound =
            b"Limit                     Soft Limit           Hard Limit           Units     \n\
            Max cpu time              unlimited            unlimited            seconds   \n\
            Max open files            1024                 524288               files     \n";
        pagetide_testing::hostile::survives(sound, |text| {
            let limits = parse_limits(&String::from_utf8_lossy(text));
            text != sound || limits.last().is_some_and(|limit| limit.hard == 524_288)
        });
    }
}
