//! What was overwritten, so that it can be put back: a little in memory, and the rest in a file without a name, so that it takes
//! no more memory however much is overwritten.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// So much is held in memory.
const IN_MEMORY_BYTES: usize = 4 << 20;
/// Before each part stand its place and its length.
const HEAD_BYTES: usize = 16;
/// Temporary files are on a disk there, and not in memory.
const DIRECTORY: &str = "/var/tmp";
const READ_AT_ONCE: usize = 64 << 10;

/// Parts of an object, in the order in which they were overwritten.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// What is not in the file yet.
    recent: Vec<u8>,
    file: Option<File>,
    file_bytes: u64,
}

impl Journal {
    /// Adds what is at `at`, and is to be overwritten.
    pub fn add(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        if self.recent.len() + HEAD_BYTES + bytes.len() > IN_MEMORY_BYTES {
            self.spill()?;
        }
        self.recent.extend(at.to_ne_bytes());
        self.recent.extend((bytes.len() as u64).to_ne_bytes());
        self.recent.extend_from_slice(bytes);
        Ok(())
    }

    fn spill(&mut self) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file,
            None => {
                let made = tempfile::tempfile_in(DIRECTORY).or_else(|_| tempfile::tempfile());
                self.file.insert(made?)
            }
        };
        file.write_all_at(&self.recent, self.file_bytes)?;
        self.file_bytes += self.recent.len() as u64;
        self.recent.clear();
        Ok(())
    }

    /// Hands all of it to `put`, in parts. What cannot be read back is left out.
    pub fn play(&self, mut put: impl FnMut(u64, &[u8])) {
        if let Some(file) = &self.file {
            drop(play_file(file, self.file_bytes, &mut put));
        }
        let mut rest = &self.recent[..];
        while let Some((at, length, behind)) = head(rest) {
            let Some(bytes) = usize::try_from(length)
                .ok()
                .and_then(|length| behind.get(..length))
            else {
                return;
            };
            put(at, bytes);
            rest = &behind[bytes.len()..];
        }
    }
}

fn play_file(file: &File, end: u64, put: &mut impl FnMut(u64, &[u8])) -> io::Result<()> {
    let mut buffer = vec![0; READ_AT_ONCE];
    let mut from = 0;
    while from < end {
        let mut bytes = [0; HEAD_BYTES];
        file.read_exact_at(&mut bytes, from)?;
        from += HEAD_BYTES as u64;
        let Some((mut at, mut left, _)) = head(&bytes) else {
            return Ok(());
        };
        while left > 0 {
            let count = usize::try_from(left).map_or(READ_AT_ONCE, |left| left.min(READ_AT_ONCE));
            file.read_exact_at(&mut buffer[..count], from)?;
            put(at, &buffer[..count]);
            (at, from, left) = (at + count as u64, from + count as u64, left - count as u64);
        }
    }
    Ok(())
}

/// Place and length of the first part, and what stands behind them.
fn head(bytes: &[u8]) -> Option<(u64, u64, &[u8])> {
    let (at, rest) = bytes.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<8>()?;
    Some((u64::from_ne_bytes(*at), u64::from_ne_bytes(*length), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_comes_back_in_its_order_and_little_of_it_is_in_memory() {
        let mut journal = Journal::default();
        let part = |number: u64| vec![number as u8; 1000 + 300 * (number as usize % 400)];
        for number in 0..500 {
            journal.add(number * 7, &part(number)).expect("room");
            assert!(journal.recent.len() <= IN_MEMORY_BYTES);
        }
        assert!(journal.file_bytes > 20 << 20);
        let (mut number, mut got) = (0, Vec::new());
        journal.play(|at, bytes| {
            assert_eq!(at, number * 7 + got.len() as u64);
            got.extend_from_slice(bytes);
            if got.len() == part(number).len() {
                assert_eq!(got, part(number));
                (number, got) = (number + 1, Vec::new());
            }
        });
        assert_eq!((number, got.len()), (500, 0));
    }
}
