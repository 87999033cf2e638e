//! A kernel state as bytes: magic `PTKS`, a version (u32 little-endian), then the fields in bincode's fixed-width
//! little-endian encoding. A reader takes the versions it knows and names others.

use crate::encoded::Encoding;
use crate::kernel_state::KernelState;
use crate::state::StateDecodeError;

/// Some ten thousand threads with a full queue of signals each, and no more.
const ENCODING: Encoding<{ 64 << 20 }> = Encoding::with_magic(*b"PTKS", 1);

impl KernelState {
    /// As bytes, for [`Self::from_bytes`].
    ///
    /// # Panics
    /// Never: nothing in it fails to encode into memory.
    pub fn to_bytes(&self) -> Vec<u8> {
        let bytes = ENCODING.encode(self);
        bytes.expect("a vector takes all bytes, and no field can fail to encode")
    }

    /// From bytes that [`Self::to_bytes`] of this or an earlier version made.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateDecodeError> {
        let state: Self = ENCODING.decode(bytes)?;
        match state.impossible() {
            Some(what) => Err(StateDecodeError::Impossible { what }),
            None => Ok(state),
        }
    }

    /// What no process can have.
    fn impossible(&self) -> Option<&'static str> {
        let actions = self.signal_actions.iter().map(|action| action.signal);
        let mut pending = self
            .pending_signals
            .iter()
            .chain(
                self.threads
                    .iter()
                    .flat_map(|thread| &thread.pending_signals),
            )
            .map(|pending| pending.signal());
        let is_signal = |signal: i32| (1..=64).contains(&signal);
        if self.pid <= 0 {
            Some("pid")
        } else if self.threads.is_empty() || self.threads.iter().any(|thread| thread.thread <= 0) {
            Some("thread id")
        } else if !actions.clone().all(is_signal) || !pending.all(is_signal) {
            Some("signal")
        } else if self.posix_timers.iter().any(|timer| timer.id < 0) {
            Some("timer")
        } else {
            None
        }
    }
}
