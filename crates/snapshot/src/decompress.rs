//! Decompression: the one thing about a store that is not done by Rust code. Where it is done the program says: here, or
//! where a mistake in it can do no harm.

use std::io::{self, ErrorKind};
use std::sync::OnceLock;
use std::sync::atomic::AtomicU8;
use zstd::zstd_safe::DCtx;

/// The longest input and output that a decompressor is asked for: metadata of a snapshot.
pub const DECOMPRESS_BYTES_MAX: usize = 65 << 20;

/// Decompresses somewhere else than in the calling thread, for many threads at once.
pub trait Decompress: Send + Sync {
    /// Puts what `packed`, one zstd frame, holds into `raw`: how many bytes these are. `None` if it is no such frame, or holds
    /// more than fits.
    ///
    /// # Errors
    ///
    /// It cannot be found out: what decompresses cannot be had, or has ended.
    fn decompress(&self, packed: &[u8], raw: &mut [u8]) -> io::Result<Option<usize>>;

    /// The same without copies. `put` puts zstd frames, `packed_bytes` in all, where they are read, and what they hold one after
    /// another, `raw_bytes` at most, is only shown to `see` where it was decompressed. Whoever did that may still change it
    /// meanwhile, so it is for those who conclude nothing from it.
    ///
    /// # Errors
    ///
    /// As above, or that of `put`; then `see` was not called.
    fn decompress_there(
        &self,
        packed_bytes: usize,
        put: &mut dyn FnMut(&mut [u8]) -> io::Result<()>,
        raw_bytes: usize,
        see: &mut dyn FnMut(&[AtomicU8]),
    ) -> io::Result<Option<usize>>;
}

static ELSEWHERE: OnceLock<Box<dyn Decompress>> = OnceLock::new();

/// From now on `other` decompresses whatever this program reads of stores. False if another was set before, which stays.
pub fn decompress_elsewhere(other: Box<dyn Decompress>) -> bool {
    ELSEWHERE.set(other).is_ok()
}

/// Decompresses in the calling thread: the work that [`Decompress`] may have done elsewhere.
pub struct Decompressor {
    context: DCtx<'static>,
}

impl Decompressor {
    /// A new one.
    ///
    /// # Errors
    ///
    /// There is no memory for it.
    pub fn new() -> io::Result<Decompressor> {
        let context = DCtx::try_create().ok_or(ErrorKind::OutOfMemory)?;
        Ok(Decompressor { context })
    }

    /// As [`Decompress::decompress`], without fail. Allocates nothing, and makes no system call.
    pub fn decompress(&mut self, packed: &[u8], raw: &mut [u8]) -> Option<usize> {
        self.context.decompress(raw, packed).ok()
    }
}

/// Decompresses where the program says, and holds what is needed for that.
#[derive(Default)]
pub(crate) struct Wherever {
    here: Option<Decompressor>,
}

impl Wherever {
    /// What decompresses elsewhere, if the program has said so.
    pub fn elsewhere() -> Option<&'static dyn Decompress> {
        ELSEWHERE.get().map(|other| &**other)
    }

    /// As [`Decompress::decompress`].
    pub fn decompress(&mut self, packed: &[u8], raw: &mut [u8]) -> io::Result<Option<usize>> {
        if let Some(other) = ELSEWHERE.get() {
            return other.decompress(packed, raw);
        }
        let here = match &mut self.here {
            Some(here) => here,
            none => none.insert(Decompressor::new()?),
        };
        Ok(here.decompress(packed, raw))
    }
}
