//! What a process does about signals, and which ones wait.

use crate::kernel_state::ask::{Answer, Question};
use crate::kernel_state::calls::{Caller, signed};
use crate::kernel_state::error::KernelStateApplyError;
use crate::proc_files::Status;
use bincode::{Decode, Encode};
use nix::libc;
use pagetide_kernel::ptrace::{SIGNAL_INFO_BYTES, SignalInfo};

const SIGKILL: i32 = 9;
const SIGCHLD: i32 = 17;
const SIGSTOP: i32 = 19;
const SIGNALS_MAX: i32 = 64;
/// The size the kernel wants to hear of a set of signals, in bytes.
const SET_BYTES: u64 = 8;
/// `struct sigaction` of the kernel: handler, flags, restorer, mask.
const ACTION_BYTES: usize = 32;
/// `si_code` of a signal by a timer.
const SI_TIMER: i32 = -2;

/// What happens when a signal comes: `rt_sigaction(2)`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SignalAction {
    /// The signal.
    pub signal: i32,
    /// Address of the handler; 0 the default action, 1 ignored.
    pub handler: u64,
    /// SA_... flags.
    pub flags: u64,
    /// Address of the code that returns from the handler.
    pub restorer: u64,
    /// Signals blocked while the handler runs, bit n-1 for signal n.
    pub mask: u64,
}

/// A signal that waits to be delivered.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PendingSignal {
    /// Its `siginfo_t`, as the kernel lays it out.
    pub info: [u8; SIGNAL_INFO_BYTES],
}

impl PendingSignal {
    /// The signal.
    pub fn signal(&self) -> i32 {
        self.number(0)
    }

    /// Where it comes from: `si_code` of `sigaction(2)`.
    pub(super) fn code(&self) -> i32 {
        self.number(8)
    }

    /// The number of 4 bytes at this offset.
    pub(super) fn number(&self, offset: usize) -> i32 {
        let bytes = self.info.get(offset..).and_then(<[u8]>::first_chunk);
        bytes.copied().map_or(0, i32::from_le_bytes)
    }

    fn from_queue(mut info: SignalInfo) -> Self {
        // Kernels before 6.13 let out by which count they know the signal of a timer again; it is not for others.
        let is_of_timer = info[8..12] == SI_TIMER.to_le_bytes();
        if is_of_timer {
            info[32..36].fill(0);
        }
        Self { info }
    }

    /// As the kernel tells of a signal that came without particulars.
    fn plain(signal: i32) -> Self {
        let mut info = [0; SIGNAL_INFO_BYTES];
        info[..4].copy_from_slice(&signal.to_le_bytes());
        Self { info }
    }
}

/// A queue together with what is pending outside of it. `set` is the line of `/proc/PID/status`.
pub(super) fn pending(queue: Vec<SignalInfo>, status: &Status, set: &str) -> Vec<PendingSignal> {
    let mut pending: Vec<_> = queue.into_iter().map(PendingSignal::from_queue).collect();
    for signal in signals_of(signal_set(status, set)) {
        if !pending.iter().any(|pending| pending.signal() == signal) {
            pending.push(PendingSignal::plain(signal));
        }
    }
    pending
}

/// The same some time later, while the process stood still: the queue as it is now, and what was pending outside of it.
pub(super) fn still_pending(queue: Vec<SignalInfo>, early: &[PendingSignal]) -> Vec<PendingSignal> {
    let mut pending: Vec<_> = queue.into_iter().map(PendingSignal::from_queue).collect();
    let plain = |one: &&PendingSignal| **one == PendingSignal::plain(one.signal());
    for outside in early.iter().filter(plain) {
        if !pending
            .iter()
            .any(|pending| pending.signal() == outside.signal())
        {
            pending.push(outside.clone());
        }
    }
    pending
}

fn signal_set(status: &Status, key: &str) -> u64 {
    status
        .value(key)
        .and_then(|text| u64::from_str_radix(text, 16).ok())
        .unwrap_or(0)
}

