//! A pipe or FIFO as data.

use super::path::PathIdentity;
use bincode::{Decode, Encode};

/// A pipe or FIFO.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PipeState {
    /// Where the FIFO is; none for a pipe.
    pub at: Option<PathIdentity>,
    /// How much it may hold, in bytes.
    pub capacity_bytes: u32,
    /// What was written is read in the same pieces (O_DIRECT of pipe2(2)).
    pub packets: bool,
    /// What is in it: one piece, or one a packet.
    pub content: Vec<Vec<u8>>,
    /// Somebody has written to it, and nobody could any more: readers see the end.
    pub ended: bool,
}

/// To whom a pipe belongs: who may open it again by `/proc/PID/fd`. Of a FIFO its file tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct PipeOwner {
    /// User it belongs to.
    pub uid: u32,
    /// Group it belongs to.
    pub gid: u32,
    /// Permissions: the lower twelve bits of `st_mode`.
    pub mode: u32,
}

/// An end of a pipe or FIFO; which one the access mode says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct PipeEnd {
    /// Which one of [`super::OpenFiles::pipes`].
    pub pipe: u32,
}

impl PipeState {
    pub(crate) fn is_possible(&self) -> bool {
        let total: usize = self.content.iter().map(Vec::len).sum();
        let pieces = self.content.iter().all(|piece| !piece.is_empty());
        let packets = self
            .content
            .iter()
            .all(|piece| piece.len() <= PACKET_BYTES_MAX);
        let path = self.at.as_ref().is_none_or(|at| at.path.is_possible());
        let fits = total <= self.capacity_bytes as usize;
        path && pieces
            && fits
            && if self.packets {
                packets
            } else {
                self.content.len() <= 1
            }
    }
}

/// Most bytes of one packet.
pub(super) const PACKET_BYTES_MAX: usize = 4096;
