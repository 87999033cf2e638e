//! Reading a file of `/proc` with few system calls. The kernel does not say how long such a file is, and `std::fs::read`
//! begins with 32 bytes then: nine calls for a status, where three do. What is read in a stop must not cost that.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// As much as the kernel makes of most such files at once, in bytes.
const ROOM_BYTES: usize = 4096;

/// The whole of a file.
///
/// # Errors
/// As of `std::fs::read`.
pub fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(ROOM_BYTES);
    // With a limit, the length of the file is not asked for.
    File::open(path)?.take(u64::MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The same as text. What is not UTF-8 in it is replaced.
pub fn read_text(path: impl AsRef<Path>) -> io::Result<String> {
    let bytes = read(path)?;
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_to_its_end_however_long_it_is() {
        let path = std::env::temp_dir().join(format!("proc-file-{}", std::process::id()));
        for length in [0, 1, ROOM_BYTES - 1, ROOM_BYTES, ROOM_BYTES + 1, 300_000] {
            let bytes: Vec<u8> = (0..length).map(|at| b"abcdefg"[at % 7]).collect();
            std::fs::write(&path, &bytes).expect("write it");
            assert!(read(&path).expect("read it") == bytes, "{length}");
        }
        std::fs::write(&path, b"a\xffb").expect("write it");
        assert_eq!(read_text(&path).expect("read it"), "a\u{fffd}b");
        std::fs::remove_file(&path).expect("remove it");
        let error = read(&path).expect_err("it is gone");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let maps = read_text("/proc/self/maps").expect("read it");
        assert!(maps.ends_with('\n') && maps.contains("[stack]"));
    }
}
