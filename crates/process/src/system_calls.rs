//! System calls made by another process, whoever leads it through them: a program that lives and must notice
//! nothing ([`crate::RemoteCalls`]), or one that is being built and has nothing to lose.

use crate::remote_error::RemoteCallError;
use rustix::io::Errno;

/// Calls to be made one after the other, of each of which it is known beforehand what it is told, and of whose results only whether
/// they are errors matters. To hand over many at once saves going back and forth between our own threads for each.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub(crate) bytes: Vec<u8>,
    pub(crate) calls: Vec<Planned>,
}

/// A call of a [`Batch`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planned {
    number: i64,
    args: [u64; 6],
    /// Which argument is the address of bytes, and where among those of the batch these are.
    place: Option<(usize, u64)>,
}

impl Planned {
    /// Number and arguments if the bytes of the batch lie at `address`.
    pub(crate) fn at(&self, address: u64) -> (i64, [u64; 6]) {
        let mut args = self.args;
        if let Some((which, offset)) = self.place {
            args[which] = address + offset;
        }
        (self.number, args)
    }
}

impl Batch {
    /// Adds a call.
    pub fn push(&mut self, number: i64, args: [u64; 6]) {
        self.calls.push(Planned {
            number,
            args,
            place: None,
        });
    }

    /// Adds a call whose argument number `which` is to be the address of `bytes` in the process, a multiple of 16.
    ///
    /// # Panics
    /// If there are more than six arguments before it.
    pub fn push_with(&mut self, number: i64, args: [u64; 6], which: usize, bytes: &[u8]) {
        assert!(which < args.len(), "a call has six arguments");
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let offset = self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        self.calls.push(Planned {
            number,
            args,
            place: Some((which, offset)),
        });
    }

    /// How many calls there are.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// True if there is no call.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// How many bytes the calls are told the addresses of. There must not be more than 64 KiB.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

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

    /// Runs the calls of a batch, up to the first that the kernel refuses or that fails otherwise: its place in the batch and why.
    fn call_all(&mut self, batch: Batch) -> Result<(), (usize, RemoteCallError)>;
}

/// What the kernel returned, as a result.
pub(crate) fn checked(result: u64) -> Result<u64, Errno> {
    match result.cast_signed() {
        // In range by the pattern.
        error @ -4095..0 => Err(Errno::from_raw_os_error(i32::try_from(-error).unwrap_or(0))),
        _ => Ok(result),
    }
}
