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
    /// more than fits. It can also be a request of this crate's own; a [`Decompressor`] answers both.
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

/// What a request to patch pages begins with; no zstd frame does.
const PATCHES: [u8; 8] = *b"\x89PTPATCH";
/// That, the length of a page, and the number of patches.
const PATCHES_HEAD_BYTES: usize = 16;

/// A request to make pages of others: the pages, one after another, and a zstd frame for each, made with reference to it.
pub(crate) struct Patched {
    page_bytes: usize,
    lengths: Vec<u8>,
    pages: Vec<u8>,
    packed: Vec<u8>,
}

impl Patched {
    pub fn new(page_bytes: usize) -> Self {
        Self {
            page_bytes,
            lengths: Vec::new(),
            pages: Vec::new(),
            packed: Vec::new(),
        }
    }

    pub fn push(&mut self, page: &[u8], packed: &[u8]) {
        self.lengths
            .extend_from_slice(&(packed.len() as u32).to_le_bytes());
        self.pages.extend_from_slice(page);
        self.packed.extend_from_slice(packed);
    }

    fn request(&self) -> Vec<u8> {
        let head = [self.page_bytes, self.lengths.len() / 4].map(|n| (n as u32).to_le_bytes());
        let parts = [
            &PATCHES[..],
            &head[0],
            &head[1],
            &self.lengths,
            &self.pages,
            &self.packed,
        ];
        parts.concat()
    }
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
    pub fn new() -> io::Result<Self> {
        let context = DCtx::try_create().ok_or(ErrorKind::OutOfMemory)?;
        Ok(Self { context })
    }

    /// As [`Decompress::decompress`], without fail. Allocates nothing, and makes no system call.
    pub fn decompress(&mut self, packed: &[u8], raw: &mut [u8]) -> Option<usize> {
        if packed.starts_with(&PATCHES) {
            self.patch(packed, raw)
        } else {
            self.context.decompress(raw, packed).ok()
        }
    }

    /// Answers a request to patch pages.
    fn patch(&mut self, request: &[u8], raw: &mut [u8]) -> Option<usize> {
        let number = |bytes: &[u8]| Some(u32::from_le_bytes(*bytes.first_chunk()?) as usize);
        let (head, rest) = request.split_at_checked(PATCHES_HEAD_BYTES)?;
        let (page_bytes, count) = (number(&head[8..])?, number(&head[12..])?);
        let (lengths, rest) = rest.split_at_checked(count.checked_mul(4)?)?;
        let length = count.checked_mul(page_bytes)?;
        let (pages, mut packed) = rest.split_at_checked(length)?;
        if page_bytes == 0 || raw.len() != length {
            return None;
        }
        let each = pages.chunks_exact(page_bytes).zip(lengths.chunks_exact(4));
        for ((page, length), raw) in each.zip(raw.chunks_exact_mut(page_bytes)) {
            let (one, others) = packed.split_at_checked(number(length)?)?;
            let made = self.context.decompress_using_dict(raw, one, page).ok()?;
            if made != page_bytes {
                return None;
            }
            packed = others;
        }
        Some(length)
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
        if packed.starts_with(&PATCHES) {
            Ok(None)
        } else {
            self.ask(packed, raw)
        }
    }

    /// Makes the pages of a request, in `raw`. False if they cannot be made.
    pub fn patch(&mut self, patched: &Patched, raw: &mut [u8]) -> io::Result<bool> {
        let made = self.ask(&patched.request(), raw)?;
        Ok(made == Some(raw.len()))
    }

    fn ask(&mut self, packed: &[u8], raw: &mut [u8]) -> io::Result<Option<usize>> {
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
