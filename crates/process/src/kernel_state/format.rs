//! A kernel state as bytes: magic `PTKS`, a version (u32 little-endian), then the fields in bincode's fixed-width
//! little-endian encoding. A reader takes the versions it knows and names others. Version 1 ended before what version 2 has at its
//! end, which then is as if nothing were known of it.

use crate::encoded::Encoding;
use crate::kernel_state::KernelState;
use crate::state::StateDecodeError;

/// Some ten thousand threads with a full queue of signals each, and no more.
const LIMIT_BYTES: usize = 64 << 20;
const ENCODING: Encoding<LIMIT_BYTES> = Encoding::with_magic(*b"PTKS", 2);
/// What version 1 did not have, as version 2 says that nothing is known of it.
const NOTHING_SINCE_2: [u8; 8] = [0; 8];

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
        let state: Self = match ENCODING.split(bytes)? {
            (1, body) => Encoding::<LIMIT_BYTES>::decode_body(&[body, &NOTHING_SINCE_2].concat())?,
            _ => ENCODING.decode(bytes)?,
        };
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
#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel_state::{GroupStop, Registrations, StateSince2, ThreadKernelState};

    #[test]
    fn a_state_of_the_first_version_is_read_as_one_of_which_nothing_more_is_known() {
        let thread = ThreadKernelState {
            thread: 7,
            ..ThreadKernelState::default()
        };
        let state = KernelState {
            pid: 7,
            threads: vec![thread],
            since_2: StateSince2 {
                group_stop: Some(GroupStop {
                    signal: 19,
                    is_told: true,
                }),
                registrations: Registrations {
                    barriers: Some(4),
                    futex_slots: None,
                },
                future_locks: 2,
                clocks: None,
            },
            ..KernelState::default()
        };
        let bytes = state.to_bytes();
        assert_eq!(KernelState::from_bytes(&bytes).expect("as it is"), state);
        let nothing = KernelState {
            since_2: StateSince2::default(),
            ..state.clone()
        };
        let mut first = nothing.to_bytes();
        assert!(first.ends_with(&NOTHING_SINCE_2));
        first.truncate(first.len() - NOTHING_SINCE_2.len());
        first[4] = 1;
        let read = KernelState::from_bytes(&first).expect("the first version");
        assert_eq!(read.since_2, StateSince2::default());
        assert_eq!((read.pid, read.threads), (7, state.threads));
        // A later version that ends too early is not one of them.
        first[4] = 2;
        assert!(KernelState::from_bytes(&first).is_err());
    }
}
