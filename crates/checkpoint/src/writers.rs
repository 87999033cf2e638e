//! Who else than asynchronous I/O may write to a process's memory with no page fault, and by what it is seen
//! from outside: devices, packet sockets, and the number of pinned pages. docs/KERNEL.md has the whole table.

use crate::compared::ComparedBecause;
use pagetide_pages::PageCount;
use std::fs;
use std::path::PathBuf;

/// Descriptors of devices that are given memory of the process to write to, as the kernel shows them: VFIO and iommufd,
/// RDMA, processors of graphics and of other computations, cameras, and vDPA.
const DEVICES: [&str; 14] = [
    "/dev/vfio/",
    "anon_inode:[vfio",
    "/dev/iommu",
    "anon_inode:[iommufd",
    "/dev/infiniband/",
    "anon_inode:[infinibandevent]",
    "/dev/nvidia",
    "/dev/dri/",
    "/dev/kfd",
    "/dev/accel/",
    "/dev/video",
    "/dev/vhost-",
    "/dev/udmabuf",
    "/dmabuf:",
];

/// Of these the page tables tell all that is written: a thread of the kernel writes on behalf of the process.
const WRITES_BY_FAULTS: [&str; 3] = ["/dev/vhost-net", "/dev/vhost-vsock", "/dev/vhost-scsi"];

/// The descriptors of a process, and what they refer to. What has ended has none.
pub(crate) fn links(pid: i32) -> Vec<(i32, PathBuf)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"));
    entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, fs::read_link(entry.path()).ok()?))
        })
        .collect()
}

/// The devices among `links`, each once.
pub(crate) fn devices(links: &[(i32, PathBuf)]) -> Vec<String> {
    let targets = links.iter().map(|(_, target)| target.to_string_lossy());
    let found = targets.filter(|target| DEVICES.iter().any(|name| target.starts_with(name)));
    let mut devices: Vec<String> = found.map(String::from).collect();
    devices.sort();
    devices.dedup();
    devices
}

/// Why pages may be written that nothing lists.
pub(crate) fn unseen(
    pid: i32,
    links: &[(i32, PathBuf)],
    devices: &[String],
) -> Vec<ComparedBecause> {
    let mut reasons = Vec::new();
    let by_faults = |device: &String| WRITES_BY_FAULTS.iter().any(|name| device.starts_with(name));
    if !devices.iter().all(by_faults) {
        reasons.push(ComparedBecause::Device);
    }
    let mut sockets = links.iter().filter(|(_, target)| {
        target
            .as_os_str()
            .as_encoded_bytes()
            .starts_with(b"socket:")
    });
    if sockets.any(|(number, _)| protocol(pid, *number).as_deref() == Some(b"XDP")) {
        reasons.push(ComparedBecause::PacketBuffers);
    }
    reasons
}

/// process_vm_writev(2), of 64-bit and of 32-bit programs.
const WRITES_TO_OTHERS: [&[u8]; 2] = [b"311 ", b"348 "];

/// True if a call of some process is under way that writes to the memory of another: process_vm_writev(2) pins pages
/// first, which counts as a write, and copies later. Whose memory it is cannot be told for sure. What this user may not
/// look at is passed over.
pub(crate) fn is_call_under_way() -> bool {
    let tasks = |directory: PathBuf| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter(|entry| {
            let name = entry.file_name();
            name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
        })
    };
    let is_writing = |task: PathBuf| {
        let call = fs::read(task.join("syscall")).unwrap_or_default();
        WRITES_TO_OTHERS.iter().any(|number| call.starts_with(number))
            // One that has a processor, or waits for one, does not say in which call it is.
            || call.starts_with(b"running")
                && fs::read_to_string(task.join("stack"))
                    .is_ok_and(|stack| stack.contains("process_vm_rw"))
    };
    tasks(PathBuf::from("/proc"))
        .flat_map(|process| tasks(process.path().join("task")))
        .any(|task| is_writing(task.path()))
}

/// The protocol of the socket that is descriptor `number`: an attribute that every socket has.
fn protocol(pid: i32, number: i32) -> Option<Vec<u8>> {
    let mut name = [0; 32];
    let path = format!("/proc/{pid}/fd/{number}");
    let length = rustix::fs::getxattr(path, "system.sockprotoname", &mut name).ok()?;
    let name = &name[..length.min(name.len())];
    Some(name.strip_suffix(b"\0").unwrap_or(name).to_vec())
}

/// How many pages the kernel has pinned for good, as far as it counts them: `VmPin` in proc_pid_status(5).
pub(crate) fn pinned_pages(pid: i32) -> PageCount {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    pinned_in(&status)
}

fn pinned_in(status: &str) -> PageCount {
    let line = status.lines().find_map(|line| line.strip_prefix("VmPin:"));
    let kibibytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    PageCount(kibibytes.unwrap_or(0).div_ceil(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinned_pages_are_those_of_the_status() {
        assert_eq!(
            pinned_in("VmLck:\t       0 kB\nVmPin:\t      12 kB\n"),
            PageCount(3)
        );
        assert_eq!(pinned_in("Name:\tkthreadd\n"), PageCount(0));
    }

    #[test]
    fn a_device_that_writes_by_itself_is_told_from_one_that_does_not() {
        let links = |targets: &[&str]| -> Vec<(i32, PathBuf)> {
            targets
                .iter()
                .map(|target| (3, PathBuf::from(target)))
                .collect()
        };
        for (target, device, unlisted) in [
            ("/dev/nvidia-uvm", true, true),
            ("/dev/dri/renderD128", true, true),
            ("anon_inode:[vfio-device]", true, true),
            ("/dev/vhost-vdpa-0", true, true),
            ("/dev/vhost-net", true, false),
            ("/dev/null", false, false),
            ("/home/dev/video", false, false),
        ] {
            let links = links(&[target, target]);
            let found = devices(&links);
            assert_eq!(found.len(), usize::from(device), "{target}");
            let expected = if unlisted {
                vec![ComparedBecause::Device]
            } else {
                Vec::new()
            };
            assert_eq!(unseen(1, &links, &found), expected, "{target}");
        }
    }
}
