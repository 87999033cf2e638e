//! Which system calls have to wait until memory is there, since the kernel gives no event for them, and pages that come
//! afterwards would undo what they did: guard pages (UFFDIO_COPY takes their place), memory that a child gets as zeros, and
//! what could do the same without being seen.

use super::serve::Shared;
use crate::capture::SIZE;
use nix::libc;
use pagetide_kernel::memory::ProcessMemory;
use pagetide_pages::{PageIndex, PageRange};
use pagetide_process::{Gate, SyscallEntry, ThreadId};

const AUDIT_ARCH_X86_64: u32 = 0xC000_003E;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
/// Of a number for x32, which is that for x86-64 but for a few.
const X32: u64 = 0x4000_0000;

const MADV_WIPEONFORK: u64 = 18;
/// Linux 6.13, as the next.
const MADV_GUARD_INSTALL: u64 = 102;
const MADV_GUARD_REMOVE: u64 = 103;
const CLONE_UNTRACED: u64 = 0x0080_0000;

/// A system call, whatever its number.
enum Call {
    Madvise,
    ProcessMadvise,
    Clone,
    Clone3,
    IoUringSetup,
}

impl Call {
    fn of(entry: &SyscallEntry) -> Option<Self> {
        let number = match entry.architecture {
            AUDIT_ARCH_X86_64 => (entry.number & !X32).cast_signed(),
            // The others have the same number everywhere.
            AUDIT_ARCH_I386 => match entry.number {
                219 => libc::SYS_madvise,
                120 => libc::SYS_clone,
                // What these are to others is nothing of ours here.
                28 | 56 => return None,
                other => other.cast_signed(),
            },
            _ => return None,
        };
        match number {
            libc::SYS_madvise => Some(Self::Madvise),
            libc::SYS_process_madvise => Some(Self::ProcessMadvise),
            libc::SYS_clone => Some(Self::Clone),
            libc::SYS_clone3 => Some(Self::Clone3),
            libc::SYS_io_uring_setup => Some(Self::IoUringSetup),
            _ => None,
        }
    }
}

/// All pages that there can be.
fn all() -> PageRange {
    PageRange::new(PageIndex(0), PageIndex(u64::MAX / SIZE.bytes()))
}

fn waits(advice: u64) -> bool {
    // An int for the kernel.
    let advice = advice & u64::from(u32::MAX);
    [MADV_WIPEONFORK, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE].contains(&advice)
}

/// The pages that have to be there before `entry` may begin; `None` if it need not wait.
fn needed(thread: ThreadId, entry: &SyscallEntry) -> Option<PageRange> {
    let arguments = &entry.arguments;
    match Call::of(entry)? {
        Call::Madvise => waits(arguments[2]).then(|| {
            let end = arguments[0].saturating_add(arguments[1]);
            PageRange::new(
                SIZE.index_of(arguments[0]),
                PageIndex(end.div_ceil(SIZE.bytes())),
            )
        }),
        Call::ProcessMadvise => waits(arguments[3]).then(all),
        // A child that nobody traces would not be killed with this program.
        Call::Clone => (arguments[0] & CLONE_UNTRACED != 0).then(all),
        Call::Clone3 => {
            let mut flags = [0; 8];
            // It may be missing, too, and comes then; an address that is none is refused by the kernel.
            let memory = ProcessMemory::open(thread.get()).ok()?;
            memory.read(arguments[0], &mut flags).ok()?;
            (u64::from_le_bytes(flags) & CLONE_UNTRACED != 0).then(all)
        }
        // From a ring advice is given without a system call.
        Call::IoUringSetup => Some(all()),
    }
}

impl Gate for Shared {
    fn lets_pass(&self, thread: ThreadId, call: &SyscallEntry) -> bool {
        match needed(thread, call) {
            Some(pages) => !self.has_to_hasten(pages),
            None => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(architecture: u32, number: u64, arguments: [u64; 6]) -> SyscallEntry {
        SyscallEntry {
            architecture,
            number,
            arguments,
        }
    }

    #[test]
    fn what_gives_no_event_waits_for_the_pages_it_is_about() {
        let own = ThreadId::new(std::process::id().cast_signed());
        let advice = |advice| [0x5000, 0x1001, advice, 0, 0, 0];
        let pages = Some(PageRange::new(PageIndex(5), PageIndex(7)));
        let none = None;
        for (architecture, number) in [
            (AUDIT_ARCH_X86_64, 28),
            (AUDIT_ARCH_X86_64, 28 | X32),
            (AUDIT_ARCH_I386, 219),
        ] {
            for (number_of, expected) in [(102, pages), (103, pages), (18, pages), (4, none)] {
                let entry = entry(architecture, number, advice(number_of));
                assert_eq!(needed(own, &entry), expected, "{entry:?}");
            }
        }
        let read = entry(AUDIT_ARCH_X86_64, 0, advice(102));
        assert_eq!(needed(own, &read), none);
        let ring = entry(AUDIT_ARCH_X86_64, 425, [0; 6]);
        assert_eq!(needed(own, &ring), Some(all()));
        for (flags, expected) in [(CLONE_UNTRACED | 17, Some(all())), (17, none)] {
            let clone = entry(AUDIT_ARCH_X86_64, 56, [flags, 0, 0, 0, 0, 0]);
            assert_eq!(needed(own, &clone), expected);
            let structure = flags.to_le_bytes();
            let at = structure.as_ptr() as u64;
            let clone = entry(AUDIT_ARCH_X86_64, 435, [at, 88, 0, 0, 0, 0]);
            assert_eq!(needed(own, &clone), expected);
        }
    }
}
