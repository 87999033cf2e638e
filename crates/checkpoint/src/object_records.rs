//! What a snapshot knows of shared objects besides their pages: the attachment `objects`. It is what is needed to make
//! them again.

use pagetide_process::Encoding;
use pagetide_snapshot::View;

/// The name of the attachment.
pub(crate) const ATTACHMENT: &str = "objects";

/// Nothing longer was ever written by us.
const ENCODING: Encoding<{ 64 << 20 }> = Encoding::new(1);

/// One object, when it was captured.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(crate) struct ObjectRecord {
    /// The space that holds its pages.
    pub space: String,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// Type and permissions, as stat(2) gives them; of a System V segment, its `shm_perm.mode`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// How many names it has: 0 for memory that has none, or none any more.
    pub links: u64,
    /// True if it is memory, and not a file on a disk.
    pub in_memory: bool,
    /// The key of a System V segment.
    pub segment_key: Option<i32>,
}

/// The bytes of the attachment; `None` if there is nothing to tell, or more than the limit.
pub(crate) fn to_bytes(records: &[ObjectRecord]) -> Option<Vec<u8>> {
    match records {
        [] => None,
        records => ENCODING.encode(&records),
    }
}

fn from_bytes(bytes: &[u8]) -> Option<Vec<ObjectRecord>> {
    ENCODING.decode(bytes).ok()
}

/// What a snapshot says; nothing if it was taken before there was this attachment.
pub(crate) fn records_of(view: &View) -> Vec<ObjectRecord> {
    let bytes = view.attachment(ATTACHMENT);
    bytes.and_then(from_bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_were_written_and_refused_when_cut() {
        let record = ObjectRecord {
            space: "shm:1:2".to_owned(),
            size_bytes: 56,
            mode: 0o600,
            uid: 5,
            gid: 6,
            links: 0,
            in_memory: true,
            segment_key: Some(0x52e2_c1f3),
        };
        let bytes = to_bytes(std::slice::from_ref(&record)).expect("there is something to tell");
        assert_eq!(from_bytes(&bytes), Some(vec![record]));
        for length in 0..bytes.len() {
            assert_eq!(from_bytes(&bytes[..length]), None);
        }
        assert_eq!(to_bytes(&[]), None);
    }
}
