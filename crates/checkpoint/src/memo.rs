//! What one snapshot must remember for the next delta of the same process, beyond the kernel's bits.
//! It travels with the snapshot as the attachment `tracking`.

use crate::files::Stamps;
use pagetide_pages::{PageIndex, PageRange, PageSet};
use pagetide_process::Encoding;
use std::collections::HashMap;

/// The name of the attachment.
pub(crate) const ATTACHMENT: &str = "tracking";

/// Nothing longer was ever written by us.
const ENCODING: Encoding<{ 256 << 20 }> = Encoding::new(1);

/// See the head of this file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memo {
    /// Pages of private file mappings of which the process has its own copy. If such a copy is dropped
    /// the page shows the file again, and the kernel does not report that as a write.
    pub private_copies: PageSet,
    /// The files that were settled.
    pub settled: Vec<Stamps>,
    /// Registered I/O buffers: the kernel may write to them without a trace.
    pub buffers: PageSet,
    /// Pages harvested for this snapshot in a process that does asynchronous I/O: a read that was under
    /// way may still land in them.
    pub in_flight: PageSet,
    /// There was a ring somewhere in the process's own memory: the next snapshot compares everything.
    pub unlisted_ring: bool,
}

/// By process.
pub(crate) type Memos = HashMap<i32, Memo>;

#[derive(bincode::Encode, bincode::Decode)]
struct OnDisk {
    private_copies: Vec<(u64, u64)>,
    settled: Vec<Stamps>,
    buffers: Vec<(u64, u64)>,
    in_flight: Vec<(u64, u64)>,
    unlisted_ring: bool,
}

fn pairs(set: &PageSet) -> Vec<(u64, u64)> {
    let pair = |range: &PageRange| (range.start().0, range.end().0);
    set.ranges().iter().map(pair).collect()
}

fn set(pairs: Vec<(u64, u64)>) -> PageSet {
    let range = |(start, end)| PageRange::new(PageIndex(start), PageIndex(end));
    pairs.into_iter().map(range).collect()
}

impl Memo {
    /// The bytes of the attachment; `None` if there is more to remember than the limit, in which case
    /// the next snapshot remembers nothing and is full.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        let on_disk = OnDisk {
            private_copies: pairs(&self.private_copies),
            settled: self.settled.clone(),
            buffers: pairs(&self.buffers),
            in_flight: pairs(&self.in_flight),
            unlisted_ring: self.unlisted_ring,
        };
        ENCODING.encode(&on_disk)
    }

    /// `None` if the bytes are not a memo of a version known here: nothing may be relied on then.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let on_disk: OnDisk = ENCODING.decode(bytes).ok()?;
        Some(Self {
            private_copies: set(on_disk.private_copies),
            settled: on_disk.settled,
            buffers: set(on_disk.buffers),
            in_flight: set(on_disk.in_flight),
            unlisted_ring: on_disk.unlisted_ring,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memo_is_read_as_it_was_written_and_refused_when_cut() {
        let range = |a, b| PageRange::new(PageIndex(a), PageIndex(b));
        let memo = Memo {
            private_copies: [range(1, 3), range(9, 10)].into_iter().collect(),
            settled: Vec::new(),
            buffers: PageSet::from(range(77, 99)),
            in_flight: PageSet::from(range(5, 6)),
            unlisted_ring: true,
        };
        let bytes = memo.to_bytes().expect("a small memo fits");
        assert_eq!(Memo::from_bytes(&bytes), Some(memo));
        for length in 0..bytes.len() {
            assert_eq!(Memo::from_bytes(&bytes[..length]), None);
        }
    }
}
