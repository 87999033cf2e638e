//! Shared memory without a name: shared anonymous memory as a file descriptor, and System V segments with a number of
//! one's choice.
//!
//! Sources: mmap(2), proc_pid_map_files(5), shmget(2), shmat(2); `/proc/sys/kernel/shm_next_id` (Linux 3.9, with
//! CONFIG_CHECKPOINT_RESTORE).

#![allow(unsafe_code)]

use nix::libc;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;

/// Shared anonymous memory (`MAP_SHARED | MAP_ANONYMOUS`) of `length_bytes`, open for reading and writing, as nothing but
/// a mapping gives it. Needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN to open `/proc/self/map_files`.
pub fn anonymous(length_bytes: usize) -> io::Result<OwnedFd> {
    // SAFETY: a new mapping at a place that the kernel chooses touches nothing that is there.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length_bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let start = address as usize;
    let end = start + length_bytes.next_multiple_of(4096);
    let path = format!("/proc/self/map_files/{start:x}-{end:x}");
    let opened = OpenOptions::new().read(true).write(true).open(path);
    // SAFETY: exactly the mapping made above, of which nobody has a reference.
    unsafe { libc::munmap(address, length_bytes) };
    opened.map(OwnedFd::from)
}

/// A System V segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its number (`shmid`), which is also its inode number.
    pub id: i32,
    /// Its length in bytes.
    pub length_bytes: u64,
    /// Its key; 0 for none (IPC_PRIVATE).
    pub key: i32,
    /// Permissions, SHM_DEST (0o1000) if it is removed when nobody has it attached any more, and SHM_LOCKED (0o2000) if it is
    /// kept out of swap.
    pub mode: u32,
    /// Who owns it.
    pub uid: u32,
    /// The group that owns it.
    pub gid: u32,
    /// How many processes have it attached.
    pub attached: u64,
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

fn status(id: i32) -> io::Result<libc::shmid_ds> {
    // SAFETY: the structure is plain numbers.
    let mut found: libc::shmid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills the structure that it is given.
    check(unsafe { libc::shmctl(id, libc::IPC_STAT, &raw mut found) })?;
    Ok(found)
}

/// What is known of the segment with this number. EINVAL or EIDRM: there is none. EACCES: it may not be read.
pub fn segment(id: i32) -> io::Result<Segment> {
    let found = status(id)?;
    Ok(Segment {
        id,
        length_bytes: found.shm_segsz as u64,
        key: found.shm_perm.__key,
        mode: u32::from(found.shm_perm.mode),
        uid: found.shm_perm.uid,
        gid: found.shm_perm.gid,
        attached: found.shm_nattch,
    })
}

/// Makes a segment with the number that it is to have. EEXIST: the key or the number is taken. On a failure there is none.
pub fn make_segment(wanted: &Segment) -> io::Result<()> {
    std::fs::write("/proc/sys/kernel/shm_next_id", wanted.id.to_string())?;
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | (wanted.mode & 0o777).cast_signed();
    let length = usize::try_from(wanted.length_bytes).unwrap_or(usize::MAX);
    // SAFETY: the call takes numbers only.
    let made = check(unsafe { libc::shmget(wanted.key, length, flags) })?;
    if made != wanted.id {
        remove_segment(made)?;
        return Err(io::Error::from_raw_os_error(libc::EEXIST));
    }
    let owned = status(made).and_then(|mut found| {
        found.shm_perm.uid = wanted.uid;
        found.shm_perm.gid = wanted.gid;
        // SAFETY: the call reads the structure that it is given.
        check(unsafe { libc::shmctl(made, libc::IPC_SET, &raw mut found) })
    });
    if owned.is_err() {
        remove_segment(made)?;
    }
    owned.map(|_| ())
}

/// Removes the segment as soon as nobody has it attached (IPC_RMID).
pub fn remove_segment(id: i32) -> io::Result<()> {
    // SAFETY: the command takes no structure.
    check(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) }).map(|_| ())
}

/// Keeps the pages of the segment out of swap (SHM_LOCK), whoever has it attached. ENOMEM, EPERM: more than this user may
/// lock.
pub fn lock_segment(id: i32) -> io::Result<()> {
    // SAFETY: the command takes no structure.
    check(unsafe { libc::shmctl(id, libc::SHM_LOCK, std::ptr::null_mut()) }).map(|_| ())
}

/// A segment attached to this process, to be filled. Processes that are forked from this one do not have it.
#[derive(Debug)]
pub struct AttachedSegment {
    address: *mut u8,
    length: usize,
}

