//! Where the lines of a schedule go. A reader that went away, a full disk or a reader that has stopped reading keeps nobody from
//! taking snapshots: what cannot be written now is kept for later, up to a limit, and that is said once.

use crate::output;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// No more than this is kept for later.
const KEPT_BYTES: usize = 1 << 20;
/// So much is written to a pipe that takes anything at all.
const PIECE_BYTES: usize = 4096;
/// So long the end waits for a reader.
const PATIENCE_AT_END: Duration = Duration::from_secs(1);

/// See the head of this file.
pub struct Sink {
    file: File,
    name: String,
    kept: Vec<u8>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Works,
    /// It failed, and was told.
    Fails,
    /// Nobody will ever read it.
    Gone,
}

impl Sink {
    /// Standard output.
    pub fn stdout() -> io::Result<Self> {
        Self::of(io::stdout(), "standard output")
    }

    /// Standard error.
    pub fn stderr() -> io::Result<Self> {
        Self::of(io::stderr(), "standard error")
    }

    fn of(file: impl AsFd, name: &str) -> io::Result<Self> {
        let file = File::from(file.as_fd().try_clone_to_owned()?);
        Ok(Self::over(file, name.to_owned()))
    }

    /// The end of a file, which is made if it does not exist.
    pub fn file(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(Self::over(file, path.display().to_string()))
    }

    fn over(file: File, name: String) -> Self {
        Self {
            file,
            name,
            kept: Vec::new(),
            state: State::Works,
        }
    }

    /// Writes this and what was kept, as far as it goes now.
    pub fn put(&mut self, line: &[u8]) {
        if self.state == State::Gone {
            return;
        }
        if self.kept.len() + line.len() <= KEPT_BYTES {
            self.kept.extend_from_slice(line);
        } else {
            self.tell("nobody reads it; lines are left out");
        }
        self.push(Duration::ZERO);
    }

    /// Writes this and waits until it is written.
    pub fn put_now(&mut self, line: &[u8]) -> io::Result<()> {
        self.file.write_all(line)
    }

    /// Writes what was kept, and waits a little for whoever reads it.
    pub fn end(&mut self) {
        self.push(PATIENCE_AT_END);
    }

    fn push(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while !self.kept.is_empty() && self.state != State::Gone {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.write_a_piece(left) {
                Ok(0) => return,
                Ok(written) => {
                    self.kept.drain(..written);
                    self.state = State::Works;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    let error_text = error.to_string();
                    self.tell(&error_text);
                    if error.kind() == ErrorKind::BrokenPipe {
                        self.state = State::Gone;
                        self.kept = Vec::new();
                    }
                    return;
                }
            }
        }
    }

    /// How many bytes of what was kept could be written; 0 if it takes none within this time.
    fn write_a_piece(&mut self, patience: Duration) -> io::Result<usize> {
        let timeout = Timespec::try_from(patience).unwrap_or_default();
        let mut waited = [PollFd::new(&self.file, PollFlags::OUT)];
        match poll(&mut waited, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => return Ok(0),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let piece = self.kept.len().min(PIECE_BYTES);
        self.file.write(&self.kept[..piece])
    }

    fn tell(&mut self, why: &str) {
        if self.state == State::Works {
            self.state = State::Fails;
            output::note!(
                "pagetide: cannot write to {}: {why}; snapshots go on",
                self.name
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn what_nobody_reads_yet_is_kept_and_written_in_order() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let mut sink = Sink::of(&writer, "a pipe").expect("a copy");
        drop(writer);
        let line = vec![b'x'; 10_000];
        let since = Instant::now();
        for _ in 0..20 {
            sink.put(&line);
        }
        assert!(since.elapsed() < Duration::from_secs(5), "nobody waits");
        assert!(!sink.kept.is_empty(), "a pipe has room for 64 KiB");
        let read = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all)
        });
        sink.put(b"end");
        sink.end();
        drop(sink);
        let all = read.join().expect("no panic").expect("it reads");
        assert_eq!(all.len(), 200_003);
        assert!(all.ends_with(b"xend"));
    }

    #[test]
    fn a_reader_that_went_away_is_written_to_no_more() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let mut sink = Sink::of(&writer, "a pipe").expect("a copy");
        drop(reader);
        sink.put(b"line\n");
        assert!(sink.state == State::Gone && sink.kept.is_empty());
    }

    #[test]
    fn no_more_is_kept_than_the_limit() {
        let (_reader, writer) = io::pipe().expect("a pipe");
        let mut sink = Sink::of(&writer, "a pipe").expect("a copy");
        for _ in 0..300 {
            sink.put(&[b'x'; 9_999]);
        }
        assert!(sink.kept.len() <= KEPT_BYTES);
    }
}
