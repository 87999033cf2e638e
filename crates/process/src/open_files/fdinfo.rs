//! `/proc/PID/fdinfo/N`, as text asked by key. Source: `proc_pid_fdinfo(5)`.

use pagetide_kernel::proc_file;
use rustix::fs::OFlags;
use std::io;

/// What the kernel says of one descriptor.
#[derive(Debug, Clone)]
pub(crate) struct FdInfo {
    /// Position in the file.
    pub(crate) position: u64,
    /// Access mode and status flags of the description.
    pub(crate) flags: u32,
    /// Whether execve(2) closes the descriptor.
    pub(crate) close_on_exec: bool,
    text: String,
}

impl FdInfo {
    /// Reads it; none if the number is not open.
    pub(crate) fn read(pid: i32, number: i32) -> io::Result<Option<Self>> {
        match proc_file::read_text(format!("/proc/{pid}/fdinfo/{number}")) {
            Ok(text) => Self::parse(text).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(text: String) -> io::Result<Self> {
        let mut info = Self {
            position: 0,
            flags: 0,
            close_on_exec: false,
            text,
        };
        let lacking = || io::Error::new(io::ErrorKind::InvalidData, "flags or position missing");
        let position = info.value("pos").and_then(|text| text.parse::<i64>().ok());
        // Some files of the kernel have positions that look negative.
        info.position = position.ok_or_else(lacking)?.cast_unsigned();
        let flags = info
            .value("flags")
            .and_then(|text| u32::from_str_radix(text, 8).ok());
        let flags = OFlags::from_bits_retain(flags.ok_or_else(lacking)?);
        info.close_on_exec = flags.contains(OFlags::CLOEXEC);
        info.flags = flags.difference(OFlags::CLOEXEC).bits();
        Ok(info)
    }

    /// The value of the first line that begins with `key:`.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        let mut lines = self.text.lines();
        lines.find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim()))
    }

    /// The values of all lines that begin with `key:`.
    pub(crate) fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.text
            .lines()
            .filter_map(move |line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim()))
    }

    /// The value of `key` as a number, which has to be there.
    pub(crate) fn number(&self, key: &str, base: u32) -> io::Result<u64> {
        let number = self
            .value(key)
            .and_then(|text| u64::from_str_radix(text, base).ok());
        let message = || format!("the kernel does not tell {key} of the descriptor");
        number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, message()))
    }

    /// All lines that begin with `begin`, without it.
    pub(crate) fn lines<'a>(&'a self, begin: &'a str) -> impl Iterator<Item = &'a str> {
        self.text
            .lines()
            .filter_map(move |line| line.strip_prefix(begin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_octal_and_close_on_exec_is_not_one_of_the_description() {
        let info = FdInfo::parse("pos:\t12\nflags:\t02100002\nlock:\t1: a\nlock:\t2: b\n".into());
        let info = info.expect("it reads");
        assert_eq!(
            (info.position, info.flags, info.close_on_exec),
            (12, 0o100_002, true)
        );
        assert_eq!(info.values("lock").collect::<Vec<_>>(), ["1: a", "2: b"]);
        assert!(info.number("eventfd-count", 16).is_err());
        assert!(FdInfo::parse("pos:\t12\n".into()).is_err());
    }
}

#[cfg(test)]
mod hostile_tests {
    use super::*;

    #[test]
    fn hostile_text_of_fdinfo() {
        let sound = b"pos:\t12\nflags:\t02100002\nmnt_id:\t28\nino:\t99\nlock:\t1: POSIX ADVISORY WRITE 1 fe:00:1 0 EOF\n";
        pagetide_testing::hostile::survives(sound, |text| {
            let Ok(info) = FdInfo::parse(String::from_utf8_lossy(text).into_owned()) else {
                return false;
            };
            let _ = (info.number("mnt_id", 10), info.values("lock").count());
            text != sound || (info.position, info.close_on_exec) == (12, true)
        });
    }
}
