//! A range of the calling process's own memory, named by whoever answers for it. Naming is the one unsafe step
//! of checkpointing own memory: what is named can be overwritten when it is put back to an earlier state, behind
//! every reference that the compiler believes to be the only way there.

#![allow(unsafe_code)]

/// Own memory that may be read at any time, and overwritten when it is asked to be put back.
///
/// It is a name and no guard: it keeps nothing mapped, and copying it costs nothing. Since the promises of
/// [`OwnRegion::new`] were made for it, all that takes one is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnRegion {
    address: u64,
    length_bytes: u64,
}

impl OwnRegion {
    /// Names `length_bytes` bytes from `address` on. Whole pages of 4096 bytes are needed to track it; that, and
    /// whether it is mapped, is looked at when it is used, and is an error then.
    ///
    /// # Safety
    ///
    /// Whoever names it promises, for as long as the name or a copy of it is used:
    ///
    /// - *It is the caller's.* The range is memory that the caller has mapped or was given for itself, such as a
    ///   guest's memory or an arena, and nothing that an allocator, the runtime or another library keeps its own
    ///   data in. It is unmapped, moved or given to others only after the last use. (A use that finds nothing
    ///   mapped is an error; one that finds somebody else's memory there cannot know.)
    /// - *Nothing in it is borrowed while it is put back.* While memory is put back to an earlier state, no
    ///   reference (`&T`, `&mut T`, a slice) to anything in the range exists that is used afterwards, in any
    ///   thread.
    /// - *Any earlier content will do.* What the program reads there afterwards by its own types is valid with
    ///   whatever bytes the range held at the time of the snapshot.
    ///
    /// Taking snapshots needs none of this but the first: memory is only read then, by the kernel.
    pub unsafe fn new(address: *mut u8, length_bytes: usize) -> Self {
        Self {
            address: address as u64,
            length_bytes: length_bytes as u64,
        }
    }

    /// Address of the first byte.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Length in bytes.
    pub const fn length_bytes(&self) -> u64 {
        self.length_bytes
    }
}
