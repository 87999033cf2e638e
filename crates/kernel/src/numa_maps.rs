//! `/proc/PID/numa_maps`: the memory policy of each mapping, and on which node its pages are.
//!
//! Since Linux 2.6.14, with CONFIG_NUMA. Needs `PTRACE_MODE_READ_FSCREDS`. Counted are pages that the
//! process maps now and that the kernel manages, so neither the zero page nor `[vvar]`; in units of
//! `kernelpagesize_kB`, so that a hugetlb page counts as one and a transparent huge page as 512.
//! Source: numa_maps(5), `Documentation/filesystems/proc.rst`.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// A line of `numa_maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NumaMapping {
    /// Address of the first byte of the mapping.
    pub start: u64,
    /// The policy, as the kernel prints it: `default`, `bind:0-1`, `prefer (many):0`.
    pub policy: String,
    /// How many pages lie on each node; nodes with none are left out.
    pub nodes: BTreeMap<u32, u64>,
    /// The unit of `nodes` in bytes; `None` if there are no pages.
    pub page_bytes: Option<u64>,
}

/// Why `numa_maps` could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NumaMapsError {
    /// The file could not be read. NotFound where the kernel has no CONFIG_NUMA.
    #[error("read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// A line is not as numa_maps(5) says.
    #[error("parse {path}: not a line of numa_maps: {line}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line.
        line: String,
    },
}

/// The lines of `numa_maps` of process `pid`, by ascending address. `[vsyscall]` has none.
pub fn numa_mappings(pid: i32) -> Result<Vec<NumaMapping>, NumaMapsError> {
    let path = PathBuf::from(format!("/proc/{pid}/numa_maps"));
    let text = match std::fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(source) => return Err(NumaMapsError::Read { path, source }),
    };
    let parse = |line: &str| match NumaMapping::from_line(line) {
        Some(mapping) => Ok(mapping),
        None => Err(NumaMapsError::Parse {
            path: path.clone(),
            line: line.to_owned(),
        }),
    };
    text.lines().map(parse).collect()
}

impl NumaMapping {
    fn from_line(line: &str) -> Option<Self> {
        // A file name cannot disturb this: its blanks and equal signs are printed as octal digits.
        let (start, rest) = line.split_once(' ')?;
        let of_two_words = ["prefer (many)", "weighted interleave"];
        let words = of_two_words.into_iter().find(|name| rest.starts_with(name));
        let skipped = words.map_or(0, str::len);
        let end = rest[skipped..]
            .find(' ')
            .map_or(rest.len(), |at| skipped + at);
        let (policy, rest) = rest.split_at(end);
        let mut mapping = Self {
            start: u64::from_str_radix(start, 16).ok()?,
            policy: policy.to_owned(),
            nodes: BTreeMap::new(),
            page_bytes: None,
        };
        for (name, value) in rest.split_whitespace().filter_map(|w| w.split_once('=')) {
            if name == "kernelpagesize_kB" {
                mapping.page_bytes = Some(value.parse::<u64>().ok()?.checked_mul(1024)?);
            } else if let Some(node) = name.strip_prefix('N').and_then(|n| n.parse().ok()) {
                mapping.nodes.insert(node, value.parse().ok()?);
            }
        }
        Some(mapping)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_pages_on_two_nodes() {
        let line = "7f00a000 bind=static:0-1 file=/tmp/N7=3\\040x anon=5 dirty=5 mapmax=3 \
                    active=2 N0=4 N12=1 kernelpagesize_kB=2048";
        let mapping = NumaMapping::from_line(line).unwrap();
        assert_eq!(
            (mapping.start, mapping.policy.as_str()),
            (0x7f00_a000, "bind=static:0-1")
        );
        assert_eq!(mapping.nodes, BTreeMap::from([(0, 4), (12, 1)]));
        assert_eq!(mapping.page_bytes, Some(2 << 20));
    }

    #[test]
    fn lines_without_pages_and_policies_of_two_words() {
        let empty = NumaMapping::from_line("1000 default").unwrap();
        assert_eq!((empty.nodes.len(), empty.page_bytes), (0, None));
        let heap = NumaMapping::from_line("1000 prefer (many):0 heap N0=1 kernelpagesize_kB=4");
        let heap = heap.unwrap();
        assert_eq!(
            (heap.policy.as_str(), heap.nodes[&0]),
            ("prefer (many):0", 1)
        );
        let bare = NumaMapping::from_line("1000 prefer (many)=relative:1").unwrap();
        assert_eq!(bare.policy, "prefer (many)=relative:1");
        let weighted = NumaMapping::from_line("1000 weighted interleave:0-1 anon=1 N1=1");
        let weighted = weighted.unwrap();
        assert_eq!(
            (weighted.policy.as_str(), weighted.nodes[&1]),
            ("weighted interleave:0-1", 1)
        );
        assert_eq!(NumaMapping::from_line("nothing at all"), None);
    }
}
