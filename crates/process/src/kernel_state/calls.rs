//! Calls by a thread of a process that is being built.

use crate::kernel_state::error::KernelStateApplyError;
use crate::remote_error::RemoteCallError;
use crate::system_calls::SystemCalls;
use nix::libc;
use std::io;

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
        self.call(what, libc::SYS_prctl, [request, args[0], args[1], 0, 0, 0])
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
