//! System calls made by another process, whoever leads it through them: a program that lives and must notice
//! nothing ([`crate::RemoteCalls`]), or one that is being built and has nothing to lose.

use crate::remote_error::RemoteCallError;

/// See the head of this file.
pub trait SystemCalls {
    /// Runs one system call and returns its result; an error number of the kernel is
    /// [`RemoteCallError::Failed`].
    fn call(&mut self, number: i64, args: [u64; 6]) -> Result<u64, RemoteCallError>;

    /// Runs one system call that reads or writes memory: `bytes` are put into the process for its time, `args` is
    /// told their address there (a multiple of 16), and afterwards `bytes` are what the process has there. At most
    /// 64 KiB. If the call fails, `bytes` are as they were.
    fn call_with(
        &mut self,
        number: i64,
        bytes: &mut [u8],
        args: &dyn Fn(u64) -> [u64; 6],
    ) -> Result<u64, RemoteCallError>;
}
