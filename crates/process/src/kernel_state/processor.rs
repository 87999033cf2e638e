//! What a thread may do with the processor, and what becomes of it when the processor errs.

use crate::kernel_state::ask::{Answer, Question};
use crate::kernel_state::calls::Caller;
use crate::kernel_state::error::KernelStateApplyError;
use crate::proc_files::Status;
use bincode::{Decode, Encode};
use nix::libc;
use pagetide_kernel::ptrace::ThreadId;

const PR_GET_TSC: u64 = 25;
const PR_SET_TSC: u64 = 26;
const PR_TSC_ENABLE: u32 = 1;
const PR_TSC_SIGSEGV: u32 = 2;
const PR_MCE_KILL: u64 = 33;
const PR_MCE_KILL_GET: u64 = 34;
const PR_MCE_KILL_SET: u64 = 1;
const PR_MCE_KILL_DEFAULT: u32 = 2;
const PR_SET_SPECULATION_CTRL: u64 = 53;
const PR_SPEC_STORE_BYPASS: u64 = 0;
const PR_SPEC_INDIRECT_BRANCH: u64 = 1;
const PR_SPEC_ENABLE: u32 = 2;
const PR_SPEC_DISABLE: u32 = 4;
const PR_SPEC_FORCE_DISABLE: u32 = 8;
const ARCH_GET_CPUID: u64 = 0x1011;
const ARCH_SET_CPUID: u64 = 0x1012;

/// What a thread may do with the processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct ProcessorSwitches {
    /// Reading the time stamp counter gives it a SIGSEGV: `PR_SET_TSC`.
    pub tsc_faults: bool,
    /// CPUID gives it a SIGSEGV: `ARCH_SET_CPUID`.
    pub cpuid_faults: bool,
    /// Speculative store bypass, as of `PR_SET_SPECULATION_CTRL`: 2 enabled, 4 disabled, 8 disabled for good; 0 if it is
    /// not for the thread to say.
    pub store_bypass: u32,
    /// The same for speculation of indirect branches.
    pub indirect_branch: u32,
    /// `PR_MCE_KILL`: told late of broken memory 0, early 1, as the system has it 2.
    pub machine_check_kill: u32,
}

/// The three that the thread itself has to ask.
pub(super) fn questions() -> [Question; 3] {
    [
        Question::bytes(libc::SYS_prctl, [PR_GET_TSC, 0, 0, 0, 0, 0], 1, 4),
        Question::number(libc::SYS_arch_prctl, [ARCH_GET_CPUID, 0, 0, 0, 0, 0]),
        Question::number(libc::SYS_prctl, [PR_MCE_KILL_GET, 0, 0, 0, 0, 0]),
    ]
}

pub(super) fn answered(
    status: &Status,
    [tsc, cpuid, machine_check]: [Option<&Answer>; 3],
) -> ProcessorSwitches {
    ProcessorSwitches {
        tsc_faults: tsc.is_some_and(|answer| answer.half(0) == PR_TSC_SIGSEGV),
        cpuid_faults: cpuid.is_some_and(|answer| answer.result == 0),
        store_bypass: speculation(status, "Speculation_Store_Bypass"),
        indirect_branch: speculation(status, "SpeculationIndirectBranch"),
        machine_check_kill: machine_check.map_or(PR_MCE_KILL_DEFAULT, |answer| {
            u32::try_from(answer.result).unwrap_or(PR_MCE_KILL_DEFAULT)
        }),
    }
}

/// The words of `/proc/PID/status` as numbers of `prctl(2)`.
fn speculation(status: &Status, key: &str) -> u32 {
    match status.value(key).unwrap_or("") {
        "thread vulnerable" | "conditional enabled" => PR_SPEC_ENABLE,
        "thread mitigated" | "conditional disabled" => PR_SPEC_DISABLE,
        "thread force mitigated" | "conditional force disabled" => PR_SPEC_FORCE_DISABLE,
        _ => 0,
    }
}

/// What is so already, or is not for a thread to say on this machine, is not set.
pub(super) fn apply(
    wanted: &ProcessorSwitches,
    thread: ThreadId,
    caller: &mut Caller<'_>,
) -> Result<(), KernelStateApplyError> {
    let status = Status::of_process(thread.get()).map_err(caller.refused("speculation"))?;
    for (key, which, wanted) in [
        (
            "Speculation_Store_Bypass",
            PR_SPEC_STORE_BYPASS,
            wanted.store_bypass,
        ),
        (
            "SpeculationIndirectBranch",
            PR_SPEC_INDIRECT_BRANCH,
            wanted.indirect_branch,
        ),
    ] {
        let present = speculation(&status, key);
        if wanted != 0 && present != 0 && wanted != present {
            let args = [which, u64::from(wanted)];
            caller.prctl("speculation", PR_SET_SPECULATION_CTRL, args)?;
        }
    }
    let tsc = if wanted.tsc_faults {
        PR_TSC_SIGSEGV
    } else {
        PR_TSC_ENABLE
    };
    caller.prctl("time stamp counter", PR_SET_TSC, [u64::from(tsc), 0])?;
    let what = "use of CPUID";
    let args = |enabled: bool| [ARCH_SET_CPUID, u64::from(enabled), 0, 0, 0, 0];
    if wanted.cpuid_faults {
        caller.call(what, libc::SYS_arch_prctl, args(false))?;
    } else {
        // Refused by processors on which it cannot be forbidden.
        caller.try_call(what, libc::SYS_arch_prctl, args(true))?;
    }
    if wanted.machine_check_kill != PR_MCE_KILL_DEFAULT {
        let args = [PR_MCE_KILL_SET, u64::from(wanted.machine_check_kill)];
        caller.prctl("handling of broken memory", PR_MCE_KILL, args)?;
    }
    Ok(())
}
