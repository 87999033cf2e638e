//! A kernel state as bytes: magic `PTKS`, a version (u32 little-endian), then the fields in bincode's fixed-width
//! little-endian encoding. A reader takes the versions it knows and names others.

use crate::kernel_state::KernelState;
use crate::state::StateDecodeError;

const MAGIC: [u8; 4] = *b"PTKS";
const VERSION: u32 = 1;
/// Most bytes a state may decode to: some ten thousand threads with a full queue of signals each.
const DECODE_LIMIT_BYTES: usize = 64 << 20;

impl KernelState {
    /// As bytes, for [`Self::from_bytes`].
    ///
    /// # Panics
    /// Never: nothing in it fails to encode into memory.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let body = bincode::encode_to_vec(self, configuration())
            .expect("a vector takes all bytes, and no field can fail to encode");
        bytes.extend_from_slice(&body);
        bytes
    }

    /// From bytes that [`Self::to_bytes`] of this or an earlier version made.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateDecodeError> {
        let (magic, rest) = bytes
            .split_first_chunk::<4>()
            .ok_or(StateDecodeError::NotAState)?;
        let (version, body) = rest
            .split_first_chunk::<4>()
            .ok_or(StateDecodeError::NotAState)?;
        match u32::from_le_bytes(*version) {
            _ if *magic != MAGIC => Err(StateDecodeError::NotAState),
            0 => Err(StateDecodeError::NotAState),
            VERSION => decode(body),
            found => Err(StateDecodeError::NewerVersion {
                found,
                known: VERSION,
            }),
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
            Some("thread number")
        } else if !actions.clone().all(is_signal) || !pending.all(is_signal) {
            Some("signal")
        } else if self.posix_timers.iter().any(|timer| timer.id < 0) {
            Some("timer")
        } else {
            None
        }
    }
}

fn configuration() -> impl bincode::config::Config {
    bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding()
        .with_limit::<DECODE_LIMIT_BYTES>()
}

fn decode(body: &[u8]) -> Result<KernelState, StateDecodeError> {
    let (state, length): (KernelState, usize) =
        bincode::decode_from_slice(body, configuration()).map_err(StateDecodeError::Damaged)?;
    if length != body.len() {
        return Err(StateDecodeError::TrailingBytes {
            count: body.len() - length,
        });
    }
    match state.impossible() {
        Some(what) => Err(StateDecodeError::Impossible { what }),
        None => Ok(state),
    }
}
