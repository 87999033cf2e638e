//! Calls by a thread of a process that is being built, and numbers of system calls and requests.

use std::io;

use crate::kernel_state::error::KernelStateApplyError;
use crate::remote_error::RemoteCallError;
use crate::system_calls::SystemCalls;

pub(super) const RT_SIGACTION: i64 = 13;
pub(super) const GETITIMER: i64 = 36;
pub(super) const SETITIMER: i64 = 38;
pub(super) const GETPID: i64 = 39;
pub(super) const UMASK: i64 = 95;
pub(super) const SETGROUPS: i64 = 116;
pub(super) const SETRESUID: i64 = 117;
pub(super) const SETRESGID: i64 = 119;
pub(super) const SETFSUID: i64 = 122;
pub(super) const SETFSGID: i64 = 123;
pub(super) const CAPSET: i64 = 126;
pub(super) const RT_SIGQUEUEINFO: i64 = 129;
pub(super) const SIGALTSTACK: i64 = 131;
pub(super) const PERSONALITY: i64 = 135;
pub(super) const MODIFY_LDT: i64 = 154;
pub(super) const PRCTL: i64 = 157;
pub(super) const ARCH_PRCTL: i64 = 158;
pub(super) const GETTID: i64 = 186;
pub(super) const SET_TID_ADDRESS: i64 = 218;
pub(super) const TIMER_CREATE: i64 = 222;
pub(super) const TIMER_SETTIME: i64 = 223;
pub(super) const TIMER_GETTIME: i64 = 224;
pub(super) const TIMER_GETOVERRUN: i64 = 225;
pub(super) const TIMER_DELETE: i64 = 226;
pub(super) const SET_MEMPOLICY: i64 = 238;
pub(super) const GET_MEMPOLICY: i64 = 239;
pub(super) const SET_ROBUST_LIST: i64 = 273;
pub(super) const KEYCTL: i64 = 250;
pub(super) const RT_TGSIGQUEUEINFO: i64 = 297;
pub(super) const PRLIMIT: i64 = 302;
pub(super) const RSEQ: i64 = 334;

/// A thread that is told what to call.
pub(super) struct Caller<'a> {
    pub(super) calls: &'a mut dyn SystemCalls,
    /// Its number, for messages.
    pub(super) thread: i32,
}

impl Caller<'_> {
    /// A call that must succeed.
    pub(super) fn call(
        &mut self,
        what: &'static str,
        number: i64,
        args: [u64; 6],
    ) -> Result<u64, KernelStateApplyError> {
        self.calls.call(number, args).map_err(self.failed(what))
    }

    /// A call with bytes, that must succeed.
    pub(super) fn call_with(
        &mut self,
        what: &'static str,
        number: i64,
        bytes: &mut [u8],
        args: &dyn Fn(u64) -> [u64; 6],
    ) -> Result<u64, KernelStateApplyError> {
        self.calls
            .call_with(number, bytes, args)
            .map_err(self.failed(what))
    }

    /// A call that may be refused or unknown: `None` then.
    pub(super) fn try_call(
        &mut self,
        what: &'static str,
        number: i64,
        args: [u64; 6],
    ) -> Result<Option<u64>, KernelStateApplyError> {
        match self.calls.call(number, args) {
            Ok(result) => Ok(Some(result)),
            Err(RemoteCallError::Failed { .. }) => Ok(None),
            Err(error) => Err(self.failed(what)(error)),
        }
    }

    /// `prctl(2)`.
    pub(super) fn prctl(
        &mut self,
        what: &'static str,
        request: u64,
        args: [u64; 2],
    ) -> Result<u64, KernelStateApplyError> {
        self.call(what, PRCTL, [request, args[0], args[1], 0, 0, 0])
    }

    pub(super) fn failed(
        &self,
        what: &'static str,
    ) -> impl FnOnce(RemoteCallError) -> KernelStateApplyError + use<> {
        let thread = self.thread;
        move |source| KernelStateApplyError::Call {
            what,
            thread,
            source,
        }
    }

    pub(super) fn refused(
        &self,
        what: &'static str,
    ) -> impl FnOnce(io::Error) -> KernelStateApplyError + use<> {
        let thread = self.thread;
        move |source| KernelStateApplyError::Kernel {
            what,
            thread,
            source,
        }
    }
}

/// A number that is smaller than 0 as the kernel wants it in a register.
pub(super) fn signed(number: i32) -> u64 {
    i64::from(number).cast_unsigned()
}
