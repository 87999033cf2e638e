//! How what is known of a process lies in an attachment of a snapshot: a magic or none, a version, then the fields in
//! bincode's fixed-width little-endian encoding. One codec for all attachments. What a value may be is for its type to say.

use bincode::{Decode, Encode};

/// What begins the bytes of one kind of attachment, and how much its readers take.
///
/// `LIMIT_BYTES` is how much memory a value may take when it is decoded: more was never written by us.
#[derive(Clone, Copy, Debug)]
pub struct Encoding<const LIMIT_BYTES: usize> {
    start: Start,
    version: u32,
}

#[derive(Clone, Copy, Debug)]
enum Start {
    /// A magic, then 4 bytes of version.
    Magic([u8; 4]),
    /// 2 bytes of version.
    Version,
}

/// Why bytes are not what they should be. The type of what they should be has an error that names it.
#[derive(Debug)]
pub enum EncodingError {
    /// They begin otherwise.
    Other,
    /// A later version of this program wrote them.
    NewerVersion {
        /// What the bytes say.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// They are cut off, or damaged.
    Damaged(bincode::error::DecodeError),
    /// They go on behind the end.
    TrailingBytes {
        /// How many.
        count: usize,
    },
}

impl<const LIMIT_BYTES: usize> Encoding<LIMIT_BYTES> {
    /// Bytes that begin with their version alone, of which `version` is the newest.
    pub const fn new(version: u16) -> Self {
        Self {
            start: Start::Version,
            version: version as u32,
        }
    }

    /// Bytes that begin with `magic` and their version, of which `version` is the newest.
    pub const fn with_magic(magic: [u8; 4], version: u32) -> Self {
        Self {
            start: Start::Magic(magic),
            version,
        }
    }

    /// The bytes of a value, in the newest version; `None` if they are more than the limit.
    pub fn encode(&self, value: &impl Encode) -> Option<Vec<u8>> {
        let mut bytes = match self.start {
            Start::Magic(magic) => [magic, self.version.to_le_bytes()].concat(),
            Start::Version => self.version.to_le_bytes()[..2].to_vec(),
        };
        bytes.append(&mut bincode::encode_to_vec(value, configuration::<LIMIT_BYTES>()).ok()?);
        Some(bytes)
    }

    /// The value of bytes in the newest version.
    pub fn decode<T: Decode<()>>(&self, bytes: &[u8]) -> Result<T, EncodingError> {
        match self.split(bytes)? {
            (version, body) if version == self.version => Self::decode_body(body),
            _ => Err(EncodingError::Other),
        }
    }

    /// Their version, which is one to the newest, and what follows it: [`Self::decode_body`] of the type of that version.
    pub fn split<'a>(&self, bytes: &'a [u8]) -> Result<(u32, &'a [u8]), EncodingError> {
        let (version, body) = match self.start {
            Start::Magic(magic) => {
                let rest = bytes.strip_prefix(&magic).ok_or(EncodingError::Other)?;
                let (version, body) = rest.split_first_chunk().ok_or(EncodingError::Other)?;
                (u32::from_le_bytes(*version), body)
            }
            Start::Version => {
                let (version, body) = bytes.split_first_chunk().ok_or(EncodingError::Other)?;
                (u32::from(u16::from_le_bytes(*version)), body)
            }
        };
        match version {
            0 => Err(EncodingError::Other),
            found if found > self.version => Err(EncodingError::NewerVersion {
                found,
                known: self.version,
            }),
            known => Ok((known, body)),
        }
    }

    /// The value of what follows a version.
    pub fn decode_body<T: Decode<()>>(body: &[u8]) -> Result<T, EncodingError> {
        let (value, used) = bincode::decode_from_slice(body, configuration::<LIMIT_BYTES>())
            .map_err(EncodingError::Damaged)?;
        match body.len() - used {
            0 => Ok(value),
            count => Err(EncodingError::TrailingBytes { count }),
        }
    }
}

fn configuration<const LIMIT_BYTES: usize>() -> impl bincode::config::Config {
    bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding()
        .with_limit::<LIMIT_BYTES>()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Encoding<64> = Encoding::new(2);
    const LONG: Encoding<64> = Encoding::with_magic(*b"PTXX", 3);

    #[test]
    fn a_value_is_read_as_it_was_written_and_refused_when_cut_or_longer() {
        let value = (7u32, vec![1u8, 2, 3]);
        for (encode, decode, start) in [
            (SHORT.encode(&value), SHORT, &b"\x02\0"[..]),
            (LONG.encode(&value), LONG, b"PTXX\x03\0\0\0"),
        ] {
            let mut bytes = encode.expect("it is short");
            assert!(bytes.starts_with(start));
            let read: (u32, Vec<u8>) = decode.decode(&bytes).expect("as written");
            assert_eq!(read, value);
            for length in 0..bytes.len() {
                let cut = decode.decode::<(u32, Vec<u8>)>(&bytes[..length]);
                assert!(
                    matches!(cut, Err(EncodingError::Other | EncodingError::Damaged(_))),
                    "{length}: {cut:?}"
                );
            }
            bytes.push(0);
            let longer = decode.decode::<(u32, Vec<u8>)>(&bytes);
            assert!(matches!(
                longer,
                Err(EncodingError::TrailingBytes { count: 1 })
            ));
        }
    }

    #[test]
    fn versions_are_told_apart() {
        let newer = SHORT.split(b"\x03\0rest");
        assert!(matches!(
            newer,
            Err(EncodingError::NewerVersion { found: 3, known: 2 })
        ));
        assert!(matches!(
            SHORT.split(b"\0\0rest"),
            Err(EncodingError::Other)
        ));
        assert!(matches!(SHORT.split(b"\x01\0rest"), Ok((1, b"rest"))));
        assert!(matches!(
            SHORT.decode::<u8>(b"\x01\0\0"),
            Err(EncodingError::Other)
        ));
        assert!(matches!(
            LONG.split(b"PTXY\x01\0\0\0"),
            Err(EncodingError::Other)
        ));
        assert!(matches!(
            LONG.split(b"PTXX\x01\0\0\0rest"),
            Ok((1, b"rest"))
        ));
    }

    #[test]
    fn what_takes_more_than_the_limit_is_refused() {
        let bytes = [&b"\x02\0"[..], &1000u64.to_le_bytes(), &[0; 1000]].concat();
        let read = SHORT.decode::<Vec<u8>>(&bytes);
        assert!(matches!(read, Err(EncodingError::Damaged(_))));
    }
}
