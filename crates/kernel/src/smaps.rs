//! `/proc/PID/smaps`: what the kernel counts of each mapping. The mappings themselves are in
//! [`crate::maps`].
//!
//! Since Linux 2.6.14, with CONFIG_PROC_PAGE_MONITOR. Needs `PTRACE_MODE_READ_FSCREDS`. Walks all page
//! tables of the process: slow. Counts are whole KiB, rounded down. Source: proc_pid_smaps(5).

use crate::maps::{Mapping, MapsError, without_overlaps};
use std::collections::HashMap;
use std::path::PathBuf;

/// A mapping and what the kernel counts of it.
#[derive(Clone, Debug)]
pub struct CountedMapping {
    /// The mapping.
    pub mapping: Mapping,
    /// VmFlags, as their two-letter names.
    pub flags: Vec<String>,
    counts: HashMap<String, u64>,
}

impl CountedMapping {
    /// The field `name` (`Rss`, `Swap`, `KernelPageSize`, ...) in bytes; 0 if the kernel has no such field.
    pub fn bytes(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }

    /// True if the two-letter flag is set.
    pub fn has_flag(&self, name: &str) -> bool {
        self.flags.iter().any(|flag| flag == name)
    }
}

/// The mappings of process `pid` with what is counted, by ascending address.
pub fn counted_mappings(pid: i32) -> Result<Vec<CountedMapping>, MapsError> {
    let path = PathBuf::from(format!("/proc/{pid}/smaps"));
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(source) => return Err(MapsError::Read { path, source }),
    };
    let mut counted: Vec<CountedMapping> = Vec::new();
    for line in text.split(|byte| *byte == b'\n').filter(|l| !l.is_empty()) {
        // A field is `Name:   value`; the line of a mapping begins with addresses, which have no colon.
        let word = line.split(|byte| *byte == b' ').next().unwrap_or_default();
        let Some(name) = word.strip_suffix(b":") else {
            let mapping = Mapping::from_line(line).ok_or_else(|| MapsError::Parse {
                path: path.clone(),
                line: String::from_utf8_lossy(line).into_owned(),
            })?;
            counted.push(CountedMapping {
                mapping,
                flags: Vec::new(),
                counts: HashMap::new(),
            });
            continue;
        };
        let value = String::from_utf8_lossy(&line[word.len()..]);
        let Some(last) = counted.last_mut() else {
            continue;
        };
        if name == b"VmFlags" {
            last.flags = value.split_whitespace().map(str::to_owned).collect();
        } else if let Some(kib) = value
            .strip_suffix(" kB")
            .and_then(|v| v.trim().parse().ok())
        {
            let name = String::from_utf8_lossy(name).into_owned();
            last.counts.insert(name, u64::saturating_mul(kib, 1024));
        }
    }
    Ok(without_overlaps(counted, |one| &mut one.mapping))
}
