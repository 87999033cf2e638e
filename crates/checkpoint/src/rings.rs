//! Memory that the kernel writes without a page fault: the registered buffers of io_uring.
//!
//! Their pages are pinned when they are registered, and reads into them leave no trace in any page
//! table. Registering itself counts as a write, so a buffer is only dangerous from the harvest it was
//! registered over until the next one: what was registered at the last snapshot or is now counts as
//! written. The kernel lists them in `/proc/PID/fdinfo` of the ring (`UserBufs`).

use pagetide_pages::{PageSet, PageSize};
use std::fs;
use std::path::Path;

/// The pages of all buffers registered with io_uring rings that process `pid` holds.
pub(crate) fn registered_buffers(pid: i32) -> PageSet {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return PageSet::new();
    };
    let is_ring = |link: &Path| link.as_os_str() == "anon_inode:[io_uring]";
    let rings = entries.flatten().filter(|entry| {
        let target = fs::read_link(entry.path());
        target.is_ok_and(|target| is_ring(&target))
    });
    let mut buffers = PageSet::new();
    for ring in rings {
        let number = ring.file_name();
        let info = Path::new("/proc")
            .join(pid.to_string())
            .join("fdinfo")
            .join(number);
        // The kernel leaves the list out while the ring is busy in a system call.
        for _ in 0..1000 {
            let Ok(text) = fs::read_to_string(&info) else {
                break;
            };
            if text.contains("UserBufs:") {
                buffers.extend(buffers_in(&text).ranges().iter().copied());
                break;
            }
            std::thread::yield_now();
        }
    }
    buffers
}

/// The buffers in the fdinfo of one ring: after `UserBufs: N` a line `index: 0xADDRESS/LENGTH` each.
fn buffers_in(fdinfo: &str) -> PageSet {
    let lines = fdinfo
        .lines()
        .skip_while(|line| !line.starts_with("UserBufs:"))
        .skip(1);
    let buffer = |line: &str| {
        let (_, place) = line.split_once(": ")?;
        let (address, length) = place.trim().split_once('/')?;
        let address = u64::from_str_radix(address.strip_prefix("0x")?, 16).ok()?;
        let length: u64 = length.trim().parse().ok()?;
        Some(PageSize::KIB_4.covering(address, address.checked_add(length)?))
    };
    lines.map_while(buffer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagetide_pages::{PageCount, PageIndex, PageRange};

    #[test]
    fn the_list_ends_where_the_next_field_begins() {
        let text = "SqThread:\t-1\nUserFiles:\t0\nUserBufs:\t2\n    0: 0x7f0000001000/8192\n    \
                    1: 0x7f0000010010/1\nPollList:\n  op=1, task_works=0\n";
        let expected: PageSet = [
            PageRange::with_count(PageIndex(0x7f0000001), PageCount(2)),
            PageRange::with_count(PageIndex(0x7f0000010), PageCount(1)),
        ]
        .into_iter()
        .collect();
        assert_eq!(buffers_in(text), expected);
    }
}
