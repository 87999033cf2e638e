//! What `/proc/kpageflags`, `/proc/kpagecount` and `/proc/kpagecgroup` have in common: 64 bits for each
//! page frame of the machine, at eight times its number.
//!
//! Reads must begin at a multiple of 8 bytes and be as long (EINVAL otherwise). Past the last frame a
//! read gives nothing. The files belong to root with mode 0400; opening one asks for nothing more.
//! Source: `Documentation/admin-guide/mm/pagemap.rst`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const ENTRY_BYTES: usize = 8;

/// Frames that nobody asked for are read with the others if the gap is not longer than this: that is
/// cheaper than another system call.
const GAP_FRAMES: u64 = 64;

/// Most frames in one read.
const AT_ONCE: u64 = 8192;

/// Why the file of a frame table could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("open {path}", path = path.display())]
pub struct OpenFramesError {
    /// The file.
    pub path: PathBuf,
    /// What the kernel said: NotFound where the kernel has no such table, PermissionDenied for anybody
    /// but root.
    #[source]
    pub source: io::Error,
}

/// Why a frame table could not be read.
#[derive(Debug, thiserror::Error)]
#[error("read {path} at page frame {frame:#x}", path = path.display())]
pub struct ReadFramesError {
    /// The file.
    pub path: PathBuf,
    /// The frame at which the read started.
    pub frame: u64,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// An open table of 64 bits a page frame.
#[derive(Debug)]
pub(crate) struct FrameFile {
    file: File,
    path: &'static Path,
}

impl FrameFile {
    pub(crate) fn open(path: &'static str) -> Result<Self, OpenFramesError> {
        let path = Path::new(path);
        match File::open(path) {
            Ok(file) => Ok(Self { file, path }),
            Err(source) => Err(OpenFramesError {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// The entry of each frame, in the order of `frames`, which need not be sorted. A frame past the end
    /// of the table, as of a device's memory, gives `beyond`.
    pub(crate) fn entries(&self, frames: &[u64], beyond: u64) -> Result<Vec<u64>, ReadFramesError> {
        let mut order: Vec<usize> = (0..frames.len()).collect();
        order.sort_unstable_by_key(|&at| frames[at]);
        let mut entries = vec![beyond; frames.len()];
        let mut rest = order.as_slice();
        let mut bytes = Vec::new();
        while let Some(&first) = rest.first() {
            let start = frames[first];
            let mut last = start;
            let in_run = rest.iter().take_while(|&&at| {
                let near = frames[at] - last <= GAP_FRAMES && frames[at] - start < AT_ONCE;
                if near {
                    last = frames[at];
                }
                near
            });
            let (run, further) = rest.split_at(in_run.count());
            bytes.resize((last - start + 1) as usize * ENTRY_BYTES, 0);
            let read = self.read(start, &mut bytes)?;
            let (values, _) = bytes[..read].as_chunks::<ENTRY_BYTES>();
            for &at in run {
                if let Some(value) = values.get((frames[at] - start) as usize) {
                    entries[at] = u64::from_ne_bytes(*value);
                }
            }
            rest = further;
        }
        Ok(entries)
    }

    /// Reads from frame `start` on until `bytes` is full or the table ends.
    fn read(&self, start: u64, bytes: &mut [u8]) -> Result<usize, ReadFramesError> {
        let mut filled = 0;
        while filled < bytes.len() {
            let frame = start + (filled / ENTRY_BYTES) as u64;
            let Some(offset) = frame.checked_mul(ENTRY_BYTES as u64) else {
                break;
            };
            match self.file.read_at(&mut bytes[filled..], offset) {
                Ok(0) => break,
                Ok(read) => filled += read - read % ENTRY_BYTES,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(ReadFramesError {
                        path: self.path.to_owned(),
                        frame,
                        source,
                    });
                }
            }
        }
        Ok(filled)
    }
}
