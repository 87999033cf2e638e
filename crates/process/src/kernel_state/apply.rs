//! Putting a kernel state into a process that is being built, in four steps.

use crate::kernel_state::calls::Caller;
use crate::kernel_state::error::KernelStateApplyError;
use crate::kernel_state::signals::For;
use crate::kernel_state::timers::TimerBatch;
use crate::kernel_state::{
    KernelState, ThreadKernelState, credentials, locked_memory, memory_policy, processor,
    scheduling, signals, switches, thread_addresses, timers,
};
use crate::system_calls::SystemCalls;
use nix::libc;
use pagetide_kernel::ptrace::ThreadId;

const PR_SET_PDEATHSIG: u64 = 1;
const PR_SET_NAME: u64 = 15;
const PR_SET_NO_NEW_PRIVS: u64 = 38;
const KEYCTL_CHOWN: u64 = 4;
/// -3: the session keyring of the calling thread.
const SESSION_KEYRING: u64 = -3_i64 as u64;
/// Length of a thread's name with the zero byte at its end.
const NAME_BYTES: usize = 16;

impl KernelState {
    /// For the whole process, by its first thread, when its memory and descriptors are in place and it has that one
    /// thread: signal actions, and what is on or off. `pid` is its number now.
    pub fn apply_to_process(
        &self,
        pid: i32,
        calls: &mut dyn SystemCalls,
    ) -> Result<(), KernelStateApplyError> {
        let caller = &mut Caller { calls, thread: pid };
        switches::lift_signal_limit(pid);
        signals::apply_actions(&self.signal_actions, caller)?;
        self.own_keyring(caller)?;
        self.since_2.registrations.apply_barriers(caller)?;
        switches::apply(&self.switches, pid, caller)
    }

    /// The session keyring, which it began at its birth, belongs to its user. A user with too many keys leaves it to us.
    fn own_keyring(&self, caller: &mut Caller<'_>) -> Result<(), KernelStateApplyError> {
        let credentials = self.threads.first().map(|first| &first.credentials);
        let Some(credentials) = credentials.filter(|one| one.uids[3] != 0 || one.gids[3] != 0)
        else {
            return Ok(());
        };
        let [user, group] = [credentials.uids[3], credentials.gids[3]].map(u64::from);
        let arguments = [KEYCTL_CHOWN, SESSION_KEYRING, user, group, 0, 0];
        caller.try_call("session keyring", libc::SYS_keyctl, arguments)?;
        Ok(())
    }

    /// For one thread, run by that thread: all that takes nothing away from it. `thread` is its number now. A thread with
    /// restartable sequences of its own must have taken them back.
    pub fn apply_to_thread(
        &self,
        state: &ThreadKernelState,
        thread: ThreadId,
        calls: &mut dyn SystemCalls,
    ) -> Result<(), KernelStateApplyError> {
        let caller = &mut Caller {
            calls,
            thread: thread.get(),
        };
        let mut name: Vec<u8> = state.name.iter().copied().take(NAME_BYTES - 1).collect();
        name.push(0);
        caller.call_with("name", libc::SYS_prctl, &mut name, &|address| {
            [PR_SET_NAME, address, 0, 0, 0, 0]
        })?;
        thread_addresses::apply_stack(state.alternate_stack, caller)?;
        thread_addresses::apply_robust_list(state.robust_list, caller)?;
        thread_addresses::apply_tid_address(state.tid_address, caller)?;
        if let Some(rseq) = state.rseq {
            thread_addresses::apply_rseq(rseq, caller)?;
        }
        memory_policy::apply(&state.memory_policy, caller)?;
        processor::apply(&state.processor, thread, caller)?;
        let personality = u64::from(state.personality);
        caller.call(
            "personality",
            libc::SYS_personality,
            [personality, 0, 0, 0, 0, 0],
        )?;
        scheduling::apply(&state.scheduling, thread, caller)
    }

    /// The POSIX timers, to be made when all threads are there, in this order: before Linux 6.15 the kernel gives out
    /// their numbers in ascending order only.
    pub fn timer_batches(&self) -> impl Iterator<Item = TimerBatch<'_>> {
        TimerBatch::all(&self.posix_timers)
    }

    /// What takes rights away or must come last, run by each thread, when all threads are there: limits, credentials,
    /// what is forbidden, then signals that wait. The first thread also sets the timers going and puts the last limit
    /// into force, so it should be the last to run this.
    pub fn apply_last(
        &self,
        state: &ThreadKernelState,
        thread: ThreadId,
        is_first: bool,
        calls: &mut dyn SystemCalls,
    ) -> Result<(), KernelStateApplyError> {
        let caller = &mut Caller {
            calls,
            thread: thread.get(),
        };
        if is_first {
            self.since_2.registrations.apply_futexes(caller)?;
            locked_memory::apply(self.since_2.future_locks, caller)?;
            switches::apply_limits(&self.limits, false, caller)?;
            switches::apply_write_exec(&self.switches, caller)?;
        }
        credentials::apply(&state.credentials, thread, caller)?;
        if state.no_new_privs {
            caller.prctl("ban on new rights", PR_SET_NO_NEW_PRIVS, [1, 0])?;
        }
        switches::apply_dumpable(&self.switches, caller)?;
        // A change of credentials clears it.
        let signal = u64::from(state.parent_death_signal.cast_unsigned());
        caller.prctl("parent death signal", PR_SET_PDEATHSIG, [signal, 0])?;
        signals::apply_pending(&state.pending_signals, For::Thread, caller)?;
        if !is_first {
            return Ok(());
        }
        signals::apply_pending(&self.pending_signals, For::Process, caller)?;
        timers::arm(&self.posix_timers, caller)?;
        for (which, timer) in (0..).zip(self.interval_timers) {
            timers::apply_interval(which, timer, caller)?;
        }
        switches::apply_limits(&self.limits, true, caller)
    }
}
