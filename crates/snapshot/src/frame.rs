//! One frame: some pages to stored bytes and back. Not which pages they are, nor where they lie.

use crate::decompress::{Decompress, Wherever};
use crate::differences::{DifferenceBatch, Differences};
use crate::format::index::Frame;
use crate::format::{ENCODING_LZ4, ENCODING_RAW, ENCODING_ZSTD, FormatError, damaged};
use crate::options::Compression;
use crate::patches::Patcher;
use std::borrow::Cow;
use std::io;
use std::sync::atomic::AtomicU8;
use zstd::bulk::Compressor;

/// Stored bytes with what the frame table says about them.
pub struct EncodedFrame<'a> {
    pub bytes: Cow<'a, [u8]>,
    pub encoding: u16,
    pub checksum: [u8; 32],
}

impl<'a> EncodedFrame<'a> {
    fn new(bytes: Cow<'a, [u8]>, encoding: u16) -> Self {
        EncodedFrame {
            checksum: *blake3::hash(&bytes).as_bytes(),
            bytes,
            encoding,
        }
    }
}

/// Makes frames; holds what compression can use again.
pub struct FrameEncoder {
    compression: Compression,
    /// Of zstd.
    compressor: Compressor<'static>,
    level: i32,
    /// Made when it is needed.
    patcher: Option<Patcher>,
}

impl FrameEncoder {
    pub fn new(compression: Compression) -> io::Result<Self> {
        // Differences are packed by zstd in any case.
        let level = match compression {
            Compression::Zstd(level) => level,
            Compression::None | Compression::Lz4 => 1,
        };
        let compressor = Compressor::new(level)?;
        Ok(Self {
            compression,
            compressor,
            level,
            patcher: None,
        })
    }

    /// What makes `page` of `parent`, with reference to it. `None` if that is not worth it.
    pub fn patch(&mut self, parent: &[u8], page: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let patcher = match &mut self.patcher {
            Some(patcher) => patcher,
            none => none.insert(Patcher::new(self.level)?),
        };
        Ok(patcher.between(parent, page))
    }

    /// The frame for the pages `raw`. What does not get smaller is stored as it is.
    pub fn encode<'a>(&mut self, raw: Cow<'a, [u8]>) -> io::Result<EncodedFrame<'a>> {
        // A frame must save more than a 64th to be worth the time to read it back.
        let worth = raw.len() - raw.len() / 64;
        let compressed = match self.compression {
            Compression::None => None,
            Compression::Lz4 => Some((lz4_flex::block::compress(&raw), ENCODING_LZ4)),
            Compression::Zstd(_) => Some((self.compressor.compress(&raw)?, ENCODING_ZSTD)),
        };
        let (bytes, encoding) = match compressed {
            Some((bytes, encoding)) if bytes.len() < worth => (Cow::Owned(bytes), encoding),
            _ => (raw, ENCODING_RAW),
        };
        Ok(EncodedFrame::new(bytes, encoding))
    }

    /// The frame for differences.
    pub fn encode_differences(
        &mut self,
        gathered: &DifferenceBatch,
    ) -> io::Result<EncodedFrame<'static>> {
        let (stored, encoding) = gathered.encode(|columns| self.compressor.compress(columns))?;
        Ok(EncodedFrame::new(Cow::Owned(stored), encoding))
    }
}

/// Reads frames; holds what decompression can use again.
#[derive(Default)]
pub struct FrameDecoder {
    decompressor: Wherever,
}

impl FrameDecoder {
    /// The pages of a frame, in `raw`, which has their length.
    pub fn decode(
        &mut self,
        stored: &[u8],
        encoding: u16,
        checksum: &[u8; 32],
        raw: &mut [u8],
    ) -> Result<(), FormatError> {
        check(stored, checksum)?;
        match encoding {
            ENCODING_RAW if stored.len() == raw.len() => {
                raw.copy_from_slice(stored);
                Ok(())
            }
            ENCODING_ZSTD => match self.decompressor.decompress(stored, raw) {
                Ok(length) => check_length(length, raw.len()),
                Err(error) => Err(FormatError::Unknown(error)),
            },
            ENCODING_LZ4 => {
                let found = lz4_flex::block::decompress_into(stored, raw);
                check_length(found.ok(), raw.len())
            }
            _ => damaged("a frame has the wrong length"),
        }
    }
}

impl FrameDecoder {
    /// What a frame of differences has of `pages`: so many of so many bytes each.
    pub fn differences(
        &mut self,
        stored: &[u8],
        checksum: &[u8; 32],
        encoding: u16,
        pages: (usize, usize),
    ) -> Result<Differences, FormatError> {
        check(stored, checksum)?;
        Differences::decode(stored, encoding, pages, &mut self.decompressor)
    }

    /// Makes pages of those of the parent, as [`Differences::apply`].
    pub fn apply(
        &mut self,
        differences: &Differences,
        first: usize,
        pages: &mut [u8],
        page_bytes: usize,
    ) -> Result<(), FormatError> {
        differences.apply(first, pages, page_bytes, &mut self.decompressor)
    }
}

/// Shows `see` the pages of `frames`, `raw_bytes` in all, where `other` decompressed them. `put` gives it their stored bytes,
/// checked.
pub fn decode_there(
    other: &dyn Decompress,
    frames: &[Frame],
    put: &mut dyn FnMut(&mut [u8]) -> io::Result<()>,
    raw_bytes: usize,
    see: &mut dyn FnMut(&[AtomicU8]),
) -> Result<(), FormatError> {
    let mut see_whole = |bytes: &[AtomicU8]| {
        if bytes.len() == raw_bytes {
            see(bytes);
        }
    };
    let stored = stored_bytes(frames);
    match other.decompress_there(stored, put, raw_bytes, &mut see_whole) {
        Ok(length) => check_length(length, raw_bytes),
        Err(error) => Err(FormatError::Unknown(error)),
    }
}

/// How long frames are that follow one another.
pub fn stored_bytes(frames: &[Frame]) -> usize {
    let lengths = frames.iter().map(|frame| frame.stored_length as usize);
    lengths.sum()
}

/// Whether the stored bytes of `frames`, which follow one another in `stored`, are what they were.
pub fn check_all(mut stored: &[u8], frames: &[Frame]) -> Result<(), FormatError> {
    for frame in frames {
        let (of_frame, others) = stored.split_at(frame.stored_length as usize);
        check(of_frame, &frame.checksum)?;
        stored = others;
    }
    Ok(())
}

fn check(stored: &[u8], checksum: &[u8; 32]) -> Result<(), FormatError> {
    if blake3::hash(stored).as_bytes() == checksum {
        Ok(())
    } else {
        damaged("the checksum of a frame does not match")
    }
}

fn check_length(found: Option<usize>, expected: usize) -> Result<(), FormatError> {
    match found {
        Some(length) if length == expected => Ok(()),
        Some(_) => damaged("a frame decompresses to less than its pages"),
        None => damaged("a frame does not decompress"),
    }
}
