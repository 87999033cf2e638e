//! Addresses in its memory that a thread has told the kernel.

use crate::kernel_state::ask::{Answer, Question};
use crate::kernel_state::calls::Caller;
use crate::kernel_state::error::KernelStateApplyError;
use crate::remote_error::RemoteCallError;
use bincode::{Decode, Encode};
use nix::libc;
use pagetide_kernel::ptrace::RseqConfiguration;
use pagetide_kernel::robust_list::RobustList;
use rustix::io::Errno;

const PR_GET_TID_ADDRESS: u64 = 40;
/// `ss_flags` of a stack that is in use at the moment of the question. Not for the kernel to be told.
const SS_ONSTACK: u32 = 1;

/// `sigaltstack(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct AlternateStack {
    /// Its lowest address.
    pub address: u64,
    /// Its length, in bytes.
    pub size_bytes: u64,
    /// SS_DISABLE 2, SS_AUTODISARM 1 << 31.
    pub flags: u32,
}

/// `set_robust_list(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct RobustFutexes {
    /// Address of the head of the list; 0: none.
    pub head: u64,
    /// Length of the head, in bytes.
    pub length_bytes: u64,
}

/// `rseq(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct RseqRegistration {
    /// Address of the `struct rseq`.
    pub address: u64,
    /// Its length, in bytes.
    pub size_bytes: u32,
    /// What stands before every abort handler.
    pub signature: u32,
    /// Flags of the registration; 0 today.
    pub flags: u32,
}

impl From<RobustList> for RobustFutexes {
    fn from(list: RobustList) -> Self {
        Self {
            head: list.head,
            length_bytes: list.length_bytes,
        }
    }
}

impl From<RseqConfiguration> for RseqRegistration {
    fn from(configuration: RseqConfiguration) -> Self {
        Self {
            address: configuration.address,
            size_bytes: configuration.size_bytes,
            signature: configuration.signature,
            flags: configuration.flags,
        }
    }
}

pub(super) fn stack_question() -> Question {
    Question::bytes(libc::SYS_sigaltstack, [0; 6], 1, 24)
}

pub(super) fn stack_answered(answer: &Answer) -> AlternateStack {
    AlternateStack {
        address: answer.word(0),
        size_bytes: answer.word(2),
        flags: answer.half(2) & !SS_ONSTACK,
    }
}

/// Needs a kernel with CONFIG_CHECKPOINT_RESTORE; no answer else.
pub(super) fn tid_address_question() -> Question {
    Question::bytes(libc::SYS_prctl, [PR_GET_TID_ADDRESS, 0, 0, 0, 0, 0], 1, 8)
}

pub(super) fn apply_stack(
    stack: AlternateStack,
    caller: &mut Caller<'_>,
) -> Result<(), KernelStateApplyError> {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&stack.address.to_le_bytes());
    bytes[8..12].copy_from_slice(&stack.flags.to_le_bytes());
    bytes[16..].copy_from_slice(&stack.size_bytes.to_le_bytes());
    caller.call_with(
        "alternate signal stack",
        libc::SYS_sigaltstack,
        &mut bytes,
        &|address| [address, 0, 0, 0, 0, 0],
    )?;
    Ok(())
}

pub(super) fn apply_robust_list(
    list: RobustFutexes,
    caller: &mut Caller<'_>,
) -> Result<(), KernelStateApplyError> {
    let args = [list.head, list.length_bytes, 0, 0, 0, 0];
    caller.call("robust list", libc::SYS_set_robust_list, args)?;
    Ok(())
}

pub(super) fn apply_tid_address(
    address: u64,
    caller: &mut Caller<'_>,
) -> Result<(), KernelStateApplyError> {
    caller.call(
        "tid address",
        libc::SYS_set_tid_address,
        [address, 0, 0, 0, 0, 0],
    )?;
    Ok(())
}

/// Another registration that the thread may have must have been taken back before.
pub(super) fn apply_rseq(
    rseq: RseqRegistration,
    caller: &mut Caller<'_>,
) -> Result<(), KernelStateApplyError> {
    let what = "restartable sequences";
    let size = u64::from(rseq.size_bytes);
    let (flags, signature) = (u64::from(rseq.flags), u64::from(rseq.signature));
    let args = [rseq.address, size, flags, signature, 0, 0];
    match caller.calls.call(libc::SYS_rseq, args) {
        Ok(_) => Ok(()),
        // The very same is registered already.
        Err(RemoteCallError::Failed { errno, .. }) if errno == Errno::BUSY => Ok(()),
        Err(error) => Err(caller.failed(what)(error)),
    }
}
