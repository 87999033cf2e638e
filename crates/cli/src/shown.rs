//! Text from outside, as it is shown to people: names and paths that processes, stores and file systems choose may hold
//! anything, also what moves a terminal's cursor, hides text, or looks like another line of ours.
//!
//! Everything that is printed goes through here, a line at a time, so no place can forget it.

use std::borrow::Cow;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// One line: what could deceive stands there as an escape of Rust's (`\n`, `\u{202e}`), and a backslash as two, so that no two
/// texts look the same.
pub fn line(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    push(&mut shown, text);
    Cow::Owned(shown)
}

/// A path, on one line: bytes that are no characters stand there as `\xff`.
pub fn path(path: &Path) -> String {
    let mut shown = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        push(&mut shown, chunk.valid());
        for byte in chunk.invalid() {
            let _ = write!(shown, "\\x{byte:02x}");
        }
    }
    shown
}

fn push(shown: &mut String, text: &str) {
    for letter in text.chars() {
        match letter {
            '\\' => shown.push_str("\\\\"),
            '\n' => shown.push_str("\\n"),
            '\t' => shown.push_str("\\t"),
            '\r' => shown.push_str("\\r"),
            _ if is_deceiving(letter) => shown.extend(letter.escape_unicode()),
            _ => shown.push(letter),
        }
    }
}

fn is_escaped(letter: char) -> bool {
    letter == '\\' || is_deceiving(letter)
}

/// True for what is not seen as itself: control characters, what changes the direction of text, what is invisible, and ends
/// of lines and paragraphs (Unicode's classes Cc, Cf, Zl, Zp).
pub fn is_deceiving(letter: char) -> bool {
    letter.is_control()
        || matches!(letter,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn what_is_seen_as_itself_stays() {
        for plain in ["", "/usr/lib/x86_64", "grüße, мир 世界", "a b \"c\" '$d'"] {
            assert!(matches!(line(plain), Cow::Borrowed(same) if same == plain));
            assert_eq!(path(Path::new(plain)), plain);
        }
    }

    #[test]
    fn nothing_that_deceives_is_left() {
        assert_eq!(
            line("a\n/etc/x\x1b[2J\u{9b}1m"),
            "a\\n/etc/x\\u{1b}[2J\\u{9b}1m"
        );
        assert_eq!(line("\u{202e}txt.exe\u{200b}"), "\\u{202e}txt.exe\\u{200b}");
        assert_eq!(line("a\\n\t\r"), "a\\\\n\\t\\r");
        let bytes = OsStr::from_bytes(b"/x\xff\xc3\n\x7f");
        assert_eq!(path(Path::new(bytes)), "/x\\xff\\xc3\\n\\u{7f}");
        for letter in '\0'..=char::MAX {
            let shown = line(letter.encode_utf8(&mut [0; 4])).into_owned();
            assert!(!shown.chars().any(is_deceiving), "{letter:?}");
        }
    }
}