fn signals_of(set: u64) -> impl Iterator<Item = i32> {
    (1..=SIGNALS_MAX).filter(move |signal| set & (1 << (signal - 1)) != 0)
}

/// The signals whose action is not the default one; the others need not be asked. SIGCHLD always: its flags count even
/// then.
pub(super) fn signals_to_ask(status: &Status) -> Vec<i32> {
    let set = signal_set(status, "SigCgt") | signal_set(status, "SigIgn") | 1 << (SIGCHLD - 1);
    signals_of(set).collect()
}

pub(super) fn action_question(signal: i32) -> Question {
    let args = [signed(signal), 0, 0, SET_BYTES, 0, 0];
    Question::bytes(libc::SYS_rt_sigaction, args, 2, ACTION_BYTES)
}

pub(super) fn action_answered(signal: i32, answer: &Answer) -> SignalAction {
    SignalAction {
        signal,
        handler: answer.word(0),
        flags: answer.word(1),
        restorer: answer.word(2),
        mask: answer.word(3),
    }
}

/// Sets these actions, and the default one for all other signals.
pub(super) fn apply_actions(
    actions: &[SignalAction],
    caller: &mut Caller<'_>,
) -> Result<(), KernelStateApplyError> {
    let what = "signal actions";
    let status = Status::of_process(caller.thread).map_err(caller.refused(what))?;
    for signal in signals_to_ask(&status) {
        if !actions.iter().any(|action| action.signal == signal) {
            apply_action(&SignalAction::default_of(signal), caller)?;
        }
    }
    for action in actions {
        apply_action(action, caller)?;
    }
    Ok(())
}

impl SignalAction {
    fn default_of(signal: i32) -> Self {
        Self {
            signal,
            handler: 0,
            flags: 0,
            restorer: 0,
            mask: 0,
        }
    }
}

fn apply_action(
    action: &SignalAction,
    caller: &mut Caller<'_>,
) -> Result<(), KernelStateApplyError> {
    let mut bytes = Vec::with_capacity(ACTION_BYTES);
    for word in [action.handler, action.flags, action.restorer, action.mask] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    let signal = signed(action.signal);
    caller.call_with(
        "signal actions",
        libc::SYS_rt_sigaction,
        &mut bytes,
        &|address| [signal, address, 0, SET_BYTES, 0, 0],
    )?;
    Ok(())
}

/// Whose queue signals are put into.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    Thread,
    Process,
}

/// Queues signals again. The kernel lets a process say anything of a signal that it sends to itself: the thread must be
/// the receiver, or for the process its first one.
pub(super) fn apply_pending(
    signals: &[PendingSignal],
    whose: For,
    caller: &mut Caller<'_>,
) -> Result<(), KernelStateApplyError> {
    if signals.is_empty() {
        return Ok(());
    }
    let what = "pending signals";
    let pid = caller.call(what, libc::SYS_getpid, [0; 6])?;
    let tid = caller.call(what, libc::SYS_gettid, [0; 6])?;
    // A stop is last: it takes effect at the next chance. A process that was being killed is not killed again.
    let (stops, others): (Vec<_>, Vec<_>) = signals
        .iter()
        .filter(|pending| pending.signal() != SIGKILL)
        .partition(|pending| pending.signal() == SIGSTOP);
    for pending in others.into_iter().chain(stops) {
        let signal = signed(pending.signal());
        let mut info = pending.info;
        match whose {
            For::Thread => {
                caller.call_with(what, libc::SYS_rt_tgsigqueueinfo, &mut info, &|address| {
                    [pid, tid, signal, address, 0, 0]
                })?
            }
            For::Process => {
                caller.call_with(what, libc::SYS_rt_sigqueueinfo, &mut info, &|address| {
                    [pid, signal, address, 0, 0, 0]
                })?
            }
        };
    }
    Ok(())
}
