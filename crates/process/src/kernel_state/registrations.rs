//! What a process has registered with the kernel for its memory: barriers that all its threads take part in (membarrier(2)), and a
//! table of its own for its futexes (PR_FUTEX_HASH of prctl(2), since Linux 6.16).
//!
//! A program that has registered barriers does not ask again whether it has, and what it guards without its own fences is
//! wrong from then on. What it has registered the kernel tells since Linux 6.3. Where it does not tell, all kinds are
//! registered: one too many costs a little time at a change of processes, one too few the program.

use crate::kernel_state::ask::{Answer, Question};
use crate::kernel_state::calls::Caller;
use crate::kernel_state::error::KernelStateApplyError;
use bincode::{Decode, Encode};
use nix::libc;

const MEMBARRIER_CMD_QUERY: u64 = 0;
const MEMBARRIER_CMD_GET_REGISTRATIONS: u64 = 1 << 9;
/// The commands that register: global, private, private with instruction streams, private with restartable sequences.
const REGISTERING: [u64; 4] = [1 << 2, 1 << 4, 1 << 6, 1 << 8];
const PR_FUTEX_HASH: u64 = 78;
const PR_FUTEX_HASH_SET_SLOTS: u64 = 1;
const PR_FUTEX_HASH_GET_SLOTS: u64 = 2;

/// What a process has registered. See the head of this file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Registrations {
    /// Commands of membarrier(2) that were given, one bit each; `None` if the kernel does not tell.
    pub barriers: Option<u64>,
    /// Slots of its table of futexes, 0 if it uses that of all; `None` if the kernel does not tell.
    pub futex_slots: Option<u64>,
}

/// The two that the process itself has to ask.
pub(super) fn questions() -> [Question; 2] {
    let slots = [PR_FUTEX_HASH, PR_FUTEX_HASH_GET_SLOTS, 0, 0, 0, 0];
    let registered = [MEMBARRIER_CMD_GET_REGISTRATIONS, 0, 0, 0, 0, 0];
    [
        Question::number(libc::SYS_membarrier, registered).that_may_be_forbidden(),
        Question::number(libc::SYS_prctl, slots).that_may_be_forbidden(),
    ]
}

pub(super) fn answered([barriers, slots]: [Option<&Answer>; 2]) -> Registrations {
    let number = |answer: Option<&Answer>| answer.map(|answer| answer.result);
    Registrations {
        barriers: number(barriers),
        futex_slots: number(slots),
    }
}

impl Registrations {
    /// Registers barriers, before there are other threads: it is then done at once.
    pub(super) fn apply_barriers(
        &self,
        caller: &mut Caller<'_>,
    ) -> Result<(), KernelStateApplyError> {
        let what = "memory barriers";
        let known = caller.try_call(
            what,
            libc::SYS_membarrier,
            [MEMBARRIER_CMD_QUERY, 0, 0, 0, 0, 0],
        )?;
        for command in REGISTERING {
            let arguments = [command, 0, 0, 0, 0, 0];
            match self.barriers {
                Some(registered) if registered & command != 0 => {
                    caller.call(what, libc::SYS_membarrier, arguments)?;
                }
                None if known.is_some_and(|known| known & command != 0) => {
                    caller.try_call(what, libc::SYS_membarrier, arguments)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Gives it the table of futexes that it had, when all threads are there: the kernel makes one by itself as threads come. A
    /// kernel that cannot has none, which changes nothing but how long a futex takes.
    pub(super) fn apply_futexes(
        &self,
        caller: &mut Caller<'_>,
    ) -> Result<(), KernelStateApplyError> {
        let Some(slots) = self.futex_slots else {
            return Ok(());
        };
        let what = "table of futexes";
        let get = [PR_FUTEX_HASH, PR_FUTEX_HASH_GET_SLOTS, 0, 0, 0, 0];
        if caller
            .try_call(what, libc::SYS_prctl, get)?
            .is_some_and(|now| now != slots)
        {
            let set = [PR_FUTEX_HASH, PR_FUTEX_HASH_SET_SLOTS, slots, 0, 0, 0];
            caller.try_call(what, libc::SYS_prctl, set)?;
        }
        Ok(())
    }
}
