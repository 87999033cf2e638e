//! The mappings of a process, as `/proc/PID/maps` tells them.

/// A mapping: where, how protected, and whether shared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mapped {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// As in `/proc/PID/maps`: `rw-p`.
    pub permissions: String,
    /// Where in its file it begins, in bytes.
    pub offset: u64,
    /// Device and inode of the object behind it.
    pub object: String,
    /// The name, empty for plain memory.
    pub name: String,
}

/// The mappings of a process.
pub fn maps(pid: i32) -> Vec<Mapped> {
    let text = std::fs::read(format!("/proc/{pid}/maps")).expect("read its maps");
    let text = String::from_utf8_lossy(&text);
    let mapped = |line: &str| {
        let mut words = line.splitn(6, ' ');
        let (start, end) = words.next()?.split_once('-')?;
        let permissions = words.next()?.to_owned();
        let (offset, device, inode) = (words.next()?, words.next()?, words.next()?);
        Some(Mapped {
            start: u64::from_str_radix(start, 16).ok()?,
            end: u64::from_str_radix(end, 16).ok()?,
            permissions,
            offset: u64::from_str_radix(offset, 16).ok()?,
            object: format!("{device} {inode}"),
            name: words.next().unwrap_or("").trim().to_owned(),
        })
    };
    text.lines()
        .map(|line| mapped(line).unwrap_or_else(|| panic!("a line of maps: {line:?}")))
        .collect()
}
