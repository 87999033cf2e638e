//! Poisoned pages: memory that failed, or was declared so (MADV_HWPOISON, UFFDIO_POISON). Whoever touches one gets a
//! SIGBUS, and nobody can read it. A snapshot says which pages are so, in the attachment `poisoned`, and a restore makes
//! them so again.
//!
//! A page that cannot be read is poisoned if memory is there to be read: it is private memory, or lies within its file. Guards
//! are known by the page tables.

use crate::capture::SIZE;
use pagetide_kernel::userfaultfd::missing::kernel_can_poison;
use pagetide_pages::PageSet;
use pagetide_process::{Blocker, BlockerKind, Encoding};
use pagetide_snapshot::{Backing, Region, Sharing, View};

/// The name of the attachment.
pub(crate) const ATTACHMENT: &str = "poisoned";

/// The kind of the blocker that names pages which cannot be made so again.
pub(crate) const KIND: &str = "poisoned";

/// Nothing longer was ever written by us.
const ENCODING: Encoding<{ 64 << 20 }> = Encoding::new(1);

/// Poisoned memory of one process.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
#[non_exhaustive]
pub struct Poisoned {
    /// The process, by the pid that it had.
    pub pid: i32,
    /// First address.
    pub start: u64,
    /// Address past the last byte.
    pub end: u64,
}

/// The bytes of the attachment; `None` if there is nothing to tell.
pub(crate) fn to_bytes(poisoned: &[Poisoned]) -> Option<Vec<u8>> {
    match poisoned {
        [] => None,
        poisoned => ENCODING.encode(&poisoned),
    }
}

fn from_bytes(bytes: &[u8]) -> Option<Vec<Poisoned>> {
    ENCODING.decode(bytes).ok()
}

/// The poisoned memory of all processes of a snapshot, by ascending address.
pub fn poisoned_of(view: &View) -> Vec<Poisoned> {
    let bytes = view.attachment(ATTACHMENT);
    bytes.and_then(from_bytes).unwrap_or_default()
}

/// The pages among these that are of process `pid`.
pub(crate) fn pages_of(poisoned: &[Poisoned], pid: i32) -> PageSet {
    let own = poisoned.iter().filter(|one| one.pid == pid);
    own.map(|one| SIZE.covering(one.start, one.end)).collect()
}

/// True if pages of this region can be poisoned again: the kernel does so for private memory and for what is shared and memory.
pub(crate) fn can_be_again(region: &Region) -> bool {
    let is_huge = region.advice.iter().any(|advice| advice == "hugetlb");
    let is_memory = match region.backing {
        Backing::Anonymous => true,
        Backing::SharedMemory { .. } => region.sharing == Sharing::Shared,
        Backing::File { .. } | Backing::Kernel => false,
    };
    is_memory && !is_huge
}

/// Names poisoned memory that cannot be made so again.
pub(crate) fn blockers(poisoned: &[Poisoned], regions: &[Region]) -> Vec<Blocker> {
    if poisoned.is_empty() {
        return Vec::new();
    }
    let is_possible = kernel_can_poison();
    let stays = |one: &&Poisoned| {
        let first = SIZE.covering(one.start, one.end).start();
        let region = regions.iter().find(|region| region.pages.contains(first));
        is_possible && region.is_some_and(can_be_again)
    };
    let lost = poisoned.iter().filter(|one| !stays(one));
    lost.map(|one| Blocker {
        pid: one.pid,
        kind: BlockerKind::Poisoned,
        place: format!("mapping:{:x}", one.start),
        what: format!(
            "{:#x}-{:#x} is poisoned (reading it is a SIGBUS) and cannot be made so again",
            one.start, one.end
        ),
        advice: "let the program unmap it before the checkpoint".to_owned(),
        instead: Some("it reads as its file, or as zeros".to_owned()),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagetide_pages::{PageIndex, PageRange};

    #[test]
    fn a_record_is_read_as_it_was_written_and_refused_when_cut() {
        let one = |pid, start| Poisoned {
            pid,
            start,
            end: start + 0x2000,
        };
        let all = [one(5, 0x1000), one(5, 0x9000), one(6, 0x4000)];
        let bytes = to_bytes(&all).expect("there is something to tell");
        assert_eq!(from_bytes(&bytes).as_deref(), Some(&all[..]));
        for length in 0..bytes.len() {
            assert_eq!(from_bytes(&bytes[..length]), None);
        }
        assert_eq!(to_bytes(&[]), None);
        let pages = pages_of(&all, 5);
        assert_eq!(pages.count().0, 4);
        assert!(pages.contains(PageIndex(2)) && !pages.contains(PageIndex(4)));
    }

    #[test]
    fn what_cannot_be_poisoned_again_is_named() {
        let region = |backing| {
            let mut region = Region::anonymous(PageRange::new(PageIndex(1), PageIndex(3)));
            region.backing = backing;
            region
        };
        let poisoned = [Poisoned {
            pid: 7,
            start: 0x1000,
            end: 0x2000,
        }];
        let of_file = region(Backing::File {
            path: b"/x".to_vec(),
            offset_bytes: 0,
            device: 1,
            inode: 1,
            size_bytes: 8192,
            modified_ns: 0,
            build_id: Vec::new(),
        });
        let found = blockers(&poisoned, &[of_file]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name(), "poisoned:mapping:1000");
        let of_memory = blockers(&poisoned, &[region(Backing::Anonymous)]);
        assert_eq!(of_memory.is_empty(), kernel_can_poison());
        assert!(blockers(&[], &[]).is_empty());
    }
}