impl AttachedSegment {
    /// Attaches the segment for reading and writing: shmat(2). It is not inherited (MADV_DONTFORK): every process that
    /// has it counts in `shm_nattch`, also one that only computes (T86).
    pub fn attach(id: i32) -> io::Result<Self> {
        let length = usize::try_from(segment(id)?.length_bytes).unwrap_or(0);
        // SAFETY: the segment is attached at a place that the kernel chooses, where nothing is.
        let address = unsafe { libc::shmat(id, std::ptr::null(), 0) };
        if address as isize == -1 {
            return Err(io::Error::last_os_error());
        }
        let attached = Self {
            address: address.cast(),
            length,
        };
        // SAFETY: the range is the mapping that was just made, and the advice changes nothing in this process.
        check(unsafe { libc::madvise(address, length, libc::MADV_DONTFORK) })?;
        Ok(attached)
    }

    /// Its length in bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// A copy of all that it holds.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.length];
        self.read_at(0, &mut bytes);
        bytes
    }

    /// Fills `buffer` with what it holds from `offset` on; what lies past the end stays as it is.
    pub fn read_at(&self, offset: usize, buffer: &mut [u8]) {
        let length = buffer.len().min(self.length.saturating_sub(offset));
        if length > 0 {
            // SAFETY: `offset` is inside the segment, which stays attached as long as `self` lives.
            let from = unsafe { self.address.add(offset) };
            // SAFETY: both ranges are `length` bytes long, the one just checked to end inside the segment; nobody else in
            // this process has the segment, so they do not overlap.
            unsafe { std::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), length) };
        }
    }

    /// Writes `bytes` from `offset` on. What would lie past the end is left out.
    pub fn write_at(&self, offset: usize, bytes: &[u8]) {
        let length = bytes.len().min(self.length.saturating_sub(offset));
        if length > 0 {
            // SAFETY: `offset` is inside the segment, which stays attached as long as `self` lives.
            let to = unsafe { self.address.add(offset) };
            // SAFETY: both ranges are `length` bytes long, the one just checked to end inside the segment; nobody else in
            // this process has the segment, so they do not overlap.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, length) };
        }
    }
}

impl Drop for AttachedSegment {
    fn drop(&mut self) {
        // SAFETY: the address is the one that attaching gave, and nobody refers to it any more.
        unsafe { libc::shmdt(self.address.cast()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    #[test]
    fn shared_anonymous_memory_has_a_descriptor_and_the_name_of_one() {
        let memory = match anonymous(3 * 4096) {
            Ok(memory) => File::from(memory),
            // Without the privilege.
            Err(error) => return assert_eq!(error.raw_os_error(), Some(libc::EPERM)),
        };
        memory.write_all_at(b"there", 2 * 4096).expect("room");
        let mut bytes = [0; 5];
        memory.read_exact_at(&mut bytes, 2 * 4096).expect("there");
        assert_eq!(&bytes, b"there");
        assert_eq!(memory.metadata().expect("a file").len(), 3 * 4096);
    }

    fn new_segment() -> i32 {
        // SAFETY: the call takes numbers only.
        check(unsafe { libc::shmget(libc::IPC_PRIVATE, 8192, 0o640) }).expect("a segment")
    }

    #[test]
    fn t86_a_segment_that_is_being_filled_is_not_inherited() {
        let id = new_segment();
        let attached = AttachedSegment::attach(id).expect("it is there");
        // Not by the count: what other tests fork before the advice is given has it attached for a while.
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("our mappings");
        let inode = id.to_string();
        let is_ours = |line: &&str| {
            line.contains("/SYSV") && line.split_whitespace().nth(4) == Some(inode.as_str())
        };
        let mut lines = smaps.lines().skip_while(|line| !is_ours(line));
        let flags = lines.find_map(|line| line.strip_prefix("VmFlags:"));
        let flags = flags.expect("it is mapped");
        assert!(flags.split_whitespace().any(|flag| flag == "dc"), "{flags}");
        drop(attached);
        remove_segment(id).expect("it is ours");
    }

    #[test]
    fn a_segment_gets_the_number_it_is_to_have() {
        let id = new_segment();
        let found = segment(id).expect("it is there");
        assert_eq!((found.length_bytes, found.attached), (8192, 0));
        remove_segment(id).expect("it is ours");
        assert!(segment(id).is_err());
        match make_segment(&found) {
            Ok(()) => {
                let again = segment(id).expect("it is there again");
                assert_eq!((again.mode & 0o777, again.length_bytes), (0o640, 8192));
                assert!(make_segment(&found).is_err(), "it is taken");
                assert_eq!(segment(id).expect("it stayed"), again);
                remove_segment(id).expect("it is ours");
            }
            Err(error) => assert!(
                matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::EACCES | libc::EPERM)
                ),
                "{error}"
            ),
        }
    }
}
